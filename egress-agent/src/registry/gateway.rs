//! Services and EndpointSlices: where a gateway can be dialled.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::field::{FieldErrors, addresses, typed};
use super::gateway_api::GATEWAY_API_GROUP;
use super::object::{Object, OwnerReference, Protocol, text_enum};
use crate::policy::{ObjectName, Origin, Service, ServicePort, Slice, SliceEndpoint};

/// Label with the name of a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of slices imported from another cluster; Istio skips them too.
const MULTICLUSTER: &str = "multicluster.kubernetes.io/service-name";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<ServiceType>,
    selector: BTreeMap<String, String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    #[serde(rename = "externalIPs")]
    external_ips: Vec<String>,
    ports: Vec<Port>,
}

text_enum! {
    /// `spec.type`.
    ServiceType {
        ClusterIp = "ClusterIP",
        NodePort = "NodePort",
        LoadBalancer = "LoadBalancer",
        ExternalName = "ExternalName",
    }
}

/// A port of a Service or a slice; a slice's may have no number, which means every port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Port {
    name: String,
    port: Option<u16>,
    protocol: Protocol,
    /// A number, or the name of a container's port.
    target_port: Option<Value>,
}

/// Ports with a number and a protocol that is known: others cannot be dialled by exact entry.
fn ports(ports: Vec<Port>, target: impl Fn(u16, Option<Value>) -> Option<u16>) -> Vec<ServicePort> {
    let known = |port: Port| {
        let number = port.port.filter(|port| *port != 0)?;
        Some(ServicePort {
            port: number,
            protocol: port.protocol.number()?,
            target: target(number, port.target_port),
            name: port.name,
        })
    };
    ports.into_iter().filter_map(known).collect()
}

/// Where a Service's port leads: to the same number where nothing is said, and to nobody knows
/// where a name stands for it.
fn target_of(port: u16, target: Option<Value>) -> Option<u16> {
    match target {
        None => Some(port),
        Some(value) => value.as_u64().and_then(|number| match u16::try_from(number) {
            Ok(0) => Some(port),
            number => number.ok(),
        }),
    }
}

/// A Service. An ExternalName has no addresses: it is a DNS alias.
pub(super) fn service(
    value: Value,
    name: &ObjectName,
    origin: &Origin,
) -> Result<Service, FieldErrors> {
    let object: Object<ServiceSpec> = typed(value)?;
    let spec = object.spec.unwrap_or_default();
    let alias = spec.kind == Some(ServiceType::ExternalName);
    let mut ips = spec.cluster_ips;
    if ips.is_empty() {
        ips.extend(spec.cluster_ip);
    }
    ips.retain(|ip| !alias && !ip.is_empty() && ip != "None");
    let owns = |owner: &&OwnerReference| {
        let group = owner.api_version.split('/').next().unwrap_or_default();
        group == GATEWAY_API_GROUP && owner.kind == "Gateway" && !owner.uid.is_empty()
    };
    let external = if alias { Vec::new() } else { spec.external_ips };
    Ok(Service {
        name: name.clone(),
        labels: object.metadata.labels,
        selector: spec.selector,
        cluster_ips: addresses("spec.clusterIPs", &ips)?,
        external_ips: addresses("spec.externalIPs", &external)?,
        ports: ports(spec.ports, target_of),
        gateway_owners: object
            .metadata
            .owner_references
            .iter()
            .filter(owns)
            .map(|owner| owner.uid.clone())
            .collect(),
        origin: origin.clone(),
    })
}

/// An EndpointSlice: its parts are at the top, there is no `spec`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct SliceObject {
    metadata: super::object::Metadata,
    address_type: Option<AddressType>,
    endpoints: Vec<Endpoint>,
    ports: Vec<Port>,
}

text_enum! {
    /// `addressType`.
    AddressType {
        V4 = "IPv4",
        V6 = "IPv6",
        Fqdn = "FQDN",
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Endpoint {
    addresses: Vec<String>,
    conditions: Conditions,
    target_ref: Option<TargetRef>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct TargetRef {
    kind: String,
    uid: String,
}

/// A slice; `None` for one that gives no address of this cluster: imported, of host names, of a
/// type this version does not know, or of no Service.
pub(super) fn slice(
    value: Value,
    name: &ObjectName,
    origin: &Origin,
) -> Result<Option<Slice>, FieldErrors> {
    let mut object: SliceObject = typed(value)?;
    let imported = object.metadata.labels.contains_key(MULTICLUSTER);
    let addressed = match object.address_type {
        Some(AddressType::V4 | AddressType::V6) | None => true,
        Some(AddressType::Fqdn | AddressType::Unknown(_)) => false,
    };
    let service = object.metadata.labels.remove(SERVICE_NAME).unwrap_or_default();
    if imported || !addressed || service.is_empty() {
        return Ok(None);
    }
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    for (i, endpoint) in object.endpoints.into_iter().enumerate() {
        let pod = endpoint.target_ref.filter(|target| target.kind == "Pod");
        let Conditions { ready, serving } = endpoint.conditions;
        endpoints.push(SliceEndpoint {
            addresses: addresses(&format!("endpoints[{i}].addresses"), &endpoint.addresses)?,
            serving: serving.or(ready).unwrap_or(true),
            pod_uid: pod.map(|target| target.uid).filter(|uid| !uid.is_empty()),
        });
    }
    Ok(Some(Slice {
        name: name.clone(),
        service,
        endpoints,
        ports: ports(object.ports, |_, _| None),
        origin: origin.clone(),
    }))
}
