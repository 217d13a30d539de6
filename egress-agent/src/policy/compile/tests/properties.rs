//! What holds for every snapshot.

use egress_common::Reason;
use egress_common::state::range;
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::fixture::*;
use crate::policy::mesh::{
    Attachment, Authorization, AuthorizationAction, AuthorizationRule, EgressListener, Mesh,
    NamespaceCondition, Sidecar,
};

/// Addresses that objects and questions draw from: inside, outside, and on both sides' edges.
fn any_ip() -> impl Strategy<Value = &'static str> {
    select(vec![
        "10.1.0.2",
        "10.1.9.1",
        "10.1.9.2",
        "10.96.0.20",
        "10.255.255.255",
        "11.0.0.0",
        "9.255.255.255",
        "192.168.0.1",
        "169.254.169.254",
        "169.254.7.127",
        "203.0.113.10",
        "198.51.100.1",
        "8.8.8.8",
        "fd00:10::1:2",
        "fd00:10::9:1",
        "fd00:11::",
        "2001:db8::1",
        "2001:4860:4860::8888",
        "::2",
    ])
}

fn any_port() -> impl Strategy<Value = u16> {
    select(vec![22u16, 53, 80, 443, 853, 6443, 8080, 8443, 15008, 15012, 15021])
}

/// Worlds whose Services, slices and pods were written by somebody who wants out: everything in
/// them but policies, exceptions, nodes and configuration is arbitrary.
fn hostile() -> impl Strategy<Value = World> {
    let namespace = || select(vec!["shop", "istio-system", "kube-system", "default"]);
    let named = || {
        let names = ["istio-egressgateway", "kubernetes", "kube-dns", "istiod", "x"];
        (namespace(), select(names.to_vec()))
    };
    let slices =
        vec((named(), vec(any_ip(), 1..3), any_port(), any::<bool>(), any::<bool>()), 0..6);
    let services = vec((named(), vec(any_ip(), 0..2), any_port(), vec(any_ip(), 0..2)), 0..4);
    let pods = vec((namespace(), any_ip(), select(vec!["egress", "default"])), 0..4);
    (slices, services, pods).prop_map(|(slices, services, pods)| {
        let mut world = World::new();
        for (i, ((namespace, of), ips, port, serving, referenced)) in slices.into_iter().enumerate()
        {
            let full = format!("{namespace}/slice-{i}");
            let mut slice = slice(&full, of, &ips, &[("https", port)]);
            for endpoint in &mut slice.endpoints {
                endpoint.serving = serving;
                endpoint.pod_uid = referenced.then(|| "istio-system/gw-0".to_owned());
            }
            world.slice(slice);
        }
        for ((namespace, name), ips, port, external) in services {
            let full = format!("{namespace}/{name}");
            let mut service = service(&full, &ips, &[("https", port)]);
            service.external_ips = external.iter().map(|text| ip(text)).collect();
            service.labels = labels(&[("app", "istiod"), ("k8s-app", "kube-dns")]);
            world.service(service);
        }
        for (i, (namespace, ip, account)) in pods.into_iter().enumerate() {
            let mut pod = pod(&format!("{namespace}/pod-{i}"), &[ip]);
            pod.service_account = account.to_owned();
            pod.labels = labels(&[("istio", "egressgateway")]);
            pod.node = Some("elsewhere".to_owned());
            world.pod(pod);
        }
        world
    })
}

/// What tenants and operators may write into the mesh.
fn any_mesh() -> impl Strategy<Value = Mesh> {
    let namespace = || select(vec!["shop", "istio-system", "bank"]);
    let pairs = || select(vec![&[][..], &[("istio", "egressgateway")], &[("app", "web")]]);
    let action = select(vec![
        AuthorizationAction::Allow,
        AuthorizationAction::Deny,
        AuthorizationAction::Custom,
        AuthorizationAction::Audit,
    ]);
    let rule = (vec(namespace(), 0..3), vec(namespace(), 0..2), any::<bool>());
    let authorizations = vec((namespace(), pairs(), action, vec(rule, 0..3)), 0..4);
    let host = select(vec!["./*", "*/*", "~/*", "istio-system/*", "shop/x.example", "nonsense"]);
    let sidecars = vec((namespace(), pairs(), vec(host, 0..3)), 0..4);
    (authorizations, sidecars).prop_map(|(authorizations, sidecars)| {
        let mut mesh = Mesh::default();
        let texts = |list: Vec<&str>| list.into_iter().map(ToOwned::to_owned).collect();
        for (i, (namespace, pairs, action, rules)) in authorizations.into_iter().enumerate() {
            let full = format!("{namespace}/authorization-{i}");
            let rule = |(values, not_values, qualified)| AuthorizationRule {
                when: vec![NamespaceCondition {
                    values: texts(values),
                    not_values: texts(not_values),
                }],
                qualified,
                ..AuthorizationRule::default()
            };
            mesh.authorizations.push(Authorization {
                name: name(&full),
                action,
                attachment: Attachment::Pods(labels(pairs)),
                rules: rules.into_iter().map(rule).collect(),
                origin: origin("AuthorizationPolicy", &full),
            });
        }
        for (i, (namespace, pairs, hosts)) in sidecars.into_iter().enumerate() {
            let full = format!("{namespace}/sidecar-{i}");
            let listener = EgressListener { port: None, hosts: texts(hosts) };
            mesh.sidecars.push(Sidecar {
                name: name(&full),
                created: None,
                selector: labels(pairs),
                egress: vec![listener],
                outbound: None,
                origin: origin("Sidecar", &full),
            });
        }
        mesh
    })
}

