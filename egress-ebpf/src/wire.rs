//! From bytes to facts: link header, ARP, IPv4, IPv6 and the transport header behind it.
//!
//! Every offset is a constant, because options and extension headers are never walked: a packet
//! that carries any is reported as malformed and [`egress_common::decide`] says what that means.
//! The parser fills in what it has read before it gives up, so that a source can still be
//! checked on what else is wrong.

use egress_common::Addr;
use egress_common::packet::{Icmp, Packet, Shape, protocol};

/// Bytes the deepest parse needs: link header, IPv6, ICMPv6, quoted IPv6, quoted ports.
pub(crate) const DEEPEST: u32 = 14 + 40 + 8 + 40 + 8;

const ETH_IPV4: u16 = 0x0800;
const ETH_ARP: u16 = 0x0806;
const ETH_IPV6: u16 = 0x86dd;
const ETH_VLAN: u16 = 0x8100;
const ETH_QINQ: u16 = 0x88a8;
/// Length of a link header; the network header follows.
const LINK: usize = 14;

/// The one accessor of packet bytes. Fields are read in their own width, at constant offsets:
/// byte arrays would cost the kernel's small stack eight bytes for each of theirs.
pub(crate) trait Bytes {
    /// A byte; `None` beyond the end, as everywhere below.
    fn byte(&self, at: usize) -> Option<u8>;
    /// Two bytes, as a number in host order.
    fn half(&self, at: usize) -> Option<u16>;
    /// Four bytes as they lie in memory, network order.
    fn word(&self, at: usize) -> Option<u32>;
    /// Length of the whole packet, bytes, whether or not all of it can be read at once.
    fn len(&self) -> u32;
    /// The kernel will segment this packet later (its length fields may say zero).
    fn is_gso(&self) -> bool;
}

/// Reads a frame with a link header. `protocol` is what the kernel took the frame for, host
/// order; `tagged` says that a VLAN tag was already taken off it. What is not reached leaves the
/// packet malformed.
#[inline(always)]
pub(crate) fn frame<B: Bytes>(packet: &mut Packet, bytes: &B, protocol: u16, tagged: bool) {
    // The outcome is in the packet; `None` only ends the reading.
    let _ = link(packet, bytes, protocol, tagged);
}

/// Reads a packet that starts with its network header, of the family the kernel names.
#[inline(always)]
pub(crate) fn network<B: Bytes>(packet: &mut Packet, bytes: &B, protocol: u16) {
    if protocol == ETH_IPV4 {
        let _ = ipv4::<B, 0>(packet, bytes);
    } else if protocol == ETH_IPV6 {
        let _ = ipv6::<B, 0>(packet, bytes);
    } else {
        packet.shape = Shape::Ethertype;
    }
}

#[inline(always)]
fn link<B: Bytes>(packet: &mut Packet, bytes: &B, protocol: u16, tagged: bool) -> Option<()> {
    packet.src_mac = mac(bytes, 6)?;
    let ethertype = bytes.half(12)?;
    if tagged || ethertype == ETH_VLAN || ethertype == ETH_QINQ {
        packet.shape = Shape::Tagged;
    } else if ethertype != protocol {
        packet.shape = Shape::Ethertype;
    } else if ethertype == ETH_IPV4 {
        return ipv4::<B, LINK>(packet, bytes);
    } else if ethertype == ETH_IPV6 {
        return ipv6::<B, LINK>(packet, bytes);
    } else if ethertype == ETH_ARP {
        return arp(packet, bytes);
    } else {
        packet.shape = Shape::Ethertype;
    }
    Some(())
}

#[inline(always)]
fn mac<B: Bytes>(bytes: &B, at: usize) -> Option<[u8; 6]> {
    Some([
        bytes.byte(at)?,
        bytes.byte(at + 1)?,
        bytes.byte(at + 2)?,
        bytes.byte(at + 3)?,
        bytes.byte(at + 4)?,
        bytes.byte(at + 5)?,
    ])
}

