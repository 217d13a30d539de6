//! Istio's objects: they say what the mesh declares and how it routes it, and never widen what a
//! pod may reach.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::field::{FieldErrors, ranges, typed};
use super::object::{Nothing, Object, text_enum};
use crate::policy::mesh::{Location, MeshGateway, MeshServer, Resolution};
use crate::policy::snapshot::EXPECTED_ADDRESSES;
use crate::policy::{Declaration, ObjectName, Origin};

mod authorization;
mod destination_rule;
mod route;
mod sidecar;

pub(super) use authorization::authorization;
pub(super) use destination_rule::destination_rule;
pub(super) use route::route;
pub(super) use sidecar::{is_mesh_config, mesh_config, revision, sidecar};

/// The reserved name of the sidecars themselves in `gateways`.
const MESH: &str = "mesh";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct ServiceEntrySpec {
    hosts: Vec<String>,
    addresses: Vec<String>,
    ports: Vec<Port>,
    location: LocationText,
    resolution: ResolutionText,
    endpoints: Vec<Endpoint>,
    export_to: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Endpoint {
    /// An address, a name, or the path of a Unix socket.
    address: String,
    ports: BTreeMap<String, u16>,
}

text_enum! {
    /// `location`. The default is the proto's zero.
    #[derive(Default)]
    LocationText {
        #[default]
        External = "MESH_EXTERNAL",
        Internal = "MESH_INTERNAL",
    }
}

text_enum! {
    /// `resolution`. The default is the proto's zero.
    #[derive(Default)]
    ResolutionText {
        #[default]
        None = "NONE",
        Static = "STATIC",
        Dns = "DNS",
        DnsRoundRobin = "DNS_ROUND_ROBIN",
        DynamicDns = "DYNAMIC_DNS",
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Port {
    number: Option<u16>,
    target_port: Option<u16>,
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
    let expected = object.metadata.annotations.get(EXPECTED_ADDRESSES).map_or("", String::as_str);
    let expected = expected.split(',').map(str::trim).filter(|text| !text.is_empty());
    let expected: Vec<String> = expected.map(str::to_owned).collect();
    let path = format!("metadata.annotations[{EXPECTED_ADDRESSES}]");
    let dialled = spec.ports.iter().filter_map(|port| port.target_port.or(port.number));
    let of_endpoints = spec.endpoints.iter().flat_map(|endpoint| endpoint.ports.values().copied());
    let address = |endpoint: &Endpoint| endpoint.address.parse::<IpAddr>();
    let named = |endpoint: &&Endpoint| {
        address(endpoint).is_err()
            && !endpoint.address.is_empty()
            && !endpoint.address.contains('/')
    };
    Ok(Declaration {
        name: name.clone(),
        hosts: spec.hosts,
        addresses: found,
        ports: spec.ports.iter().filter_map(|port| port.number).collect(),
        dialled: dialled.chain(of_endpoints).filter(|port| *port != 0).collect(),
        endpoints: spec.endpoints.iter().filter_map(|one| address(one).ok()).collect(),
        endpoint_hosts: spec
            .endpoints
            .iter()
            .filter(named)
            .map(|endpoint| endpoint.address.clone())
            .collect(),
        expected: networks(&path, &expected)?,
        location: match spec.location {
            LocationText::External => Location::MeshExternal,
            LocationText::Internal => Location::MeshInternal,
            LocationText::Unknown(text) => Location::Other(text),
        },
        resolution: match spec.resolution {
            ResolutionText::None => Resolution::None,
            ResolutionText::Static => Resolution::Static,
            ResolutionText::Dns => Resolution::Dns,
            ResolutionText::DnsRoundRobin => Resolution::DnsRoundRobin,
            ResolutionText::DynamicDns => Resolution::DynamicDns,
            ResolutionText::Unknown(text) => Resolution::Other(text),
        },
        export_to: spec.export_to,
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
    port: Port,
    hosts: Vec<String>,
}

/// An Istio Gateway. Server hosts may carry a namespace (`ns/host`), which restricts who may
/// bind them and not what they match.
pub(super) fn gateway(value: Value, origin: &Origin) -> Result<MeshGateway, FieldErrors> {
    let object: Object<GatewaySpec> = typed(value)?;
    let spec = object.spec.unwrap_or_default();
    let bare = |host: String| host.rsplit('/').next().unwrap_or_default().to_owned();
    let server = |server: Server| MeshServer {
        port: server.port.number.unwrap_or(0),
        hosts: server.hosts.into_iter().map(bare).collect(),
    };
    Ok(MeshGateway {
        selector: spec.selector,
        servers: spec.servers.into_iter().map(server).collect(),
        origin: origin.clone(),
    })
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
