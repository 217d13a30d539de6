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

/// The one accessor of packet bytes.
pub(crate) trait Bytes {
    /// `N` bytes at a constant offset; `None` beyond the end.
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]>;
    /// Length of the whole packet, bytes, whether or not all of it can be read at once.
    fn len(&self) -> u32;
    /// The kernel will segment this packet later (its length fields may say zero).
    fn is_gso(&self) -> bool;
}

/// Reads a frame with a link header. `protocol` is what the kernel took the frame for, host
/// order; `tagged` says that a VLAN tag was already taken off it.
#[inline(always)]
pub(crate) fn frame<B: Bytes>(packet: &mut Packet, bytes: &B, protocol: u16, tagged: bool) {
    let Some(link) = bytes.load::<LINK>(0) else {
        return;
    };
    let [_, _, _, _, _, _, a, b, c, d, e, f, high, low] = link;
    packet.src_mac = [a, b, c, d, e, f];
    let ethertype = u16::from_be_bytes([high, low]);
    if tagged || ethertype == ETH_VLAN || ethertype == ETH_QINQ {
        packet.shape = Shape::Tagged;
    } else if ethertype != protocol {
        packet.shape = Shape::Ethertype;
    } else if ethertype == ETH_IPV4 {
        ipv4::<B, LINK>(packet, bytes);
    } else if ethertype == ETH_IPV6 {
        ipv6::<B, LINK>(packet, bytes);
    } else if ethertype == ETH_ARP {
        arp(packet, bytes);
    } else {
        packet.shape = Shape::Ethertype;
    }
}

/// Reads a packet that starts with its network header, of the family the kernel names.
#[inline(always)]
pub(crate) fn network<B: Bytes>(packet: &mut Packet, bytes: &B, protocol: u16) {
    if protocol == ETH_IPV4 {
        ipv4::<B, 0>(packet, bytes);
    } else if protocol == ETH_IPV6 {
        ipv6::<B, 0>(packet, bytes);
    } else {
        packet.shape = Shape::Ethertype;
    }
}

/// ARP for IPv4 over Ethernet, request or reply, nothing behind it but the padding of a minimal
/// frame.
#[inline(always)]
fn arp<B: Bytes>(packet: &mut Packet, bytes: &B) {
    const MINIMAL_FRAME: u32 = 60;
    let Some(head) = bytes.load::<8>(LINK) else {
        return;
    };
    let Some(sender) = bytes.load::<10>(LINK + 8) else {
        return;
    };
    let Some(target) = bytes.load::<4>(LINK + 24) else {
        return;
    };
    let [s0, s1, s2, s3, s4, s5, i0, i1, i2, i3] = sender;
    packet.arp_mac = [s0, s1, s2, s3, s4, s5];
    packet.src = Addr::v4([i0, i1, i2, i3]);
    packet.dst = Addr::v4(target);
    let [h0, h1, p0, p1, hlen, plen, o0, op] = head;
    let exact = h0 == 0 && h1 == 1 && p0 == 8 && p1 == 0 && hlen == 6 && plen == 4 && o0 == 0;
    if exact && (op == 1 || op == 2) && bytes.len() <= MINIMAL_FRAME {
        packet.shape = Shape::Arp;
    }
}

