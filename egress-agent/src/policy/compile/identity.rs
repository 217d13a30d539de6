//! Numbers of policies, and of their variants.
//!
//! The kernel's tables are per policy, an exception's scope is pods. A pod for which exceptions
//! are in force therefore gets a *variant* of its policy: a number of its own, made from the
//! policy's name and the exceptions' names, with tables of its own. An exception never reaches
//! another pod of the same policy, and two names are never taken for one.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::key::PolicyId;

use super::select::age;
use crate::policy::{EgressException, EgressPolicy, Problem, ProblemCode, Snapshot};

/// Policies whose number an older one has: they are refused.
pub(super) struct Numbers<'a> {
    pub(super) refused: BTreeSet<&'a str>,
    pub(super) problems: Vec<Problem>,
    owners: BTreeMap<PolicyId, &'a EgressPolicy>,
}

impl<'a> Numbers<'a> {
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let mut numbers =
            Self { refused: BTreeSet::new(), problems: Vec::new(), owners: BTreeMap::new() };
        let mut by_age: Vec<&EgressPolicy> = snapshot.policies.values().collect();
        by_age.sort_by_key(|policy| age(policy));
        for policy in by_age {
            match numbers.owners.get(&policy.id()) {
                None => {
                    numbers.owners.insert(policy.id(), policy);
                }
                Some(older) => {
                    numbers.refused.insert(&policy.name);
                    numbers.problems.push(Problem {
                        code: ProblemCode::IdentityCollision,
                        origin: policy.origin.clone(),
                        message: format!(
                            "has the same number {:#x} as {}, which is older; this policy is \
                             refused and governs no pod: rename it",
                            policy.id().0,
                            older.origin
                        ),
                    });
                }
            }
        }
        numbers
    }
}

/// A policy together with the exceptions in force for some of its pods.
pub(super) struct Variant<'a> {
    pub(super) policy: &'a EgressPolicy,
    /// By name.
    pub(super) exceptions: Vec<&'a EgressException>,
}

/// The variants that govern a pod of this node.
#[derive(Default)]
pub(super) struct Variants<'a> {
    pub(super) used: BTreeMap<PolicyId, Variant<'a>>,
}

impl<'a> Variants<'a> {
    /// The number of a policy with these exceptions. Where it is another's, the pod gets the
    /// policy without exceptions, and a problem says so.
    pub(super) fn number(
        &mut self,
        numbers: &Numbers<'a>,
        policy: &'a EgressPolicy,
        exceptions: Vec<&'a EgressException>,
        problems: &mut Vec<Problem>,
    ) -> PolicyId {
        let plain = policy.id();
        if exceptions.is_empty() {
            self.used.entry(plain).or_insert(Variant { policy, exceptions });
            return plain;
        }
        let names: Vec<&str> = exceptions.iter().map(|exception| &*exception.name).collect();
        // No name contains a control character.
        let number = PolicyId::of(&format!("{}\u{1f}{}", policy.name, names.join("\u{1f}")));
        let same = |used: &Variant<'_>| {
            used.policy.name == policy.name
                && used.exceptions.iter().map(|exception| &*exception.name).eq(names)
        };
        if !numbers.owners.contains_key(&number) && self.used.get(&number).is_none_or(same) {
            self.used.entry(number).or_insert(Variant { policy, exceptions });
            return number;
        }
        problems.extend(exceptions.iter().map(|exception| Problem {
            code: ProblemCode::IdentityCollision,
            origin: exception.origin.clone(),
            message: format!(
                "together with {} it has the number {:#x}, which is taken; it is not in force for \
                 that policy's pods: rename it",
                policy.origin, number.0
            ),
        }));
        self.used.entry(plain).or_insert(Variant { policy, exceptions: Vec::new() });
        plain
    }
}
