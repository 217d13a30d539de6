//! The parser against hand-made bytes: what it must read, and what it must not take for more
//! than it is.

use egress_common::packet::{Hook, Icmp, Packet, Shape, protocol};

use super::*;

struct Slice<'a> {
    bytes: &'a [u8],
    gso: bool,
}

impl Bytes for Slice<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }
    fn half(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at + 2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }
    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at + 4)?;
        Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap()
    }
    fn is_gso(&self) -> bool {
        self.gso
    }
}

const POD: [u8; 4] = [10, 10, 1, 2];
const REMOTE: [u8; 4] = [203, 0, 113, 10];
const POD6: [u8; 16] = [0xfd, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const REMOTE6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10];

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn v4(proto: u8, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, proto, 0, 0];
    packet.extend(POD);
    packet.extend(REMOTE);
    packet.extend(payload);
    packet
}

fn v6(next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, hops];
    packet.extend(POD6);
    packet.extend(REMOTE6);
    packet.extend(payload);
    packet
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut header = vec![0x9c, 0x40, 0x01, 0xbb];
    header.extend([0; 8]);
    header.extend([0x50, flags]);
    header.extend([0; 6]);
    header
}

fn udp() -> Vec<u8> {
    vec![0x9c, 0x40, 0x01, 0xbb, 0, 8, 0, 0]
}

fn parse_as(bytes: &[u8], protocol: u16, tagged: bool, gso: bool) -> Packet {
    let mut packet = Packet::unparsed(Hook::PodEgress);
    frame(&mut packet, &Slice { bytes, gso }, protocol, tagged);
    packet
}

/// A frame that the kernel took for what its own ethertype says.
fn parse(bytes: &[u8]) -> Packet {
    let protocol = bytes.get(12..14).map_or(0, |half| u16::from_be_bytes([half[0], half[1]]));
    parse_as(bytes, protocol, false, false)
}

#[test]
fn tcp_and_udp_of_both_families_are_read() {
    for (is_v6, bytes) in [
        (false, ethernet(ETH_IPV4, &v4(6, &tcp(2)))),
        (true, ethernet(ETH_IPV6, &v6(6, 64, &tcp(2)))),
    ] {
        let packet = parse(&bytes);
        assert_eq!(packet.shape, Shape::Ip);
        assert_eq!((packet.src_port, packet.dst_port), (40000, 443));
        assert_eq!(packet.is_v6, is_v6);
        assert!(packet.is_bare_syn());
        assert_eq!(packet.src_mac, [2, 0, 0, 0, 0, 2]);
    }
    let packet = parse(&ethernet(ETH_IPV4, &v4(17, &udp())));
    assert_eq!((packet.shape, packet.protocol, packet.dst_port), (Shape::Ip, 17, 443));
    assert_eq!(packet.dst, Addr::v4(REMOTE));
}

#[test]
fn every_truncation_is_malformed_and_none_panics() {
    for whole in [
        ethernet(ETH_IPV4, &v4(6, &tcp(2))),
        ethernet(ETH_IPV4, &v4(17, &udp())),
        ethernet(ETH_IPV6, &v6(6, 64, &tcp(2))),
        ethernet(ETH_IPV4, &v4(1, &[8, 0, 0, 0, 0, 1, 0, 1])),
        ethernet(ETH_IPV6, &v6(58, 64, &[128, 0, 0, 0, 0, 1, 0, 1])),
    ] {
        assert_eq!(parse(&whole).shape, Shape::Ip);
        for length in 14..whole.len() {
            assert_eq!(parse(&whole[..length]).shape, Shape::Malformed, "{length}");
        }
        for length in 0..14 {
            assert_eq!(parse_as(&whole[..length], 0x800, false, false).shape, Shape::Malformed);
        }
    }
}

#[test]
fn options_and_wrong_versions_are_malformed_but_keep_their_source() {
    for first in [0x46, 0x4f, 0x44, 0x55, 0x65] {
        let mut bytes = ethernet(ETH_IPV4, &v4(6, &tcp(2)));
        bytes[14] = first;
        let packet = parse(&bytes);
        assert_eq!(packet.shape, Shape::Malformed, "{first:#x}");
        assert_eq!(packet.src, Addr::v4(POD));
    }
}

#[test]
fn a_total_length_beyond_the_frame_or_below_the_header_is_malformed() {
    for total in [0u16, 19, 41, u16::MAX] {
        let mut bytes = ethernet(ETH_IPV4, &v4(6, &tcp(2)));
        bytes[16..18].copy_from_slice(&total.to_be_bytes());
        assert_eq!(parse(&bytes).shape, Shape::Malformed, "{total}");
    }
    // Except what the kernel will still segment.
    let mut big = ethernet(ETH_IPV4, &v4(6, &tcp(16)));
    big[16..18].copy_from_slice(&[0, 0]);
    assert_eq!(parse_as(&big, ETH_IPV4, false, true).shape, Shape::Ip);
}

