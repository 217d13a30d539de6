//! Exceptions reach the pods of their scope, their ports and their time, and nothing else.

use egress_common::Reason;
use egress_common::key::PolicyId;

use super::fixture::*;
use crate::policy::ProblemCode::IdentityCollision;

/// `shop/web` and `shop/job` under one policy; an exception for `web` alone.
fn for_web(cidr: &str) -> World {
    let mut world = World::new();
    world.pod_mut("shop/web").labels = labels(&[("app", "web")]);
    world.run(pod("shop/job", &["10.1.0.3"]), 101, 8);
    let mut only_web = exception("vendor", &["shop"], cidr);
    only_web.scope.pod_labels = labels(&[("app", "web")]);
    world.exception(only_web);
    world
}

#[test]
fn an_exception_reaches_the_pods_of_its_scope_only() {
    let desired = for_web("203.0.113.0/24").compile();
    assert_eq!(ask(&desired, "shop/web", OUTSIDE, TCP, 443), Reason::Exception);
    assert_eq!(ask(&desired, "shop/job", OUTSIDE, TCP, 443), Reason::NotGateway);
    assert_eq!(ask(&desired, "shop/web", "203.0.114.1", TCP, 443), Reason::NotGateway);
}

#[test]
fn a_variant_has_everything_its_policy_has() {
    let desired = for_web("203.0.113.0/24").compile();
    let variant = tables_of(&desired, "shop/web");
    assert_ne!(variant, PolicyId::of("shop"));
    assert_eq!(tables_of(&desired, "shop/job"), PolicyId::of("shop"));
    assert_eq!(desired.origins.policies[&variant].name, "shop");
    assert_eq!(covered(&desired, "shop/web").policy.as_deref(), Some("shop"));
    assert_eq!(desired.tables.policies[&variant], desired.tables.policies[&PolicyId::of("shop")]);
    for (dst, port, reason) in [
        ("10.1.9.1", 8443, Reason::Gateway),
        ("10.1.9.1", 1, Reason::GatewayPort),
        ("10.1.0.99", 8080, Reason::Cluster),
        ("192.168.0.1", 10250, Reason::Node),
    ] {
        assert_eq!(ask(&desired, "shop/web", dst, TCP, port), reason, "{dst} {port}");
    }
}

#[test]
fn ports_are_exact_any_of_a_protocol_or_anything() {
    for (ports, tcp443, tcp22, udp443) in [
        (&[(TCP, 443)][..], true, false, false),
        (&[(TCP, 0)], true, true, false),
        (&[(TCP, 22), (UDP, 443)], false, true, true),
        (&[], true, true, true),
    ] {
        let mut world = for_web("203.0.113.0/24");
        world.snapshot.exceptions.get_mut("vendor").unwrap().ports = ports.to_vec();
        for (protocol, port, open) in [(TCP, 443, tcp443), (TCP, 22, tcp22), (UDP, 443, udp443)] {
            let reason = if open { Reason::Exception } else { Reason::NotGateway };
            assert_eq!(world.ask(OUTSIDE, protocol, port), reason, "{ports:?} {protocol} {port}");
        }
    }
}

#[test]
fn an_exception_ends_by_the_kernels_clock() {
    let mut world = for_web("203.0.113.0/24");
    // Booted at second 1000 of the epoch; the exception ends at second 1060.
    world.node.boot_epoch = -1_000_000_000_000;
    world.snapshot.exceptions.get_mut("vendor").unwrap().expires_at = 1060;
    let desired = world.compile();
    let at = |second: u64| ask_at(&desired, "shop/web", OUTSIDE, TCP, 443, second * 1_000_000_000);
    assert_eq!(at(59), Reason::Exception);
    assert_eq!(at(60), Reason::NotGateway);
    // One that ended before the boot is never in force.
    world.snapshot.exceptions.get_mut("vendor").unwrap().expires_at = 999;
    assert_eq!(ask_at(&world.compile(), "shop/web", OUTSIDE, TCP, 443, 0), Reason::NotGateway);
}

#[test]
fn of_two_for_one_port_the_later_end_counts() {
    let mut world = for_web("203.0.113.0/24");
    world.snapshot.exceptions.get_mut("vendor").unwrap().expires_at = 60;
    let mut longer = exception("longer", &["shop"], "203.0.0.0/16");
    longer.expires_at = 90;
    world.exception(longer);
    let desired = world.compile();
    let at = |second: u64| ask_at(&desired, "shop/web", OUTSIDE, TCP, 443, second * 1_000_000_000);
    assert_eq!(at(89), Reason::Exception);
    assert_eq!(at(90), Reason::NotGateway);
}

