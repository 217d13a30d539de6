//! A lab with an agent at work: what most suites start from.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::{self, Agent, Sample};
use crate::attempt::Outcome;
use crate::lab::Lab;
use crate::manifests;
use crate::process::{Place, Process, wait_until};
use crate::wiring::Wiring;

/// The agent goes before the lab it runs in.
#[derive(Debug)]
pub struct Scenario {
    /// The agent.
    pub agent: Agent,
    /// The lab.
    pub lab: Lab,
}

impl Scenario {
    /// The demo's cluster with the policy in `mode`.
    ///
    /// # Errors
    /// When the lab or the agent does not come up.
    pub fn new(mode: &str) -> Result<Self> {
        Self::with(mode, &[])
    }

    /// The same on another wiring.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn wired(wiring: Wiring, mode: &str) -> Result<Self> {
        Self::on(Lab::wired(wiring)?, mode, &[])
    }

    /// The same, with more arguments for the agent.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with(mode: &str, more: &[&str]) -> Result<Self> {
        Self::on(Lab::new()?, mode, more)
    }

    /// The same in a lab that stands already, whatever happened in it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on(lab: Lab, mode: &str, more: &[&str]) -> Result<Self> {
        manifests::write(&lab.file("registry"), mode)?;
        let agent = Agent::start(&lab, more)?;
        agent::wait_for_mode(&lab, mode)?;
        Ok(Self { agent, lab })
    }

    /// An attempt, and how many frames of a workload it put on the uplink.
    ///
    /// # Errors
    /// When the probe or the sniffer fails.
    pub fn judged(&self, place: &Place<'_>, arguments: &[&str]) -> Result<(Outcome, usize)> {
        let mark = self.lab.sniffer.mark();
        let outcome = self.lab.attempt(place, arguments)?;
        self.lab.settle();
        Ok((outcome, self.lab.sniffer.escapes(mark)?.len()))
    }

    /// A server inside a place, for as long as it is held.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn server(&self, place: &Place<'_>, kind: &str, port: u16) -> Result<Process> {
        self.lab.serve(place, kind, port)
    }

    /// Changes one manifest by text.
    ///
    /// # Errors
    /// When the file does not contain `from`, so that no test edits nothing.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> Result<()> {
        let path = self.lab.file("registry").join(file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {file}"))?;
        ensure!(text.contains(from), "{file} has no {from:?}");
        manifests::replace(&path, &text.replace(from, to))
    }

    /// Changes the policy once what the start brought is applied, and waits until the change is.
    ///
    /// # Errors
    /// As [`edit`](Self::edit), or when it is not applied within five seconds.
    pub fn change_policy(&self, from: &str, to: &str) -> Result<()> {
        let generation = |status: &serde_json::Value| status["generation"].as_u64();
        let mut before = None;
        let mut same = 0;
        while same < 3 {
            std::thread::sleep(Duration::from_millis(500));
            let now = generation(&agent::status(&self.lab)?);
            same = if now == before { same + 1 } else { 0 };
            before = now;
        }
        self.edit("policy.yaml", from, to)?;
        self.until("the changed policy is in force", |status| generation(status) > before)?;
        Ok(())
    }

    /// Polls `status` until `done`.
    ///
    /// # Errors
    /// When it is not within five seconds.
    pub fn until(
        &self,
        what: &str,
        mut done: impl FnMut(&serde_json::Value) -> bool,
    ) -> Result<Duration> {
        wait_until(what, Duration::from_secs(5), || Ok(done(&agent::status(&self.lab)?)))
    }

    /// Counters, to be compared with [`Scenario::rise`].
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn samples(&self) -> Result<Vec<Sample>> {
        agent::samples(&self.lab)
    }

    /// How much the matching counters rose since `before`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn rise(&self, before: &[Sample], parts: &[&str]) -> Result<f64> {
        Ok(agent::sum(&self.samples()?, parts) - agent::sum(before, parts))
    }
}

/// `address:port` as the probe takes it.
pub fn to(ip: impl Into<IpAddr>, port: u16) -> String {
    SocketAddr::new(ip.into(), port).to_string()
}
