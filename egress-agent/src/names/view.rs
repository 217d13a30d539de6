//! What the agent knows, as far as answers are judged by it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egress_common::Addr;
use egress_common::key::{PodId, PolicyId};
use egress_common::state::{Pod as KernelPod, Target, range};

use super::Settings;
use super::counts::Workload;
use super::finding::Pod;
use crate::agent::AgentState;
use crate::policy::compile::{Place, Places};
use crate::policy::registered::Registered;
use crate::policy::{ClusterConfig, CoverageState, Desired};

/// Who gets answers, who gives them, and what they are held against.
pub(super) struct View {
    desired: Arc<Desired>,
    pods: BTreeMap<PodId, Client>,
    resolvers: BTreeSet<Addr>,
    pub(super) places: Places,
    pub(super) registered: Registered,
}

/// A pod whose answers are read.
pub(super) struct Client {
    pub(super) pod: Pod,
    /// The tables that limit its own way out, where it is a limited gateway's.
    pub(super) limited: Option<PolicyId>,
}

/// How far a resolver's word goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// A policy names it: its answers open what they may open.
    Named,
    /// The pod asks it of its own accord: what it says is seen.
    Seen,
    /// A pod of the cluster that nobody named: it may say anything to anybody.
    Foreign,
}

impl View {
    pub(super) fn of(state: &AgentState, cluster: &ClusterConfig, settings: &Settings) -> Self {
        let tables = &state.desired.tables;
        let entries: BTreeMap<PodId, &KernelPod> =
            tables.interfaces.values().map(|pod| (pod.id, pod)).collect();
        let pods = state.desired.coverage.iter().map(|pod| {
            let id = PodId::of(&pod.uid);
            let limited = entries.get(&id).filter(|entry| entry.flags & KernelPod::LIMITED != 0);
            let client = Client {
                pod: Pod {
                    name: pod.pod.clone(),
                    uid: pod.uid.clone(),
                    workload: pod.workload.clone(),
                    state: pod.state,
                },
                limited: limited.map(|entry| entry.policy),
            };
            (id, client)
        });
        let named = tables.exact.iter().filter(|(key, entry)| {
            key.policy() == PolicyId::NONE && entry.target == Target::Resolver.number()
        });
        let own = tables.ranges.iter().filter(|((bits, _), entry)| {
            *bits == egress_common::key::RangeKey::FULL_BITS && entry.has(range::THIS_NODE)
        });
        let mut places = Places::of(&state.snapshot, cluster, &settings.internal_ranges);
        places.add_nodes(own.map(|((_, key), _)| key.addr.ip()));
        Self {
            pods: pods.collect(),
            resolvers: named.map(|(key, _)| key.addr()).collect(),
            places,
            registered: Registered::of(&state.snapshot),
            desired: Arc::clone(&state.desired),
        }
    }

    /// Whether nothing that matters has changed: a state is published with every heartbeat.
    pub(super) fn is_of(&self, state: &AgentState) -> bool {
        Arc::ptr_eq(&self.desired, &state.desired)
    }

    pub(super) fn client(&self, pod: PodId) -> Option<&Client> {
        self.pods.get(&pod)
    }

    pub(super) fn knows(&self, pod: PodId) -> bool {
        self.pods.contains_key(&pod)
    }

    /// Workloads whose answers are read.
    pub(super) fn workloads(&self) -> impl Iterator<Item = Workload> {
        let read = self.pods.values().filter(|client| match client.pod.state {
            CoverageState::Covered
            | CoverageState::NoCgroup
            | CoverageState::Gateway
            | CoverageState::Orphaned => true,
            CoverageState::NoInterface
            | CoverageState::Missing
            | CoverageState::HostNetwork
            | CoverageState::NoPolicy
            | CoverageState::Off
            | CoverageState::Exempt
            | CoverageState::Finished => false,
        });
        read.map(|client| workload(&client.pod))
    }

    /// Whom a pod heard. The kernel lets a governed pod hear named resolvers alone.
    pub(super) fn trust(&self, client: &Client, resolver: Addr) -> Trust {
        if self.resolvers.contains(&resolver) || client.pod.state != CoverageState::Gateway {
            return Trust::Named;
        }
        match self.places.of_address(resolver.ip()) {
            Some(Place::Cluster) => Trust::Foreign,
            Some(_) | None => Trust::Seen,
        }
    }
}

pub(super) fn workload(pod: &Pod) -> Workload {
    (pod.name.namespace.clone(), pod.workload.1.clone())
}
