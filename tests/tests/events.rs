//! What is told of denials: everything adds up, however much is denied.
//!
//! `EGRESS_FLOOD_SECONDS=N` makes the floods that long; 10 is what the cost is measured over.

use std::time::Duration;

use anyhow::{Context, Result};
use egress_tests::address::{ELSEWHERE, STRIPE};
use egress_tests::agent::{self, Agent, Sample, sum};
use egress_tests::process::wait_until;
use egress_tests::scenario::{Scenario, to};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Packets a second that the floods send together.
const RATE: u64 = 100_000;
/// What a record costs at most: one pod tells 200 at once and 10 a second more, and its floods have
/// as many CPUs as there are to repeat one on.
const RECORDS: usize = 2000;

fn seconds() -> u64 {
    std::env::var("EGRESS_FLOOD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// The records written so far.
fn records(scenario: &Scenario) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(scenario.lab.file("events")).context("read the events")?;
    let records = text.lines().map(|line| serde_json::from_str(line).context("read an event"));
    records.collect()
}

/// Decisions that these records stand for, without those that the kernel suppressed.
fn decisions(records: &[Value]) -> f64 {
    records.iter().filter_map(|record| record["unmapped"]["egress.decisions"].as_f64()).sum()
}

/// Denied decisions, and where they went.
#[derive(Debug, PartialEq)]
struct Account {
    denied: f64,
    told: f64,
    suppressed: f64,
    lost: f64,
}

impl Account {
    fn of(samples: &[Sample]) -> Self {
        Self {
            denied: sum(samples, &["egress_node_drops_total"])
                + sum(samples, &["egress_node_audit_total"]),
            told: sum(samples, &["egress_events_decisions_total"]),
            suppressed: sum(samples, &["egress_events_suppressed_total"]),
            lost: sum(samples, &["egress_events_lost_total"]),
        }
    }

    fn balances(&self) -> bool {
        self.told + self.suppressed + self.lost == self.denied
    }
}

/// Waits until everything that was denied is told, suppressed or lost: exactly.
fn settled(scenario: &Scenario) -> Result<(Account, Vec<Sample>)> {
    let mut last = None;
    let balanced = wait_until("the accounts balance", Duration::from_secs(8), || {
        let samples = scenario.samples()?;
        let account = Account::of(&samples);
        let balances = account.balances();
        last = Some((account, samples));
        Ok(balances)
    });
    balanced.with_context(|| format!("{:?}", last.as_ref().map(|(account, _)| account)))?;
    last.context("there is an account")
}

/// Processor time that a process has used, seconds.
fn processor(pid: i32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read its stat")?;
    let (_, fields) = text.rsplit_once(')').context("a stat has a name")?;
    let ticks = |index| fields.split_whitespace().nth(index).and_then(|text| text.parse().ok());
    let (user, system): (f64, f64) = ticks(11).zip(ticks(12)).context("a stat has times")?;
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok((user + system) / hertz as f64)
}

/// A pod that scans (its packets are denied at the boundary), and one that repeats itself (its calls
/// are refused), together [`RATE`] for this long. How many they sent.
fn flood(scenario: &Scenario, seconds: u64) -> Result<u64> {
    let milliseconds = (seconds * 1000).to_string();
    let rate = (RATE / 2).to_string();
    let scan = [
        "scatter",
        &to(STRIPE.v4, 1024),
        "--ports=60000",
        "--milliseconds",
        &milliseconds,
        "--rate",
        &rate,
    ];
    let repeat =
        ["scatter", &to(ELSEWHERE.v4, 4433), "--milliseconds", &milliseconds, "--rate", &rate];
    let lab = &scenario.lab;
    std::thread::scope(|scope| {
        let scan = scope.spawn(|| lab.attempt(&lab.checkout.place(), &scan));
        let repeat = scope.spawn(|| lab.attempt(&lab.cart.place(), &repeat));
        let sent = |one: std::thread::ScopedJoinHandle<'_, Result<_>>| {
            let outcome: egress_tests::attempt::Outcome =
                one.join().expect("the flood's thread")?;
            Ok::<_, anyhow::Error>(outcome.attempts)
        };
        Ok(sent(scan)? + sent(repeat)?)
    })
}

