//! Agents are killed, replaced and doubled in the middle of a flood, and nothing gets out.
//!
//! `EGRESS_CHAOS_UPGRADES=1000` makes as many upgrades as the requirement names. One in twenty is a
//! new process; in the others this process does what the agent's does, load the programs anew, fill
//! the maps and replace the program of every link, without its registry.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egress_agent::datapath::{Loaded, Options, Way};
use egress_agent::identity::uplink::uplinks;
use egress_tests::address::STRIPE;
use egress_tests::agent::{self, Agent, binary};
use egress_tests::flood::under_flood;
use egress_tests::lab::Lab;
use egress_tests::process::Place;
use egress_tests::scenario::{Scenario, to};
use nix::sys::signal::Signal;

const UPGRADES: usize = 10;
/// Every so many upgrades one is a process of its own.
const PROCESS_EVERY: usize = 20;

/// Below the lab's pins, each with its inode: a link that was let go and made again has another.
fn pins(directory: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    let entries = fs::read_dir(directory).with_context(|| format!("{}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(pins(&path)?);
        } else {
            found.insert(path.clone(), fs::metadata(&path)?.ino());
        }
    }
    Ok(found)
}

fn root(lab: &Lab) -> PathBuf {
    lab.file("bpffs/egress-enforcer")
}

/// What an agent does at its start, up to and including the links.
fn replace_programs(lab: &Lab) -> Result<()> {
    let options =
        Options { bpffs: root(lab), kernel_log: false, capacity: None, attach: Way::default() };
    let kubepods = lab.cgroups.path().join("kubepods");
    lab.node.run(|| {
        let loaded = Loaded::load(&options)?;
        let tables = loaded.actual()?;
        let (attached, applied) = loaded.attach(&kubepods, &tables, true)?;
        let mut warnings = applied.warnings;
        warnings.extend(attached.link_uplinks(&uplinks()?)?);
        ensure!(warnings.is_empty(), "{warnings:?}");
        let hooks = attached.hooks();
        let loose: Vec<_> = hooks.iter().filter(|hook| !hook.attached).collect();
        ensure!(loose.is_empty(), "{loose:?}");
        Ok(())
    })
}

fn all_attached(lab: &Lab) -> Result<()> {
    let status = agent::status(lab)?;
    let hooks = status["hooks"].as_array().context("status has no hooks")?;
    ensure!(hooks.len() > 8 && hooks.iter().all(|hook| hook["attached"] == true), "{hooks:?}");
    Ok(())
}

/// The sniffer sees what leaves, once nobody stands in its way.
fn control(scenario: &mut Scenario) -> Result<()> {
    scenario.agent.process.kill();
    let path = root(&scenario.lab).display().to_string();
    let (code, text) = agent::command(&scenario.lab, &["uninstall", "--bpffs", &path])?;
    ensure!(code == 0, "{text}");
    let place = scenario.lab.cart.place();
    let (free, arrived) = scenario.judged(&place, &["udp", &to(STRIPE.v4, 9000)])?;
    ensure!(free.ok && arrived > 0, "the judge is blind: {free:?}");
    Ok(())
}

#[test]
fn upgrades_under_flood_let_nothing_through() -> Result<()> {
    let upgrades = match std::env::var("EGRESS_CHAOS_UPGRADES") {
        Ok(number) => number.parse().context("EGRESS_CHAOS_UPGRADES")?,
        Err(_) => UPGRADES,
    };
    let mut scenario = Scenario::new("enforce")?;
    let links = pins(&root(&scenario.lab).join("links"))?;
    let mut processes = 0;
    let flooded = under_flood(&mut scenario, |scenario| {
        for upgrade in 0..upgrades {
            if upgrade % PROCESS_EVERY == 0 {
                scenario.agent.process.kill();
                scenario.agent = Agent::start(&scenario.lab, &[])?;
                // By turns asked to go and killed.
                if processes % 2 == 0 {
                    scenario.agent.process.signal(Signal::SIGTERM)?;
                    scenario.agent.process.wait(Duration::from_secs(10))?;
                }
                scenario.agent.process.kill();
                processes += 1;
            } else {
                replace_programs(&scenario.lab)?;
            }
        }
        scenario.agent = Agent::start(&scenario.lab, &[])?;
        Ok(())
    })?;
    println!("{upgrades} upgrades, {processes} of them processes: {flooded}");
    all_attached(&scenario.lab)?;
    ensure!(pins(&root(&scenario.lab).join("links"))? == links, "links were made anew");
    control(&mut scenario)
}

#[test]
fn agents_killed_at_any_moment_of_their_start_let_nothing_through() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let links = pins(&root(&scenario.lab).join("links"))?;
    let flooded = under_flood(&mut scenario, |scenario| {
        for moment in 1..=10 {
            scenario.agent.process.kill();
            let place = Place { netns: Some(&scenario.lab.node), ..Place::default() };
            let mut command = place.command(binary()?)?;
            command.args(Agent::arguments(&scenario.lab)).stderr(scenario.lab.log("killed")?);
            scenario.agent.process = egress_tests::process::Process::start(command, "an agent")?;
            std::thread::sleep(Duration::from_millis(70 * moment));
        }
        scenario.agent.process.kill();
        scenario.agent = Agent::start(&scenario.lab, &[])?;
        Ok(())
    })?;
    println!("ten agents killed: {flooded}");
    all_attached(&scenario.lab)?;
    ensure!(pins(&root(&scenario.lab).join("links"))? == links, "links were made anew");
    Ok(())
}

/// The lock is where the pins are too: another run directory makes no second agent.
#[test]
fn a_second_agent_changes_nothing_wherever_it_looks_for_the_lock() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let before = pins(&root(&scenario.lab))?;
    let generation = agent::status(&scenario.lab)?["generation"].clone();
    let elsewhere = format!("--run-dir={}", scenario.lab.file("elsewhere").display());
    under_flood(&mut scenario, |scenario| {
        for more in [&[][..], &[elsewhere.as_str(), "--metrics-address=127.0.0.1:9465"]] {
            let mut arguments = Agent::arguments(&scenario.lab);
            let given = |argument: &String| more.iter().any(|more| same_flag(argument, more));
            arguments.retain(|argument| !given(argument));
            let place = Place { netns: Some(&scenario.lab.node), ..Place::default() };
            let mut command = place.command(binary()?)?;
            let output = command.args(&arguments).args(more).output().context("run an agent")?;
            let complaint = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(3), "{more:?}: {:?}: {complaint}", output.status);
            ensure!(complaint.contains("another agent runs on this node"), "{complaint}");
            ensure!(complaint.contains("nothing was changed"), "{complaint}");
        }
        Ok(())
    })?;
    ensure!(pins(&root(&scenario.lab))? == before, "pins have changed");
    ensure!(agent::status(&scenario.lab)?["generation"] == generation);
    all_attached(&scenario.lab)
}

fn same_flag(one: &str, other: &str) -> bool {
    one.split('=').next() == other.split('=').next()
}
