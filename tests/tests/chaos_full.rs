//! Tables and buffers that are full: what does not fit is refused whole, and what cannot be told is
//! counted.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::Pod;
use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use egress_common::state::{Counter, loss};
use egress_common::{Reason, Verdict};
use egress_tests::address::{ELSEWHERE, STRIPE, pod};
use egress_tests::agent::{self, Agent};
use egress_tests::flood::Flood;
use egress_tests::kube_lab::find_pin;
use egress_tests::lab::GATEWAY;
use egress_tests::manifests;
use egress_tests::process::wait_until;
use egress_tests::scenario::{Scenario, to};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Entries of the tables whose size can be chosen: the demo's policy fits.
const SIZE: &str = "--table-size=96";

/// The old policy, in mode enforce, is in force: over both families.
fn old_policy_holds(scenario: &Scenario) -> Result<()> {
    let place = scenario.lab.cart.place();
    for (outside, gateway) in STRIPE.both().into_iter().zip(pod(GATEWAY.host).both()) {
        let (refused, arrived) = scenario.judged(&place, &["tcp", &to(outside, 9000)])?;
        ensure!(refused.refused() && arrived == 0, "{arrived} frames outside: {refused:?}");
        let open = scenario.lab.attempt(&place, &["tcp", &to(gateway, 8443)])?;
        ensure!(open.ok, "the gateway is closed: {open:?}");
    }
    Ok(())
}

fn refused(scenario: &Scenario, table: &str) -> Result<()> {
    wait_until("the policy is refused", Duration::from_secs(20), || {
        let status = agent::status(&scenario.lab)?;
        let why = status["refused"].as_str();
        let wanted = format!("table {table} ");
        ensure!(why.is_some_and(|why| why.contains(&wanted)), "{why:?}, {}", status["problems"]);
        Ok(true)
    })?;
    ensure!(agent::status(&scenario.lab)?["mode"] == "enforce");
    old_policy_holds(scenario)
}

fn fits(scenario: &Scenario) -> Result<()> {
    wait_until("the policy fits again", Duration::from_secs(20), || {
        Ok(agent::status(&scenario.lab)?["refused"].is_null())
    })?;
    old_policy_holds(scenario)
}

#[test]
fn what_does_not_fit_any_table_is_refused_whole_and_the_old_policy_stays() -> Result<()> {
    let mut scenario = Scenario::with("enforce", &[SIZE])?;
    let _gateway = scenario.server(&scenario.lab.gateway.place(), "tcp", 8443)?;
    old_policy_holds(&scenario)?;
    let registry = scenario.lab.file("registry");

    // Each of these comes with a change that would let everything through.
    let mut many = String::new();
    for host in 0..100 {
        let _ = write!(many, "{{ip: 192.0.2.{host}, port: 443, protocol: TCP}}, ");
    }
    let exact = format!("infrastructure: {{addresses: [{many}]}}\n  mode: audit");
    scenario.edit("policy.yaml", "mode: enforce", &exact)?;
    refused(&scenario, "EXACT")?;

    // The next agent finds it as it is: the policy it cannot put in force is no reason to leave
    // the one that is.
    scenario.agent.process.kill();
    scenario.agent = Agent::start(&scenario.lab, &[SIZE])?;
    refused(&scenario, "EXACT")?;
    scenario.edit("policy.yaml", &exact, "mode: enforce")?;
    fits(&scenario)?;

    let mut exceptions = String::new();
    for number in 0..65 {
        let mut ports = String::new();
        for port in 0..64 {
            let _ = write!(ports, "{{port: {}}}, ", 1 + 64 * number + port);
        }
        let _ = write!(
            exceptions,
            "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressException\n\
             metadata: {{name: e{number}}}\nspec:\n  scope: {{namespaces: [shop]}}\n  \
             destination: {{cidr: 203.0.113.66/32, ports: [{ports}]}}\n  \
             expiresAt: \"2099-01-01T00:00:00Z\"\n  reason: x\n  requester: y\n---\n"
        );
    }
    manifests::replace(&registry.join("exceptions.yaml"), &exceptions)?;
    refused(&scenario, "EXCEPTIONS")?;
    std::fs::remove_file(registry.join("exceptions.yaml"))?;
    fits(&scenario)
}

fn problem(status: &Value, code: &str) -> Option<String> {
    let mut problems = status["problems"].as_array().into_iter().flatten();
    let found = problems.find(|problem| problem["code"] == code)?;
    found["message"].as_str().map(str::to_owned)
}

