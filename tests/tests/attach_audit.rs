//! Somebody else's hand at what the agent attached: seen, mended and counted.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya_obj::generated::bpf_attach_type::{BPF_TCX_EGRESS, BPF_TCX_INGRESS};
use egress_tests::address::STRIPE;
use egress_tests::agent;
use egress_tests::bpf;
use egress_tests::flood::{Crew, PORT};
use egress_tests::lab::Pod;
use egress_tests::netns::ip;
use egress_tests::process::wait_until;
use egress_tests::scenario::{Scenario, to};

/// What is wrong is mended within this time.
const MENDED: Duration = Duration::from_secs(5);

fn index(scenario: &Scenario, interface: &str) -> Result<u32> {
    scenario.lab.node.run(|| {
        nix::net::if_::if_nametoindex(interface).with_context(|| format!("find {interface}"))
    })
}

fn pin(scenario: &Scenario, name: &str) -> PathBuf {
    scenario.lab.file("bpffs/egress-enforcer/links").join(name)
}

/// The pin of `shop/cart`'s boundary.
fn boundary(scenario: &Scenario) -> Result<PathBuf> {
    let index = index(scenario, &scenario.lab.cart.interface())?;
    Ok(pin(scenario, &format!("tcx/{index}-egress")))
}

/// Repairs of a hook, and whether it is verified for every family.
fn hook(scenario: &Scenario, hook: &str) -> Result<(f64, bool)> {
    let samples = scenario.samples()?;
    let label = format!("hook=\"{hook}\"");
    let repairs = agent::sum(&samples, &["egress_bpf_repairs_total{", &label]);
    let verified = ["egress_enforcement_verified{", &label];
    let of_hook = samples.iter().filter(|s| verified.iter().all(|part| s.series.contains(part)));
    Ok((repairs, of_hook.into_iter().all(|sample| sample.value == 1.0)))
}

/// Waits until a hook was mended once more than `before` and is verified.
fn mended(scenario: &Scenario, name: &str, before: f64) -> Result<()> {
    wait_until(&format!("{name} is mended and counted"), MENDED, || {
        let (repairs, verified) = hook(scenario, name)?;
        Ok(repairs > before && verified)
    })?;
    Ok(())
}

/// Frames by every way out of a pod for a moment: how many were tried, how many got out.
fn tried(scenario: &Scenario, pod: &Pod) -> Result<(u64, usize)> {
    let mark = scenario.lab.sniffer.mark();
    let crew = Crew::flood(&scenario.lab, &[pod])?;
    std::thread::sleep(Duration::from_millis(300));
    let attempts = crew.end()?;
    scenario.lab.settle();
    Ok((attempts, scenario.lab.sniffer.escapes(mark)?.len()))
}

fn holds(scenario: &Scenario) -> Result<()> {
    let (attempts, escaped) = tried(scenario, &scenario.lab.cart)?;
    ensure!(attempts > 100 && escaped == 0, "{escaped} of {attempts} got out");
    Ok(())
}

#[test]
fn what_is_attached_is_verified_for_every_hook_and_family() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let samples = scenario.samples()?;
    let verified = samples.iter().filter(|s| s.series.starts_with("egress_enforcement_verified{"));
    let verified: Vec<_> = verified.collect();
    // Six hooks of one family, five of both.
    assert_eq!(verified.len(), 16, "{verified:?}");
    assert!(verified.iter().all(|sample| sample.value == 1.0), "{verified:?}");
    assert_eq!(agent::sum(&samples, &["egress_bpf_repairs_total{"]), 0.0, "adopting mends nothing");
    assert_eq!(agent::sum(&samples, &["egress_bpf_foreign_programs{"]), 0.0);
    Ok(())
}

#[test]
fn a_link_detached_by_hand_is_made_again() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    for (name, pin) in [
        ("pod_egress", boundary(&scenario)?),
        ("wall", pin(&scenario, "wall")),
        ("connect4", pin(&scenario, "connect4")),
        ("getpeername6", pin(&scenario, "getpeername6")),
    ] {
        let (before, _) = hook(&scenario, name)?;
        bpf::detach(&pin)?;
        mended(&scenario, name, before)?;
    }
    holds(&scenario)
}

#[test]
fn a_pin_removed_by_hand_lets_nothing_out_and_comes_back() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let mark = lab.sniffer.mark();
    let crew = Crew::flood(lab, &[&lab.cart])?;
    for (name, pin) in [("pod_egress", boundary(&scenario)?), ("wall", pin(&scenario, "wall"))] {
        let (before, _) = hook(&scenario, name)?;
        std::fs::remove_file(&pin)?;
        mended(&scenario, name, before)?;
        assert!(pin.exists());
    }
    let attempts = crew.end()?;
    lab.settle();
    assert!(attempts > 1000, "{attempts}");
    assert_eq!(lab.sniffer.escapes(mark)?, [], "of {attempts} attempts");
    Ok(())
}

