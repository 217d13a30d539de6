//! What gets out of a pod and what does not, judged outside, hook by hook, both families.

use anyhow::Result;
use egress_tests::address::{ELSEWHERE, NODE, RESOLVER, STRIPE, pod};
use egress_tests::lab::{CART, GATEWAY, Identity, LEDGER, PROXY};
use egress_tests::manifests;
use egress_tests::process::Place;
use egress_tests::scenario::{Scenario, to};

const CART_DROPS: [&str; 3] =
    ["egress_pod_connections_total{", "source_pod=\"cart\"", "verdict=\"drop\""];

/// Every way a plain pod can send to an outside address, with the arguments of the probe.
fn ways(scenario: &Scenario) -> Vec<(String, Vec<String>)> {
    let cart = &scenario.lab.cart;
    let mut ways = Vec::new();
    for ip in STRIPE.both() {
        let address = std::net::SocketAddr::new(ip, 9000);
        ways.push((format!("tcp {ip}"), vec!["tcp".to_owned(), to(ip, 9000)]));
        ways.push((format!("udp {ip}"), vec!["udp".to_owned(), to(ip, 9000), "--wait".to_owned()]));
        for kind in ["raw", "packet"] {
            ways.push((format!("{kind} {ip}"), scenario.lab.by_hand(kind, cart, address)));
        }
    }
    let mapped = STRIPE.v4.to_ipv6_mapped();
    ways.push(("tcp mapped".to_owned(), vec!["tcp".to_owned(), to(mapped, 9000)]));
    ways.push(("udp mapped".to_owned(), vec!["udp".to_owned(), to(mapped, 9000)]));
    ways
}

fn strings(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[test]
fn audit_lets_every_way_out_and_reports_each() -> Result<()> {
    let scenario = Scenario::new("audit")?;
    let before = scenario.samples()?;
    let ways = ways(&scenario);
    for (name, arguments) in &ways {
        let (_, escaped) = scenario.judged(&scenario.lab.cart.place(), &strings(arguments))?;
        assert!(escaped > 0, "{name} does not get out in audit mode");
    }
    let parts = ["egress_pod_connections_total{", "source_pod=\"cart\"", "reason=\"not_gateway\""];
    let audited = scenario.rise(&before, &[&parts[..], &["verdict=\"audit\""]].concat())?;
    assert_eq!(audited, ways.len() as f64, "each attempt is counted once, at the boundary");
    assert_eq!(scenario.rise(&before, &CART_DROPS)?, 0.0);
    Ok(())
}

#[test]
fn enforce_stops_every_way_and_counts_each_once() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    for (name, arguments) in &ways(&scenario) {
        let before = scenario.samples()?;
        let (outcome, escaped) =
            scenario.judged(&scenario.lab.cart.place(), &strings(arguments))?;
        assert_eq!(escaped, 0, "{name} gets out");
        if name.starts_with("tcp") || name.starts_with("udp") {
            assert!(outcome.refused(), "{name} fails with {outcome:?}, not at once with EPERM");
            assert!(outcome.micros < 500_000, "{name} took {} us", outcome.micros);
        }
        assert_eq!(scenario.rise(&before, &CART_DROPS)?, 1.0, "{name}");
    }
    Ok(())
}

#[test]
fn a_gateway_is_reached_at_its_endpoints_and_nowhere_else() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let _open = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    let _other = scenario.server(&lab.gateway.place(), "tcp", 8444)?;
    for ip in pod(GATEWAY.host).both() {
        let (reached, _) = scenario.judged(&lab.cart.place(), &["tcp", &to(ip, 8443)])?;
        assert!(reached.ok, "{ip}: {reached:?}");
        let before = scenario.samples()?;
        let (refused, _) = scenario.judged(&lab.cart.place(), &["tcp", &to(ip, 8444)])?;
        assert!(refused.refused(), "{ip}: {refused:?}");
        let wrong_port = [&CART_DROPS[..], &["reason=\"gateway_port\""]].concat();
        assert_eq!(scenario.rise(&before, &wrong_port)?, 1.0);
    }
    Ok(())
}

#[test]
fn the_cluster_is_reached_and_its_node_is_not() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let _peer = scenario.server(&lab.ledger.place(), "tcp", 9000)?;
    let node_place = Place { netns: Some(&lab.node), ..Place::default() };
    let _node = scenario.server(&node_place, "tcp", 10250)?;
    for ip in pod(LEDGER.host).both() {
        let (peer, _) = scenario.judged(&lab.cart.place(), &["tcp", &to(ip, 9000)])?;
        assert!(peer.ok, "{ip}: {peer:?}");
    }
    for ip in NODE.both() {
        let before = scenario.samples()?;
        let (node, _) = scenario.judged(&lab.cart.place(), &["tcp", &to(ip, 10250)])?;
        assert!(node.refused(), "{ip}: {node:?}");
        assert_eq!(scenario.rise(&before, &["egress_node_drops_total", "reason=\"node\""])?, 1.0);
    }
    Ok(())
}

