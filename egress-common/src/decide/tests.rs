//! One group of tests per numbered line, written against the order and not the code: changing one
//! arm of `decide` makes a test of its line fail.

extern crate std;

use core::net::IpAddr;
use std::collections::BTreeMap;
use std::vec::Vec;

use super::*;
use crate::key::{Addr, PodId};
use crate::packet::{Icmp, tcp};
use crate::reason::Mode;
use crate::state::Capture;

pub(crate) const POLICY: PolicyId = PolicyId(7);
pub(crate) const GATEWAY: GatewayId = GatewayId(9);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// What an interface with that MAC calls itself.
const LINK_LOCAL: &str = "fe80::ff:fe00:1";
const NOW: u64 = 1000;

pub(crate) fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<IpAddr>().unwrap())
}

/// The tables of a small cluster.
#[derive(Default)]
pub(crate) struct Table {
    exact: BTreeMap<ExactKey, Exact>,
    addresses: BTreeMap<AddressKey, u32>,
    ranges: Vec<(PolicyId, Addr, u32, Range)>,
    exceptions: BTreeMap<ExceptionKey, Exception>,
    replies: Vec<ReplyKey>,
    pub(crate) over_rate: bool,
    foreign: bool,
}

impl Lookup for Table {
    fn exact(&self, key: &ExactKey) -> Option<Exact> {
        self.exact.get(key).copied()
    }
    fn address(&self, key: &AddressKey) -> u32 {
        self.addresses.get(key).copied().unwrap_or(0)
    }
    fn range(&self, key: &RangeKey) -> Range {
        let bits = |addr: Addr| u128::from_be_bytes(addr.octets());
        let covers =
            |net: Addr, len: u32| len == 0 || (bits(net) ^ bits(key.addr)).leading_zeros() >= len;
        let covering = self
            .ranges
            .iter()
            .filter(|(policy, net, len, _)| *policy == key.policy && covers(*net, *len));
        covering.max_by_key(|(_, _, len, _)| *len).map(|(.., range)| *range).unwrap_or_default()
    }
    fn exception(&self, key: &ExceptionKey) -> Option<Exception> {
        self.exceptions.get(key).copied()
    }
    fn reply(&self, key: &ReplyKey) -> bool {
        self.replies.contains(key)
    }
    fn over_rate(&self, who: &Subject, gateway: GatewayId) -> bool {
        self.over_rate && who.policy == POLICY && gateway == GATEWAY
    }
    fn foreign_socket(&self, _: &Subject) -> bool {
        self.foreign
    }
    fn now(&self) -> u64 {
        NOW
    }
}

impl Table {
    pub(crate) fn with_exact(mut self, ip: &str, protocol: u8, port: u16, entry: Exact) -> Self {
        self.exact.insert(ExactKey::new(POLICY, addr(ip), protocol, port), entry);
        self
    }
    fn with_address(mut self, ip: &str, bits: u32) -> Self {
        self.addresses.insert(AddressKey { policy: POLICY, addr: addr(ip) }, bits);
        self
    }
    /// `len` counts the bits of the mapped form.
    pub(crate) fn with_range(mut self, net: &str, len: u32, kinds: u32) -> Self {
        self.ranges.push((POLICY, addr(net), len, Range { kinds, exceptions: 0 }));
        self
    }
    /// A flow that this remote opened, and may be answered on.
    fn open(&mut self, pod: PodId, remote: &str, port: u16, local: u16, protocol: u8) {
        let policy = if pod == PodId::UNKNOWN { PolicyId::NONE } else { POLICY };
        let kinds = self.range(&RangeKey { policy, addr: addr(remote) }).kinds | range::INBOUND;
        self.ranges.push((policy, addr(remote), 128, Range { kinds, exceptions: 0 }));
        self.replies.push(ReplyKey::new(pod, addr(remote), port, local, protocol));
    }
    fn with_exception(mut self, net: &str, len: u32, key: ExceptionKey, expires: u64) -> Self {
        self.ranges.push((POLICY, addr(net), len, Range { kinds: 0, exceptions: key.set() }));
        self.exceptions.insert(key, Exception { expires });
        self
    }
}

pub(crate) fn cluster() -> Table {
    Table::default()
        .with_range("10.0.0.0", 104, range::CLUSTER)
        .with_range("10.0.9.1", 128, range::CLUSTER | range::NODE)
        .with_range("fd00::", 16, range::CLUSTER)
        .with_range("169.254.169.254", 128, range::METADATA)
        .with_range("fd00:ec2::254", 128, range::CLUSTER | range::METADATA)
        .with_range("240.240.0.0", 112, range::MESH_VIP)
        .with_range("2001:2::", 48, range::MESH_VIP)
}

pub(crate) fn pod() -> Subject {
    Subject {
        pod: PodId(1),
        policy: POLICY,
        mode: Mode::Enforce,
        guard: Mode::Enforce,
        capture: Capture::None,
        flags: 0,
        deny_new: false,
        unknown: false,
        mac: MAC,
        v4: addr("10.0.1.2"),
        v6: addr("fd00::2"),
        namespace: crate::key::NamespaceId(3),
        answers: false,
        guarded: false,
        redirects: false,
        outside: Reason::NotGateway,
    }
}

fn exempt() -> Subject {
    Subject { policy: PolicyId::NONE, mode: Mode::Off, ..pod() }
}

fn unknown() -> Subject {
    Subject { unknown: true, policy: PolicyId::NONE, ..pod() }
}

/// A whole packet of the pod at its veth.
fn packet(protocol: u8, dst: &str, port: u16) -> Packet {
    let dst = addr(dst);
    let mut packet = Packet::call(Hook::PodEgress, protocol, dst, port, 40000);
    packet.src_mac = MAC;
    packet.src = if dst.is_v4() { pod().v4 } else { pod().v6 };
    packet
}

fn syn(dst: &str, port: u16) -> Packet {
    Packet { tcp_flags: tcp::SYN, ..packet(6, dst, port) }
}

fn at(hook: Hook, packet: Packet) -> Packet {
    Packet { hook, ..packet }
}

fn shaped(shape: Shape, packet: Packet) -> Packet {
    Packet { shape, ..packet }
}

const SOCKETS: [Hook; 4] = [Hook::Connect4, Hook::Connect6, Hook::Sendmsg4, Hook::Sendmsg6];

