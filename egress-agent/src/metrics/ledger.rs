//! What a counter needs beyond the kernel: the workload of a pod that is gone, and the sums of
//! counters the kernel no longer holds.
//!
//! A workload's counter must not fall when one of its pods dies, and the kernel's table must not
//! fill with dead pods. So names outlive their pods, and after [`GRACE`] a dead pod's counters
//! move into its workload's sum here and leave the kernel. The sums live as long as the agent:
//! after a restart the counters of pods that died before it start again, or count as
//! [`UNKNOWN`] while the kernel still has them.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::key::PodId;
use egress_common::state::{Counter, CounterKey, Direction};
use egress_common::{Reason, Verdict};

use crate::agent::AgentState;
use crate::policy::Coverage;

/// Namespace, workload and gateway of what has no name any more.
const UNKNOWN: &str = "unknown";
/// How long a dead pod's counters stay in the kernel, nanoseconds: late packets, and a registry
/// that lost sight of a pod for a moment, change nothing.
const GRACE: u64 = 300_000_000_000;
/// How long a workload without pods keeps its sums, nanoseconds. Jobs come and go with names of
/// their own: without an end their series would only ever grow.
const QUIET: u64 = 3_600_000_000_000;

/// Namespace and name of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Workload {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Workload {
    /// The workload of a pod.
    pub(super) fn of(pod: &Coverage) -> Self {
        Self { namespace: pod.pod.namespace.clone(), name: pod.workload.1.clone() }
    }

    fn unknown() -> Self {
        Self { namespace: UNKNOWN.to_owned(), name: UNKNOWN.to_owned() }
    }
}

/// The closed words of a counter's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Words {
    pub(super) verdict: Verdict,
    pub(super) reason: Reason,
    pub(super) direction: Direction,
}

impl Words {
    /// `None` for numbers a newer version has written.
    pub(super) fn of(key: &CounterKey) -> Option<Self> {
        Some(Self {
            verdict: Verdict::from_number(key.verdict)?,
            reason: Reason::from_number(key.reason)?,
            direction: Direction::from_number(key.direction)?,
        })
    }
}

/// Counters of workloads by gateway.
pub(super) type Sums = BTreeMap<(Workload, String, Words), Counter>;

#[derive(Debug)]
struct Known {
    workload: Workload,
    /// Boot clock since when nobody knows the pod.
    gone: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pods: BTreeMap<PodId, Known>,
    gateways: BTreeMap<u32, String>,
    sums: Sums,
    /// Boot clock at which a workload last had a pod.
    alive: BTreeMap<Workload, u64>,
}

impl Ledger {
    /// Takes in the names of a state; `now` is the boot clock.
    pub(super) fn learn(&mut self, state: &AgentState, now: u64) {
        let mut live = BTreeSet::new();
        for pod in &state.desired.coverage {
            let id = PodId::of(&pod.uid);
            live.insert(id);
            self.pods.insert(id, Known { workload: Workload::of(pod), gone: None });
        }
        // What the kernel still judges still counts, whether or not the registry names it.
        live.extend(state.tables.pods.values().map(|pod| pod.id));
        live.extend(state.tables.interfaces.values().map(|pod| pod.id));
        for (id, known) in &mut self.pods {
            known.gone = if live.contains(id) { None } else { known.gone.or(Some(now)) };
        }
        let gateways = state.desired.gateways.iter();
        self.gateways.extend(gateways.map(|gateway| (gateway.id, gateway.name.to_string())));
    }

    /// Moves the counters of pods that are long gone into their workloads' sums and returns their
    /// keys, which the kernel may forget.
    pub(super) fn settle(
        &mut self,
        counters: &BTreeMap<CounterKey, Counter>,
        now: u64,
    ) -> Vec<CounterKey> {
        let mut settled = Vec::new();
        for (key, counter) in counters.iter().filter(|(key, _)| key.pod != PodId::UNKNOWN) {
            // A pod that died before this agent came has no name; it gets its grace all the same.
            let known = self
                .pods
                .entry(key.pod)
                .or_insert_with(|| Known { workload: Workload::unknown(), gone: Some(now) });
            if !ended(known, now) {
                continue;
            }
            let workload = known.workload.clone();
            if let Some(words) = Words::of(key) {
                let gateway = self.gateway(key.gateway.0).to_owned();
                add(self.sums.entry((workload, gateway, words)).or_default(), counter);
            }
            settled.push(*key);
        }
        self.pods.retain(|_, known| !ended(known, now));
        for known in self.pods.values() {
            self.alive.insert(known.workload.clone(), now);
        }
        let alive = &mut self.alive;
        alive.retain(|_, last| now.saturating_sub(*last) < QUIET);
        let unknown = Workload::unknown();
        self.sums
            .retain(|(workload, _, _), _| *workload == unknown || alive.contains_key(workload));
        settled
    }