#[inline(always)]
fn addr4<B: Bytes>(bytes: &B, at: usize) -> Option<Addr> {
    Some(Addr::from_v4_word(bytes.word(at)?))
}

#[inline(always)]
fn addr6<B: Bytes>(bytes: &B, at: usize) -> Option<Addr> {
    Some(Addr::from_words([
        bytes.word(at)?,
        bytes.word(at + 4)?,
        bytes.word(at + 8)?,
        bytes.word(at + 12)?,
    ]))
}

/// ARP for IPv4 over Ethernet, request or reply, nothing behind it but the zeroes that pad a
/// minimal frame.
#[inline(always)]
fn arp<B: Bytes>(packet: &mut Packet, bytes: &B) -> Option<()> {
    const MINIMAL_FRAME: usize = 60;
    const ETHERNET: u16 = 1;
    const LENGTHS: u16 = 0x0604;
    packet.arp_mac = mac(bytes, LINK + 8)?;
    packet.src = addr4(bytes, LINK + 14)?;
    packet.dst = addr4(bytes, LINK + 24)?;
    let operation = bytes.half(LINK + 6)?;
    let exact = bytes.half(LINK)? == ETHERNET
        && bytes.half(LINK + 2)? == ETH_IPV4
        && bytes.half(LINK + 4)? == LENGTHS
        && (operation == 1 || operation == 2);
    let mut at = LINK + 28;
    let mut padding = 0;
    while at < MINIMAL_FRAME {
        padding |= bytes.byte(at).unwrap_or(0);
        at += 1;
    }
    if exact && padding == 0 && bytes.len() <= MINIMAL_FRAME as u32 {
        packet.shape = Shape::Arp;
    }
    Some(())
}

#[inline(always)]
fn ipv4<B: Bytes, const AT: usize>(packet: &mut Packet, bytes: &B) -> Option<()> {
    let proto = bytes.byte(AT + 9)?;
    packet.protocol = proto;
    packet.flow_protocol = proto;
    packet.src = addr4(bytes, AT + 12)?;
    packet.dst = addr4(bytes, AT + 16)?;
    if bytes.byte(AT)? != 0x45 {
        return None;
    }
    let room = bytes.len() - AT as u32;
    let total = u32::from(bytes.half(AT + 2)?);
    // BIG TCP: a segment too long for the field says zero.
    let total = if total == 0 && bytes.is_gso() { room } else { total };
    if total < 20 || total > room {
        return None;
    }
    // More fragments, or an offset.
    if bytes.half(AT + 6)? & 0x3fff != 0 {
        packet.shape = Shape::Fragment;
        return Some(());
    }
    match proto {
        protocol::ICMP => icmp4::<B, AT>(packet, bytes, total),
        _ => transport(packet, bytes, AT + 20, total - 20),
    }
}

const HEADER_HOP_BY_HOP: u8 = 0;
const HEADER_ROUTING: u8 = 43;
const HEADER_FRAGMENT: u8 = 44;
const HEADER_AUTH: u8 = 51;
const HEADER_NONE: u8 = 59;
const HEADER_DESTINATION: u8 = 60;
const HEADER_MOBILITY: u8 = 135;
const HEADER_HIP: u8 = 139;
const HEADER_SHIM6: u8 = 140;