#[track_caller]
fn judged(who: &Subject, packet: &Packet, table: &Table, line: u8, reason: Reason) {
    let ruling = decide(who, packet, table);
    assert_eq!((ruling.line, ruling.reason), (line, reason), "{packet:?}");
}

#[track_caller]
fn ruled(packet: &Packet, table: &Table, line: u8, reason: Reason) {
    judged(&pod(), packet, table, line, reason);
}

#[test]
fn line_00_an_unlearned_pod_reaches_loopback_and_named_resolvers() {
    let mut table = cluster();
    let resolver = Exact::plain(Target::Resolver);
    table.exact.insert(ExactKey::new(PolicyId::NONE, addr("10.0.0.10"), 17, 53), resolver);
    table.exact.insert(ExactKey::new(PolicyId::NONE, addr("10.0.0.10"), 17, 5353), resolver);
    table.exact.insert(
        ExactKey::new(PolicyId::NONE, addr("10.0.0.11"), 17, 53),
        Exact::gateway(GATEWAY, false),
    );
    let asks = |dst: &str, port| at(Hook::Wall, packet(17, dst, port));
    judged(&unknown(), &asks("10.0.0.10", 53), &table, 8, Reason::Resolver);
    judged(&unknown(), &asks("10.0.0.10", 5353), &table, 0, Reason::UnknownPod);
    judged(&unknown(), &asks("10.0.0.11", 53), &table, 0, Reason::UnknownPod);
    judged(&unknown(), &asks("10.0.0.12", 53), &table, 0, Reason::UnknownPod);
    judged(&unknown(), &asks("127.0.0.53", 53), &table, 5, Reason::Local);
    judged(&unknown(), &asks("203.0.113.10", 443), &table, 0, Reason::UnknownPod);
    let fragment = shaped(Shape::Fragment, asks("10.0.0.10", 53));
    judged(&unknown(), &fragment, &table, 3, Reason::Fragment);
    let over_lo = Packet { on_loopback: true, ..asks("203.0.113.10", 443) };
    judged(&unknown(), &over_lo, &table, 5, Reason::Local);
}

#[test]
fn line_00_an_unlearned_pod_answers_what_was_opened_from_outside() {
    let mut table = cluster();
    // The pod is not known: the hook knows whose flows to look among.
    for protocol in [6, 17] {
        table.open(PodId::UNKNOWN, "10.0.0.77", 40001, 80, protocol);
    }
    let answer = |protocol| Packet {
        src_port: 80,
        tcp_flags: tcp::ACK,
        ..at(Hook::Wall, packet(protocol, "10.0.0.77", 40001))
    };
    let unknown = Subject { pod: PodId::UNKNOWN, ..unknown() };
    judged(&unknown, &answer(6), &table, 7, Reason::Reply);
    judged(&unknown, &answer(17), &table, 7, Reason::Reply);
    let opening = Packet { tcp_flags: tcp::SYN, ..answer(6) };
    judged(&unknown, &opening, &table, 0, Reason::UnknownPod);
    judged(&unknown, &Packet { dst_port: 40002, ..answer(17) }, &table, 0, Reason::UnknownPod);
    judged(&unknown, &shaped(Shape::Fragment, answer(17)), &table, 3, Reason::Fragment);
    // Nor what another interface's pod was asked.
    let other = Subject { pod: PodId::of_interface(7), ..unknown };
    judged(&other, &answer(17), &table, 0, Reason::UnknownPod);
}

/// The tables of no policy, as the agent fills them: resolvers, and whom any pod may answer.
fn of_no_policy() -> Table {
    let mut table = Table::default();
    let kinds = range::CLUSTER | range::INBOUND;
    for (net, len) in [("10.0.0.0", 104), ("fd00::", 16)] {
        table.ranges.push((PolicyId::NONE, addr(net), len, Range { kinds, exceptions: 0 }));
    }
    let resolver = Exact::plain(Target::Resolver);
    table.exact.insert(ExactKey::new(PolicyId::NONE, addr("10.0.0.10"), 17, 53), resolver);
    table
}

#[test]
fn line_00_at_its_interface_an_unlearned_pod_comes_up_and_no_further() {
    let table = of_no_policy();
    let who = unknown();
    let arp = shaped(Shape::Arp, Packet { arp_mac: MAC, ..packet(0, "10.0.1.1", 0) });
    let asks = Packet { shape: Shape::Neighbour, ..packet(58, "ff02::1:ff00:1", 0) };
    let discovery =
        Packet { src: addr("0.0.0.0"), src_port: 68, ..packet(17, "255.255.255.255", 67) };
    for exact in [arp, Packet { src: addr("0.0.0.0"), ..arp }] {
        judged(&who, &exact, &table, 2, Reason::Local);
    }
    judged(&who, &Packet { src: addr(LINK_LOCAL), ..asks }, &table, 5, Reason::Local);
    // Whether somebody in the cluster is still there.
    let probe = Packet { dst: addr("fd00::1"), ..asks };
    judged(&who, &probe, &table, 5, Reason::Local);
    judged(&who, &discovery, &table, 5, Reason::Local);
    judged(&who, &packet(17, "10.0.0.10", 53), &table, 8, Reason::Resolver);

    let stranger = [6; 6];
    for (forged, line, reason) in [
        (Packet { arp_mac: stranger, ..arp }, 2, Reason::Malformed),
        (Packet { src: addr("10.0.1.1"), ..arp }, 2, Reason::Malformed),
        (Packet { src_mac: stranger, ..asks }, 4, Reason::SpoofedSource),
        (Packet { target: addr("fd00::1"), ..asks }, 4, Reason::SpoofedSource),
        (Packet { src_mac: stranger, ..discovery }, 4, Reason::SpoofedSource),
        (Packet { dst_port: 68, ..discovery }, 4, Reason::SpoofedSource),
        (Packet { dst: addr("203.0.113.10"), ..discovery }, 4, Reason::SpoofedSource),
        (Packet { src: pod().v4, ..discovery }, 5, Reason::Protocol),
        (shaped(Shape::Tagged, syn("203.0.113.10", 443)), 2, Reason::Ethertype),
        (shaped(Shape::Ethertype, syn("203.0.113.10", 443)), 2, Reason::Ethertype),
        (shaped(Shape::Malformed, syn("203.0.113.10", 443)), 3, Reason::Malformed),
        (shaped(Shape::Fragment, syn("203.0.113.10", 443)), 3, Reason::Fragment),
        (shaped(Shape::Fragment, packet(17, "10.0.0.10", 53)), 0, Reason::UnknownPod),
        (Packet { src: addr("10.0.1.3"), ..syn("10.0.1.4", 80) }, 4, Reason::SpoofedSource),
        (packet(17, "10.0.1.4", 4789), 6, Reason::Tunnel),
        (packet(17, "10.0.0.10", 853), 0, Reason::UnknownPod),
        (syn("10.0.1.4", 80), 0, Reason::UnknownPod),
        (syn("203.0.113.10", 443), 0, Reason::UnknownPod),
        (packet(132, "203.0.113.10", 0), 0, Reason::UnknownPod),
    ] {
        judged(&who, &forged, &table, line, reason);
    }
}

