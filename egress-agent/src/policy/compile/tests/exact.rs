//! Resolvers, infrastructure, nodes, Services that end outside, and who wins.

use egress_common::Reason;
use egress_common::key::{Addr, ExactKey, PolicyId};
use egress_common::state::{Target, address};

use super::fixture::*;
use crate::policy::Desired;

/// The cluster's DNS: Service, one pod, one slice.
fn with_dns(world: &mut World) {
    world.service(service("kube-system/kube-dns", &["10.96.0.10"], &[("dns-tcp", 53)]));
    world.pod(pod("kube-system/coredns", &["10.1.9.53"]));
    let ports = [("dns-tcp", 53), ("metrics", 9153)];
    world.slice(slice("kube-system/dns", "kube-dns", &["10.1.9.53"], &ports));
}

fn target(desired: &Desired, policy: PolicyId, dst: &str, protocol: u8, port: u16) -> Option<u8> {
    let key = ExactKey::new(policy, Addr::from(ip(dst)), protocol, port);
    desired.tables.exact.get(&key).map(|entry| entry.target)
}

#[test]
fn auto_resolvers_are_the_clusters_dns_service_and_its_pods() {
    let mut world = World::new();
    assert_eq!(world.ask("10.96.0.10", UDP, 53), Reason::ForeignResolver);
    with_dns(&mut world);
    for dst in ["10.96.0.10", "10.1.9.53"] {
        assert_eq!(world.ask(dst, UDP, 53), Reason::Resolver, "{dst}");
        assert_eq!(world.ask(dst, TCP, 53), Reason::Resolver, "{dst}");
        assert_eq!(world.ask(dst, TCP, 853), Reason::ForeignResolver, "{dst}");
        assert_eq!(world.ask(dst, TCP, 9153), Reason::Cluster, "{dst}");
    }
}

#[test]
fn the_dns_service_is_known_by_name_or_label_in_its_namespace_only() {
    for (full, labelled, known) in [
        ("kube-system/coredns", false, true),
        ("kube-system/rke2-coredns", true, true),
        ("kube-system/rke2-coredns", false, false),
        ("shop/kube-dns", true, false),
    ] {
        let mut world = World::new();
        let mut dns = service(full, &["10.96.0.10"], &[]);
        if labelled {
            dns.labels = labels(&[("k8s-app", "kube-dns")]);
        }
        world.service(dns);
        let reason = if known { Reason::Resolver } else { Reason::ForeignResolver };
        assert_eq!(world.ask("10.96.0.10", UDP, 53), reason, "{full} {labelled}");
    }
}

#[test]
fn a_slice_alone_names_no_resolver() {
    let mut world = World::new();
    with_dns(&mut world);
    world.slice(slice("kube-system/x", "kube-dns", &[OUTSIDE], &[("dns-tcp", 53)]));
    assert_eq!(world.ask(OUTSIDE, UDP, 53), Reason::ForeignResolver);
}

#[test]
fn listed_resolvers_replace_the_automatic_ones() {
    let mut world = World::new();
    with_dns(&mut world);
    world.policy_mut("shop").resolvers = Some(vec![ip("169.254.20.10")]);
    assert_eq!(world.ask("169.254.20.10", UDP, 53), Reason::Resolver);
    assert_eq!(world.ask("169.254.20.10", TCP, 53), Reason::Resolver);
    assert_eq!(world.ask("10.96.0.10", UDP, 53), Reason::ForeignResolver);
}

#[test]
fn unknown_pods_may_ask_every_policys_resolver_and_nothing_else() {
    let mut world = World::new();
    with_dns(&mut world);
    let mut other = policy("bank", &["bank"]);
    other.resolvers = Some(vec![ip("10.1.7.53")]);
    world.policy(other);
    let desired = world.compile();
    let of_none = desired.tables.exact.iter().filter(|(key, _)| key.policy() == PolicyId::NONE);
    let mut found: Vec<_> =
        of_none.map(|(key, entry)| (key.addr().to_string(), key.port(), entry.target)).collect();
    found.sort();
    found.dedup();
    let resolver = Target::Resolver.number();
    let expected = ["10.1.7.53", "10.1.9.53", "10.96.0.10"];
    assert_eq!(found, expected.map(|ip| (ip.to_owned(), 53, resolver)));
}

