//! What the agent was told at its start, and with it from a snapshot to what the kernel should hold.

use std::collections::BTreeSet;
use std::time::Duration;

use egress_common::Mode;

use crate::clock::BootEpoch;
use crate::datapath::{Capacities, REDIRECTS, Refused, diff};
use crate::identity::cgroup::Kubepods;
use crate::identity::{link, uplink};
use crate::policy::compile::compile;
use crate::policy::{
    ClusterConfig, Coverage, Desired, Held, Mark, NodeState, OwnPod, Resolved, Snapshot, Tables,
};

/// What does not change while the agent runs, but for the clock.
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
    pub(super) not_pods: Vec<String>,
    /// Where ends of exceptions are measured from; the beat follows the clocks.
    pub(super) epoch: BootEpoch,
}

/// What the kernel has, as far as compiling depends on it.
#[derive(Clone)]
pub(super) struct View<'a> {
    /// What the tables hold.
    pub(super) held: &'a Tables,
    /// What was last said of the pods.
    pub(super) known: &'a [Coverage],
    /// Interfaces on which the boundary is attached.
    pub(super) verified: BTreeSet<u32>,
    /// Why connections cannot be redirected, if they cannot.
    pub(super) no_redirect: Option<&'a str>,
    /// Addresses that DNS gave to pods of limited gateways.
    pub(super) resolved: &'a Resolved,
}

impl Inputs {
    /// Compiles for this node as the kernel has it now, without redirections where only those do not
    /// fit: what they would redirect is denied then, and everything else is as it should be. The
    /// second value says whether the rest fits.
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    pub(super) fn fitting(
        &self,
        snapshot: &Snapshot,
        view: View<'_>,
        room: &Capacities,
    ) -> anyhow::Result<(Desired, Result<(), Refused>)> {
        let held = view.held;
        let fits =
            |desired: &Desired| diff(held, &desired.tables, desired.may_remove, room).map(drop);
        let desired = self.compile(snapshot, view.clone())?;
        match fits(&desired) {
            Err(refused) if refused.table == REDIRECTS => {
                let Refused { table, needed, capacity } = refused;
                let why = format!(
                    "table {table} has room for {capacity} entries and would need {needed}; name \
                     fewer ports, or give the tables more room with --table-size"
                );
                let desired = self.compile(snapshot, View { no_redirect: Some(&why), ..view })?;
                let fit = fits(&desired);
                Ok((desired, fit))
            }
            fit => Ok((desired, fit)),
        }
    }

    /// Compiles for this node as the kernel has it now.
    ///
    /// # Errors
    /// When cgroups, interfaces or addresses cannot be read.
    pub(super) fn compile(
        &self,
        snapshot: &Snapshot,
        View { held, known, verified, no_redirect, resolved }: View<'_>,
    ) -> anyhow::Result<Desired> {
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
            kubepods: self.kubepods.id()?,
            uplinks: uplink::uplinks()?,
            not_pods: self.not_pods.clone(),
            verified,
            unknown_pod: self.unknown_pod,
            mark: self.mark,
            names: self.names,
            resolved: resolved.clone(),
            no_redirect: no_redirect.map(str::to_owned),
            lease: u64::try_from(self.lease.as_nanos()).unwrap_or(u64::MAX),
            boot_epoch: self.epoch.nanoseconds(),
        };
        Ok(compile(snapshot, &self.cluster, &node))
    }
}