#[test]
fn line_00_without_an_address_an_unlearned_pod_has_no_packet_of_its_own() {
    let moved = Subject { v4: Addr::UNSPECIFIED, v6: Addr::UNSPECIFIED, ..unknown() };
    let table = of_no_policy();
    for sent in [syn("203.0.113.10", 443), packet(17, "10.0.0.10", 53)] {
        judged(&moved, &sent, &table, 4, Reason::SpoofedSource);
    }
    // The wall knows no interface.
    judged(&moved, &at(Hook::Wall, packet(17, "10.0.0.10", 53)), &table, 8, Reason::Resolver);
}

#[test]
fn line_01_ungoverned_pods_are_exempt() {
    for who in [
        exempt(),
        Subject { mode: Mode::Off, ..pod() },
        Subject { policy: PolicyId::NONE, ..pod() },
    ] {
        judged(&who, &syn("203.0.113.10", 443), &cluster(), 1, Reason::Exempt);
        judged(
            &who,
            &shaped(Shape::Ethertype, packet(0, "0.0.0.0", 0)),
            &cluster(),
            1,
            Reason::Exempt,
        );
        judged(
            &who,
            &shaped(Shape::Malformed, syn("203.0.113.10", 443)),
            &cluster(),
            1,
            Reason::Exempt,
        );
    }
}

#[test]
fn line_01_the_source_guard_applies_to_ungoverned_pods_on_their_veth() {
    let forged = Packet { src: addr("10.0.1.3"), ..syn("10.0.1.4", 80) };
    judged(&exempt(), &forged, &cluster(), 1, Reason::SpoofedSource);
    judged(&exempt(), &at(Hook::Wall, forged), &cluster(), 1, Reason::Exempt);
    let other_mac = Packet { src_mac: [2, 0, 0, 0, 0, 9], ..syn("10.0.1.4", 80) };
    judged(&exempt(), &other_mac, &cluster(), 1, Reason::SpoofedSource);
    // A tag hides the source, and the node's stack would strip it.
    judged(
        &exempt(),
        &shaped(Shape::Tagged, syn("10.0.1.4", 80)),
        &cluster(),
        1,
        Reason::SpoofedSource,
    );
    // Its own link-local address, or none yet; another's may be what a node's probes come from.
    for (src, reason) in [
        (LINK_LOCAL, Reason::Exempt),
        ("::", Reason::Exempt),
        ("fe80::1", Reason::SpoofedSource),
        ("169.254.7.127", Reason::SpoofedSource),
    ] {
        for shape in [Shape::Ip, Shape::Neighbour] {
            let scoped = Packet { src: addr(src), ..shaped(shape, packet(58, "ff02::2", 0)) };
            judged(&exempt(), &scoped, &cluster(), 1, reason);
        }
    }
    let arp = Packet {
        arp_mac: MAC,
        src: addr("10.0.1.3"),
        ..shaped(Shape::Arp, packet(0, "10.0.0.1", 0))
    };
    judged(&exempt(), &arp, &cluster(), 1, Reason::SpoofedSource);
    let own_arp = Packet { src: pod().v4, ..arp };
    judged(&exempt(), &own_arp, &cluster(), 1, Reason::Exempt);
    let advert =
        Packet { target: addr("fd00::3"), ..shaped(Shape::Neighbour, packet(58, "ff02::1", 0)) };
    judged(&exempt(), &advert, &cluster(), 1, Reason::SpoofedSource);
}

#[test]
fn line_02_tags_and_foreign_ethertypes_are_denied() {
    ruled(&shaped(Shape::Tagged, syn("10.0.1.4", 80)), &cluster(), 2, Reason::Ethertype);
    ruled(&shaped(Shape::Ethertype, syn("10.0.1.4", 80)), &cluster(), 2, Reason::Ethertype);
}

#[test]
fn line_02_arp_is_local_only_from_the_pod_itself() {
    let arp = Packet { arp_mac: MAC, ..shaped(Shape::Arp, packet(0, "10.0.0.1", 0)) };
    ruled(&arp, &cluster(), 2, Reason::Local);
    ruled(&Packet { src: addr("0.0.0.0"), ..arp }, &cluster(), 2, Reason::Local);
    ruled(&Packet { src: addr("10.0.1.3"), ..arp }, &cluster(), 2, Reason::Malformed);
    ruled(&Packet { arp_mac: [0; 6], ..arp }, &cluster(), 2, Reason::Malformed);
    ruled(&Packet { src_mac: [0; 6], ..arp }, &cluster(), 2, Reason::Malformed);
}

#[test]
fn line_03_malformed_packets_are_denied_even_to_allowed_places() {
    ruled(&shaped(Shape::Malformed, syn("10.0.1.4", 80)), &cluster(), 3, Reason::Malformed);
    for mapped in [
        Packet { is_v6: true, ..syn("10.0.1.4", 80) },
        Packet { is_v6: true, src: addr("10.0.1.2"), ..syn("fd00::4", 80) },
    ] {
        ruled(&mapped, &cluster(), 3, Reason::Malformed);
    }
}

#[test]
fn line_03_fragments_go_only_to_plain_addresses_of_the_cluster() {
    let fragment = |dst: &str| {
        shaped(Shape::Fragment, Packet { src_port: 0, dst_port: 0, ..packet(17, dst, 0) })
    };
    ruled(&fragment("10.0.1.4"), &cluster(), 11, Reason::Cluster);
    ruled(&fragment("203.0.113.10"), &cluster(), 3, Reason::Fragment);
    ruled(&fragment("10.0.9.1"), &cluster(), 3, Reason::Fragment);
    for bits in [address::GATEWAY, address::FOREIGN_GATEWAY, address::HIDDEN_EXTERNAL] {
        let table = cluster().with_address("10.0.1.4", bits);
        ruled(&fragment("10.0.1.4"), &table, 3, Reason::Fragment);
    }
    // It is still the pod's packet that must be judged.
    let forged = Packet { src: addr("10.0.1.3"), ..fragment("10.0.1.4") };
    ruled(&forged, &cluster(), 4, Reason::SpoofedSource);
    // No port is known: neither a reply nor an exact entry can match.
    let mut table = cluster();
    table.open(PodId(1), "203.0.113.10", 0, 0, 17);
    ruled(&fragment("203.0.113.10"), &table, 3, Reason::Fragment);
}

