//! The agent as the lab runs it: in the node's namespace, on the lab's own cgroups and bpffs.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::http;
use crate::lab::Lab;
use crate::manifests;
use crate::process::{Place, Process, built, wait_until};

/// Where the agent serves metrics inside the node's namespace.
pub const METRICS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9464);

/// Where it answers probes.
pub const HEALTH: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9465);

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// The process; dropping it kills the agent, and enforcement stays.
    pub process: Process,
}

/// Path of the agent's binary.
///
/// # Errors
/// When it is not built.
pub fn binary() -> Result<PathBuf> {
    built("egress-agent", "EGRESS_AGENT")
}

impl Agent {
    /// Starts the agent and waits until it is ready. A configuration that the lab has already is
    /// its own.
    ///
    /// # Errors
    /// When it ends or is not ready in time; its log is quoted.
    pub fn start(lab: &Lab, more: &[&str]) -> Result<Self> {
        Self::launch(lab, &directory(lab), None, more)
    }

    /// The same as a process of a pod on the node's network.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_in(lab: &Lab, cgroup: &Path, more: &[&str]) -> Result<Self> {
        Self::launch(lab, &directory(lab), Some(cgroup), more)
    }

    /// The same on another registry than the lab's directory.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_on(lab: &Lab, registry: &str, more: &[&str]) -> Result<Self> {
        Self::launch(lab, registry, None, more)
    }

    fn launch(lab: &Lab, registry: &str, cgroup: Option<&Path>, more: &[&str]) -> Result<Self> {
        let config = lab.file("agent.yaml");
        if !config.exists() {
            manifests::config(&config, "")?;
        }
        let place = Place { netns: Some(&lab.node), cgroup, ..Place::default() };
        let mut command = place.command(binary()?)?;
        command.args(Self::arguments_on(lab, registry)).args(more);
        // The programs' own lines are debug lines.
        let level = if more.contains(&"--kernel-log") { "debug" } else { "info" };
        command.env("EGRESS_LOG", level);
        command.stdout(lab.log("agent.out")?).stderr(lab.log("agent")?);
        let mut process = Process::start(command, "egress-agent")?;
        let ready = wait_until("the agent is ready", Duration::from_secs(30), || {
            if let Some(status) = process.ended()? {
                bail!("the agent ended with {status}");
            }
            Ok(probe(lab, "/readyz").is_ok_and(|(status, _)| status == 200))
        });
        match ready {
            Ok(_) => Ok(Self { process }),
            Err(error) => {
                let log = fs::read_to_string(lab.file("log/agent")).unwrap_or_default();
                Err(error.context(format!("agent log:\n{log}")))
            }
        }
    }

    /// The arguments of `run` on the lab's directory.
    pub fn arguments(lab: &Lab) -> Vec<String> {
        Self::arguments_on(lab, &directory(lab))
    }

    /// The arguments of `run` on this registry.
    pub fn arguments_on(lab: &Lab, registry: &str) -> Vec<String> {
        let path = |name: &str| lab.file(name).display().to_string();
        vec![
            "run".to_owned(),
            format!("--registry={registry}"),
            format!("--config={}", path("agent.yaml")),
            format!("--cgroup-root={}", lab.cgroups.path().display()),
            format!("--bpffs={}", path("bpffs/egress-enforcer")),
            format!("--run-dir={}", path("run")),
            format!("--metrics-address={METRICS}"),
            format!("--health-address={HEALTH}"),
            format!("--events-output={}", path("events")),
        ]
    }
}

/// The lab's directory of manifests, as a registry.
fn directory(lab: &Lab) -> String {
    format!("dir:{}", lab.file("registry").display())
}

/// Runs a short-lived command of the agent and gives its exit code and output.
///
/// # Errors
/// When it cannot be started.
pub fn command(lab: &Lab, arguments: &[&str]) -> Result<(i32, String)> {
    let run_dir = lab.file("run");
    let output = Command::new(binary()?)
        .args(arguments)
        .arg("--run-dir")
        .arg(&run_dir)
        .stdin(Stdio::null())
        .output()
        .context("start egress-agent")?;
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
}

/// `status -o json`.
///
/// # Errors
/// When the agent does not answer.
pub fn status(lab: &Lab) -> Result<Value> {
    let (code, text) = command(lab, &["status", "-o", "json"])?;
    ensure!(code == 0, "status: {text}");
    serde_json::from_str(&text).context("read status")
}

/// Waits until the kernel runs a policy in this mode.
///
/// # Errors
/// When it does not within a few seconds.
pub fn wait_for_mode(lab: &Lab, mode: &str) -> Result<Duration> {
    wait_until(&format!("mode {mode} is in force"), Duration::from_secs(5), || {
        Ok(status(lab)?["mode"] == mode)
    })
}

/// One GET from inside the node's namespace: status and body.
///
/// # Errors
/// When nobody answers.
pub fn get(lab: &Lab, path: &str) -> Result<(u16, String)> {
    lab.node.run(|| http::get(METRICS, path))
}

/// The same of a probe.
///
/// # Errors
/// When nobody answers.
pub fn probe(lab: &Lab, path: &str) -> Result<(u16, String)> {
    lab.node.run(|| http::get(HEALTH, path))
}

/// A sample of /metrics.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Name with labels.
    pub series: String,
    /// Value.
    pub value: f64,
}

/// All samples of /metrics, read anew (past the agent's one-second cache).
///
/// # Errors
/// When the agent does not answer.
pub fn samples(lab: &Lab) -> Result<Vec<Sample>> {
    std::thread::sleep(Duration::from_millis(1050));
    let (status, body) = get(lab, "/metrics")?;
    ensure!(status == 200, "metrics: status {status}: {body}");
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        Some(Sample { series: series.to_owned(), value: value.parse().ok()? })
    };
    Ok(lines.filter_map(sample).collect())
}

/// Sum of the samples whose series has every one of these parts.
pub fn sum(samples: &[Sample], parts: &[&str]) -> f64 {
    let matching = samples.iter().filter(|s| parts.iter().all(|part| s.series.contains(part)));
    // An empty sum of floats is -0.
    matching.fold(0.0, |sum, sample| sum + sample.value)
}
