//! Senders that try to get out by every way at once, for as long as something else goes on; and
//! clients beside them that must not notice.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::address::{STRIPE, pod};
use crate::attempt::Outcome;
use crate::lab::{GATEWAY, Lab, Pod};
use crate::process::Process;
use crate::scenario::{Scenario, to};

/// Where a flood is sent; servers of the lab answer there.
pub const PORT: u16 = 9000;

/// Processes that run until their standard input ends, and then say what they did.
#[derive(Debug, Default)]
pub struct Crew {
    members: Vec<(String, Process)>,
}

/// A flood from two pods with clients of the gateway beside it, around `work`: nothing of the one
/// arrives outside, and every one of the others is answered.
///
/// # Errors
/// When something arrived, a client was cut off, or the work failed.
pub fn under_flood(
    scenario: &mut Scenario,
    work: impl FnOnce(&mut Scenario) -> Result<()>,
) -> Result<String> {
    let lab = &scenario.lab;
    let _gateway = lab.serve(&lab.gateway.place(), "tcp", 8443)?;
    let mark = lab.sniffer.mark();
    let gateway = pod(GATEWAY.host).both().map(|ip| to(ip, 8443)).join(",");
    let flood = Crew::flood(lab, &[&lab.cart, &lab.checkout])?;
    let clients = Crew::visit(lab, &lab.cart, &gateway)?;
    let start = Instant::now();
    work(scenario)?;
    let attempts = flood.end()?;
    let visits = clients.end().context("a client of the gateway was cut off")?;
    scenario.lab.settle();
    let arrivals = scenario.lab.sniffer.escapes(mark)?.len();
    ensure!(arrivals == 0, "{arrivals} of {attempts} attempts arrived outside");
    ensure!(visits > 0, "only {visits} connections to the gateway");
    Ok(format!(
        "{attempts} attempts in {:.1} s, {arrivals} arrivals; {visits} connections to the gateway",
        start.elapsed().as_secs_f64()
    ))
}

impl Crew {
    /// Sends from these pods, over both families: UDP and TCP sockets, raw and packet sockets.
    ///
    /// # Errors
    /// When a sender cannot be started.
    pub fn flood(lab: &Lab, pods: &[&Pod]) -> Result<Self> {
        let mut crew = Self::default();
        for pod in pods {
            for to in STRIPE.both() {
                let mut arguments = lab.by_hand("flood", pod, (to, PORT).into());
                arguments.push("--while-open".to_owned());
                crew.join(lab, pod, &arguments, None)?;
            }
        }
        Ok(crew)
    }

    /// Adds a client that connects to `address` again and again and is answered each time.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn visit(lab: &Lab, pod: &Pod, address: &str) -> Result<Self> {
        let mut crew = Self::default();
        crew.join(lab, pod, &["visit".to_owned()], Some(address))?;
        Ok(crew)
    }

    fn join(
        &mut self,
        lab: &Lab,
        pod: &Pod,
        arguments: &[String],
        first: Option<&str>,
    ) -> Result<()> {
        let what = format!("{} of {}", arguments.join(" "), pod.identity.name);
        let mut command = lab.probe(&pod.place())?;
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(command, &what)?;
        if let Some(line) = first {
            let stdin = process.child().stdin.as_mut().context("no standard input")?;
            std::io::Write::write_all(stdin, format!("{line}\n").as_bytes())
                .with_context(|| format!("speak to {what}"))?;
        }
        self.members.push((what, process));
        Ok(())
    }

    /// Ends them all; how much they tried together.
    ///
    /// # Errors
    /// When one failed or does not end.
    pub fn end(mut self) -> Result<u64> {
        for (_, process) in &mut self.members {
            drop(process.child().stdin.take());
        }
        let mut attempts = 0;
        for (what, process) in &mut self.members {
            let (_, text) = process.output(Duration::from_secs(30))?;
            let said = text.lines().last().unwrap_or_default();
            let outcome: Outcome =
                serde_json::from_str(said).with_context(|| format!("{what} said {text:?}"))?;
            ensure!(outcome.ok, "{what}: {outcome:?}");
            attempts += outcome.attempts;
        }
        Ok(attempts)
    }
}
