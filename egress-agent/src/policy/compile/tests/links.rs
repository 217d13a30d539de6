//! Which interface is whose, when pods lie about their addresses.

use egress_common::key::{Addr, PodId};
use egress_common::state::Pod as KernelPod;

use super::fixture::*;
use crate::policy::CoverageState;

/// `shop/web` behind interface 7 and `shop/evil` behind 8, each carrying what is given.
fn two(web: &[&str], evil: &[&str]) -> World {
    let mut world = World::new();
    world.run(pod("shop/evil", &["10.1.0.3"]), 101, 8);
    world.node.links.clear();
    for (ifindex, ips) in [(7, web), (8, evil)] {
        let ips: Vec<_> = ips.iter().map(|text| ip(text)).collect();
        world.link(ifindex, &ips);
    }
    world
}

fn interfaces(world: &World) -> [Option<u32>; 2] {
    let desired = world.compile();
    let strange = |entry: &KernelPod| entry.flags & KernelPod::UNLEARNED != 0;
    for (ifindex, entry) in desired.tables.interfaces.iter().filter(|(_, pod)| !strange(pod)) {
        let uid = ["shop/web", "shop/evil"].into_iter().find(|uid| PodId::of(uid) == entry.id);
        assert!(uid.is_some(), "{ifindex}");
    }
    ["shop/web", "shop/evil"].map(|uid| covered(&desired, uid).ifindex)
}

#[test]
fn one_common_address_is_enough() {
    assert_eq!(interfaces(&two(&["10.1.0.2"], &["10.1.0.3", "10.99.0.1"])), [Some(7), Some(8)]);
}

#[test]
fn another_pods_address_on_top_changes_nothing() {
    let world = two(&["10.1.0.2"], &["10.1.0.3", "10.1.0.2"]);
    assert_eq!(interfaces(&world), [Some(7), Some(8)]);
    // Nor does the node's.
    let world = two(&["10.1.0.2"], &["10.1.0.3", "192.168.0.1"]);
    assert_eq!(interfaces(&world), [Some(7), Some(8)]);
}

#[test]
fn an_interface_with_two_readings_is_nobodys() {
    // Two pods, one interface.
    assert_eq!(interfaces(&two(&["10.1.0.2", "10.1.0.3"], &[])), [None, None]);
    // One pod, two interfaces.
    assert_eq!(interfaces(&two(&["10.1.0.2"], &["10.1.0.2"])), [None, None]);
}

#[test]
fn a_known_interface_stays_its_pods_whatever_it_carries() {
    for evil in [&[][..], &["10.1.0.2"], &["10.1.0.3", "10.1.0.2"], &["203.0.113.1"]] {
        let mut world = two(&["10.1.0.2"], evil);
        world.bind(7, "shop/web");
        world.bind(8, "shop/evil");
        assert_eq!(interfaces(&world), [Some(7), Some(8)], "{evil:?}");
        // And what it may send from stays the API's word.
        let entry = world.compile().tables.interfaces[&8];
        assert_eq!(entry.v4, Addr::from(ip("10.1.0.3")));
        assert_eq!(entry.v6, Addr::UNSPECIFIED);
    }
}

#[test]
fn a_settled_pod_takes_no_second_interface() {
    // `evil` was never seen with an address of its own and now claims to be `web`.
    let mut world = two(&["10.1.0.2"], &["10.1.0.2"]);
    world.bind(7, "shop/web");
    assert_eq!(interfaces(&world), [Some(7), None]);
    let left = world.compile().tables.interfaces[&8];
    assert_eq!(left.flags & KernelPod::UNLEARNED, KernelPod::UNLEARNED);
}

#[test]
fn a_pod_with_a_new_sandbox_gets_its_new_interface_too() {
    let mut world = two(&["10.1.0.9"], &["10.1.0.3"]);
    world.bind(7, "shop/web");
    world.link(9, &[ip("10.1.0.2")]);
    let desired = world.compile();
    assert_eq!(covered(&desired, "shop/web").ifindex, Some(9));
    for ifindex in [7, 9] {
        assert_eq!(desired.tables.interfaces[&ifindex].id, PodId::of("shop/web"));
    }
}

#[test]
fn what_is_gone_binds_nothing() {
    let mut world = two(&["10.1.0.2"], &["10.1.0.3"]);
    world.node.links.retain(|link| link.ifindex != 8);
    world.bind(8, "shop/evil");
    assert_eq!(interfaces(&world), [Some(7), None]);
    assert_eq!(state(&world.compile(), "shop/evil"), CoverageState::NoInterface);
}
