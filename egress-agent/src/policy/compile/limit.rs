//! The limit for gateways' own pods: where they may go themselves.
//!
//! A policy that asks for it makes one of its own for the pods of its gateways: the same cluster,
//! resolvers and infrastructure, no gateway to go through, and outside what DNS gave them for
//! registered hosts ([`crate::policy::Resolved`]) or what a ServiceEntry names itself. What leads
//! inside is never among it.

use std::collections::BTreeMap;

use egress_common::key::{ExactKey, PolicyId};
use egress_common::packet::protocol::TCP;
use egress_common::state::{DenyResponse, Exact, Target};
use egress_common::{Addr, Mode};

use super::facts::Facts;
use super::gateway::Gateways;
use super::identity::Variant;
use super::places::Places;
use super::select::rank;
use crate::policy::registered::{Registered, named};
use crate::policy::{Desired, EgressPolicy, NodeState, Origin, Snapshot};

/// What no policy is called: a name has no control character.
const MARK: &str = "\u{1c}gateways";

/// The limits of this cluster's gateways.
#[derive(Default)]
pub(super) struct Limits {
    /// Made of the policies that ask for one, in the order in which these win.
    policies: Vec<EgressPolicy>,
    /// Index into them, by the UID of a gateway's pod.
    by_pod: BTreeMap<String, usize>,
}

impl Limits {
    pub(super) fn of(snapshot: &Snapshot, gateways: &Gateways) -> Self {
        let mut asking: Vec<&EgressPolicy> =
            snapshot.policies.values().filter(|one| one.gateway_egress != Mode::Off).collect();
        asking.sort_by_key(|policy| rank(policy));
        let mut limits = Self::default();
        for policy in asking {
            let own = policy.gateways.iter().filter_map(|gateway| gateways.resolved.get(gateway));
            for pod in own.flat_map(|resolved| &resolved.pods) {
                limits.by_pod.entry(pod.clone()).or_insert(limits.policies.len());
            }
            limits.policies.push(EgressPolicy {
                name: format!("{}{MARK}", policy.name),
                mode: policy.gateway_egress,
                gateways: Vec::new(),
                narrow: false,
                redirect: Vec::new(),
                pod_rate: None,
                namespace_rate: None,
                // A SYN that came before its answer was read is sent again.
                deny_response: DenyResponse::Drop,
                ..policy.clone()
            });
        }
        limits
    }

    /// The limit of a gateway's pod.
    pub(super) fn of_pod(&self, uid: &str) -> Option<&EgressPolicy> {
        self.policies.get(*self.by_pod.get(uid)?)
    }
}

/// Adds what the pods of limited gateways may reach outside.
pub(super) fn add(
    id: PolicyId,
    variant: &Variant<'_>,
    facts: &Facts<'_>,
    node: &NodeState,
    desired: &mut Desired,
) {
    if !variant.policy.name.ends_with(MARK) {
        return;
    }
    let places = Places::of(facts.snapshot, facts.cluster, &[]);
    let registered = Registered::of(facts.snapshot);
    let outside = named(facts.snapshot).filter(|(_, ip)| places.of_address(*ip).is_none());
    let fixed = outside.flat_map(|(declaration, ip)| {
        let key = move |port: &u16| ExactKey::new(id, Addr::from(ip), TCP, *port);
        declaration.dialled.iter().map(move |port| {
            (key(port), Exact::plain(Target::Resolved), declaration.origin.clone())
        })
    });
    let resolved = node.resolved.of(id, &registered).filter(|(key, _, _)| {
        // What has become the cluster's own since is that.
        places.of_address(key.addr().ip()).is_none()
    });
    let resolved = resolved.map(|(key, entry, held)| {
        let name = held.pattern.clone().unwrap_or_else(|| "of an earlier agent".to_owned());
        (key, entry, Origin { kind: "DNS answer".to_owned(), name, file: None })
    });
    for (key, entry, origin) in fixed.chain(resolved) {
        desired.tables.exact.entry(key).or_insert(entry);
        desired.origins.exact.entry(key).or_insert(origin);
    }
}
