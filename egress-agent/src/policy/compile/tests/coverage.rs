//! Which entries pods get, and what is said of them.

use egress_common::key::{Addr, NamespaceId, PodId, PolicyId};
use egress_common::state::{Capture, Pod as KernelPod, Rate, range};
use egress_common::{Mode, Reason};

use super::fixture::*;
use crate::policy::{ConnectionRate, CoverageState, OwnPod};

#[test]
fn a_governed_pod_is_in_both_tables() {
    let desired = World::new().compile();
    let expected = KernelPod {
        id: PodId::of("shop/web"),
        policy: PolicyId::of("shop"),
        capture: Capture::None.number(),
        flags: KernelPod::OWNER,
        mac: MAC,
        proxy_uid: KernelPod::NO_PROXY,
        proxy_gid: KernelPod::NO_PROXY,
        v4: Addr::from(ip("10.1.0.2")),
        v6: Addr::from(ip("fd00:10::1:2")),
        namespace: NamespaceId::of("shop"),
        guarded: 0,
        netns: 8,
    };
    assert_eq!(desired.tables.interfaces.get(&7), Some(&expected));
    assert_eq!(desired.tables.pods.get(&100), Some(&KernelPod { mac: [0; 6], ..expected }));
    assert_eq!(state(&desired, "shop/web"), CoverageState::Covered);
    assert_eq!(covered(&desired, "shop/web").mode, Mode::Enforce);
}

#[test]
fn the_sidecars_user_is_told_to_the_kernel() {
    let mut world = World::new();
    let web = world.pod_mut("shop/web");
    (web.capture, web.proxy) = (Capture::Sidecar, Some((1337, 1338)));
    let entry = world.compile().tables.pods[&100];
    assert_eq!((entry.capture, entry.proxy_uid, entry.proxy_gid), (1, 1337, 1338));
    // Under ambient the proxy is another pod's process.
    world.pod_mut("shop/web").capture = Capture::Ambient;
    let entry = world.compile().tables.pods[&100];
    assert_eq!((entry.proxy_uid, entry.proxy_gid), (KernelPod::NO_PROXY, KernelPod::NO_PROXY));
}

#[test]
fn pods_of_other_nodes_are_left_out() {
    let mut world = World::new();
    world.pod_mut("shop/web").node = Some("elsewhere".to_owned());
    let desired = world.compile();
    assert!(desired.coverage.is_empty() && desired.tables.pods.is_empty());
    assert!(desired.tables.policies.is_empty());
    // Without a name the node takes all.
    world.node.name = None;
    assert_eq!(state(&world.compile(), "shop/web"), CoverageState::Covered);
}

#[test]
fn what_is_missing_is_said() {
    let mut world = World::new();
    world.node.cgroups.clear();
    assert_eq!(state(&world.compile(), "shop/web"), CoverageState::NoCgroup);
    world.node.links.clear();
    assert_eq!(state(&world.compile(), "shop/web"), CoverageState::Missing);
    let mut world = World::new();
    world.node.links.clear();
    let desired = world.compile();
    assert_eq!(state(&desired, "shop/web"), CoverageState::NoInterface);
    // The wall then counts what it lets through itself.
    assert_eq!(desired.tables.pods[&100].flags, KernelPod::OWNER);
    assert_eq!(desired.tables.pods[&100].policy, PolicyId::of("shop"));
}

#[test]
fn ungoverned_pods_are_known_and_guarded() {
    let mut world = World::new();
    world.run(pod("bank/app", &["10.1.0.3"]), 101, 8);
    let desired = world.compile();
    assert_eq!(state(&desired, "bank/app"), CoverageState::NoPolicy);
    assert_eq!(desired.tables.pods[&101].policy, PolicyId::NONE);
    assert_eq!(desired.tables.interfaces[&8].policy, PolicyId::NONE);
    assert_eq!(ask(&desired, "bank/app", OUTSIDE, TCP, 443), Reason::Exempt);
}

#[test]
fn one_enforcing_policy_turns_the_source_guard_on_for_the_node() {
    let mut world = World::new();
    let guard = |world: &World| Mode::from_number(world.compile().tables.config.guard);
    assert_eq!(guard(&world), Some(Mode::Enforce));
    world.policy_mut("shop").mode = Mode::Audit;
    assert_eq!(guard(&world), Some(Mode::Audit));
    // A policy of another node's pods says nothing about this one.
    world.policy(policy("other", &["bank"]));
    assert_eq!(guard(&world), Some(Mode::Audit));
}

#[test]
fn mode_off_governs_nobody_and_says_so() {
    let mut world = World::new();
    world.policy_mut("shop").mode = Mode::Off;
    let desired = world.compile();
    let coverage = covered(&desired, "shop/web");
    assert_eq!((coverage.state, coverage.mode), (CoverageState::Off, Mode::Off));
    assert_eq!(coverage.policy.as_deref(), Some("shop"));
    assert_eq!(desired.tables.pods[&100].policy, PolicyId::NONE);
}

