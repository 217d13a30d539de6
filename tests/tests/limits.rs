//! What a pod may do toward destinations it is allowed: how often, and through whose sockets.

use std::net::IpAddr;

use anyhow::Result;
use egress_tests::address::pod;
use egress_tests::lab::{GATEWAY, Identity};
use egress_tests::manifests;
use egress_tests::process::Place;
use egress_tests::scenario::{Scenario, to};

/// Sustained connections per second and burst of the tests' policies.
const RATE: f64 = 50.0;
const BURST: f64 = 20.0;
const LIMIT: &str = "{connectionsPerSecond: 50, burst: 20}";
/// How long the pods dial as fast as they can.
const MILLISECONDS: u64 = 10_000;
const MAY: f64 = BURST + RATE * MILLISECONDS as f64 / 1000.0;

/// A second pod of `bank`, beside `ledger`.
const VAULT: Identity = Identity {
    short: "vault",
    name: "bank/vault",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000071",
    host: 71,
};

fn limited(limit: &str) -> Result<Scenario> {
    let scenario = Scenario::new("enforce")?;
    scenario.change_policy("  mode:", &format!("  rateLimit: {limit}\n  mode:"))?;
    Ok(scenario)
}

/// Opens connections to the gateway from all the places at once; how many each did.
fn opened(scenario: &Scenario, dialled: &[(Place<'_>, IpAddr)]) -> Result<Vec<f64>> {
    let milliseconds = MILLISECONDS.to_string();
    std::thread::scope(|scope| {
        let dial = |place, ip| {
            let arguments = ["connects", &to(ip, 8443), "--milliseconds", &milliseconds];
            scenario.lab.attempt(place, &arguments).map(|outcome| outcome.attempts as f64)
        };
        let running: Vec<_> =
            dialled.iter().map(|(place, ip)| scope.spawn(move || dial(place, *ip))).collect();
        running.into_iter().map(|one| one.join().expect("the dialling thread")).collect()
    })
}

/// Both kinds of rate in one window: `shop` has one for each pod, over both families, and `bank` one
/// for all its pods.
#[test]
fn rates_are_exact_within_five_percent_over_ten_seconds() -> Result<()> {
    let scenario = limited(LIMIT)?;
    let lab = &scenario.lab;
    let vault = lab.add_pod(VAULT)?;
    vault.netns.await_ipv6("eth0")?;
    let registry = lab.file("registry");
    manifests::replace(&registry.join("vault.yaml"), &manifests::pod(VAULT, vault.address(), ""))?;
    let shop = std::fs::read_to_string(registry.join("policy.yaml"))?;
    let bank = shop
        .replace("  name: shop", "  name: bank")
        .replace("namespaces: [shop]", "namespaces: [bank]")
        .replace(LIMIT, &format!("{{namespace: {LIMIT}}}"));
    manifests::replace(&registry.join("bank.yaml"), &bank)?;
    scenario.until("the pods of bank are governed", |status| {
        let pods = status["pods"].as_array();
        let governed = pods.into_iter().flatten().filter(|pod| {
            pod["policy"] == "bank" && pod["state"] == "covered" && pod["mode"] == "enforce"
        });
        governed.count() == 2
    })?;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    let [v4, v6] = pod(GATEWAY.host).both();
    let before = scenario.samples()?;
    let counts = opened(
        &scenario,
        &[
            (lab.cart.place(), v4),
            (lab.cart.place(), v6),
            (lab.checkout.place(), v6),
            (lab.ledger.place(), v4),
            (vault.place(), v6),
        ],
    )?;
    let [cart4, cart6, checkout, ledger, vault] = counts[..] else { unreachable!() };
    for (who, count) in [
        ("one pod over both families", cart4 + cart6),
        ("another pod of its namespace", checkout),
        ("two pods that share a rate", ledger + vault),
    ] {
        println!("{who}: opened {count} of {MAY} in {MILLISECONDS} ms");
        assert!((count - MAY).abs() <= MAY * 0.05, "{who}: {counts:?}, the rate allows {MAY}");
    }
    let limited = ["egress_node_drops_total", "reason=\"rate_limited\""];
    assert!(scenario.rise(&before, &limited)? > 0.0, "refusals are counted");
    Ok(())
}

#[test]
fn established_connections_outlive_an_empty_bucket() -> Result<()> {
    let scenario = limited("{connectionsPerSecond: 1, burst: 1}")?;
    let lab = &scenario.lab;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    let gateway = to(pod(GATEWAY.host).v4, 8443);
    // One connection takes the token and then talks.
    let (first, _) = scenario.judged(&lab.cart.place(), &["tcp", &gateway, "--http", "x"])?;
    assert!(first.ok, "{first:?}");
    let (second, _) = scenario.judged(&lab.cart.place(), &["tcp", &gateway])?;
    assert!(second.refused(), "{second:?}");
    Ok(())
}

#[test]
fn a_socket_from_another_cgroup_gets_nowhere() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    // In the pod's network, and in nobody's cgroup that the wall would stand in front of; then in
    // another pod's.
    let outsider = Place { netns: Some(&lab.cart.netns), ..Place::default() };
    let other = Place { netns: Some(&lab.cart.netns), ..lab.ledger.place() };
    for place in [outsider, other] {
        for ip in pod(GATEWAY.host).both() {
            let before = scenario.samples()?;
            let dialled = lab.attempt(&place, &["tcp", &to(ip, 8443), "--patience", "400"])?;
            assert!(!dialled.ok, "{ip}: {dialled:?}");
            let foreign =
                ["egress_pod_connections_total{", "source_pod=\"cart\"", "foreign_socket"];
            assert!(scenario.rise(&before, &foreign)? >= 1.0, "{ip}");
        }
    }
    let own = lab.attempt(&lab.cart.place(), &["tcp", &to(pod(GATEWAY.host).v4, 8443)])?;
    assert!(own.ok, "{own:?}");
    Ok(())
}
