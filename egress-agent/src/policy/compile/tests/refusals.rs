//! What is offered as part of a gateway and opens nothing.

use egress_common::Reason;
use egress_common::state::Capture;

use super::fixture::*;
use crate::policy::ProblemCode::{EndpointRejected, GatewayAddressClaimed, GatewayMissing};
use crate::policy::mesh::{Location, Resolution};
use crate::policy::{Declaration, Desired, GatewayTarget, RejectReason, SliceEndpoint};

/// Reasons and subjects.
fn refused(desired: &Desired) -> Vec<(RejectReason, &str)> {
    let rejected = desired.rejected.iter();
    rejected.map(|rejection| (rejection.reason, rejection.subject.as_str())).collect()
}

/// The gateway's slice with one more endpoint.
fn offer(world: &mut World, address: &str, pod: Option<&str>) {
    let mut offered = slice(
        "istio-system/poison",
        "istio-egressgateway",
        &[address],
        &[("https", 8443), ("http2", 8080)],
    );
    offered.endpoints[0].pod_uid = pod.map(ToOwned::to_owned);
    world.slice(offered);
}

#[test]
fn every_reason_an_address_is_refused_for() {
    use RejectReason::*;
    type Change = fn(&mut World);
    let nothing: Change = |_| {};
    let table: [(&str, Option<&str>, Change, RejectReason); 14] = [
        (OUTSIDE, None, nothing, NoPod),
        ("10.1.7.7", None, nothing, NoPod),
        ("169.254.169.254", None, nothing, ReservedAddress),
        ("fd00:ec2::254", None, nothing, ReservedAddress),
        ("127.0.0.1", None, nothing, ReservedAddress),
        ("240.240.0.9", None, nothing, ReservedAddress),
        ("fe80::1", None, nothing, ReservedAddress),
        // Even where a pod's status claims it.
        (
            "169.254.169.254",
            Some("istio-system/gw-9"),
            |world| world.gateway_pod("gw-9", &["169.254.169.254"]),
            ReservedAddress,
        ),
        ("10.1.9.2", Some("istio-system/former"), nothing, PodGone),
        // The pod it names is the gateway's, the address is somebody else's.
        ("10.1.0.2", Some("istio-system/gw-0"), nothing, AddressMismatch),
        (
            "10.1.9.2",
            Some("istio-system/gw-9"),
            |world| {
                world.gateway_pod("gw-9", &[]);
                world.pod_mut("istio-system/gw-9").finished = true;
            },
            NotRunning,
        ),
        ("10.1.0.2", None, nothing, WrongNamespace),
        (
            "192.168.0.1",
            None,
            |world| {
                world.gateway_pod("gw-9", &["192.168.0.1"]);
                world.pod_mut("istio-system/gw-9").host_network = true;
            },
            HostNetwork,
        ),
        (
            "10.1.9.2",
            None,
            |world| {
                world.gateway_pod("gw-9", &["10.1.9.2"]);
                world.pod_mut("istio-system/gw-9").service_account = "default".to_owned();
            },
            WrongServiceAccount,
        ),
    ];
    for (address, pod, change, reason) in table {
        let mut world = World::new();
        change(&mut world);
        offer(&mut world, address, pod);
        let desired = world.compile();
        assert_eq!(refused(&desired), [(reason, address)]);
        let problems = problems(&desired);
        assert_eq!(problems, [(EndpointRejected, "istio-system/poison")], "{address}");
        let message = &desired.problems[0].message;
        assert!(message.starts_with(address) && message.contains(GATEWAY), "{message}");
        let verdict = ask(&desired, "shop/web", address, TCP, 8443);
        assert_ne!(verdict, Reason::Gateway, "{address} {reason:?}");
        // What was there before is untouched.
        assert_eq!(ask(&desired, "shop/web", "10.1.9.1", TCP, 8443), Reason::Gateway);
    }
}

