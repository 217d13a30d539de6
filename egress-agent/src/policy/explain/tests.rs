//! Answers about the compiler's own fixture, as an operator would read them.

mod redirect;

use std::collections::BTreeSet;

use egress_common::state::Capture;
use egress_common::{Mode, Reason};

use super::*;
use crate::policy::Declaration;
use crate::policy::compile::tests::fixture::{
    OUTSIDE, TCP, UDP, World, covered, exact_address, exception, ip, net, pod, policy, service,
    slice,
};

mod mesh;

const NOW: u64 = 1;

fn question(text: &str) -> Question {
    text.parse().unwrap()
}

/// The answer for `shop/web`.
fn answer(world: &World, text: &str) -> Explanation {
    answer_with(world, text, &[])
}

fn answer_with(world: &World, text: &str, declarations: &[Declaration]) -> Explanation {
    let desired = world.compile();
    let pod = covered(&desired, "shop/web");
    let snapshot = Snapshot { declarations: declarations.to_vec(), ..world.snapshot.clone() };
    explain(&desired, &desired.tables, &snapshot, pod, &question(text), NOW)
}

#[test]
fn destinations_are_read_in_every_form() {
    for (text, shown) in [
        ("203.0.113.10:443", "203.0.113.10:443/tcp"),
        ("203.0.113.10:53/udp", "203.0.113.10:53/udp"),
        ("[2001:db8::1]:443/tcp", "[2001:db8::1]:443/tcp"),
        ("[::ffff:203.0.113.10]:443", "203.0.113.10:443/tcp"),
        ("203.0.113.10/icmp", "203.0.113.10/icmp"),
        ("2001:db8::1/icmp", "2001:db8::1/icmp"),
    ] {
        assert_eq!(question(text).to_string(), shown);
    }
    for text in ["", "203.0.113.10", "example.com:443", "203.0.113.10:443/sctp", "2001:db8::1:443x"]
    {
        assert!(text.parse::<Question>().is_err(), "{text}");
    }
}

#[test]
fn the_lines_are_those_of_decide() {
    // `decide` numbers its order in its comment; a line added there needs its words here.
    let source = include_str!("../../../../egress-common/src/decide.rs");
    let numbered = |line: &str| {
        let text = line.trim().strip_prefix("///")?.trim_start();
        text.split_once(". ")?.0.parse::<usize>().ok()
    };
    let numbers: Vec<usize> = source.lines().filter_map(numbered).collect();
    assert_eq!(numbers, (0..LINES.len()).collect::<Vec<_>>());
}

/// A world in which one question or another meets every reason that a first packet can.
fn everything() -> World {
    let mut world = World::new();
    world.service(service("kube-system/kube-dns", &["10.96.0.10"], &[("dns", 53)]));
    world.service(service("default/kubernetes", &["10.96.0.1"], &[("https", 443)]));
    world.service(service("shop/out", &["10.96.0.66"], &[("https", 443)]));
    world.slice(slice("shop/out-1", "out", &[OUTSIDE], &[("https", 443)]));
    world.gateway_pod("gw-1", &["10.1.9.2"]);
    let ports = [("https", 8443)];
    let mut leaving = slice("istio-system/x", "istio-egressgateway", &["10.1.9.2"], &ports);
    leaving.endpoints[0].serving = false;
    world.slice(leaving);
    let mut bank = policy("bank", &["bank"]);
    bank.gateways.push(world.policy_mut("shop").gateways[0].clone());
    bank.gateways[0].service_account = "bank-egress".to_owned();
    bank.gateways[0].namespace = "bank".to_owned();
    world.policy(bank);
    let mut theirs = pod("bank/gw", &["10.1.8.1"]);
    theirs.service_account = "bank-egress".to_owned();
    world.pod(theirs);
    world.service(service("bank/istio-egressgateway", &[], &[("https", 443)]));
    world.slice(slice("bank/gw-1", "istio-egressgateway", &["10.1.8.1"], &ports));
    let mut vendor = exception("vendor", &["shop"], "198.51.100.0/24");
    vendor.expires_at = 3600;
    world.exception(vendor);
    world.policy_mut("shop").nodes = vec![exact_address("192.168.0.1", TCP, 9100)];
    world
}

/// Destination, reason, map entry, origin.
type Case = (&'static str, &'static str, Option<&'static str>, Option<&'static str>);

