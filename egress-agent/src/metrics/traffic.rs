//! Counters of pods and of workloads.

use std::collections::BTreeMap;
use std::sync::Arc;

use egress_common::key::{GatewayId, PodId};
use egress_common::state::{Counter, CounterKey, Direction};
use egress_common::{Reason, Verdict};

use super::Metric;
use super::admission::{Key, Level, OVERFLOW};
use super::family::{Family, number};
use super::ledger::{Ledger, SumKey, Sums, UNKNOWN, Words, Workload, add};
use crate::agent::AgentState;
use crate::config::Granularity;
use crate::policy::Coverage;

/// Counters of every pod that is there, and of every workload, pods that are gone included.
pub(super) fn traffic(
    state: &AgentState,
    ledger: &mut Ledger,
    counters: &BTreeMap<CounterKey, Counter>,
) -> Vec<Family> {
    let pods: BTreeMap<PodId, &Coverage> =
        state.desired.coverage.iter().map(|pod| (PodId::of(&pod.uid), pod)).collect();
    let by_pod = match ledger.by() {
        Granularity::Pod => by_pod(state, ledger, &pods, counters),
        Granularity::Workload | Granularity::Namespace => BTreeMap::new(),
    };
    let by_workload = by_workload(state, ledger, counters);
    let keys = by_pod.keys().copied().map(Key::Pod);
    ledger.admit(keys.chain(by_workload.keys().cloned().map(Key::Workload)).collect());

    let mut families = Vec::from(pod_families(ledger, &pods, &by_pod));
    families.extend(workload_families(ledger, &by_workload));
    let mut truncated = Family::new(Metric::SeriesTruncated);
    truncated.add(&[], number(ledger.admission.truncated()));
    families.push(truncated);
    families
}

/// Four families of one level.
struct Level4 {
    connections: Family,
    packets: Family,
    bytes: Family,
    redirects: Family,
}

impl Level4 {
    /// Adds what there is to say of one counter; `names` are those of the source.
    fn add(&mut self, names: &[&str], gateway: &str, words: Words, counter: &Counter) {
        let Words { verdict, reason, direction } = words;
        let mut labels = Vec::from(names);
        labels.push(gateway);
        if reason == Reason::Redirected {
            self.redirects.add(&labels, number(counter.connections));
            return;
        }
        labels.extend([verdict.name(), reason.name()]);
        if direction == Direction::Tx {
            self.connections.add(&labels, number(counter.connections));
        }
        labels.push(direction.name());
        self.packets.add(&labels, number(counter.packets));
        if verdict != Verdict::Drop {
            self.bytes.add(&labels, number(counter.bytes));
        }
    }

    fn families(self) -> [Family; 4] {
        [self.connections, self.packets, self.bytes, self.redirects]
    }
}

fn pod_families(
    ledger: &Ledger,
    pods: &BTreeMap<PodId, &Coverage>,
    counters: &BTreeMap<CounterKey, Counter>,
) -> [Family; 4] {
    let mut level = Level4 {
        connections: Family::new(Metric::PodConnections),
        packets: Family::new(Metric::PodPackets),
        bytes: Family::new(Metric::PodBytes),
        redirects: Family::new(Metric::PodRedirects),
    };
    // Two pods of one name count as one: a label set must not appear twice.
    let mut sums: BTreeMap<([&str; 3], &str, Words), Counter> = BTreeMap::new();
    let over = [OVERFLOW; 3];
    for (key, counter) in counters {
        let Some(words) = Words::of(key) else { continue };
        let (names, gateway) = if ledger.admission.is_over(&Key::Pod(*key)) {
            (over, OVERFLOW)
        } else {
            let named = pods
                .get(&key.pod)
                .map(|pod| [&*pod.pod.namespace, &*pod.workload.1, &*pod.pod.name]);
            (named.unwrap_or([UNKNOWN; 3]), ledger.gateway(key.gateway.0))
        };
        add(sums.entry((names, gateway, words)).or_default(), counter);
    }
    for (words, counter) in ledger.admission.ended(Level::Pod) {
        add(sums.entry((over, OVERFLOW, words)).or_default(), counter);
    }
    for ((names, gateway, words), counter) in &sums {
        level.add(names, gateway, *words, counter);
    }
    level.families()
}

