//! Upgrades: a version with other layouts, and one that dies while it starts.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya_obj::generated::bpf_attach_type::{BPF_TCX_EGRESS, BPF_TCX_INGRESS};
use egress_tests::agent::{self, Agent, binary};
use egress_tests::bpf;
use egress_tests::flood::Crew;
use egress_tests::lab::Lab;
use egress_tests::process::{Place, Process};
use egress_tests::scenario::Scenario;

/// Renames this version's maps and programs to those of another schema, as an older agent would
/// have left them: the links run its programs, and its maps are none of the new agent's.
fn as_another_schema(lab: &Lab) -> Result<std::path::PathBuf> {
    let root = lab.file("bpffs/egress-enforcer");
    let own = root.join(format!("s{}", egress_common::SCHEMA));
    let other = root.join("s1");
    fs::rename(&own, &other).with_context(|| format!("rename {}", own.display()))?;
    Ok(other)
}

#[test]
fn another_schema_takes_over_without_a_gap_and_says_what_it_could_not_keep() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let mark = scenario.lab.sniffer.mark();
    let crew = Crew::flood(&scenario.lab, &[&scenario.lab.cart, &scenario.lab.checkout])?;
    std::thread::sleep(Duration::from_millis(500));
    scenario.agent.process.kill();
    let other = as_another_schema(&scenario.lab)?;
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    std::thread::sleep(Duration::from_millis(500));
    let attempts = crew.end()?;
    scenario.lab.settle();
    assert!(attempts > 10_000, "{attempts}");
    assert_eq!(scenario.lab.sniffer.escapes(mark)?, [], "of {attempts} attempts");

    assert!(!other.exists(), "the other schema is dropped");
    let status = agent::status(&scenario.lab)?.to_string();
    assert!(status.contains("counters"), "{status}");
    let log = fs::read_to_string(scenario.lab.file("log/agent"))?;
    assert!(log.contains("schema"), "{log}");
    Ok(())
}

#[test]
fn an_agent_killed_at_any_moment_of_its_start_leaves_enforcement_on() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let mark = scenario.lab.sniffer.mark();
    let crew = Crew::flood(&scenario.lab, &[&scenario.lab.cart])?;
    scenario.agent.process.kill();
    // A start takes about a second here; every other one is an upgrade to another schema.
    for round in 0..12u64 {
        if round % 2 == 1 {
            let own =
                scenario.lab.file(&format!("bpffs/egress-enforcer/s{}", egress_common::SCHEMA));
            if own.exists() && !scenario.lab.file("bpffs/egress-enforcer/s1").exists() {
                as_another_schema(&scenario.lab)?;
            }
        }
        let place = Place { netns: Some(&scenario.lab.node), ..Place::default() };
        let mut command = place.command(binary()?)?;
        command.args(Agent::arguments(&scenario.lab));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::start(command, "egress-agent")?;
        std::thread::sleep(Duration::from_millis(150 * (round + 1)));
        process.kill();
    }
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    let attempts = crew.end()?;
    scenario.lab.settle();
    assert_eq!(scenario.lab.sniffer.escapes(mark)?, [], "of {attempts} attempts");
    let samples = scenario.samples()?;
    let verified = samples.iter().filter(|s| s.series.starts_with("egress_enforcement_verified{"));
    for sample in verified {
        ensure!(sample.value == 1.0, "{sample:?}");
    }
    Ok(())
}

#[test]
fn after_uninstall_nothing_of_ours_is_left_in_the_kernel() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let interface = scenario.lab.cart.interface();
    let count = |scenario: &Scenario| {
        scenario.lab.node.run(|| {
            let index = nix::net::if_::if_nametoindex(interface.as_str())?;
            Ok((bpf::count(index, BPF_TCX_INGRESS)?, bpf::count(index, BPF_TCX_EGRESS)?))
        })
    };
    assert_eq!(count(&scenario)?, (1, 1));
    scenario.agent.process.kill();
    assert_eq!(count(&scenario)?, (1, 1), "without its agent the boundary stands");
    let pins = scenario.lab.file("bpffs/egress-enforcer");
    let (code, text) =
        agent::command(&scenario.lab, &["uninstall", "--bpffs", &pins.display().to_string()])?;
    assert_eq!(code, 0, "{text}");
    assert_eq!(count(&scenario)?, (0, 0));
    assert!(!pins.exists());
    Ok(())
}