const CASES: &[Case] = &[
    ("10.1.0.2:1", "local", None, None),
    ("224.0.0.1:1/udp", "protocol", None, None),
    (
        "169.254.169.254:80",
        "metadata",
        Some("RANGES[policy shop, 169.254.169.254/32] = metadata"),
        Some("Config cluster.metadataAddresses"),
    ),
    (
        "[2001:2::1]:443",
        "mesh_vip",
        Some("RANGES[policy shop, 2001:2::/48] = mesh_vip"),
        Some("Config cluster.meshVipRanges"),
    ),
    (
        "192.168.0.1:4789/udp",
        "tunnel",
        Some("RANGES[policy shop, 192.168.0.1/32] = node+inbound"),
        Some("Config node addresses"),
    ),
    (
        "10.96.0.66:443",
        "hidden_external",
        Some("EXACT[policy shop, tcp 10.96.0.66:443] = hidden_external"),
        Some("EndpointSlice shop/out-1"),
    ),
    (
        "10.96.0.10:53/udp",
        "resolver",
        Some("EXACT[policy shop, udp 10.96.0.10:53] = resolver"),
        Some("Service kube-system/kube-dns"),
    ),
    ("8.8.8.8:53/udp", "foreign_resolver", None, None),
    (
        "[fd00:10::9:1]:8443",
        "gateway",
        Some(
            "EXACT[policy shop, tcp [fd00:10::9:1]:8443] = gateway istio-system/istio-egressgateway",
        ),
        Some("EndpointSlice istio-system/egress-v6"),
    ),
    (
        "10.1.9.2:8443",
        "gateway_draining",
        Some("EXACT[policy shop, tcp 10.1.9.2:8443] = draining istio-system/istio-egressgateway"),
        Some("EndpointSlice istio-system/x"),
    ),
    (
        "10.1.9.1:22",
        "gateway_port",
        Some("ADDRESSES[policy shop, 10.1.9.1] = gateway istio-system/istio-egressgateway"),
        Some("EgressPolicy shop"),
    ),
    (
        "10.1.8.1:8443",
        "gateway_forbidden",
        Some("ADDRESSES[policy shop, 10.1.8.1] = gateway bank/istio-egressgateway"),
        Some("EgressPolicy bank"),
    ),
    (
        "10.96.0.1:443",
        "infrastructure",
        Some("EXACT[policy shop, tcp 10.96.0.1:443] = infrastructure"),
        Some("Service default/kubernetes"),
    ),
    (
        "192.168.0.1:9100",
        "cluster",
        Some("EXACT[policy shop, tcp 192.168.0.1:9100] = node"),
        Some("EgressPolicy shop"),
    ),
    (
        "192.168.0.1:10250",
        "node",
        Some("RANGES[policy shop, 192.168.0.1/32] = node+inbound"),
        Some("Config node addresses"),
    ),
    (
        "10.1.0.99:8080",
        "cluster",
        Some("RANGES[policy shop, 10.0.0.0/8] = cluster+inbound"),
        Some("Config cluster ranges"),
    ),
    (
        "198.51.100.7:443",
        "exception",
        Some("EXCEPTIONS[policy shop, 198.51.100.0/24] = in force for another 3599 s"),
        Some("EgressException vendor"),
    ),
    ("203.0.113.10:443", "not_gateway", None, None),
    ("203.0.113.10/icmp", "protocol", None, None),
];

#[test]
fn every_answer_names_its_entry_and_origin() {
    let world = everything();
    for (text, reason, entry, origin) in CASES {
        let answer = answer(&world, text);
        assert_eq!(answer.reason, *reason, "{text}");
        assert_eq!(answer.entry.as_deref(), *entry, "{text}");
        assert_eq!(answer.origin.as_deref(), *origin, "{text}");
        assert_eq!(answer.policy.as_deref(), Some("shop"), "{text}");
    }
}

#[test]
fn every_answer_says_what_to_do_in_one_sentence() {
    let world = everything();
    let fixes: BTreeSet<String> = CASES
        .iter()
        .map(|(text, ..)| {
            let answer = answer(&world, text);
            assert!(!answer.fix.is_empty() && !answer.fix.contains('\n'), "{text}");
            assert!(answer.to_string().lines().count() <= 15, "{text}");
            answer.fix
        })
        .collect();
    assert!(fixes.len() > 10, "{fixes:?}");
}

#[test]
fn the_text_is_what_the_fields_say() {
    let text = answer(&everything(), "10.1.9.1:22").to_string();
    assert_eq!(
        text,
        "\
DROP  shop/web -> 10.1.9.1:22/tcp  gateway_port
  rule    line 9: gateway endpoints, exact in address, protocol and port
  socket  connect4 refuses it at once with EPERM
  entry   ADDRESSES[policy shop, 10.1.9.1] = gateway istio-system/istio-egressgateway
  from    EgressPolicy shop
  policy  shop, mode enforce, generation 0
  do      dial an endpoint of the gateway: here 8080/tcp, 8443/tcp"
    );
}

