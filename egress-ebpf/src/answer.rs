//! Telling a pod that its packet was dropped, so that its clients fail in milliseconds.
//!
//! The denied frame itself becomes the answer: its link header turned round, a TCP reset or an
//! ICMP error behind it, sent back out of the interface it came in by. Only the boundary can do
//! this. Whatever fails on the way leaves a silent drop, which is what the verdict asks for anyway.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, BPF_CSUM_LEVEL_RESET};
use aya_ebpf::helpers::generated::{
    bpf_csum_level, bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use egress_common::Addr;
use egress_common::packet::{Packet, protocol, tcp};

/// Length of a link header.
const LINK: u32 = 14;
/// Hops an answer may take: it takes one.
const TTL: u8 = 64;
/// TCP header without options.
const TCP_LENGTH: u32 = 20;
/// ICMP header.
const ICMP_LENGTH: u32 = 8;
/// What an error quotes behind the network header.
const QUOTED: u32 = 8;

/// Turns the frame into its answer and sends it to the pod. `None` where it could not be made.
#[inline(always)]
pub(crate) fn send(skb: *mut __sk_buff, packet: &Packet, ifindex: u32) -> Option<()> {
    if packet.is_v6 {
        v6(skb, packet)?
    } else {
        v4(skb, packet)?
    }
    // SAFETY: takes numbers and sends the packet of this program to its own interface.
    let _ = unsafe { bpf_redirect(ifindex, 0) };
    Some(())
}

#[inline(always)]
fn v4(skb: *mut __sk_buff, packet: &Packet) -> Option<()> {
    const IP_LENGTH: u32 = 20;
    let link = turned_link(skb)?;
    let transport = LINK + IP_LENGTH;
    let (length, proto) = if packet.protocol == protocol::TCP {
        let mut header = reset(skb, packet, transport)?;
        let pseudo = sum(&addr4(&packet.src))
            + sum(&addr4(&packet.dst))
            + pseudo_tail(TCP_LENGTH, protocol::TCP);
        header[4] |= u32::from(fold(pseudo + sum(&header)));
        resize(skb, transport + TCP_LENGTH)?;
        store(skb, transport, &header)?;
        (IP_LENGTH + TCP_LENGTH, protocol::TCP)
    } else {
        /// Destination unreachable, communication administratively prohibited (RFC 1812 5.2.7.1).
        const PROHIBITED: u32 = u32::from_be(0x030d_0000);
        let quoted: [u32; 7] = load(skb, LINK)?;
        let mut header = [PROHIBITED, 0];
        header[0] |= u32::from(fold(sum(&header) + sum(&quoted))).wrapping_shl(HIGH);
        resize(skb, transport + ICMP_LENGTH + IP_LENGTH + QUOTED)?;
        store(skb, transport, &header)?;
        store(skb, transport + ICMP_LENGTH, &quoted)?;
        (IP_LENGTH + ICMP_LENGTH + IP_LENGTH + QUOTED, protocol::ICMP)
    };
    let [from] = addr4(&packet.dst);
    let [to] = addr4(&packet.src);
    let mut ip = [
        u32::from_be(0x4500_0000 | length),
        u32::from_be(0x0000_4000),
        u32::from_be((TTL as u32) << 24 | (proto as u32) << 16),
        from,
        to,
    ];
    ip[2] |= u32::from(fold(sum(&ip))).wrapping_shl(HIGH);
    store(skb, LINK, &ip)?;
    store(skb, 0, &link)
}

#[inline(always)]
fn v6(skb: *mut __sk_buff, packet: &Packet) -> Option<()> {
    const IP_LENGTH: u32 = 40;
    let link = turned_link(skb)?;
    let transport = LINK + IP_LENGTH;
    let (from, to) = (packet.dst.words(), packet.src.words());
    let (length, proto) = if packet.protocol == protocol::TCP {
        let mut header = reset(skb, packet, transport)?;
        let pseudo = sum(&from) + sum(&to) + pseudo_tail(TCP_LENGTH, protocol::TCP);
        header[4] |= u32::from(fold(pseudo + sum(&header)));
        resize(skb, transport + TCP_LENGTH)?;
        store(skb, transport, &header)?;
        (TCP_LENGTH, protocol::TCP)
    } else {
        /// Destination unreachable, communication administratively prohibited (RFC 4443 3.1).
        const PROHIBITED: u32 = u32::from_be(0x0101_0000);
        const LENGTH: u32 = ICMP_LENGTH + IP_LENGTH + QUOTED;
        let quoted: [u32; 12] = load(skb, LINK)?;
        let mut header = [PROHIBITED, 0];
        let pseudo = sum(&from) + sum(&to) + pseudo_tail(LENGTH, protocol::ICMPV6);
        header[0] |= u32::from(fold(pseudo + sum(&header) + sum(&quoted))).wrapping_shl(HIGH);
        resize(skb, transport + LENGTH)?;
        store(skb, transport, &header)?;
        store(skb, transport + ICMP_LENGTH, &quoted)?;
        (LENGTH, protocol::ICMPV6)
    };
    let ip = [
        u32::from_be(0x6000_0000),
        u32::from_be(length << 16 | (proto as u32) << 8 | TTL as u32),
        from[0],
        from[1],
        from[2],
        from[3],
        to[0],
        to[1],
        to[2],
        to[3],
    ];
    store(skb, LINK, &ip)?;
    store(skb, 0, &link)
}

/// The later half of a word, in memory: words lie in network order, the CPU is little-endian.
const HIGH: u32 = 16;

#[inline(always)]
fn addr4(addr: &Addr) -> [u32; 1] {
    [addr.words()[3]]
}

/// The reset's header without its checksum (RFC 9293 3.5.2): it takes its number from what the
/// segment acknowledges, or acknowledges the SYN.
#[inline(always)]
fn reset(skb: *mut __sk_buff, packet: &Packet, at: u32) -> Option<[u32; 5]> {
    let [ports, sequence, acknowledged]: [u32; 3] = load(skb, at)?;
    let turned = ports.rotate_left(16);
    let acks = packet.tcp_flags & tcp::ACK != 0;
    let (sequence, acknowledged, flags) = if acks {
        (acknowledged, 0, tcp::RST)
    } else {
        (0, u32::from_be(sequence).wrapping_add(1).to_be(), tcp::RST | tcp::ACK)
    };
    let offset_flags = u32::from_be(0x5000_0000 | (flags as u32) << 16);
    Some([turned, sequence, acknowledged, offset_flags, 0])
}

/// The link header with its ends exchanged, in the sixteen bytes it is moved in: fourteen of it,
/// two of what follows.
#[inline(always)]
fn turned_link(skb: *mut __sk_buff) -> Option<[u16; 7]> {
    let link: [u16; 7] = load(skb, 0)?;
    let [a, b, c, d, e, f, kind] = link;
    Some([d, e, f, a, b, c, kind])
}

/// Length and protocol of a pseudo-header.
#[inline(always)]
const fn pseudo_tail(length: u32, proto: u8) -> u64 {
    u32::from_be(length) as u64 + u32::from_be(proto as u32) as u64
}

/// The sum of words in the order they lie in memory: the internet checksum does not care.
#[inline(always)]
fn sum(words: &[u32]) -> u64 {
    let mut sum = 0;
    let mut at = 0;
    while at < words.len() {
        if let Some(word) = words.get(at) {
            sum += u64::from(*word);
        }
        at += 1;
    }
    sum
}

/// The checksum of such a sum.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Cuts or grows the frame; what the sender left to the hardware's checksum is void with it.
#[inline(always)]
fn resize(skb: *mut __sk_buff, length: u32) -> Option<()> {
    // SAFETY: helpers on the packet of this program; packet pointers are void afterwards, and none
    // is kept. `bpf_csum_level` since Linux 5.8.
    unsafe {
        if bpf_skb_change_tail(skb, length, 0) != 0 {
            return None;
        }
        bpf_csum_level(skb, u64::from(BPF_CSUM_LEVEL_RESET));
    }
    Some(())
}

/// Reads integers. They are not zeroed first: the verifier would walk the loop that does it.
#[inline(always)]
fn load<T: Copy>(skb: *mut __sk_buff, at: u32) -> Option<T> {
    let mut copy = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes exactly the size of `T`, integers, or fails.
    unsafe {
        let failed =
            bpf_skb_load_bytes(skb.cast(), at, copy.as_mut_ptr().cast(), size_of::<T>() as u32);
        if failed == 0 { Some(copy.assume_init()) } else { None }
    }
}

#[inline(always)]
fn store<T>(skb: *mut __sk_buff, at: u32, value: &T) -> Option<()> {
    // SAFETY: the helper reads exactly the size of `T`, initialised integers.
    let failed = unsafe {
        bpf_skb_store_bytes(skb, at, (&raw const *value).cast(), size_of::<T>() as u32, 0)
    };
    (failed == 0).then_some(())
}
