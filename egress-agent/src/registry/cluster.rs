//! Namespaces, Nodes and ServiceCIDRs: what the cluster is made of.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::field::{FieldErrors, ranges, typed};
use super::object::{Nothing, Object};
use crate::policy::{Node, ObjectName};

/// The label every namespace has, whose value is its name.
pub(super) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Labels of a Namespace. The one with its name is the API server's and cannot be chosen.
pub(super) fn namespace(
    value: Value,
    name: &ObjectName,
) -> Result<BTreeMap<String, String>, FieldErrors> {
    let object: Object<Nothing> = typed(value)?;
    let mut labels = object.metadata.labels;
    labels.insert(NAMESPACE_NAME.to_owned(), name.name.clone());
    Ok(labels)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_range: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_ranges: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct NodeStatus {
    addresses: Vec<NodeAddress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct NodeAddress {
    address: String,
}

/// A Node. Host names among its addresses are not addresses.
pub(super) fn node(value: Value, name: &ObjectName) -> Result<Node, FieldErrors> {
    let object: Object<NodeSpec, NodeStatus> = typed(value)?;
    let spec = object.spec.unwrap_or_default();
    let texts = match (spec.pod_ranges, spec.pod_range) {
        (list, Some(one)) if list.is_empty() => vec![one],
        (list, _) => list,
    };
    let read = |entry: &NodeAddress| entry.address.parse::<IpAddr>().ok();
    Ok(Node {
        name: name.name.clone(),
        addresses: object.status.addresses.iter().filter_map(read).collect(),
        pod_ranges: ranges("spec.podCIDRs", &texts)?,
    })
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct ServiceCidrSpec {
    cidrs: Vec<String>,
}

/// Ranges of a ServiceCIDR.
pub(super) fn service_ranges(value: Value) -> Result<Vec<IpNet>, FieldErrors> {
    let object: Object<ServiceCidrSpec> = typed(value)?;
    ranges("spec.cidrs", &object.spec.unwrap_or_default().cidrs)
}