#[test]
fn a_wide_prefix_of_the_other_family_is_no_origin() {
    let mut world = World::new();
    world.cluster.ranges = vec![net("::/16"), net("10.0.0.0/8")];
    world.policy_mut("shop").inbound_ranges = vec![net("10.1.0.0/16")];
    let answer = answer(&world, "10.1.0.99:80");
    assert_eq!(answer.entry.as_deref(), Some("RANGES[policy shop, 10.1.0.0/16] = cluster+inbound"));
    // The narrower prefix repeats it; the wider one is where it was said.
    assert_eq!(answer.origin.as_deref(), Some("Config cluster ranges"));
}

#[test]
fn a_closed_gateway_is_not_told_as_a_wrong_port() {
    let mut world = World::new();
    world.snapshot.slices.clear();
    let answer = answer(&world, "10.1.9.1:8443");
    assert_eq!(answer.reason, "gateway_port");
    assert!(answer.fix.contains("egress-agent status"), "{}", answer.fix);
}

#[test]
fn audit_is_told_as_audit() {
    let mut world = World::new();
    world.policy_mut("shop").mode = Mode::Audit;
    let answer = answer(&world, "203.0.113.10:443");
    assert_eq!((answer.verdict.as_str(), answer.mode.as_str()), ("audit", "audit"));
    assert_eq!(answer.socket, "connect4 reports it and lets it pass");
}

#[test]
fn the_socket_hooks_answer_only_what_they_are_certain_of() {
    let mut world = World::new();
    for (text, start) in [
        ("203.0.113.10:443", "connect4 refuses"),
        ("[2001:db8::1]:443", "connect6 refuses"),
        ("203.0.113.10:443/udp", "sendmsg4 refuses"),
        ("[2001:db8::1]:443/udp", "sendmsg6 refuses"),
        ("203.0.113.10/icmp", "no socket hook"),
        ("10.1.9.1:8443", "connect4 lets it pass"),
    ] {
        let socket = answer(&world, text).socket;
        assert!(socket.starts_with(start), "{text}: {socket}");
    }
    world.pod_mut("shop/web").capture = Capture::Sidecar;
    let socket = answer(&world, "203.0.113.10:443").socket;
    assert!(socket.contains("sidecar's own user it refuses"), "{socket}");
    world.pod_mut("shop/web").capture = Capture::Ambient;
    let socket = answer(&world, "203.0.113.10:443").socket;
    assert!(socket.contains("ztunnel"), "{socket}");
    // A pod whose cgroup is not known meets no socket hook; the boundary drops all the same.
    world.pod_mut("shop/web").capture = Capture::None;
    world.node.cgroups.clear();
    let answer = answer(&world, "203.0.113.10:443");
    assert!(answer.socket.contains("cgroup is not known"), "{}", answer.socket);
    assert_eq!(answer.verdict, "drop");
}

#[test]
fn without_an_interface_the_wall_answers() {
    let mut world = World::new();
    world.node.links.clear();
    assert_eq!(answer(&world, "203.0.113.10:443").reason, "not_gateway");
    assert_eq!(answer(&world, "10.1.9.1:8443").reason, "gateway");
}

#[test]
fn a_pod_the_kernel_does_not_hold_is_unknown() {
    let world = World::new();
    let desired = world.compile();
    let (pod, empty) = (covered(&desired, "shop/web"), Tables::default());
    let answer =
        explain(&desired, &empty, &world.snapshot, pod, &question("203.0.113.10:443"), NOW);
    assert_eq!(answer.reason, "unknown_pod");
    // Another pod's entry under the same index is not this pod's.
    let mut taken = desired.tables.clone();
    taken.interfaces.get_mut(&7).unwrap().id = PodId::of("another");
    let answer =
        explain(&desired, &taken, &world.snapshot, pod, &question("203.0.113.10:443"), NOW);
    assert_eq!(answer.reason, "unknown_pod");
}

#[test]
fn an_ungoverned_pod_is_told_so() {
    let mut world = World::new();
    world.policy_mut("shop").mode = Mode::Off;
    let answer = answer(&world, "203.0.113.10:443");
    assert_eq!((answer.verdict.as_str(), answer.reason.as_str()), ("allow", "exempt"));
    assert_eq!(answer.entry.as_deref(), Some("INTERFACES[7] = pod shop/web, no policy"));
}

#[test]
fn a_family_the_pod_does_not_have_is_no_forgery() {
    let mut world = World::new();
    world.pod_mut("shop/web").ips = vec![ip("10.1.0.2")];
    let answer = answer(&world, "[2001:db8::1]:443");
    assert_eq!(answer.reason, Reason::SpoofedSource.name());
    assert!(answer.fix.contains("no address of this family"), "{}", answer.fix);
}

#[test]
fn a_policy_without_gateways_is_told_to_name_one() {
    let mut world = World::new();
    world.policy_mut("shop").gateways.clear();
    assert!(answer(&world, "203.0.113.10:443").fix.starts_with("name a gateway"));
    assert_eq!(question("203.0.113.10:443/udp").protocol, UDP);
}
