//! One scrape: the kernel's counters under the cluster's names.

use std::collections::BTreeMap;

use egress_common::state::{Counter, CounterKey};
use egress_common::{Mode, Reason, Verdict};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, TextEncoder};

use super::family::{Family, number};
use super::ledger::Ledger;
use super::traffic::traffic;
use crate::agent::AgentState;
use crate::clock::boot_clock;
use crate::datapath::{CounterReader, DatapathError};
use crate::events::LostEvents;
use crate::policy::{CoverageState, ProblemCode, RejectReason};

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
}

impl Counted {
    /// Reads the pinned maps.
    pub(super) fn read(reader: &CounterReader) -> Result<Self, DatapathError> {
        Ok(Self { pods: reader.counters()?, node: reader.node()?, losses: reader.losses()? })
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
    families.extend(agent(state));
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
    let mut drops = Family::counter(
        "egress_node_drops_total",
        "Packets and socket calls refused on this node, by reason.",
    );
    let mut audits = Family::counter(
        "egress_node_audit_total",
        "Packets let through on this node that mode enforce would have dropped, by reason.",
    );
    for reason in Reason::ALL.iter().filter(|reason| reason.denies()) {
        for (verdict, family) in [(Verdict::Drop, &mut drops), (Verdict::Audit, &mut audits)] {
            let packets = totals.get(&(verdict, *reason)).map_or(0, |counter| counter.packets);
            family.add(&[("reason", reason.name())], number(packets));
        }
    }
    vec![drops, audits]
}

fn losses(kernel: &[(&'static str, u64)], lost: &LostEvents) -> Vec<Family> {
    let mut events = Family::counter(
        "egress_events_lost_total",
        "Events and counts that were lost, by the stage that lost them.",
    );
    let mut suppressed = Family::counter(
        "egress_events_suppressed_total",
        "Decisions that raised no event because the same one had just been told.",
    );
    for (stage, count) in kernel {
        if *stage == "suppressed" {
            suppressed.add(&[], number(*count));
        } else {
            events.add(&[("stage", stage)], number(*count));
        }
    }
    for (stage, count) in lost.counts() {
        events.add(&[("stage", stage)], number(count));
    }
    vec![events, suppressed]
}

fn agent(state: &AgentState) -> Vec<Family> {
    let mut pods = Family::gauge("egress_pods", "Pods of this node, by state of coverage.");
    for coverage in CoverageState::ALL {
        let count = state.desired.coverage.iter().filter(|pod| pod.state == *coverage).count();
        pods.add(&[("state", coverage.name())], number(count as u64));
    }
    let mut endpoints =
        Family::gauge("egress_gateway_endpoints", "Endpoints of a gateway, by state.");
    for gateway in &state.desired.gateways {
        let draining = gateway.endpoints.iter().filter(|endpoint| endpoint.draining).count();
        let name = gateway.name.to_string();
        let serving = gateway.endpoints.len() - draining;
        for (word, count) in [("serving", serving), ("draining", draining)] {
            endpoints.add(&[("gateway", &name), ("state", word)], number(count as u64));
        }
    }
    let mut rejected = Family::counter(
        "egress_gateway_rejected_endpoints_total",
        "What was offered as part of a gateway and refused, by reason, counted as it appeared.",
    );
    for reason in RejectReason::ALL {
        let total = state.rejections.total(*reason);
        rejected.add(&[("reason", reason.name())], number(total));
    }
    let mut mode = Family::gauge("egress_enforcement_mode", "1 for the strictest mode in force.");
    for word in Mode::ALL {
        mode.add(&[("mode", word.name())], f64::from(u8::from(state.mode() == *word)));
    }
    let mut problems =
        Family::gauge("egress_registry_problems", "Problems the agent reports, by class.");
    let reported = state.problems();
    for code in ProblemCode::ALL {
        let count = reported.iter().filter(|problem| problem.code == *code).count();
        problems.add(&[("code", code.name())], number(count as u64));
    }
    let mut attached = Family::gauge(
        "egress_bpf_program_attached",
        "Links of a hook that run this agent's program.",
    );
    let mut hooks: BTreeMap<&str, u64> = BTreeMap::new();
    for hook in state.hooks.iter() {
        *hooks.entry(hook.hook).or_default() += u64::from(hook.attached);
    }
    for (hook, count) in hooks {
        attached.add(&[("hook", hook)], number(count));
    }
    let mut entries = Family::gauge("egress_bpf_map_entries", "Entries of a kernel table.");
    let mut capacity = Family::gauge("egress_bpf_map_capacity", "Room of a kernel table.");
    for (map, held, room) in state.usage.iter() {
        entries.add(&[("map", map)], number(*held as u64));
        capacity.add(&[("map", map)], number(*room as u64));
    }
    let mut applies = Family::counter("egress_apply_total", "Policies applied or refused whole.");
    let (applied, refused) = state.applies;
    applies.add(&[("result", "applied")], number(applied));
    applies.add(&[("result", "refused")], number(refused));
    let mut generation =
        Family::gauge("egress_policy_generation", "Generation of the policy the kernel runs.");
    generation.add(&[], f64::from(state.tables.config.generation));
    let mut synced = Family::gauge(
        "egress_registry_last_sync_timestamp_seconds",
        "When the registry was last known to be as its source has it.",
    );
    synced.add(&[], state.registry.at_epoch);
    let mut connected = Family::gauge(
        "egress_registry_connected",
        "1 while the registry is known to be as its source has it.",
    );
    connected.add(&[], f64::from(u8::from(state.registry.connected)));
    let mut propagation = Family::histogram(
        "egress_registry_propagation_seconds",
        "Time from the moment a change was noticed to the moment the kernel held it.",
    );
    let (changes, seconds) = state.propagation.total();
    propagation.add_classes(state.propagation.classes(), changes, seconds);
    let mut lease =
        Family::gauge("egress_agent_lease_age_seconds", "Age of the agent's last heartbeat.");
    lease.add(&[], number(boot_clock().saturating_sub(state.beat)) / 1e9);
    vec![
        pods,
        endpoints,
        rejected,
        mode,
        problems,
        attached,
        entries,
        capacity,
        applies,
        generation,
        synced,
        connected,
        propagation,
        lease,
    ]
}

fn build_info() -> Family {
    let mut build = Family::gauge("egress_build_info", "1, with the agent's version and schema.");
    let schema = egress_common::SCHEMA.to_string();
    build.add(&[("version", env!("CARGO_PKG_VERSION")), ("schema", &schema)], 1.0);
    build
}