#[inline(always)]
fn ipv4<B: Bytes, const AT: usize>(packet: &mut Packet, bytes: &B) {
    let Some(header) = bytes.load::<20>(AT) else {
        return;
    };
    let [version, _, l0, l1, _, _, f0, f1, _, proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    packet.protocol = proto;
    packet.flow_protocol = proto;
    packet.src = Addr::v4([s0, s1, s2, s3]);
    packet.dst = Addr::v4([d0, d1, d2, d3]);
    if version != 0x45 {
        return;
    }
    let room = bytes.len() - AT as u32;
    let total = u32::from(u16::from_be_bytes([l0, l1]));
    // BIG TCP: a segment too long for the field says zero.
    let total = if total == 0 && bytes.is_gso() { room } else { total };
    if total < 20 || total > room {
        return;
    }
    // More fragments, or an offset.
    if u16::from_be_bytes([f0, f1]) & 0x3fff != 0 {
        packet.shape = Shape::Fragment;
        return;
    }
    match proto {
        protocol::ICMP => icmp4::<B, AT>(packet, bytes, total),
        _ => transport(packet, bytes, AT + 20, total - 20),
    }
}

#[inline(always)]
fn ipv6<B: Bytes, const AT: usize>(packet: &mut Packet, bytes: &B) {
    packet.is_v6 = true;
    let Some([version, _, _, _, l0, l1, next, hops]) = bytes.load::<8>(AT) else {
        return;
    };
    let Some(src) = bytes.load::<16>(AT + 8) else {
        return;
    };
    let Some(dst) = bytes.load::<16>(AT + 24) else {
        return;
    };
    packet.protocol = next;
    packet.flow_protocol = next;
    packet.src = Addr::new(src);
    packet.dst = Addr::new(dst);
    if version >> 4 != 6 {
        return;
    }
    let room = bytes.len() - AT as u32;
    let payload = u32::from(u16::from_be_bytes([l0, l1]));
    if payload + 40 > room {
        return;
    }
    match next {
        protocol::ICMPV6 => icmp6::<B, AT>(packet, bytes, payload, hops),
        protocol::TCP | protocol::UDP => transport(packet, bytes, AT + 40, payload),
        JUMBO_PARENT => jumbo::<B, AT>(packet, bytes, payload),
        // Every other extension header, and every protocol that the cluster may still allow.
        HEADER_ROUTING | HEADER_FRAGMENT | HEADER_AUTH | HEADER_DESTINATION | HEADER_MOBILITY
        | HEADER_HIP | HEADER_SHIM6 | HEADER_NONE => {}
        _ => packet.shape = Shape::Ip,
    }
}

const JUMBO_PARENT: u8 = 0;
const HEADER_ROUTING: u8 = 43;
const HEADER_FRAGMENT: u8 = 44;
const HEADER_AUTH: u8 = 51;
const HEADER_NONE: u8 = 59;
const HEADER_DESTINATION: u8 = 60;
const HEADER_MOBILITY: u8 = 135;
const HEADER_HIP: u8 = 139;
const HEADER_SHIM6: u8 = 140;

/// The one extension header a kernel adds by itself: the eight bytes of BIG TCP, only on a packet
/// it is still going to segment.
#[inline(always)]
fn jumbo<B: Bytes, const AT: usize>(packet: &mut Packet, bytes: &B, payload: u32) {
    let Some([next, length, option, size, _, _, _, _]) = bytes.load::<8>(AT + 40) else {
        return;
    };
    let exact = next == protocol::TCP && length == 0 && option == 0xc2 && size == 4;
    if exact && payload == 0 && bytes.is_gso() {
        packet.protocol = protocol::TCP;
        packet.flow_protocol = protocol::TCP;
        let room = bytes.len() - AT as u32;
        transport(packet, bytes, AT + 48, room - 48);
    }
}

/// TCP and UDP; other protocols have nothing we read.
#[inline(always)]
fn transport<B: Bytes>(packet: &mut Packet, bytes: &B, at: usize, room: u32) {
    match packet.protocol {
        protocol::TCP => {
            let Some(header) = bytes.load::<14>(at) else {
                return;
            };
            let [s0, s1, d0, d1, _, _, _, _, _, _, _, _, offset, flags] = header;
            let length = u32::from(offset >> 4) * 4;
            if room < 20 || length < 20 || length > room {
                return;
            }
            packet.src_port = u16::from_be_bytes([s0, s1]);
            packet.dst_port = u16::from_be_bytes([d0, d1]);
            packet.tcp_flags = flags;
        }
        protocol::UDP => {
            let Some([s0, s1, d0, d1, _, _, _, _]) = bytes.load::<8>(at) else {
                return;
            };
            if room < 8 {
                return;
            }
            packet.src_port = u16::from_be_bytes([s0, s1]);
            packet.dst_port = u16::from_be_bytes([d0, d1]);
        }
        _ => {}
    }
    packet.shape = Shape::Ip;
}

#[inline(always)]
fn icmp4<B: Bytes, const AT: usize>(packet: &mut Packet, bytes: &B, total: u32) {
    /// An error quotes no more than makes a minimal datagram (RFC 1812 §4.3.2.3).
    const LONGEST_ERROR: u32 = 576;
    let Some([kind, _, _, _, id0, id1, _, _]) = bytes.load::<8>(AT + 20) else {
        return;
    };
    if total < 28 {
        return;
    }
    packet.shape = Shape::Ip;
    match kind {
        0 => echo_reply(packet, [id0, id1]),
        8 => echo_request(packet, [id0, id1]),
        3 | 11 | 12 if total <= LONGEST_ERROR => {
            let Some(quoted) = bytes.load::<20>(AT + 28) else {
                return;
            };
            let Some(ports) = bytes.load::<4>(AT + 48) else {
                return;
            };
            let [first, _, _, _, _, _, _, _, _, proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
                quoted;
            let from = Addr::v4([s0, s1, s2, s3]);
            let to = Addr::v4([d0, d1, d2, d3]);
            if first == 0x45 {
                error(packet, proto, from, to, ports);
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn icmp6<B: Bytes, const AT: usize>(packet: &mut Packet, bytes: &B, payload: u32, hops: u8) {
    /// An error quotes no more than fits the minimal MTU (RFC 4443 §2.4).
    const LONGEST_ERROR: u32 = 1280 - 40;
    /// Advertisement with one link-layer option.
    const LONGEST_NEIGHBOUR: u32 = 32;
    let Some([kind, code, _, _, id0, id1, _, _]) = bytes.load::<8>(AT + 40) else {
        return;
    };
    if payload < 8 {
        return;
    }
    packet.shape = Shape::Ip;
    match kind {
        129 => echo_reply(packet, [id0, id1]),
        128 => echo_request(packet, [id0, id1]),
        1..=4 if payload <= LONGEST_ERROR => {
            let Some([proto]) = bytes.load::<1>(AT + 54) else {
                return;
            };
            let Some(from) = bytes.load::<16>(AT + 56) else {
                return;
            };
            let Some(to) = bytes.load::<16>(AT + 72) else {
                return;
            };
            let Some(ports) = bytes.load::<4>(AT + 88) else {
                return;
            };
            error(packet, proto, Addr::new(from), Addr::new(to), ports);
        }
        // Router solicitation.
        133 if hops == 255 && code == 0 && payload <= LONGEST_NEIGHBOUR => {
            packet.shape = Shape::Neighbour;
        }
        // Neighbour solicitation and advertisement: both carry a target.
        135 | 136 if hops == 255 && code == 0 && payload <= LONGEST_NEIGHBOUR => {
            if payload >= 24
                && let Some(target) = bytes.load::<16>(AT + 48)
            {
                packet.shape = Shape::Neighbour;
                if kind == 136 {
                    packet.target = Addr::new(target);
                }
            }
        }
        _ => {}
    }
}

#[inline(always)]
const fn echo_reply(packet: &mut Packet, id: [u8; 2]) {
    packet.icmp = Icmp::EchoReply;
    packet.dst_port = u16::from_be_bytes(id);
}

#[inline(always)]
const fn echo_request(packet: &mut Packet, id: [u8; 2]) {
    packet.icmp = Icmp::EchoRequest;
    packet.src_port = u16::from_be_bytes(id);
}

/// An error counts as an answer only when the packet it quotes went from its destination to its
/// source; the quoted ports, turned round, name the flow.
#[inline(always)]
fn error(packet: &mut Packet, proto: u8, from: Addr, to: Addr, ports: [u8; 4]) {
    let ported = proto == protocol::TCP || proto == protocol::UDP;
    if ported && from == packet.dst && to == packet.src {
        let [s0, s1, d0, d1] = ports;
        packet.icmp = Icmp::Error;
        packet.flow_protocol = proto;
        packet.dst_port = u16::from_be_bytes([s0, s1]);
        packet.src_port = u16::from_be_bytes([d0, d1]);
    }
}

#[cfg(test)]
mod tests;