#[test]
fn a_program_put_into_our_link_is_replaced() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let (before, _) = hook(&scenario, "pod_egress")?;
    bpf::update(&boundary(&scenario)?, &bpf::load(bpf::SCHED_CLS, &bpf::NEXT)?)?;
    mended(&scenario, "pod_egress", before)?;
    let (before, _) = hook(&scenario, "wall")?;
    bpf::update(&pin(&scenario, "wall"), &bpf::load(bpf::CGROUP_SKB, &bpf::ONE)?)?;
    mended(&scenario, "wall", before)?;
    holds(&scenario)
}

#[test]
fn a_program_put_before_ours_ends_up_behind_it() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let cart = index(&scenario, &lab.cart.interface())?;
    let other = bpf::load(bpf::SCHED_CLS, &bpf::PASS)?;
    // As often as it likes: whoever is first has the last word.
    for round in 1..=3 {
        let (before, _) = hook(&scenario, "pod_egress")?;
        let foreign = lab.node.run(|| Ok(bpf::link(&other, cart, BPF_TCX_INGRESS, true)?))?;
        mended(&scenario, "pod_egress", before)?;
        assert_eq!(lab.node.run(|| bpf::count(cart, BPF_TCX_INGRESS))?, 2, "round {round}");
        holds(&scenario)?;
        drop(foreign);
        wait_until("the other program is gone", MENDED, || {
            Ok(lab.node.run(|| bpf::count(cart, BPF_TCX_INGRESS))? == 1)
        })?;
    }
    Ok(())
}

#[test]
fn a_neighbour_on_clsact_sees_only_what_we_let_through() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let interface = scenario.lab.cart.interface();
    let node = scenario.lab.node.name();
    let tc = |arguments: &str| -> Result<()> {
        let mut command = std::process::Command::new("tc");
        command.args(["-n", node]).args(arguments.split(' '));
        ensure!(command.status().context("start tc")?.success(), "tc {arguments}");
        Ok(())
    };
    tc(&format!("qdisc add dev {interface} clsact"))?;
    let other = scenario.lab.file("bpffs/neighbour");
    bpf::pin(&bpf::load(bpf::SCHED_CLS, &bpf::PASS)?, &other)?;
    let other = other.display();
    tc(&format!(
        "filter add dev {interface} ingress pref 1 bpf direct-action object-pinned {other}"
    ))?;
    holds(&scenario)?;
    assert!(hook(&scenario, "pod_egress")?.1);
    Ok(())
}

#[test]
fn a_renamed_interface_stays_covered_and_one_that_was_away_is_covered_again() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let (node, internet) = (lab.node.name(), lab.internet.name());
    let own = lab.cart.interface();
    lab.node.batch(&format!("link set {own} name renamed\n"))?;
    holds(&scenario)?;
    lab.node.batch(&format!("link set renamed netns {internet}\n"))?;
    std::thread::sleep(Duration::from_millis(1500));
    ip(&["-n", internet, "link", "set", "renamed", "name", &own, "netns", node])?;
    lab.node.batch(&format!("link set {own} up\n"))?;
    wait_until("the boundary is back", MENDED, || {
        let cart = index(&scenario, &own)?;
        lab.node.run(|| {
            Ok(bpf::count(cart, BPF_TCX_INGRESS)? == 1 && bpf::count(cart, BPF_TCX_EGRESS)? == 1)
        })
    })?;
    wait_until("its pod is covered", MENDED, || Ok(hook(&scenario, "pod_egress")?.1))?;
    holds(&scenario)
}

#[test]
fn a_kubepods_that_is_made_anew_is_walled_again() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let kubepods = lab.cgroups.path().join("kubepods");
    let (before, _) = hook(&scenario, "wall")?;
    egress_tests::cgroup::remove(&kubepods);
    std::fs::create_dir(&kubepods)?;
    mended(&scenario, "wall", before)?;
    let place = lab.cgroups.container(lab.cart.identity.uid, "app")?;
    assert_eq!(place, lab.cart.cgroup);
    wait_until("the new cgroup is known", MENDED, || {
        let (outcome, escaped) =
            scenario.judged(&lab.cart.place(), &["tcp", &to(STRIPE.v4, PORT)])?;
        Ok(outcome.error == "EPERM" && escaped == 0)
    })?;
    holds(&scenario)
}