#[test]
fn line_04_the_source_must_be_the_pods() {
    for (src, dst) in [
        ("10.0.1.3", "10.0.1.4"),
        ("0.0.0.0", "10.0.1.4"),
        ("fe80::2", "fd00::4"),
        ("::", "fd00::4"),
    ] {
        let forged = Packet { src: addr(src), ..syn(dst, 80) };
        ruled(&forged, &cluster(), 4, Reason::SpoofedSource);
    }
    ruled(&Packet { src_mac: [0; 6], ..syn("10.0.1.4", 80) }, &cluster(), 4, Reason::SpoofedSource);
    // A pod without IPv6 has no IPv6 source, not the unspecified one.
    let v4_only = Subject { v6: Addr::UNSPECIFIED, ..pod() };
    let unspecified = Packet { src: Addr::UNSPECIFIED, ..syn("fd00::4", 80) };
    judged(&v4_only, &unspecified, &cluster(), 4, Reason::SpoofedSource);
}

#[test]
fn line_04_neighbour_discovery_and_listener_reports_may_be_link_local() {
    for src in [LINK_LOCAL, "::", "fd00::2"] {
        let solicit =
            Packet { src: addr(src), ..shaped(Shape::Neighbour, packet(58, "ff02::1:ff00:1", 0)) };
        ruled(&solicit, &cluster(), 5, Reason::Local);
        let report =
            Packet { src: addr(src), ..shaped(Shape::Listener, packet(58, "ff02::16", 0)) };
        ruled(&report, &cluster(), 5, Reason::Protocol);
    }
    // A router's link-local address would take its neighbours' traffic as a peer's does.
    for src in ["fd00::3", "fe80::1"] {
        let forged =
            Packet { src: addr(src), ..shaped(Shape::Neighbour, packet(58, "ff02::1:ff00:1", 0)) };
        ruled(&forged, &cluster(), 4, Reason::SpoofedSource);
    }
    for (target, line, reason) in [
        ("fd00::2", 5, Reason::Local),
        (LINK_LOCAL, 5, Reason::Local),
        ("fd00::3", 4, Reason::SpoofedSource),
        ("fe80::1", 4, Reason::SpoofedSource),
    ] {
        let advert =
            Packet { target: addr(target), ..shaped(Shape::Neighbour, packet(58, "ff02::1", 0)) };
        ruled(&advert, &cluster(), line, reason);
    }
}

#[test]
fn line_04_a_pod_asks_for_no_address_of_another() {
    // Whatever its link-local address will be is its own to choose.
    for (target, line, reason) in [
        ("fd00::2", 5, Reason::Local),
        ("fe80::7", 5, Reason::Local),
        ("fd00::3", 4, Reason::SpoofedSource),
    ] {
        let claim = Packet {
            src: Addr::UNSPECIFIED,
            target: addr(target),
            ..shaped(Shape::Neighbour, packet(58, "ff02::1:ff00:1", 0))
        };
        ruled(&claim, &cluster(), line, reason);
    }
}

#[test]
fn line_05_neighbour_discovery_stays_on_the_link() {
    for (dst, reason) in [
        ("ff02::1:ff00:1", Reason::Local),
        ("fe80::1", Reason::Local),
        ("fd00::4", Reason::Local),
        ("2001:db8::1", Reason::Protocol),
        ("ff0e::1", Reason::Protocol),
    ] {
        let asks = shaped(Shape::Neighbour, packet(58, dst, 0));
        ruled(&asks, &cluster(), 5, reason);
    }
}

#[test]
fn line_04_the_wall_checks_addresses_it_knows() {
    let forged = at(Hook::Wall, Packet { src: addr("10.0.1.3"), ..syn("10.0.1.4", 80) });
    ruled(&forged, &cluster(), 4, Reason::SpoofedSource);
    // One family is enough to know the pod by.
    let v4_only = Subject { v6: Addr::UNSPECIFIED, ..pod() };
    judged(&v4_only, &forged, &cluster(), 4, Reason::SpoofedSource);
    let nameless = Subject { v4: Addr::UNSPECIFIED, v6: Addr::UNSPECIFIED, ..pod() };
    judged(&nameless, &forged, &cluster(), 11, Reason::Cluster);
    for hook in SOCKETS {
        ruled(&at(hook, forged), &cluster(), 11, Reason::Cluster);
    }
}

#[test]
fn line_05_loopback_is_local_inside_the_pod_and_never_on_the_wire() {
    for dst in ["127.0.0.1", "::1"] {
        ruled(&at(Hook::Wall, syn(dst, 15001)), &cluster(), 5, Reason::Local);
        for hook in SOCKETS {
            ruled(&at(hook, syn(dst, 15001)), &cluster(), 5, Reason::Local);
        }
        ruled(&syn(dst, 80), &cluster(), 13, Reason::NotGateway);
    }
    for hook in SOCKETS {
        ruled(&at(hook, syn("0.0.0.0", 80)), &cluster(), 5, Reason::Local);
    }
    ruled(&syn("0.0.0.0", 80), &cluster(), 5, Reason::Protocol);
    // A proxy's answer carries the address the application dialled.
    let answer = Packet {
        on_loopback: true,
        src: addr("203.0.113.10"),
        ..at(Hook::Wall, packet(6, "10.0.1.2", 80))
    };
    ruled(&answer, &cluster(), 5, Reason::Local);
}

#[test]
fn line_05_own_addresses_are_local_and_multicast_is_denied() {
    ruled(&syn("10.0.1.2", 80), &cluster(), 5, Reason::Local);
    ruled(&syn("fd00::2", 80), &cluster(), 5, Reason::Local);
    for dst in ["224.0.0.251", "255.255.255.255", "ff02::fb"] {
        ruled(&packet(17, dst, 5353), &cluster(), 5, Reason::Protocol);
    }
}

