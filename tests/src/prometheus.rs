//! A real Prometheus that scrapes the lab's agent, and promtool.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use egress_agent::alerts::JOB;
use serde_json::Value;

use crate::agent::METRICS;
use crate::http;
use crate::lab::Lab;
use crate::process::{Place, Process, wait_until};

/// Where it listens inside the node's namespace.
const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// Labels of a series or an alert.
pub type Labels = BTreeMap<String, String>;

/// A running Prometheus in the node's namespace.
#[derive(Debug)]
pub struct Prometheus {
    /// The process.
    pub process: Process,
}

/// A tool of the Debian package that `cargo xtask setup` unpacked.
fn tool(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).with_context(|| {
        format!("{variable} is not set: `cargo xtask test` brings Prometheus and sets it")
    })?;
    Ok(PathBuf::from(path))
}

/// Runs promtool; its output is part of the error.
///
/// # Errors
/// When it is missing or says no.
pub fn promtool(arguments: &[&str]) -> Result<String> {
    let output = Command::new(tool("EGRESS_PROMTOOL")?)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("start promtool")?;
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "promtool {}: {said}", arguments.join(" "));
    Ok(said)
}

impl Prometheus {
    /// Starts one with these rules, that scrapes and evaluates twice a second.
    ///
    /// # Errors
    /// When it refuses the rules, or has not scraped the agent within some seconds.
    pub fn start(lab: &Lab, rules: &str) -> Result<Self> {
        let directory = lab.file("prometheus");
        fs::create_dir_all(&directory).context("make Prometheus' directory")?;
        let path = |name: &str| directory.join(name).display().to_string();
        fs::write(path("rules.yaml"), rules).context("write the rules")?;
        promtool(&["check", "rules", &path("rules.yaml")])?;
        let config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}\n\
             rule_files: [rules.yaml]\n\
             scrape_configs:\n- job_name: {JOB}\n  static_configs: [{{targets: [\"{METRICS}\"]}}]\n"
        );
        fs::write(path("prometheus.yaml"), config).context("write Prometheus' configuration")?;
        let place = Place { netns: Some(&lab.node), ..Place::default() };
        let mut command = place.command(tool("EGRESS_PROMETHEUS")?)?;
        command
            .arg(format!("--config.file={}", path("prometheus.yaml")))
            .arg(format!("--storage.tsdb.path={}", path("data")))
            .arg(format!("--web.listen-address={ADDRESS}"))
            // As long as some scrapes, so that what has ended is not remembered.
            .arg("--query.lookback-delta=4s")
            .stdout(lab.log("prometheus.out")?)
            .stderr(lab.log("prometheus")?);
        let mut process = Process::start(command, "prometheus")?;
        wait_until("Prometheus is ready", Duration::from_secs(20), || {
            if let Some(status) = process.ended()? {
                let log = fs::read_to_string(lab.file("log/prometheus")).unwrap_or_default();
                bail!("Prometheus ended with {status}: {log}");
            }
            Ok(get(lab, "/-/ready").is_ok_and(|(status, _)| status == 200))
        })?;
        let prometheus = Self { process };
        wait_until("Prometheus scrapes the agent", Duration::from_secs(10), || {
            Ok(prometheus.query(lab, "up == 1")?.len() == 1)
        })?;
        Ok(prometheus)
    }

    /// An instant query: every series of the result with its value.
    ///
    /// # Errors
    /// When Prometheus refuses the expression; its words are part of the error.
    pub fn query(&self, lab: &Lab, expression: &str) -> Result<Vec<(Labels, f64)>> {
        let (status, body) =
            get(lab, &format!("/api/v1/query?query={}", percent_encoded(expression)))?;
        ensure!(status == 200, "{expression}: {body}");
        let answer: Value = serde_json::from_str(&body).context("read Prometheus' answer")?;
        let result = answer["data"]["result"].as_array().context("the answer has no vector")?;
        result
            .iter()
            .map(|series| {
                let labels = serde_json::from_value(series["metric"].clone())?;
                let value = series["value"][1].as_str().context("a series without value")?;
                Ok((labels, value.parse()?))
            })
            .collect()
    }

    /// The alerts that fire now.
    ///
    /// # Errors
    /// When Prometheus does not answer, or a template of an alert failed.
    pub fn firing(&self, lab: &Lab) -> Result<BTreeSet<Firing>> {
        let (status, body) = get(lab, "/api/v1/alerts")?;
        ensure!(status == 200, "alerts: {body}");
        let answer: Value = serde_json::from_str(&body).context("read the alerts")?;
        let alerts = answer["data"]["alerts"].as_array().context("no list of alerts")?;
        let mut firing = BTreeSet::new();
        for alert in alerts.iter().filter(|alert| alert["state"] == "firing") {
            let annotations: Labels = serde_json::from_value(alert["annotations"].clone())?;
            for (name, text) in &annotations {
                ensure!(!text.contains("<error"), "{name}: {text}");
            }
            let labels: Labels = serde_json::from_value(alert["labels"].clone())?;
            let name = labels.get("alertname").cloned().context("an alert without name")?;
            let summary = annotations.get("summary").cloned().unwrap_or_default();
            firing.insert(Firing { name, labels, summary });
        }
        Ok(firing)
    }
}

/// An alert that fires.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Firing {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// What a person reads first.
    pub summary: String,
}

fn get(lab: &Lab, path: &str) -> Result<(u16, String)> {
    lab.node.run(|| http::get(ADDRESS, path))
}

/// Every byte that is not plain as `%XX`.
fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    text.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}
