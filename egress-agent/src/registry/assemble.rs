//! Objects to a [`Snapshot`]: pure, ordered, and the same for every source.

use std::collections::BTreeMap;
use std::collections::btree_map;

use super::cluster::NAMESPACE_NAME;
use super::istio;
use super::object::{Entry, Item, Key};
use crate::policy::{ObjectName, Pod, Problem, ProblemCode, Snapshot};

/// The last good version of every object that is still there.
pub(super) type Kept = BTreeMap<Key, Item>;

/// Builds the snapshot of these objects, given in the order in which they win.
///
/// An object that was refused keeps its last good version from `kept`; `complete` says whether
/// every source was read, and falls when an object that decides never had a good version.
pub(super) fn assemble<'a>(
    entries: impl IntoIterator<Item = &'a Entry>,
    mut problems: Vec<Problem>,
    mut complete: bool,
    mut kept: Kept,
) -> (Snapshot, Kept) {
    let mut first: BTreeMap<&Key, &Entry> = BTreeMap::new();
    for entry in entries {
        match first.entry(&entry.key) {
            btree_map::Entry::Vacant(slot) => {
                slot.insert(entry);
            }
            btree_map::Entry::Occupied(winner) => problems.push(Problem {
                code: ProblemCode::Invalid,
                origin: entry.origin.clone(),
                message: format!(
                    "defined twice: the one in {} is used, this one is not; remove one of them",
                    winner.get().origin.file.as_deref().unwrap_or("the API server"),
                ),
            }),
        }
    }
    let mut good = Kept::new();
    for (key, entry) in first {
        let errors = match &entry.item {
            Ok(item) => {
                good.insert(key.clone(), item.clone());
                continue;
            }
            Err(errors) => errors,
        };
        let outcome = match kept.remove(key) {
            Some(item) => {
                good.insert(key.clone(), item);
                "its last good version stays"
            }
            None if key.kind.decides() => {
                complete = false;
                "it has no good version, so nothing is removed from the kernel until it has one"
            }
            None => "it is left out",
        };
        problems.push(Problem {
            code: ProblemCode::Invalid,
            origin: entry.origin.clone(),
            message: format!("{errors}; {outcome}"),
        });
    }
    let mut snapshot = fill(&good, &mut problems);
    problems.sort();
    problems.dedup();
    snapshot.complete = complete;
    snapshot.problems = problems;
    (snapshot, good)
}

/// Sorts valid objects into their places.
fn fill(good: &Kept, problems: &mut Vec<Problem>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut virtual_services = BTreeMap::new();
    let mut pods = Vec::new();
    for (key, item) in good {
        let name = key.name.clone();
        match item {
            Item::Pod(pod) => pods.push(pod.as_ref()),
            Item::Namespace(labels) => {
                snapshot.namespaces.insert(name.name, labels.clone());
            }
            Item::Service(service) => {
                snapshot.services.insert(name, service.as_ref().clone());
            }
            Item::Slice(slice) => snapshot.slices.extend(slice.clone()),
            Item::Node(node) => {
                snapshot.nodes.insert(name.name, node.clone());
            }
            Item::ServiceRanges(ranges) => snapshot.service_ranges.extend(ranges),
            Item::Declaration(declaration) => snapshot.declarations.push(declaration.clone()),
            Item::Gateway(gateway) => {
                snapshot.mesh.gateways.insert(name, gateway.clone());
            }
            Item::DestinationRule(rule) => snapshot.mesh.destination_rules.push(rule.clone()),
            Item::Sidecar(sidecar) => snapshot.mesh.sidecars.push(sidecar.clone()),
            Item::Authorization(policy) => snapshot.mesh.authorizations.push(policy.clone()),
            Item::ApiGateway(gateway) => {
                snapshot.mesh.api_gateways.insert(name, gateway.clone());
            }
            Item::MeshConfig(config) => {
                let named = istio::revision(&name.name).zip(config.clone());
                let named = named.map(|(revision, config)| (revision.to_owned(), config));
                snapshot.mesh.configs.extend(named);
            }
            Item::VirtualService(service) => {
                virtual_services.insert(name, service.clone());
            }
            Item::Policy(policy) => {
                snapshot.policies.insert(name.name, policy.as_ref().clone());
            }
            Item::Exception(exception) => {
                snapshot.exceptions.insert(name.name, exception.clone());
            }
        }
    }
    snapshot.service_ranges.sort();
    snapshot.service_ranges.dedup();
    snapshot.pods = by_uid(pods, problems);
    for pod in snapshot.pods.values() {
        let ObjectName { namespace, .. } = &pod.name;
        snapshot
            .namespaces
            .entry(namespace.clone())
            .or_insert_with(|| BTreeMap::from([(NAMESPACE_NAME.to_owned(), namespace.clone())]));
    }
    istio::route(&mut snapshot, &virtual_services);
    snapshot
}

/// Pods by UID. Neither a UID nor a cgroup may be claimed twice: the second claim would move one
/// pod's identity to another.
fn by_uid(pods: Vec<&Pod>, problems: &mut Vec<Problem>) -> BTreeMap<String, Pod> {
    let mut found: BTreeMap<String, Pod> = BTreeMap::new();
    for pod in pods {
        match found.get(&pod.uid) {
            None => {
                found.insert(pod.uid.clone(), pod.clone());
            }
            Some(first) => problems.push(Problem {
                code: ProblemCode::Invalid,
                origin: pod.origin.clone(),
                message: format!(
                    "metadata.uid: {} is also the UID of {}, which is used; this pod is left out",
                    pod.uid, first.origin,
                ),
            }),
        }
    }
    let mut cgroups: BTreeMap<String, String> =
        found.keys().map(|uid| (uid.clone(), uid.clone())).collect();
    for pod in found.values_mut().filter(|pod| pod.cgroup_uid != pod.uid) {
        let owner = cgroups.entry(pod.cgroup_uid.clone()).or_insert_with(|| pod.uid.clone());
        if *owner != pod.uid {
            problems.push(Problem {
                code: ProblemCode::Invalid,
                origin: pod.origin.clone(),
                message: format!(
                    "the cgroup {} that its mirror annotation names belongs to the pod with UID \
                     {owner}; the annotation is ignored",
                    pod.cgroup_uid,
                ),
            });
            pod.cgroup_uid.clone_from(&pod.uid);
        }
    }
    found
}
