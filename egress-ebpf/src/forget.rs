//! Makes the verifier forget what it knows about a value, never the value itself.
//!
//! The verifier walks every path on its own for as long as two paths differ in a constant that a
//! later branch looks at. A parser that ends in thirty ways in front of a decision that ends in
//! forty in front of counters would be walked thirty times forty times. Adding a zero that the
//! verifier cannot know to be one makes the ends of a stage look alike, so that each stage costs
//! what it is, and no stage multiplies another. The sum costs three instructions at run time.

use egress_common::key::GatewayId;
use egress_common::packet::Packet;
use egress_common::{Reason, Ruling, Subject, Verdict};

/// Sixty-four bits that are zero, and that the verifier takes for anything. `now` is any value
/// it does not know, as every helper's result.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) fn unknown_zero(now: u64) -> u64 {
    let zero: u64;
    // SAFETY: two register moves; the verifier does not follow that both hold the same number.
    unsafe {
        core::arch::asm!("{zero} = {now}", "{zero} -= {now}", zero = out(reg) zero, now = in(reg) now);
    }
    zero
}

/// The host has no verifier.
#[cfg(not(target_arch = "bpf"))]
pub(crate) fn unknown_zero(_: u64) -> u64 {
    0
}

/// The same facts, of which the verifier knows nothing; the hook stays known, so that the compiler
/// still leaves out what only other hooks do.
#[inline(always)]
pub(crate) fn forget_packet(packet: &mut Packet, now: u64) {
    let hook = packet.hook;
    forget(packet, now);
    packet.hook = hook;
}

/// The same subject, of which the verifier knows nothing.
#[inline(always)]
pub(crate) fn forget_subject(who: &mut Subject, now: u64) {
    forget(who, now);
}

/// The same ruling, of which the verifier knows nothing.
#[inline(always)]
pub(crate) fn forget_ruling(ruling: Ruling, now: u64) -> Ruling {
    let zero = unknown_zero(now) as u8;
    let number = ruling.reason.number().wrapping_add(zero);
    // SAFETY: the number of this very reason, plus zero.
    let reason = unsafe { core::mem::transmute::<u8, Reason>(number) };
    let gateway = GatewayId(ruling.gateway.0.wrapping_add(u32::from(zero)));
    Ruling { reason, line: ruling.line.wrapping_add(zero), gateway }
}

/// The same verdict, of which the verifier knows nothing.
#[inline(always)]
pub(crate) fn forget_verdict(verdict: Verdict, now: u64) -> Verdict {
    let number = verdict.number().wrapping_add(unknown_zero(now) as u8);
    // SAFETY: the number of this very verdict, plus zero.
    unsafe { core::mem::transmute::<u8, Verdict>(number) }
}

/// Adds the zero to every word.
#[inline(always)]
fn forget<T: Words>(value: &mut T, now: u64) {
    let zero = unknown_zero(now) as u32;
    let words = (&raw mut *value).cast::<u32>();
    let mut at = 0;
    while at < size_of::<T>() / size_of::<u32>() {
        // SAFETY: within the value, whose bytes are all initialised (`Words`); volatile so that
        // the sum is made in memory, where the verifier keeps nothing of it.
        unsafe { words.add(at).write_volatile(words.add(at).read_volatile().wrapping_add(zero)) };
        at += 1;
    }
}

/// Types that are initialised words and nothing else.
///
/// # Safety
/// No padding; size and alignment are multiples of four.
unsafe trait Words {}

// SAFETY: eight bytes of kinds and flags, two MACs, two ports, three addresses, four bytes more: no padding, as
// the assertion below says.
unsafe impl Words for Packet {}
// SAFETY: twelve bytes of number and policy, six of modes and flags, a MAC, two addresses, the
// namespace with what fills its word pair: likewise.
unsafe impl Words for Subject {}

const _: () = {
    assert!(size_of::<Packet>() == 8 + 12 + 4 + 48 + 4 && align_of::<Packet>() == 4);
    assert!(size_of::<Subject>() == 8 + 4 + 6 + 6 + 32 + 8);
};
