//! From what the cluster says to what the kernel should hold: pure and ordered.
//!
//! Only policies that govern a pod of this node are compiled. Each becomes entries under its own
//! number; a pod for which exceptions are in force gets a *variant* of its policy, with a number
//! and tables of its own, so that an exception never reaches another pod of the same policy.

mod entries;
mod gateway;
mod ranges;
mod select;

use std::collections::{BTreeMap, BTreeSet};

use egress_common::key::{Addr, PodId, PolicyId};
use egress_common::state::{Capture, Config, Pod as KernelPod, Policy as KernelPolicy};
use egress_common::{Mode, key::GatewayId};

use super::{
    ClusterConfig, Coverage, CoverageState, Desired, EgressException, EgressPolicy, Link,
    NodeState, Origin, Pod, Problem, ProblemCode, Snapshot,
};
use gateway::Gateways;

/// Compiles a snapshot for one node.
pub fn compile(snapshot: &Snapshot, cluster: &ClusterConfig, node: &NodeState) -> Desired {
    let gateways = Gateways::resolve(snapshot);
    let mut desired = Desired {
        may_remove: snapshot.complete,
        problems: snapshot.problems.clone(),
        ..Desired::default()
    };
    desired.problems.extend(gateways.problems.iter().cloned());
    let facts = Facts::of(snapshot, cluster, &gateways);
    let mut variants = Variants::default();
    let mut guard = Mode::Audit;
    let local = snapshot.pods.values().filter(|pod| node.name.is_none() || pod.node == node.name);
    for pod in local {
        let choice = select::choose(snapshot, cluster, &gateways, pod);
        desired.problems.extend(choice.overlap);
        let variant = choice.policy.and_then(|policy| {
            let exceptions = select::exceptions_for(snapshot, pod);
            variants.number(policy, &exceptions, &mut desired.problems)
        });
        let governed = variant.is_some() && choice.state == CoverageState::Covered;
        let policy = choice.policy.filter(|_| governed);
        // A pod that no policy enforces could otherwise forge what another one's reply table
        // is filled from: one enforcing policy on the node turns the guard on for all.
        if policy.is_some_and(|policy| policy.mode == Mode::Enforce) {
            guard = Mode::Enforce;
        }
        let link = link_of(snapshot, node, pod);
        let cgroup = node.cgroups.get(&pod.cgroup_uid).copied().filter(|_| !pod.finished);
        let number = variant.filter(|_| governed).unwrap_or(PolicyId::NONE);
        let entry = kernel_pod(pod, number, link);
        if let Some(cgroup) = cgroup {
            desired.tables.pods.insert(cgroup, KernelPod { mac: [0; 6], ..entry });
        }
        if let Some(link) = link {
            desired.tables.interfaces.insert(link.ifindex, entry);
        }
        let state = match (choice.state, cgroup, link) {
            (CoverageState::Covered, Some(_), None) => CoverageState::NoInterface,
            (CoverageState::Covered, None, Some(_)) => CoverageState::NoCgroup,
            (CoverageState::Covered, None, None) => CoverageState::Missing,
            (state, _, _) => state,
        };
        desired.coverage.push(Coverage {
            pod: pod.name.clone(),
            uid: pod.uid.clone(),
            workload: pod.workload.clone(),
            policy: choice.policy.map(|policy| policy.name.clone()),
            mode: policy.map_or(Mode::Off, |policy| policy.mode),
            capture: pod.capture,
            cgroup,
            ifindex: link.map(|link| link.ifindex),
            state,
        });
    }
    for (number, variant) in &variants.used {
        let policy = variant.policy;
        let kernel = KernelPolicy {
            mode: policy.mode.number(),
            on_agent_loss: policy.on_agent_loss.number(),
            pad: [0; 2],
        };
        desired.tables.policies.insert(*number, kernel);
        desired.origins.policies.insert(*number, policy.origin.clone());
        entries::add(*number, policy, &facts, &mut desired);
        ranges::add(*number, policy, &variant.exceptions, &facts, node, &mut desired);
    }
    entries::add_resolvers_of_unknown_pods(snapshot, &facts, &mut desired);
    desired.tables.config = Config {
        lease: node.lease,
        generation: 0,
        kubepods_level: node.kubepods_level,
        unknown_pod: node.unknown_pod.number(),
        guard: guard.number(),
        pad: [0; 6],
    };
    desired.gateways = gateways.states();
    desired.coverage.sort_by(|a, b| (&a.pod, &a.uid).cmp(&(&b.pod, &b.uid)));
    desired.problems.sort();
    desired.problems.dedup();
    desired
}

/// What several compilers ask of the snapshot.
struct Facts<'a> {
    snapshot: &'a Snapshot,
    cluster: &'a ClusterConfig,
    gateways: &'a Gateways,
    /// Node addresses.
    nodes: BTreeSet<ipnet::IpNet>,
    /// Ranges `auto` stands for.
    auto_ranges: BTreeSet<ipnet::IpNet>,
    /// Addresses of pods that own one.
    pod_ips: BTreeSet<std::net::IpAddr>,
}

