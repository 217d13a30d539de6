//! The boundary as filters of clsact, which kernels before 6.6 have: made to be used here.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egress_tests::address::{STRIPE, pod};
use egress_tests::agent::{self, Agent, binary};
use egress_tests::flood::under_flood;
use egress_tests::lab::{GATEWAY, Lab};
use egress_tests::manifests;
use egress_tests::process::{Place, wait_until};
use egress_tests::scenario::{Scenario, to};

const BY_CLSACT: &str = "datapath: {attach: clsact}\n";
const BY_TCX: &str = "datapath: {attach: tcx}\n";
const OURS: &str = "egress-enforcer:";

fn scenario() -> Result<Scenario> {
    let lab = Lab::new()?;
    manifests::config(&lab.file("agent.yaml"), BY_CLSACT)?;
    let scenario = Scenario::on(lab, "enforce", &[])?;
    all_attached(&scenario)?;
    Ok(scenario)
}

/// Runs `tc` on the node and gives what it says.
fn tc(lab: &Lab, arguments: &str) -> Result<String> {
    let place = Place { netns: Some(&lab.node), ..Place::default() };
    let output = place.command("tc")?.args(arguments.split(' ')).output().context("run tc")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tc {arguments}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The filters of one side of an interface in the order they run, each as its line.
fn filters(lab: &Lab, interface: &str, side: &str) -> Result<Vec<String>> {
    let text = tc(lab, &format!("filter show dev {interface} {side}"))?;
    let lines = text.lines().map(str::trim);
    Ok(lines.filter(|line| line.contains(" handle ")).map(str::to_owned).collect())
}

fn all_attached(scenario: &Scenario) -> Result<()> {
    let status = agent::status(&scenario.lab)?;
    let hooks = status["hooks"].as_array().context("status has no hooks")?;
    ensure!(hooks.len() > 8 && hooks.iter().all(|hook| hook["attached"] == true), "{hooks:?}");
    Ok(())
}

/// Programs at the pods' interfaces and the uplink, and how many places there are.
fn programs(lab: &Lab) -> Result<(BTreeSet<String>, usize)> {
    let pods = [&lab.cart, &lab.checkout, &lab.gateway, &lab.ledger].map(|pod| pod.interface());
    let mut programs = BTreeSet::new();
    let mut places = 0;
    for interface in pods.iter().map(String::as_str).chain(["uplink"]) {
        for side in ["ingress", "egress"] {
            for filter in filters(lab, interface, side)?.iter().filter(|one| one.contains(OURS)) {
                let (_, id) = filter.split_once(" id ").with_context(|| filter.clone())?;
                programs.insert(id.split(' ').next().unwrap_or_default().to_owned());
                places += 1;
            }
        }
    }
    Ok((programs, places))
}

/// Two of each pod's interface and one of the uplink.
const PLACES: usize = 4 * 2 + 1;

fn uninstall(lab: &Lab) -> Result<()> {
    let place = Place { netns: Some(&lab.node), ..Place::default() };
    let mut command = place.command(binary()?)?;
    command.args(["uninstall", "--bpffs"]).arg(lab.file("bpffs/egress-enforcer"));
    let output = command.arg("--run-dir").arg(lab.file("run")).output().context("uninstall")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn filters_hold_what_no_socket_hook_sees() -> Result<()> {
    let scenario = scenario()?;
    let lab = &scenario.lab;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    for ip in pod(GATEWAY.host).both() {
        let (reached, _) = scenario.judged(&lab.cart.place(), &["tcp", &to(ip, 8443)])?;
        assert!(reached.ok, "{ip}: {reached:?}");
    }
    for ip in STRIPE.both() {
        let by_hand = lab.by_hand("packet", &lab.cart, (ip, 9000).into());
        let arguments: Vec<&str> = by_hand.iter().map(String::as_str).collect();
        let before = scenario.samples()?;
        let (_, escaped) = scenario.judged(&lab.cart.place(), &arguments)?;
        assert_eq!(escaped, 0, "{ip}");
        let dropped = ["egress_pod_connections_total{", "source_pod=\"cart\"", "verdict=\"drop\""];
        assert_eq!(scenario.rise(&before, &dropped)?, 1.0, "{ip}");
    }
    let (_, places) = programs(lab)?;
    assert_eq!(places, PLACES);
    Ok(())
}

#[test]
fn a_killed_agents_filters_are_replaced_in_place() -> Result<()> {
    let mut scenario = scenario()?;
    let (before, _) = programs(&scenario.lab)?;
    let flooded = under_flood(&mut scenario, |scenario| {
        for _ in 0..3 {
            scenario.agent.process.kill();
            scenario.agent = Agent::start(&scenario.lab, &[])?;
        }
        Ok(())
    })?;
    println!("3 replacements by clsact: {flooded}");
    let (after, places) = programs(&scenario.lab)?;
    assert_eq!(places, PLACES, "one filter in each place");
    assert!(before.is_disjoint(&after), "programs are this agent's: {before:?} {after:?}");
    all_attached(&scenario)
}

/// Waits until ours is the first of an interface's filters.
fn leads(lab: &Lab, interface: &str, count: usize) -> Result<()> {
    wait_until("our filter leads", Duration::from_secs(5), || {
        let order = filters(lab, interface, "ingress")?;
        Ok(order.len() == count && order[0].contains(OURS))
    })?;
    Ok(())
}

#[test]
fn a_filter_removed_by_hand_comes_back_and_is_counted() -> Result<()> {
    let scenario = scenario()?;
    let lab = &scenario.lab;
    let interface = lab.cart.interface();
    tc(lab, &format!("filter del dev {interface} ingress"))?;
    leads(lab, &interface, 1)?;
    let repairs = ["egress_bpf_repairs_total{", "hook=\"pod_egress\""];
    let samples = scenario.samples()?;
    assert_eq!(agent::sum(&samples, &repairs), 1.0);
    let verified = ["egress_enforcement_verified{", "hook=\"pod_egress\"", "ipv6"];
    assert_eq!(agent::sum(&samples, &verified), 1.0);
    all_attached(&scenario)
}

#[test]
fn a_filter_that_comes_before_ours_is_joined_and_kept() -> Result<()> {
    let mut scenario = scenario()?;
    let lab = &scenario.lab;
    let interface = lab.cart.interface();
    add_ok(lab, &interface)?;
    leads(lab, &interface, 2)?;
    scenario.agent.process.kill();
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    let lab = &scenario.lab;
    leads(lab, &interface, 2)?;
    let by_hand = lab.by_hand("packet", &lab.cart, (STRIPE.v4, 9000).into());
    let arguments: Vec<&str> = by_hand.iter().map(String::as_str).collect();
    assert_eq!(scenario.judged(&lab.cart.place(), &arguments)?.1, 0);

    scenario.agent.process.kill();
    uninstall(&scenario.lab)?;
    let order = filters(&scenario.lab, &interface, "ingress")?;
    assert!(order.len() == 1 && !order[0].contains(OURS), "the neighbour stays: {order:?}");
    Ok(())
}

/// Another tool's filter at the head, which says OK to everything: that ends the chain.
fn add_ok(lab: &Lab, interface: &str) -> Result<()> {
    let place = Place { netns: Some(&lab.node), ..Place::default() };
    let mut command = place.command("tc")?;
    command.args(["filter", "add", "dev", interface, "ingress", "pref", "1", "handle", "7"]);
    // A classic program is one argument with blanks in it: return 0.
    command.args(["bpf", "da", "bytecode", "1,6 0 0 0"]);
    let output = command.output().context("run tc")?;
    ensure!(output.status.success(), "tc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn uninstall_takes_our_qdiscs_and_leaves_others() -> Result<()> {
    let lab = Lab::new()?;
    let theirs = lab.ledger.interface();
    tc(&lab, &format!("qdisc add dev {theirs} clsact"))?;
    manifests::config(&lab.file("agent.yaml"), BY_CLSACT)?;
    let mut scenario = Scenario::on(lab, "enforce", &[])?;
    scenario.agent.process.kill();
    let (_, places) = programs(&scenario.lab)?;
    assert_eq!(places, PLACES, "filters outlive the agent");
    uninstall(&scenario.lab)?;
    let qdiscs = tc(&scenario.lab, "qdisc show")?;
    let left: Vec<&str> = qdiscs.lines().filter(|line| line.contains("clsact")).collect();
    assert!(left.len() == 1 && left[0].contains(&theirs), "{left:?}");
    assert_eq!(programs(&scenario.lab)?.1, 0);
    let place = scenario.lab.cart.place();
    let (free, escaped) = scenario.judged(&place, &["tcp", &to(STRIPE.v4, 9000)])?;
    assert!(free.ok && escaped > 0, "{free:?}");
    uninstall(&scenario.lab)
}

#[test]
fn the_other_way_is_held_before_the_one_is_let_go() -> Result<()> {
    let mut scenario = scenario()?;
    let pins = scenario.lab.file("bpffs/egress-enforcer/links/tcx");
    let pinned = || Ok::<_, std::io::Error>(std::fs::read_dir(&pins)?.count());
    let flooded = under_flood(&mut scenario, |scenario| {
        for way in [BY_TCX, BY_CLSACT, BY_TCX] {
            scenario.agent.process.kill();
            manifests::config(&scenario.lab.file("agent.yaml"), way)?;
            scenario.agent = Agent::start(&scenario.lab, &[])?;
            let expected = if way == BY_TCX { (0, PLACES - 1) } else { (PLACES, 0) };
            // Attaching goes in rounds.
            wait_until(&format!("{way} alone"), Duration::from_secs(5), || {
                Ok((programs(&scenario.lab)?.1, pinned()?) == expected)
            })?;
            all_attached(scenario)?;
        }
        Ok(())
    })?;
    println!("3 changes of the way: {flooded}");
    Ok(())
}
