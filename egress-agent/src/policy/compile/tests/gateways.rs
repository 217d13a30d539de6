//! What of a gateway may be dialled.

use egress_common::Reason;
use egress_common::state::address;

use super::fixture::*;
use crate::policy::ProblemCode::{
    EndpointRejected, GatewayEmpty, GatewayMissing, IdentityCollision,
};
use crate::policy::{GatewayEndpoint, GatewayState, GatewayTarget};

fn only(state: &[GatewayState]) -> &GatewayState {
    assert_eq!(state.len(), 1);
    &state[0]
}

#[test]
fn endpoints_are_pods_at_target_ports_and_the_service_at_its_own() {
    let desired = World::new().compile();
    let endpoint = |text: &str, port: u16, behind: Option<&str>| GatewayEndpoint {
        address: exact_address(text, TCP, port),
        draining: false,
        pod: behind.map(name),
    };
    let pod = Some("istio-system/gw-0");
    let gateway = only(&desired.gateways);
    assert_eq!(
        gateway.endpoints,
        [
            endpoint("10.1.9.1", 8080, pod),
            endpoint("10.1.9.1", 8443, pod),
            endpoint("10.96.0.20", 80, None),
            endpoint("10.96.0.20", 443, None),
            endpoint("fd00:10::9:1", 8080, pod),
            endpoint("fd00:10::9:1", 8443, pod),
            endpoint("fd00:10::96:20", 80, None),
            endpoint("fd00:10::96:20", 443, None),
        ]
    );
    assert_eq!(gateway.name.to_string(), GATEWAY);
    assert_eq!(gateway.policies, ["shop"]);
    assert!(desired.problems.is_empty());
}

#[test]
fn only_exact_endpoints_are_allowed() {
    let world = World::new();
    for (dst, protocol, port, reason) in [
        ("10.1.9.1", TCP, 8443, Reason::Gateway),
        ("fd00:10::9:1", TCP, 8080, Reason::Gateway),
        ("10.96.0.20", TCP, 443, Reason::Gateway),
        // The Service's port is not the pod's.
        ("10.1.9.1", TCP, 443, Reason::GatewayPort),
        ("10.96.0.20", TCP, 8443, Reason::GatewayPort),
        ("10.1.9.1", UDP, 8443, Reason::GatewayPort),
        // Health is for the kubelet.
        ("10.1.9.1", TCP, 15021, Reason::GatewayPort),
    ] {
        assert_eq!(world.ask(dst, protocol, port), reason, "{dst} {protocol} {port}");
    }
}

#[test]
fn a_slice_adds_no_address_that_is_not_a_pods() {
    let mut world = World::new();
    let ports = [("https", 8443)];
    world.slice(slice("istio-system/x", "istio-egressgateway", &[OUTSIDE], &ports));
    assert_eq!(world.ask(OUTSIDE, TCP, 8443), Reason::NotGateway);
    let desired = world.compile();
    assert_eq!(problems(&desired), [(EndpointRejected, "istio-system/x")]);
    assert!(desired.problems[0].message.contains(OUTSIDE));
}

#[test]
fn a_slice_of_another_namespace_adds_nothing() {
    let mut world = World::new();
    let ports = [("https", 8443)];
    world.slice(slice("shop/x", "istio-egressgateway", &["10.1.9.1"], &[("ssh", 22)]));
    world.slice(slice("shop/y", "istio-egressgateway", &[OUTSIDE], &ports));
    assert_eq!(world.ask("10.1.9.1", TCP, 22), Reason::GatewayPort);
    assert!(world.compile().problems.is_empty());
}

#[test]
fn a_pod_must_run_as_the_pinned_account_in_the_namespace_on_its_own_network() {
    let cases: [fn(&mut crate::policy::Pod); 4] = [
        |pod| pod.service_account = "default".to_owned(),
        |pod| pod.name.namespace = "shop".to_owned(),
        |pod| pod.host_network = true,
        |pod| pod.finished = true,
    ];
    for (case, change) in cases.into_iter().enumerate() {
        let mut world = World::new();
        change(world.pod_mut("istio-system/gw-0"));
        let desired = world.compile();
        assert!(only(&desired.gateways).endpoints.is_empty(), "{case}");
        assert_ne!(ask(&desired, "shop/web", "10.1.9.1", TCP, 8443), Reason::Gateway, "{case}");
        let codes: Vec<_> = problems(&desired).into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, [GatewayEmpty, EndpointRejected, EndpointRejected], "{case}");
    }
}

