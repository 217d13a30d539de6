//! What is said of a connection that goes to the gateway.

use egress_common::state::Capture;
use egress_common::{Mode, Reason};

use super::*;
use crate::policy::RedirectPort;

/// `shop` redirects 443 to the gateway's TLS port, which its Service names, and 80 likewise.
fn redirecting() -> World {
    let mut world = World::new();
    let port = |port| RedirectPort { port, gateway_port: None };
    world.policy_mut("shop").redirect = vec![port(443), port(80)];
    world
}

#[test]
fn a_redirected_connection_says_where_it_goes() {
    for (text, family, endpoint) in [
        ("203.0.113.10:443", "IPv4", "10.1.9.1:8443"),
        ("[2001:db8::1]:443", "IPv6", "[fd00:10::9:1]:8443"),
    ] {
        let answer = answer(&redirecting(), text);
        let said = (answer.verdict.as_str(), answer.reason.as_str(), answer.line);
        assert_eq!(said, ("allow", "redirected", 17));
        let via = "redirected to gateway istio-system/istio-egressgateway via port 8443";
        assert!(answer.socket.starts_with(via), "{}", answer.socket);
        let entry = format!("REDIRECTS[policy shop, tcp 443, {family}] = {endpoint}");
        assert_eq!(answer.entry, Some(entry));
        assert_eq!(answer.origin.as_deref(), Some("EgressPolicy shop"));
        assert!(answer.fix.contains("raw socket, is denied as not_gateway"), "{}", answer.fix);
    }
}

#[test]
fn what_is_not_redirected_is_explained_as_before() {
    for text in ["203.0.113.10:443/udp", "203.0.113.10:9000"] {
        assert_eq!(answer(&redirecting(), text).reason, Reason::NotGateway.name(), "{text}");
    }
    let mut captured = redirecting();
    captured.pod_mut("shop/web").capture = Capture::Sidecar;
    assert_eq!(answer(&captured, "203.0.113.10:443").reason, Reason::NotGateway.name());
}

#[test]
fn in_audit_a_redirected_connection_is_a_bypass_and_the_answer_says_what_enforce_would_do() {
    let mut world = redirecting();
    world.policy_mut("shop").mode = Mode::Audit;
    let answer = answer(&world, "203.0.113.10:443");
    assert_eq!((answer.verdict.as_str(), answer.reason.as_str()), ("audit", "not_gateway"));
    assert!(answer.socket.starts_with("connect4 reports it"), "{}", answer.socket);
    assert!(answer.fix.contains("in mode enforce it is redirected to gateway"), "{}", answer.fix);
}

#[test]
fn a_redirected_port_without_an_endpoint_says_so() {
    let mut world = redirecting();
    for slice in &mut world.snapshot.slices {
        slice.endpoints[0].serving = false;
    }
    let answer = answer(&world, "203.0.113.10:443");
    assert_eq!((answer.verdict.as_str(), answer.reason.as_str()), ("drop", "redirect_unavailable"));
    assert_eq!(
        answer.entry.as_deref(),
        Some("REDIRECTS[policy shop, tcp 443, IPv4] = no endpoint")
    );
    assert!(answer.socket.contains("EPERM"), "{}", answer.socket);
    assert!(answer.fix.contains("healthy endpoint"), "{}", answer.fix);
}
