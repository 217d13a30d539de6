//! DNS answers toward pods, copied to the agent. What they say is read there, never here.
//!
//! Only answers of resolvers that the pod may ask are copied; of a gateway's pod, which no policy
//! governs, whatever comes from a resolver's port: the agent knows whom to believe. No pod can make
//! one for another, because the source guard runs on every interface.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use egress_common::dns::{LARGE, PORT, Record, SMALL, loss};
use egress_common::packet::{Packet, protocol, tcp};
use egress_common::state::Pod;

use crate::forget::unknown_zero;
use crate::maps::{ANSWER_LOSSES, ANSWERS};
use crate::packet::{Copied, Linear};
use crate::rate;
use crate::wire::Bytes;

/// Length of a link header, of IPv4's without options and of IPv6's.
const LINK: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
/// Shortest DNS message: its header.
const SHORTEST: u32 = 12;

/// Whether a frame may come from a resolver: a look at three fields, before anything is parsed.
#[inline(always)]
pub(crate) fn may_answer(skb: *mut __sk_buff) -> bool {
    const IS_IPV4: u16 = 0x0800;
    const IS_IPV6: u16 = 0x86dd;
    let bytes = Linear { skb };
    let port = match bytes.half(12) {
        Some(IS_IPV4) => bytes.half(LINK + IPV4),
        Some(IS_IPV6) => bytes.half(LINK + IPV6),
        Some(_) => return false,
        None => None,
    };
    // What is not in linear memory yet is parsed.
    port.is_none_or(|port| port == PORT)
}

/// Copies an answer; of a TCP flow also what opened it, which says where its messages begin.
#[inline(always)]
pub(crate) fn copy(skb: *mut __sk_buff, pod: &Pod, packet: &Packet, now: u64) {
    if packet.src_port != PORT {
        return;
    }
    // SAFETY: a context field.
    let len = unsafe { (*skb).len };
    let bytes = Copied { skb, len };
    let at = LINK + if packet.is_v6 { IPV6 } else { IPV4 };
    let Some((from, sequence, length)) = payload(&bytes, packet, at) else {
        return;
    };
    // Ethernet pads short frames; and a header may say more than there is.
    let there = len.saturating_sub(from);
    let whole = if length < there { length } else { there };
    let opens = packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK;
    let enough = match packet.protocol {
        protocol::UDP => whole >= SHORTEST,
        _ => opens || whole != 0,
    };
    if !enough {
        return;
    }
    if !rate::answer(pod.id, now) {
        return lost(loss::RATE);
    }
    let part = Part { from, whole, sequence };
    if whole <= SMALL as u32 {
        send::<SMALL>(skb, pod, packet, &part, now);
    } else {
        send::<LARGE>(skb, pod, packet, &part, now);
    }
}

/// What is copied of a packet.
struct Part {
    /// Where the payload starts, and how long it is.
    from: u32,
    whole: u32,
    sequence: u32,
}

/// Where the payload starts, its sequence number, and its length as far as a header says it.
#[inline(always)]
fn payload(bytes: &Copied, packet: &Packet, at: usize) -> Option<(u32, u32, u32)> {
    match packet.protocol {
        protocol::UDP => {
            let length = u32::from(bytes.half(at + 4)?).saturating_sub(8);
            Some((at as u32 + 8, 0, length))
        }
        protocol::TCP => {
            let header = u32::from(bytes.byte(at + 12)? >> 4) * 4;
            let sequence = u32::from_be(bytes.word(at + 4)?);
            Some((at as u32 + header, sequence, u32::MAX))
        }
        _ => None,
    }
}

/// Puts the head and as much of the payload as there is room for into the ring. The head is written
/// where it lies: the stack is small.
#[inline(always)]
fn send<const ROOM: usize>(skb: *mut __sk_buff, pod: &Pod, packet: &Packet, part: &Part, now: u64) {
    let Some(mut entry) = ANSWERS.reserve::<Record<ROOM>>(0) else {
        return lost(loss::RING);
    };
    let record = entry.as_mut_ptr();
    let room = ROOM as u32;
    let wanted = if part.whole < room { part.whole } else { room };
    if wanted != 0 {
        // The verifier must see that it is between 1 and the room, a power of two, whatever the
        // compiler knows already.
        let bounded =
            1 + ((u64::from(wanted - 1).wrapping_add(unknown_zero(now))) & (ROOM as u64 - 1));
        // SAFETY: the helper writes so many bytes into the record, which has room for them, or
        // fails.
        let failed = unsafe {
            let payload = (&raw mut (*record).payload).cast();
            bpf_skb_load_bytes(skb.cast(), part.from, payload, bounded as u32)
        };
        if failed != 0 {
            entry.discard(0);
            return lost(loss::COPY);
        }
    }
    // SAFETY: the record is reserved, and every field of its head is written.
    unsafe {
        let head = &raw mut (*record).head;
        (*head).time = now;
        (*head).pod = pod.id;
        (*head).resolver = packet.src;
        (*head).whole = part.whole;
        (*head).sequence = part.sequence;
        (*head).copied = wanted as u16;
        (*head).port = packet.dst_port;
        (*head).protocol = packet.protocol;
        (*head).tcp_flags = packet.tcp_flags;
        (*head).pad = [0; 2];
    }
    entry.submit(0);
}

#[inline(always)]
fn lost(what: u32) {
    if let Some(slot) = ANSWER_LOSSES.get_ptr_mut(what) {
        // SAFETY: this CPU's own slot.
        unsafe { *slot += 1 };
    }
}
