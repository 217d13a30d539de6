//! The agent comes and goes; what it has put in force stays.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use egress_tests::address::STRIPE;
use egress_tests::agent::{self, Agent, binary};
use egress_tests::attempt::Outcome;
use egress_tests::lab::Lab;
use egress_tests::manifests;
use egress_tests::process::{Place, Process, wait_until};
use egress_tests::scenario::{Scenario, to};
use nix::sys::signal::Signal;

const CART_DROPS: [&str; 3] =
    ["egress_pod_connections_total{", "source_pod=\"cart\"", "verdict=\"drop\""];

#[test]
fn a_stopped_agent_leaves_enforcement_and_the_next_one_goes_on_counting() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let outside = to(STRIPE.v4, 9000);
    let dial =
        |scenario: &Scenario| scenario.judged(&scenario.lab.cart.place(), &["tcp", &outside]);
    assert!(dial(&scenario)?.0.refused());
    let before = agent::sum(&scenario.samples()?, &CART_DROPS);
    let generation = agent::status(&scenario.lab)?["generation"].clone();

    scenario.agent.process.signal(Signal::SIGTERM)?;
    let ended = scenario.agent.process.wait(Duration::from_secs(8))?;
    assert_eq!(ended.code(), Some(0), "a stopped agent ends well");
    let (refused, escaped) = dial(&scenario)?;
    assert!(refused.refused() && escaped == 0, "{refused:?}");

    scenario.agent = Agent::start(&scenario.lab, &[])?;
    assert_eq!(agent::status(&scenario.lab)?["generation"], generation, "nothing was rewritten");
    assert_eq!(agent::sum(&scenario.samples()?, &CART_DROPS), before + 1.0);
    Ok(())
}

#[test]
fn nothing_escapes_while_a_killed_agent_is_replaced() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let mark = lab.sniffer.mark();
    let mut arguments = lab.by_hand("flood", &lab.cart, (STRIPE.v4, 9000).into());
    arguments.push("--milliseconds=5000".to_owned());
    let mut command = lab.probe(&lab.cart.place())?;
    command.args(&arguments).stdout(Stdio::piped());
    let mut flood = Process::start(command, "flood")?;
    std::thread::sleep(Duration::from_millis(300));
    scenario.agent.process.kill();
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    let (_, text) = flood.output(Duration::from_secs(20))?;
    let flooded: Outcome = serde_json::from_str(&text).context("read the flood")?;
    assert!(flooded.attempts > 1000, "{flooded:?}");
    scenario.lab.settle();
    assert_eq!(scenario.lab.sniffer.escapes(mark)?, [], "of {} attempts", flooded.attempts);
    Ok(())
}

#[test]
fn an_agent_whose_pod_nobody_knows_reaches_its_registry() -> Result<()> {
    const OWN: &str = "5f0c1a52-0c4b-4c1e-9d53-000000000061";
    let lab = Lab::new()?;
    manifests::config(&lab.file("agent.yaml"), "unknownPod: deny\n")?;
    let mut scenario = Scenario::on(lab, "enforce", &[])?;
    let own = scenario.lab.cgroups.container(OWN, "agent")?;
    let server = to(STRIPE.v4, 9000);
    let dial = |scenario: &Scenario| {
        let place = Place { netns: Some(&scenario.lab.node), cgroup: Some(&own), user: None };
        scenario.lab.attempt(&place, &["tcp", &server, "--patience", "500"])
    };
    assert!(!dial(&scenario)?.ok, "the wall does not know the pod");

    // A rollout: the new agent's pod was never seen, and its registry does not answer yet.
    scenario.agent.process.kill();
    let kubeconfig = scenario.lab.file("kubeconfig");
    std::fs::write(&kubeconfig, KUBECONFIG.replace("@SERVER@", &server))?;
    let arguments = Agent::arguments(&scenario.lab).into_iter().map(|argument| {
        let registry = argument.starts_with("--registry=");
        if registry { format!("--registry=kube:{}", kubeconfig.display()) } else { argument }
    });
    let place = Place { netns: Some(&scenario.lab.node), cgroup: Some(&own), user: None };
    let mut command = place.command(binary()?)?;
    command.args(arguments).stdout(Stdio::null()).stderr(scenario.lab.log("unsynced")?);
    let mut unsynced = Process::start(command, "agent without a snapshot")?;
    wait_until("the API server is reached", Duration::from_secs(10), || Ok(dial(&scenario)?.ok))?;
    let (refused, escaped) =
        scenario.judged(&scenario.lab.cart.place(), &["tcp", &to(STRIPE.v4, 9000)])?;
    assert!(refused.refused() && escaped == 0, "everybody else is held: {refused:?}");
    unsynced.kill();

    // Nor does a policy, or another, take it away.
    scenario.agent = Agent::start_in(&scenario.lab, &own, &[])?;
    assert!(dial(&scenario)?.ok);
    scenario.change_policy("mode: enforce", "mode: audit")?;
    assert!(dial(&scenario)?.ok);
    Ok(())
}

