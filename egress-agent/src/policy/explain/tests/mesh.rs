//! What the mesh's objects add to an answer.

use egress_common::Reason;
use egress_common::state::Capture;

use super::{answer, answer_with, everything};
use crate::policy::Declaration;
use crate::policy::compile::tests::fixture::{World, labels, name, net, origin};
use crate::policy::mesh::{
    EgressListener, MeshConfig, MeshGateway, MeshServer, OutboundMode, Sidecar,
};

#[test]
fn what_is_outside_is_told_by_who_declares_it() {
    let world = everything();
    let declared = Declaration {
        name: name("payments/stripe"),
        hosts: vec!["api.stripe.com".to_owned()],
        addresses: vec![net("203.0.113.0/24")],
        ports: vec![443],
        dialled: Default::default(),
        endpoints: Vec::new(),
        endpoint_hosts: Vec::new(),
        expected: Vec::new(),
        location: Default::default(),
        resolution: Default::default(),
        export_to: vec!["*".to_owned()],
        routed_by: Vec::new(),
        origin: origin("ServiceEntry", "payments/stripe"),
    };
    let fix = |declaration: &Declaration, text: &str| {
        answer_with(&world, text, std::slice::from_ref(declaration)).fix
    };
    let text = "203.0.113.10:443";
    let unrouted = fix(&declared, text);
    assert!(unrouted.contains("ServiceEntry payments/stripe declares it, but"), "{unrouted}");
    // Only the gateways of the pod's own policy are proposed.
    assert!(unrouted.contains(" istio-system/istio-egressgateway"), "{unrouted}");
    assert!(!unrouted.contains("bank/"), "{unrouted}");
    let routed = Declaration { routed_by: vec![name("payments/route")], ..declared.clone() };
    assert!(fix(&routed, text).contains("went around its proxy"));
    for (case, other) in [
        Declaration { ports: vec![80], ..declared.clone() },
        Declaration { addresses: vec![net("198.51.100.0/24")], ..declared.clone() },
    ]
    .into_iter()
    .enumerate()
    {
        assert!(fix(&other, text).starts_with("declare it with a ServiceEntry"), "{case}");
    }
    for export_to in [".", "bank"] {
        let elsewhere = Declaration { export_to: vec![export_to.to_owned()], ..declared.clone() };
        let told = fix(&elsewhere, text);
        assert!(told.contains("not for namespace shop: export it to shop"), "{told}");
    }
    let here = Declaration { export_to: vec!["shop".to_owned()], ..declared.clone() };
    assert!(fix(&here, text).contains("declares it, but"));
    assert!(fix(&declared, "203.0.113.10:443/udp").starts_with("use TCP through"));
}

#[test]
fn the_mesh_is_asked_about_what_is_outside() {
    let mut world = everything();
    let mesh = |world: &World, text: &str| answer(world, text).mesh;
    let outside = "203.0.113.10:443";
    assert_eq!(mesh(&world, "10.1.9.1:8443"), None);
    assert_eq!(
        mesh(&world, outside).unwrap(),
        "undeclared: no proxy asks whether it is",
        "the pod is not captured"
    );
    world.pod_mut("shop/web").capture = Capture::Sidecar;
    let refused = MeshConfig { outbound: Some(OutboundMode::RegistryOnly), ..Default::default() };
    assert!(mesh(&world, outside).unwrap().contains("ALLOW_ANY, by the mesh's configuration"));
    world.snapshot.mesh.configs.insert(String::new(), refused);
    assert!(mesh(&world, outside).unwrap().contains("REGISTRY_ONLY, by the mesh's configuration"));
    world.pod_mut("shop/web").capture = Capture::Ambient;
    assert!(mesh(&world, outside).unwrap().contains("ztunnel passes it on"));
}

#[test]
fn a_gateways_port_is_told_by_what_the_proxy_binds() {
    let mut world = World::new();
    let mut server = |port| {
        let gateway = MeshGateway {
            selector: labels(&[("istio", "egressgateway")]),
            servers: vec![MeshServer { port, hosts: Vec::new() }],
            origin: origin("Gateway", "istio-system/stripe"),
        };
        world.snapshot.mesh.gateways.insert(name("istio-system/stripe"), gateway);
        answer(&world, &format!("10.1.9.1:{port}")).fix
    };
    assert_eq!(
        server(443),
        "Gateway istio-system/stripe serves port 443 of Service istio-system/istio-egressgateway, \
         which its pods have at 8443: dial that"
    );
    assert!(server(4444).contains("no Service of the gateway leads there"));
}

#[test]
fn a_forbidden_gateway_is_told_by_the_object_that_forbids_it() {
    let mut world = World::new();
    world.policy_mut("shop").narrow = true;
    let own = Sidecar {
        name: name("shop/own"),
        created: None,
        selector: labels(&[]),
        egress: vec![EgressListener { port: None, hosts: vec!["./*".to_owned()] }],
        outbound: None,
        origin: origin("Sidecar", "shop/own"),
    };
    world.snapshot.mesh.sidecars = vec![own];
    for text in ["10.1.9.1:8443", "10.96.0.20:443", "10.1.9.1:22"] {
        let answer = answer(&world, text);
        assert_eq!(answer.reason, Reason::GatewayForbidden.name(), "{text}");
        assert_eq!(answer.origin.as_deref(), Some("Sidecar shop/own"), "{text}");
        assert_eq!(
            answer.fix,
            "Sidecar shop/own does not import gateway istio-system/istio-egressgateway into \
             namespace shop; add istio-system/* or the Service's name to its egress.hosts, or set \
             narrow: false in the policy"
        );
    }
}
