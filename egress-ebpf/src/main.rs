//! The kernel programs: one entry per hook, nothing decided here.
//!
//! Each entry turns its context into facts ([`connect`], [`packet`]), asks
//! [`egress_common::decide`], counts and tells ([`emit`]) and returns. What every error becomes is
//! written out at the entry: a packet that cannot be read is judged as malformed, never let
//! through unseen.
//!
//! Entries are inlined into their programs: kernels before 6.8 round every function's frame up to
//! a multiple of 32 bytes, with one of no bytes at all, and all together may have 512.
//!
//! For the host this crate is an ordinary one: parsers build, lint and are unit-tested there.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(
    not(target_arch = "bpf"),
    expect(dead_code, reason = "entries exist for the kernel; the host tests what they call")
)]

mod answer;
mod atomic;
mod connect;
mod emit;
mod flow;
mod forget;
mod listen;
mod log;
mod maps;
mod packet;
mod rate;
mod redirect;
mod wire;

use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, TcContext};
use egress_common::Verdict;
use egress_common::packet::Hook;
use packet::Answered;
use redirect::Family;

/// `TCX_NEXT`: let the CNI's own programs run. `TCX_PASS` (0) would hide them.
const TCX_NEXT: i32 = -1;
/// `TCX_DROP`.
const TCX_DROP: i32 = 2;
/// `TCX_REDIRECT`: what was dropped goes back as its answer.
const TCX_REDIRECT: i32 = 7;
/// Verdicts of cgroup hooks.
const CGROUP_ALLOW: i32 = 1;
const CGROUP_DENY: i32 = 0;

/// TCX ingress of the host side of a pod's veth: everything the pod sends. The boundary.
#[classifier]
#[inline(always)]
pub(crate) fn pod_egress(ctx: TcContext) -> i32 {
    match packet::pod_egress(&ctx) {
        (Verdict::Allow | Verdict::Audit, _) => TCX_NEXT,
        (Verdict::Drop, Answered::No) => TCX_DROP,
        (Verdict::Drop, Answered::Yes) => TCX_REDIRECT,
    }
}

/// TCX egress of the same veth: everything that reaches the pod. Tracks, never drops.
#[classifier]
pub(crate) fn pod_ingress(ctx: TcContext) -> i32 {
    packet::pod_ingress(&ctx);
    TCX_NEXT
}

/// TCX egress of the node's uplinks: what the boundary let through to a Service's address, judged
/// by where it really goes.
#[classifier]
pub(crate) fn uplink_egress(ctx: TcContext) -> i32 {
    match packet::uplink_egress(&ctx) {
        Verdict::Allow | Verdict::Audit => TCX_NEXT,
        Verdict::Drop => TCX_DROP,
    }
}

/// `cgroup_skb/egress` at `kubepods`: every packet of a socket that belongs to a pod.
#[cgroup_skb]
#[inline(always)]
pub(crate) fn wall(ctx: SkBuffContext) -> i32 {
    match packet::wall(&ctx) {
        Verdict::Allow | Verdict::Audit => CGROUP_ALLOW,
        Verdict::Drop => CGROUP_DENY,
    }
}

/// `cgroup_skb/ingress` at `kubepods`: every packet that reaches a socket of a pod. Tracks what is
/// opened toward pods without a boundary, never drops.
#[cgroup_skb]
pub(crate) fn wall_ingress(ctx: SkBuffContext) -> i32 {
    packet::wall_ingress(&ctx);
    CGROUP_ALLOW
}

/// `connect(2)` to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    socket(&ctx, Hook::Connect4)
}

/// `connect(2)` to an IPv6 address, IPv4-mapped ones included.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    socket(&ctx, Hook::Connect6)
}

/// `sendmsg(2)` with an IPv4 address, from an IPv6 socket with a mapped one too.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket(&ctx, Hook::Sendmsg4)
}

/// `sendmsg(2)` with an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket(&ctx, Hook::Sendmsg6)
}

/// `getpeername(2)` of an IPv4 socket. Refuses nothing.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    redirect::peer(&ctx, Family::V4);
    CGROUP_ALLOW
}

/// `getpeername(2)` of an IPv6 socket, connected to a mapped address too. Refuses nothing.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    redirect::peer(&ctx, Family::V6);
    CGROUP_ALLOW
}

#[inline(always)]
fn socket(ctx: &SockAddrContext, hook: Hook) -> i32 {
    match connect::call(ctx, hook) {
        Verdict::Allow | Verdict::Audit => CGROUP_ALLOW,
        Verdict::Drop => CGROUP_DENY,
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel checks this before it offers the helpers that need it.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
