//! What a pod may do toward destinations it is allowed: how often, and through whose sockets.

use anyhow::Result;
use egress_tests::address::pod;
use egress_tests::lab::GATEWAY;
use egress_tests::process::Place;
use egress_tests::scenario::{Scenario, to};

/// Sustained connections per second and burst of the tests' policies.
const RATE: f64 = 50.0;
const BURST: f64 = 20.0;
/// How long the pods dial as fast as they can.
const MILLISECONDS: u64 = 3000;
const MAY: f64 = BURST + RATE * MILLISECONDS as f64 / 1000.0;

fn limited(limit: &str) -> Result<Scenario> {
    let scenario = Scenario::new("enforce")?;
    scenario.change_policy("  mode:", &format!("  rateLimit: {limit}\n  mode:"))?;
    Ok(scenario)
}

fn opened(scenario: &Scenario, places: &[Place<'_>]) -> Result<Vec<f64>> {
    let gateway = to(pod(GATEWAY.host).v4, 8443);
    let milliseconds = MILLISECONDS.to_string();
    std::thread::scope(|scope| {
        let dial = |place| {
            let arguments = ["connects", &gateway, "--milliseconds", &milliseconds];
            scenario.lab.attempt(place, &arguments).map(|outcome| outcome.attempts as f64)
        };
        let running: Vec<_> = places.iter().map(|place| scope.spawn(move || dial(place))).collect();
        running.into_iter().map(|one| one.join().expect("the dialling thread")).collect()
    })
}

#[test]
fn a_pod_opens_no_more_connections_than_its_rate() -> Result<()> {
    let scenario = limited("{connectionsPerSecond: 50, burst: 20}")?;
    let _gateway = scenario.server(&scenario.lab.gateway.place(), "tcp", 8443)?;
    let before = scenario.samples()?;
    let [plain] = opened(&scenario, &[scenario.lab.cart.place()])?[..] else { unreachable!() };
    println!("opened {plain} of {MAY}");
    assert!((plain - MAY).abs() <= MAY * 0.05, "opened {plain}, the rate allows {MAY}");
    let limited = ["egress_node_drops_total", "reason=\"rate_limited\""];
    assert!(scenario.rise(&before, &limited)? > 0.0, "refusals are counted");
    Ok(())
}

#[test]
fn the_pods_of_a_namespace_share_its_rate() -> Result<()> {
    let scenario = limited("{namespace: {connectionsPerSecond: 50, burst: 20}}")?;
    let lab = &scenario.lab;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    let each = opened(&scenario, &[lab.cart.place(), lab.checkout.place()])?;
    let together: f64 = each.iter().sum();
    println!("opened {each:?}, {together} of {MAY}");
    assert!((together - MAY).abs() <= MAY * 0.05, "opened {each:?}, the rate allows {MAY}");
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
