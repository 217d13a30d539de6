//! One scrape: the kernel's counters under the cluster's names.

use std::collections::BTreeMap;

use egress_common::state::{Counter, loss};
use egress_common::{Reason, Verdict};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, TextEncoder};

use super::Metric;
use super::family::{Family, number};
use super::ledger::Ledger;
use super::standing::standing;
use super::traffic::traffic;
use crate::agent::AgentState;
use crate::datapath::{DatapathError, Readings};
use crate::events::{EventCounts, Mechanism};

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

/// Everything; `readings` are continued by the ledger, `kernel` says how full the pods' table is,
/// `unreadable` how many ledgers were lost.
pub(super) fn collect(
    state: &AgentState,
    readings: &Readings,
    kernel: (usize, u32),
    ledger: &mut Ledger,
    counts: &EventCounts,
    unreadable: u64,
) -> Result<String, ScrapeError> {
    let mut families = traffic(state, ledger, &readings.pods);
    families.extend(node(&readings.node));
    families.extend(events(state, &readings.losses, counts, unreadable));
    families.extend(standing(state, kernel));
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

/// What became of denied decisions. What the kernel's tables had no room for is no decision, nor are
/// the totals of ledgers that could not be read: they stand apart, so that the rest adds up.
fn events(
    state: &AgentState,
    kernel: &[(&'static str, u64)],
    counts: &EventCounts,
    unreadable: u64,
) -> Vec<Family> {
    let mut lost = Family::new(Metric::EventsLost);
    let mut suppressed = Family::new(Metric::EventsSuppressed);
    let mut tables = Family::new(Metric::KernelLost);
    for (stage, count) in kernel {
        if *stage == "suppressed" {
            suppressed.add(&[], number(*count));
        } else if loss::EVENTS.contains(stage) {
            lost.add(&[stage], number(*count));
        } else {
            tables.add(&[stage], number(*count));
        }
    }
    for (stage, count) in counts.lost() {
        lost.add(&[stage], number(count));
    }
    tables.add(&["totals"], number(unreadable));
    let (records, decisions) = counts.written();
    let mut written = Family::new(Metric::EventsWritten);
    written.add(&[], number(records));
    let mut told = Family::new(Metric::EventsDecisions);
    told.add(&[], number(decisions));
    let mut attempts = Family::new(Metric::BypassAttempts);
    let mut sums: BTreeMap<_, u64> = BTreeMap::new();
    // From zero: an increase is seen from the first attempt on.
    for pod in state.desired.coverage.iter().filter(|pod| pod.policy.is_some()) {
        let workload = (pod.pod.namespace.clone(), pod.workload.1.clone());
        sums.extend(Mechanism::ALL.map(|mechanism| ((workload.clone(), mechanism), 0)));
    }
    for (namespace, workload, mechanism, count) in counts.bypass_attempts() {
        sums.insert(((namespace, workload), mechanism), count);
    }
    for (((namespace, workload), mechanism), count) in sums {
        attempts.add(&[&namespace, &workload, mechanism.name()], number(count));
    }
    vec![lost, suppressed, tables, written, told, attempts]
}

fn build_info() -> Family {
    let mut build = Family::new(Metric::BuildInfo);
    let schema = egress_common::SCHEMA.to_string();
    build.add(&[env!("CARGO_PKG_VERSION"), &schema], 1.0);
    build
}
