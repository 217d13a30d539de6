//! Whose address a slice offers: a gateway's pod, or why not.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::policy::compile::facts::{Facts, host};
use crate::policy::{GatewayRef, Pod, RejectReason, SliceEndpoint};

/// Every pod by its addresses. A pod on the node's network is among them, so that it can be
/// named as what it is.
pub(super) struct Owners<'a> {
    facts: &'a Facts<'a>,
    by_address: BTreeMap<IpAddr, Vec<&'a Pod>>,
}

impl<'a> Owners<'a> {
    pub(super) fn of(facts: &'a Facts<'a>) -> Self {
        let mut by_address: BTreeMap<IpAddr, Vec<&Pod>> = BTreeMap::new();
        for pod in facts.snapshot.pods.values().filter(|pod| !pod.finished) {
            for ip in &pod.ips {
                by_address.entry(ip.to_canonical()).or_default().push(pod);
            }
        }
        Self { facts, by_address }
    }

    /// Whether no pod has the address now.
    pub(super) fn is_free(&self, ip: IpAddr) -> bool {
        !self.by_address.contains_key(&ip)
    }

    /// The gateway's pod that a slice offers the address of. A target reference must agree, and
    /// of several pods with one address the gateway's own is meant.
    pub(super) fn find(
        &self,
        gateway: &GatewayRef,
        ip: IpAddr,
        endpoint: &SliceEndpoint,
    ) -> Result<&'a Pod, RejectReason> {
        if self.is_reserved(ip) {
            return Err(RejectReason::ReservedAddress);
        }
        let there = self.by_address.get(&ip).map_or(&[][..], Vec::as_slice);
        let Some(uid) = &endpoint.pod_uid else {
            let own = there.iter().find(|pod| belongs(gateway, pod).is_ok());
            let first = own.or(there.first()).copied().ok_or(RejectReason::NoPod)?;
            return belongs(gateway, first).map(|()| first);
        };
        let Some(named) = self.facts.snapshot.pods.get(uid) else {
            return Err(RejectReason::PodGone);
        };
        if named.finished {
            return Err(RejectReason::NotRunning);
        }
        if !there.iter().any(|pod| pod.uid == *uid) {
            return Err(RejectReason::AddressMismatch);
        }
        belongs(gateway, named).map(|()| named)
    }

    /// Whether no pod can own the address, whoever says so.
    pub(super) fn is_reserved(&self, ip: IpAddr) -> bool {
        let cluster = self.facts.cluster;
        let link_local = match ip {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        link_local
            || ip.is_loopback()
            || ip.is_multicast()
            || ip.is_unspecified()
            || cluster.metadata_addresses.contains(&ip)
            || cluster.mesh_vip_ranges.iter().any(|range| range.contains(&host(ip)))
    }
}

/// Whether a pod is what the reference pins: namespace, network, service account; and not taken
/// out of service.
pub(super) fn belongs(gateway: &GatewayRef, pod: &Pod) -> Result<(), RejectReason> {
    if pod.name.namespace != gateway.namespace {
        Err(RejectReason::WrongNamespace)
    } else if pod.host_network {
        Err(RejectReason::HostNetwork)
    } else if pod.service_account != gateway.service_account {
        Err(RejectReason::WrongServiceAccount)
    } else if pod.quarantined {
        Err(RejectReason::Quarantined)
    } else {
        Ok(())
    }
}