#[test]
fn a_target_reference_must_name_the_pod_with_the_address() {
    let mut world = World::new();
    for (uid, reason) in
        [("istio-system/gw-0", Reason::Gateway), ("istio-system/former", Reason::GatewayPort)]
    {
        for slice in &mut world.snapshot.slices {
            slice.endpoints[0].pod_uid = Some(uid.to_owned());
        }
        assert_eq!(world.ask("10.1.9.1", TCP, 8443), reason, "{uid}");
    }
}

#[test]
fn a_pod_that_does_not_run_yet_is_no_endpoint_and_no_problem() {
    let mut world = World::new();
    world.gateway_pod("gw-1", &["10.1.9.2"]);
    world.pod_mut("istio-system/gw-1").running = false;
    let ports = [("https", 8443)];
    world.slice(slice("istio-system/x", "istio-egressgateway", &["10.1.9.2"], &ports));
    assert_eq!(world.ask("10.1.9.2", TCP, 8443), Reason::GatewayPort);
    assert_eq!(world.ask("10.96.0.20", TCP, 443), Reason::Gateway);
    assert!(world.compile().problems.is_empty());
}

#[test]
fn an_endpoint_that_does_not_serve_is_draining() {
    let mut world = World::new();
    world.gateway_pod("gw-1", &["10.1.9.2"]);
    let ports = [("https", 8443)];
    let mut leaving = slice("istio-system/x", "istio-egressgateway", &["10.1.9.2"], &ports);
    leaving.endpoints[0].serving = false;
    world.slice(leaving);
    assert_eq!(world.ask("10.1.9.2", TCP, 8443), Reason::GatewayDraining);
    assert_eq!(world.ask("10.96.0.20", TCP, 443), Reason::Gateway);
    // Of two slices that disagree, one that serves is enough, whichever is read first.
    let mut stale = slice("istio-system/a", "istio-egressgateway", &["10.1.9.1"], &ports);
    stale.endpoints[0].serving = false;
    world.slice(stale);
    world.slice(slice("istio-system/z", "istio-egressgateway", &["10.1.9.2"], &ports));
    assert_eq!(world.ask("10.1.9.1", TCP, 8443), Reason::Gateway);
    assert_eq!(world.ask("10.1.9.2", TCP, 8443), Reason::Gateway);
    // When all of them leave, nothing new goes to the Service either.
    for slice in &mut world.snapshot.slices {
        slice.endpoints[0].serving = false;
    }
    assert_eq!(world.ask("10.96.0.20", TCP, 443), Reason::GatewayDraining);
}

#[test]
fn the_services_own_address_is_closed_with_a_stranger_behind_it() {
    let mut world = World::new();
    // An in-cluster stranger: kube-proxy would send some connections there.
    world.pod(pod("shop/relay", &["10.1.0.66"]));
    let ports = [("https", 8443)];
    world.slice(slice("istio-system/x", "istio-egressgateway", &["10.1.0.66"], &ports));
    assert_eq!(world.ask("10.96.0.20", TCP, 443), Reason::GatewayPort);
    assert_eq!(world.ask("10.1.9.1", TCP, 8443), Reason::Gateway);
}

#[test]
fn an_endpoint_that_left_its_slice_is_closed() {
    let mut world = World::new();
    world.snapshot.slices.clear();
    let desired = world.compile();
    // Not "some pod of the cluster": it is still the gateway's.
    assert_eq!(ask(&desired, "shop/web", "10.1.9.1", TCP, 8443), Reason::GatewayPort);
    assert_eq!(ask(&desired, "shop/web", "10.96.0.20", TCP, 443), Reason::GatewayPort);
    assert_eq!(problems(&desired), [(GatewayEmpty, "shop")]);
}

#[test]
fn a_missing_gateway_opens_nothing_and_is_named_for_each_policy() {
    let mut world = World::new();
    world.snapshot.services.clear();
    let mut other = policy("bank", &["bank"]);
    other.gateways.clone_from(&world.policy_mut("shop").gateways);
    world.policy(other);
    let desired = world.compile();
    assert_eq!(problems(&desired), [(GatewayMissing, "bank"), (GatewayMissing, "shop")]);
    assert!(desired.problems[0].message.contains(GATEWAY));
    assert_eq!(only(&desired.gateways).policies, ["bank", "shop"]);
    assert!(only(&desired.gateways).endpoints.is_empty());
}