/// Whether a policy, the configuration or a node's own word puts the address inside.
fn is_inside(world: &World, dst: &str) -> bool {
    let nodes = world.snapshot.nodes.values().flat_map(|node| &node.addresses);
    let nodes = nodes.map(|ip| IpNet::from(*ip));
    let mut inside = world.cluster.ranges.iter().copied().chain(nodes);
    inside.any(|net| net.contains(&ip(dst)))
}

proptest! {
    /// No Service, slice or pod that a tenant can write opens an outside address.
    #[test]
    fn tenants_open_nothing(mut world in hostile(), dst in any_ip(), port in any_port()) {
        // What the mesh's operator says of these namespaces is trusted; a tenant writes in its
        // own.
        let tenants = |namespace: &str| namespace == "shop";
        let own = World::new().snapshot;
        world.snapshot.slices.retain(|slice| {
            tenants(&slice.name.namespace) || own.slices.contains(slice)
        });
        world.snapshot.services.retain(|name, _| {
            tenants(&name.namespace) || own.services.contains_key(name)
        });
        world.snapshot.services.extend(own.services.clone());
        world.snapshot.pods.retain(|uid, pod| {
            tenants(&pod.name.namespace) || own.pods.contains_key(uid)
        });
        for protocol in [TCP, UDP] {
            let reason = world.ask(dst, protocol, port);
            prop_assert!(
                reason.denies() || is_inside(&world, dst) || reason == Reason::Local,
                "{} {} {}: {}", dst, protocol, port, reason
            );
        }
    }

    /// A gateway entry stands for a pod with the pinned account, whoever wrote the slices.
    #[test]
    fn gateway_endpoints_are_pinned_pods(world in hostile()) {
        let desired = world.compile();
        for endpoint in desired.gateways.iter().flat_map(|gateway| &gateway.endpoints) {
            if let Some(name) = &endpoint.pod {
                let pod = world.snapshot.pods.values().find(|pod| pod.name == *name);
                let pod = pod.expect("a pod");
                prop_assert_eq!(&*pod.service_account, "egress");
                prop_assert_eq!(&*pod.name.namespace, "istio-system");
                prop_assert!(pod.ips.contains(&endpoint.address.ip));
                prop_assert_ne!(endpoint.address.port, 15021);
            }
        }
    }

    /// Whatever the mesh says, it takes away with `narrow` and means nothing without.
    #[test]
    fn the_mesh_only_narrows(
        mut world in hostile(), mesh in any_mesh(), dst in any_ip(), port in any_port()
    ) {
        let plain = world.compile();
        world.snapshot.mesh = mesh;
        prop_assert_eq!(&world.compile(), &plain);
        world.policy_mut("shop").narrow = true;
        let narrowed = world.compile();
        for protocol in [TCP, UDP] {
            let before = ask(&plain, "shop/web", dst, protocol, port);
            let after = ask(&narrowed, "shop/web", dst, protocol, port);
            prop_assert!(after.denies() || before == after, "{} {}", before, after);
        }
    }

    /// An outside address that nothing names is denied, on every port and protocol.
    #[test]
    fn deny_by_default(v4 in any::<u32>(), v6 in any::<u128>(), protocol in any::<u8>(), port in any::<u16>()) {
        let world = World::new();
        let desired = world.compile();
        for dst in [std::net::IpAddr::from(v4.to_be_bytes()), std::net::IpAddr::from(v6.to_be_bytes())] {
            let dst = dst.to_string();
            let reason = ask(&desired, "shop/web", &dst, protocol, port);
            prop_assert!(
                reason.denies() || is_inside(&world, &dst) || reason == Reason::Local,
                "{} {} {}: {}", dst, protocol, port, reason
            );
        }
    }

    /// The same snapshot gives the same tables, in whatever order its slices came.
    #[test]
    fn order_does_not_matter((world, shuffled) in hostile().prop_flat_map(|world| {
        let slices = Just(world.snapshot.slices.clone()).prop_shuffle();
        (Just(world), slices)
    })) {
        let mut other = world.clone();
        other.snapshot.slices = shuffled;
        other.node.links.reverse();
        prop_assert_eq!(world.compile(), other.compile());
    }

    /// Every entry says where it came from, and every prefix what covers it.
    #[test]
    fn origins_and_covers_are_complete(world in hostile()) {
        let desired = world.compile();
        prop_assert!(desired.tables.exact.keys().eq(desired.origins.exact.keys()));
        prop_assert!(desired.tables.ranges.keys().eq(desired.origins.ranges.keys()));
        for ((bits, key), narrow) in &desired.tables.ranges {
            for ((wider, other), wide) in &desired.tables.ranges {
                let covers = other.policy == key.policy
                    && wider <= bits
                    && crate::policy::tables::masked(key.addr.octets(), wider - 32) == other.addr
                    && (key.addr.is_v4() == (*wider >= 128 && other.addr.is_v4()));
                // A Service inside keeps no kind of a remote.
                let kept = wide.kinds & !range::INBOUND;
                prop_assert!(!covers || narrow.kinds & kept == kept);
            }
        }
    }
}
