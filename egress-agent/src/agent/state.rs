//! What the agent tells about itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use egress_common::Mode;

use super::Propagation;
use crate::datapath::HookStatus;
use crate::exposure::Exposures;
use crate::names::Names;
use crate::policy::{
    Desired, Origin, Problem, ProblemCode, Rejection, RejectionCount, Snapshot, Tables,
};
use crate::registry::Health;

/// What everything that reports reads: one immutable value per change.
#[derive(Clone, Debug)]
pub struct AgentState {
    /// Name of this node.
    pub node: Option<String>,
    /// The registry, as it was named.
    pub source: String,
    /// The snapshot that was compiled last.
    pub snapshot: Arc<Snapshot>,
    /// What it compiled to.
    pub desired: Arc<Desired>,
    /// What was refused as part of a gateway since the start.
    pub rejections: RejectionCount,
    /// What the kernel holds.
    pub tables: Arc<Tables>,
    /// Hooks, verified against the kernel.
    pub hooks: Arc<Vec<HookStatus>>,
    /// How often a hook was found otherwise than this agent had left it, and mended.
    pub repairs: Arc<BTreeMap<&'static str, u64>>,
    /// Entries and room of each table.
    pub usage: Arc<Vec<(&'static str, usize, usize)>>,
    /// Why the last policy was not applied, if it was not.
    pub refused: Option<String>,
    /// What could not be done for single interfaces at the start, and what was lost with another
    /// version's maps.
    pub warnings: Vec<String>,
    /// Policies applied and refused since the start.
    pub applies: (u64, u64),
    /// How well the registry is known.
    pub registry: Known,
    /// How long its changes took to reach the kernel.
    pub propagation: Propagation,
    /// Boot clock of the last heartbeat, nanoseconds.
    pub beat: u64,
    /// What DNS told the pods; the same value in every state.
    pub names: Names,
    /// Who was not wholly covered, for how long, and what passed meanwhile.
    pub exposures: Arc<Exposures>,
}

/// How well the registry is known.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// When it was last known to be as its source has it.
    pub at: Instant,
    /// The same, seconds since the epoch.
    pub at_epoch: f64,
    /// Whether it is known to be so now.
    pub connected: bool,
}

impl Known {
    /// As its source says. A snapshot is known to have been so when it was made.
    pub(super) fn of(health: &Health) -> Self {
        let now = || (Instant::now(), jiff::Timestamp::now().as_duration().as_secs_f64());
        let (at, at_epoch) = health.in_step.unwrap_or_else(now);
        Self { at, at_epoch, connected: health.connected }
    }
}

impl AgentState {
    /// The strictest mode in force on this node.
    pub fn mode(&self) -> Mode {
        let modes =
            self.tables.policies.values().filter_map(|policy| Mode::from_number(policy.mode));
        modes.fold(Mode::Off, Mode::max)
    }

    /// Counts and logs what is refused as part of a gateway and was not before.
    pub(crate) fn count_rejections(&mut self) {
        for Rejection { gateway, reason, subject, origin } in
            self.rejections.update(&self.desired.rejected)
        {
            let (gateway, origin) = (gateway.to_string(), origin.to_string());
            let name = reason.name();
            if reason.is_routine() {
                tracing::info!(gateway, reason = name, subject, origin, "gateway endpoint refused");
            } else {
                tracing::warn!(gateway, reason = name, subject, origin, "gateway endpoint refused");
            }
        }
    }

    /// What only compiling found: the registry tells of its own problems, and refused endpoints
    /// are counted.
    pub(crate) fn compiled_problems(&self) -> Vec<Problem> {
        let known = &self.snapshot.problems;
        let compiled = self.desired.problems.iter().filter(|problem| {
            problem.code != ProblemCode::EndpointRejected && !known.contains(problem)
        });
        compiled.cloned().collect()
    }

    /// Problems of the registry, of compiling and of applying.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.desired.problems.clone();
        problems.extend(self.refused.as_ref().map(|message| Problem {
            code: ProblemCode::TableFull,
            origin: Origin {
                kind: "Node".to_owned(),
                name: self.node.clone().unwrap_or_default(),
                file: None,
            },
            message: message.clone(),
        }));
        problems
    }
}

#[cfg(test)]
impl AgentState {
    /// A state that knows these objects, on node `node-a`.
    pub(crate) fn of(snapshot: Snapshot, desired: Desired) -> Self {
        Self {
            node: Some("node-a".to_owned()),
            source: "dir:/manifests".to_owned(),
            snapshot: Arc::new(snapshot),
            rejections: RejectionCount::default(),
            tables: Arc::new(desired.tables.clone()),
            desired: Arc::new(desired),
            hooks: Arc::default(),
            repairs: Arc::default(),
            usage: Arc::default(),
            refused: None,
            warnings: Vec::new(),
            applies: (1, 0),
            registry: Known { at: Instant::now(), at_epoch: 1_700_000_000.0, connected: true },
            propagation: Propagation::default(),
            beat: crate::clock::boot_clock(),
            names: Names::default(),
            exposures: Arc::default(),
        }
    }
}
