//! Prefixes, each with everything that is true of it.
//!
//! The kernel's trie returns only the longest match, so every prefix carries the union of the
//! kinds of all prefixes that cover it, and the exceptions of all of them. Exception sets are
//! numbered by their content and never change under a number: a prefix can only point at the set
//! it was compiled with, or at one that is not there yet and allows nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::key::{ExceptionKey, PolicyId, RangeKey};
use egress_common::state::{Exception, Range, range};
use ipnet::IpNet;

use super::{Facts, configured};
use crate::policy::tables::masked;
use crate::policy::{
    Desired, EgressException, EgressPolicy, NodeState, Origin, Problem, ProblemCode,
};

/// Addresses ambient's probes are rewritten to (Istio's defaults).
const AMBIENT_PROBES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 7, 127)),
    IpAddr::V6(Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff)),
];

/// What is true of one prefix by itself.
struct Own<'a> {
    kinds: u32,
    exceptions: BTreeMap<&'a str, &'a EgressException>,
    origin: Origin,
}

/// Adds one policy's prefixes.
pub(super) fn add(
    id: PolicyId,
    policy: &EgressPolicy,
    exceptions: &[&EgressException],
    facts: &Facts<'_>,
    node: &NodeState,
    desired: &mut Desired,
) {
    let prefixes = collect(policy, exceptions, facts, desired);
    for (net, own) in &prefixes {
        let covering: Vec<&Own<'_>> =
            supernets(*net).filter_map(|net| prefixes.get(&net)).collect();
        let kinds = covering.iter().fold(0, |kinds, own| kinds | own.kinds);
        let mut in_force = BTreeMap::new();
        for own in &covering {
            in_force.extend(own.exceptions.iter().map(|(name, exception)| (*name, *exception)));
        }
        let exceptions = if in_force.is_empty() {
            0
        } else {
            exception_set(in_force.values().copied(), node, desired)
        };
        let key = (RangeKey::bits(net.addr().is_ipv4(), net.prefix_len()), trie_key(id, *net));
        desired.tables.ranges.insert(key, Range { kinds, exceptions });
        desired.origins.ranges.insert(key, own.origin.clone());
    }
}

fn collect<'a>(
    policy: &EgressPolicy,
    exceptions: &[&'a EgressException],
    facts: &Facts<'_>,
    desired: &mut Desired,
) -> BTreeMap<IpNet, Own<'a>> {
    let mut prefixes: BTreeMap<IpNet, Own<'a>> = BTreeMap::new();
    let mut mark = |net: IpNet, kinds: u32, origin: &Origin| {
        let own = prefixes.entry(net.trunc()).or_insert_with(|| Own {
            kinds: 0,
            exceptions: BTreeMap::new(),
            origin: origin.clone(),
        });
        own.kinds |= kinds;
    };
    let ranges = facts.ranges(policy);
    if ranges.is_empty() {
        desired.problems.push(Problem {
            code: ProblemCode::ClusterRangesUnknown,
            origin: policy.origin.clone(),
            message: "no cluster range is known, so nothing in the cluster but exact entries may \
                      be reached: set cluster.ranges in the agent's configuration or \
                      spec.clusterRanges"
                .to_owned(),
        });
    }
    let by_policy = policy.cluster_ranges.is_some();
    let from = if by_policy { policy.origin.clone() } else { configured("cluster.ranges") };
    for net in ranges {
        mark(net, range::CLUSTER | range::INBOUND, &from);
    }
    for net in &facts.nodes {
        mark(*net, range::NODE | range::INBOUND, &configured("node addresses"));
    }
    let cluster = facts.cluster;
    for ip in &cluster.metadata_addresses {
        mark(IpNet::from(*ip), range::METADATA, &configured("cluster.metadataAddresses"));
    }
    for net in &cluster.mesh_vip_ranges {
        mark(*net, range::MESH_VIP, &configured("cluster.meshVipRanges"));
    }
    for net in &cluster.inbound_ranges {
        mark(*net, range::INBOUND, &configured("cluster.inboundRanges"));
    }
    for net in &policy.inbound_ranges {
        mark(*net, range::INBOUND, &policy.origin);
    }
    for ip in AMBIENT_PROBES {
        mark(IpNet::from(ip), range::INBOUND, &configured("ambient probes"));
    }
    for exception in exceptions {
        mark(exception.cidr, 0, &exception.origin);
    }
    for exception in exceptions {
        if let Some(own) = prefixes.get_mut(&exception.cidr.trunc()) {
            own.exceptions.insert(&exception.name, exception);
        }
    }
    prefixes
}

/// The prefix itself and every wider one.
fn supernets(net: IpNet) -> impl Iterator<Item = IpNet> {
    (0..=net.prefix_len()).filter_map(move |len| Some(IpNet::new(net.addr(), len).ok()?.trunc()))
}

fn trie_key(policy: PolicyId, net: IpNet) -> RangeKey {
    let octets = egress_common::Addr::from(net.addr()).octets();
    let bits = if net.addr().is_ipv4() { 96 } else { 0 } + u32::from(net.prefix_len());
    RangeKey { policy, addr: masked(octets, bits) }
}

/// Writes the entries of a set and returns its number.
fn exception_set<'a>(
    exceptions: impl Iterator<Item = &'a EgressException>,
    node: &NodeState,
    desired: &mut Desired,
) -> u32 {
    let mut entries: BTreeMap<(u8, u16), (u64, &Origin)> = BTreeMap::new();
    for exception in exceptions {
        let expires = boot_time(exception.expires_at, node.boot_epoch);
        let anything = [(0, 0)];
        let ports = if exception.ports.is_empty() { &anything[..] } else { &exception.ports };
        for port in ports {
            let entry = entries.entry(*port).or_insert((expires, &exception.origin));
            if entry.0 < expires {
                *entry = (expires, &exception.origin);
            }
        }
    }
    let content: BTreeSet<String> = entries
        .iter()
        .map(|((protocol, port), (expires, _))| format!("{protocol}:{port}:{expires}"))
        .collect();
    let content: Vec<String> = content.into_iter().collect();
    // The same hash that names policies; an empty set never gets here, so never zero.
    let PolicyId(set) = PolicyId::of(&content.join(","));
    for ((protocol, port), (expires, origin)) in entries {
        let key = ExceptionKey::new(set, protocol, port);
        desired.tables.exceptions.insert(key, Exception { expires });
        desired.origins.exceptions.insert(key, origin.clone());
    }
    set
}

/// An absolute time on the kernel's boot clock; zero for one before the boot.
fn boot_time(seconds: i64, boot_epoch: i128) -> u64 {
    let nanos = i128::from(seconds) * 1_000_000_000 + boot_epoch;
    u64::try_from(nanos.max(0)).unwrap_or(u64::MAX)
}
