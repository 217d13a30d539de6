//! Each alert about pods, policies and agents fires for its cause and for nothing else: a real
//! Prometheus watches a real agent while the causes are real.

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use egress_tests::agent::Agent;
use egress_tests::alerting::Watch;
use egress_tests::lab::Identity;
use egress_tests::manifests;
use egress_tests::scenario::Scenario;
use nix::sys::signal::Signal;

/// A pod that the API server knows and the node does not.
const GHOST: Identity = Identity {
    short: "ghost",
    name: "shop/ghost",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000061",
    host: 61,
};

/// Entries of the exact and range tables: few enough to be filled by a policy.
const TABLE: &str = "--table-size=64";

fn nothing(_: &mut Scenario) -> Result<()> {
    Ok(())
}

/// An exception that ends after so many seconds.
fn exception(scenario: &Scenario, seconds: u64) -> Result<()> {
    let end = SystemTime::now() + Duration::from_secs(seconds);
    let end = written(end)?;
    manifests::replace(
        &scenario.lab.file("registry/exception.yaml"),
        &format!(
            "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressException\n\
             metadata: {{name: outage}}\nspec:\n  scope: {{namespaces: [shop]}}\n  \
             destination: {{cidr: 198.51.100.0/24}}\n  expiresAt: \"{end}\"\n  \
             reason: gateway outage\n  requester: oncall@example.com\n"
        ),
    )
}

/// A time as the API server writes it.
fn written(time: SystemTime) -> Result<String> {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let output = std::process::Command::new("date")
        .args(["--utc", "--iso-8601=seconds", &format!("--date=@{seconds}")])
        .output()
        .context("run date")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().replace("+00:00", "Z"))
}

fn without_exception(scenario: &mut Scenario) -> Result<()> {
    fs::remove_file(scenario.lab.file("registry/exception.yaml")).context("remove the exception")
}

/// Does something once however often it is called.
fn once(
    mut act: impl FnMut(&mut Scenario) -> Result<()>,
) -> impl FnMut(&mut Scenario) -> Result<()> {
    let mut done = false;
    move |scenario| {
        if done {
            return Ok(());
        }
        done = true;
        act(scenario)
    }
}

#[test]
fn alerts_about_the_guard_fire_for_their_cause_and_for_nothing_else() -> Result<()> {
    let mut watch = Watch::new(Scenario::with("enforce", &[TABLE])?)?;

    let ghost = |scenario: &mut Scenario| {
        let pod = manifests::pod(GHOST, egress_tests::address::pod(GHOST.host), "");
        manifests::replace(&scenario.lab.file("registry/ghost.yaml"), &pod)
    };
    watch.cause(
        "a pod that never gets a cgroup",
        "EgressPodsNotCovered",
        &[],
        once(ghost),
        |s| fs::remove_file(s.lab.file("registry/ghost.yaml")).context("remove the ghost"),
    )?;

    let (present, absent) = ("addresses: [10.244.1.10]", "addresses: []");
    let (six, none) = ("addresses: [\"fd00:244:1::a\"]", "addresses: [ ]");
    watch.cause(
        "the gateway loses its endpoints",
        "EgressGatewaySetEmpty",
        &[],
        once(|s| {
            s.edit("cluster.yaml", present, absent)?;
            s.edit("cluster.yaml", six, none)
        }),
        |s| {
            s.edit("cluster.yaml", absent, present)?;
            s.edit("cluster.yaml", none, six)
        },
    )?;

    let (named, missing) = ("service: istio-egressgateway\n", "service: nobody\n");
    watch.cause(
        "a policy names a gateway that does not exist",
        "EgressGatewaySetEmpty",
        &[],
        once(|s| s.edit("policy.yaml", named, missing)),
        |s| s.edit("policy.yaml", missing, named),
    )?;

    watch.cause(
        "the registry's directory is gone",
        "EgressRegistryStale",
        &[],
        once(|s| {
            fs::rename(s.lab.file("registry"), s.lab.file("away")).context("take the registry away")
        }),
        |s| fs::rename(s.lab.file("away"), s.lab.file("registry")).context("bring it back"),
    )?;

    watch.cause(
        "the agent is killed",
        "EgressAgentDown",
        &[],
        once(|s| {
            s.agent.process.kill();
            Ok(())
        }),
        |s| {
            s.agent = Agent::start(&s.lab, &[TABLE])?;
            Ok(())
        },
    )?;

    watch.cause(
        "the agent hangs",
        "EgressAgentDown",
        &[],
        once(|s| s.agent.process.signal(Signal::SIGSTOP)),
        |s| s.agent.process.signal(Signal::SIGCONT),
    )?;

    watch.cause(
        "a policy stays in audit",
        "EgressAuditTooLong",
        &[],
        once(|s| manifests::policy(&s.lab.file("registry"), "audit")),
        |s| manifests::policy(&s.lab.file("registry"), "enforce"),
    )?;

    watch.cause(
        "an exception is in force",
        "EgressBreakGlassInUse",
        &[],
        once(|s| exception(s, 3600)),
        without_exception,
    )?;

    watch.cause(
        "an exception is about to end",
        "EgressBreakGlassExpiring",
        &["EgressBreakGlassInUse"],
        once(|s| exception(s, 15)),
        nothing,
    )?;
    without_exception(&mut watch.scenario)?;

    let many: String = (0..48)
        .map(|host| format!("    - {{ip: 10.96.1.{host}, port: 443, protocol: TCP}}\n"))
        .collect();
    let grown = format!("  infrastructure:\n    addresses:\n{many}  resolvers:");
    watch.cause(
        "a policy fills a table",
        "EgressMapNearlyFull",
        &[],
        once(|s| s.edit("policy.yaml", "  resolvers:", &grown)),
        |s| s.edit("policy.yaml", &grown, "  resolvers:"),
    )?;

    println!("{}", watch.table());
    Ok(())
}
