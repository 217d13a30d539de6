//! Which gateways a namespace may not use, for policies that say `narrow: true`.
//!
//! Sidecars and AuthorizationPolicies are asked one thing: can *any* connection from this
//! namespace be meant to pass this gateway? Only a certain no forbids it, and the kernel then
//! says so to whoever goes around his proxy as well. Whatever is finer than a namespace stays
//! open here, is left to the gateway itself, and is told.
//!
//! Invariant: the answer only ever takes a gateway away.

mod authorization;
mod sidecar;

use std::collections::{BTreeMap, BTreeSet};

use egress_common::state::Capture;

use super::facts::Facts;
use super::gateway::{Gateways, Resolved};
use crate::policy::{
    EgressPolicy, GatewayRef, Narrowed, ObjectName, Origin, Pod, Problem, ProblemCode,
};

/// What one kind of object says about a namespace at a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Says {
    /// Nothing against it.
    Open,
    /// Nothing from there can be meant to pass.
    Forbidden {
        by: Origin,
        /// Why, as `does not let namespace x use gateway y`.
        why: String,
    },
    /// Some of what comes from there may not pass, and a namespace cannot say which.
    Finer {
        by: Origin,
        /// What is finer than a namespace.
        what: &'static str,
    },
}

/// Whose question it is: Sidecars do not hold for pods in ambient mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Asker<'a> {
    namespace: &'a str,
    ambient: bool,
}

/// Answers, each asked once.
pub(super) struct Narrowing<'a> {
    facts: &'a Facts<'a>,
    gateways: &'a Gateways,
    answers: BTreeMap<(&'a GatewayRef, Asker<'a>), Option<Narrowed>>,
    finer: BTreeMap<(Origin, &'static str, ObjectName), BTreeSet<&'a str>>,
}

impl<'a> Narrowing<'a> {
    pub(super) fn new(facts: &'a Facts<'a>, gateways: &'a Gateways) -> Self {
        Self { facts, gateways, answers: BTreeMap::new(), finer: BTreeMap::new() }
    }

    /// The gateways of its policy that a pod may not use; none where the policy does not narrow.
    pub(super) fn forbidden(
        &mut self,
        policy: &'a EgressPolicy,
        pod: &'a Pod,
    ) -> BTreeSet<&'a GatewayRef> {
        let asker =
            Asker { namespace: &pod.name.namespace, ambient: pod.capture == Capture::Ambient };
        let named = policy.gateways.iter().filter(|_| policy.narrow);
        named.filter(|gateway| self.is_forbidden(gateway, asker)).collect()
    }

    /// What forbids which gateway to whom, ordered.
    pub(super) fn narrowed(&self) -> Vec<Narrowed> {
        let all: BTreeSet<&Narrowed> = self.answers.values().flatten().collect();
        all.into_iter().cloned().collect()
    }

    /// One problem for each object, what is finer about it, and gateway.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.finer.iter().map(|((origin, what, gateway), namespaces)| {
            let namespaces: Vec<&str> = namespaces.iter().copied().collect();
            let (noun, verb) =
                if namespaces.len() == 1 { ("namespace", "is") } else { ("namespaces", "are") };
            Problem {
                code: ProblemCode::NarrowingIncomplete,
                origin: origin.clone(),
                message: format!(
                    "{what}, which narrows no further than to a namespace: gateway {gateway} stays \
                     open to {noun} {} here, and its proxy alone decides what of it {verb} let \
                     through",
                    namespaces.join(", ")
                ),
            }
        })
    }

    fn is_forbidden(&mut self, gateway: &'a GatewayRef, asker: Asker<'a>) -> bool {
        if let Some(known) = self.answers.get(&(gateway, asker)) {
            return known.is_some();
        }
        let answer = self.ask(gateway, asker);
        let forbidden = answer.is_some();
        self.answers.insert((gateway, asker), answer);
        forbidden
    }

    fn ask(&mut self, gateway: &'a GatewayRef, asker: Asker<'a>) -> Option<Narrowed> {
        let resolved = self.gateways.resolved.get(gateway)?;
        let name = ObjectName { namespace: gateway.namespace.clone(), name: gateway.name() };
        let question = Question { facts: self.facts, gateway, resolved, name: &name, asker };
        let mut says = authorization::says(&question);
        if !asker.ambient {
            says.extend(sidecar::says(&question));
        }
        // What is finer does not matter where the whole is forbidden.
        let forbidden = says.iter().find_map(|one| match one {
            Says::Forbidden { by, why } => Some((by.clone(), why.clone())),
            Says::Open | Says::Finer { .. } => None,
        });
        if let Some((by, why)) = forbidden {
            return Some(Narrowed {
                namespace: asker.namespace.to_owned(),
                ambient: asker.ambient,
                gateway: name,
                addresses: resolved.addresses.clone(),
                by,
                why,
            });
        }
        for one in says {
            if let Says::Finer { by, what } = one {
                let there = self.finer.entry((by, what, name.clone())).or_default();
                there.insert(asker.namespace);
            }
        }
        None
    }
}

/// One namespace at one gateway.
struct Question<'q> {
    facts: &'q Facts<'q>,
    gateway: &'q GatewayRef,
    resolved: &'q Resolved,
    name: &'q ObjectName,
    asker: Asker<'q>,
}

impl Question<'_> {
    /// The gateway's pods that serve, or would: those in quarantine do not count.
    fn pods(&self) -> impl Iterator<Item = &Pod> {
        let pods = self.resolved.pods.iter().filter_map(|uid| self.facts.snapshot.pods.get(uid));
        pods.filter(|pod| !pod.quarantined)
    }
}
