//! Where redirected connections go.

use egress_common::key::{Addr, GatewayId, PolicyId};
use egress_common::redirect::{RedirectKey, RedirectTo};

use super::fixture::*;
use crate::policy::ProblemCode::RedirectUnavailable;
use crate::policy::{Desired, GatewayTarget, RedirectPort};

fn redirecting(ports: &[(u16, Option<u16>)]) -> World {
    let mut world = World::new();
    let port = |(port, gateway_port): &(u16, Option<u16>)| RedirectPort {
        port: *port,
        gateway_port: *gateway_port,
    };
    world.policy_mut("shop").redirect = ports.iter().map(port).collect();
    world
}

/// What `shop` has for a port of a family, by place.
fn places(desired: &Desired, port: u16, is_v4: bool) -> Vec<RedirectTo> {
    let shop = PolicyId::of("shop");
    let own = desired
        .tables
        .redirects
        .iter()
        .filter(|(key, _)| key.policy() == shop && key.port() == port && key.is_v4() == is_v4);
    own.map(|(_, to)| *to).collect()
}

fn to(text: &str, port: u16, places: u16) -> RedirectTo {
    let gateway = GatewayId::of("istio-system", "istio-egressgateway");
    RedirectTo::new(Addr::from(ip(text)), port, gateway, places)
}

fn redirects(desired: &Desired) -> bool {
    desired.tables.policies[&PolicyId::of("shop")].redirect != 0
}

#[test]
fn a_port_goes_to_what_the_gateways_service_maps_it_to() {
    let desired = redirecting(&[(443, None), (80, None)]).compile();
    assert!(redirects(&desired));
    assert_eq!(places(&desired, 443, true), [to("10.1.9.1", 8443, 1)]);
    assert_eq!(places(&desired, 443, false), [to("fd00:10::9:1", 8443, 1)]);
    assert_eq!(places(&desired, 80, true), [to("10.1.9.1", 8080, 1)]);
    assert!(desired.problems.is_empty(), "{:?}", desired.problems);
}

#[test]
fn a_named_gateway_port_is_the_pods_or_else_the_services() {
    for (named, port) in [(8080, 8080), (8443, 8443), (80, 8080), (443, 8443)] {
        let desired = redirecting(&[(4443, Some(named))]).compile();
        assert_eq!(places(&desired, 4443, true), [to("10.1.9.1", port, 1)], "{named}");
    }
}

#[test]
fn pods_named_by_labels_take_their_own_port_or_their_only_one() {
    let by_labels = |ports: &[u16]| {
        let mut world = redirecting(&[(443, None)]);
        let pods = GatewayTarget::Pods {
            labels: labels(&[("istio", "egressgateway")]),
            ports: ports.to_vec(),
        };
        world.policy_mut("shop").gateways = vec![gateway(pods)];
        let desired = world.compile();
        let found: Vec<u16> = places(&desired, 443, true).iter().map(RedirectTo::port).collect();
        (found, problems(&desired).len())
    };
    assert_eq!(by_labels(&[443, 8080]), (vec![443], 0));
    assert_eq!(by_labels(&[8443]), (vec![8443], 0));
    assert_eq!(by_labels(&[8443, 8080]), (vec![0], 1));
}

#[test]
fn endpoints_have_places_and_draining_ones_none() {
    let mut world = redirecting(&[(443, None)]);
    let ports = [("https", 8443)];
    for (i, serving) in [(2, true), (3, false)] {
        let ip = format!("10.1.9.{i}");
        world.gateway_pod(&format!("gw-{i}"), &[&ip]);
        let mut more = slice(&format!("istio-system/x-{i}"), "istio-egressgateway", &[&ip], &ports);
        more.endpoints[0].serving = serving;
        world.slice(more);
    }
    let desired = world.compile();
    let expected = [to("10.1.9.1", 8443, 2), to("10.1.9.2", 8443, 2)];
    assert_eq!(places(&desired, 443, true), expected);
    // The Service's own address, which kube-proxy would spread itself, is no place.
    assert_eq!(places(&desired, 443, false), [to("fd00:10::9:1", 8443, 1)]);
}

#[test]
fn a_port_without_an_endpoint_is_entered_as_such_and_reported() {
    for (ports, expected) in [
        (&[(443, Some(9999))][..], "to gateway port 9999, which no endpoint of its gateways has"),
        (
            &[(8000, None)],
            "say which takes it, as in spec.redirect.ports: [{port: 8000, gatewayPort: 8443}]",
        ),
    ] {
        let desired = redirecting(ports).compile();
        assert!(redirects(&desired));
        for is_v4 in [true, false] {
            assert_eq!(places(&desired, ports[0].0, is_v4), [RedirectTo::NOWHERE]);
        }
        assert_eq!(problems(&desired), [(RedirectUnavailable, "shop")]);
        assert!(desired.problems[0].message.contains(expected), "{}", desired.problems[0].message);
    }
}

#[test]
fn a_family_without_an_endpoint_is_no_problem_and_nowhere() {
    let mut world = redirecting(&[(443, None)]);
    world.snapshot.slices.retain(|slice| !slice.name.name.ends_with("v6"));
    let desired = world.compile();
    assert_eq!(places(&desired, 443, false), [RedirectTo::NOWHERE]);
    assert!(desired.problems.is_empty());
}

#[test]
fn a_node_that_cannot_redirect_does_not_and_says_why() {
    let mut world = redirecting(&[(443, None)]);
    world.node.no_redirect = Some("cannot load program getpeername4".to_owned());
    let desired = world.compile();
    assert!(!redirects(&desired));
    assert!(desired.tables.redirects.is_empty());
    assert_eq!(problems(&desired), [(RedirectUnavailable, "shop")]);
    assert!(desired.problems[0].message.contains("cannot load program getpeername4"));
}

#[test]
fn a_policy_that_redirects_nothing_has_no_flag_and_no_entry() {
    let desired = World::new().compile();
    assert!(!redirects(&desired) && desired.tables.redirects.is_empty());
    assert_eq!(places(&desired, 443, true), []);
    assert_eq!(RedirectKey::new(PolicyId(1), 443, true, 3).place(), 3);
}