/// The counters that have series: those of pods that are there, of pods the agent has not learned,
/// and what still counts in the overflow.
fn by_pod(
    state: &AgentState,
    ledger: &Ledger,
    pods: &BTreeMap<PodId, &Coverage>,
    counters: &BTreeMap<CounterKey, Counter>,
) -> BTreeMap<CounterKey, Counter> {
    let has_series = |key: &CounterKey| {
        pods.contains_key(&key.pod)
            || key.pod == PodId::UNKNOWN
            || ledger.admission.is_over(&Key::Pod(*key))
    };
    let mut told: BTreeMap<CounterKey, Counter> =
        counters.iter().filter(|(key, _)| has_series(key)).map(|(key, sum)| (*key, *sum)).collect();
    for (pod, gateway, Words { verdict, reason, direction }) in starting_at_zero(state) {
        let id = PodId::of(&pod.uid);
        let key = CounterKey::new(id, GatewayId(gateway), verdict, reason, direction);
        told.entry(key).or_default();
    }
    told
}

/// What is told before it has happened: a first denial must be an increase from zero, not a series
/// that is born at one; a first redirected connection as well.
fn starting_at_zero(state: &AgentState) -> impl Iterator<Item = (&Coverage, u32, Words)> {
    let governed = state.desired.coverage.iter().filter(|pod| pod.policy.is_some());
    let words = |verdict, reason| Words { verdict, reason, direction: Direction::Tx };
    governed.flat_map(move |pod| {
        let redirects = redirects_to(state, pod);
        let redirected = words(Verdict::Allow, Reason::Redirected);
        let redirects = redirects.map(move |gateway| (pod, gateway, redirected));
        let denials = [Verdict::Audit, Verdict::Drop];
        redirects.chain(denials.map(|verdict| (pod, 0, words(verdict, Reason::NotGateway))))
    })
}

/// The gateways that a pod's connections may be redirected to.
fn redirects_to<'a>(state: &'a AgentState, pod: &Coverage) -> impl Iterator<Item = u32> + 'a {
    let entry = pod.cgroup.and_then(|cgroup| state.tables.pods.get(&cgroup));
    let policy = entry.map(|entry| entry.policy);
    let entries = state.tables.redirects.iter();
    let own = entries.filter(move |(key, to)| Some(key.policy()) == policy && to.places > 0);
    own.map(|(_, to)| to.gateway.0)
}

fn by_workload(
    state: &AgentState,
    ledger: &Ledger,
    counters: &BTreeMap<CounterKey, Counter>,
) -> Sums {
    let mut sums = ledger.workloads(counters);
    for (pod, gateway, words) in starting_at_zero(state) {
        let workload = Arc::new(Workload::of(pod, ledger.by()));
        sums.entry((workload, gateway, words)).or_default();
    }
    sums
}

fn workload_families(ledger: &Ledger, sums: &Sums) -> [Family; 4] {
    let mut level = Level4 {
        connections: Family::new(Metric::WorkloadConnections),
        packets: Family::new(Metric::WorkloadPackets),
        bytes: Family::new(Metric::WorkloadBytes),
        redirects: Family::new(Metric::WorkloadRedirects),
    };
    let mut over: BTreeMap<Words, Counter> = BTreeMap::new();
    for (key, counter) in sums {
        let (workload, gateway, words): &SumKey = key;
        if ledger.admission.is_over(&Key::Workload(key.clone())) {
            add(over.entry(*words).or_default(), counter);
        } else {
            let names = [&*workload.namespace, &*workload.name];
            level.add(&names, ledger.gateway(*gateway), *words, counter);
        }
    }
    for (words, counter) in ledger.admission.ended(Level::Workload) {
        add(over.entry(words).or_default(), counter);
    }
    for (words, counter) in &over {
        level.add(&[OVERFLOW; 2], OVERFLOW, *words, counter);
    }
    level.families()
}