const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
    contexts: [{name: lab, context: {cluster: lab, user: agent}}]\n\
    clusters: [{name: lab, cluster: {server: \"https://@SERVER@\", insecure-skip-tls-verify: true}}]\n\
    users: [{name: agent, user: {token: secret}}]\n";

/// Runs an agent in the node's namespace and gives its exit code and complaint.
fn run(scenario: &Scenario, program: &str, before: &[&str]) -> Result<(Option<i32>, String)> {
    let place = Place { netns: Some(&scenario.lab.node), ..Place::default() };
    let mut command = place.command(program)?;
    command.args(before).args(Agent::arguments(&scenario.lab));
    let output = command.output().context("run an agent")?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn a_second_agent_is_sent_away() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let (code, complaint) = run(&scenario, &binary()?.display().to_string(), &[])?;
    assert_eq!(code, Some(3), "{complaint}");
    assert!(complaint.contains(&scenario.agent.process.pid().to_string()), "{complaint}");
    assert!(agent::status(&scenario.lab).is_ok());
    Ok(())
}

#[test]
fn three_capabilities_are_enough_and_each_is_needed() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    scenario.agent.process.kill();
    let agent = binary()?.display().to_string();
    let bounded =
        |set: &str| [format!("--bounding-set={set}"), "--inh-caps=-all".to_owned(), agent.clone()];
    for (set, missing) in [
        ("-all,+net_admin,+perfmon", "CAP_BPF"),
        ("-all,+bpf,+perfmon", "CAP_NET_ADMIN"),
        ("-all,+bpf,+net_admin", "CAP_PERFMON"),
    ] {
        let arguments = bounded(set);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (code, complaint) = run(&scenario, "setpriv", &arguments)?;
        assert_eq!(code, Some(2), "{complaint}");
        assert!(complaint.contains(&format!("add {missing}")), "{complaint}");
    }
    let place = Place { netns: Some(&scenario.lab.node), ..Place::default() };
    let mut command = place.command("setpriv")?;
    command.args(bounded("-all,+bpf,+net_admin,+perfmon")).args(Agent::arguments(&scenario.lab));
    command.stdout(Stdio::null()).stderr(scenario.lab.log("bounded")?);
    let _bounded = Process::start(command, "agent with three capabilities")?;
    scenario.until("the agent is at work", |status| status["mode"] == "enforce")?;
    Ok(())
}

#[test]
fn uninstall_lets_go_of_everything_and_only_without_an_agent() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let pins = scenario.lab.file("bpffs/egress-enforcer");
    let path = pins.display().to_string();
    let (code, complaint) = agent::command(&scenario.lab, &["uninstall", "--bpffs", &path])?;
    assert_eq!(code, 1, "{complaint}");
    scenario.agent.process.kill();
    let (code, text) = agent::command(&scenario.lab, &["uninstall", "--bpffs", &path])?;
    assert_eq!(code, 0, "{text}");
    assert!(!pins.exists(), "{text}");
    let place = scenario.lab.cart.place();
    let (free, escaped) = scenario.judged(&place, &["tcp", &to(STRIPE.v4, 9000)])?;
    assert!(free.ok && escaped > 0, "{free:?}");
    let (code, text) = agent::command(&scenario.lab, &["uninstall", "--bpffs", &path])?;
    assert_eq!(code, 0, "a second time changes nothing: {text}");
    Ok(())
}

#[test]
fn kernel_logging_brings_the_programs_own_lines() -> Result<()> {
    let scenario = Scenario::with("audit", &["--kernel-log"])?;
    let outside = to(STRIPE.v4, 9000);
    scenario.lab.attempt(&scenario.lab.cart.place(), &["tcp", &outside])?;
    let log = scenario.lab.file("log/agent");
    wait_until("the boundary's line arrives", Duration::from_secs(3), || {
        let text = std::fs::read_to_string(&log)?;
        Ok(text.contains("pod_egress protocol 6 port 9000"))
    })?;
    Ok(())
}