#[test]
fn line_05_the_nodes_addresses_are_own_to_a_pod_on_its_network_only() {
    let table = cluster().with_range("192.0.2.1", 128, range::NODE | range::THIS_NODE).with_range(
        "192.0.2.2",
        128,
        range::NODE,
    );
    let unaddressed = Subject { v4: Addr::UNSPECIFIED, v6: Addr::UNSPECIFIED, ..pod() };
    let on_host = Subject { flags: crate::state::Pod::HOST, ..unaddressed };
    for hook in [Hook::Wall, Hook::Connect4] {
        judged(&on_host, &at(hook, syn("192.0.2.1", 10250)), &table, 5, Reason::Local);
        judged(&on_host, &at(hook, syn("192.0.2.2", 10250)), &table, 11, Reason::Node);
        judged(&unaddressed, &at(hook, syn("192.0.2.1", 10250)), &table, 11, Reason::Node);
    }
}

#[test]
fn line_05_link_local_is_denied_unless_it_is_named() {
    for dst in ["169.254.1.1", "fe80::1"] {
        ruled(&packet(17, dst, 80), &cluster(), 5, Reason::Protocol);
    }
    let node_dns = cluster().with_exact("169.254.20.10", 17, 53, Exact::plain(Target::Resolver));
    ruled(&packet(17, "169.254.20.10", 53), &node_dns, 8, Reason::Resolver);
    ruled(&packet(17, "169.254.20.10", 54), &node_dns, 5, Reason::Protocol);
    ruled(&syn("169.254.169.254", 80), &cluster(), 6, Reason::Metadata);
}

#[test]
fn line_07_answers_to_tracked_flows_are_allowed() {
    let mut table = cluster();
    for protocol in [6, 17] {
        table.open(PodId(1), "198.51.100.7", 40001, 80, protocol);
    }
    let answer = |protocol, flags| Packet {
        src_port: 80,
        tcp_flags: flags,
        ..packet(protocol, "198.51.100.7", 40001)
    };
    ruled(&answer(6, tcp::SYN | tcp::ACK), &table, 7, Reason::Reply);
    ruled(&answer(6, tcp::ACK), &table, 7, Reason::Reply);
    ruled(&answer(17, 0), &table, 7, Reason::Reply);
    // Never what opens a connection, another port, another protocol or another pod.
    ruled(&answer(6, tcp::SYN), &table, 13, Reason::NotGateway);
    ruled(&Packet { src_port: 81, ..answer(17, 0) }, &table, 13, Reason::NotGateway);
    ruled(&Packet { dst_port: 40002, ..answer(17, 0) }, &table, 13, Reason::NotGateway);
    judged(&Subject { pod: PodId(2), ..pod() }, &answer(17, 0), &table, 13, Reason::NotGateway);
    // A datagram sent to an address is an answer too; a connect for TCP never is.
    ruled(&at(Hook::Sendmsg4, answer(17, 0)), &table, 7, Reason::Reply);
    ruled(&at(Hook::Connect4, answer(6, 0)), &table, 13, Reason::NotGateway);
}

#[test]
fn line_07_a_remote_that_may_not_be_answered_any_more_is_not() {
    let mut table = cluster();
    table.replies.push(ReplyKey::new(PodId(1), addr("198.51.100.7"), 40001, 80, 17));
    let answer = Packet { src_port: 80, ..packet(17, "198.51.100.7", 40001) };
    ruled(&answer, &table, 13, Reason::NotGateway);
    table.open(PodId(1), "198.51.100.7", 40001, 80, 17);
    ruled(&answer, &table, 7, Reason::Reply);
    // Nor by a pod that nobody knows.
    let unknown = Subject { pod: PodId::UNKNOWN, ..unknown() };
    let mut table = cluster();
    table.replies.push(ReplyKey::new(PodId::UNKNOWN, addr("198.51.100.7"), 40001, 80, 17));
    judged(&unknown, &at(Hook::Wall, answer), &table, 0, Reason::UnknownPod);
}

#[test]
fn line_07_icmp_answers_only_tracked_flows() {
    let mut table = cluster();
    table.open(PodId(1), "198.51.100.7", 77, 0, 1);
    table.open(PodId(1), "198.51.100.7", 40001, 80, 17);
    let icmp = Packet { src_port: 0, ..packet(1, "198.51.100.7", 77) };
    ruled(&Packet { icmp: Icmp::EchoReply, ..icmp }, &table, 7, Reason::Reply);
    ruled(&Packet { icmp: Icmp::EchoRequest, ..icmp }, &table, 13, Reason::Protocol);
    ruled(&Packet { icmp: Icmp::Other, ..icmp }, &table, 13, Reason::Protocol);
    ruled(&Packet { icmp: Icmp::EchoReply, dst_port: 78, ..icmp }, &table, 13, Reason::Protocol);
    let error =
        Packet { icmp: Icmp::Error, flow_protocol: 17, dst_port: 40001, src_port: 80, ..icmp };
    ruled(&error, &table, 7, Reason::Reply);
    ruled(&Packet { flow_protocol: 6, ..error }, &table, 13, Reason::Protocol);
}

#[test]
fn line_06_metadata_and_mesh_addresses_are_denied_before_any_allowance() {
    let table = cluster()
        .with_exact("169.254.169.254", 6, 80, Exact::plain(Target::Infrastructure))
        .with_exact("240.240.0.1", 6, 443, Exact::gateway(GATEWAY, false));
    ruled(&syn("169.254.169.254", 80), &table, 6, Reason::Metadata);
    ruled(&syn("fd00:ec2::254", 80), &table, 6, Reason::Metadata);
    ruled(&syn("240.240.0.1", 443), &table, 6, Reason::MeshVip);
    ruled(&syn("2001:2::1", 443), &table, 6, Reason::MeshVip);
}

