//! Prefixes, and what covers them.

use egress_common::Reason;
use egress_common::key::{Addr, PolicyId};
use egress_common::state::range;

use super::fixture::*;
use crate::policy::ProblemCode::ClusterRangesUnknown;
use crate::policy::{Desired, Node};

const INBOUND: u32 = range::INBOUND;
const CLUSTER: u32 = range::CLUSTER | INBOUND;

/// What the longest prefix says of an address under `shop`.
fn kinds(desired: &Desired, dst: &str) -> u32 {
    let longest = desired.tables.longest(PolicyId::of("shop"), Addr::from(ip(dst)));
    longest.map_or(0, |(_, range)| range.kinds)
}

#[test]
fn auto_is_the_configuration_the_nodes_and_the_service_ranges() {
    let mut world = World::new();
    world.cluster.ranges = vec![net("10.1.0.0/16")];
    world.snapshot.service_ranges = vec![net("10.96.0.0/16")];
    let node = Node {
        name: "elsewhere".to_owned(),
        addresses: Vec::new(),
        pod_ranges: vec![net("10.2.0.0/16"), net("fd00:2::/64")],
    };
    world.snapshot.nodes.insert(node.name.clone(), node);
    for dst in ["10.1.0.99", "10.96.1.1", "10.2.3.4", "fd00:2::9"] {
        assert_eq!(world.ask(dst, TCP, 8080), Reason::Cluster, "{dst}");
    }
    for dst in ["10.3.0.1", "fd00:2:0:1::9", OUTSIDE] {
        assert_eq!(world.ask(dst, TCP, 8080), Reason::NotGateway, "{dst}");
    }
}

#[test]
fn listed_ranges_replace_the_automatic_ones() {
    let mut world = World::new();
    world.policy_mut("shop").cluster_ranges = Some(vec![net("10.1.0.0/16")]);
    assert_eq!(world.ask("10.1.0.99", TCP, 8080), Reason::Cluster);
    assert_eq!(world.ask("10.2.0.99", TCP, 8080), Reason::NotGateway);
}

#[test]
fn unknown_ranges_allow_nothing_and_are_named() {
    let mut world = World::new();
    world.cluster.ranges.clear();
    let desired = world.compile();
    assert_eq!(problems(&desired), [(ClusterRangesUnknown, "shop")]);
    assert_eq!(ask(&desired, "shop/web", "10.1.0.99", TCP, 8080), Reason::NotGateway);
    // What is exact does not need them.
    assert_eq!(ask(&desired, "shop/web", "10.1.9.1", TCP, 8443), Reason::Gateway);
}

#[test]
fn what_is_never_cluster_wins_inside_a_cluster_range() {
    let mut world = World::new();
    world.cluster.ranges = vec![net("169.254.0.0/16"), net("192.168.0.0/16"), net("240.0.0.0/8")];
    world.cluster.node_addresses = vec![net("192.168.9.0/24")];
    for (dst, reason) in [
        ("169.254.169.254", Reason::Metadata),
        ("240.240.1.1", Reason::MeshVip),
        ("192.168.0.1", Reason::Node),
        ("192.168.9.9", Reason::Node),
        ("192.168.8.8", Reason::Cluster),
    ] {
        assert_eq!(world.ask(dst, TCP, 80), reason, "{dst}");
    }
    let desired = world.compile();
    assert_eq!(kinds(&desired, "192.168.0.1"), CLUSTER | range::NODE);
    assert_eq!(kinds(&desired, "169.254.169.254"), CLUSTER | range::METADATA);
}

#[test]
fn what_the_nodes_interfaces_carry_is_the_node_wherever_it_lies() {
    let mut world = World::new();
    // A bridge among its pods; the gateway's pod, whose address some interface also carries.
    world.node.addresses = [ip("10.1.0.1"), ip("fd00:10::1:1"), ip("10.1.9.1")].into();
    for (dst, reason) in
        [("10.1.0.1", Reason::Node), ("fd00:10::1:1", Reason::Node), ("10.1.0.3", Reason::Cluster)]
    {
        assert_eq!(world.ask(dst, TCP, 10250), reason, "{dst}");
    }
    let desired = world.compile();
    assert_eq!(kinds(&desired, "10.1.0.1"), CLUSTER | range::NODE | range::THIS_NODE);
    assert_eq!(
        kinds(&desired, "10.1.9.1"),
        CLUSTER | range::THIS_NODE,
        "a pod's address is the pod's"
    );
}

