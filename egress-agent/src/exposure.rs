//! How long pods were not wholly covered, and what passed of them meanwhile.
//!
//! A pod is covered when its cgroup is known, the boundary was seen at its interface, and its policy
//! is in the kernel. Time runs on the boot clock from the birth of its cgroup; packets are those the
//! kernel counted ([`egress_common::state::Exposed`]). The sums only rise. They outlive the agent in a
//! file, and what happened while none ran is added at the next start, as `agent_down`.
//!
//! Invariant: nothing here reads a clock or the kernel; an account is taken of what it is given.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::key::PodId;
use egress_common::state::Exposed;
use serde::{Deserialize, Serialize};

use crate::policy::{Coverage, CoverageState};

/// Why a pod is not wholly covered: label of `egress_unenforced_seconds_total` and of
/// `egress_unenforced_packets_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unenforced {
    /// Its cgroup is there and its object is not, or is not known yet.
    NotLearned,
    /// It is governed, and its interface was not found.
    NoInterface,
    /// Its interface is known, and the boundary is not attached there, or not yet.
    NotAttached,
    /// The policy in force is older than the one it should have, which was refused.
    PolicyRefused,
    /// No agent ran.
    AgentDown,
}

impl Unenforced {
    /// Every reason, for metrics that must exist at zero.
    pub const ALL: [Self; 5] = [
        Self::NotLearned,
        Self::NoInterface,
        Self::NotAttached,
        Self::PolicyRefused,
        Self::AgentDown,
    ];

    /// The metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotLearned => "not_learned",
            Self::NoInterface => "no_interface",
            Self::NotAttached => "not_attached",
            Self::PolicyRefused => "policy_refused",
            Self::AgentDown => "agent_down",
        }
    }

    /// Why this pod is not covered, if it should be and is not. `verified` has the interfaces where
    /// the boundary was seen.
    pub fn of(pod: &Coverage, verified: &BTreeSet<u32>, refused: bool) -> Option<Self> {
        match pod.state {
            CoverageState::NoInterface | CoverageState::Missing => Some(Self::NoInterface),
            CoverageState::Covered
                if !pod.ifindex.is_some_and(|ifindex| verified.contains(&ifindex)) =>
            {
                Some(Self::NotAttached)
            }
            CoverageState::Covered | CoverageState::HostNetwork if refused => {
                Some(Self::PolicyRefused)
            }
            CoverageState::Covered
            | CoverageState::HostNetwork
            | CoverageState::NoCgroup
            | CoverageState::NoPolicy
            | CoverageState::Off
            | CoverageState::Gateway
            | CoverageState::Exempt
            | CoverageState::Finished
            | CoverageState::Orphaned => None,
        }
    }
}

/// A sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Nanoseconds.
    pub nanoseconds: u64,
    /// Packets that passed.
    pub packets: u64,
}

/// The account of one pod, by its cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// Birth of its cgroup: boot clock, nanoseconds.
    pub born: u64,
    /// When it was first wholly covered, or known to be governed by nobody; absent as long as it is
    /// neither.
    pub covered: Option<u64>,
    /// Why it is not covered now.
    pub reason: Option<Unenforced>,
    /// What there was of it so far.
    pub so_far: Amount,
}

/// What the kernel says at one moment.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// Boot clock, nanoseconds.
    pub now: u64,
    /// Birth of each pod's cgroup, as far as it is known: boot clock, nanoseconds.
    pub births: BTreeMap<u64, u64>,
    /// The pod's cgroup of each cgroup below one.
    pub below: BTreeMap<u64, u64>,
    /// Why each pod that is known is not covered, by its cgroup; who is not in it is not learned.
    pub standing: BTreeMap<u64, Option<Unenforced>>,
    /// What passed, by cgroup and interface.
    pub passed: BTreeMap<PodId, Exposed>,
    /// Interfaces whose pod is not known.
    pub strangers: BTreeSet<u32>,
}

/// All accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposures {
    /// Boot clock up to which account was taken, nanoseconds.
    until: u64,
    /// Living pods, by cgroup.
    pods: BTreeMap<u64, Exposure>,
    /// Sums of the node, those of the dead included.
    totals: BTreeMap<Unenforced, Amount>,
    /// Packets of each kernel entry that are in the sums already.
    counted: BTreeMap<u64, u64>,
}

