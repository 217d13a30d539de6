//! Answers and what they lead to.

use egress_common::Addr;
use egress_common::key::PolicyId;
use egress_common::state::{Exact, Pod as KernelPod, Target};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::agent::AgentState;
use crate::names::Class;
use crate::policy::compile::compile;
use crate::policy::compile::tests::fixture::{World, declaration, ip, name, net};
use crate::policy::{CoverageState, Declaration, Desired};

const RESOLVER: Addr = Addr::v4([10, 96, 0, 10]);

fn settings() -> Settings {
    Settings {
        enabled: true,
        learning: Duration::from_secs(3600),
        grace: Duration::from_secs(60),
        internal_domains: vec!["cluster.local".to_owned()],
        internal_ranges: Vec::new(),
    }
}

struct Desk {
    view: View,
    reading: Reading,
    book: Book,
    counts: Counts,
    pod: PodId,
    time: u64,
}

impl Desk {
    /// `shop/web`, and `api.stripe.com` registered. With `limited`, the pod is a limited gateway's.
    fn new(limited: bool) -> Self {
        let mut world = World::new();
        world.snapshot.declarations = vec![declaration("shop/stripe", &["api.stripe.com"])];
        let mut desired = compile(&world.snapshot, &world.cluster, &world.node);
        let pod = desired.coverage.iter().find(|pod| pod.state == CoverageState::Covered).unwrap();
        let pod = PodId::of(&pod.uid);
        if limited {
            limit(&mut desired, pod);
        }
        let state = AgentState::of(world.snapshot.clone(), desired);
        Self {
            view: View::of(&state, &world.cluster, &settings()),
            reading: Reading::new(settings(), History::default()),
            book: Book::default(),
            counts: Counts::default(),
            pod,
            time: 1_000_000_000,
        }
    }

    fn answer(&mut self, host: &str, ips: &[&str]) -> Found {
        self.answer_by(RESOLVER, host, ips)
    }

    fn answer_by(&mut self, resolver: Addr, host: &str, ips: &[&str]) -> Found {
        let bytes = message(host, ips);
        let head = Head {
            time: self.time,
            pod: self.pod,
            resolver,
            whole: bytes.len() as u32,
            sequence: 0,
            copied: bytes.len() as u16,
            port: 40000,
            protocol: protocol::UDP,
            tcp_flags: 0,
            pad: [0; 2],
        };
        self.reading.take(Ok((head, &bytes)), &self.view, &mut self.book, &self.counts)
    }

    fn outcome(&self, wanted: Outcome) -> u64 {
        self.counts.outcomes().find(|(outcome, _)| *outcome == wanted).map_or(0, |(_, count)| count)
    }
}

/// Makes a pod's entries those of a limited gateway's pod.
fn limit(desired: &mut Desired, pod: PodId) {
    for entry in desired.tables.interfaces.values_mut().filter(|entry| entry.id == pod) {
        entry.policy = PolicyId(99);
        entry.flags |= KernelPod::LIMITED;
    }
    for coverage in desired.coverage.iter_mut().filter(|one| PodId::of(&one.uid) == pod) {
        coverage.state = CoverageState::Gateway;
    }
    let key = egress_common::key::ExactKey::new(PolicyId::NONE, RESOLVER, protocol::UDP, 53);
    desired.tables.exact.insert(key, Exact::plain(Target::Resolver));
}

/// An answer with these addresses, TTL 30.
fn message(host: &str, ips: &[&str]) -> Vec<u8> {
    let mut bytes = vec![0, 7, 0x81, 0x80, 0, 1, 0, ips.len() as u8, 0, 0, 0, 0];
    for label in host.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    for text in ips {
        let (kind, data) = match ip(text) {
            IpAddr::V4(v4) => (1, v4.octets().to_vec()),
            IpAddr::V6(v6) => (28, v6.octets().to_vec()),
        };
        bytes.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 30, 0, data.len() as u8]);
        bytes.extend(data);
    }
    bytes
}

fn kinds(found: &Found) -> Vec<(&'static str, &'static str)> {
    found.findings.iter().map(|one| (one.kind.name(), one.kind.detail())).collect()
}

#[test]
fn a_name_of_the_outside_that_leads_inside_is_told_once_and_counted_every_time() {
    let mut desk = Desk::new(false);
    for (address, place) in [
        ("10.1.2.3", "cluster"),
        ("169.254.169.254", "metadata"),
        ("127.0.0.1", "loopback"),
        ("fe80::1", "link_local"),
    ] {
        let found = desk.answer("evil.example", &["198.51.100.1", address]);
        assert_eq!(kinds(&found), [("rebinding", place)], "{address}");
        let Finding { host, ip: told, pod, .. } = &found.findings[0];
        assert_eq!(
            (host.as_str(), *told, &pod.name),
            ("evil.example", ip(address), &name("shop/web"))
        );
        assert_eq!(kinds(&desk.answer("evil.example", &[address])), []);
    }
    let counted = desk.counts.findings(Class::Rebinding);
    assert_eq!(counted.iter().map(|(_, count)| count).sum::<u64>(), 8);
    desk.time += QUIET;
    let again = desk.answer("evil.example", &["10.1.2.3"]);
    assert_eq!(again.findings[0].untold, 1);
}

