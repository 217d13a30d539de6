//! How each kind is asked for: group, plural, and the versions this agent can read.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResourceList};
use kube::Client;
use kube::discovery::ApiResource;

use crate::registry::gateway_api::GATEWAY_API_GROUP;
use crate::registry::object::{Kind, OWN_GROUP};

/// Where the API server has a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    /// API group; empty for the core.
    pub(super) group: &'static str,
    /// Name in paths and in rules.
    pub(super) plural: &'static str,
    /// Versions whose objects this agent reads, best first.
    versions: &'static [&'static str],
}

/// Versions of Istio's networking and security objects: the fields that matter are the same.
const ISTIO: &[&str] = &["v1", "v1beta1", "v1alpha3"];

/// The resource of a kind. The match names every kind, so that a new one must be thought about.
pub(super) const fn resource(kind: Kind) -> Resource {
    let (group, plural, versions): (_, _, &[&str]) = match kind {
        Kind::Pod => ("", "pods", &["v1"]),
        Kind::Namespace => ("", "namespaces", &["v1"]),
        Kind::Service => ("", "services", &["v1"]),
        Kind::Node => ("", "nodes", &["v1"]),
        Kind::EndpointSlice => ("discovery.k8s.io", "endpointslices", &["v1"]),
        // Served by default since Kubernetes 1.33; without it ranges come from Nodes and from the
        // agent's configuration.
        Kind::ServiceCidr => ("networking.k8s.io", "servicecidrs", &["v1", "v1beta1"]),
        Kind::ServiceEntry => ("networking.istio.io", "serviceentries", ISTIO),
        Kind::Gateway => ("networking.istio.io", "gateways", ISTIO),
        Kind::VirtualService => ("networking.istio.io", "virtualservices", ISTIO),
        Kind::DestinationRule => ("networking.istio.io", "destinationrules", ISTIO),
        Kind::Sidecar => ("networking.istio.io", "sidecars", ISTIO),
        Kind::AuthorizationPolicy => ("security.istio.io", "authorizationpolicies", ISTIO),
        Kind::ApiGateway => (GATEWAY_API_GROUP, "gateways", &["v1", "v1beta1"]),
        Kind::ConfigMap => ("", "configmaps", &["v1"]),
        Kind::EgressPolicy => (OWN_GROUP, "egresspolicies", &["v1alpha1"]),
        Kind::EgressException => (OWN_GROUP, "egressexceptions", &["v1alpha1"]),
    };
    Resource { group, plural, versions }
}

impl Resource {
    /// The resource as the client names it.
    pub(super) fn api(&self, kind: Kind, version: &str) -> ApiResource {
        let api_version = match self.group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        ApiResource {
            group: self.group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: kind.name().to_owned(),
            plural: self.plural.to_owned(),
        }
    }
}

/// Every kind the server has, with the version to ask for; one it does not have is not among
/// them.
pub(super) type Served = BTreeMap<Kind, ApiResource>;

/// What the server is taken to have.
///
/// One that has only begun knows its own kinds before those of CustomResourceDefinitions: a kind
/// that was there is gone once it is missed twice.
#[derive(Debug, Default)]
pub(super) struct Known {
    served: Served,
    missed: BTreeSet<Kind>,
}

impl Known {
    /// The resource of a kind.
    pub(super) fn get(&self, kind: Kind) -> Option<&ApiResource> {
        self.served.get(&kind)
    }

    /// The kinds there are.
    pub(super) fn kinds(&self) -> BTreeSet<Kind> {
        self.served.keys().copied().collect()
    }

    /// Whether a kind was missed once and should be looked for again soon.
    pub(super) fn is_in_doubt(&self) -> bool {
        !self.missed.is_empty()
    }

