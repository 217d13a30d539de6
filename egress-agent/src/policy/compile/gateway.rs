//! Gateways to endpoints.
//!
//! An endpoint is an address of an endpoint slice *and* of a running pod in the same namespace
//! with the pinned service account: neither a forged label nor a poisoned slice adds one. Ports
//! come from the slices, never from a constant. What is offered and refused is told
//! ([`Rejection`]).
//!
//! Every address of a gateway is the gateway's whether or not it may be dialled right now, so
//! that what is no endpoint, or no longer one, is denied and does not pass as any pod's address.

mod find;
mod owner;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_common::key::GatewayId;

use super::facts::Facts;
use crate::policy::well_known::GATEWAY_NAME_LABEL;
use crate::policy::{
    ExactAddress, GatewayEndpoint, GatewayRef, GatewayState, GatewayTarget, ObjectName, Origin,
    Problem, ProblemCode, RejectReason, Rejection,
};
use find::Finder;
pub(super) use find::HBONE_PORT;
use owner::Owners;

/// Every gateway any policy names.
#[derive(Default)]
pub(super) struct Gateways {
    /// By reference.
    pub(super) resolved: BTreeMap<GatewayRef, Resolved>,
    /// UIDs of the pods that are gateways.
    pub(super) pods: BTreeSet<String>,
    /// What was offered to them and refused.
    pub(super) rejected: BTreeSet<Rejection>,
    /// What is wrong with them.
    pub(super) problems: Vec<Problem>,
}

/// One gateway.
#[derive(Default)]
pub(super) struct Resolved {
    /// Policies that name it.
    pub(super) policies: BTreeSet<String>,
    /// What may be dialled.
    pub(super) endpoints: BTreeMap<ExactAddress, Endpoint>,
    /// Addresses of its pods and Services.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// UIDs of its pods, the quarantined ones among them.
    pub(super) pods: BTreeSet<String>,
    /// The Services it is reached by.
    pub(super) services: BTreeSet<ObjectName>,
}

/// What is known of an endpoint.
pub(super) struct Endpoint {
    pub(super) draining: bool,
    pub(super) pod: Option<ObjectName>,
    /// Ports of the gateway's Services that lead here.
    pub(super) serves: BTreeSet<u16>,
    pub(super) origin: Origin,
}

impl Gateways {
    pub(super) fn resolve(facts: &Facts<'_>) -> Self {
        let mut all = Self::default();
        let owners = Owners::of(facts);
        let mut numbers: BTreeMap<GatewayId, ObjectName> = BTreeMap::new();
        let policies = facts.snapshot.policies.values();
        let references: BTreeSet<&GatewayRef> =
            policies.clone().flat_map(|policy| &policy.gateways).collect();
        for gateway in references {
            let name = full_name(gateway);
            let owner = numbers.entry(gateway.id()).or_insert_with(|| name.clone());
            let collision = (*owner != name).then(|| owner.clone());
            let mut finder = Finder::new(facts, &owners, gateway);
            let exists = finder.search();
            let Finder { mut resolved, rejected, .. } = finder;
            all.rejected.extend(rejected);
            all.pods.extend(finder.exempt);
            let (code, message) = if let Some(owner) = collision {
                resolved.endpoints.clear();
                let message = format!(
                    "gateway {name} has the same number {:#x} as gateway {owner} and is refused; \
                     it opens nothing: rename one of the two",
                    gateway.id().0
                );
                (Some(ProblemCode::IdentityCollision), message)
            } else if !exists {
                (Some(ProblemCode::GatewayMissing), missing(gateway, &name))
            } else if resolved.endpoints.is_empty() {
                let message = format!(
                    "gateway {name} has no endpoint: no running pod of service account {} is \
                     behind it, so everything that must go through it is denied; start one, or \
                     correct spec.gateways",
                    gateway.service_account
                );
                (Some(ProblemCode::GatewayEmpty), message)
            } else {
                (None, String::new())
            };
            for policy in policies.clone().filter(|policy| policy.gateways.contains(gateway)) {
                resolved.policies.insert(policy.name.clone());
                all.problems.extend(code.map(|code| Problem {
                    code,
                    origin: policy.origin.clone(),
                    message: message.clone(),
                }));
            }
            all.resolved.insert(gateway.clone(), resolved);
        }
        all.problems.extend(refusals(&all.rejected));
        all
    }

    /// What status and metrics show.
    pub(super) fn states(&self) -> Vec<GatewayState> {
        let states = self.resolved.iter().map(|(gateway, resolved)| {
            let endpoints = resolved.endpoints.iter().map(|(address, endpoint)| GatewayEndpoint {
                address: *address,
                draining: endpoint.draining,
                pod: endpoint.pod.clone(),
            });
            GatewayState {
                name: full_name(gateway),
                id: gateway.id().0,
                policies: resolved.policies.iter().cloned().collect(),
                endpoints: endpoints.collect(),
            }
        });
        states.collect()
    }
}

fn full_name(gateway: &GatewayRef) -> ObjectName {
    ObjectName { namespace: gateway.namespace.clone(), name: gateway.name() }
}

fn missing(gateway: &GatewayRef, name: &ObjectName) -> String {
    let what = match &gateway.target {
        GatewayTarget::Service(service) => format!("no Service {service}"),
        GatewayTarget::Gateway(gateway) => {
            format!(
                "no Gateway {gateway} of the Gateway API, or no Service that has the label \
                 {GATEWAY_NAME_LABEL}={gateway} and is owned by that Gateway's UID (one that was \
                 made by hand is named with `service`)"
            )
        }
        GatewayTarget::Pods { .. } => {
            "no pod with these labels and this service account".to_owned()
        }
    };
    format!(
        "names gateway {name}, but namespace {} has {what}; it opens nothing: create it, or \
         correct spec.gateways",
        gateway.namespace
    )
}

/// One problem for each object, gateway and reason, naming the first subject: a slice may offer a
/// thousand addresses.
fn refusals(rejected: &BTreeSet<Rejection>) -> Vec<Problem> {
    let mut groups: BTreeMap<(&Origin, &ObjectName, RejectReason), Vec<&str>> = BTreeMap::new();
    for Rejection { gateway, reason, subject, origin } in rejected {
        groups.entry((origin, gateway, *reason)).or_default().push(subject);
    }
    let problem = |((origin, gateway, reason), subjects): (
        (&Origin, &ObjectName, RejectReason),
        Vec<&str>,
    )| {
        let first = subjects.first().copied().unwrap_or_default();
        let others = match subjects.len() {
            0 | 1 => String::new(),
            more => format!(" (and {} more)", more - 1),
        };
        Problem {
            code: ProblemCode::EndpointRejected,
            origin: origin.clone(),
            message: format!(
                "{first}{others} {}, so it is no endpoint of gateway {gateway}; {}",
                reason.says(),
                reason.remedy()
            ),
        }
    };
    groups.into_iter().map(problem).collect()
}