#[test]
fn redirections_that_do_not_fit_are_left_out_and_nothing_else_is() -> Result<()> {
    let scenario = Scenario::with("enforce", &[SIZE])?;
    let _gateway = scenario.server(&scenario.lab.gateway.place(), "tcp", 8443)?;
    let redirect = |ports: std::ops::Range<u16>| {
        let ports: String =
            ports.map(|port| format!("{{port: {port}, gatewayPort: 8443}}, ")).collect();
        format!("redirect: {{ports: [{ports}]}}\n  mode: enforce")
    };
    // Three ports fit, and are redirected.
    let few = redirect(9000..9003);
    scenario.edit("policy.yaml", "mode: enforce", &few)?;
    let place = scenario.lab.cart.place();
    let dial = || scenario.judged(&place, &["tcp", &to(STRIPE.v4, 9000)]);
    wait_until("connections are redirected", Duration::from_secs(5), || Ok(dial()?.0.ok))?;

    // Too many do not; the address that comes with them is opened all the same.
    let many = redirect(9000..9060);
    let node = to([172, 31, 0, 2], 10250);
    let both = many.replace(
        "  mode:",
        "  infrastructure: {addresses: [{ip: 172.31.0.2, port: 10250, protocol: TCP}]}\n  mode:",
    );
    scenario.edit("policy.yaml", &few, &both)?;
    scenario.until("it is said", |status| {
        problem(status, "redirect_unavailable").is_some_and(|why| why.contains("--table-size"))
    })?;
    let status = agent::status(&scenario.lab)?;
    ensure!(status["refused"].is_null(), "{}", status["refused"]);
    let (refused, arrived) = dial()?;
    ensure!(refused.refused() && arrived == 0, "{arrived} frames outside: {refused:?}");
    let listed = scenario.lab.attempt(&place, &["tcp", &node])?;
    ensure!(!listed.refused(), "what came with them is in force: {listed:?}");
    old_policy_holds(&scenario)?;

    scenario.edit("policy.yaml", &both, &few)?;
    wait_until("connections are redirected again", Duration::from_secs(5), || Ok(dial()?.0.ok))?;
    scenario.until("nothing is left to say", |status| {
        problem(status, "redirect_unavailable").is_none()
    })?;
    Ok(())
}

/// The kernel's own maps, read past an agent that does not run.
struct Kernel(PathBuf);

impl Kernel {
    fn map(&self, name: &str) -> Result<MapData> {
        let pin = find_pin(&self.0, name).with_context(|| format!("no pinned map {name}"))?;
        Ok(MapData::from_pin(pin)?)
    }

    fn each<T: Pod>(&self, name: &str, slots: std::ops::Range<u32>) -> Result<Vec<T>> {
        let map: PerCpuArray<MapData, T> = Map::PerCpuArray(self.map(name)?).try_into()?;
        let values = slots.map(|slot| map.get(&slot, 0).map(|values| values.to_vec()));
        Ok(values.collect::<Result<Vec<_>, _>>()?.concat())
    }

    fn lost(&self, what: u32) -> Result<u64> {
        Ok(self.each::<u64>("LOSSES", what..what + 1)?.into_iter().sum())
    }

    /// Everything that was dropped so far, for whatever reason.
    fn dropped(&self) -> Result<u64> {
        let first = u32::from(Verdict::Drop.number()) * Reason::SLOTS;
        let counters = self.each::<Counter>("NODE_COUNTERS", first..first + Reason::SLOTS)?;
        Ok(counters.into_iter().map(|counter| counter.packets).sum())
    }

    /// Takes what is in the ring.
    fn drain(&self) -> Result<u64> {
        let mut ring: RingBuf<MapData> = Map::RingBuf(self.map("EVENTS")?).try_into()?;
        let mut taken = 0;
        while ring.next().is_some() {
            taken += 1;
        }
        Ok(taken)
    }
}

#[test]
fn a_ring_that_nobody_reads_changes_no_verdict_and_every_loss_is_counted() -> Result<()> {
    const PORTS: u16 = 8000;
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    scenario.agent.process.signal(Signal::SIGSTOP)?;
    let kernel = Kernel(lab.file("bpffs/egress-enforcer"));
    kernel.drain()?;
    // The buckets of pod and node refuse before the ring is full: whichever does, it is counted.
    let refused = || -> Result<u64> {
        let stages = [loss::RING, loss::BUCKET_POD, loss::BUCKET_NODE];
        stages.into_iter().map(|stage| kernel.lost(stage)).sum()
    };
    let before = (kernel.dropped()?, refused()?, kernel.lost(loss::SUPPRESSED)?);

    // Each port is news of its own.
    let mark = lab.sniffer.mark();
    for address in ELSEWHERE.both() {
        let ports = PORTS.to_string();
        lab.attempt(&lab.cart.place(), &["scan", &address.to_string(), &ports])?;
    }
    lab.settle();
    ensure!(lab.sniffer.escapes(mark)?.is_empty(), "something left while nobody read");
    let dropped = kernel.dropped()? - before.0;
    let lost = refused()? - before.1;
    let suppressed = kernel.lost(loss::SUPPRESSED)? - before.2;
    let read = kernel.drain()?;
    // With nobody reading: everything is judged as ever.
    let flooded = Flood::start(lab).and_then(|flood| {
        std::thread::sleep(Duration::from_millis(1500));
        flood.end(lab)
    })?;
    ensure!(refused()? > before.1 + lost, "nothing was refused");
    old_policy_holds_with(&scenario)?;
    println!(
        "{dropped} dropped: {read} told, {lost} lost, {suppressed} suppressed; then {flooded}"
    );
    ensure!(dropped >= 2 * (u64::from(PORTS) - 1), "{dropped} dropped");
    ensure!(lost > 0 && read > 0, "{lost} lost and {read} told");
    ensure!(read + lost + suppressed == dropped, "{read} + {lost} + {suppressed} of {dropped}");

    // Whoever reads again is told again, and goes on counting.
    scenario.agent.process.signal(Signal::SIGCONT)?;
    let told = ["egress_events_lost_total{"];
    let counted = agent::sum(&scenario.samples()?, &told);
    ensure!(counted >= lost as f64, "the agent tells of {counted} lost events, not of {lost}");
    Ok(())
}

/// The same as [`old_policy_holds`], where the flood has taken the gateway's server along.
fn old_policy_holds_with(scenario: &Scenario) -> Result<()> {
    let _gateway = scenario.server(&scenario.lab.gateway.place(), "tcp", 8443)?;
    old_policy_holds(scenario)
}
