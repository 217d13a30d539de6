//! Which declared destinations the mesh sends through a gateway.

use std::collections::{BTreeMap, BTreeSet};

use super::VirtualService;
use crate::policy::mesh::MeshGateway;
use crate::policy::mesh::host::{covers, overlaps};
use crate::policy::snapshot::labels_match;
use crate::policy::well_known::GATEWAY_NAME_LABEL;
use crate::policy::{Declaration, GatewayTarget, ObjectName, Service, Snapshot};

/// Notes for every declaration which VirtualServices send its hosts through a gateway: a Service
/// that a policy trusts, that is managed for a Gateway API Gateway, or whose pods an Istio
/// Gateway selects for that host.
pub(in crate::registry) fn route(
    snapshot: &mut Snapshot,
    services: &BTreeMap<ObjectName, VirtualService>,
) {
    let mut declarations = std::mem::take(&mut snapshot.declarations);
    let mut routed: Vec<BTreeSet<&ObjectName>> = vec![BTreeSet::new(); declarations.len()];
    let names = Names::of(&declarations);
    let mut gateways: BTreeMap<&ObjectName, Serves<'_>> = BTreeMap::new();
    for (name, one) in services {
        let to: Vec<&Service> =
            one.destinations.iter().filter_map(|to| snapshot.services.get(to)).collect();
        for service in &to {
            gateways.entry(&service.name).or_insert_with(|| Serves::of(snapshot, service));
        }
        for host in &one.hosts {
            let mut through = to.iter().filter_map(|service| gateways.get(&service.name));
            if through.any(|serves| serves.host(host)) {
                for at in names.overlapping(host) {
                    routed[at].insert(name);
                }
            }
        }
    }
    for (declaration, by) in declarations.iter_mut().zip(routed) {
        declaration.routed_by = by.into_iter().cloned().collect();
    }
    snapshot.declarations = declarations;
}

/// Declared hosts with the places of their declarations: a mesh has thousands of both, and most
/// are no patterns.
struct Names<'a> {
    exact: BTreeMap<String, Vec<usize>>,
    patterns: Vec<(&'a str, usize)>,
}

impl<'a> Names<'a> {
    fn of(declarations: &'a [Declaration]) -> Self {
        let mut names = Self { exact: BTreeMap::new(), patterns: Vec::new() };
        for (at, declaration) in declarations.iter().enumerate() {
            for host in &declaration.hosts {
                if host.starts_with('*') {
                    names.patterns.push((host, at));
                } else {
                    names.exact.entry(host.to_ascii_lowercase()).or_default().push(at);
                }
            }
        }
        names
    }

    /// Declarations of a host that this one covers, or that covers it.
    fn overlapping(&self, host: &str) -> BTreeSet<usize> {
        let patterns = self.patterns.iter().filter(|(pattern, _)| overlaps(pattern, host));
        let mut found: BTreeSet<usize> = patterns.map(|(_, at)| *at).collect();
        if host.starts_with('*') {
            let covered = self.exact.iter().filter(|(exact, _)| covers(host, exact));
            found.extend(covered.flat_map(|(_, places)| places));
        } else {
            found.extend(self.exact.get(&host.to_ascii_lowercase()).into_iter().flatten());
        }
        found
    }
}

/// For which hosts a Service is a gateway.
enum Serves<'a> {
    /// All: a policy trusts it, or it is managed for a Gateway API Gateway.
    Everything,
    /// Those of the Istio Gateways that select its pods.
    Hosts(Vec<&'a MeshGateway>),
}

impl<'a> Serves<'a> {
    fn of(snapshot: &'a Snapshot, service: &Service) -> Self {
        let mut trusted = snapshot.policies.values().flat_map(|policy| &policy.gateways);
        let named = trusted.any(|gateway| {
            gateway.namespace == service.name.namespace
                && gateway.target == GatewayTarget::Service(service.name.name.clone())
        });
        if named || service.labels.contains_key(GATEWAY_NAME_LABEL) {
            return Self::Everything;
        }
        let pods = snapshot.pods.values().filter(|pod| {
            !service.selector.is_empty()
                && pod.name.namespace == service.name.namespace
                && labels_match(&service.selector, &pod.labels)
        });
        // The pods may carry more labels than the Service asks for.
        let pods: Vec<_> = pods.map(|pod| &pod.labels).collect();
        let selects = |gateway: &&MeshGateway| {
            labels_match(&gateway.selector, &service.selector)
                || pods.iter().any(|labels| labels_match(&gateway.selector, labels))
        };
        Self::Hosts(snapshot.mesh.gateways.values().filter(selects).collect())
    }

    fn host(&self, host: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Hosts(gateways) => {
                let served = gateways.iter().flat_map(|gateway| &gateway.servers);
                served.flat_map(|server| &server.hosts).any(|pattern| overlaps(pattern, host))
            }
        }
    }
}
