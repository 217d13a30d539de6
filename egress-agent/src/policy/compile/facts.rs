//! What several rules ask of the snapshot, gathered once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use crate::policy::{ClusterConfig, EgressPolicy, ObjectName, Slice, Snapshot};

/// Facts of the snapshot and of the agent's configuration.
pub(super) struct Facts<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) cluster: &'a ClusterConfig,
    /// Node addresses.
    pub(super) nodes: BTreeSet<IpNet>,
    /// Addresses of pods that own one: neither finished nor on the node's network.
    pub(super) pod_ips: BTreeSet<IpAddr>,
    /// Ranges `auto` stands for.
    auto_ranges: BTreeSet<IpNet>,
    /// Slices by their Service.
    slices: BTreeMap<ObjectName, Vec<&'a Slice>>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(snapshot: &'a Snapshot, cluster: &'a ClusterConfig) -> Self {
        let of_nodes = snapshot.nodes.values();
        let addresses = of_nodes.clone().flat_map(|node| &node.addresses).map(|ip| host(*ip));
        let configured = cluster.node_addresses.iter().map(|net| canonical(*net));
        let auto_ranges = of_nodes
            .flat_map(|node| &node.pod_ranges)
            .chain(&cluster.ranges)
            .chain(&snapshot.service_ranges);
        let owners = snapshot.pods.values().filter(|pod| !pod.finished && !pod.host_network);
        let mut slices: BTreeMap<_, Vec<&Slice>> = BTreeMap::new();
        for slice in &snapshot.slices {
            let namespace = slice.name.namespace.clone();
            let service = ObjectName { namespace, name: slice.service.clone() };
            slices.entry(service).or_default().push(slice);
        }
        // Where two slices say the same, the first by name is named as its origin, in whatever
        // order they came.
        for slices in slices.values_mut() {
            slices.sort_by_key(|slice| &slice.name);
        }
        Self {
            snapshot,
            cluster,
            nodes: addresses.chain(configured).collect(),
            pod_ips: owners.flat_map(|pod| &pod.ips).map(IpAddr::to_canonical).collect(),
            auto_ranges: auto_ranges.map(|net| canonical(*net)).collect(),
            slices,
        }
    }

    /// Slices of a Service, by name.
    pub(super) fn slices(&self, service: &ObjectName) -> &[&'a Slice] {
        self.slices.get(service).map_or(&[], Vec::as_slice)
    }

    /// The in-cluster ranges that `auto` stands for.
    pub(super) const fn auto_ranges(&self) -> &BTreeSet<IpNet> {
        &self.auto_ranges
    }

    /// The in-cluster ranges of a policy.
    pub(super) fn ranges(&self, policy: &EgressPolicy) -> BTreeSet<IpNet> {
        match &policy.cluster_ranges {
            Some(ranges) => ranges.iter().map(|net| canonical(*net)).collect(),
            None => self.auto_ranges.clone(),
        }
    }
}

/// The prefix of one address.
pub(super) fn host(ip: IpAddr) -> IpNet {
    IpNet::from(ip.to_canonical())
}

/// The prefix with its host bits cleared, and an IPv4-mapped one as IPv4: the kernel has one key
/// for both forms.
pub(super) fn canonical(net: IpNet) -> IpNet {
    let net = net.trunc();
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (IpAddr::V4(v4), Some(len)) if net.addr().is_ipv6() => {
            Ipv4Net::new(v4, len).map_or(net, IpNet::V4)
        }
        _ => net,
    }
}
