//! How each kind is asked for: group, plural, and the versions this agent can read.

use std::collections::BTreeMap;

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
