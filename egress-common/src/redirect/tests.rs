//! The rule, against the sentences above it.

extern crate std;

use std::collections::BTreeMap;

use super::*;
use crate::decide::tests::{GATEWAY, POLICY, Table, addr, cluster, pod};
use crate::key::{AddressKey, ExactKey, ExceptionKey, RangeKey, ReplyKey};
use crate::state::{Exact, Exception, Range};

const FIRST: &str = "10.0.2.1";
const SECOND: &str = "10.0.2.2";
const SIXTH: &str = "fd00::2:1";
const OUTSIDE: &str = "203.0.113.10";

/// The cluster's tables with what is redirected.
struct Redirecting {
    table: Table,
    endpoints: BTreeMap<RedirectKey, RedirectTo>,
}

impl Lookup for Redirecting {
    fn exact(&self, key: &ExactKey) -> Option<Exact> {
        self.table.exact(key)
    }
    fn address(&self, key: &AddressKey) -> u32 {
        self.table.address(key)
    }
    fn range(&self, key: &RangeKey) -> Range {
        self.table.range(key)
    }
    fn exception(&self, key: &ExceptionKey) -> Option<Exception> {
        self.table.exception(key)
    }
    fn reply(&self, key: &ReplyKey) -> bool {
        self.table.reply(key)
    }
    fn over_rate(&self, who: &Subject, gateway: GatewayId) -> bool {
        self.table.over_rate(who, gateway)
    }
    fn foreign_socket(&self, who: &Subject) -> bool {
        self.table.foreign_socket(who)
    }
    fn now(&self) -> u64 {
        self.table.now()
    }
}

impl Endpoints for Redirecting {
    fn endpoint(&self, key: &RedirectKey) -> Option<RedirectTo> {
        self.endpoints.get(key).copied()
    }
}

/// Port 443 goes to two IPv4 endpoints and one of IPv6; port 80 to none of either.
fn redirecting() -> Redirecting {
    let gateway = |draining| Exact::gateway(GATEWAY, draining);
    let mut table = cluster();
    for ip in [FIRST, SECOND, SIXTH] {
        table = table.with_exact(ip, protocol::TCP, 8443, gateway(false));
    }
    let to = |ip, places| RedirectTo::new(addr(ip), 8443, GATEWAY, places);
    let endpoints = BTreeMap::from([
        (RedirectKey::new(POLICY, 443, true, 0), to(FIRST, 2)),
        (RedirectKey::new(POLICY, 443, true, 1), to(SECOND, 2)),
        (RedirectKey::new(POLICY, 443, false, 0), to(SIXTH, 1)),
        (RedirectKey::new(POLICY, 80, true, 0), RedirectTo::NOWHERE),
        (RedirectKey::new(POLICY, 80, false, 0), RedirectTo::NOWHERE),
    ]);
    Redirecting { table, endpoints }
}

fn who() -> Subject {
    Subject { redirects: true, ..pod() }
}

fn dials(dst: &str, port: u16) -> Packet {
    let dst = addr(dst);
    let hook = if dst.is_v4() { Hook::Connect4 } else { Hook::Connect6 };
    Packet::call(hook, protocol::TCP, dst, port, 0)
}

fn ask(who: &Subject, packet: &Packet, seed: u64, tables: &Redirecting) -> Option<Redirected> {
    redirect(who, packet, decide(who, packet, tables), seed, tables)
}

fn reason(redirected: Option<Redirected>) -> Option<Reason> {
    redirected.map(|redirected| redirected.ruling.reason)
}

#[test]
fn line_17_a_denied_connection_goes_to_an_endpoint_of_its_own_family() {
    let tables = redirecting();
    for (dst, endpoints) in [(OUTSIDE, &[FIRST, SECOND][..]), ("2001:db8::1", &[SIXTH])] {
        for seed in 0..32 {
            let redirected = ask(&who(), &dials(dst, 443), seed, &tables).unwrap();
            let Some((to, port)) = redirected.to else { panic!("{dst} goes nowhere") };
            assert!(endpoints.iter().any(|ip| addr(ip) == to), "{dst} goes to {to}");
            assert_eq!(port, 8443);
            let expected = Ruling { reason: Reason::Redirected, line: LINE, gateway: GATEWAY };
            assert_eq!(redirected.ruling, expected);
        }
    }
}

#[test]
fn line_17_a_mapped_destination_is_ipv4() {
    let mut packet = dials(OUTSIDE, 443);
    packet.hook = Hook::Connect6;
    let redirected = ask(&who(), &packet, 1, &redirecting()).unwrap();
    assert!(redirected.to.is_some_and(|(to, _)| to.is_v4()));
}

