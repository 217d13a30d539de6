//! Pods whose object is gone while they are not.
//!
//! Whoever may delete a pod could otherwise free its running processes: with a long grace period
//! and `--force` the object goes at once and the container stays. So a cgroup or an interface that
//! nobody else owns keeps its last entry until the kernel has neither any more.
//!
//! The policy is the one of that name as it is now. Without it, or where the entry was made for
//! exceptions or for fewer gateways, only the mode is left: everything that a policy would open is
//! closed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_common::Mode;
use egress_common::key::{Addr, PodId, PolicyId};
use egress_common::state::{Capture, Pod as KernelPod};

use super::bounded;
use super::facts::Facts;
use super::identity::{Numbers, Variant, Variants};
use super::stranger::is_stranger;
use crate::policy::{Coverage, CoverageState, Desired, Link, NodeState, ObjectName};

/// What is left of a pod.
#[derive(Default)]
struct Orphan<'a> {
    cgroups: Vec<(u64, KernelPod)>,
    links: Vec<(&'a Link, KernelPod)>,
}

/// Enters them beside the pods that are known, which are entered already, and says which mode the
/// source guard needs for them.
pub(super) fn keep<'a>(
    facts: &Facts<'a>,
    numbers: &Numbers<'a>,
    variants: &mut Variants<'a>,
    node: &NodeState,
    desired: &mut Desired,
) -> Mode {
    let given: BTreeSet<IpAddr> =
        facts.snapshot.pods.values().flat_map(|pod| pod.ips.iter().copied()).collect();
    let mut guard = Mode::Off;
    for (id, orphan) in orphans(node, desired) {
        let entries = orphan.cgroups.iter().map(|(_, entry)| entry);
        let mut entries = entries.chain(orphan.links.iter().map(|(_, entry)| entry));
        let Some(entry) = entries.next().copied() else { continue };
        let mode = mode_of(entry.policy, facts, numbers, variants, node, desired);
        guard = guard.max(mode);
        let first = orphan.links.first().map(|(link, _)| *link);
        for (cgroup, entry) in &orphan.cgroups {
            let entry = bounded(without(*entry, &given), first, node);
            desired.tables.pods.insert(*cgroup, KernelPod { mac: [0; 6], ..entry });
        }
        for (link, entry) in &orphan.links {
            let entry = bounded(without(*entry, &given), Some(link), node);
            let netns = link.netns + 1;
            desired.tables.interfaces.insert(link.ifindex, KernelPod { netns, ..entry });
        }
        // One that has finished is still known.
        if desired.coverage.iter().all(|pod| PodId::of(&pod.uid) != id) {
            desired.coverage.push(coverage(id, &entry, &orphan, mode, node));
        }
    }
    guard
}

/// What the kernel's tables hold and nobody has claimed, as long as it lives.
fn orphans<'a>(node: &'a NodeState, desired: &Desired) -> BTreeMap<PodId, Orphan<'a>> {
    let mut orphans: BTreeMap<PodId, Orphan<'a>> = BTreeMap::new();
    for link in &node.links {
        if let Some(entry) = node.held.interfaces.get(&link.ifindex)
            && !is_stranger(entry)
            && !desired.tables.interfaces.contains_key(&link.ifindex)
        {
            orphans.entry(entry.id).or_default().links.push((link, *entry));
        }
    }
    let living: BTreeSet<u64> = node.cgroups.values().copied().collect();
    for (cgroup, entry) in &node.held.pods {
        // A socket may outlive its cgroup, in another pod's hands.
        let lives = living.contains(cgroup) || orphans.contains_key(&entry.id);
        if lives && !desired.tables.pods.contains_key(cgroup) {
            orphans.entry(entry.id).or_default().cgroups.push((*cgroup, *entry));
        }
    }
    orphans
}

/// The mode of the policy, whose tables are compiled where it is still there.
fn mode_of<'a>(
    number: PolicyId,
    facts: &Facts<'a>,
    numbers: &Numbers<'a>,
    variants: &mut Variants<'a>,
    node: &NodeState,
    desired: &mut Desired,
) -> Mode {
    if number == PolicyId::NONE {
        return Mode::Off;
    }
    if let Some(used) = variants.used.get(&number) {
        return used.policy.mode;
    }
    let mut policies = facts.snapshot.policies.values();
    let named = policies.find(|policy| policy.id() == number);
    if let Some(policy) = named.filter(|policy| !numbers.refused.contains(&*policy.name)) {
        let variant = Variant { policy, exceptions: Vec::new(), forbidden: BTreeSet::new() };
        variants.used.insert(number, variant);
        return policy.mode;
    }
    match node.held.policies.get(&number) {
        Some(last) => {
            desired.tables.policies.insert(number, *last);
            Mode::from_number(last.mode).unwrap_or(Mode::Enforce)
        }
        None => Mode::Enforce,
    }
}

/// The entry without an address that is another pod's by now.
fn without(entry: KernelPod, given: &BTreeSet<IpAddr>) -> KernelPod {
    let taken = |own: Addr| given.iter().any(|ip| Addr::from(*ip) == own);
    let left = |own: Addr| if taken(own) { Addr::UNSPECIFIED } else { own };
    KernelPod { v4: left(entry.v4), v6: left(entry.v6), ..entry }
}

/// What is said of it: its name, where this agent has seen the object; otherwise what the name of
/// its cgroup says.
fn coverage(
    id: PodId,
    entry: &KernelPod,
    orphan: &Orphan<'_>,
    mode: Mode,
    node: &NodeState,
) -> Coverage {
    let cgroup = orphan.cgroups.first().map(|(cgroup, _)| *cgroup);
    let ifindex = orphan.links.first().map(|(link, _)| link.ifindex);
    let state = CoverageState::Orphaned;
    let mut known = node.held.coverage.iter();
    if let Some(pod) = known.find(|pod| PodId::of(&pod.uid) == id) {
        return Coverage { mode, cgroup, ifindex, state, ..pod.clone() };
    }
    let directory = node.cgroups.iter().find(|(_, other)| Some(**other) == cgroup);
    let uid = directory.map_or_else(|| format!("{:#x}", id.0), |(uid, _)| uid.clone());
    Coverage {
        pod: ObjectName { namespace: "unknown".to_owned(), name: uid.clone() },
        workload: ("Pod".to_owned(), uid.clone()),
        uid,
        policy: None,
        mode,
        capture: Capture::from_number(entry.capture).unwrap_or(Capture::None),
        cgroup,
        ifindex,
        state,
    }
}
