//! What was offered as part of a gateway and refused.
//!
//! Endpoint slices, labels and Services are easier to write than pods with a pinned service
//! account. Whatever one of them offers that the gateway's own pods do not bear out opens
//! nothing, and is told: it is either a mistake that costs capacity or somebody who tries.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{ObjectName, Origin};

/// One refusal. Its place in an order, and so what counts as the same one, is the gateway, the
/// reason and the subject; the object that offered it comes last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Rejection {
    /// The gateway it was offered to.
    pub gateway: ObjectName,
    /// Why it was refused.
    pub reason: RejectReason,
    /// What was refused: an address, an address with port, or the name of a pod or Service.
    pub subject: String,
    /// The object that offered it.
    pub origin: Origin,
}

/// Why something is no endpoint of a gateway: label of
/// `egress_gateway_rejected_endpoints_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// An address that no pod can own: loopback, link-local, multicast, the metadata service's,
    /// the mesh's virtual ones.
    ReservedAddress,
    /// A slice's address that no pod has.
    NoPod,
    /// The slice names a pod that is not there any more. Slices lag behind pods, so that a few
    /// of these come with every rollout.
    PodGone,
    /// The slice names a pod, and the address is not that pod's.
    AddressMismatch,
    /// The pod has finished.
    NotRunning,
    /// The pod is in another namespace than the gateway.
    WrongNamespace,
    /// The pod is on the node's network, whose addresses are not its own.
    HostNetwork,
    /// The pod does not run as the pinned service account.
    WrongServiceAccount,
    /// A slice's port that is no port of the Service, or not the target it names.
    UnexpectedPort,
    /// A Service that carries a Gateway's label, and is not owned by that Gateway.
    UnownedService,
    /// The pod is quarantined.
    Quarantined,
}

impl RejectReason {
    /// Every reason, for metrics that must exist at zero.
    pub const ALL: &'static [Self] = &[
        Self::ReservedAddress,
        Self::NoPod,
        Self::PodGone,
        Self::AddressMismatch,
        Self::NotRunning,
        Self::WrongNamespace,
        Self::HostNetwork,
        Self::WrongServiceAccount,
        Self::UnexpectedPort,
        Self::UnownedService,
        Self::Quarantined,
    ];

    /// The metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReservedAddress => "reserved_address",
            Self::NoPod => "no_pod",
            Self::PodGone => "pod_gone",
            Self::AddressMismatch => "address_mismatch",
            Self::NotRunning => "not_running",
            Self::WrongNamespace => "wrong_namespace",
            Self::HostNetwork => "host_network",
            Self::WrongServiceAccount => "wrong_service_account",
            Self::UnexpectedPort => "unexpected_port",
            Self::UnownedService => "unowned_service",
            Self::Quarantined => "quarantined",
        }
    }

    /// Whether it comes with every rollout and need wake nobody.
    pub const fn is_routine(self) -> bool {
        matches!(self, Self::PodGone | Self::NotRunning)
    }

    /// What is wrong, after the subject and before what follows from it.
    pub const fn says(self) -> &'static str {
        match self {
            Self::ReservedAddress => "is an address no pod can have",
            Self::NoPod => "is no pod's address",
            Self::PodGone => "is the address of a pod that is gone",
            Self::AddressMismatch => "is not an address of the pod that the slice names",
            Self::NotRunning => "is the address of a pod that has finished",
            Self::WrongNamespace => "is the address of a pod in another namespace",
            Self::HostNetwork => "is the address of a pod on the node's network",
            Self::WrongServiceAccount => "is a pod that runs as another service account",
            Self::UnexpectedPort => "is not a port that the Service leads to",
            Self::UnownedService => "carries the Gateway's label and is not owned by the Gateway",
            Self::Quarantined => "is quarantined",
        }
    }

    /// What to do about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::ReservedAddress | Self::NoPod | Self::AddressMismatch | Self::WrongNamespace => {
                "remove it from the slice, and find out who wrote it"
            }
            Self::PodGone | Self::NotRunning => {
                "nothing, if it clears: slices lag behind pods; else remove it from the slice"
            }
            Self::HostNetwork => "run the gateway on the pod network",
            Self::WrongServiceAccount => {
                "correct serviceAccount in the policy, or find out who runs the pod"
            }
            Self::UnexpectedPort => "correct the slice or the Service's ports",
            Self::UnownedService => {
                "remove the label; a Service of its own making is named with spec.gateways[].service"
            }
            Self::Quarantined => {
                "remove it from the Service as well, whose own address is closed while the pod is \
                 behind it, and remove the label when the pod is cleared"
            }
        }
    }
}

/// Refusals counted when they appear, and not each time somebody looks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RejectionCount {
    standing: BTreeSet<(ObjectName, RejectReason, String)>,
    totals: BTreeMap<RejectReason, u64>,
}

impl RejectionCount {
    /// Takes what is refused now, counts what was not refused before, and returns it.
    pub fn update<'a>(&mut self, now: &'a [Rejection]) -> Vec<&'a Rejection> {
        let mut standing = BTreeSet::new();
        let mut new = Vec::new();
        for rejection in now {
            let Rejection { gateway, reason, subject, origin: _ } = rejection;
            let key = (gateway.clone(), *reason, subject.clone());
            let known = self.standing.contains(&key);
            if standing.insert(key) && !known {
                *self.totals.entry(*reason).or_default() += 1;
                new.push(rejection);
            }
        }
        self.standing = standing;
        new
    }

    /// How many of a reason have appeared.
    pub fn total(&self, reason: RejectReason) -> u64 {
        self.totals.get(&reason).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(subject: &str, reason: RejectReason, slice: &str) -> Rejection {
        Rejection {
            gateway: ObjectName { namespace: "istio-system".to_owned(), name: "gw".to_owned() },
            reason,
            subject: subject.to_owned(),
            origin: Origin { kind: "EndpointSlice".to_owned(), name: slice.to_owned(), file: None },
        }
    }

    #[test]
    fn a_refusal_counts_when_it_appears_and_not_while_it_stands() {
        let mut count = RejectionCount::default();
        let poison = [
            refused("10.0.0.1", RejectReason::NoPod, "a"),
            // Another slice that says the same.
            refused("10.0.0.1", RejectReason::NoPod, "b"),
            refused("10.0.0.2", RejectReason::NoPod, "a"),
        ];
        assert_eq!(count.update(&poison).len(), 2);
        assert!(count.update(&poison).is_empty());
        assert_eq!(count.total(RejectReason::NoPod), 2);
        let other = refused("10.0.0.1", RejectReason::WrongNamespace, "a");
        assert_eq!(count.update(std::slice::from_ref(&other)), [&other]);
        // Gone and back again is a new one.
        assert_eq!(count.update(&poison).len(), 2);
        assert_eq!(count.total(RejectReason::NoPod), 4);
        assert_eq!(count.total(RejectReason::Quarantined), 0);
    }

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = RejectReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), RejectReason::ALL.len());
        for reason in RejectReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
        }
    }
}
