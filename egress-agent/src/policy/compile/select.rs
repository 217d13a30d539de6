//! Which policy governs a pod, and which exceptions are in force for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use egress_common::Mode;

use super::gateway::Gateways;
use crate::policy::snapshot::labels_match;
use crate::policy::{
    ClusterConfig, CoverageState, EgressException, EgressPolicy, ObjectName, Pod, Problem,
    ProblemCode, Selector, Snapshot,
};

/// The policy of a pod.
pub(super) struct Choice<'a> {
    /// The policy that governs it, or would if its mode were not off.
    pub(super) policy: Option<&'a EgressPolicy>,
    /// `Covered` when the policy governs it; otherwise why it does not.
    pub(super) state: CoverageState,
    /// Policies of the same priority that select it too and lost.
    pub(super) tied: Vec<&'a EgressPolicy>,
}

/// Policies in the order in which they win: highest priority, then oldest, then by name.
pub(super) struct Ranked<'a>(Vec<&'a EgressPolicy>);

impl<'a> Ranked<'a> {
    /// All policies but the refused ones.
    pub(super) fn of(snapshot: &'a Snapshot, refused: &BTreeSet<&str>) -> Self {
        let standing = snapshot.policies.values().filter(|policy| !refused.contains(&*policy.name));
        let mut ranked: Vec<&EgressPolicy> = standing.collect();
        ranked.sort_by_key(|policy| rank(policy));
        Self(ranked)
    }

    /// The policy of a pod.
    pub(super) fn choose(
        &self,
        snapshot: &Snapshot,
        cluster: &ClusterConfig,
        gateways: &Gateways,
        pod: &Pod,
    ) -> Choice<'a> {
        let exempt = if pod.finished {
            Some(CoverageState::Finished)
        } else if gateways.pods.contains(&pod.uid) {
            Some(CoverageState::Gateway)
        } else if cluster.exempt_namespaces.contains(&pod.name.namespace) {
            Some(CoverageState::Exempt)
        } else {
            None
        };
        if let Some(state) = exempt {
            return Choice { policy: None, state, tied: Vec::new() };
        }
        let mut selecting = self.0.iter().filter(|policy| selects(&policy.selector, snapshot, pod));
        let Some(policy) = selecting.next().copied() else {
            return Choice { policy: None, state: CoverageState::NoPolicy, tied: Vec::new() };
        };
        let tied = selecting.take_while(|other| other.priority == policy.priority);
        let state =
            if policy.mode == Mode::Off { CoverageState::Off } else { CoverageState::Covered };
        Choice { policy: Some(policy), state, tied: tied.copied().collect() }
    }
}

/// The order in which policies win: the highest priority, then the oldest.
pub(super) fn rank(policy: &EgressPolicy) -> (Reverse<i32>, (i64, &str)) {
    (Reverse(policy.priority), age(policy))
}

/// Order of age: oldest first, then by name. A policy without a date counts as newest.
pub(super) fn age(policy: &EgressPolicy) -> (i64, &str) {
    (policy.created.unwrap_or(i64::MAX), &policy.name)
}

/// Pairs of policies that select the same pods with the same priority.
#[derive(Default)]
pub(super) struct Overlaps<'a>(BTreeMap<(&'a str, &'a str), Overlap<'a>>);

struct Overlap<'a> {
    winner: &'a EgressPolicy,
    loser: &'a EgressPolicy,
    pods: BTreeSet<&'a ObjectName>,
}

impl<'a> Overlaps<'a> {
    pub(super) fn add(&mut self, choice: &Choice<'a>, pod: &'a Pod) {
        let Some(winner) = choice.policy else { return };
        for loser in choice.tied.iter().copied() {
            let key = (&*winner.name, &*loser.name);
            let new = || Overlap { winner, loser, pods: BTreeSet::new() };
            self.0.entry(key).or_insert_with(new).pods.insert(&pod.name);
        }
    }

    /// One problem for each pair, naming the first pod.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.0.values().filter_map(|Overlap { winner, loser, pods }| {
            let others = match pods.len() - 1 {
                0 => String::new(),
                1 => " and 1 other pod of this node".to_owned(),
                more => format!(" and {more} other pods of this node"),
            };
            Some(Problem {
                code: ProblemCode::PolicyOverlap,
                origin: loser.origin.clone(),
                message: format!(
                    "selects {}{others}, which {} selects with the same priority {}; {} governs, \
                     as the older or first by name: give one of the two another spec.priority",
                    pods.first()?,
                    winner.origin,
                    winner.priority,
                    winner.name,
                ),
            })
        })
    }
}

/// Exceptions whose scope includes the pod, by name.
pub(super) fn exceptions_for<'a>(snapshot: &'a Snapshot, pod: &Pod) -> Vec<&'a EgressException> {
    let all = snapshot.exceptions.values();
    all.filter(|exception| selects(&exception.scope, snapshot, pod)).collect()
}

fn selects(selector: &Selector, snapshot: &Snapshot, pod: &Pod) -> bool {
    let none = BTreeMap::new();
    let namespace = snapshot.namespaces.get(&pod.name.namespace).unwrap_or(&none);
    (selector.namespaces.is_empty() || selector.namespaces.contains(&pod.name.namespace))
        && labels_match(&selector.namespace_labels, namespace)
        && labels_match(&selector.pod_labels, &pod.labels)
}
