//! Pods come and go, with the same names and addresses and new UIDs each time: what the agent and the
//! kernel hold for them goes with them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use egress_tests::address::STRIPE;
use egress_tests::lab::{Identity, Lab, Pod};
use egress_tests::manifests;
use egress_tests::process::wait_until;
use egress_tests::scenario::{Scenario, to};
use egress_tests::{agent, cgroup};

/// What is held at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    /// Name and entries of each kernel table.
    entries: Vec<(String, u64)>,
    pins: usize,
    descriptors: usize,
    /// Resident, KiB.
    memory: u64,
}

impl Held {
    fn now(scenario: &Scenario) -> Result<Self> {
        let samples = scenario.samples()?;
        // Counters of the dead stay for some minutes, until they are in their workload's sum.
        let entries = samples.iter().filter(|one| {
            one.series.starts_with("egress_bpf_map_entries") && !one.series.contains("COUNTERS")
        });
        let process = format!("/proc/{}", scenario.agent.process.pid());
        let status = fs::read_to_string(format!("{process}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory = resident.and_then(|line| line.split_whitespace().next()?.parse().ok());
        Ok(Self {
            entries: entries.map(|one| (one.series.clone(), one.value as u64)).collect(),
            pins: files(&scenario.lab.file("bpffs"))?,
            descriptors: fs::read_dir(format!("{process}/fd"))?.count(),
            memory: memory.context("the agent has no resident memory")?,
        })
    }
}

fn files(path: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { files(&entry.path())? } else { 1 };
    }
    Ok(count)
}

/// Addresses that no other pod of the lab has.
fn hosts(count: usize) -> impl Iterator<Item = u8> {
    (4..=u8::MAX).filter(|host| ![10, 20].contains(host)).take(count)
}

fn identity(round: usize, host: u8) -> Identity {
    Identity {
        short: format!("c{host}").leak(),
        name: format!("shop/churn-{host}").leak(),
        uid: format!("5f0c1a52-0c4b-4c1e-{round:04x}-{host:012x}").leak(),
        host,
    }
}

/// Every pod comes, is covered and refused, and goes.
fn round(scenario: &Scenario, number: usize, count: usize) -> Result<Duration> {
    let lab = &scenario.lab;
    let pods: Vec<Pod> =
        hosts(count).map(|host| lab.add_pod(identity(number, host))).collect::<Result<_>>()?;
    let objects: Vec<String> =
        pods.iter().map(|pod| manifests::pod(pod.identity, pod.address(), "")).collect();
    manifests::replace(&lab.file("registry/churn.yaml"), &objects.join("---\n"))?;
    let took = settle(lab, "every pod is covered", |status, hooks| {
        let covered = |pod: &&serde_json::Value| {
            pod["state"] == "covered"
                && pod["exposure"]["reason"].is_null()
                && pod["uid"].as_str().is_some_and(|uid| uid.contains(&format!("-{number:04x}-")))
        };
        let pods = status["pods"].as_array().into_iter().flatten();
        pods.filter(covered).count() == count && hooks >= 2 * count
    })?;
    for pod in pods.iter().step_by(count.div_ceil(4)) {
        let (dialled, escapes) =
            scenario.judged(&pod.place(), &["tcp", &to(STRIPE.v4, 9000), "--patience", "300"])?;
        assert!(!dialled.ok && escapes == 0, "{}: {dialled:?}", pod.identity.name);
    }
    fs::remove_file(lab.file("registry/churn.yaml"))?;
    let links: String =
        pods.iter().map(|pod| format!("link delete {}\n", pod.interface())).collect();
    lab.node.batch(&links)?;
    for pod in pods {
        let directory = lab.cgroups.pod(pod.identity.uid);
        drop(pod);
        cgroup::remove(&directory);
    }
    settle(lab, "nothing is left of them", |status, _| {
        let pods = status["pods"].as_array().into_iter().flatten();
        pods.filter(|pod| pod.to_string().contains("churn-")).count() == 0
    })?;
    Ok(took)
}

fn settle(
    lab: &Lab,
    what: &str,
    mut done: impl FnMut(&serde_json::Value, usize) -> bool,
) -> Result<Duration> {
    wait_until(what, Duration::from_secs(90), || {
        let status = agent::status(lab)?;
        let hooks = status["hooks"].as_array().into_iter().flatten();
        let interfaces = hooks.filter(|hook| {
            hook["attached"] == true
                && hook["target"].as_str().is_some_and(|target| target.starts_with("ifindex"))
        });
        let interfaces = interfaces.count();
        Ok(done(&status, interfaces))
    })
}

#[test]
fn what_pods_took_they_give_back() -> Result<()> {
    let rounds = std::env::var("EGRESS_CHURN_ROUNDS").ok();
    let (rounds, count) = match rounds {
        Some(rounds) => (rounds.parse().context("EGRESS_CHURN_ROUNDS is a number")?, 250),
        None => (2, 12),
    };
    let scenario = Scenario::new("enforce")?;
    let start = std::time::Instant::now();
    // What is allocated once is allocated by the first.
    round(&scenario, 0, count)?;
    let before = Held::now(&scenario)?;
    println!("after the first round: {before:?}");
    for number in 1..=rounds {
        let took = round(&scenario, number, count)?;
        println!("round {number}: {count} pods covered after {} ms", took.as_millis());
    }
    let after = Held::now(&scenario)?;
    let seconds = start.elapsed().as_secs();
    println!("after {rounds} more rounds of {count} pods, {seconds} s: {after:?}");
    for sample in scenario.samples()?.iter().filter(|one| one.series.contains("unenforced")) {
        println!("{} {}", sample.series, sample.value);
    }
    assert_eq!(after.entries, before.entries);
    assert_eq!(after.pins, before.pins);
    // A request or two may be under way.
    assert!(after.descriptors.abs_diff(before.descriptors) <= 3, "{after:?}, before {before:?}");
    let growth = after.memory.saturating_sub(before.memory);
    assert!(growth < 16 * 1024, "{growth} KiB more than before");
    let unenforced = scenario.samples()?;
    let passed = agent::sum(&unenforced, &["egress_unenforced_seconds_total"]);
    assert!(passed > 0.0, "every one of them was new once");
    Ok(())
}