#[test]
fn the_api_server_is_reached_where_it_listens() {
    let mut world = World::new();
    world.service(service("default/kubernetes", &["10.96.0.1"], &[("https", 443)]));
    let nodes = ["192.168.0.1"];
    world.slice(slice("default/kubernetes", "kubernetes", &nodes, &[("https", 6443)]));
    assert_eq!(world.ask("10.96.0.1", TCP, 443), Reason::Infrastructure);
    assert_eq!(world.ask("192.168.0.1", TCP, 6443), Reason::Infrastructure);
    assert_eq!(world.ask("192.168.0.1", TCP, 10250), Reason::Node);
    world.policy_mut("shop").api_server = false;
    assert_eq!(world.ask("192.168.0.1", TCP, 6443), Reason::Node);
}

#[test]
fn a_managed_clusters_api_server_is_no_hidden_way_out() {
    let mut world = World::new();
    world.service(service("default/kubernetes", &["10.96.0.1"], &[("https", 443)]));
    world.slice(slice("default/kubernetes", "kubernetes", &["198.51.100.1"], &[("https", 443)]));
    assert_eq!(world.ask("10.96.0.1", TCP, 443), Reason::Infrastructure);
    assert_eq!(world.ask("198.51.100.1", TCP, 443), Reason::Infrastructure);
    // Unless the policy does not want it.
    world.policy_mut("shop").api_server = false;
    assert_eq!(world.ask("10.96.0.1", TCP, 443), Reason::HiddenExternal);
}

#[test]
fn istiod_of_every_revision_is_reached_at_its_workload_ports() {
    let mut world = World::new();
    for (revision, cluster_ip, pod_ip) in
        [("istiod", "10.96.0.15", "10.1.9.15"), ("istiod-canary", "10.96.0.16", "10.1.9.16")]
    {
        let ports = [("grpc", 15010), ("https-dns", 15012), ("webhook", 443)];
        let mut istiod = service(&format!("istio-system/{revision}"), &[cluster_ip], &ports);
        istiod.labels = labels(&[("app", "istiod")]);
        world.service(istiod);
        world.pod(pod(&format!("istio-system/{revision}"), &[pod_ip]));
        // Target ports need not be the Service's.
        let ports = [("grpc", 25010), ("https-dns", 25012), ("webhook", 15017)];
        world.slice(slice(&format!("istio-system/{revision}"), revision, &[pod_ip], &ports));
        for (dst, port) in
            [(cluster_ip, 15010), (cluster_ip, 15012), (pod_ip, 25010), (pod_ip, 25012)]
        {
            assert_eq!(world.ask(dst, TCP, port), Reason::Infrastructure, "{dst} {port}");
        }
        assert_eq!(world.ask(cluster_ip, TCP, 443), Reason::Cluster);
    }
    world.policy_mut("shop").istiod = false;
    assert_eq!(world.ask("10.96.0.15", TCP, 15012), Reason::Cluster);
}

#[test]
fn a_tenants_istiod_is_not_istiod() {
    let mut world = World::new();
    let mut fake = service("shop/istiod", &[], &[("https-dns", 15012)]);
    fake.labels = labels(&[("app", "istiod")]);
    world.service(fake);
    world.slice(slice("shop/istiod", "istiod", &[OUTSIDE], &[("https-dns", 15012)]));
    assert_eq!(world.ask(OUTSIDE, TCP, 15012), Reason::NotGateway);
}

#[test]
fn named_addresses_are_exact() {
    let mut world = World::new();
    let shop = world.policy_mut("shop");
    shop.infrastructure = vec![exact_address("198.51.100.7", TCP, 4317)];
    shop.nodes = vec![exact_address("192.168.0.1", TCP, 9100)];
    for (dst, protocol, port, reason) in [
        ("198.51.100.7", TCP, 4317, Reason::Infrastructure),
        ("198.51.100.7", TCP, 4318, Reason::NotGateway),
        ("198.51.100.7", UDP, 4317, Reason::NotGateway),
        ("192.168.0.1", TCP, 9100, Reason::Cluster),
        ("192.168.0.1", TCP, 9101, Reason::Node),
    ] {
        assert_eq!(world.ask(dst, protocol, port), reason, "{dst} {protocol} {port}");
    }
}