#[test]
fn gateways_and_exempt_namespaces_are_not_governed() {
    let mut world = World::new();
    world.snapshot.policies.get_mut("shop").unwrap().selector = in_namespaces(&[]);
    world.run(pod("kube-system/proxy", &["10.1.0.3"]), 101, 8);
    world.pod_mut("istio-system/gw-0").node = Some("here".to_owned());
    let desired = world.compile();
    assert_eq!(state(&desired, "kube-system/proxy"), CoverageState::Exempt);
    assert_eq!(state(&desired, "istio-system/gw-0"), CoverageState::Gateway);
    assert_eq!(covered(&desired, "istio-system/gw-0").policy, None);
    assert_eq!(state(&desired, "shop/web"), CoverageState::Covered);
}

#[test]
fn a_pod_that_only_looks_like_a_gateway_is_governed() {
    for (namespace, account) in [("shop", "egress"), ("istio-system", "default")] {
        let mut world = World::new();
        world.policy_mut("shop").selector = in_namespaces(&[]);
        let uid = format!("{namespace}/fake");
        let mut fake = pod(&uid, &["10.1.0.3"]);
        fake.labels = labels(&[("istio", "egressgateway")]);
        fake.service_account = account.to_owned();
        world.run(fake, 101, 8);
        assert_eq!(state(&world.compile(), &uid), CoverageState::Covered, "{uid}");
    }
}

/// `shop/web` on the node's network.
fn on_host() -> World {
    let mut world = World::new();
    world.pod_mut("shop/web").host_network = true;
    world.pod_mut("shop/web").ips = vec![ip("192.168.0.1")];
    world.node.links.clear();
    world.link(7, &[ip("192.168.0.1")]);
    world
}

#[test]
fn host_network_pods_are_audited_until_their_policy_opts_them_in() {
    let mut world = on_host();
    for (opted_in, flags, mode) in [
        (false, KernelPod::OWNER | KernelPod::HOST | KernelPod::AUDITED, Mode::Audit),
        (true, KernelPod::OWNER | KernelPod::HOST, Mode::Enforce),
    ] {
        world.snapshot.policies.get_mut("shop").unwrap().host_network = opted_in;
        let desired = world.compile();
        assert_eq!(state(&desired, "shop/web"), CoverageState::HostNetwork);
        assert_eq!(desired.coverage[0].mode, mode);
        let entry = desired.tables.pods[&100];
        assert_eq!((entry.policy, entry.flags), (PolicyId::of("shop"), flags));
        // The node's addresses are not this pod's, nor is an interface that carries them.
        assert_eq!((entry.v4, entry.v6), (Addr::UNSPECIFIED, Addr::UNSPECIFIED));
        assert!(desired.tables.interfaces.is_empty());
    }
    // What its policy says is not made stricter.
    world.snapshot.policies.get_mut("shop").unwrap().mode = Mode::Off;
    assert_eq!(state(&world.compile(), "shop/web"), CoverageState::Off);
    world.snapshot.policies.clear();
    assert_eq!(state(&world.compile(), "shop/web"), CoverageState::NoPolicy);
}

#[test]
fn this_nodes_addresses_are_known_and_another_nodes_are_not_taken_for_them() {
    let mut world = on_host();
    world.node.addresses = [ip("192.168.0.1"), ip("10.1.0.1")].into();
    let desired = world.compile();
    let kinds = |text: &str| {
        let longest = desired.tables.longest(PolicyId::of("shop"), Addr::from(ip(text)));
        longest.map_or(0, |(_, range)| range.kinds)
    };
    let this = range::THIS_NODE;
    assert_eq!(kinds("192.168.0.1"), range::NODE | range::INBOUND | this);
    assert_eq!(kinds("10.1.0.1"), range::CLUSTER | range::NODE | range::INBOUND | this);
    assert_eq!(kinds("10.1.0.2") & this, 0);
}

#[test]
fn a_pod_nobody_knows_answers_the_cluster_the_nodes_and_named_remotes() {
    let mut world = World::new();
    world.cluster.inbound_ranges = vec![net("198.51.100.0/24")];
    let desired = world.compile();
    let kinds = |text: &str| {
        let longest = desired.tables.longest(PolicyId::NONE, Addr::from(ip(text)));
        longest.map_or(0, |(_, range)| range.kinds)
    };
    for remote in ["10.1.0.77", "fd00:10::77", "192.168.0.1", "198.51.100.7", "169.254.7.127"] {
        assert_eq!(kinds(remote) & range::INBOUND, range::INBOUND, "{remote}");
    }
    assert_eq!(kinds(OUTSIDE), 0);
}

#[test]
fn finished_pods_own_nothing() {
    let mut world = World::new();
    world.pod_mut("shop/web").finished = true;
    let desired = world.compile();
    assert_eq!(state(&desired, "shop/web"), CoverageState::Finished);
    assert!(desired.tables.pods.is_empty());
    // Whoever is behind its interface still, nobody knows.
    assert_eq!(desired.tables.interfaces[&7].flags & KernelPod::UNLEARNED, KernelPod::UNLEARNED);
}

