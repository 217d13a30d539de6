//! From what the cluster says to what the kernel should hold: pure and ordered.
//!
//! Every pod of this node gets an entry, governed or not: the wall must not take it for unknown,
//! and the source guard runs on every interface. Tables are compiled for the policies, and their
//! variants, that govern one of these pods.
//!
//! Invariant: what cannot be resolved opens nothing, and is said in [`Desired::problems`].

mod claim;
mod exact;
mod facts;
mod gateway;
mod hidden;
mod identity;
mod limit;
mod link;
mod narrow;
mod orphan;
mod places;
mod ranges;
mod redirect;
mod select;
mod shadow;
mod stranger;
mod uplink;

use egress_common::Mode;
use egress_common::key::{Addr, NamespaceId, PodId, PolicyId};
use egress_common::state::{Capture, Config, Pod as KernelPod, Policy as KernelPolicy, Rate};

use super::{
    ClusterConfig, ConnectionRate, Coverage, CoverageState, Desired, EgressPolicy, Link, NodeState,
    Origin, Pod, Snapshot,
};
use facts::Facts;
use gateway::Gateways;
use hidden::Suspects;
use identity::{Numbers, Variant, Variants};
use limit::Limits;
use narrow::Narrowing;
use select::{Choice, Overlaps, Ranked, exceptions_for};

pub use places::{Place, Places};
pub use shadow::shadowed;

/// Compiles a snapshot for one node.
pub fn compile(snapshot: &Snapshot, cluster: &ClusterConfig, node: &NodeState) -> Desired {
    let facts = Facts::of(snapshot, cluster);
    let gateways = Gateways::resolve(&facts);
    let numbers = Numbers::of(snapshot);
    let mut desired = Desired {
        may_remove: snapshot.complete,
        gateways: gateways.states(),
        rejected: gateways.rejected.iter().cloned().collect(),
        problems: snapshot.problems.clone(),
        ..Desired::default()
    };
    desired.problems.extend(gateways.problems.iter().chain(&numbers.problems).cloned());
    desired.problems.extend(claim::problems(&snapshot.declarations, &gateways));

    let limits = Limits::of(snapshot, &gateways);
    let mut variants = Variants::default();
    let known = Known { facts: &facts, gateways: &gateways, limits: &limits, numbers: &numbers };
    let guard = pods(&known, &mut variants, node, &mut desired);

    let suspects = Suspects::of(&facts);
    for (id, variant) in &variants.used {
        let policy = variant.policy;
        let rate = |limit: Option<ConnectionRate>| {
            limit.map_or(Rate::NONE, |limit| Rate::per_second(limit.per_second, limit.burst))
        };
        let entry = KernelPolicy {
            pod_rate: rate(policy.pod_rate),
            namespace_rate: rate(policy.namespace_rate),
            deny_response: policy.deny_response.number(),
            redirect: u8::from(redirect::add(*id, variant, &gateways, node, &mut desired)),
            ..KernelPolicy::new(policy.mode, policy.on_agent_loss)
        };
        desired.tables.policies.insert(*id, entry);
        desired.origins.policies.insert(*id, policy.origin.clone());
        exact::add(*id, variant, &facts, &gateways, &suspects, &mut desired);
        limit::add(*id, variant, &facts, node, &mut desired);
        ranges::add(*id, variant, &facts, node, &mut desired);
    }
    exact::add_resolvers_of_unknown_pods(&facts, &mut desired);
    ranges::add_remotes_of_unknown_pods(&facts, node, &mut desired);
    uplink::add(&mut desired.tables, &mut desired.origins);

    desired.tables.config = Config {
        lease: node.lease,
        generation: 0,
        kubepods_level: node.kubepods_level,
        unknown_pod: node.unknown_pod.number(),
        guard: guard.number(),
        pad: 0,
        mark_audit: node.mark.audit,
        mark_enforce: node.mark.enforce,
        kubepods: node.kubepods,
    };
    desired.problems.sort();
    desired.problems.dedup();
    desired
}