#[test]
fn line_06_tunnels_to_nodes_are_denied_before_any_allowance() {
    for port in [4789, 8472, 6081, 51820] {
        let table = cluster()
            .with_exact("10.0.9.1", 17, port, Exact::plain(Target::Node))
            .with_exact("10.0.1.5", 17, port, Exact::plain(Target::Infrastructure));
        ruled(&packet(17, "10.0.9.1", port), &table, 6, Reason::Tunnel);
        // An address of the pods' range may be another node's bridge; a named one is not.
        ruled(&packet(17, "10.0.1.4", port), &table, 6, Reason::Tunnel);
        ruled(&packet(17, "10.0.1.5", port), &table, 10, Reason::Infrastructure);
        ruled(&syn("10.0.9.1", port), &cluster(), 11, Reason::Node);
        ruled(&syn("10.0.1.4", port), &cluster(), 11, Reason::Cluster);
    }
    for protocol in [4, 41, 47] {
        ruled(&packet(protocol, "10.0.9.1", 0), &cluster(), 6, Reason::Tunnel);
        ruled(&packet(protocol, "10.0.1.4", 0), &cluster(), 6, Reason::Tunnel);
        ruled(&packet(protocol, "203.0.113.10", 0), &cluster(), 13, Reason::Protocol);
    }
    ruled(&packet(17, "10.0.9.1", 4790), &cluster(), 11, Reason::Node);
}

#[test]
fn line_06_not_even_an_answer_is_a_tunnel_or_a_hidden_way_out() {
    let mut table =
        cluster().with_exact("10.0.0.50", 17, 443, Exact::plain(Target::HiddenExternal));
    table.open(PodId(1), "10.0.9.1", 8472, 80, 17);
    table.open(PodId(1), "10.0.9.1", 8473, 80, 17);
    table.open(PodId(1), "10.0.0.50", 443, 80, 17);
    table.open(PodId(1), "10.0.1.4", 8472, 80, 17);
    table.open(PodId(1), "10.0.1.4", 51820, 80, 17);
    let answer = |dst: &str, port| Packet { src_port: 80, ..packet(17, dst, port) };
    ruled(&answer("10.0.9.1", 8473), &table, 7, Reason::Reply);
    ruled(&answer("10.0.9.1", 8472), &table, 6, Reason::Tunnel);
    ruled(&answer("10.0.1.4", 8472), &table, 6, Reason::Tunnel);
    // A client may send from WireGuard's port, which takes nothing from strangers.
    ruled(&answer("10.0.1.4", 51820), &table, 7, Reason::Reply);
    ruled(&Packet { src_port: 81, ..answer("10.0.1.4", 51820) }, &table, 6, Reason::Tunnel);
    ruled(&answer("10.0.0.50", 443), &table, 6, Reason::HiddenExternal);
    let mut table = of_no_policy();
    table.open(PodId::UNKNOWN, "10.0.9.1", 8472, 80, 17);
    let unknown = Subject { pod: PodId::UNKNOWN, ..unknown() };
    let forged = at(Hook::Wall, answer("10.0.9.1", 8472));
    judged(&unknown, &forged, &table, 6, Reason::Tunnel);
}

#[test]
fn line_06_a_pod_on_the_nodes_network_opens_no_tunnel_on_its_own_node() {
    let table = cluster().with_range("192.0.2.1", 128, range::THIS_NODE);
    let unaddressed = Subject { v4: Addr::UNSPECIFIED, v6: Addr::UNSPECIFIED, ..pod() };
    let on_host = Subject { flags: crate::state::Pod::HOST, ..unaddressed };
    let over_lo = |packet| Packet { on_loopback: true, ..at(Hook::Wall, packet) };
    for (protocol, port) in [(17, 4789), (17, 8472), (17, 6081), (4, 0), (47, 0)] {
        for dst in ["127.0.0.1", "192.0.2.1", "::1"] {
            let inner = packet(protocol, dst, port);
            judged(&on_host, &over_lo(inner), &table, 6, Reason::Tunnel);
            judged(&on_host, &at(Hook::Sendmsg4, inner), &table, 6, Reason::Tunnel);
            // In a namespace of its own nobody unwraps.
            judged(&pod(), &over_lo(inner), &table, 5, Reason::Local);
        }
    }
    judged(&on_host, &over_lo(packet(17, "127.0.0.1", 8473)), &table, 5, Reason::Local);
    judged(&on_host, &over_lo(syn("127.0.0.1", 8472)), &table, 5, Reason::Local);
}

#[test]
fn line_06_service_ports_that_end_outside_are_denied() {
    let table = cluster().with_exact("10.0.0.50", 6, 443, Exact::plain(Target::HiddenExternal));
    ruled(&syn("10.0.0.50", 443), &table, 6, Reason::HiddenExternal);
    ruled(&syn("10.0.0.50", 80), &table, 11, Reason::Cluster);
}

#[test]
fn line_08_only_named_resolvers_answer_on_dns_ports() {
    let table = cluster()
        .with_exact("10.0.0.10", 17, 53, Exact::plain(Target::Resolver))
        .with_exact("10.0.0.11", 6, 53, Exact::gateway(GATEWAY, false));
    ruled(&packet(17, "10.0.0.10", 53), &table, 8, Reason::Resolver);
    for (protocol, dst, port) in [
        (6, "10.0.0.10", 53),
        (17, "10.0.0.12", 53),
        (17, "203.0.113.10", 53),
        (6, "203.0.113.10", 853),
        (6, "10.0.0.10", 853),
        (6, "10.0.0.11", 53),
    ] {
        ruled(&packet(protocol, dst, port), &table, 8, Reason::ForeignResolver);
    }
    // A resolver's other ports are ordinary, and so is 53 of a protocol without ports.
    let odd = cluster().with_exact("10.0.0.10", 17, 5353, Exact::plain(Target::Resolver));
    ruled(&packet(17, "10.0.0.10", 5353), &odd, 11, Reason::Cluster);
    ruled(&packet(132, "10.0.0.12", 53), &table, 11, Reason::Cluster);
}

#[test]
fn line_09_gateway_endpoints_are_exact() {
    let table = cluster()
        .with_exact("10.0.2.2", 6, 8443, Exact::gateway(GATEWAY, false))
        .with_address("10.0.2.2", address::GATEWAY)
        .with_address("10.0.3.3", address::FOREIGN_GATEWAY);
    ruled(&syn("10.0.2.2", 8443), &table, 9, Reason::Gateway);
    assert_eq!(decide(&pod(), &syn("10.0.2.2", 8443), &table).gateway, GATEWAY);
    ruled(&packet(17, "10.0.2.2", 8443), &table, 9, Reason::GatewayPort);
    ruled(&syn("10.0.2.2", 8080), &table, 9, Reason::GatewayPort);
    ruled(&syn("10.0.3.3", 8443), &table, 9, Reason::GatewayForbidden);
    // Infrastructure on a gateway's address does not open it.
    let both = table.with_exact("10.0.2.2", 6, 15090, Exact::plain(Target::Infrastructure));
    ruled(&syn("10.0.2.2", 15090), &both, 9, Reason::GatewayPort);
}

