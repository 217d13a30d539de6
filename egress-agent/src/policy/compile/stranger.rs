//! Interfaces that lead to somebody whose pod is not known: it is judged there as a pod that the
//! agent has not learned, before its object says more, and when its addresses say otherwise.
//!
//! What else leads into another namespace must not be taken for a pod's. An end counts as one unless
//! - it is no end of a pair, or the node's operator says that it leads to no pod;
//! - it is the node's own way out: a default route leaves by it, or it carries an address of the
//!   node's that is none of the cluster's;
//! - it is a port of such a way, or what is behind carries addresses, and none is of the cluster's:
//!   another runtime's container. But what was once seen with one of the cluster's stays a pod's,
//!   because addresses are changed from inside;
//! - it leads to a pod that is known by another interface. If that one is governed, so is this one;
//!   if not, nothing is asked of it here either.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egress_common::key::{Addr, NamespaceId, PodId, PolicyId};
use egress_common::state::{Capture, Pod as KernelPod};
use ipnet::IpNet;

use super::bounded;
use super::facts::Facts;
use crate::policy::{Link, NodeState, Tables};

/// Whether an entry stands for an interface and not for a pod.
pub(super) const fn is_stranger(entry: &KernelPod) -> bool {
    entry.flags & KernelPod::UNLEARNED != 0
}

/// Enters what is behind the interfaces that no pod has.
pub(super) fn add(facts: &Facts<'_>, node: &NodeState, tables: &mut Tables) {
    let policies = facts.snapshot.policies.values();
    let ranges: Vec<IpNet> = policies
        .flat_map(|policy| policy.cluster_ranges.iter().flatten().copied())
        .chain(facts.auto_ranges().iter().copied())
        .collect();
    let in_cluster = |ip: &IpAddr| ranges.iter().any(|net| net.contains(&ip.to_canonical()));
    let free = |link: &&Link| !tables.interfaces.contains_key(&link.ifindex);
    let free: Vec<&Link> = node.links.iter().filter(free).collect();
    for link in free.into_iter().filter(|link| may_be_a_pods(link, node, in_cluster)) {
        let same = |entry: &&KernelPod| entry.netns == link.netns + 1 && !is_stranger(entry);
        let others: BTreeSet<PodId> =
            tables.interfaces.values().filter(same).map(|entry| entry.id).collect();
        let entry = match (others.len(), tables.interfaces.values().find(same)) {
            (1, Some(pod)) if pod.policy == PolicyId::NONE => continue,
            (1, Some(pod)) => bounded(KernelPod { mac: link.mac, ..*pod }, Some(link), node),
            _ => bounded(stranger(link, facts, node, in_cluster), Some(link), node),
        };
        tables.interfaces.insert(link.ifindex, entry);
    }
}

fn may_be_a_pods(link: &Link, node: &NodeState, in_cluster: impl Fn(&IpAddr) -> bool) -> bool {
    let bridge = link.bridge.as_ref();
    let said = node.not_pods.iter().any(|name| {
        matches(name, &link.name) || bridge.is_some_and(|(_, bridge)| matches(name, bridge))
    });
    let is_way_out =
        node.uplinks.contains(&link.ifindex) || link.own_ips.iter().any(|ip| !in_cluster(ip));
    if !link.pair || said || is_way_out {
        return false;
    }
    let at_way_out = bridge.is_some_and(|(index, _)| node.uplinks.contains(index));
    let once = node.held.interfaces.get(&link.ifindex).is_some_and(|held| {
        is_stranger(held) && !(held.v4.is_unspecified() && held.v6.is_unspecified())
    });
    let unaddressed = link.ips.is_empty() && !at_way_out;
    once || unaddressed || link.ips.iter().any(in_cluster)
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

/// What it carries is its own as far as nobody else is known to have it. Without an address now, it
/// keeps those it was seen with.
fn stranger(
    link: &Link,
    facts: &Facts<'_>,
    node: &NodeState,
    in_cluster: impl Fn(&IpAddr) -> bool,
) -> KernelPod {
    let given = |ip: &IpAddr| {
        facts.pod_ips.contains(&ip.to_canonical()) || node.addresses.contains(&ip.to_canonical())
    };
    let own: Vec<Addr> = link
        .ips
        .iter()
        .filter(|ip| in_cluster(ip) && !given(ip))
        .map(|ip| Addr::from(*ip))
        .collect();
    let held = node.held.interfaces.get(&link.ifindex).filter(|held| is_stranger(held));
    let first = |v4: bool, held: Option<Addr>| {
        let known = held.filter(|addr| !addr.is_unspecified() && !given(&addr.ip()));
        let seen = own.iter().find(|addr| addr.is_v4() == v4).copied();
        known.or(seen).unwrap_or(Addr::UNSPECIFIED)
    };
    KernelPod {
        id: PodId::of_interface(link.ifindex),
        policy: PolicyId::NONE,
        capture: Capture::None.number(),
        flags: KernelPod::UNLEARNED,
        mac: link.mac,
        proxy_uid: KernelPod::NO_PROXY,
        proxy_gid: KernelPod::NO_PROXY,
        v4: first(true, held.map(|held| held.v4)),
        v6: first(false, held.map(|held| held.v6)),
        namespace: NamespaceId::UNKNOWN,
        guarded: 0,
        netns: link.netns + 1,
    }
}