#[test]
fn a_narrower_prefix_keeps_the_exceptions_that_cover_it() {
    let mut world = for_web("203.0.113.0/24");
    let mut narrow = exception("narrow", &["shop"], "203.0.113.10/32");
    narrow.ports = vec![(UDP, 9)];
    world.exception(narrow);
    world.policy_mut("shop").inbound_ranges = vec![net("203.0.113.0/28")];
    assert_eq!(world.ask(OUTSIDE, TCP, 443), Reason::Exception);
    assert_eq!(world.ask(OUTSIDE, UDP, 9), Reason::Exception);
    // `narrow` says nothing about its neighbour, which `vendor` covers.
    world.snapshot.exceptions.get_mut("vendor").unwrap().ports = vec![(TCP, 443)];
    assert_eq!(world.ask("203.0.113.11", UDP, 9), Reason::NotGateway);
    assert_eq!(world.ask("203.0.113.11", TCP, 443), Reason::Exception);
}

#[test]
fn an_exception_opens_no_earlier_line() {
    let desired = for_web("0.0.0.0/0").compile();
    for (dst, protocol, port, reason) in [
        (OUTSIDE, TCP, 443, Reason::Exception),
        ("169.254.169.254", TCP, 80, Reason::Metadata),
        ("240.240.0.1", TCP, 443, Reason::MeshVip),
        ("198.51.100.53", UDP, 53, Reason::ForeignResolver),
        ("10.1.9.1", TCP, 9, Reason::GatewayPort),
        ("192.168.0.1", TCP, 10250, Reason::Node),
    ] {
        assert_eq!(ask(&desired, "shop/web", dst, protocol, port), reason, "{dst} {port}");
    }
}

#[test]
fn an_exception_for_all_of_one_family_leaves_the_other_closed() {
    let six = for_web("::/0");
    assert_eq!(six.ask("2001:db8::1", TCP, 443), Reason::Exception);
    assert_eq!(six.ask(OUTSIDE, TCP, 443), Reason::NotGateway);
    let four = for_web("0.0.0.0/0");
    assert_eq!(four.ask("2001:db8::1", TCP, 443), Reason::NotGateway);
}

#[test]
fn a_set_changes_its_number_with_its_content_and_not_with_the_clock() {
    let mut world = for_web("203.0.113.0/24");
    let set = |world: &World| {
        let desired = world.compile();
        let sets: Vec<u32> = desired.tables.exceptions.keys().map(|key| key.set()).collect();
        assert_eq!(sets.len(), 1);
        sets[0]
    };
    let before = set(&world);
    world.node.boot_epoch += 17;
    assert_eq!(set(&world), before);
    world.snapshot.exceptions.get_mut("vendor").unwrap().ports = vec![(TCP, 443)];
    assert_ne!(set(&world), before);
}

#[test]
fn every_exception_entry_names_its_exception() {
    let mut world = for_web("203.0.113.0/24");
    // The same ports and end for another destination are another's.
    world.exception(exception("other", &["shop"], "198.51.100.0/24"));
    let desired = world.compile();
    assert!(desired.tables.exceptions.keys().eq(desired.origins.exceptions.keys()));
    let mut names: Vec<&str> =
        desired.origins.exceptions.values().map(|origin| &*origin.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["other", "vendor"]);
}

#[test]
fn a_variant_whose_number_is_taken_goes_without_its_exception() {
    // `shop` with this exception has the number of this policy.
    let (taken, colliding) = ("p-26019", "e-8741");
    assert_eq!(PolicyId::of(taken), PolicyId::of(&format!("shop\u{1f}{colliding}")));
    let mut world = World::new();
    world.exception(exception(colliding, &["shop"], "203.0.113.0/24"));
    assert_eq!(world.ask(OUTSIDE, TCP, 443), Reason::Exception);
    world.policy(policy(taken, &["bank"]));
    let desired = world.compile();
    assert_eq!(problems(&desired), [(IdentityCollision, colliding)]);
    assert_eq!(ask(&desired, "shop/web", OUTSIDE, TCP, 443), Reason::NotGateway);
    assert_eq!(tables_of(&desired, "shop/web"), PolicyId::of("shop"));
}