impl<'a> Facts<'a> {
    fn of(snapshot: &'a Snapshot, cluster: &'a ClusterConfig, gateways: &'a Gateways) -> Self {
        let of_nodes = snapshot.nodes.values();
        let mut nodes: BTreeSet<_> = cluster.node_addresses.iter().copied().collect();
        nodes.extend(
            of_nodes.clone().flat_map(|node| &node.addresses).map(|ip| ipnet::IpNet::from(*ip)),
        );
        let mut auto_ranges: BTreeSet<_> = cluster.ranges.iter().copied().collect();
        auto_ranges.extend(of_nodes.flat_map(|node| &node.pod_ranges));
        auto_ranges.extend(&snapshot.service_ranges);
        let owners = snapshot.pods.values().filter(|pod| !pod.finished && !pod.host_network);
        let pod_ips = owners.flat_map(|pod| pod.ips.iter().copied()).collect();
        Self { snapshot, cluster, gateways, nodes, auto_ranges, pod_ips }
    }

    /// The in-cluster ranges of a policy.
    fn ranges(&self, policy: &EgressPolicy) -> BTreeSet<ipnet::IpNet> {
        match &policy.cluster_ranges {
            Some(ranges) => ranges.iter().copied().collect(),
            None => self.auto_ranges.clone(),
        }
    }
}

/// A policy together with the exceptions in force for some of its pods.
struct Variant<'a> {
    policy: &'a EgressPolicy,
    exceptions: Vec<&'a EgressException>,
}

#[derive(Default)]
struct Variants<'a> {
    used: BTreeMap<PolicyId, Variant<'a>>,
}

impl<'a> Variants<'a> {
    /// The number of a policy with these exceptions; `None`, with a problem, when another
    /// policy has it.
    fn number(
        &mut self,
        policy: &'a EgressPolicy,
        exceptions: &[&'a EgressException],
        problems: &mut Vec<Problem>,
    ) -> Option<PolicyId> {
        let names: Vec<&str> = exceptions.iter().map(|exception| exception.name.as_str()).collect();
        let number = if names.is_empty() {
            policy.id()
        } else {
            // No name contains a control character.
            PolicyId::of(&format!("{}\u{1f}{}", policy.name, names.join("\u{1f}")))
        };
        let taken = self
            .used
            .entry(number)
            .or_insert_with(|| Variant { policy, exceptions: exceptions.to_vec() });
        let same = taken.policy.name == policy.name
            && taken.exceptions.iter().map(|exception| exception.name.as_str()).eq(names);
        if same {
            return Some(number);
        }
        problems.push(Problem {
            code: ProblemCode::IdentityCollision,
            origin: policy.origin.clone(),
            message: format!(
                "its number {:#x} is taken by {}; its pods are governed as before: rename it",
                number.0, taken.policy.origin
            ),
        });
        None
    }
}

/// The one interface whose other end owns exactly this pod's addresses.
fn link_of<'a>(snapshot: &Snapshot, node: &'a NodeState, pod: &Pod) -> Option<&'a Link> {
    if pod.host_network || pod.finished {
        return None;
    }
    let owns = |pod: &Pod, link: &Link| link.ips.iter().any(|ip| pod.ips.contains(ip));
    let mut found = node.links.iter().filter(|link| owns(pod, link));
    let (link, rest) = (found.next()?, found.next());
    let others = snapshot.pods.values().filter(|other| !other.host_network && !other.finished);
    let shared = others.filter(|other| other.uid != pod.uid).any(|other| owns(other, link));
    (rest.is_none() && !shared).then_some(link)
}

fn kernel_pod(pod: &Pod, policy: PolicyId, link: Option<&Link>) -> KernelPod {
    let (uid, gid) = match (pod.capture, pod.proxy) {
        (Capture::Sidecar, Some(proxy)) => proxy,
        _ => (KernelPod::NO_PROXY, KernelPod::NO_PROXY),
    };
    let ips = || pod.ips.iter().chain(link.iter().flat_map(|link| &link.ips)).copied();
    let family =
        |v4: bool| ips().find(|ip| ip.is_ipv4() == v4).map_or(Addr::UNSPECIFIED, Addr::from);
    // The node's own addresses are not the pod's to be checked against.
    let (v4, v6) = if pod.host_network {
        (Addr::UNSPECIFIED, Addr::UNSPECIFIED)
    } else {
        (family(true), family(false))
    };
    KernelPod {
        id: PodId::of(&pod.uid),
        policy,
        capture: pod.capture.number(),
        flags: if link.is_some() { KernelPod::BOUNDARY } else { 0 },
        mac: link.map_or([0; 6], |link| link.mac),
        proxy_uid: uid,
        proxy_gid: gid,
        v4,
        v6,
    }
}

/// The origin of entries that come from the agent's configuration.
fn configured(field: &str) -> Origin {
    Origin { kind: "Config".to_owned(), name: field.to_owned(), file: None }
}

/// Ids of gateways are compared in tests and tables only through this.
const fn number(id: GatewayId) -> u32 {
    id.0
}

#[cfg(test)]
mod tests;
