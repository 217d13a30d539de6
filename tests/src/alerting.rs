//! Causes and alerts: a lab whose agent is watched by Prometheus, and the table of which alert fired
//! for which cause.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use egress_agent::alerts::{self, Pace};

use crate::lab::Lab;
use crate::prometheus::Prometheus;
use crate::scenario::Scenario;

/// The rules of the lab: five minutes in three seconds, fourteen days in six.
pub const PACE: Pace = Pace::divided(150, 200_000);
/// An alert that its cause does not raise within this does not work.
const PATIENCE: Duration = Duration::from_secs(40);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// A lab under watch. The watcher goes first.
#[derive(Debug)]
pub struct Watch {
    /// The watcher.
    pub prometheus: Prometheus,
    /// The agent and the lab.
    pub scenario: Scenario,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    cause: &'static str,
    fired: BTreeSet<String>,
    after: Duration,
}

impl Watch {
    /// Starts Prometheus beside a scenario.
    ///
    /// # Errors
    /// When it does not come up, or anything fires before there is a cause.
    pub fn new(scenario: Scenario) -> Result<Self> {
        let prometheus = Prometheus::start(&scenario.lab, &alerts::plain(PACE))?;
        let mut watch = Self { prometheus, scenario, rows: Vec::new() };
        watch.settled("a quiet node")?;
        let quiet = Instant::now();
        let mut fired = BTreeSet::new();
        while quiet.elapsed() < Duration::from_secs(3) {
            fired.extend(watch.names()?);
            std::thread::sleep(LOOK);
        }
        watch.row("nothing", fired, Duration::ZERO);
        ensure!(watch.rows.iter().all(|row| row.fired.is_empty()), "{}", watch.table());
        Ok(watch)
    }

    /// The lab.
    pub const fn lab(&self) -> &Lab {
        &self.scenario.lab
    }

    /// Produces a cause over and over until `expected` fires, ends it, and waits until all is quiet.
    /// `beside` may fire with it: what is so by nature.
    ///
    /// # Errors
    /// When `expected` does not fire, anything else does, or something keeps firing after the end.
    pub fn cause(
        &mut self,
        cause: &'static str,
        expected: &str,
        beside: &[&str],
        mut produce: impl FnMut(&mut Scenario) -> Result<()>,
        end: impl FnOnce(&mut Scenario) -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        let mut fired = BTreeSet::new();
        let mut after = None;
        while after.is_none() {
            produce(&mut self.scenario).with_context(|| cause.to_owned())?;
            fired.extend(self.names()?);
            if fired.contains(expected) {
                after = Some(start.elapsed());
            }
            let late = start.elapsed() > PATIENCE;
            ensure!(!late, "{cause}: {expected} did not fire, but {fired:?}\n{}", self.table());
            std::thread::sleep(LOOK);
        }
        end(&mut self.scenario).with_context(|| format!("end {cause}"))?;
        fired.extend(self.settled(cause)?);
        let strangers: Vec<&String> = fired
            .iter()
            .filter(|name| *name != expected && !beside.contains(&name.as_str()))
            .collect();
        ensure!(strangers.is_empty(), "{cause}: {strangers:?} fired too\n{}", self.table());
        self.row(cause, fired, after.unwrap_or_default());
        Ok(())
    }

    fn names(&self) -> Result<BTreeSet<String>> {
        let firing = self.prometheus.firing(self.lab())?;
        Ok(firing.into_iter().map(|alert| alert.name).collect())
    }

    /// Waits until nothing fires; gives what did until then.
    fn settled(&self, cause: &str) -> Result<BTreeSet<String>> {
        let start = Instant::now();
        let mut seen = BTreeSet::new();
        loop {
            let now = self.prometheus.firing(self.lab())?;
            if now.is_empty() {
                return Ok(seen);
            }
            ensure!(start.elapsed() < PATIENCE, "{cause} is over, and {now:?} keep firing");
            seen.extend(now.into_iter().map(|alert| alert.name));
            std::thread::sleep(LOOK);
        }
    }

    fn row(&mut self, cause: &'static str, fired: BTreeSet<String>, after: Duration) {
        self.rows.push(Row { cause, fired, after });
    }

    /// The table alert by cause, for the output.
    pub fn table(&self) -> String {
        let mut text = String::from("alerts that fired, by cause:\n");
        for Row { cause, fired, after } in &self.rows {
            let fired: Vec<&str> = fired.iter().map(String::as_str).collect();
            let fired = if fired.is_empty() { "-".to_owned() } else { fired.join(" + ") };
            let after = format!("{:.1} s", after.as_secs_f32());
            text += &format!("  {cause:<58} {after:>7}  {fired}\n");
        }
        text
    }
}