#[test]
fn names_of_the_cluster_may_lead_inside() {
    let mut desk = Desk::new(false);
    for host in ["web.shop.svc.cluster.local", "cluster.local", "localhost", "x.localhost"] {
        assert_eq!(desk.answer(host, &["10.1.2.3", "127.0.0.1"]), Found::default(), "{host}");
    }
    let found = desk.answer("notcluster.local", &["10.1.2.3"]);
    assert_eq!(kinds(&found), [("rebinding", "cluster")]);
    assert_eq!(desk.outcome(Outcome::Learned), 5);
}

#[test]
fn a_registered_host_that_moves_is_a_drift_and_others_may_be_anywhere() {
    let mut desk = Desk::new(false);
    desk.reading.settings.learning = Duration::ZERO;
    let now = jiff::Timestamp::now().as_second();
    assert_eq!(desk.answer("api.stripe.com", &["203.0.113.10"]), Found::default());
    // As if that had been a while ago.
    let past = desk.view.registered.find("api.stripe.com").unwrap().clone();
    desk.reading.history = History::default();
    desk.reading.history.judge(&past, ip("203.0.113.10"), now - 60, 0);
    let found = desk.answer("API.stripe.com", &["203.0.113.77", "192.0.2.9"]);
    assert_eq!(kinds(&found), [("drift", "new_network")]);
    assert_eq!(found.findings[0].declared_by, Some(name("shop/stripe")));
    assert_eq!(desk.answer("other.example", &["192.0.2.9"]), Found::default());
    let drifts = desk.counts.findings(Class::Drift);
    assert_eq!(drifts.iter().map(|(_, count)| count).sum::<u64>(), 1);
}

#[test]
fn only_registered_hosts_outside_open_a_limited_gateways_way() {
    let mut desk = Desk::new(true);
    let found = desk.answer("api.stripe.com", &["203.0.113.10", "10.1.2.3", "2001:db8::1"]);
    let opened: Vec<IpAddr> = found.admissions.iter().map(|one| one.ip).collect();
    assert_eq!(opened, [ip("203.0.113.10"), ip("2001:db8::1")]);
    let first = &found.admissions[0];
    assert_eq!((first.policy, &first.ports), (PolicyId(99), &BTreeSet::from([443])));
    assert_eq!(first.expires, desk.time + 90_000_000_000);
    assert_eq!(desk.answer("other.example", &["203.0.113.11"]).admissions, []);
    // The word of a resolver that nobody named opens nothing; a pod's is not even heard.
    let seen = desk.answer_by(Addr::v4([8, 8, 8, 8]), "api.stripe.com", &["203.0.113.12"]);
    assert_eq!(seen.admissions, []);
    let forged = desk.answer_by(Addr::v4([10, 1, 0, 66]), "api.stripe.com", &["203.0.113.13"]);
    assert_eq!((forged, desk.outcome(Outcome::ForeignResolver)), (Found::default(), 1));
    assert_eq!(desk.book.host(desk.pod, ip("203.0.113.13"), desk.time), None);
}

#[test]
fn what_is_not_expected_opens_nothing() {
    let mut desk = Desk::new(true);
    let mut declared = desk.view.registered.find("api.stripe.com").unwrap().clone();
    declared.expected.insert(net("203.0.113.0/24"));
    let expecting = declared.expected.clone();
    let mut world = World::new();
    world.snapshot.declarations = vec![Declaration {
        expected: expecting.into_iter().collect(),
        ..declaration("shop/stripe", &["api.stripe.com"])
    }];
    desk.view.registered = crate::policy::registered::Registered::of(&world.snapshot);
    let found = desk.answer("api.stripe.com", &["203.0.113.1", "192.0.2.1"]);
    assert_eq!(kinds(&found), [("drift", "unexpected")]);
    assert_eq!(found.admissions.len(), 1);
}

#[test]
fn pods_that_are_gone_and_bad_records_are_passed_over() {
    let mut desk = Desk::new(false);
    desk.pod = PodId(12345);
    assert_eq!(desk.answer("evil.example", &["127.0.0.1"]), Found::default());
    let bad = Err(BadRecord { len: 3 });
    let found = desk.reading.take(bad, &desk.view, &mut desk.book, &desk.counts);
    assert_eq!(found, Found::default());
    assert!(desk.counts.losses().contains(&("decode", 1)));
}

#[test]
fn a_view_is_of_one_state_alone() {
    let world = World::new();
    let desired = compile(&world.snapshot, &world.cluster, &world.node);
    let state = AgentState::of(world.snapshot.clone(), desired);
    let view = View::of(&state, &world.cluster, &settings());
    assert!(view.is_of(&state));
    let other = AgentState { desired: Arc::new(Desired::default()), ..state };
    assert!(!view.is_of(&other));
}