#[inline(always)]
fn ipv6<B: Bytes, const AT: usize>(packet: &mut Packet, bytes: &B) -> Option<()> {
    packet.is_v6 = true;
    let next = bytes.byte(AT + 6)?;
    packet.protocol = next;
    packet.flow_protocol = next;
    packet.src = addr6(bytes, AT + 8)?;
    packet.dst = addr6(bytes, AT + 24)?;
    if bytes.byte(AT)? >> 4 != 6 {
        return None;
    }
    let room = bytes.len() - AT as u32;
    let payload = u32::from(bytes.half(AT + 4)?);
    if payload + 40 > room {
        return None;
    }
    // BIG TCP without its header, as later kernels have it: a length too long for the field.
    if next == protocol::TCP && payload == 0 && bytes.is_gso() {
        return transport(packet, bytes, AT + 40, room - 40);
    }
    match next {
        protocol::ICMPV6 => icmp6::<B, AT>(packet, bytes, payload),
        protocol::TCP | protocol::UDP => transport(packet, bytes, AT + 40, payload),
        HEADER_HOP_BY_HOP if payload == 0 => jumbo::<B, AT>(packet, bytes),
        HEADER_HOP_BY_HOP => listener::<B, AT>(packet, bytes),
        HEADER_ROUTING | HEADER_FRAGMENT | HEADER_AUTH | HEADER_NONE | HEADER_DESTINATION
        | HEADER_MOBILITY | HEADER_HIP | HEADER_SHIM6 => None,
        // A protocol without ports, which the cluster may still allow.
        _ => {
            packet.shape = Shape::Ip;
            Some(())
        }
    }
}

/// The one extension header a kernel adds by itself: the eight bytes of BIG TCP, only on a packet
/// it is still going to segment.
#[inline(always)]
fn jumbo<B: Bytes, const AT: usize>(packet: &mut Packet, bytes: &B) -> Option<()> {
    const TCP_AND_NO_MORE: u16 = (protocol::TCP as u16) << 8;
    const JUMBO_OPTION: u16 = 0xc204;
    let exact = bytes.half(AT + 40)? == TCP_AND_NO_MORE && bytes.half(AT + 42)? == JUMBO_OPTION;
    if !exact || !bytes.is_gso() {
        return None;
    }
    packet.protocol = protocol::TCP;
    packet.flow_protocol = protocol::TCP;
    transport(packet, bytes, AT + 48, bytes.len().saturating_sub(AT as u32 + 48))
}

/// A multicast listener report: behind a router alert and nothing else, never to be forwarded.
#[inline(always)]
fn listener<B: Bytes, const AT: usize>(packet: &mut Packet, bytes: &B) -> Option<()> {
    const ICMPV6_AND_NO_MORE: u16 = (protocol::ICMPV6 as u16) << 8;
    const ROUTER_ALERT: u16 = 0x0502;
    const HOPS: usize = 7;
    let exact = bytes.half(AT + 40)? == ICMPV6_AND_NO_MORE
        && bytes.half(AT + 42)? == ROUTER_ALERT
        && bytes.half(AT + 44)? == 0
        && bytes.byte(AT + HOPS)? == 1;
    let kind = bytes.byte(AT + 48)?;
    if exact && matches!(kind, 131 | 132 | 143) && packet.dst.is_multicast_or_broadcast() {
        packet.protocol = protocol::ICMPV6;
        packet.flow_protocol = protocol::ICMPV6;
        packet.shape = Shape::Listener;
    }
    Some(())
}

/// TCP and UDP; other protocols have nothing we read.
#[inline(always)]
fn transport<B: Bytes>(packet: &mut Packet, bytes: &B, at: usize, room: u32) -> Option<()> {
    match packet.protocol {
        protocol::TCP => {
            let offset_flags = bytes.half(at + 12)?;
            let length = u32::from(offset_flags >> 12) * 4;
            if room < 20 || length < 20 || length > room {
                return None;
            }
            packet.tcp_flags = offset_flags as u8;
            packet.has_payload = length < room;
            ports(packet, bytes, at)?;
        }
        protocol::UDP => {
            if room < 8 {
                return None;
            }
            ports(packet, bytes, at)?;
        }
        _ => {}
    }
    packet.shape = Shape::Ip;
    Some(())
}

#[inline(always)]
fn ports<B: Bytes>(packet: &mut Packet, bytes: &B, at: usize) -> Option<()> {
    packet.src_port = bytes.half(at)?;
    packet.dst_port = bytes.half(at + 2)?;
    Some(())
}