#[test]
fn a_thousand_refused_addresses_are_one_problem() {
    let mut world = World::new();
    let ports = [("https", 8443)];
    let mut poison = slice("istio-system/poison", "istio-egressgateway", &[], &ports);
    let strangers = (0..1000u32).map(|i| format!("203.0.{}.{}", 114 + i / 256, i % 256));
    poison.endpoints.push(SliceEndpoint {
        addresses: strangers.map(|text| ip(&text)).collect(),
        serving: true,
        pod_uid: None,
    });
    world.slice(poison);
    let desired = world.compile();
    assert_eq!(desired.rejected.len(), 1000);
    assert_eq!(problems(&desired), [(EndpointRejected, "istio-system/poison")]);
    assert!(desired.problems[0].message.contains("(and 999 more)"));
}

#[test]
fn a_deleted_pods_address_is_out_at_once_even_when_the_slice_still_names_it() {
    let mut world = World::new();
    world.gateway_pod("gw-1", &["10.1.9.2"]);
    offer(&mut world, "10.1.9.2", Some("istio-system/gw-1"));
    assert_eq!(world.ask("10.1.9.2", TCP, 8443), Reason::Gateway);
    world.snapshot.pods.remove("istio-system/gw-1");
    let desired = world.compile();
    assert_ne!(ask(&desired, "shop/web", "10.1.9.2", TCP, 8443), Reason::Gateway);
    assert_eq!(refused(&desired), [(RejectReason::PodGone, "10.1.9.2")]);
    // Scaling down closes nobody's way: an address nobody has leads nowhere.
    assert_eq!(ask(&desired, "shop/web", "10.96.0.20", TCP, 443), Reason::Gateway);
    // Another pod that gets the address is no gateway, and the Service would lead there.
    world.pod(pod("bank/next", &["10.1.9.2"]));
    let desired = world.compile();
    assert_ne!(ask(&desired, "shop/web", "10.1.9.2", TCP, 8443), Reason::Gateway);
    assert_ne!(ask(&desired, "shop/web", "10.96.0.20", TCP, 443), Reason::Gateway);
}

#[test]
fn a_stranger_that_does_not_serve_leaves_the_service_open() {
    let mut world = World::new();
    offer(&mut world, "10.1.0.2", None);
    assert_ne!(world.ask("10.96.0.20", TCP, 443), Reason::Gateway);
    world.snapshot.slices[2].endpoints[0].serving = false;
    assert_eq!(world.ask("10.96.0.20", TCP, 443), Reason::Gateway);
}

#[test]
fn a_slice_adds_no_port_that_the_service_does_not_have() {
    let mut world = World::new();
    let ports = [("ssh", 22), ("https", 8443)];
    world.slice(slice("istio-system/x", "istio-egressgateway", &["10.1.9.1"], &ports));
    let desired = world.compile();
    assert_eq!(ask(&desired, "shop/web", "10.1.9.1", TCP, 22), Reason::GatewayPort);
    assert_eq!(refused(&desired), [(RejectReason::UnexpectedPort, "port 22 `ssh`")]);
    // A number the Service names is the only one; a name may lead anywhere.
    world.snapshot.slices.pop();
    world.slice(slice("istio-system/x", "istio-egressgateway", &["10.1.9.1"], &[("https", 22)]));
    assert_eq!(world.ask("10.1.9.1", TCP, 22), Reason::Gateway);
    world.service_mut(GATEWAY).ports[0].target = Some(8443);
    assert_eq!(world.ask("10.1.9.1", TCP, 22), Reason::GatewayPort);
    assert_eq!(world.ask("10.1.9.1", TCP, 8443), Reason::Gateway);
    // Endpoints made by hand go where their author says.
    world.service_mut(GATEWAY).selector.clear();
    assert_eq!(world.ask("10.1.9.1", TCP, 22), Reason::Gateway);
}