#[test]
fn a_service_with_an_endpoint_outside_is_hidden_external() {
    let mut world = World::new();
    let ports = [("https", 443), ("metrics", 9090)];
    world.service(service("shop/tunnel", &["10.96.0.66", "fd00:10::66"], &ports));
    world.slice(slice("shop/in", "tunnel", &["10.1.0.2"], &[("metrics", 9090)]));
    assert_eq!(world.ask("10.96.0.66", TCP, 443), Reason::Cluster);
    // One endpoint outside is enough: kube-proxy may pick it.
    world.slice(slice("shop/out", "tunnel", &["10.1.0.2", OUTSIDE], &[("https", 443)]));
    for dst in ["10.96.0.66", "fd00:10::66"] {
        assert_eq!(world.ask(dst, TCP, 443), Reason::HiddenExternal, "{dst}");
        assert_eq!(world.ask(dst, TCP, 9090), Reason::Cluster, "{dst}");
        assert_eq!(bits(&world.compile(), dst), address::HIDDEN_EXTERNAL);
    }
}

#[test]
fn what_is_inside_is_each_policys_own_word() {
    let mut world = World::new();
    world.service(service("shop/peer", &["10.96.0.66"], &[("https", 443)]));
    let ips = ["172.16.0.1", "192.168.0.1"];
    world.slice(slice("shop/out", "peer", &ips, &[("https", 443)]));
    assert_eq!(world.ask("10.96.0.66", TCP, 443), Reason::HiddenExternal);
    world.policy_mut("shop").cluster_ranges = Some(vec![net("10.0.0.0/8"), net("172.16.0.0/12")]);
    assert_eq!(world.ask("10.96.0.66", TCP, 443), Reason::Cluster);
}

#[test]
fn an_external_address_of_such_a_service_is_translated_too() {
    let mut world = World::new();
    let mut hijack = service("shop/hijack", &[], &[("https", 8443)]);
    // The gateway's own address, taken over by kube-proxy (CVE-2020-8554).
    hijack.external_ips = vec![ip("10.1.9.1")];
    world.service(hijack);
    world.slice(slice("shop/out", "hijack", &[OUTSIDE], &[("https", 443)]));
    assert_eq!(world.ask("10.1.9.1", TCP, 8443), Reason::HiddenExternal);
    assert_eq!(world.ask("10.1.9.1", TCP, 8080), Reason::Gateway);
}

#[test]
fn the_earlier_line_of_the_verdict_order_wins() {
    // One key with every meaning; taking away the first leaves the next.
    let mut world = World::new();
    let key = exact_address("10.1.9.1", TCP, 53);
    let shop = world.policy_mut("shop");
    shop.resolvers = Some(vec![key.ip]);
    shop.infrastructure = vec![key];
    shop.nodes = vec![key];
    for slice in &mut world.snapshot.slices {
        slice.ports[0].port = 53;
    }
    let mut hijack = service("shop/hijack", &[], &[("dns", 53)]);
    hijack.external_ips = vec![key.ip];
    world.service(hijack);
    world.slice(slice("shop/out", "hijack", &[OUTSIDE], &[("dns", 53)]));
    let now = |world: &World| {
        target(&world.compile(), PolicyId::of("shop"), "10.1.9.1", TCP, 53)
            .and_then(Target::from_number)
    };
    assert_eq!(now(&world), Some(Target::HiddenExternal));
    world.snapshot.services.remove(&name("shop/hijack"));
    assert_eq!(now(&world), Some(Target::Resolver));
    world.policy_mut("shop").resolvers = Some(Vec::new());
    assert_eq!(now(&world), Some(Target::Gateway));
    world.policy_mut("shop").gateways.clear();
    assert_eq!(now(&world), Some(Target::Infrastructure));
    world.policy_mut("shop").infrastructure.clear();
    assert_eq!(now(&world), Some(Target::Node));
}

#[test]
fn every_exact_entry_names_its_origin() {
    let mut world = World::new();
    with_dns(&mut world);
    let desired = world.compile();
    assert!(desired.tables.exact.keys().eq(desired.origins.exact.keys()));
    let origin = |dst: &str, protocol: u8, port: u16| {
        let key = ExactKey::new(PolicyId::of("shop"), Addr::from(ip(dst)), protocol, port);
        desired.origins.exact[&key].to_string()
    };
    assert_eq!(origin("10.1.9.1", TCP, 8443), "EndpointSlice istio-system/egress-v4");
    assert_eq!(origin("10.96.0.20", TCP, 443), "Service istio-system/istio-egressgateway");
    assert_eq!(origin("10.96.0.10", UDP, 53), "Service kube-system/kube-dns");
    assert_eq!(desired.origins.policies[&PolicyId::of("shop")].to_string(), "EgressPolicy shop");
}
