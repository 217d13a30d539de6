//! Numbers of policies, and of their variants.
//!
//! The kernel's tables are per policy, an exception's scope is pods, and a namespace may be kept
//! from some of the policy's gateways. A pod for which either is so therefore gets a *variant* of
//! its policy: a number of its own, made from the policy's name and those of the exceptions and
//! the gateways, with tables of its own. An exception never reaches another pod of the same
//! policy, nor a gateway one that may not use it, and two names are never taken for one.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::key::PolicyId;

use super::select::age;
use crate::policy::{EgressException, EgressPolicy, GatewayRef, Problem, ProblemCode, Snapshot};

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

/// A policy together with the exceptions in force for some of its pods, and without the gateways
/// those may not use.
pub(super) struct Variant<'a> {
    pub(super) policy: &'a EgressPolicy,
    /// By name.
    pub(super) exceptions: Vec<&'a EgressException>,
    /// Gateways of the policy that are not these pods'.
    pub(super) forbidden: BTreeSet<&'a GatewayRef>,
}

impl Variant<'_> {
    /// Its number; `round` is above zero where an earlier one was another's.
    fn number(&self, round: u32) -> PolicyId {
        if round == 0 && self.exceptions.is_empty() && self.forbidden.is_empty() {
            return self.policy.id();
        }
        let exceptions = self.exceptions.iter().map(|one| format!("\u{1f}{}", one.name));
        let forbidden = self
            .forbidden
            .iter()
            .map(|one| format!("\u{1e}{}/{}/{}", one.namespace, one.name(), one.service_account));
        let round = (round > 0).then(|| format!("\u{1d}{round}"));
        // No name contains a control character.
        let parts: String = exceptions.chain(forbidden).chain(round).collect();
        PolicyId::of(&format!("{}{parts}", self.policy.name))
    }

    fn is(&self, other: &Self) -> bool {
        let names = |variant: &Self| -> Vec<String> {
            variant.exceptions.iter().map(|exception| exception.name.clone()).collect()
        };
        self.policy.name == other.policy.name
            && self.forbidden == other.forbidden
            && names(self) == names(other)
    }
}

/// The variants that govern a pod of this node.
#[derive(Default)]
pub(super) struct Variants<'a> {
    pub(super) used: BTreeMap<PolicyId, Variant<'a>>,
}

impl<'a> Variants<'a> {
    /// The number of a variant. Where it is another's, the pod gets the policy without exceptions,
    /// and a problem says so; but never with a gateway it may not use.
    pub(super) fn number(
        &mut self,
        numbers: &Numbers<'a>,
        mut variant: Variant<'a>,
        problems: &mut Vec<Problem>,
    ) -> PolicyId {
        if let Some(number) = self.take(numbers, &variant, 0) {
            self.used.entry(number).or_insert(variant);
            return number;
        }
        let number = variant.number(0);
        let policy = variant.policy;
        problems.extend(variant.exceptions.drain(..).map(|exception| Problem {
            code: ProblemCode::IdentityCollision,
            origin: exception.origin.clone(),
            message: format!(
                "together with {} it has the number {:#x}, which is taken; it is not in force for \
                 that policy's pods: rename it",
                policy.origin, number.0
            ),
        }));
        let mut round = 0;
        loop {
            if let Some(number) = self.take(numbers, &variant, round) {
                self.used.entry(number).or_insert(variant);
                return number;
            }
            round += 1;
        }
    }

    /// The variant's number of this round, unless it is another's.
    fn take(&self, numbers: &Numbers<'a>, variant: &Variant<'a>, round: u32) -> Option<PolicyId> {
        let number = variant.number(round);
        let own = numbers.owners.get(&number).is_some_and(|own| own.name == variant.policy.name);
        let plain = own && round == 0;
        let free = plain && variant.exceptions.is_empty() && variant.forbidden.is_empty()
            || !numbers.owners.contains_key(&number)
                && self.used.get(&number).is_none_or(|used| used.is(variant));
        free.then_some(number)
    }
}