#[test]
fn fragments_have_no_ports() {
    for flags in [0x2000u16, 0x0001, 0x1fff] {
        let mut bytes = ethernet(ETH_IPV4, &v4(17, &udp()));
        bytes[20..22].copy_from_slice(&flags.to_be_bytes());
        let packet = parse(&bytes);
        assert_eq!((packet.shape, packet.dst_port), (Shape::Fragment, 0));
    }
}

#[test]
fn extension_headers_are_malformed() {
    for next in [0, 43, 44, 51, 59, 60, 135, 139, 140] {
        let mut payload = vec![6, 0, 0, 0, 0, 0, 0, 0];
        payload.extend(tcp(2));
        assert_eq!(parse(&ethernet(ETH_IPV6, &v6(next, 64, &payload))).shape, Shape::Malformed);
    }
    // A protocol without ports is an ordinary packet.
    assert_eq!(parse(&ethernet(ETH_IPV6, &v6(132, 64, &[0; 12]))).shape, Shape::Ip);
}

#[test]
fn the_jumbo_header_is_read_only_on_a_packet_still_to_be_segmented() {
    let mut payload = vec![6, 0, 0xc2, 4, 0, 1, 0, 0];
    payload.extend(tcp(16));
    let mut bytes = ethernet(ETH_IPV6, &v6(0, 64, &payload));
    bytes[18..20].copy_from_slice(&[0, 0]);
    let packet = parse_as(&bytes, ETH_IPV6, false, true);
    assert_eq!((packet.shape, packet.protocol, packet.dst_port), (Shape::Ip, 6, 443));
    assert_eq!(parse_as(&bytes, ETH_IPV6, false, false).shape, Shape::Malformed);
    bytes[54] = 17;
    assert_eq!(parse_as(&bytes, ETH_IPV6, false, true).shape, Shape::Malformed);
    // Without the header, where the kernel needs none.
    let mut bytes = ethernet(ETH_IPV6, &v6(6, 64, &tcp(16)));
    bytes[18..20].copy_from_slice(&[0, 0]);
    let packet = parse_as(&bytes, ETH_IPV6, false, true);
    assert_eq!((packet.shape, packet.dst_port), (Shape::Ip, 443));
    assert_eq!(parse_as(&bytes, ETH_IPV6, false, false).shape, Shape::Malformed);
}

#[test]
fn a_listener_report_is_exact_or_malformed() {
    let mut payload = vec![58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 0];
    let mut bytes = v6(0, 1, &payload);
    bytes[24..40].copy_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16]);
    assert_eq!(parse(&ethernet(ETH_IPV6, &bytes)).shape, Shape::Listener);
    // To a unicast address, with another hop limit, or another message behind the alert.
    assert_eq!(parse(&ethernet(ETH_IPV6, &v6(0, 1, &payload))).shape, Shape::Malformed);
    bytes[7] = 64;
    assert_eq!(parse(&ethernet(ETH_IPV6, &bytes)).shape, Shape::Malformed);
    payload[8] = 128;
    assert_eq!(parse(&ethernet(ETH_IPV6, &v6(0, 1, &payload))).shape, Shape::Malformed);
}

#[test]
fn tags_and_foreign_ethertypes_are_told_apart_from_ip() {
    let inner = ethernet(ETH_IPV4, &v4(6, &tcp(2)));
    assert_eq!(parse_as(&inner, ETH_IPV4, true, false).shape, Shape::Tagged);
    for ethertype in [ETH_VLAN, ETH_QINQ] {
        assert_eq!(parse(&ethernet(ethertype, &inner[12..])).shape, Shape::Tagged);
    }
    for ethertype in [0x88b5, 0x8847, 0x0004, 46] {
        assert_eq!(parse(&ethernet(ethertype, &[0; 46])).shape, Shape::Ethertype);
    }
    // The kernel and the frame disagree.
    assert_eq!(parse_as(&inner, ETH_IPV6, false, false).shape, Shape::Ethertype);
}

#[test]
fn arp_is_exact_or_malformed() {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2];
    body.extend(POD);
    body.extend([0; 6]);
    body.extend([10, 10, 1, 1]);
    let packet = parse(&ethernet(ETH_ARP, &body));
    assert_eq!((packet.shape, packet.src), (Shape::Arp, Addr::v4(POD)));
    assert_eq!(packet.arp_mac, [2, 0, 0, 0, 0, 2]);
    for (at, value) in [(1, 6), (3, 6), (4, 8), (5, 16), (7, 3), (6, 1)] {
        let mut wrong = body.clone();
        wrong[at] = value;
        assert_eq!(parse(&ethernet(ETH_ARP, &wrong)).shape, Shape::Malformed, "{at}");
    }
    // Padding says nothing; anything else, and more than padding, is a message behind it.
    body.extend([0; 18]);
    assert_eq!(parse(&ethernet(ETH_ARP, &body)).shape, Shape::Arp);
    for at in 28..46 {
        let mut wrong = body.clone();
        wrong[at] = 1;
        assert_eq!(parse(&ethernet(ETH_ARP, &wrong)).shape, Shape::Malformed, "{at}");
    }
    body.extend([0; 1]);
    assert_eq!(parse(&ethernet(ETH_ARP, &body)).shape, Shape::Malformed);
}

