//! The rules that Prometheus evaluates over the agents' metrics: what an SRE is woken for, and what
//! an auditor asks.
//!
//! One table makes both a plain rules file and a `PrometheusRule`, and the same rules at another
//! [`Pace`] for the tests that let a real Prometheus judge real causes. Metrics are named through
//! the catalogue, so that no rule reads what is not exported. Thresholds are constants of
//! [`thresholds`], each with its reason; `docs/alerts.md` lists them.

mod alerting;
mod class;
mod recording;
#[cfg(test)]
mod tests;
pub mod thresholds;
mod write;

pub use alerting::alerts;
pub use class::DestinationClass;
pub use recording::recordings;
pub use write::{plain, prometheus_rule};

/// The job under which Prometheus scrapes the agents; rules about targets name it.
pub const JOB: &str = "egress-agent";
/// Where the pages of `deploy/runbooks` are served; each alert adds its own name.
pub const RUNBOOKS: &str = "https://egress-enforcer.io/runbooks";

/// How urgent an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Wake somebody: enforcement or sight of it is lost, or somebody is trying hard.
    Critical,
    /// Look today.
    Warning,
    /// Know about it.
    Info,
}

impl Severity {
    /// The label's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// An alert, at some pace.
#[derive(Clone, Debug)]
pub struct Alert {
    /// Its name, which is also its runbook's.
    pub name: &'static str,
    /// How urgent it is.
    pub severity: Severity,
    /// How long the expression must hold, seconds; zero for at once.
    pub hold: u64,
    /// When it fires.
    pub expr: String,
    /// One line that names the pod, workload, gateway or node.
    pub summary: &'static str,
    /// What it means, in one or two sentences.
    pub description: &'static str,
}

/// A series that Prometheus keeps because many queries need it, or one needs it for long.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Its name: `egress:` what by which labels `:` how.
    pub name: &'static str,
    /// A label of its own, where several rules make one series.
    pub label: Option<(&'static str, &'static str)>,
    /// What is recorded.
    pub expr: String,
}

/// How fast the rules' time runs. In production as it is written; tests divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    minutes: u64,
    days: u64,
}

impl Pace {
    /// Every duration as it is written.
    pub const REAL: Self = Self { minutes: 1, days: 1 };
    /// From here on a duration is one of days.
    const DAY: u64 = 86_400;

    /// The shortest duration that some scrapes fit into, seconds.
    const SHORTEST: u64 = 3;
    /// What the agent renews every few seconds is not old before this, seconds.
    const YOUNG: u64 = 6;

    /// Durations below a day divided by `minutes`, others by `days`; none gets shorter than three
    /// seconds. A thing that happens at a rate happens as much faster.
    pub const fn divided(minutes: u64, days: u64) -> Self {
        Self { minutes, days }
    }

    /// A duration at this pace, seconds.
    pub fn seconds(self, duration: u64) -> u64 {
        let divisor = if duration < Self::DAY { self.minutes } else { self.days };
        if duration == 0 { 0 } else { (duration / divisor.max(1)).max(Self::SHORTEST) }
    }

    /// An age at this pace, seconds.
    pub fn age(self, seconds: u64) -> u64 {
        self.seconds(seconds).max(Self::YOUNG)
    }

    /// So many a second, at this pace.
    pub const fn rate(self, a_second: u64) -> u64 {
        a_second * self.minutes
    }

    /// The same as rules write it.
    pub fn span(self, duration: u64) -> String {
        let seconds = self.seconds(duration);
        let units = [(Self::DAY, "d"), (3600, "h"), (60, "m")];
        let unit =
            units.into_iter().find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit));
        let (unit, word) = unit.unwrap_or((1, "s"));
        format!("{}{word}", seconds / unit)
    }
}
