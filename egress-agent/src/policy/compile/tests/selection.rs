//! Which policy governs a pod.

use egress_common::key::PolicyId;

use super::fixture::*;
use crate::policy::ProblemCode::PolicyOverlap;
use crate::policy::Selector;

fn governing(world: &World) -> Option<String> {
    covered(&world.compile(), "shop/web").policy.clone()
}

#[test]
fn the_highest_priority_governs() {
    let mut world = World::new();
    let mut strict = policy("strict", &["shop"]);
    strict.priority = 1;
    world.policy(strict);
    assert_eq!(governing(&world).as_deref(), Some("strict"));
    assert_eq!(tables_of(&world.compile(), "shop/web"), PolicyId::of("strict"));
    assert!(world.compile().problems.is_empty());
}

#[test]
fn among_equals_the_oldest_governs_and_without_a_date_counts_as_newest() {
    let mut world = World::new();
    let mut old = policy("zeta", &["shop"]);
    old.created = Some(1);
    world.policy(old);
    assert_eq!(governing(&world).as_deref(), Some("zeta"));
    world.policy_mut("shop").created = Some(0);
    assert_eq!(governing(&world).as_deref(), Some("shop"));
}

#[test]
fn among_equals_of_one_age_the_name_decides() {
    let mut world = World::new();
    world.policy(policy("a", &["shop"]));
    assert_eq!(governing(&world).as_deref(), Some("a"));
}

#[test]
fn a_pod_selected_twice_with_one_priority_is_named() {
    let mut world = World::new();
    world.policy(policy("a", &["shop"]));
    world.run(pod("shop/job", &["10.1.0.3"]), 101, 8);
    let desired = world.compile();
    // One problem for the pair, not one for each pod.
    assert_eq!(problems(&desired), [(PolicyOverlap, "shop")]);
    let message = &desired.problems[0].message;
    for part in ["shop/job and 1 other pod", "EgressPolicy a", "a governs"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn an_overlap_that_governs_nobody_is_no_problem() {
    let mut world = World::new();
    world.policy(policy("a", &["shop"]));
    world.cluster.exempt_namespaces.push("shop".to_owned());
    assert_eq!(problems(&world.compile()), []);
}

#[test]
fn every_given_part_of_a_selector_must_match() {
    let mut world = World::new();
    world.pod_mut("shop/web").labels = labels(&[("app", "web"), ("tier", "front")]);
    let select = |namespaces: &[&str], ns: &[(&str, &str)], pod: &[(&str, &str)]| Selector {
        namespace_labels: labels(ns),
        pod_labels: labels(pod),
        ..in_namespaces(namespaces)
    };
    for (selector, selected) in [
        (select(&[], &[], &[]), true),
        (select(&["shop"], &[], &[]), true),
        (select(&["bank", "shop"], &[], &[]), true),
        (select(&["bank"], &[], &[]), false),
        (select(&[], &[("team", "shop")], &[]), true),
        (select(&[], &[("team", "bank")], &[]), false),
        (select(&[], &[], &[("app", "web")]), true),
        (select(&[], &[], &[("app", "web"), ("tier", "back")]), false),
        (select(&["shop"], &[("team", "shop")], &[("app", "job")]), false),
    ] {
        world.policy_mut("shop").selector = selector.clone();
        assert_eq!(governing(&world).is_some(), selected, "{selector:?}");
    }
}

#[test]
fn two_policies_with_one_number_are_never_merged() {
    // Found by search: both names fold to the same 32 bits.
    let (first, second) = colliding();
    let mut world = World::new();
    world.snapshot.policies.clear();
    let mut older = policy(first, &["bank"]);
    older.created = Some(1);
    world.policy(older);
    world.policy(policy(second, &["shop"]));
    let desired = world.compile();
    let code = crate::policy::ProblemCode::IdentityCollision;
    assert_eq!(problems(&desired), [(code, second)]);
    assert_eq!(tables_of(&desired, "shop/web"), PolicyId::NONE);
    // The policy that would have been next governs instead.
    world.policy(policy("zz-fallback", &["shop"]));
    assert_eq!(tables_of(&world.compile(), "shop/web"), PolicyId::of("zz-fallback"));
}

fn colliding() -> (&'static str, &'static str) {
    let pair = ("policy-5343", "policy-13568");
    assert_eq!(PolicyId::of(pair.0), PolicyId::of(pair.1));
    pair
}
