//! Where redirected connections go: the policy's ports to endpoints of its gateways.
//!
//! Only pods are dialled, never a Service's own address: the choice among them is made once, in
//! the kernel, among those that take new connections. A port without an endpoint is entered all
//! the same, so that a connection is denied with the reason and not as if nobody had asked.

use std::collections::BTreeSet;

use egress_common::key::{Addr, GatewayId, PolicyId};
use egress_common::packet::protocol;
use egress_common::redirect::{RedirectKey, RedirectTo};

use super::gateway::{Endpoint, Gateways, HBONE_PORT};
use super::identity::Variant;
use crate::policy::{
    Desired, EgressPolicy, ExactAddress, GatewayRef, NodeState, Problem, ProblemCode, RedirectPort,
};

/// Adds one policy's entries under this number; false where the policy redirects nothing, or
/// nothing can be redirected on this node.
pub(super) fn add(
    id: PolicyId,
    variant: &Variant<'_>,
    gateways: &Gateways,
    node: &NodeState,
    desired: &mut Desired,
) -> bool {
    let policy = variant.policy;
    if policy.redirect.is_empty() {
        return false;
    }
    if let Some(why) = &node.no_redirect {
        let message = format!(
            "spec.redirect is not in force on this node, and what it would redirect is denied as \
             if it were not there: {why}"
        );
        desired.problems.push(problem(policy, message));
        return false;
    }
    let own: BTreeSet<&GatewayRef> =
        policy.gateways.iter().filter(|gateway| !variant.forbidden.contains(gateway)).collect();
    let open = endpoints(&own, gateways);
    for port in &policy.redirect {
        let chosen = match chosen(port, &open) {
            Ok(chosen) => chosen,
            // That these pods may use none of the gateways is said where it is decided.
            Err(_) if own.is_empty() => Vec::new(),
            Err(message) => {
                desired.problems.push(problem(policy, message));
                Vec::new()
            }
        };
        for is_v4 in [true, false] {
            let family = |(address, _): &&Open<'_>| address.ip.is_ipv4() == is_v4;
            // Never a draining one; where all do, there is none.
            let healthy = |(_, (_, endpoint)): &&Open<'_>| !endpoint.draining;
            let own = || chosen.iter().filter(family).filter(healthy);
            let places = u16::try_from(own().count()).unwrap_or(u16::MAX);
            let key = |place| RedirectKey::new(id, port.port, is_v4, place);
            let redirects = &mut desired.tables.redirects;
            redirects.insert(key(0), RedirectTo::NOWHERE);
            for (place, (address, (gateway, _))) in (0..u32::from(places)).zip(own()) {
                let to = RedirectTo::new(Addr::from(address.ip), address.port, *gateway, places);
                redirects.insert(key(place), to);
            }
        }
    }
    true
}

/// An endpoint with its gateway.
type Open<'a> = (ExactAddress, (GatewayId, &'a Endpoint));

/// What of these gateways could take a connection, draining endpoints included. Not the
/// mesh's tunnel, which an application that knows nothing of it cannot speak.
fn endpoints<'a>(own: &BTreeSet<&GatewayRef>, gateways: &'a Gateways) -> Vec<Open<'a>> {
    let own = gateways.resolved.iter().filter(|(gateway, _)| own.contains(gateway));
    let open = own.flat_map(|(gateway, resolved)| {
        let endpoints = resolved.endpoints.iter();
        endpoints.map(|(address, endpoint)| (*address, (gateway.id(), endpoint)))
    });
    let dialled = |(address, (_, endpoint)): &Open<'_>| {
        let tunnel = address.port == HBONE_PORT;
        endpoint.pod.is_some() && address.protocol == protocol::TCP && !tunnel
    };
    open.filter(dialled).collect()
}

/// The endpoints that take this port: those on the gateway port that is named; else those that a
/// Service of a gateway maps the port to; else those on the port itself; else those on the only
/// port there is.
fn chosen<'a>(port: &RedirectPort, open: &[Open<'a>]) -> Result<Vec<Open<'a>>, String> {
    let on = |wanted: &dyn Fn(&Open<'a>) -> bool| -> Vec<Open<'a>> {
        open.iter().filter(|one| wanted(one)).copied().collect()
    };
    let ports: BTreeSet<u16> = open.iter().map(|(address, _)| address.port).collect();
    let RedirectPort { port, gateway_port } = *port;
    let named = gateway_port.unwrap_or(port);
    let own = on(&|(address, _)| address.port == named);
    let served = on(&|(_, (_, endpoint))| endpoint.serves.contains(&named));
    let found = match gateway_port {
        // A Service's port is understood too, where no pod listens on one of that number.
        Some(_) if own.is_empty() => served,
        Some(_) => own,
        None if !served.is_empty() => served,
        None if own.is_empty() && ports.len() == 1 => open.to_vec(),
        None => own,
    };
    if !found.is_empty() {
        return Ok(found);
    }
    let there: Vec<String> = ports.iter().map(u16::to_string).collect();
    Err(match (there.as_slice(), gateway_port) {
        ([], _) => format!(
            "redirects port {port}, but its gateways have no endpoint, so the connections are \
             denied as redirect_unavailable; see the gateways' own problems"
        ),
        (there, Some(gateway_port)) => format!(
            "redirects port {port} to gateway port {gateway_port}, which no endpoint of its \
             gateways has (they have {}), so the connections are denied as redirect_unavailable; \
             correct spec.redirect.ports",
            there.join(", ")
        ),
        (there, None) => format!(
            "redirects port {port}, but no Service of its gateways has that port and their \
             endpoints have several ({}), so the connections are denied as redirect_unavailable; \
             say which takes it, as in spec.redirect.ports: [{{port: {port}, gatewayPort: {}}}]",
            there.join(", "),
            there.last().map_or("", String::as_str)
        ),
    })
}

fn problem(policy: &EgressPolicy, message: String) -> Problem {
    Problem { code: ProblemCode::RedirectUnavailable, origin: policy.origin.clone(), message }
}
