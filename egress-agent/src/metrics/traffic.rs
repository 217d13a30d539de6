//! Counters of pods and of workloads.

use std::collections::BTreeMap;

use egress_common::key::PodId;
use egress_common::state::{Counter, CounterKey, Direction};
use egress_common::{Reason, Verdict};

use super::family::{Family, number};
use super::ledger::{Ledger, Words, add};
use crate::agent::AgentState;
use crate::policy::Coverage;

/// Counters of every pod that is there, and of every workload, pods that are gone included.
pub(super) fn traffic(
    state: &AgentState,
    ledger: &Ledger,
    counters: &BTreeMap<CounterKey, Counter>,
) -> Vec<Family> {
    let mut connections = Family::counter(
        "egress_pod_connections_total",
        "Connections opened or attempted by a pod; for protocols without connections, datagrams.",
    );
    let mut packets =
        Family::counter("egress_pod_packets_total", "Packets of a pod, by verdict and direction.");
    let mut bytes = Family::counter(
        "egress_pod_bytes_total",
        "Bytes of a pod on the wire that were not dropped, by gateway and direction.",
    );
    let mut redirects = Family::counter(
        "egress_pod_redirects_total",
        "Connections of a pod to the outside that were rewritten to a gateway; each is also one of \
         its connections with reason gateway.",
    );
    for (source, counter) in by_pod(state, ledger, counters) {
        let Words { verdict, reason, direction } = source.words;
        let labels = [
            ("source_namespace", source.namespace),
            ("source_workload", source.workload),
            ("source_pod", source.pod),
            ("gateway", source.gateway),
            ("verdict", verdict.name()),
            ("reason", reason.name()),
            ("direction", direction.name()),
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
    families.extend(workloads(ledger, counters));
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
    // A first denial must be an increase from zero, not a series that is born at one; a first
    // redirected connection as well.
    for pod in coverage.iter().filter(|pod| pod.policy.is_some()) {
        for gateway in redirects_to(state, pod) {
            let (verdict, reason) = (Verdict::Allow, Reason::Redirected);
            let words = Words { verdict, reason, direction: Direction::Tx };
            sums.entry(Source::of(pod, ledger.gateway(gateway), words)).or_default();
        }
        for verdict in [Verdict::Audit, Verdict::Drop] {
            let words = Words { verdict, reason: Reason::NotGateway, direction: Direction::Tx };
            sums.entry(Source::of(pod, "", words)).or_default();
        }
    }
    sums
}

/// The gateways that a pod's connections may be redirected to.
fn redirects_to<'a>(state: &'a AgentState, pod: &Coverage) -> impl Iterator<Item = u32> + 'a {
    let entry = pod.cgroup.and_then(|cgroup| state.tables.pods.get(&cgroup));
    let policy = entry.map(|entry| entry.policy);
    let entries = state.tables.redirects.iter();
    let own = entries.filter(move |(key, to)| Some(key.policy()) == policy && to.places > 0);
    own.map(|(_, to)| to.gateway.0)
}

fn workloads(ledger: &Ledger, counters: &BTreeMap<CounterKey, Counter>) -> [Family; 3] {
    let mut connections = Family::counter(
        "egress_workload_connections_total",
        "egress_pod_connections_total summed over a workload, pods that are gone included.",
    );
    let mut bytes = Family::counter(
        "egress_workload_bytes_total",
        "egress_pod_bytes_total summed over a workload, pods that are gone included.",
    );
    let mut redirects = Family::counter(
        "egress_workload_redirects_total",
        "egress_pod_redirects_total summed over a workload, pods that are gone included.",
    );
    for ((workload, gateway, words), counter) in ledger.workloads(counters) {
        let Words { verdict, reason, direction } = words;
        let labels = [
            ("source_namespace", workload.namespace.as_str()),
            ("source_workload", workload.name.as_str()),
            ("gateway", gateway.as_str()),
            ("verdict", verdict.name()),
            ("reason", reason.name()),
            ("direction", direction.name()),
        ];
        if reason == Reason::Redirected {
            redirects.add(&labels[..3], number(counter.connections));
            continue;
        }
        if direction == Direction::Tx {
            connections.add(&labels[..labels.len() - 1], number(counter.connections));
        }
        if verdict != Verdict::Drop {
            bytes.add(&labels, number(counter.bytes));
        }
    }
    [connections, bytes, redirects]
}
