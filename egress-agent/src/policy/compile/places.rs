//! Where no name of the outside may lead: what belongs to the cluster, to a node or to the pod itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::Addr;
use ipnet::IpNet;

use super::facts::{Facts, canonical, host};
use crate::policy::{ClusterConfig, Snapshot};

/// What an address is, where it is nothing outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The cloud's metadata service.
    Metadata,
    /// The asking pod itself: loopback, and the unspecified address, which the kernel takes for it.
    Loopback,
    /// The asking pod's link.
    LinkLocal,
    /// Nobody's: multicast and broadcast.
    Multicast,
    /// A node.
    Node,
    /// A pod or a Service.
    Cluster,
    /// A range that the configuration calls internal.
    Internal,
}

impl Place {
    /// The word in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link_local",
            Self::Multicast => "multicast",
            Self::Node => "node",
            Self::Cluster => "cluster",
            Self::Internal => "internal",
        }
    }
}

/// The addresses that are nothing outside.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Places {
    metadata: BTreeSet<IpAddr>,
    nodes: Vec<IpNet>,
    ranges: Vec<IpNet>,
    /// Pods and Services outside of the ranges that are known.
    addresses: BTreeSet<IpAddr>,
    internal: Vec<IpNet>,
}

impl Places {
    /// Of a cluster; `internal` are further ranges that the operator calls so.
    pub fn of(snapshot: &Snapshot, cluster: &ClusterConfig, internal: &[IpNet]) -> Self {
        let facts = Facts::of(snapshot, cluster);
        let ranges: Vec<IpNet> = facts.auto_ranges().iter().copied().collect();
        let services = snapshot.services.values().flat_map(|service| &service.cluster_ips);
        let known = services.map(IpAddr::to_canonical).chain(facts.pod_ips.iter().copied());
        let outside = |ip: &IpAddr| !ranges.iter().any(|net| net.contains(ip));
        Self {
            metadata: cluster.metadata_addresses.iter().map(IpAddr::to_canonical).collect(),
            nodes: facts.nodes.iter().copied().collect(),
            addresses: known.filter(outside).collect(),
            internal: internal.iter().map(|net| canonical(*net)).collect(),
            ranges,
        }
    }

    /// What an address is; `None` for one outside. One that carries an IPv4 address for a translator
    /// is what that is.
    pub fn of_address(&self, ip: IpAddr) -> Option<Place> {
        let ip = ip.to_canonical();
        let addr = Addr::from(ip);
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        let found = if self.metadata.contains(&ip) {
            Place::Metadata
        } else if addr.is_loopback() || addr.is_unspecified() || is_this_network(ip) {
            Place::Loopback
        } else if addr.is_link_local() {
            Place::LinkLocal
        } else if addr.is_multicast_or_broadcast() {
            Place::Multicast
        } else if within(&self.nodes) {
            Place::Node
        } else if within(&self.ranges) || self.addresses.contains(&ip) {
            Place::Cluster
        } else if within(&self.internal) {
            Place::Internal
        } else {
            return embedded(ip).and_then(|inner| self.of_address(inner));
        };
        Some(found)
    }

    /// Whether a pod may have the address.
    pub fn is_cluster(&self, ip: IpAddr) -> bool {
        self.of_address(ip) == Some(Place::Cluster)
    }

    /// Adds addresses of this node that no Node object names.
    pub fn add_nodes(&mut self, own: impl IntoIterator<Item = IpAddr>) {
        self.nodes.extend(own.into_iter().map(host));
    }
}

/// `0.0.0.0/8`: this host on this network.
const fn is_this_network(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets()[0] == 0,
        IpAddr::V6(_) => false,
    }
}

/// The IPv4 address inside one for NAT64 (`64:ff9b::/96`), 6to4 (`2002::/16`) or of the deprecated
/// compatible form (`::/96`).
fn embedded(ip: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = ip else { return None };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let (high, low) = match [a, b, c, d, e, f] {
        [0x64, 0xff9b, 0, 0, 0, 0] | [0, 0, 0, 0, 0, 0] => (g, h),
        [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    let [w, x] = high.to_be_bytes();
    let [y, z] = low.to_be_bytes();
    (v6 != Ipv6Addr::LOCALHOST).then(|| Ipv4Addr::new(w, x, y, z).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::compile::tests::fixture::{World, ip, net};

    #[test]
    fn every_place_inside_is_told_and_nothing_outside_is() {
        let mut world = World::new();
        world.cluster.ranges = vec![net("10.96.0.0/16"), net("fd00:96::/48")];
        world.cluster.node_addresses = vec![net("172.31.0.2/32")];
        world.cluster.metadata_addresses = vec![ip("169.254.169.254"), ip("fd00:ec2::254")];
        let mut places = Places::of(&world.snapshot, &world.cluster, &[net("192.168.0.0/16")]);
        places.add_nodes([ip("198.51.100.7")]);
        for (text, place) in [
            ("169.254.169.254", Some(Place::Metadata)),
            ("::ffff:169.254.169.254", Some(Place::Metadata)),
            ("64:ff9b::a9fe:a9fe", Some(Place::Metadata)),
            ("fd00:ec2::254", Some(Place::Metadata)),
            ("127.0.0.1", Some(Place::Loopback)),
            ("0.0.0.0", Some(Place::Loopback)),
            ("0.1.2.3", Some(Place::Loopback)),
            ("::", Some(Place::Loopback)),
            ("::1", Some(Place::Loopback)),
            ("::7f00:1", Some(Place::Loopback)),
            ("2002:7f00:1::", Some(Place::Loopback)),
            ("169.254.1.1", Some(Place::LinkLocal)),
            ("fe80::1", Some(Place::LinkLocal)),
            ("224.0.0.1", Some(Place::Multicast)),
            ("255.255.255.255", Some(Place::Multicast)),
            ("172.31.0.2", Some(Place::Node)),
            ("198.51.100.7", Some(Place::Node)),
            ("10.96.0.10", Some(Place::Cluster)),
            ("fd00:96::a", Some(Place::Cluster)),
            ("192.168.7.7", Some(Place::Internal)),
            ("203.0.113.10", None),
            ("2001:db8::1", None),
            ("64:ff9b::cb00:710a", None),
            ("10.1.2.3", None),
        ] {
            assert_eq!(places.of_address(ip(text)), place, "{text}");
        }
    }
}
