//! What the agent was told at its start, and with it from a snapshot to what the kernel should hold.

use std::collections::BTreeSet;
use std::time::Duration;

use egress_common::Mode;

use crate::clock::boot_clock;
use crate::identity::cgroup::Kubepods;
use crate::identity::link;
use crate::policy::compile::compile;
use crate::policy::{
    ClusterConfig, Coverage, Desired, Held, Mark, NodeState, OwnPod, Resolved, Snapshot, Tables,
};

/// What does not change while the agent runs.
pub(super) struct Inputs {
    pub(super) node: Option<String>,
    pub(super) source: String,
    pub(super) cluster: ClusterConfig,
    pub(super) kubepods: Kubepods,
    pub(super) own: Option<OwnPod>,
    pub(super) unknown_pod: Mode,
    pub(super) lease: Duration,
    pub(super) mark: Mark,
    pub(super) names: bool,
    /// How long an address that an earlier agent left counts, nanoseconds.
    pub(super) grace: u64,
}

impl Inputs {
    /// Compiles for this node as the kernel has it now. `held` is what the tables hold, `known` what
    /// was last said of the pods.
    ///
    /// # Errors
    /// When cgroups, interfaces or addresses cannot be read.
    pub(super) fn compile(
        &self,
        snapshot: &Snapshot,
        held: &Tables,
        known: &[Coverage],
        verified: BTreeSet<u32>,
        no_redirect: Option<&str>,
        resolved: &Resolved,
    ) -> anyhow::Result<Desired> {
        let boot_epoch = i128::from(boot_clock()) - jiff::Timestamp::now().as_nanosecond();
        let node = NodeState {
            name: self.node.clone(),
            cgroups: self.kubepods.pods()?,
            links: link::links()?,
            addresses: link::addresses()?,
            held: Held {
                pods: held.pods.clone(),
                interfaces: held.interfaces.clone(),
                policies: held.policies.clone(),
                coverage: known.to_vec(),
            },
            own: self.own.clone(),
            kubepods_level: self.kubepods.level,
            verified,
            unknown_pod: self.unknown_pod,
            mark: self.mark,
            names: self.names,
            resolved: resolved.clone(),
            no_redirect: no_redirect.map(str::to_owned),
            lease: u64::try_from(self.lease.as_nanos()).unwrap_or(u64::MAX),
            // The two clocks drift by microseconds between reads; whole seconds do not, and an
            // expiry that moved with every compilation would be a change every time.
            boot_epoch: boot_epoch.div_euclid(SECOND) * SECOND,
        };
        Ok(compile(snapshot, &self.cluster, &node))
    }
}

const SECOND: i128 = 1_000_000_000;
