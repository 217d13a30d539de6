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
use egress_tests::flood::Flood;
use egress_tests::lab::{Identity, Lab};
use egress_tests::manifests;
use egress_tests::process::{Place, Process, wait_until};
use egress_tests::scenario::{Scenario, to};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use serde_json::Value;

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
    let flood = Flood::start(&scenario.lab)?;
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
    let flooded = flood.end(&scenario.lab)?;
    println!("{upgrades} upgrades, {processes} of them processes: {flooded}");
    all_attached(&scenario.lab)?;
    ensure!(pins(&root(&scenario.lab).join("links"))? == links, "links were made anew");
    control(&mut scenario)
}

#[test]
fn agents_killed_at_any_moment_of_their_start_let_nothing_through() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let links = pins(&root(&scenario.lab).join("links"))?;
    let flood = Flood::start(&scenario.lab)?;
    for moment in 1..=10 {
        scenario.agent.process.kill();
        let place = Place { netns: Some(&scenario.lab.node), ..Place::default() };
        let mut command = place.command(binary()?)?;
        command.args(Agent::arguments(&scenario.lab)).stderr(scenario.lab.log("killed")?);
        scenario.agent.process = Process::start(command, "an agent")?;
        std::thread::sleep(Duration::from_millis(70 * moment));
    }
    scenario.agent.process.kill();
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    let flooded = flood.end(&scenario.lab)?;
    println!("ten agents killed: {flooded}");
    all_attached(&scenario.lab)?;
    ensure!(pins(&root(&scenario.lab).join("links"))? == links, "links were made anew");
    Ok(())
}

/// The lock is where the pins are too: another run directory makes no second agent.
#[test]
fn a_second_agent_changes_nothing_wherever_it_looks_for_the_lock() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let before = pins(&root(&scenario.lab))?;
    let generation = agent::status(&scenario.lab)?["generation"].clone();
    let elsewhere = format!("--run-dir={}", scenario.lab.file("elsewhere").display());
    let flood = Flood::start(&scenario.lab)?;
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
    flood.end(&scenario.lab)?;
    ensure!(pins(&root(&scenario.lab))? == before, "pins have changed");
    ensure!(agent::status(&scenario.lab)?["generation"] == generation);
    all_attached(&scenario.lab)
}

/// Mounts the lab's bpffs anew.
fn remount(lab: &Lab, flags: MsFlags) -> Result<()> {
    let path = lab.file("bpffs");
    let flags = flags | MsFlags::MS_REMOUNT;
    mount(None::<&str>, &path, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("remount {}", path.display()))
}

#[test]
fn a_bpffs_that_becomes_read_only_is_said_and_lets_go_of_nothing() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let links = pins(&root(&scenario.lab).join("links"))?;
    let flood = Flood::start(&scenario.lab)?;
    remount(&scenario.lab, MsFlags::MS_RDONLY)?;

    // A pod comes whose boundary cannot be pinned, and another goes.
    let lab = &scenario.lab;
    let late = lab.add_pod(LATE)?;
    late.netns.await_ipv6("eth0")?;
    let registry = lab.file("registry");
    manifests::replace(&registry.join("late.yaml"), &manifests::pod(LATE, late.address(), ""))?;
    let covered = |status: &Value, state: &str| {
        let mut pods = status["pods"].as_array().into_iter().flatten();
        pods.any(|pod| pod["pod"]["name"] == "late" && pod["state"] == state)
    };
    scenario.until("the new pod is known", |status| covered(status, "covered"))?;
    let log = scenario.lab.file("log/agent");
    wait_until("the agent says it", Duration::from_secs(5), || {
        Ok(fs::read_to_string(&log)?.contains("Read-only file system"))
    })?;
    let behind_the_wall = |scenario: &Scenario| {
        let (refused, arrived) = scenario.judged(&late.place(), &["tcp", &to(STRIPE.v4, 9000)])?;
        ensure!(refused.refused() && arrived == 0, "{arrived} frames outside: {refused:?}");
        Ok(())
    };
    behind_the_wall(&scenario)?;
    // The policy is still followed.
    scenario.change_policy("mode: enforce", "denyResponse: Drop\n  mode: enforce")?;

    // Killed, and no other can take over what it left: that says so, and changes nothing.
    scenario.agent.process.kill();
    behind_the_wall(&scenario)?;
    let place = Place { netns: Some(&scenario.lab.node), ..Place::default() };
    let mut command = place.command(binary()?)?;
    let output = command.args(Agent::arguments(&scenario.lab)).output().context("run an agent")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2), "{:?}: {complaint}", output.status);
    ensure!(complaint.contains("remount,rw"), "{complaint}");
    behind_the_wall(&scenario)?;

    // Where only the agent's own mount is, as with a readOnly volume, it can.
    remount(&scenario.lab, MsFlags::empty())?;
    let bpffs = scenario.lab.file("bpffs").display().to_string();
    let script = format!("mount -o remount,bind,ro {bpffs}; exec \"$@\"");
    let mut command = place.command("unshare")?;
    command.args(["--mount", "sh", "-ec", &script, "sh"]).arg(binary()?);
    command.args(Agent::arguments(&scenario.lab)).stderr(scenario.lab.log("volume")?);
    scenario.agent.process = Process::start(command, "an agent with a read-only volume")?;
    scenario.until("it is at work", |status| status["mode"] == "enforce")?;
    let log = fs::read_to_string(scenario.lab.file("log/volume"))?;
    ensure!(log.contains("new interfaces get no boundary"), "{log}");
    behind_the_wall(&scenario)?;
    scenario.agent.process.kill();
    let now = pins(&root(&scenario.lab).join("links"))?;
    ensure!(now == links, "links were made anew or lost: {now:?}");
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    println!("on a read-only bpffs: {}", flood.end(&scenario.lab)?);
    let now = pins(&root(&scenario.lab).join("links"))?;
    ensure!(now.len() == links.len() + 2, "the new pod has no boundary: {now:?}");
    all_attached(&scenario.lab)
}

/// A pod that comes while nothing can be pinned.
const LATE: Identity = Identity {
    short: "late",
    name: "shop/late",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000091",
    host: 91,
};

fn same_flag(one: &str, other: &str) -> bool {
    one.split('=').next() == other.split('=').next()
}