#[test]
fn line_09_a_draining_endpoint_keeps_what_it_has() {
    let table = cluster().with_exact("10.0.2.2", 6, 8443, Exact::gateway(GATEWAY, true));
    ruled(&syn("10.0.2.2", 8443), &table, 9, Reason::GatewayDraining);
    ruled(&at(Hook::Connect4, packet(6, "10.0.2.2", 8443)), &table, 9, Reason::GatewayDraining);
    ruled(
        &Packet { tcp_flags: tcp::ACK, ..packet(6, "10.0.2.2", 8443) },
        &table,
        9,
        Reason::Gateway,
    );
}

#[test]
fn line_09_over_the_rate_only_new_connections_are_denied() {
    let mut table = cluster().with_exact("10.0.2.2", 6, 8443, Exact::gateway(GATEWAY, false));
    table.over_rate = true;
    ruled(&syn("10.0.2.2", 8443), &table, 9, Reason::RateLimited);
    ruled(
        &Packet { tcp_flags: tcp::ACK, ..packet(6, "10.0.2.2", 8443) },
        &table,
        9,
        Reason::Gateway,
    );
}

#[test]
fn line_10_infrastructure_is_exact() {
    let table = cluster().with_exact("192.0.2.1", 6, 6443, Exact::plain(Target::Infrastructure));
    ruled(&syn("192.0.2.1", 6443), &table, 10, Reason::Infrastructure);
    ruled(&syn("192.0.2.1", 6444), &table, 13, Reason::NotGateway);
    // Also on a node.
    let node = cluster().with_exact("10.0.9.1", 6, 6443, Exact::plain(Target::Infrastructure));
    ruled(&syn("10.0.9.1", 6443), &node, 10, Reason::Infrastructure);
}

#[test]
fn line_11_the_cluster_is_allowed_and_its_nodes_only_exactly() {
    ruled(&syn("10.0.1.4", 80), &cluster(), 11, Reason::Cluster);
    ruled(&packet(1, "10.0.1.4", 0), &cluster(), 11, Reason::Cluster);
    ruled(&syn("fd00::4", 80), &cluster(), 11, Reason::Cluster);
    ruled(&syn("10.0.9.1", 10250), &cluster(), 11, Reason::Node);
    let listed = cluster().with_exact("10.0.9.1", 6, 10250, Exact::plain(Target::Node));
    ruled(&syn("10.0.9.1", 10250), &listed, 11, Reason::Cluster);
    ruled(&syn("10.0.9.1", 10251), &listed, 11, Reason::Node);
}

#[test]
fn line_12_exceptions_hold_until_they_expire() {
    let excepted = |key, expires| cluster().with_exception("198.51.100.0", 120, key, expires);
    for key in
        [ExceptionKey::new(3, 6, 443), ExceptionKey::new(3, 6, 0), ExceptionKey::new(3, 0, 0)]
    {
        ruled(&syn("198.51.100.7", 443), &excepted(key, NOW + 1), 12, Reason::Exception);
        ruled(&syn("198.51.100.7", 443), &excepted(key, NOW), 13, Reason::NotGateway);
        ruled(&syn("198.51.101.7", 443), &excepted(key, NOW + 1), 13, Reason::NotGateway);
    }
    let exact = excepted(ExceptionKey::new(3, 6, 443), NOW + 1);
    ruled(&syn("198.51.100.7", 444), &exact, 13, Reason::NotGateway);
    ruled(&packet(17, "198.51.100.7", 443), &exact, 13, Reason::NotGateway);
}

#[test]
fn line_12_what_dns_gave_a_limited_gateway_opens_and_what_it_gave_earlier_goes_on() {
    let resolved = |target| cluster().with_exact("203.0.113.10", 6, 443, Exact::plain(target));
    let open = Packet { tcp_flags: tcp::ACK, ..packet(6, "203.0.113.10", 443) };
    ruled(&syn("203.0.113.10", 443), &resolved(Target::Resolved), 12, Reason::Resolved);
    ruled(&open, &resolved(Target::Resolved), 12, Reason::Resolved);
    ruled(&open, &resolved(Target::Earlier), 12, Reason::Resolved);
    ruled(&syn("203.0.113.10", 443), &resolved(Target::Earlier), 13, Reason::NotGateway);
    ruled(&syn("203.0.113.10", 80), &resolved(Target::Resolved), 13, Reason::NotGateway);
    // Never what belongs to the cluster, to a node or to the cloud.
    for (ip, line, reason) in [
        ("10.0.9.1", 11, Reason::Node),
        ("169.254.169.254", 6, Reason::Metadata),
        ("240.240.0.1", 6, Reason::MeshVip),
    ] {
        let table = cluster().with_exact(ip, 6, 443, Exact::plain(Target::Resolved));
        ruled(&syn(ip, 443), &table, line, reason);
    }
}

#[test]
fn line_13_a_limited_gateway_is_denied_for_a_reason_of_its_own() {
    let limited = Subject { outside: Reason::Unresolved, ..pod() };
    judged(&limited, &syn("203.0.113.10", 443), &cluster(), 13, Reason::Unresolved);
    judged(&limited, &packet(1, "203.0.113.10", 0), &cluster(), 13, Reason::Protocol);
}

#[test]
fn line_12_an_exception_explains_answers_a_little_longer() {
    let key = ExceptionKey::new(3, 17, 443);
    let late = |expires| {
        let table = cluster().with_exception("198.51.100.0", 120, key, expires);
        lately_excepted(17, 443, 3, &table)
    };
    assert!(late(NOW + 1) && late(NOW) && late(NOW - 999));
    assert!(!late(0));
    let table = cluster().with_exception("198.51.100.0", 120, key, NOW);
    assert!(!lately_excepted(17, 444, 3, &table) && !lately_excepted(6, 443, 3, &table));
    assert!(!lately_excepted(17, 443, 0, &table));
}

#[test]
fn line_13_everything_else_is_denied() {
    ruled(&syn("203.0.113.10", 443), &cluster(), 13, Reason::NotGateway);
    ruled(&packet(17, "2001:db8::1", 443), &cluster(), 13, Reason::NotGateway);
    for protocol in [1, 58, 132, 47, 0, 255] {
        ruled(&packet(protocol, "203.0.113.10", 0), &cluster(), 13, Reason::Protocol);
    }
}