#[test]
fn echo_identifiers_stand_where_the_remote_port_would() {
    let reply = parse(&ethernet(ETH_IPV4, &v4(1, &[0, 0, 0, 0, 0x12, 0x34, 0, 1])));
    assert_eq!((reply.icmp, reply.dst_port, reply.src_port), (Icmp::EchoReply, 0x1234, 0));
    let request = parse(&ethernet(ETH_IPV6, &v6(58, 64, &[128, 0, 0, 0, 0x12, 0x34, 0, 1])));
    assert_eq!((request.icmp, request.src_port), (Icmp::EchoRequest, 0x1234));
}

#[test]
fn an_error_names_the_quoted_flow_only_when_it_went_the_other_way() {
    let mut quoted = v4(17, &[0x13, 0x88, 0x00, 0x35, 0, 8, 0, 0]);
    quoted[12..16].copy_from_slice(&REMOTE);
    quoted[16..20].copy_from_slice(&POD);
    let mut icmp = vec![3, 3, 0, 0, 0, 0, 0, 0];
    icmp.extend(&quoted);
    let packet = parse(&ethernet(ETH_IPV4, &v4(1, &icmp)));
    assert_eq!(packet.icmp, Icmp::Error);
    assert_eq!((packet.dst_port, packet.src_port, packet.flow_protocol), (5000, 53, 17));
    assert_eq!(packet.protocol, protocol::ICMP);

    // Quoting somebody else's packet, or more than an error carries, names nothing.
    icmp[8 + 12] ^= 1;
    assert_eq!(parse(&ethernet(ETH_IPV4, &v4(1, &icmp))).icmp, Icmp::Other);
    icmp[8 + 12] ^= 1;
    icmp.resize(600, 0);
    assert_eq!(parse(&ethernet(ETH_IPV4, &v4(1, &icmp))).icmp, Icmp::Other);
}

#[test]
fn an_icmpv6_error_names_the_quoted_flow() {
    let mut quoted = v6(6, 64, &tcp(2));
    quoted[8..24].copy_from_slice(&REMOTE6);
    quoted[24..40].copy_from_slice(&POD6);
    let mut icmp = vec![1, 4, 0, 0, 0, 0, 0, 0];
    icmp.extend(&quoted);
    let packet = parse(&ethernet(ETH_IPV6, &v6(58, 64, &icmp)));
    assert_eq!((packet.icmp, packet.dst_port, packet.src_port), (Icmp::Error, 40000, 443));
}

#[test]
fn neighbour_discovery_is_exact_or_an_ordinary_icmp() {
    let mut advertisement = vec![136, 0, 0, 0, 0, 0, 0, 0];
    advertisement.extend(POD6);
    advertisement.extend([2, 1, 2, 0, 0, 0, 0, 2]);
    let packet = parse(&ethernet(ETH_IPV6, &v6(58, 255, &advertisement)));
    assert_eq!((packet.shape, packet.target), (Shape::Neighbour, Addr::new(POD6)));

    // A solicitation's target is read only where it is a claim.
    let mut solicitation = advertisement.clone();
    solicitation[0] = 135;
    let mut bytes = v6(58, 255, &solicitation);
    let asks = parse(&ethernet(ETH_IPV6, &bytes));
    assert_eq!((asks.shape, asks.target), (Shape::Neighbour, Addr::UNSPECIFIED));
    bytes[8..24].fill(0);
    assert_eq!(parse(&ethernet(ETH_IPV6, &bytes)).target, Addr::new(POD6));

    let shape = |hops, body: &[u8]| parse(&ethernet(ETH_IPV6, &v6(58, hops, body))).shape;
    assert_eq!(shape(64, &advertisement), Shape::Ip);
    let mut coded = advertisement.clone();
    coded[1] = 1;
    assert_eq!(shape(255, &coded), Shape::Ip);
    let mut padded = advertisement.clone();
    padded.extend([0; 8]);
    assert_eq!(shape(255, &padded), Shape::Ip);
    // Router advertisements and redirects are never ours to send.
    for kind in [134, 137] {
        advertisement[0] = kind;
        assert_eq!(shape(255, &advertisement), Shape::Ip);
    }
    assert_eq!(shape(255, &[133, 0, 0, 0, 0, 0, 0, 0]), Shape::Neighbour);
}

#[test]
fn a_packet_without_link_header_reads_the_same() {
    let bytes = v4(6, &tcp(2));
    let mut packet = Packet::unparsed(Hook::Wall);
    network(&mut packet, &Slice { bytes: &bytes, gso: false }, ETH_IPV4);
    assert_eq!((packet.shape, packet.dst_port), (Shape::Ip, 443));
    let mut other = Packet::unparsed(Hook::Wall);
    network(&mut other, &Slice { bytes: &bytes, gso: false }, 0x88b5);
    assert_eq!(other.shape, Shape::Ethertype);
}