#[test]
fn a_prefix_carries_the_kinds_of_every_wider_one() {
    let mut world = World::new();
    world.cluster.ranges = vec![net("10.1.0.0/16"), net("fd00:10::/32")];
    let shop = world.policy_mut("shop");
    // Wider than a cluster range, and narrower.
    shop.inbound_ranges = vec![net("10.0.0.0/8"), net("10.1.7.0/24"), net("fd00:10:1::/48")];
    let desired = world.compile();
    for (dst, expected) in [
        ("10.9.9.9", INBOUND),
        ("10.1.0.1", CLUSTER),
        ("10.1.7.1", CLUSTER),
        ("fd00:10::1", CLUSTER),
        ("fd00:10:1::1", CLUSTER),
        (OUTSIDE, 0),
    ] {
        assert_eq!(kinds(&desired, dst), expected, "{dst}");
    }
}

#[test]
fn answers_go_to_the_cluster_nodes_probes_and_named_remotes() {
    let mut world = World::new();
    world.cluster.inbound_ranges = vec![net("198.51.100.0/24")];
    world.policy_mut("shop").inbound_ranges = vec![net("203.0.113.0/24")];
    let desired = world.compile();
    for dst in [
        "10.1.0.99",
        "192.168.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "169.254.7.127",
        "fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
    ] {
        assert_eq!(kinds(&desired, dst) & INBOUND, INBOUND, "{dst}");
    }
    for dst in ["192.0.2.1", "169.254.169.254", "169.254.7.126", "2001:db8::1"] {
        assert_eq!(kinds(&desired, dst) & INBOUND, 0, "{dst}");
    }
    // To be answered is not to be dialled.
    assert_eq!(world.ask("203.0.113.1", TCP, 443), Reason::NotGateway);
}

#[test]
fn a_services_address_is_nobodys_remote() {
    let mut world = World::new();
    world.cluster.ranges = vec![net("10.0.0.0/8"), net("10.96.7.0/24")];
    world.snapshot.service_ranges = vec![net("10.96.0.0/16")];
    for (name, ip) in [("bank/known", "10.7.0.9"), ("bank/elsewhere", "192.0.2.9")] {
        let one = service(name, &[ip], &[("web", 80)]);
        world.snapshot.services.insert(one.name.clone(), one);
    }
    world.policy_mut("shop").inbound_ranges = vec![net("10.96.3.0/24")];
    let desired = world.compile();
    for (dst, expected) in [
        ("10.7.0.8", CLUSTER),
        ("10.7.0.9", range::CLUSTER),
        ("10.96.0.1", range::CLUSTER),
        ("10.96.3.1", range::CLUSTER),
        ("10.96.7.1", range::CLUSTER),
        ("192.0.2.9", 0),
    ] {
        assert_eq!(kinds(&desired, dst), expected, "{dst}");
        let unknown = desired.tables.longest(PolicyId::NONE, Addr::from(ip(dst)));
        let unknown = unknown.map_or(0, |(_, range)| range.kinds);
        assert_eq!(unknown & INBOUND, expected & INBOUND, "{dst}");
    }
}

#[test]
fn a_wide_prefix_of_ipv6_says_nothing_about_ipv4() {
    for wide in ["::/0", "::/16", "::/80"] {
        let mut world = World::new();
        world.cluster.ranges = vec![net(wide)];
        assert_eq!(world.ask(OUTSIDE, TCP, 443), Reason::NotGateway, "{wide}");
        let desired = world.compile();
        assert_eq!(kinds(&desired, OUTSIDE), 0, "{wide}");
        assert_eq!(kinds(&desired, "::2"), CLUSTER, "{wide}");
    }
}

#[test]
fn a_mapped_prefix_is_ipv4() {
    let mut world = World::new();
    world.cluster.ranges = vec![net("::ffff:10.1.0.0/112"), net("10.0.0.0/8")];
    world.policy_mut("shop").inbound_ranges =
        vec![net("::ffff:10.2.0.0/112"), net("::ffff:203.0.113.0/120")];
    let desired = world.compile();
    assert_eq!(kinds(&desired, "10.1.0.1"), CLUSTER);
    // It keeps what a wider prefix of IPv4 says.
    assert_eq!(kinds(&desired, "10.2.0.1"), CLUSTER);
    assert_eq!(kinds(&desired, "203.0.113.1"), INBOUND);
    assert_eq!(kinds(&desired, "203.0.114.1"), 0);
}

#[test]
fn every_prefix_names_its_origin() {
    let mut world = World::new();
    world.policy_mut("shop").inbound_ranges = vec![net("203.0.113.0/24")];
    let desired = world.compile();
    assert!(desired.tables.ranges.keys().eq(desired.origins.ranges.keys()));
    let shop = PolicyId::of("shop");
    let (key, _) = desired.tables.longest(shop, Addr::from(ip("203.0.113.1"))).unwrap();
    assert_eq!(desired.origins.ranges[key].to_string(), "EgressPolicy shop");
}
