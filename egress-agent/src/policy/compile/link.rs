//! Which pod an interface belongs to.
//!
//! What an interface carries is the pod's to change: a container with `CAP_NET_ADMIN` can take
//! its address away or add another pod's. So an interface that was once known to be a pod's stays
//! that pod's as long as it is there ([`Held`](crate::policy::Held)), also when the pod's object is
//! not; and for the others an address counts only where it leaves no second reading.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::key::PodId;

use super::stranger::is_stranger;
use crate::policy::{Link, NodeState, Pod};

/// The interfaces of each pod, by UID; the one that carries its address first.
pub(super) fn owners<'a>(
    local: &[&'a Pod],
    node: &'a NodeState,
) -> BTreeMap<&'a str, Vec<&'a Link>> {
    let pods: Vec<&Pod> =
        local.iter().copied().filter(|pod| !pod.host_network && !pod.finished).collect();
    let mut owned: BTreeMap<u32, &'a Pod> = BTreeMap::new();
    let mut by_id: BTreeMap<PodId, &'a Pod> =
        pods.iter().map(|pod| (PodId::of(&pod.uid), *pod)).collect();
    // A static pod whose mirror was made anew has another UID, and the cgroup it had.
    for pod in &pods {
        let cgroup = node.cgroups.get(&pod.cgroup_uid);
        if let Some(former) = cgroup.and_then(|cgroup| node.held.pods.get(cgroup)) {
            by_id.entry(former.id).or_insert(pod);
        }
    }
    let mut orphaned = BTreeSet::new();
    for link in &node.links {
        let held = node.held.interfaces.get(&link.ifindex).filter(|held| !is_stranger(held));
        match held.map(|held| by_id.get(&held.id)) {
            Some(Some(pod)) => {
                owned.insert(link.ifindex, *pod);
            }
            Some(None) => {
                orphaned.insert(link.ifindex);
            }
            None => {}
        }
    }
    // A pod whose only candidate no other pod depends on takes it; that may leave another pod
    // with one candidate.
    loop {
        let claims = claims(&pods, node, &owned, &orphaned);
        let sole = claims.into_iter().filter_map(|(ifindex, pods)| match pods.as_slice() {
            [pod] => Some((ifindex, *pod)),
            _ => None,
        });
        let before = owned.len();
        owned.extend(sole);
        if owned.len() == before {
            break;
        }
    }
    let mut links: BTreeMap<&str, Vec<&Link>> = BTreeMap::new();
    for link in &node.links {
        if let Some(pod) = owned.get(&link.ifindex) {
            links.entry(&pod.uid).or_default().push(link);
        }
    }
    for (uid, links) in &mut links {
        let pod = pods.iter().find(|pod| pod.uid == **uid);
        links.sort_by_key(|link| (pod.is_none_or(|pod| !carries(link, pod)), link.ifindex));
    }
    links
}

/// Pods that could only be behind this one interface, by its index.
fn claims<'a>(
    pods: &[&'a Pod],
    node: &NodeState,
    owned: &BTreeMap<u32, &Pod>,
    orphaned: &BTreeSet<u32>,
) -> BTreeMap<u32, Vec<&'a Pod>> {
    let settled = |pod: &Pod| {
        let mine = |link: &&Link| owned.get(&link.ifindex).is_some_and(|by| by.uid == pod.uid);
        node.links.iter().filter(mine).any(|link| carries(link, pod))
    };
    let mut claims: BTreeMap<u32, Vec<&Pod>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !settled(pod)) {
        let taken = |index| owned.contains_key(index) || orphaned.contains(index);
        let free = node.links.iter().filter(|link| !taken(&link.ifindex));
        let mut candidates = free.filter(|link| carries(link, pod));
        if let (Some(link), None) = (candidates.next(), candidates.next()) {
            claims.entry(link.ifindex).or_default().push(pod);
        }
    }
    claims
}

fn carries(link: &Link, pod: &Pod) -> bool {
    link.ips.iter().any(|ip| pod.ips.iter().any(|own| own.to_canonical() == ip.to_canonical()))
}