/// What is known before the pods are looked at.
struct Known<'a, 'b> {
    facts: &'a Facts<'a>,
    gateways: &'a Gateways,
    limits: &'a Limits,
    numbers: &'b Numbers<'a>,
}

/// Enters the pods of this node, notes which variants govern them, and says which mode the
/// source guard needs.
fn pods<'a>(
    known: &Known<'a, '_>,
    variants: &mut Variants<'a>,
    node: &NodeState,
    desired: &mut Desired,
) -> Mode {
    let Known { facts, gateways, limits, numbers } = *known;
    let snapshot = facts.snapshot;
    let is_local = |pod: &&Pod| node.name.is_none() || pod.node == node.name;
    let local: Vec<&Pod> = snapshot.pods.values().filter(is_local).collect();
    let links = link::owners(&local, node);
    let proxied = local
        .iter()
        .any(|pod| is_mesh_proxy(pod, facts.cluster) && node.cgroups.contains_key(&pod.cgroup_uid));
    let ranked = Ranked::of(snapshot, &numbers.refused);
    let mut narrowing = Narrowing::new(facts, gateways);
    let mut overlaps = Overlaps::default();
    let mut guard = Mode::Audit;
    for pod in local {
        let mut choice = ranked.choose(snapshot, facts.cluster, gateways, pod);
        let cgroup = node.cgroups.get(&pod.cgroup_uid).copied().filter(|_| !pod.finished);
        if node.own.as_ref().is_some_and(|own| Some(own.cgroup) == cgroup) {
            choice = Choice { policy: None, state: CoverageState::Exempt, ..choice };
        }
        overlaps.add(&choice, pod);
        let limit = (choice.state == CoverageState::Gateway).then(|| limits.of_pod(&pod.uid));
        let limit = limit.flatten();
        let covering = choice.policy.filter(|_| choice.state == CoverageState::Covered);
        let governing = covering.or(limit);
        let mode = governing.map_or(Mode::Off, |policy| mode_of(pod, policy));
        let number = governing.map_or(PolicyId::NONE, |policy| {
            let exceptions = exceptions_for(snapshot, pod);
            let forbidden = narrowing.forbidden(policy, pod);
            let variant = Variant { policy, exceptions, forbidden };
            variants.number(numbers, variant, &mut desired.problems)
        });
        // A pod under no policy could otherwise write what another pod's reply table is filled
        // from: one enforcing policy on the node turns the guard on for everybody.
        guard = guard.max(mode);
        let links = links.get(&*pod.uid).map_or(&[][..], Vec::as_slice);
        let mesh = if is_mesh_proxy(pod, facts.cluster) { KernelPod::MESH_PROXY } else { 0 };
        // Under ambient the pod's sockets are the mesh proxy's, which must be known as well.
        let told = cgroup.is_some() && (pod.capture != Capture::Ambient || proxied);
        let host = if pod.host_network { KernelPod::HOST } else { 0 };
        let audited = governing.is_some_and(|policy| mode != policy.mode);
        let named = node.names && (governing.is_some() || choice.state == CoverageState::Gateway);
        let flags = mesh
            | host
            | if named { KernelPod::NAMES } else { 0 }
            | if limit.is_some() { KernelPod::LIMITED } else { 0 }
            | if told { KernelPod::OWNER } else { 0 }
            | if audited { KernelPod::AUDITED } else { 0 };
        if let Some(cgroup) = cgroup {
            let first = links.first().copied();
            let entry = bounded(kernel_pod(pod, number, flags, first), first, node);
            // The one entry stands for all of the pod's interfaces.
            let open = links.iter().any(|link| !node.verified.contains(&link.ifindex));
            let flags = entry.flags & if open { !KernelPod::BOUNDARY } else { u8::MAX };
            desired.tables.pods.insert(cgroup, KernelPod { mac: [0; 6], flags, ..entry });
        }
        for link in links {
            let entry = bounded(kernel_pod(pod, number, flags, Some(link)), Some(link), node);
            desired.tables.interfaces.insert(link.ifindex, entry);
        }
        let ifindex = links.first().map(|link| link.ifindex);
        desired.coverage.push(Coverage {
            pod: pod.name.clone(),
            uid: pod.uid.clone(),
            workload: pod.workload.clone(),
            policy: choice.policy.map(|policy| policy.name.clone()),
            mode,
            capture: pod.capture,
            cgroup,
            ifindex,
            state: match (choice.state, cgroup, ifindex) {
                (CoverageState::Covered, Some(_), None) if pod.host_network => {
                    CoverageState::HostNetwork
                }
                (CoverageState::Covered, Some(_), None) => CoverageState::NoInterface,
                (CoverageState::Covered, None, Some(_)) => CoverageState::NoCgroup,
                (CoverageState::Covered, None, None) => CoverageState::Missing,
                (state, _, _) => state,
            },
        });
    }
    guard = guard.max(orphan::keep(facts, numbers, variants, node, desired));
    stranger::add(facts, node, &mut desired.tables);
    if let Some(own) = &node.own {
        desired.tables.pods.entry(own.cgroup).or_insert_with(|| own.entry());
    }
    desired.coverage.sort_by(|a, b| (&a.pod, &a.uid).cmp(&(&b.pod, &b.uid)));
    desired.problems.extend(overlaps.problems().chain(narrowing.problems()));
    desired.narrowed = narrowing.narrowed();
    guard
}

