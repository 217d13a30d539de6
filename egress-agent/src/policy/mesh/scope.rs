//! What the mesh shows to a pod: which Sidecar is in force for it, and what is exported and
//! imported. Being out of scope is not being blocked: a proxy only does not know the destination.

use std::collections::BTreeMap;

use egress_common::state::Capture;

use super::host::covers;
use super::{EgressListener, Mesh, MeshConfig, OutboundMode, Sidecar};
use crate::policy::snapshot::labels_match;
use crate::policy::{Coverage, CoverageState, ObjectName, Snapshot};

/// Label of a pod or namespace with the revision of the control plane that serves it.
const REVISION: &str = "istio.io/rev";

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// How the mesh captures it. One that is not captured is told what a proxy of its would know.
    pub capture: Capture,
    /// It is a gateway's pod.
    pub gateway: bool,
    /// Revision of its control plane; empty for the default one.
    pub revision: &'a str,
}

impl<'a> Client<'a> {
    /// A pod of this node. One that the snapshot does not know any more has no labels.
    pub fn of(snapshot: &'a Snapshot, pod: &'a Coverage) -> Self {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let ObjectName { namespace, .. } = &pod.pod;
        let labels = snapshot.pods.get(&pod.uid).map_or(&NONE, |pod| &pod.labels);
        let of_namespace = snapshot.namespaces.get(namespace);
        let revision =
            labels.get(REVISION).or_else(|| of_namespace.and_then(|labels| labels.get(REVISION)));
        Self {
            namespace,
            labels,
            capture: pod.capture,
            gateway: pod.state == CoverageState::Gateway,
            revision: revision.map_or("", String::as_str),
        }
    }
}

impl Mesh {
    /// The Sidecar in force for a pod. The first rule that finds one wins:
    ///
    /// 1. Gateways' proxies have none, and neither has ambient mode.
    /// 2. The oldest of the pod's namespace whose `workloadSelector` has labels and selects it.
    /// 3. The oldest of the namespace without one.
    /// 4. The oldest of the root namespace without one.
    /// 5. None: everything is imported.
    pub fn sidecar(&self, client: &Client<'_>) -> Option<&Sidecar> {
        if client.gateway || client.capture == Capture::Ambient {
            return None;
        }
        let selects = |sidecar: &&Sidecar| {
            !sidecar.selector.is_empty() && labels_match(&sidecar.selector, client.labels)
        };
        self.oldest(client.namespace, selects).or_else(|| self.namespace_sidecar(client.namespace))
    }

    /// The Sidecar in force for the pods of a namespace that no `workloadSelector` selects.
    pub fn namespace_sidecar(&self, namespace: &str) -> Option<&Sidecar> {
        let whole = |sidecar: &&Sidecar| sidecar.selector.is_empty();
        self.oldest(namespace, whole).or_else(|| self.oldest(self.root_namespace(), whole))
    }

    fn oldest(&self, namespace: &str, wanted: impl Fn(&&Sidecar) -> bool) -> Option<&Sidecar> {
        let there = self.sidecars.iter().filter(|sidecar| sidecar.name.namespace == namespace);
        // One without a date counts as newest; among equals the first by name wins.
        there.filter(wanted).min_by_key(|one| (one.created.unwrap_or(i64::MAX), &one.name))
    }

    /// What the pod's proxy does with a destination it does not know, with the Sidecar that says
    /// so; `None` for the mesh's configuration or Istio's default. A Sidecar that says nothing
    /// inherits from the mesh, never from another Sidecar.
    pub fn outbound(&self, client: &Client<'_>) -> (OutboundMode, Option<&Sidecar>) {
        // ztunnel has no such mode: what it does not know it passes on.
        if client.capture == Capture::Ambient {
            return (OutboundMode::AllowAny, None);
        }
        let own = self.sidecar(client);
        match own.and_then(|sidecar| sidecar.outbound.clone().zip(Some(sidecar))) {
            Some((mode, sidecar)) => (mode, Some(sidecar)),
            None => {
                let mesh = self.config(client.revision).outbound;
                (mesh.unwrap_or(OutboundMode::AllowAny), None)
            }
        }
    }
}

/// Whether an object of namespace `from` with this `exportTo` is visible in a namespace.
pub fn is_exported(export_to: &[String], config: &MeshConfig, from: &str, to: &str) -> bool {
    let list = if export_to.is_empty() { &config.default_export_to } else { export_to };
    list.iter().any(|entry| match entry.as_str() {
        "*" => true,
        "." => from == to,
        "~" => false,
        named => named == to,
    })
}

impl Sidecar {
    /// Whether proxies in `namespace` under this Sidecar import a host of a namespace, for
    /// connections to this port.
    pub fn imports(&self, namespace: &str, from: &str, host: &str, port: u16) -> bool {
        if self.egress.is_empty() {
            return true;
        }
        // A listener for the port alone shadows those for every port.
        let own = |listener: &&EgressListener| listener.port == Some(port);
        let wanted = if self.egress.iter().any(|one| own(&one)) { Some(port) } else { None };
        let hosts = || {
            let listeners = self.egress.iter().filter(|listener| listener.port == wanted);
            listeners.flat_map(|listener| &listener.hosts)
        };
        let excluded = hosts().any(|entry| excludes(entry, from, host));
        !excluded && hosts().any(|entry| imports(entry, namespace, from, host))
    }

    /// The same for whatever port.
    pub fn imports_any(&self, namespace: &str, from: &str, host: &str) -> bool {
        let ports = self.egress.iter().filter_map(|listener| listener.port);
        // Port 0 has no listener of its own.
        ports.chain([0]).any(|port| self.imports(namespace, from, host, port))
    }
}

/// Whether `namespace/dnsName` imports a host of namespace `from`. An entry with no slash or with
/// several is none.
fn imports(entry: &str, namespace: &str, from: &str, host: &str) -> bool {
    let Some((named, pattern)) = split(entry) else { return false };
    let there = match named {
        "*" => true,
        "." => namespace == from,
        // Nothing at all; `~name` takes something away.
        _ if named.starts_with('~') => false,
        _ => named == from,
    };
    there && covers(pattern, host)
}

/// Whether `~namespace/dnsName` or `~/dnsName` takes a host away. `~/*`, which used to mean that
/// nothing is imported, comes to the same.
fn excludes(entry: &str, from: &str, host: &str) -> bool {
    let Some((named, pattern)) = split(entry) else { return false };
    let there = named.strip_prefix('~').is_some_and(|name| name.is_empty() || name == from);
    there && covers(pattern, host)
}

fn split(entry: &str) -> Option<(&str, &str)> {
    entry.split_once('/').filter(|(_, pattern)| !pattern.contains('/'))
}

#[cfg(test)]
mod tests;
