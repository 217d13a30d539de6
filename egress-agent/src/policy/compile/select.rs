//! Which policy governs a pod, and which exceptions are in force for it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use egress_common::Mode;

use super::gateway::Gateways;
use crate::policy::{
    ClusterConfig, CoverageState, EgressException, EgressPolicy, Pod, Problem, ProblemCode,
    Selector, Snapshot,
};

/// The policy of a pod.
pub(super) struct Choice<'a> {
    /// The policy that selects it and wins.
    pub(super) policy: Option<&'a EgressPolicy>,
    /// `Covered` when the policy governs it; otherwise why it does not.
    pub(super) state: CoverageState,
    /// Another policy of the same priority selects it too.
    pub(super) overlap: Option<Problem>,
}

/// Chooses: highest priority, then oldest, then by name.
pub(super) fn choose<'a>(
    snapshot: &'a Snapshot,
    cluster: &ClusterConfig,
    gateways: &Gateways,
    pod: &Pod,
) -> Choice<'a> {
    let selects = |policy: &&EgressPolicy| matches(&policy.selector, snapshot, pod);
    let mut selecting: Vec<&EgressPolicy> = snapshot.policies.values().filter(selects).collect();
    selecting.sort_by_key(|policy| {
        (Reverse(policy.priority), policy.created.unwrap_or(i64::MAX), policy.name.clone())
    });
    let policy = selecting.first().copied();
    let state = match policy {
        _ if pod.finished => CoverageState::Finished,
        _ if gateways.pods.contains(&pod.uid) => CoverageState::Gateway,
        _ if cluster.exempt_namespaces.contains(&pod.name.namespace) => CoverageState::Exempt,
        None => CoverageState::NoPolicy,
        Some(_) if pod.host_network => CoverageState::HostNetwork,
        Some(policy) if policy.mode == Mode::Off => CoverageState::Off,
        Some(_) => CoverageState::Covered,
    };
    let overlap = match selecting.as_slice() {
        [first, second, ..] if first.priority == second.priority => Some(Problem {
            code: ProblemCode::PolicyOverlap,
            origin: second.origin.clone(),
            message: format!(
                "selects pods that {} selects with the same priority {} (such as {}); the older \
                 one governs them: give one of the two another priority",
                first.origin, first.priority, pod.name
            ),
        }),
        _ => None,
    };
    Choice { policy, state, overlap }
}

/// Exceptions whose scope includes the pod, by name.
pub(super) fn exceptions_for<'a>(snapshot: &'a Snapshot, pod: &Pod) -> Vec<&'a EgressException> {
    let all = snapshot.exceptions.values();
    all.filter(|exception| matches(&exception.scope, snapshot, pod)).collect()
}

fn matches(selector: &Selector, snapshot: &Snapshot, pod: &Pod) -> bool {
    let none = BTreeMap::new();
    let namespace = snapshot.namespaces.get(&pod.name.namespace).unwrap_or(&none);
    (selector.namespaces.is_empty() || selector.namespaces.contains(&pod.name.namespace))
        && labels_match(&selector.namespace_labels, namespace)
        && labels_match(&selector.pod_labels, &pod.labels)
}

/// Whether `labels` has every pair that is wanted.
pub(super) fn labels_match(
    wanted: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
