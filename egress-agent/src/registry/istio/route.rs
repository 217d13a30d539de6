//! Which declared destinations the mesh sends through a gateway.

use std::collections::BTreeMap;

use super::VirtualService;
use crate::policy::mesh::MeshGateway;
use crate::policy::mesh::host::overlaps;
use crate::policy::snapshot::labels_match;
use crate::policy::{GatewayTarget, ObjectName, Service, Snapshot};

/// Label of the Service that Istio or another controller runs for a Gateway API Gateway.
const MANAGED_GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";

/// Notes for every declaration which VirtualServices send its hosts through a gateway: a Service
/// that a policy trusts, that is managed for a Gateway API Gateway, or whose pods an Istio
/// Gateway selects for that host.
pub(in crate::registry) fn route(
    snapshot: &mut Snapshot,
    services: &BTreeMap<ObjectName, VirtualService>,
) {
    let mut declarations = std::mem::take(&mut snapshot.declarations);
    for declaration in &mut declarations {
        let routes = |one: &VirtualService| {
            let hosts = one
                .hosts
                .iter()
                .filter(|host| declaration.hosts.iter().any(|declared| overlaps(host, declared)));
            let hosts: Vec<&String> = hosts.collect();
            one.destinations.iter().any(|to| {
                snapshot.services.get(to).is_some_and(|service| {
                    hosts.iter().any(|host| is_gateway(snapshot, service, host))
                })
            })
        };
        declaration.routed_by =
            services.iter().filter(|(_, one)| routes(one)).map(|(name, _)| name.clone()).collect();
    }
    snapshot.declarations = declarations;
}

fn is_gateway(snapshot: &Snapshot, service: &Service, host: &str) -> bool {
    let trusted = snapshot.policies.values().flat_map(|policy| &policy.gateways).any(|gateway| {
        gateway.namespace == service.name.namespace
            && gateway.target == GatewayTarget::Service(service.name.name.clone())
    });
    let selected = |gateway: &MeshGateway| {
        // The pods may carry more labels than the Service asks for.
        let by_pods = || {
            !service.selector.is_empty()
                && snapshot.pods.values().any(|pod| {
                    pod.name.namespace == service.name.namespace
                        && labels_match(&service.selector, &pod.labels)
                        && labels_match(&gateway.selector, &pod.labels)
                })
        };
        gateway
            .servers
            .iter()
            .flat_map(|server| &server.hosts)
            .any(|pattern| overlaps(pattern, host))
            && (labels_match(&gateway.selector, &service.selector) || by_pods())
    };
    trusted
        || service.labels.contains_key(MANAGED_GATEWAY)
        || snapshot.mesh.gateways.values().any(selected)
}
