//! Where the pods of a gateway may go themselves.

use std::collections::BTreeSet;

use egress_common::key::PodId;
use egress_common::state::Pod as KernelPod;
use egress_common::{Mode, Reason};

use super::fixture::{OUTSIDE, TCP, UDP, World, ask, covered, declaration, ip, net, tables_of};
use crate::policy::mesh::Resolution;
use crate::policy::{CoverageState, Declaration};

const POD: &str = "istio-system/gw-0";

/// The gateway's pod runs here, and its policy limits it.
fn world(mode: Mode) -> World {
    let mut world = World::new();
    let mut pod = world.snapshot.pods.remove(POD).unwrap();
    pod.node = Some("here".to_owned());
    world.run(pod, 300, 9);
    world.policy_mut("shop").gateway_egress = mode;
    world.snapshot.declarations = vec![declaration("shop/stripe", &["api.stripe.com"])];
    world.node.names = true;
    world
}

fn asked(world: &World, dst: &str, protocol: u8, port: u16) -> Reason {
    ask(&world.compile(), POD, dst, protocol, port)
}

#[test]
fn without_a_limit_a_gateways_pod_is_exempt_and_its_answers_are_read() {
    let world = world(Mode::Off);
    assert_eq!(asked(&world, OUTSIDE, TCP, 443), Reason::Exempt);
    let entry = world.compile().tables.interfaces[&9];
    assert_eq!(entry.flags & (KernelPod::NAMES | KernelPod::LIMITED), KernelPod::NAMES);
    let governed = world.compile().tables.interfaces[&7];
    assert_ne!(governed.flags & KernelPod::NAMES, 0);
    let silent = World { node: crate::policy::NodeState { names: false, ..world.node }, ..world };
    assert_eq!(silent.compile().tables.interfaces[&9].flags & KernelPod::NAMES, 0);
}

#[test]
fn a_limited_gateway_reaches_the_cluster_and_what_dns_gave_it_and_nothing_else() {
    let mut world = world(Mode::Enforce);
    let desired = world.compile();
    let own = tables_of(&desired, POD);
    assert_eq!(desired.tables.interfaces[&9].id, PodId::of(POD));
    assert_ne!(desired.tables.interfaces[&9].flags & KernelPod::LIMITED, 0);
    assert_eq!(covered(&desired, POD).state, CoverageState::Gateway);
    assert_eq!(covered(&desired, POD).policy, None);
    assert_ne!(own, tables_of(&desired, "shop/web"));
    let ports = BTreeSet::from([443]);
    world.node.resolved.admit(own, ip(OUTSIDE), "api.stripe.com", &ports, 1000).unwrap();
    for (dst, protocol, port, reason) in [
        (OUTSIDE, TCP, 443, Reason::Resolved),
        (OUTSIDE, TCP, 80, Reason::Unresolved),
        (OUTSIDE, UDP, 443, Reason::Unresolved),
        ("203.0.113.11", TCP, 443, Reason::Unresolved),
        ("10.1.0.2", TCP, 8080, Reason::Cluster),
        ("169.254.169.254", TCP, 80, Reason::Metadata),
        ("192.168.0.1", TCP, 22, Reason::Node),
        ("8.8.8.8", UDP, 53, Reason::ForeignResolver),
    ] {
        assert_eq!(asked(&world, dst, protocol, port), reason, "{dst}:{port}");
    }
    // Nobody else gains by it.
    assert_eq!(world.ask(OUTSIDE, TCP, 443), Reason::NotGateway);
    // It expires, and a host that is registered no more opens nothing.
    let mut later = world.node.resolved.clone();
    assert!(later.expire(1000));
    std::mem::swap(&mut later, &mut world.node.resolved);
    assert_eq!(asked(&world, OUTSIDE, TCP, 443), Reason::Unresolved);
    world.node.resolved = later;
    world.snapshot.declarations.clear();
    assert_eq!(asked(&world, OUTSIDE, TCP, 443), Reason::Unresolved);
}

#[test]
fn addresses_that_a_service_entry_names_itself_need_no_answer_unless_they_lie_inside() {
    let mut world = world(Mode::Enforce);
    world.snapshot.declarations = vec![Declaration {
        endpoints: vec![ip(OUTSIDE), ip("10.1.0.2"), ip("169.254.169.254"), ip("192.168.0.1")],
        resolution: Resolution::Static,
        ..declaration("shop/stripe", &["fixed.example"])
    }];
    assert_eq!(asked(&world, OUTSIDE, TCP, 443), Reason::Resolved);
    assert_eq!(asked(&world, "169.254.169.254", TCP, 443), Reason::Metadata);
    assert_eq!(asked(&world, "192.168.0.1", TCP, 443), Reason::Node);
    let desired = world.compile();
    let resolved = egress_common::state::Target::Resolved.number();
    let count = desired.tables.exact.values().filter(|entry| entry.target == resolved).count();
    assert_eq!(count, 1);
    // What it expects beyond them opens nothing by itself.
    world.snapshot.declarations[0].expected = vec![net("203.0.113.0/24")];
    assert_eq!(asked(&world, "203.0.113.99", TCP, 443), Reason::Unresolved);
}

#[test]
fn an_address_that_has_become_the_clusters_is_resolved_no_more() {
    let mut world = world(Mode::Enforce);
    let own = tables_of(&world.compile(), POD);
    let ports = BTreeSet::from([443]);
    world.node.resolved.admit(own, ip(OUTSIDE), "api.stripe.com", &ports, 1000).unwrap();
    world.cluster.node_addresses = vec![net("203.0.113.0/24")];
    assert_eq!(asked(&world, OUTSIDE, TCP, 443), Reason::Node);
}

#[test]
fn of_several_policies_the_first_limits_and_audit_stays_audit() {
    let mut world = world(Mode::Audit);
    let mut other = world.snapshot.policies["shop"].clone();
    other.name = "aaa".to_owned();
    other.priority = -1;
    other.gateway_egress = Mode::Enforce;
    world.policy(other);
    let desired = world.compile();
    assert_eq!(covered(&desired, POD).mode, Mode::Audit);
    world.policy_mut("aaa").priority = 7;
    assert_eq!(covered(&world.compile(), POD).mode, Mode::Enforce);
}