#[test]
fn line_17_seeds_are_spread_and_stick() {
    let tables = redirecting();
    let chosen = |seed| ask(&who(), &dials(OUTSIDE, 443), seed, &tables).unwrap().to.unwrap().0;
    let first = (0..1000).filter(|seed| chosen(*seed) == addr(FIRST)).count();
    assert!((400..600).contains(&first), "{first} of 1000");
    assert_eq!(chosen(77), chosen(77));
}

#[test]
fn line_17_only_what_line_13_denies_as_not_gateway_is_redirected() {
    let tables = redirecting();
    for (dst, port) in [
        ("10.0.5.5", 443),
        (FIRST, 8443),
        ("169.254.169.254", 443),
        ("240.240.0.1", 443),
        ("10.0.9.1", 443),
        ("127.0.0.1", 443),
        (OUTSIDE, 853),
        (OUTSIDE, 8443),
    ] {
        assert_eq!(ask(&who(), &dials(dst, port), 1, &tables), None, "{dst} {port}");
    }
}

#[test]
fn line_17_only_an_uncaptured_pod_in_enforce_whose_policy_says_so() {
    let tables = redirecting();
    let packet = dials(OUTSIDE, 443);
    for other in [
        Subject { redirects: false, ..who() },
        Subject { mode: Mode::Audit, ..who() },
        Subject { capture: Capture::Sidecar, ..who() },
        Subject { capture: Capture::Ambient, ..who() },
    ] {
        assert_eq!(ask(&other, &packet, 1, &tables), None, "{other:?}");
    }
}

#[test]
fn line_17_only_a_connect_for_tcp() {
    let tables = redirecting();
    for (hook, protocol) in [
        (Hook::Connect4, protocol::UDP),
        (Hook::Sendmsg4, protocol::UDP),
        (Hook::Wall, protocol::TCP),
        (Hook::PodEgress, protocol::TCP),
    ] {
        let mut packet = Packet::call(hook, protocol, addr(OUTSIDE), 443, 0);
        packet.src = who().v4;
        packet.src_mac = who().mac;
        let ruling = decide(&who(), &packet, &tables);
        assert_eq!(ruling.reason, Reason::NotGateway);
        assert_eq!(redirect(&who(), &packet, ruling, 1, &tables), None, "{hook}");
    }
}

#[test]
fn line_17_a_redirected_port_without_an_endpoint_is_denied_and_says_so() {
    let tables = redirecting();
    for dst in [OUTSIDE, "2001:db8::1"] {
        let redirected = ask(&who(), &dials(dst, 80), 1, &tables).unwrap();
        assert_eq!((redirected.ruling.reason, redirected.to), (Reason::RedirectUnavailable, None));
    }
}

#[test]
fn line_17_an_endpoint_that_may_not_be_dialled_is_never_dialled() {
    let mut rated = redirecting();
    rated.table.over_rate = true;
    let packet = dials(OUTSIDE, 443);
    assert_eq!(reason(ask(&who(), &packet, 1, &rated)), Some(Reason::RateLimited));
    let stale = Subject { deny_new: true, ..who() };
    assert_eq!(reason(ask(&stale, &packet, 1, &redirecting())), Some(Reason::PolicyStale));

    // The table still names an endpoint that has meanwhile begun to drain, or is none any more.
    let mut old = redirecting();
    let draining = Exact::gateway(GATEWAY, true);
    old.table = old.table.with_exact(FIRST, protocol::TCP, 8443, draining);
    old.table = old.table.with_exact(SECOND, protocol::TCP, 8443, draining);
    assert_eq!(reason(ask(&who(), &packet, 1, &old)), Some(Reason::GatewayDraining));
    let gone = Redirecting { table: cluster(), ..redirecting() };
    let redirected = ask(&who(), &packet, 1, &gone).unwrap();
    assert_eq!((redirected.ruling.reason, redirected.to), (Reason::RedirectUnavailable, None));
}

#[test]
fn line_17_a_place_that_is_missing_is_the_first() {
    let mut tables = redirecting();
    tables.endpoints.remove(&RedirectKey::new(POLICY, 443, true, 1));
    for seed in 0..32 {
        let redirected = ask(&who(), &dials(OUTSIDE, 443), seed, &tables).unwrap();
        assert_eq!(redirected.to, Some((addr(FIRST), 8443)));
    }
}

#[test]
fn an_original_is_told_only_of_the_connection_it_was_written_for() {
    let original = Original::new((addr(OUTSIDE), 443), (addr(FIRST), 8443));
    assert_eq!(original.of_peer(addr(FIRST), 8443), Some((addr(OUTSIDE), 443)));
    assert_eq!(original.of_peer(addr(FIRST), 8080), None);
    assert_eq!(original.of_peer(addr(SECOND), 8443), None);
}
