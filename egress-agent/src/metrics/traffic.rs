//! Counters of pods and of workloads.

use std::collections::BTreeMap;

use egress_common::key::PodId;
use egress_common::state::{Counter, CounterKey, Direction};
use egress_common::{Reason, Verdict};

use super::Metric;
use super::family::{Family, number};
use super::ledger::{Ledger, Words, Workload, add};
use crate::agent::AgentState;
use crate::policy::Coverage;

/// Counters of every pod that is there, and of every workload, pods that are gone included.
pub(super) fn traffic(
    state: &AgentState,
    ledger: &Ledger,
    counters: &BTreeMap<CounterKey, Counter>,
) -> Vec<Family> {
    let mut connections = Family::new(Metric::PodConnections);
    let mut packets = Family::new(Metric::PodPackets);
    let mut bytes = Family::new(Metric::PodBytes);
    let mut redirects = Family::new(Metric::PodRedirects);
    for (source, counter) in by_pod(state, ledger, counters) {
        let Words { verdict, reason, direction } = source.words;
        let labels = [
            source.namespace,
            source.workload,
            source.pod,
            source.gateway,
            verdict.name(),
            reason.name(),
            direction.name(),
        ];
        if reason == Reason::Redirected {
            redirects.add(&labels[..4], number(counter.connections));
            continue;
        }
        let without_direction = &labels[..labels.len() - 1];
        if direction == Direction::Tx {
            connections.add(without_direction, number(counter.connections));
        }
        packets.add(&labels, number(counter.packets));
        if verdict != Verdict::Drop {
            bytes.add(&labels, number(counter.bytes));
        }
    }
    let mut families = vec![connections, packets, bytes, redirects];
    families.extend(workloads(state, ledger, counters));
    families
}

/// Names and words of one pod's counter. Two pods of one name count as one: a label set must not
/// appear twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Source<'a> {
    namespace: &'a str,
    workload: &'a str,
    pod: &'a str,
    gateway: &'a str,
    words: Words,
}

impl<'a> Source<'a> {
    fn of(pod: &'a Coverage, gateway: &'a str, words: Words) -> Self {
        Self {
            namespace: &pod.pod.namespace,
            workload: &pod.workload.1,
            pod: &pod.pod.name,
            gateway,
            words,
        }
    }
}

fn by_pod<'a>(
    state: &'a AgentState,
    ledger: &'a Ledger,
    counters: &BTreeMap<CounterKey, Counter>,
) -> BTreeMap<Source<'a>, Counter> {
    let coverage = &state.desired.coverage;
    let pods: BTreeMap<PodId, &Coverage> =
        coverage.iter().map(|pod| (PodId::of(&pod.uid), pod)).collect();
    let mut sums: BTreeMap<Source<'_>, Counter> = BTreeMap::new();
    for (key, counter) in counters {
        if let (Some(pod), Some(words)) = (pods.get(&key.pod), Words::of(key)) {
            let source = Source::of(pod, ledger.gateway(key.gateway.0), words);
            add(sums.entry(source).or_default(), counter);
        }
    }
    for (pod, gateway, words) in starting_at_zero(state, ledger) {
        sums.entry(Source::of(pod, gateway, words)).or_default();
    }
    sums
}

/// What is told before it has happened: a first denial must be an increase from zero, not a series
/// that is born at one; a first redirected connection as well.
fn starting_at_zero<'a>(
    state: &'a AgentState,
    ledger: &'a Ledger,
) -> impl Iterator<Item = (&'a Coverage, &'a str, Words)> {
    let governed = state.desired.coverage.iter().filter(|pod| pod.policy.is_some());
    let word = |verdict, reason| Words { verdict, reason, direction: Direction::Tx };
    governed.flat_map(move |pod| {
        let redirects = redirects_to(state, pod);
        let redirects = redirects.map(move |gateway| {
            (pod, ledger.gateway(gateway), word(Verdict::Allow, Reason::Redirected))
        });
        let denials = [Verdict::Audit, Verdict::Drop];
        redirects.chain(denials.map(|verdict| (pod, "", word(verdict, Reason::NotGateway))))
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

fn workloads(
    state: &AgentState,
    ledger: &Ledger,
    counters: &BTreeMap<CounterKey, Counter>,
) -> [Family; 4] {
    let mut connections = Family::new(Metric::WorkloadConnections);
    let mut packets = Family::new(Metric::WorkloadPackets);
    let mut bytes = Family::new(Metric::WorkloadBytes);
    let mut redirects = Family::new(Metric::WorkloadRedirects);
    let mut sums = ledger.workloads(counters);
    for (pod, gateway, words) in starting_at_zero(state, ledger) {
        sums.entry((Workload::of(pod), gateway.to_owned(), words)).or_default();
    }
    for ((workload, gateway, words), counter) in sums {
        let Words { verdict, reason, direction } = words;
        let labels = [
            workload.namespace.as_str(),
            workload.name.as_str(),
            gateway.as_str(),
            verdict.name(),
            reason.name(),
            direction.name(),
        ];
        if reason == Reason::Redirected {
            redirects.add(&labels[..3], number(counter.connections));
            continue;
        }
        if direction == Direction::Tx {
            connections.add(&labels[..labels.len() - 1], number(counter.connections));
        }
        packets.add(&labels, number(counter.packets));
        if verdict != Verdict::Drop {
            bytes.add(&labels, number(counter.bytes));
        }
    }
    [connections, packets, bytes, redirects]
}