#[test]
fn pods_named_directly_are_dialled_at_the_listed_ports() {
    let mut world = World::new();
    let target =
        GatewayTarget::Pods { labels: labels(&[("istio", "egressgateway")]), ports: vec![15008] };
    world.policy_mut("shop").gateways = vec![gateway(target)];
    assert_eq!(world.ask("10.1.9.1", TCP, 15008), Reason::Gateway);
    assert_eq!(world.ask("10.1.9.1", TCP, 8443), Reason::GatewayPort);
    assert_eq!(world.ask("10.1.9.1", UDP, 15008), Reason::GatewayPort);
    world.pod_mut("istio-system/gw-0").labels.clear();
    assert_eq!(problems(&world.compile()), [(GatewayMissing, "shop")]);
    assert_eq!(world.ask("10.1.9.1", TCP, 15008), Reason::Cluster);
}

#[test]
fn another_policys_gateway_is_forbidden() {
    let mut world = World::new();
    let gateways = std::mem::take(&mut world.policy_mut("shop").gateways);
    let mut other = policy("bank", &["bank"]);
    other.gateways = gateways;
    world.policy(other);
    for (dst, port) in [("10.1.9.1", 8443), ("10.1.9.1", 1), ("10.96.0.20", 443)] {
        assert_eq!(world.ask(dst, TCP, port), Reason::GatewayForbidden, "{dst} {port}");
    }
    assert_eq!(bits(&world.compile(), "10.1.9.1"), address::FOREIGN_GATEWAY);
    // One that both name is the pod's own.
    let gateways = world.policy_mut("bank").gateways.clone();
    world.policy_mut("shop").gateways = gateways;
    assert_eq!(world.ask("10.1.9.1", TCP, 8443), Reason::Gateway);
    assert_eq!(bits(&world.compile(), "10.1.9.1"), address::GATEWAY);
}

#[test]
fn another_service_is_no_way_to_a_gateways_pods() {
    let mut world = World::new();
    world.namespace("bank", &[]);
    world.run(pod("bank/ledger", &["10.1.0.3", "fd00:10::1:3"]), 101, 8);
    world.policy(policy("bank", &["bank"]));
    // Whoever may write slices could make it; a Service for metrics is one as well.
    world.service(service("bank/shortcut", &["10.96.0.66", "fd00:10::66"], &[("https", 443)]));
    world.slice(slice("bank/shortcut-a", "shortcut", &["10.1.9.1"], &[("https", 8443)]));
    let desired = world.compile();
    for ip in ["10.96.0.66", "fd00:10::66"] {
        assert_eq!(ask(&desired, "shop/web", ip, TCP, 443), Reason::GatewayPort, "{ip}");
        assert_eq!(ask(&desired, "bank/ledger", ip, TCP, 443), Reason::GatewayForbidden, "{ip}");
    }
    // One that leads elsewhere is a plain Service.
    world.snapshot.slices.retain(|slice| slice.service != "shortcut");
    world.slice(slice("bank/shortcut-a", "shortcut", &["10.1.0.3"], &[("https", 8443)]));
    assert_eq!(ask(&world.compile(), "shop/web", "10.96.0.66", TCP, 443), Reason::Cluster);
}

#[test]
fn two_gateways_with_one_number_are_never_merged() {
    let (first, second) = ("gateway-12296", "gateway-63972");
    let target = |name: &str| gateway(GatewayTarget::Service(name.to_owned()));
    assert_eq!(target(first).id(), target(second).id());
    let mut world = World::new();
    world.policy_mut("shop").gateways = vec![target(second), target(first)];
    for (i, name) in [first, second].into_iter().enumerate() {
        world.gateway_pod(name, &[&format!("10.1.8.{i}")]);
        world.service(service(&format!("istio-system/{name}"), &[], &[("https", 443)]));
        let ips = &[&*format!("10.1.8.{i}")];
        world.slice(slice(&format!("istio-system/{name}"), name, ips, &[("https", 8443)]));
    }
    let desired = world.compile();
    assert_eq!(problems(&desired), [(IdentityCollision, "shop")]);
    assert!(desired.problems[0].message.contains(second));
    assert_eq!(ask(&desired, "shop/web", "10.1.8.0", TCP, 8443), Reason::Gateway);
    assert_eq!(ask(&desired, "shop/web", "10.1.8.1", TCP, 8443), Reason::GatewayPort);
}