#[test]
fn line_14_a_stale_policy_denies_what_is_new() {
    let stale = Subject { deny_new: true, ..pod() };
    let mut table = cluster().with_exact("10.0.2.2", 6, 8443, Exact::gateway(GATEWAY, false));
    table.open(PodId(1), "198.51.100.7", 40001, 80, 17);
    judged(&stale, &syn("10.0.2.2", 8443), &table, 14, Reason::PolicyStale);
    assert_eq!(decide(&stale, &syn("10.0.2.2", 8443), &table).gateway, GATEWAY);
    judged(&stale, &packet(17, "10.0.1.4", 80), &table, 14, Reason::PolicyStale);
    judged(&stale, &at(Hook::Connect4, packet(6, "10.0.1.4", 80)), &table, 14, Reason::PolicyStale);
    // Established connections, answers and the pod's own traffic go on; denials keep their reason.
    judged(
        &stale,
        &Packet { tcp_flags: tcp::ACK, ..packet(6, "10.0.2.2", 8443) },
        &table,
        9,
        Reason::Gateway,
    );
    judged(
        &stale,
        &Packet { src_port: 80, ..packet(17, "198.51.100.7", 40001) },
        &table,
        7,
        Reason::Reply,
    );
    judged(&stale, &syn("10.0.1.2", 80), &table, 5, Reason::Local);
    judged(&stale, &syn("203.0.113.10", 443), &table, 13, Reason::NotGateway);
}

#[test]
fn line_15_an_allowed_destination_is_the_pods_own_sockets_alone() {
    let mut table = cluster()
        .with_exact("10.0.2.2", 6, 8443, Exact::gateway(GATEWAY, false))
        .with_exact("10.0.0.10", 17, 53, Exact::plain(Target::Resolver));
    table.open(PodId(1), "198.51.100.7", 40001, 80, 17);
    table.foreign = true;
    ruled(&syn("10.0.2.2", 8443), &table, 15, Reason::ForeignSocket);
    assert_eq!(decide(&pod(), &syn("10.0.2.2", 8443), &table).gateway, GATEWAY);
    ruled(&packet(17, "10.0.0.10", 53), &table, 15, Reason::ForeignSocket);
    ruled(&syn("10.0.1.4", 80), &table, 15, Reason::ForeignSocket);
    let ack = Packet { tcp_flags: tcp::ACK, ..packet(6, "10.0.2.2", 8443) };
    ruled(&Packet { has_payload: true, ..ack }, &table, 15, Reason::ForeignSocket);
    // What the kernel sends for sockets that are gone, and for nobody.
    ruled(&ack, &table, 9, Reason::Gateway);
    ruled(&packet(1, "10.0.1.4", 0), &table, 11, Reason::Cluster);
    // Answers need no owner, denials keep their reason, other hooks know their socket.
    ruled(&Packet { src_port: 80, ..packet(17, "198.51.100.7", 40001) }, &table, 7, Reason::Reply);
    ruled(&syn("203.0.113.10", 443), &table, 13, Reason::NotGateway);
    ruled(&at(Hook::Wall, syn("10.0.2.2", 8443)), &table, 9, Reason::Gateway);
}

/// The uplink's tables: the cluster's ranges, a gateway outside them, a node.
fn uplink() -> Table {
    let mut table = Table::default();
    for (net, len, kinds) in [
        ("10.0.0.0", 104, range::CLUSTER),
        ("10.0.9.1", 128, range::CLUSTER | range::NODE),
        ("10.0.9.2", 128, range::CLUSTER | range::NODE),
        ("10.0.9.9", 128, range::CLUSTER | range::METADATA),
    ] {
        table.ranges.push((PolicyId::UPLINK, addr(net), len, Range { kinds, exceptions: 0 }));
    }
    for (ip, protocol, port, entry) in [
        ("192.0.2.1", 6, 8443, Exact::gateway(GATEWAY, true)),
        ("192.0.2.2", 6, 6443, Exact::plain(Target::Infrastructure)),
        ("192.0.2.3", 17, 53, Exact::plain(Target::Resolver)),
        ("10.0.9.1", 6, 10250, Exact::plain(Target::Node)),
    ] {
        table.exact.insert(ExactKey::new(PolicyId::UPLINK, addr(ip), protocol, port), entry);
    }
    table
}

#[test]
fn line_16_the_uplink_judges_where_a_service_really_ends() {
    let config = crate::state::Config::default();
    let marked = Subject::uplink(&config, Mode::Enforce);
    let last = |packet: Packet| at(Hook::UplinkEgress, packet);
    let table = uplink();
    for (packet, reason) in [
        (syn("10.0.1.4", 80), Reason::Cluster),
        (packet(17, "10.0.1.4", 5353), Reason::Cluster),
        (syn("192.0.2.1", 8443), Reason::Gateway),
        (syn("192.0.2.1", 8444), Reason::HiddenExternal),
        (syn("192.0.2.2", 6443), Reason::Infrastructure),
        (packet(17, "192.0.2.3", 53), Reason::Resolver),
        (syn("10.0.9.1", 10250), Reason::Cluster),
        (syn("10.0.9.1", 22), Reason::Node),
        (syn("10.0.9.9", 80), Reason::Metadata),
        (syn("203.0.113.10", 443), Reason::HiddenExternal),
        (packet(1, "203.0.113.10", 0), Reason::HiddenExternal),
        (Packet { shape: Shape::Malformed, ..syn("10.0.1.4", 80) }, Reason::Malformed),
        (Packet { shape: Shape::Fragment, ..packet(17, "10.0.1.4", 0) }, Reason::Cluster),
        (Packet { shape: Shape::Fragment, ..packet(17, "192.0.2.3", 0) }, Reason::Fragment),
    ] {
        judged(&marked, &last(packet), &table, 16, reason);
    }
    // What the node wraps goes from node to node; what claims to, from elsewhere, does not.
    for (protocol, port) in [(17, 8472), (4, 0), (50, 0)] {
        let wrapped = |src| Packet { src: addr(src), ..last(packet(protocol, "10.0.9.1", port)) };
        judged(&marked, &wrapped("10.0.9.2"), &table, 16, Reason::Cluster);
        judged(&marked, &wrapped("10.0.1.2"), &table, 16, Reason::Node);
    }
    assert_eq!(decide(&marked, &last(syn("192.0.2.1", 8443)), &table).gateway, GATEWAY);
}