impl Exposures {
    /// What an agent before this one has written, if it is of this boot.
    pub fn resume(text: &str, now: u64) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|found: &Self| found.until <= now)
    }

    /// The node's sums.
    pub fn total(&self, reason: Unenforced) -> Amount {
        self.totals.get(&reason).copied().unwrap_or_default()
    }

    /// The account of the pod with this cgroup.
    pub fn of(&self, cgroup: u64) -> Option<&Exposure> {
        self.pods.get(&cgroup)
    }

    /// Takes account up to now. `first` says that no agent ran since the last time. Returns the kernel's
    /// entries of whoever is gone, which it may forget.
    pub fn take(&mut self, moment: &Moment, first: bool) -> Vec<PodId> {
        let now = moment.now;
        for (cgroup, born) in &moment.births {
            let packet = moment.passed.get(&PodId::of_cgroup(*cgroup)).map(|passed| passed.first);
            let born = packet.map_or(*born, |packet| packet.min(*born)).min(now);
            self.pods.entry(*cgroup).or_insert_with(|| Exposure {
                born,
                covered: None,
                reason: Some(Unenforced::NotLearned),
                so_far: Amount::default(),
            });
        }
        // The time that has passed belongs to what was last known of each.
        let mut spent = Vec::new();
        for (cgroup, pod) in &self.pods {
            let Some(reason) = pod.reason else { continue };
            let reason = if first { Unenforced::AgentDown } else { reason };
            spent.push((*cgroup, reason, now.saturating_sub(pod.born.max(self.until))));
        }
        for (cgroup, reason, nanoseconds) in spent {
            self.add(Some(cgroup), reason, Amount { nanoseconds, packets: 0 });
        }
        let gone = self.packets(moment, first);
        self.pods.retain(|cgroup, _| moment.births.contains_key(cgroup));
        for (cgroup, pod) in &mut self.pods {
            let standing = moment.standing.get(cgroup).copied();
            pod.reason = standing.unwrap_or(Some(Unenforced::NotLearned));
            if pod.reason.is_none() {
                pod.covered = pod.covered.or(Some(now));
            }
        }
        self.until = now;
        gone
    }

    /// Adds what the kernel counted since. Whoever lived and died unseen is known by that alone: from its
    /// first packet to its last.
    fn packets(&mut self, moment: &Moment, first: bool) -> Vec<PodId> {
        let mut gone = Vec::new();
        for (id, passed) in &moment.passed {
            let before = self.counted.insert(id.0, passed.packets).unwrap_or(0);
            let packets = passed.packets.saturating_sub(before);
            let interface = moment.strangers.iter().any(|at| PodId::of_interface(*at) == *id);
            let cgroup = moment.below.get(&id.0).copied().unwrap_or(id.0);
            let pod = self.pods.get(&cgroup);
            let reason = match pod.and_then(|pod| pod.reason) {
                _ if first => Unenforced::AgentDown,
                Some(reason) => reason,
                None => Unenforced::NotLearned,
            };
            let unseen = pod.is_none() && before == 0 && id.0 >> 63 == 0;
            let nanoseconds = if unseen { passed.last.saturating_sub(passed.first) } else { 0 };
            self.add(pod.map(|_| cgroup), reason, Amount { nanoseconds, packets });
            if !interface && !moment.births.contains_key(&cgroup) {
                gone.push(*id);
            }
        }
        self.counted
            .retain(|id, _| moment.passed.contains_key(&PodId(*id)) && !gone.contains(&PodId(*id)));
        gone
    }

    fn add(&mut self, cgroup: Option<u64>, reason: Unenforced, amount: Amount) {
        let total = self.totals.entry(reason).or_default();
        let pod = cgroup.and_then(|cgroup| self.pods.get_mut(&cgroup));
        for sum in [Some(total), pod.map(|pod| &mut pod.so_far)].into_iter().flatten() {
            sum.nanoseconds += amount.nanoseconds;
            sum.packets += amount.packets;
        }
    }
}

#[cfg(test)]
mod tests;
