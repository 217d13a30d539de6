//! The API server dies and comes back; the kernel does not notice.
//!
//! `EGRESS_OUTAGE_SECONDS=60` makes the outage as long as the requirement names it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use egress_tests::address::{ELSEWHERE, pod};
use egress_tests::agent;
use egress_tests::control_plane::ControlPlane;
use egress_tests::kube_lab::{KubeLab, NODE};
use egress_tests::lab::GATEWAY;
use egress_tests::process::wait_until;
use egress_tests::scenario::to;

/// Long enough for the agent to ask again several times.
const OUTAGE: Duration = Duration::from_secs(10);
const LAST_SYNC: &str = "egress_registry_last_sync_timestamp_seconds";

/// A metric of the agent.
fn metric(scenario: &KubeLab, name: &str) -> Result<f64> {
    Ok(agent::sum(&agent::samples(&scenario.lab)?, &[name]))
}

/// How long ago the registry was known, by the agent's own metric.
fn age(scenario: &KubeLab) -> Result<f64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(now.as_secs_f64() - metric(scenario, LAST_SYNC)?)
}

/// What must hold whether or not the API server lives.
fn holds(scenario: &KubeLab) -> Result<()> {
    let lab = &scenario.lab;
    let mark = lab.sniffer.mark();
    let outside = lab.attempt(&lab.cart.place(), &["tcp", &to(ELSEWHERE.v4, 9000)])?;
    ensure!(outside.refused(), "a bypass: {outside:?}");
    let gateway = lab.attempt(&lab.cart.place(), &["tcp", &to(pod(GATEWAY.host).v4, 8443)])?;
    ensure!(gateway.ok, "the gateway is closed: {gateway:?}");
    lab.settle();
    let escapes = lab.sniffer.escapes(mark)?;
    ensure!(escapes.is_empty(), "{escapes:?}");
    for path in ["/livez", "/readyz"] {
        let (status, body) = agent::probe(lab, path)?;
        ensure!(status == 200, "{path} answers {status}: {body}");
    }
    Ok(())
}

#[test]
fn a_killed_api_server_changes_nothing_and_its_return_rewrites_nothing() -> Result<()> {
    let outage = match std::env::var("EGRESS_OUTAGE_SECONDS") {
        Ok(seconds) => Duration::from_secs(seconds.parse().context("EGRESS_OUTAGE_SECONDS")?),
        Err(_) => OUTAGE,
    };
    let mut plane = ControlPlane::start()?;
    plane.cluster.install_lenient()?;
    let mut scenario = KubeLab::new(&plane, "enforce")?;
    let _open = scenario.lab.serve(&scenario.lab.gateway.place(), "tcp", 8443)?;
    holds(&scenario)?;
    // What the start brought is applied once nothing was written for a while.
    let mut written = scenario.writes()?;
    wait_until("the agent has nothing left to write", Duration::from_secs(20), || {
        std::thread::sleep(Duration::from_secs(2));
        let now = scenario.writes()?;
        Ok(std::mem::replace(&mut written, now) == now)
    })?;
    let table = scenario.exact()?;
    let destinations = table.destinations()?;
    let generation = agent::status(&scenario.lab)?["generation"].clone();
    let known = metric(&scenario, LAST_SYNC)?;

    let start = Instant::now();
    plane.kill()?;
    scenario.until("the outage is a problem of the status", |status| {
        let problems = status["problems"].as_array().into_iter().flatten();
        problems.into_iter().any(|problem| problem.to_string().contains("ApiServer"))
    })?;
    println!("the outage is reported after {:.1} s", start.elapsed().as_secs_f64());
    let mut rounds = 0;
    while start.elapsed() < outage {
        holds(&scenario)?;
        rounds += 1;
        std::thread::sleep(Duration::from_secs(1));
    }
    let still = metric(&scenario, LAST_SYNC)?;
    let moved = still - known;
    ensure!(moved < 12.0, "the registry was not known to be in step, yet it moved by {moved:.1} s");
    let old = age(&scenario)?;
    ensure!(old > outage.as_secs_f64() - 1.0, "the registry is said to be {old:.1} s old");
    ensure!(metric(&scenario, "egress_registry_connected")? == 0.0);
    println!("after {rounds} rounds in {outage:?} the registry is said to be {old:.1} s old");

    let start = Instant::now();
    plane.restart()?;
    println!("the API server took {:.1} s to return", start.elapsed().as_secs_f64());
    let start = Instant::now();
    wait_until("the agent is in step again", Duration::from_secs(45), || {
        Ok(metric(&scenario, "egress_registry_connected")? == 1.0)
    })?;
    println!("the agent was in step {:.1} s later", start.elapsed().as_secs_f64());
    ensure!(age(&scenario)? < 12.0);
    scenario.until("no problem is left", |status| {
        status["problems"].as_array().is_some_and(Vec::is_empty)
    })?;
    std::thread::sleep(Duration::from_secs(2));
    let now = scenario.writes()?;
    ensure!(now == written, "put and removed {written:?} entries before, {now:?} after");
    ensure!(table.destinations()? == destinations);
    ensure!(agent::status(&scenario.lab)?["generation"] == generation);
    holds(&scenario)?;

    // And it follows again.
    let address = pod(61);
    let uid = scenario.gateway.create(&plane.cluster, "late", NODE)?;
    scenario.gateway.run(&plane.cluster, "late", &uid, address)?;
    scenario.gateway.publish(&plane.cluster)?;
    wait_until("a new endpoint is open", Duration::from_secs(15), || table.has(address, 8443))?;
    let (put, removed) = scenario.writes()?;
    println!("a new endpoint put {} and removed {}", put - now.0, removed - now.1);
    Ok(())
}

#[test]
fn a_way_that_breaks_again_and_again_removes_nothing() -> Result<()> {
    let plane = ControlPlane::start()?;
    plane.cluster.install_lenient()?;
    let scenario = KubeLab::new(&plane, "enforce")?;
    let _open = scenario.lab.serve(&scenario.lab.gateway.place(), "tcp", 8443)?;
    let before = scenario.writes()?;
    for _ in 0..5 {
        scenario.relay.disconnect();
        std::thread::sleep(Duration::from_millis(400));
    }
    scenario.relay.cut();
    std::thread::sleep(Duration::from_secs(2));
    scenario.relay.mend();
    holds(&scenario)?;
    wait_until("the agent is in step again", Duration::from_secs(45), || {
        Ok(metric(&scenario, "egress_registry_connected")? == 1.0)
    })?;
    let (put, removed) = scenario.writes()?;
    println!("put {} and removed {} in all of it", put - before.0, removed - before.1);
    ensure!(removed == before.1, "a broken watch removed entries");
    holds(&scenario)
}
