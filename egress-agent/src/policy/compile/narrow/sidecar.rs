//! Sidecars: a namespace whose proxies do not import the gateway's Service cannot route to it.

use super::{Question, Says};
use crate::policy::ObjectName;
use crate::policy::mesh::Sidecar;

/// The domain of a cluster that was given no other.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// What the Sidecars in force for the namespace say. Those with a `workloadSelector` speak for
/// some of its pods only, and count where they disagree with the namespace's.
pub(super) fn says(question: &Question<'_>) -> Vec<Says> {
    let namespace = question.asker.namespace;
    let mesh = &question.facts.snapshot.mesh;
    let whole = mesh.namespace_sidecar(namespace);
    let selecting = mesh
        .sidecars
        .iter()
        .filter(|one| one.name.namespace == namespace && !one.selector.is_empty());
    let services = &question.resolved.services;
    if services.is_empty() {
        let restricting = whole.into_iter().chain(selecting).filter(|one| !one.egress.is_empty());
        let finer = |one: &Sidecar| Says::Finer {
            by: one.origin.clone(),
            what: "imports Services, and this gateway is named by its pods",
        };
        return restricting.map(finer).collect();
    }
    let imports =
        |sidecar: &Sidecar| services.iter().any(|service| imports(sidecar, namespace, service));
    let Some(closed) = whole.filter(|sidecar| !imports(sidecar)) else {
        let closed = selecting.filter(|sidecar| !imports(sidecar));
        let finer = |one: &Sidecar| Says::Finer {
            by: one.origin.clone(),
            what: "does not import the gateway into the pods that its workloadSelector selects",
        };
        return closed.map(finer).collect();
    };
    let open: Vec<Says> = selecting
        .filter(|sidecar| imports(sidecar))
        .map(|one| Says::Finer {
            by: one.origin.clone(),
            what: "imports the gateway into the pods that its workloadSelector selects alone",
        })
        .collect();
    if !open.is_empty() {
        return open;
    }
    vec![Says::Forbidden {
        by: closed.origin.clone(),
        why: format!(
            "does not import gateway {} into namespace {namespace}; add {}/* or the Service's name \
             to its egress.hosts",
            question.name, question.name.namespace
        ),
    }]
}

/// Whether the Sidecar imports a Service, on any port, by its full name in whatever domain the
/// Sidecar's own entries give it.
fn imports(sidecar: &Sidecar, namespace: &str, service: &ObjectName) -> bool {
    let short = format!("{}.{}.svc.", service.name, service.namespace);
    let entries = sidecar.egress.iter().flat_map(|listener| &listener.hosts);
    let patterns = entries.filter_map(|entry| Some(entry.split_once('/')?.1));
    let domains = patterns.filter_map(|pattern| pattern.strip_prefix(&short));
    let mut hosts = domains.chain([CLUSTER_DOMAIN]).map(|domain| format!("{short}{domain}"));
    hosts.any(|host| sidecar.imports_any(namespace, &service.namespace, &host))
}