/// The mode in which a policy governs the pod: one on the node's network is audited at most, until
/// the policy opts such pods in.
fn mode_of(pod: &Pod, policy: &EgressPolicy) -> Mode {
    let audited = pod.host_network && !policy.host_network;
    if audited && policy.mode == Mode::Enforce { Mode::Audit } else { policy.mode }
}

/// The kernel's entry. The addresses are the API's: what its own interface says is the pod's to
/// choose.
fn kernel_pod(pod: &Pod, policy: PolicyId, flags: u8, link: Option<&Link>) -> KernelPod {
    let (proxy_uid, proxy_gid) = match (pod.capture, pod.proxy) {
        (Capture::Sidecar, Some(proxy)) => proxy,
        _ => (KernelPod::NO_PROXY, KernelPod::NO_PROXY),
    };
    // Addresses of a pod on the node's network are the node's, and many pods'.
    let ips: Vec<Addr> =
        pod.ips.iter().filter(|_| !pod.host_network).map(|ip| Addr::from(*ip)).collect();
    let first = |v4: bool| ips.iter().find(|ip| ip.is_v4() == v4).copied();
    KernelPod {
        id: PodId::of(&pod.uid),
        policy,
        capture: pod.capture.number(),
        flags,
        mac: link.map_or([0; 6], |link| link.mac),
        proxy_uid,
        proxy_gid,
        v4: first(true).unwrap_or(Addr::UNSPECIFIED),
        v6: first(false).unwrap_or(Addr::UNSPECIFIED),
        namespace: NamespaceId::of(&pod.name.namespace),
        guarded: 0,
        netns: link.map_or(0, |link| link.netns + 1),
    }
}

/// The entry as the pod's boundary is: what others open toward the pod is remembered there, and its
/// connections are counted there, only where it was seen to be attached.
fn bounded(entry: KernelPod, link: Option<&Link>, node: &NodeState) -> KernelPod {
    let attached = link.filter(|link| node.verified.contains(&link.ifindex));
    let flags = entry.flags & !KernelPod::BOUNDARY;
    KernelPod {
        flags: flags | if attached.is_some() { KernelPod::BOUNDARY } else { 0 },
        guarded: attached.map_or(0, |link| link.peer),
        ..entry
    }
}

/// Whether a pod is the node's mesh proxy of ambient mode. Only in an exempt namespace: there a
/// tenant puts neither pods nor labels.
fn is_mesh_proxy(pod: &Pod, cluster: &ClusterConfig) -> bool {
    pod.labels.get("app").is_some_and(|app| app == "ztunnel")
        && cluster.exempt_namespaces.contains(&pod.name.namespace)
}

/// The origin of entries that come from the agent's configuration or from the cluster's own
/// facts.
fn configured(what: &str) -> Origin {
    Origin { kind: "Config".to_owned(), name: what.to_owned(), file: None }
}

#[cfg(test)]
pub(crate) mod tests;