#[test]
fn only_the_named_resolver_answers() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let place = scenario.lab.cart.place();
    for ip in RESOLVER.both() {
        let answer = scenario.lab.attempt(&place, &["udp", &to(ip, 53), "--wait"])?;
        assert!(answer.ok, "{ip}: {answer:?}");
        let over_tcp = scenario.lab.attempt(&place, &["tcp", &to(ip, 53)])?;
        assert!(over_tcp.ok, "{ip}: {over_tcp:?}");
        let other_port = scenario.lab.attempt(&place, &["tcp", &to(ip, 853)])?;
        assert!(other_port.refused(), "{ip}: {other_port:?}");
    }
    for ip in ELSEWHERE.both() {
        let (foreign, escaped) = scenario.judged(&place, &["udp", &to(ip, 53)])?;
        assert!(foreign.refused() && escaped == 0, "{ip}: {foreign:?}");
    }
    Ok(())
}

#[test]
fn in_a_sidecar_pod_only_the_proxys_own_calls_are_refused_at_once() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let checkout = &scenario.lab.checkout;
    let outside = to(STRIPE.v4, 9000);
    let proxy = Place { user: Some(PROXY), ..checkout.place() };
    let (refused, escaped) = scenario.judged(&proxy, &["tcp", &outside])?;
    assert!(refused.refused() && escaped == 0, "{refused:?}");
    // The application may dial anything: its proxy would take it over. Here there is none, so
    // the packet meets the wall.
    let app = Place { user: Some((1000, 1000)), ..checkout.place() };
    let (dialled, escaped) = scenario.judged(&app, &["tcp", &outside, "--patience", "600"])?;
    assert!(!dialled.ok && !dialled.refused(), "{dialled:?}");
    assert_eq!(escaped, 0);
    Ok(())
}

#[test]
fn a_forged_source_is_dropped_on_every_pods_veth() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    for (from, forged) in [(&lab.cart, LEDGER), (&lab.ledger, CART)] {
        let target = std::net::SocketAddr::from((pod(GATEWAY.host).v4, 8443));
        let mut arguments = lab.by_hand("packet", from, target);
        arguments[2] = format!("--source={}", pod(forged.host).v4);
        let before = scenario.samples()?;
        lab.attempt(&from.place(), &strings(&arguments))?;
        let spoofed = ["egress_node_drops_total", "reason=\"spoofed_source\""];
        assert_eq!(scenario.rise(&before, &spoofed)?, 1.0, "{}", from.identity.name);
    }
    Ok(())
}

#[test]
fn address_resolution_works_under_enforcement() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let _open = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    lab.cart.netns.batch("neigh flush all\n")?;
    lab.node.batch("neigh flush all\n")?;
    for ip in pod(GATEWAY.host).both() {
        let (reached, _) = scenario.judged(&lab.cart.place(), &["tcp", &to(ip, 8443)])?;
        assert!(reached.ok, "{ip}: {reached:?}");
    }
    Ok(())
}

#[test]
fn the_wall_holds_before_the_interface_is_known() -> Result<()> {
    const EARLY: Identity = Identity {
        short: "early",
        name: "shop/early",
        uid: "5f0c1a52-0c4b-4c1e-9d53-000000000030",
        host: 30,
    };
    let scenario = Scenario::new("enforce")?;
    let early = scenario.lab.add_pod(EARLY)?;
    // The API server knows the pod and not yet its address: no interface can be told to be its.
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: early, namespace: shop, uid: {}}}\n\
         spec: {{nodeName: node-a, containers: [{{name: app, image: x}}]}}\nstatus: {{phase: Pending}}\n",
        EARLY.uid
    );
    manifests::replace(&scenario.lab.file("registry/early.yaml"), &manifest)?;
    scenario.until("the pod is governed at its cgroup", |status| {
        let pods = status["pods"].as_array();
        pods.into_iter()
            .flatten()
            .any(|pod| pod["pod"]["name"] == "early" && pod["state"] == "no_interface")
    })?;
    for ip in STRIPE.both() {
        let raw = scenario.lab.by_hand("raw", &early, std::net::SocketAddr::new(ip, 9000));
        let (refused, escaped) = scenario.judged(&early.place(), &strings(&raw))?;
        assert!(refused.refused() && escaped == 0, "{ip}: {refused:?}, {escaped} frames");
        let (dialled, escaped) = scenario.judged(&early.place(), &["tcp", &to(ip, 9000)])?;
        assert!(dialled.refused() && escaped == 0, "{ip}: {dialled:?}");
    }
    Ok(())
}