#[test]
fn the_cgroup_is_found_by_the_uid_in_its_name() {
    let mut world = World::new();
    world.pod_mut("shop/web").cgroup_uid = "config-hash".to_owned();
    assert_eq!(covered(&world.compile(), "shop/web").cgroup, None);
    world.node.cgroups.insert("config-hash".to_owned(), 102);
    assert_eq!(covered(&world.compile(), "shop/web").cgroup, Some(102));
}

#[test]
fn an_incomplete_snapshot_may_not_remove() {
    let mut world = World::new();
    assert!(world.compile().may_remove);
    world.snapshot.complete = false;
    assert!(!world.compile().may_remove);
}

#[test]
fn the_owner_of_a_socket_can_be_told_once_everybody_who_may_open_one_is_known() {
    let flags = |world: &World, ifindex: u32| world.compile().tables.interfaces[&ifindex].flags;
    let mut world = World::new();
    assert_ne!(flags(&world, 7) & KernelPod::OWNER, 0);
    // Under ambient another pod's process opens this pod's sockets.
    world.pod_mut("shop/web").capture = Capture::Ambient;
    assert_eq!(flags(&world, 7) & KernelPod::OWNER, 0);
    // A label in a tenant's namespace makes nobody the mesh's proxy.
    for (namespace, address, number, is_proxy) in
        [("shop", "10.1.0.77", 77, false), ("kube-system", "10.1.0.78", 78, true)]
    {
        let mut ztunnel = pod(&format!("{namespace}/ztunnel"), &[address]);
        ztunnel.labels = labels(&[("app", "ztunnel")]);
        world.run(ztunnel, 100 + u64::from(number), number);
        assert_eq!(flags(&world, 7) & KernelPod::OWNER != 0, is_proxy, "{namespace}");
        let proxy = flags(&world, number) & KernelPod::MESH_PROXY;
        assert_eq!(proxy != 0, is_proxy, "{namespace}");
    }
    // Without its own cgroup nothing can be compared.
    let mut world = World::new();
    world.node.cgroups.clear();
    assert_eq!(flags(&world, 7) & KernelPod::OWNER, 0);
}

#[test]
fn a_rate_becomes_what_one_connection_costs() {
    let mut world = World::new();
    world.policy_mut("shop").pod_rate = Some(ConnectionRate { per_second: 100, burst: 50 });
    let entry = world.compile().tables.policies[&PolicyId::of("shop")];
    assert_eq!((entry.pod_rate.interval, entry.pod_rate.tolerance), (10_000_000, 490_000_000));
    assert_eq!(entry.namespace_rate, Rate::NONE);
    // A full bucket is ahead of the clock by the burst less one.
    assert!(entry.pod_rate.allows(490_000_005, 5) && !entry.pod_rate.allows(490_000_006, 5));
}

#[test]
fn nobody_governs_the_agents_own_pod() {
    let mut world = World::new();
    let own = OwnPod { uid: "kube-system/agent".to_owned(), cgroup: 900 };
    world.node.own = Some(own.clone());
    // Before the registry has shown it, and whatever the registry says then.
    assert_eq!(world.compile().tables.pods[&900], own.entry());
    world.run(pod("shop/agent", &["10.1.0.9"]), 900, 9);
    let desired = world.compile();
    let entry = desired.tables.pods[&900];
    assert_eq!((entry.id, entry.policy), (PodId::of("shop/agent"), PolicyId::NONE));
    assert_eq!(state(&desired, "shop/agent"), CoverageState::Exempt);
    assert_eq!(state(&desired, "shop/web"), CoverageState::Covered);
}

#[test]
fn the_wall_leaves_to_a_boundary_only_what_passes_it() {
    let mut world = World::new();
    let guarded = |world: &World| {
        let tables = world.compile().tables;
        (tables.pods[&100].guarded, tables.interfaces[&7].guarded)
    };
    assert_eq!(guarded(&world), (0, 0));
    world.node.verified.insert(7);
    let peer = world.node.links.iter().find(|link| link.ifindex == 7).unwrap().peer;
    assert_eq!(guarded(&world), (peer, peer));
    // Only there is it said to count and to remember what others open.
    let said = |pod: &KernelPod| pod.flags & KernelPod::BOUNDARY != 0;
    assert!(said(&world.compile().tables.pods[&100]));
    assert!(said(&world.compile().tables.interfaces[&7]));
    // A second interface has a boundary of its own, or none yet.
    world.link(8, &[ip("10.1.0.2")]);
    world.bind(7, "shop/web");
    world.bind(8, "shop/web");
    world.node.verified = [8].into();
    let tables = world.compile().tables;
    assert_eq!((tables.interfaces[&7].guarded, tables.interfaces[&8].guarded != 0), (0, true));
    assert_eq!((said(&tables.interfaces[&7]), said(&tables.interfaces[&8])), (false, true));
    // By one of its interfaces others may still come in unseen.
    world.node.verified = [7].into();
    assert!(!said(&world.compile().tables.pods[&100]));
}
