//! Istio's objects: they say what the mesh declares and how it routes it, and never widen what a
//! pod may reach.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::field::{FieldErrors, ranges, typed};
use super::object::{Nothing, Object};
use crate::policy::{Declaration, GatewayTarget, ObjectName, Origin, Service, Snapshot};

/// Label of the Service that Istio or another controller runs for a Gateway API Gateway.
const MANAGED_GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";
/// The reserved name of the sidecars themselves in `gateways`.
const MESH: &str = "mesh";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct ServiceEntrySpec {
    hosts: Vec<String>,
    addresses: Vec<String>,
    ports: Vec<Port>,
    export_to: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Port {
    number: Option<u16>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct ServiceEntryStatus {
    /// Addresses that istiod allocated.
    addresses: Vec<StatusAddress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct StatusAddress {
    value: String,
}

/// A ServiceEntry; what routes it is found once all objects are known ([`route`]).
pub(super) fn declaration(
    value: Value,
    name: &ObjectName,
    origin: &Origin,
) -> Result<Declaration, FieldErrors> {
    let object: Object<ServiceEntrySpec, ServiceEntryStatus> = typed(value)?;
    let spec = object.spec.unwrap_or_default();
    let allocated: Vec<String> =
        object.status.addresses.into_iter().map(|address| address.value).collect();
    let mut found = networks("spec.addresses", &spec.addresses)?;
    found.extend(networks("status.addresses", &allocated)?);
    // Absent means the mesh's default, which is everywhere unless an operator changed it.
    let export_to = if spec.export_to.is_empty() { vec!["*".to_owned()] } else { spec.export_to };
    Ok(Declaration {
        name: name.clone(),
        hosts: spec.hosts,
        addresses: found,
        ports: spec.ports.iter().filter_map(|port| port.number).collect(),
        export_to,
        routed_by: Vec::new(),
        origin: origin.clone(),
    })
}

/// Addresses or ranges.
fn networks(path: &str, texts: &[String]) -> Result<Vec<IpNet>, FieldErrors> {
    let mut found = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        match text.parse::<std::net::IpAddr>() {
            Ok(ip) => found.push(IpNet::from(ip.to_canonical())),
            Err(_) => found.extend(ranges(&format!("{path}[{i}]"), std::slice::from_ref(text))?),
        }
    }
    Ok(found)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct GatewaySpec {
    selector: BTreeMap<String, String>,
    servers: Vec<Server>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Server {
    hosts: Vec<String>,
}

/// An Istio Gateway: pods that serve some hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gateway {
    selector: BTreeMap<String, String>,
    hosts: Vec<String>,
}

/// An Istio Gateway. Server hosts may carry a namespace (`ns/host`), which restricts who may
/// bind them and not what they match.
pub(super) fn gateway(value: Value) -> Result<Gateway, FieldErrors> {
    let object: Object<GatewaySpec> = typed(value)?;
    let spec = object.spec.unwrap_or_default();
    let bare = |host: String| host.rsplit('/').next().unwrap_or_default().to_owned();
    let hosts = spec.servers.into_iter().flat_map(|server| server.hosts).map(bare).collect();
    Ok(Gateway { selector: spec.selector, hosts })
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct VirtualServiceSpec {
    hosts: Vec<String>,
    gateways: Vec<String>,
    http: Vec<Route>,
    tls: Vec<Route>,
    tcp: Vec<Route>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Route {
    #[serde(rename = "match")]
    matches: Vec<Match>,
    route: Vec<Weighted>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Match {
    gateways: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Weighted {
    destination: Destination,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Destination {
    host: String,
}

/// A VirtualService as far as sidecars obey it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VirtualService {
    hosts: Vec<String>,
    /// In-cluster Services that sidecars send those hosts to.
    destinations: Vec<ObjectName>,
}

/// A VirtualService. A route counts when sidecars use it: `mesh` is named by its match, or by the
/// object where the match names no gateway; naming none at all means `mesh`.
pub(super) fn virtual_service(
    value: Value,
    name: &ObjectName,
) -> Result<VirtualService, FieldErrors> {
    let object: Object<VirtualServiceSpec, Nothing> = typed(value)?;
    let spec = object.spec.unwrap_or_default();
    let by_default = spec.gateways.is_empty() || spec.gateways.iter().any(|name| name == MESH);
    let for_sidecars = |route: &&Route| {
        let matched = |one: &Match| match one.gateways.as_slice() {
            [] => by_default,
            names => names.iter().any(|name| name == MESH),
        };
        if route.matches.is_empty() { by_default } else { route.matches.iter().any(matched) }
    };
    let routes = spec.http.iter().chain(&spec.tls).chain(&spec.tcp).filter(for_sidecars);
    let mut destinations: Vec<ObjectName> = routes
        .flat_map(|route| &route.route)
        .filter_map(|weighted| service_name(&weighted.destination.host, &name.namespace))
        .collect();
    destinations.sort();
    destinations.dedup();
    Ok(VirtualService { hosts: spec.hosts, destinations })
}

/// The Service a destination host names: `name`, `name.namespace`, `name.namespace.svc` or its
/// full form. Whether there is one is for the caller to see.
fn service_name(host: &str, namespace: &str) -> Option<ObjectName> {
    let mut parts = host.split('.');
    let name = parts.next().filter(|name| !name.is_empty())?.to_owned();
    let namespace = parts.next().unwrap_or(namespace).to_owned();
    match parts.next() {
        None | Some("svc") => Some(ObjectName { namespace, name }),
        Some(_) => None,
    }
}

/// Whether the pattern (exact, `*` or `*.suffix`) covers the host or the reverse.
fn overlaps(pattern: &str, host: &str) -> bool {
    let covers = |pattern: &str, host: &str| match pattern.strip_prefix('*') {
        Some(suffix) => host.len() >= suffix.len() && host.ends_with(suffix),
        None => pattern.eq_ignore_ascii_case(host),
    };
    covers(pattern, host) || covers(host, pattern)
}

/// Notes for every declaration which VirtualServices send its hosts through a gateway: a Service
/// that a policy trusts, that is managed for a Gateway API Gateway, or whose pods an Istio
/// Gateway selects for that host.
pub(super) fn route(
    snapshot: &mut Snapshot,
    gateways: &[Gateway],
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
                    hosts.iter().any(|host| is_gateway(snapshot, gateways, service, host))
                })
            })
        };
        declaration.routed_by =
            services.iter().filter(|(_, one)| routes(one)).map(|(name, _)| name.clone()).collect();
    }
    snapshot.declarations = declarations;
}

fn is_gateway(snapshot: &Snapshot, gateways: &[Gateway], service: &Service, host: &str) -> bool {
    let trusted = snapshot.policies.values().flat_map(|policy| &policy.gateways).any(|gateway| {
        gateway.namespace == service.name.namespace
            && gateway.target == GatewayTarget::Service(service.name.name.clone())
    });
    let subset = |wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>| {
        wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let selected = |gateway: &Gateway| {
        // The pods may carry more labels than the Service asks for.
        let by_pods = || {
            !service.selector.is_empty()
                && snapshot.pods.values().any(|pod| {
                    pod.name.namespace == service.name.namespace
                        && subset(&service.selector, &pod.labels)
                        && subset(&gateway.selector, &pod.labels)
                })
        };
        gateway.hosts.iter().any(|pattern| overlaps(pattern, host))
            && (subset(&gateway.selector, &service.selector) || by_pods())
    };
    trusted || service.labels.contains_key(MANAGED_GATEWAY) || gateways.iter().any(selected)
}