#[test]
fn a_gateway_api_gateway_is_found_by_label_and_owner() {
    let mut world = World::new();
    world.gateway_api();
    let desired = world.compile();
    assert_eq!(ask(&desired, "shop/web", "10.1.9.1", TCP, 8443), Reason::Gateway);
    assert_eq!(desired.gateways[0].name.to_string(), "istio-system/out");
    assert!(desired.problems.is_empty(), "{:?}", desired.problems);
    // The name of the Service does not matter.
    let mut renamed = world.snapshot.services[&name(GATEWAY)].clone();
    renamed.name = name("istio-system/out-istio");
    world.snapshot.services.remove(&name(GATEWAY));
    world.service(renamed);
    for slice in &mut world.snapshot.slices {
        slice.service = "out-istio".to_owned();
    }
    assert_eq!(world.ask("10.1.9.1", TCP, 8443), Reason::Gateway);
}

#[test]
fn a_service_that_only_carries_the_label_is_refused() {
    type Change = fn(&mut World);
    let table: [(&str, Change, bool); 5] = [
        ("no owner", |world| world.service_mut(GATEWAY).gateway_owners.clear(), true),
        (
            "the owner of the name that was there before",
            |world| world.service_mut(GATEWAY).gateway_owners = vec!["u-former".to_owned()],
            true,
        ),
        ("no label", |world| world.service_mut(GATEWAY).labels.clear(), false),
        ("no Gateway", |world| world.snapshot.mesh.api_gateways.clear(), false),
        (
            "a Gateway without UID",
            |world| {
                for gateway in world.snapshot.mesh.api_gateways.values_mut() {
                    gateway.uid.clear();
                }
            },
            true,
        ),
    ];
    for (case, change, told) in table {
        let mut world = World::new();
        world.gateway_api();
        change(&mut world);
        let desired = world.compile();
        assert_ne!(ask(&desired, "shop/web", "10.1.9.1", TCP, 8443), Reason::Gateway, "{case}");
        assert!(problems(&desired).contains(&(GatewayMissing, "shop")), "{case}");
        let expected: &[_] = if told { &[(RejectReason::UnownedService, GATEWAY)] } else { &[] };
        assert_eq!(refused(&desired), expected, "{case}");
    }
    // One that is owned stays what it is beside one that is not.
    let mut world = World::new();
    world.gateway_api();
    let mut forged = service("istio-system/forged", &["10.96.0.99"], &[("https", 443)]);
    forged.labels = labels(&[(GATEWAY_NAME_LABEL, "out")]);
    world.service(forged);
    // And in another namespace it is nobody's business.
    let mut foreign = service("shop/x", &["10.96.0.98"], &[("https", 443)]);
    foreign.labels = labels(&[(GATEWAY_NAME_LABEL, "out")]);
    world.service(foreign);
    let desired = world.compile();
    assert_eq!(refused(&desired), [(RejectReason::UnownedService, "istio-system/forged")]);
    assert_eq!(ask(&desired, "shop/web", "10.1.9.1", TCP, 8443), Reason::Gateway);
    assert_eq!(ask(&desired, "shop/web", "10.96.0.99", TCP, 443), Reason::Cluster);
}

#[test]
fn a_pod_in_quarantine_is_out_at_once_and_no_longer_exempt() {
    let mut world = World::new();
    world.gateway_pod("gw-1", &["10.1.9.2"]);
    offer(&mut world, "10.1.9.2", Some("istio-system/gw-1"));
    world.pod_mut("istio-system/gw-1").node = Some("here".to_owned());
    world.policy(policy("mesh", &["istio-system"]));
    assert_eq!(world.ask("10.1.9.2", TCP, 8443), Reason::Gateway);
    assert_eq!(covered(&world.compile(), "istio-system/gw-1").policy, None);

    world.pod_mut("istio-system/gw-1").quarantined = true;
    let desired = world.compile();
    // Not a draining endpoint: what is open closes too.
    assert_eq!(ask(&desired, "shop/web", "10.1.9.2", TCP, 8443), Reason::GatewayPort);
    assert_eq!(refused(&desired), [(RejectReason::Quarantined, "istio-system/gw-1")]);
    assert_eq!(covered(&desired, "istio-system/gw-1").policy.as_deref(), Some("mesh"));
    // The Service may lead to it, so its own address is closed until it leaves the slice.
    assert_eq!(ask(&desired, "shop/web", "10.96.0.20", TCP, 443), Reason::GatewayPort);
    assert_eq!(ask(&desired, "shop/web", "10.1.9.1", TCP, 8443), Reason::Gateway);
    world.snapshot.slices.pop();
    assert_eq!(world.ask("10.96.0.20", TCP, 443), Reason::Gateway);
    assert_eq!(world.ask("10.1.9.2", TCP, 8443), Reason::GatewayPort);
    world.pod_mut("istio-system/gw-1").quarantined = false;
    assert!(world.compile().problems.is_empty());
}

