//! One scrape: the kernel's counters under the cluster's names.

use std::collections::BTreeMap;

use egress_common::state::{Counter, CounterKey};
use egress_common::{Reason, Verdict};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, TextEncoder};

use super::Metric;
use super::family::{Family, number};
use super::ledger::Ledger;
use super::traffic::traffic;
use crate::agent::AgentState;
use crate::datapath::{CounterReader, DatapathError};
use crate::events::LostEvents;
use crate::names::Class;

/// Why a scrape failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScrapeError {
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error("metrics cannot be written: {0}")]
    Encode(#[from] prometheus::Error),
}

/// What is known before the first snapshot.
pub(super) fn before_ready() -> Result<String, ScrapeError> {
    encode([build_info()])
}

/// What the kernel counted, at one moment.
pub(super) struct Counted {
    pub(super) pods: BTreeMap<CounterKey, Counter>,
    pub(super) node: BTreeMap<(Verdict, Reason), Counter>,
    pub(super) losses: Vec<(&'static str, u64)>,
    pub(super) lost_answers: Vec<(&'static str, u64)>,
}

impl Counted {
    /// Reads the pinned maps.
    pub(super) fn read(reader: &CounterReader) -> Result<Self, DatapathError> {
        Ok(Self {
            pods: reader.counters()?,
            node: reader.node()?,
            losses: reader.losses()?,
            lost_answers: reader.lost_answers()?,
        })
    }
}

/// Everything.
pub(super) fn collect(
    state: &AgentState,
    counted: &Counted,
    ledger: &Ledger,
    lost: &LostEvents,
) -> Result<String, ScrapeError> {
    let mut families = traffic(state, ledger, &counted.pods);
    families.extend(node(&counted.node));
    families.extend(losses(&counted.losses, lost));
    families.extend(names(state, &counted.lost_answers));
    families.extend(super::standing::standing(state));
    families.push(build_info());
    encode(families)
}

fn encode(families: impl IntoIterator<Item = Family>) -> Result<String, ScrapeError> {
    let families: Vec<MetricFamily> = families.into_iter().filter_map(Family::finish).collect();
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn node(totals: &BTreeMap<(Verdict, Reason), Counter>) -> Vec<Family> {
    let mut drops = Family::new(Metric::NodeDrops);
    let mut audits = Family::new(Metric::NodeAudit);
    for reason in Reason::ALL.iter().filter(|reason| reason.denies()) {
        for (verdict, family) in [(Verdict::Drop, &mut drops), (Verdict::Audit, &mut audits)] {
            let packets = totals.get(&(verdict, *reason)).map_or(0, |counter| counter.packets);
            family.add(&[reason.name()], number(packets));
        }
    }
    vec![drops, audits]
}

fn losses(kernel: &[(&'static str, u64)], lost: &LostEvents) -> Vec<Family> {
    let mut events = Family::new(Metric::EventsLost);
    let mut suppressed = Family::new(Metric::EventsSuppressed);
    for (stage, count) in kernel {
        if *stage == "suppressed" {
            suppressed.add(&[], number(*count));
        } else {
            events.add(&[stage], number(*count));
        }
    }
    for (stage, count) in lost.counts() {
        events.add(&[stage], number(count));
    }
    vec![events, suppressed]
}

/// What DNS told the pods.
fn names(state: &AgentState, kernel: &[(&'static str, u64)]) -> [Family; 4] {
    let counts = state.names.counts();
    let mut answers = Family::new(Metric::DnsAnswers);
    for (outcome, count) in counts.outcomes() {
        answers.add(&[outcome.name()], number(count));
    }
    let mut lost = Family::new(Metric::DnsLost);
    for (stage, count) in kernel.iter().copied().chain(counts.losses()) {
        lost.add(&[stage], number(count));
    }
    let by_workload = |metric, class| {
        let mut family = Family::new(metric);
        for ((namespace, workload), count) in counts.findings(class) {
            family.add(&[&namespace, &workload], number(count));
        }
        family
    };
    let rebinding = by_workload(Metric::DnsRebinding, Class::Rebinding);
    let drift = by_workload(Metric::DnsDrift, Class::Drift);
    [answers, rebinding, drift, lost]
}

fn build_info() -> Family {
    let mut build = Family::new(Metric::BuildInfo);
    let schema = egress_common::SCHEMA.to_string();
    build.add(&[env!("CARGO_PKG_VERSION"), &schema], 1.0);
    build
}