#[test]
fn a_flood_is_bounded_and_every_denied_decision_is_told_suppressed_or_lost() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let seconds = seconds();
    let pid = scenario.agent.process.pid();
    let before = processor(pid)?;
    let sent = flood(&scenario, seconds)?;
    let share = (processor(pid)? - before) / seconds as f64;
    let denied = Account::of(&scenario.samples()?).denied;
    println!(
        "{seconds} s of {} packets/s: {denied} of {sent} denied, agent at {:.1} % of a core",
        sent / seconds,
        share * 100.0
    );
    // The end of an agent writes what its windows hold; the next one goes on.
    scenario.agent.process.signal(Signal::SIGTERM)?;
    scenario.agent.process.wait(Duration::from_secs(10))?;
    let log = std::fs::read_to_string(scenario.lab.file("log/agent"))?;
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    let (account, samples) = settled(&scenario)?;
    let records = records(&scenario)?;
    println!("{account:?} in {} records", records.len());
    for stage in ["ring", "bucket_pod", "bucket_node", "aggregate_full", "output", "restart"] {
        let stage = format!("stage=\"{stage}\"");
        println!("{stage}: {}", sum(&samples, &["egress_events_lost_total", &stage]));
    }
    assert!(account.denied > sent as f64 * 0.5, "most of it reached a hook");
    assert_eq!(decisions(&records), account.told, "the records say what the metrics say");
    assert!(records.len() < RECORDS + 20 * seconds as usize, "{}", records.len());
    assert_eq!(sum(&samples, &["egress_events_written_total"]), records.len() as f64);
    let ring = sum(&samples, &["egress_events_lost_total", "stage=\"ring\""]);
    assert_eq!(ring, 0.0, "the buckets keep the ring from filling");
    let restart = sum(&samples, &["egress_events_lost_total", "stage=\"restart\""]);
    assert_eq!(restart, 0.0, "an agent that is asked to end tells everything: {log}");
    assert!(sum(&samples, &["stage=\"bucket_pod\""]) > 0.0, "the scan was held back");
    let sequences: Vec<u64> =
        records.iter().filter_map(|one| one["metadata"]["sequence"].as_u64()).collect();
    let expected: Vec<u64> = (1..=records.len() as u64).collect();
    assert_eq!(sequences, expected, "no number is missing or comes twice, over the restart too");
    Ok(())
}

#[test]
fn what_a_killed_agent_had_read_is_counted_as_lost() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let cart = scenario.lab.cart.place();
    // Told at once; the repeats are read and wait for the end of their window.
    for _ in 0..5 {
        let dialled = scenario.lab.attempt(&cart, &["tcp", &to(STRIPE.v4, 9000)])?;
        assert!(dialled.refused(), "{dialled:?}");
        std::thread::sleep(Duration::from_millis(300));
    }
    scenario.agent.process.kill();
    let dialled = scenario.lab.attempt(&cart, &["tcp", &to(STRIPE.v4, 9001)])?;
    assert!(dialled.refused(), "{dialled:?}");
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    let (account, samples) = settled(&scenario)?;
    let restart = sum(&samples, &["egress_events_lost_total", "stage=\"restart\""]);
    assert!(restart >= 3.0, "{account:?}, lost by the restart {restart}");
    let port = |record: &Value| record["dst_endpoint"]["port"].as_u64();
    let records = records(&scenario)?;
    assert!(
        records.iter().any(|one| port(one) == Some(9001)),
        "what was denied without an agent is told by the next one: {records:?}"
    );
    let numbers: Vec<_> = records.iter().map(|one| one["metadata"]["sequence"].as_u64()).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    agent::status(&scenario.lab)?;
    Ok(())
}
