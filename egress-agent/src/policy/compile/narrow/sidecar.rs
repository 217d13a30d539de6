//! Sidecars: a namespace whose proxies do not import the gateway's Service cannot route to it.

use std::collections::BTreeSet;

use super::{Question, Says};
use crate::policy::mesh::Sidecar;
use crate::policy::snapshot::labels_match;
use crate::policy::{ObjectName, Service};

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
    let services = services(question);
    if services.is_empty() {
        let restricting = whole.into_iter().chain(selecting).filter(|one| !one.egress.is_empty());
        let finer = |one: &Sidecar| Says::Finer {
            by: one.origin.clone(),
            what: "imports Services, and this gateway's pods are behind none",
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

/// The Services the gateway is reached by: those it is named by, or those of its pods.
fn services(question: &Question<'_>) -> BTreeSet<ObjectName> {
    let named = &question.resolved.services;
    if !named.is_empty() {
        return named.clone();
    }
    let selects = |service: &&Service| {
        service.name.namespace == question.gateway.namespace
            && !service.selector.is_empty()
            && question.pods().any(|pod| labels_match(&service.selector, &pod.labels))
    };
    let all = question.facts.snapshot.services.values();
    all.filter(selects).map(|service| service.name.clone()).collect()
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