#[test]
fn quarantine_holds_for_pods_that_are_named_directly() {
    let mut world = World::new();
    let target =
        GatewayTarget::Pods { labels: labels(&[("istio", "egressgateway")]), ports: vec![8443] };
    world.policy_mut("shop").gateways = vec![gateway(target)];
    assert_eq!(world.ask("10.1.9.1", TCP, 8443), Reason::Gateway);
    world.pod_mut("istio-system/gw-0").quarantined = true;
    assert_eq!(world.ask("10.1.9.1", TCP, 8443), Reason::GatewayPort);
    assert_eq!(refused(&world.compile()), [(RejectReason::Quarantined, "istio-system/gw-0")]);
}

#[test]
fn a_directly_named_pod_that_is_not_ready_is_draining() {
    let mut world = World::new();
    let target =
        GatewayTarget::Pods { labels: labels(&[("istio", "egressgateway")]), ports: vec![8443] };
    world.policy_mut("shop").gateways = vec![gateway(target)];
    world.pod_mut("istio-system/gw-0").ready = false;
    assert_eq!(world.ask("10.1.9.1", TCP, 8443), Reason::GatewayDraining);
}

#[test]
fn what_the_mesh_tunnels_to_is_dialled_at_15008() {
    let mut world = World::new();
    assert_eq!(world.ask("10.1.9.1", TCP, 15008), Reason::GatewayPort);
    world.pod_mut("istio-system/gw-0").capture = Capture::Ambient;
    assert_eq!(world.ask("10.1.9.1", TCP, 15008), Reason::Gateway);
    assert_eq!(world.ask("10.1.9.1", TCP, 8443), Reason::Gateway);
    let mut world = World::new();
    let managed = labels(&[
        ("istio", "egressgateway"),
        ("gateway.istio.io/managed", "istio.io-mesh-controller"),
    ]);
    world.pod_mut("istio-system/gw-0").labels = managed;
    assert_eq!(world.ask("fd00:10::9:1", TCP, 15008), Reason::Gateway);
    assert_eq!(world.ask("10.1.9.1", UDP, 15008), Reason::GatewayPort);
}

#[test]
fn a_service_entry_that_claims_the_gateways_address_changes_nothing() {
    let mut world = World::new();
    let before = world.compile();
    for claimed in ["10.1.9.1/32", "10.96.0.20/32", "10.1.9.0/24"] {
        world.snapshot.declarations = vec![Declaration {
            name: name("shop/mine"),
            hosts: vec!["mine.example".to_owned()],
            addresses: vec![net(claimed)],
            ports: Vec::new(),
            dialled: Default::default(),
            endpoints: Vec::new(),
            endpoint_hosts: Vec::new(),
            expected: Vec::new(),
            location: Location::MeshExternal,
            resolution: Resolution::None,
            export_to: Vec::new(),
            routed_by: Vec::new(),
            origin: origin("ServiceEntry", "shop/mine"),
        }];
        let desired = world.compile();
        assert_eq!(desired.tables, before.tables, "{claimed}");
        assert_eq!(problems(&desired), [(GatewayAddressClaimed, "shop/mine")], "{claimed}");
    }
    world.snapshot.declarations[0].addresses = vec![net("198.51.100.0/24")];
    assert!(world.compile().problems.is_empty());
}
