//! Whose interface is taken for that of a pod that is not learned, and whose is left alone.

use egress_common::key::{Addr, PodId, PolicyId};
use egress_common::state::Pod as KernelPod;

use super::fixture::*;
use crate::policy::Link;

/// A world with one more interface, 9, that carries this.
fn with(ips: &[&str], change: impl FnOnce(&mut Link)) -> World {
    let mut world = World::new();
    let ips: Vec<_> = ips.iter().map(|text| ip(text)).collect();
    world.link(9, &ips);
    change(world.node.links.last_mut().unwrap());
    world
}

fn entry(world: &World) -> Option<KernelPod> {
    world.compile().tables.interfaces.get(&9).copied()
}

#[track_caller]
fn is_stranger(world: &World) -> KernelPod {
    let entry = entry(world).expect("an entry");
    assert_eq!((entry.id, entry.policy), (PodId::of_interface(9), PolicyId::NONE));
    assert_eq!(entry.flags & KernelPod::UNLEARNED, KernelPod::UNLEARNED);
    entry
}

#[test]
fn an_end_without_a_pod_is_entered_with_what_it_carries() {
    let stranger = is_stranger(&with(&["10.1.0.9", "fd00:10::9"], |_| {}));
    assert_eq!(
        (stranger.v4, stranger.v6),
        (Addr::from(ip("10.1.0.9")), Addr::from(ip("fd00:10::9")))
    );
    assert_eq!((stranger.mac, stranger.netns), (MAC, 10));
    // Its addresses may be yet to come.
    let bare = is_stranger(&with(&[], |_| {}));
    assert!(bare.v4.is_unspecified() && bare.v6.is_unspecified());
}

#[test]
fn an_address_of_somebody_else_is_not_its_own() {
    for taken in ["10.1.0.2", "10.1.9.1", "10.1.0.1"] {
        let mut world = with(&[taken], |_| {});
        world.bind(7, "shop/web");
        world.node.addresses.insert(ip("10.1.0.1"));
        assert!(is_stranger(&world).v4.is_unspecified(), "{taken}");
    }
}

#[test]
fn other_runtimes_and_the_nodes_own_ways_are_left_alone() {
    assert_eq!(entry(&with(&["172.17.0.2"], |_| {})), None, "another runtime's container");
    assert_eq!(entry(&with(&["10.1.0.9"], |link| link.pair = false)), None, "no pair");
    let carries = |link: &mut Link| link.own_ips = vec![ip("192.168.0.1")];
    assert_eq!(entry(&with(&[], carries)), None, "the node's own address");
    is_stranger(&with(&[], |link| link.own_ips = vec![ip("10.1.0.1")]));
    let mut uplink = with(&["10.1.0.9"], |_| {});
    uplink.node.uplinks.insert(9);
    assert_eq!(entry(&uplink), None, "a default route");
    // What carries the uplink's frames; but a pod's address is a pod's, on whatever bridge.
    let port = |link: &mut Link| link.bridge = Some((5, "br0".to_owned()));
    for (ips, left) in [(&[][..], true), (&["10.1.0.9"], false)] {
        let mut world = with(ips, port);
        world.node.uplinks.insert(5);
        assert_eq!(entry(&world).is_none(), left, "{ips:?}");
    }
}

#[test]
fn the_operator_says_which_lead_to_no_pods() {
    let named = |name: &str| {
        let mut world = with(&["10.1.0.9"], |link| link.bridge = Some((5, "lxcbr0".to_owned())));
        world.node.not_pods = vec![name.to_owned()];
        entry(&world).is_none()
    };
    assert!(named("veth9") && named("veth*") && named("lxcbr0") && named("lxc*"));
    assert!(!named("veth") && !named("veth99") && !named("br*"));
}

#[test]
fn what_was_once_in_the_cluster_stays_a_pods_whatever_it_carries_later() {
    for later in [&[][..], &["172.17.0.2"], &["10.1.0.2"]] {
        let mut world = with(&["10.1.0.9"], |_| {});
        world.hold();
        world.node.links.last_mut().unwrap().ips = later.iter().map(|text| ip(text)).collect();
        assert_eq!(is_stranger(&world).v4, Addr::from(ip("10.1.0.9")), "{later:?}");
    }
    // Before it had any, it may turn out to be another runtime's.
    let mut world = with(&[], |_| {});
    world.hold();
    world.node.links.last_mut().unwrap().ips = vec![ip("172.17.0.2")];
    assert_eq!(entry(&world), None);
}

#[test]
fn a_pod_that_is_learned_takes_its_interface_over() {
    let mut world = with(&["10.1.0.9"], |_| {});
    world.hold();
    world.node.cgroups.insert("shop/late".to_owned(), 109);
    world.pod(pod("shop/late", &["10.1.0.9"]));
    assert_eq!(entry(&world).map(|entry| entry.id), Some(PodId::of("shop/late")));
}

#[test]
fn a_second_interface_of_a_pod_is_as_its_first() {
    let second = |link: &mut Link| link.netns = 7;
    let mut world = with(&["172.16.0.2"], second);
    assert_eq!(entry(&world), None, "another network");
    world = with(&[], second);
    let entry = entry(&world).unwrap();
    assert_eq!((entry.id, entry.policy), (PodId::of("shop/web"), PolicyId::of("shop")));
    // Of one that nobody governs nothing is asked.
    world.snapshot.policies.clear();
    assert_eq!(self::entry(&world), None);
}