    /// Takes what the server said; whether that changed anything.
    pub(super) fn take(&mut self, mut said: Served) -> bool {
        let missing = |kind: &&Kind| !said.contains_key(kind);
        let missing: BTreeSet<Kind> = self.served.keys().filter(missing).copied().collect();
        let believed: Vec<Kind> = missing.intersection(&self.missed).copied().collect();
        let doubted = self.served.iter().filter(|(kind, _)| missing.contains(kind));
        let doubted = doubted.filter(|(kind, _)| !believed.contains(kind));
        said.extend(doubted.map(|(kind, resource)| (*kind, resource.clone())));
        self.missed = missing.into_iter().filter(|kind| !believed.contains(kind)).collect();
        let changed = self.served != said;
        self.served = said;
        changed
    }
}

/// Asks the server what it has.
///
/// # Errors
/// When it does not answer, or a group that it names does not.
pub(super) async fn discover(client: &Client) -> Result<Served, kube::Error> {
    let groups = client.list_api_groups().await?;
    let mut served = Served::new();
    let mut lists: BTreeMap<String, APIResourceList> = BTreeMap::new();
    for kind in Kind::ALL.iter().copied() {
        let resource = resource(kind);
        for version in
            resource.versions.iter().filter(|version| has(&groups, resource.group, version))
        {
            let api = resource.api(kind, version);
            // The core's resources are always there.
            if resource.group.is_empty() {
                served.insert(kind, api);
                break;
            }
            let list = match lists.entry(api.api_version.clone()) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(slot) => {
                    match client.list_api_group_resources(&api.api_version).await {
                        Ok(list) => slot.insert(list),
                        // It has gone since the groups were listed.
                        Err(kube::Error::Api(status)) if status.code == 404 => continue,
                        Err(error) => return Err(error),
                    }
                }
            };
            if list.resources.iter().any(|found| found.name == resource.plural) {
                served.insert(kind, api);
                break;
            }
        }
    }
    Ok(served)
}

fn has(groups: &APIGroupList, group: &str, version: &str) -> bool {
    group.is_empty()
        || groups.groups.iter().any(|found| {
            found.name == group && found.versions.iter().any(|known| known.version == version)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_gone_once_it_is_missed_twice() {
        let all: Served = Kind::ALL
            .iter()
            .map(|kind| (*kind, resource(*kind).api(*kind, resource(*kind).versions[0])))
            .collect();
        let without = || {
            let mut some = all.clone();
            some.remove(&Kind::ServiceEntry);
            some
        };
        let mut known = Known::default();
        assert!(known.take(all.clone()) && !known.is_in_doubt());
        assert!(!known.take(without()), "gone at once");
        assert!(known.is_in_doubt() && known.get(Kind::ServiceEntry).is_some());
        assert!(!known.take(all.clone()) && !known.is_in_doubt());
        assert!(!known.take(without()), "missed twice, but not one after the other");
        assert!(known.take(without()) && !known.is_in_doubt());
        assert_eq!(known.get(Kind::ServiceEntry), None);
        assert!(!known.take(without()) && known.take(all.clone()));
        // Another version of it is taken up at once.
        let mut older = all.clone();
        older.insert(Kind::Gateway, resource(Kind::Gateway).api(Kind::Gateway, "v1beta1"));
        assert!(known.take(older.clone()));
        assert_eq!(known.get(Kind::Gateway), older.get(&Kind::Gateway));
    }

    #[test]
    fn every_kind_is_asked_for_by_the_name_that_is_read_back() {
        for kind in Kind::ALL.iter().copied() {
            let resource = resource(kind);
            assert!(!resource.versions.is_empty(), "{kind:?}");
            for version in resource.versions {
                let api = resource.api(kind, version);
                let value = serde_json::json!({
                    "apiVersion": api.api_version,
                    "kind": api.kind,
                    // The one name that a ConfigMap is read by.
                    "metadata": {"namespace": "istio-system", "name": "istio", "uid": "u"},
                });
                let entry = crate::registry::object::read(value, None).unwrap().unwrap();
                assert_eq!(entry.key.kind, kind, "{api:?}");
            }
        }
    }
}
