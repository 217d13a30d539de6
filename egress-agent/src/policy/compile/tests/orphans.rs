//! What is left of pods whose object is gone.

use egress_common::Mode;
use egress_common::key::{Addr, PodId, PolicyId};
use egress_common::state::Pod as KernelPod;

use super::fixture::*;
use crate::policy::CoverageState;

/// `shop/web`, deleted after it was compiled.
fn deleted() -> World {
    let mut world = World::new();
    world.node.verified.insert(7);
    world.hold();
    world.snapshot.pods.remove("shop/web");
    world
}

#[test]
fn a_deleted_pod_is_judged_as_it_was_while_anything_of_it_lives() {
    let world = deleted();
    let desired = world.compile();
    assert_eq!(desired.tables.pods, world.node.held.pods);
    assert_eq!(desired.tables.interfaces, world.node.held.interfaces);
    assert_eq!(desired.tables.policies, world.node.held.policies);
    assert_eq!(state(&desired, "shop/web"), CoverageState::Orphaned);
    assert_eq!(covered(&desired, "shop/web").mode, Mode::Enforce);
    assert_eq!(covered(&desired, "shop/web").pod, name("shop/web"));

    // Its cgroup is gone: a socket may live on. Then its interface.
    let mut world = deleted();
    world.node.cgroups.clear();
    assert_eq!(world.compile().tables.pods, world.node.held.pods);
    world.node.links.clear();
    let desired = world.compile();
    assert!(desired.tables.pods.is_empty() && desired.tables.interfaces.is_empty());
    // Or the other way round.
    let mut world = deleted();
    world.node.links.clear();
    let desired = world.compile();
    assert!(desired.tables.interfaces.is_empty());
    assert_eq!(desired.tables.pods[&100].policy, PolicyId::of("shop"));
    assert_eq!(desired.tables.pods[&100].flags & KernelPod::BOUNDARY, 0);
}

#[test]
fn an_agent_that_never_saw_the_object_names_the_cgroup() {
    let mut world = deleted();
    world.node.held.coverage.clear();
    let desired = world.compile();
    assert_eq!(state(&desired, "shop/web"), CoverageState::Orphaned);
    assert_eq!(desired.tables.pods, world.node.held.pods);
}

#[test]
fn its_policy_is_the_one_of_now() {
    let mut world = deleted();
    world.policy_mut("shop").mode = Mode::Audit;
    let desired = world.compile();
    assert_eq!(desired.tables.policies[&PolicyId::of("shop")].mode, Mode::Audit.number());
    // Without one only the mode is left.
    world.snapshot.policies.clear();
    let desired = world.compile();
    assert_eq!(desired.tables.policies, world.node.held.policies);
    assert!(desired.tables.ranges.keys().all(|(_, key)| key.policy != PolicyId::of("shop")));
    assert!(desired.tables.exact.keys().all(|key| key.policy() != PolicyId::of("shop")));
}

#[test]
fn its_address_is_anothers_once_the_registry_says_so() {
    let mut world = deleted();
    world.run(pod("shop/next", &["10.1.0.2"]), 101, 9);
    let desired = world.compile();
    assert_eq!(covered(&desired, "shop/next").ifindex, Some(9));
    assert_eq!(desired.tables.interfaces[&9].v4, Addr::from(ip("10.1.0.2")));
    let former = desired.tables.interfaces[&7];
    assert_eq!((former.id, former.v4), (PodId::of("shop/web"), Addr::UNSPECIFIED));
    assert_eq!(former.v6, Addr::from(ip("fd00:10::1:2")));
}

#[test]
fn a_new_object_of_the_same_cgroup_takes_over() {
    // A static pod's mirror was deleted and made anew.
    let mut world = deleted();
    let mirror = pod("shop/mirror", &["10.1.0.2"]);
    world.pod(crate::policy::Pod { cgroup_uid: "shop/web".to_owned(), ..mirror });
    let desired = world.compile();
    let id = PodId::of("shop/mirror");
    assert_eq!((desired.tables.pods[&100].id, desired.tables.interfaces[&7].id), (id, id));
    assert_eq!(state(&desired, "shop/mirror"), CoverageState::Covered);
    assert!(desired.coverage.iter().all(|pod| pod.uid != "shop/web"));
}
