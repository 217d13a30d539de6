//! Server port, Service port, target port.

use super::*;
use crate::policy::compile::tests::fixture::{GATEWAY, World, labels, name, origin, pod, service};
use crate::policy::mesh::MeshServer;

/// An Istio Gateway with servers on these ports.
fn gateway(selector: &[(&str, &str)], ports: &[u16]) -> MeshGateway {
    let server = |port: &u16| MeshServer { port: *port, hosts: vec!["api.example".to_owned()] };
    MeshGateway {
        selector: labels(selector),
        servers: ports.iter().map(server).collect(),
        origin: origin("Gateway", "shop/mine"),
    }
}

const EGRESS: &[(&str, &str)] = &[("istio", "egressgateway")];

/// Pod, target and whether a Service leads there.
fn found(world: &World, gateway: &MeshGateway) -> Vec<(String, u16, bool)> {
    let all = listening(&world.snapshot, gateway).into_iter();
    all.map(|one| (one.pod.to_string(), one.target, one.service.is_some())).collect()
}

#[test]
fn a_servers_port_is_the_services_and_the_proxy_binds_its_target() {
    let mut world = World::new();
    let gw = "istio-system/gw-0".to_owned();
    assert_eq!(found(&world, &gateway(EGRESS, &[443])), [(gw.clone(), 8443, true)]);
    // By number where the Service says so.
    world.service_mut(GATEWAY).ports[0].target = Some(9443);
    assert_eq!(found(&world, &gateway(EGRESS, &[443])), [(gw.clone(), 9443, true)]);
    // The target's own number is no port of the Service, and neither is an invented one.
    for number in [8443, 4444] {
        assert_eq!(found(&world, &gateway(EGRESS, &[number])), [(gw.clone(), number, false)]);
    }
}

#[test]
fn a_gateways_selector_matches_pods_of_every_namespace() {
    let mut world = World::new();
    let mut theirs = pod("bank/gw", &["10.1.8.1"]);
    theirs.labels = labels(EGRESS);
    world.pod(theirs);
    let mut front = service("bank/front", &["10.96.0.30"], &[("tls", 443)]);
    front.selector = labels(EGRESS);
    front.ports[0].target = Some(443);
    world.service(front);
    assert_eq!(
        found(&world, &gateway(EGRESS, &[443])),
        [("bank/gw".to_owned(), 443, true), ("istio-system/gw-0".to_owned(), 8443, true)]
    );
    let all = [("istio", "egressgateway"), ("more", "labels")];
    assert!(found(&world, &gateway(&all, &[443])).is_empty());
}

#[test]
fn of_several_services_the_first_that_leads_anywhere_counts() {
    let mut world = World::new();
    let mut first = service("istio-system/a-first", &["10.96.0.31"], &[("other", 80)]);
    first.selector = labels(EGRESS);
    world.service(first.clone());
    assert_eq!(found(&world, &gateway(EGRESS, &[443]))[0].1, 8443);
    first.ports[0].port = 443;
    first.ports[0].target = Some(7443);
    world.service(first);
    let listening = listening(&world.snapshot, &gateway(EGRESS, &[443]));
    let one = listening.first().unwrap();
    assert_eq!((one.target, one.service.clone()), (7443, Some(name("istio-system/a-first"))));
}
