//! Services that end outside the cluster.
//!
//! Whoever may write an endpoint slice could otherwise turn an address of the cluster into a way
//! out: the boundary sees the Service's address, kube-proxy sends the packet elsewhere.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::facts::{Facts, host};
use crate::policy::{ExactAddress, Origin, Service, Slice};

/// Slices with an endpoint that is neither a pod nor a node.
pub(super) struct Suspects<'a>(Vec<(&'a Service, &'a Slice, BTreeSet<IpNet>)>);

impl<'a> Suspects<'a> {
    pub(super) fn of(facts: &Facts<'a>) -> Self {
        let known = |ip: &IpAddr| {
            facts.pod_ips.contains(ip) || facts.nodes.iter().any(|node| node.contains(&host(*ip)))
        };
        let services = facts.snapshot.services.values();
        let suspects = services.flat_map(|service| {
            facts.slices(&service.name).iter().filter_map(move |slice| {
                let ips = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
                let ips = ips.map(IpAddr::to_canonical).filter(|ip| !known(ip));
                let strangers: BTreeSet<IpNet> = ips.map(host).collect();
                (!strangers.is_empty()).then_some((service, *slice, strangers))
            })
        });
        Self(suspects.collect())
    }

    /// Every address and port of a Service that, for a policy with these in-cluster ranges, may
    /// end outside; each with the slice that says so.
    pub(super) fn outside(&self, ranges: &BTreeSet<IpNet>) -> Vec<(ExactAddress, Origin)> {
        let mut hidden = Vec::new();
        for (service, slice, strangers) in &self.0 {
            let inside = |net: &IpNet| ranges.iter().any(|range| range.contains(net));
            if strangers.iter().all(inside) {
                continue;
            }
            let named: BTreeSet<&str> = slice.ports.iter().map(|port| &*port.name).collect();
            for port in service.ports.iter().filter(|port| named.contains(&*port.name)) {
                // External addresses are translated like the Service's own.
                for ip in service.cluster_ips.iter().chain(&service.external_ips).copied() {
                    let address = ExactAddress { ip, protocol: port.protocol, port: port.port };
                    hidden.push((address, slice.origin.clone()));
                }
            }
        }
        hidden
    }
}