    /// Everything by workload: the kernel's counters and the settled sums.
    pub(super) fn workloads(&self, counters: &BTreeMap<CounterKey, Counter>) -> Sums {
        let mut sums = self.sums.clone();
        for (key, counter) in counters {
            let Some(words) = Words::of(key) else { continue };
            let workload = self.pods.get(&key.pod).map(|known| known.workload.clone());
            let workload = workload.unwrap_or_else(Workload::unknown);
            let gateway = self.gateway(key.gateway.0).to_owned();
            add(sums.entry((workload, gateway, words)).or_default(), counter);
        }
        sums
    }

    /// A gateway's name; empty where a counter is about none.
    pub(super) fn gateway(&self, id: u32) -> &str {
        match id {
            0 => "",
            id => self.gateways.get(&id).map_or(UNKNOWN, String::as_str),
        }
    }
}

fn ended(known: &Known, now: u64) -> bool {
    known.gone.is_some_and(|since| now.saturating_sub(since) >= GRACE)
}

/// Adds to a sum.
pub(super) const fn add(sum: &mut Counter, counter: &Counter) {
    sum.connections += counter.connections;
    sum.packets += counter.packets;
    sum.bytes += counter.bytes;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::{counters, state, without_pods};

    fn packets(sums: &Sums) -> Vec<(String, u64)> {
        let mut by_workload: BTreeMap<String, u64> = BTreeMap::new();
        for ((workload, _, _), counter) in sums {
            *by_workload.entry(workload.name.clone()).or_default() += counter.packets;
        }
        by_workload.into_iter().collect()
    }

    fn cart(packets: u64) -> Vec<(String, u64)> {
        vec![("cart".to_owned(), packets)]
    }

    #[test]
    fn a_workload_counts_on_through_the_death_of_its_pod() {
        let mut ledger = Ledger::default();
        let kernel = counters("uid-1", 7);
        ledger.learn(&state(), 1);
        assert_eq!(packets(&ledger.workloads(&kernel)), cart(7));
        ledger.learn(&without_pods(), 2);
        assert_eq!(packets(&ledger.workloads(&kernel)), cart(7), "gone, still in the kernel");
        assert_eq!(ledger.settle(&kernel, GRACE), [], "not long enough");
        let settled = ledger.settle(&kernel, 2 + GRACE);
        assert_eq!(settled, kernel.keys().copied().collect::<Vec<_>>());
        assert_eq!(packets(&ledger.workloads(&BTreeMap::new())), cart(7), "out of the kernel");
        // Another pod of the same workload adds to it.
        ledger.learn(&state(), 3 + GRACE);
        assert_eq!(packets(&ledger.workloads(&counters("uid-1", 2))), cart(9));
    }

    #[test]
    fn a_pod_the_kernel_still_judges_is_not_gone() {
        let mut ledger = Ledger::default();
        ledger.learn(&state(), 1);
        let mut unnamed = without_pods();
        unnamed.tables = std::sync::Arc::clone(&state().tables);
        ledger.learn(&unnamed, 2);
        assert_eq!(ledger.settle(&counters("uid-1", 7), 2 + GRACE), []);
    }

    #[test]
    fn who_died_before_the_agent_came_is_unknown_and_leaves_after_its_grace() {
        let mut ledger = Ledger::default();
        let kernel = counters("uid-old", 5);
        assert_eq!(ledger.settle(&kernel, 1), []);
        assert_eq!(ledger.settle(&kernel, 1 + GRACE).len(), kernel.len());
        let sums = ledger.workloads(&BTreeMap::new());
        assert_eq!(packets(&sums), [("unknown".to_owned(), 5)]);
    }

    #[test]
    fn counters_of_pods_not_learned_yet_stay_in_the_kernel() {
        let mut ledger = Ledger::default();
        let mut kernel = counters("uid-1", 5);
        kernel = kernel
            .into_iter()
            .map(|(key, counter)| (CounterKey { pod: PodId::UNKNOWN, ..key }, counter))
            .collect();
        ledger.settle(&kernel, 1);
        assert_eq!(ledger.settle(&kernel, 1 + GRACE), []);
    }

    #[test]
    fn a_workload_without_pods_is_forgotten_in_the_end() {
        let mut ledger = Ledger::default();
        ledger.learn(&state(), 1);
        ledger.learn(&without_pods(), 2);
        ledger.settle(&BTreeMap::new(), 3);
        ledger.settle(&counters("uid-1", 7), 2 + GRACE);
        ledger.settle(&BTreeMap::new(), QUIET - 1);
        assert_eq!(packets(&ledger.workloads(&BTreeMap::new())), cart(7));
        ledger.settle(&BTreeMap::new(), 3 + QUIET);
        assert_eq!(packets(&ledger.workloads(&BTreeMap::new())), []);
    }
}