#[inline(always)]
fn icmp4<B: Bytes, const AT: usize>(packet: &mut Packet, bytes: &B, total: u32) -> Option<()> {
    /// An error quotes no more than makes a minimal datagram (RFC 1812 §4.3.2.3).
    const LONGEST_ERROR: u32 = 576;
    let kind = bytes.byte(AT + 20)?;
    let id = bytes.half(AT + 24)?;
    if total < 28 {
        return None;
    }
    packet.shape = Shape::Ip;
    match kind {
        0 => echo(packet, Icmp::EchoReply, id),
        8 => echo(packet, Icmp::EchoRequest, id),
        3 | 11 | 12 if total <= LONGEST_ERROR && bytes.byte(AT + 28)? == 0x45 => {
            let quoted = bytes.byte(AT + 37)?;
            let from = addr4(bytes, AT + 40)?;
            let to = addr4(bytes, AT + 44)?;
            error(packet, bytes, quoted, from, to, AT + 48)?;
        }
        _ => {}
    }
    Some(())
}

#[inline(always)]
fn icmp6<B: Bytes, const AT: usize>(packet: &mut Packet, bytes: &B, payload: u32) -> Option<()> {
    /// An error quotes no more than fits the minimal MTU (RFC 4443 §2.4).
    const LONGEST_ERROR: u32 = 1280 - 40;
    /// Advertisement with one link-layer option.
    const LONGEST_NEIGHBOUR: u32 = 32;
    const HOPS: usize = 7;
    let kind = bytes.byte(AT + 40)?;
    let id = bytes.half(AT + 44)?;
    if payload < 8 {
        return None;
    }
    packet.shape = Shape::Ip;
    match kind {
        129 => echo(packet, Icmp::EchoReply, id),
        128 => echo(packet, Icmp::EchoRequest, id),
        1..=4 if payload <= LONGEST_ERROR => {
            let quoted = bytes.byte(AT + 54)?;
            let from = addr6(bytes, AT + 56)?;
            let to = addr6(bytes, AT + 72)?;
            error(packet, bytes, quoted, from, to, AT + 88)?;
        }
        // Router solicitation, neighbour solicitation and advertisement.
        133 | 135 | 136 if payload <= LONGEST_NEIGHBOUR => {
            let exact = bytes.byte(AT + HOPS)? == 255 && bytes.byte(AT + 41)? == 0;
            let whole = kind == 133 || payload >= 24;
            if !exact || !whole {
                return Some(());
            }
            if kind == 136 || (kind == 135 && packet.src.is_unspecified()) {
                packet.target = addr6(bytes, AT + 48)?;
            }
            packet.shape = Shape::Neighbour;
        }
        _ => {}
    }
    Some(())
}

/// The identifier stands where the remote's port would: in a request that is the source's, in a
/// reply the destination's.
#[inline(always)]
const fn echo(packet: &mut Packet, kind: Icmp, id: u16) {
    packet.icmp = kind;
    match kind {
        Icmp::EchoReply => packet.dst_port = id,
        Icmp::EchoRequest => packet.src_port = id,
        Icmp::Other | Icmp::Error => {}
    }
}

/// An error counts as an answer only when the packet it quotes went from its destination to its
/// source; the quoted ports, turned round, name the flow.
#[inline(always)]
fn error<B: Bytes>(
    packet: &mut Packet,
    bytes: &B,
    quoted: u8,
    from: Addr,
    to: Addr,
    at: usize,
) -> Option<()> {
    let ported = quoted == protocol::TCP || quoted == protocol::UDP;
    if ported && from == packet.dst && to == packet.src {
        packet.dst_port = bytes.half(at)?;
        packet.src_port = bytes.half(at + 2)?;
        packet.flow_protocol = quoted;
        packet.icmp = Icmp::Error;
    }
    Some(())
}

#[cfg(test)]
#[path = "wire/tests.rs"]
mod tests;
