//! Kubernetes objects as this agent reads them: small, tolerant, and independent of their source.
//!
//! A directory of manifests and a watch of the API server both give JSON-like values; [`read`]
//! turns one value into an [`Entry`], and everything after that is shared. Structs name only the
//! fields that matter, every one of them optional: a field or an enum value that a later
//! Kubernetes or Istio brings must never cost us the object. What is present but of the wrong
//! type is an error with the path of the field, because guessing could widen what a pod may
//! reach.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::field::FieldErrors;
pub(super) use super::kind::Kind;
use super::{cluster, gateway, gateway_api, istio, pod, policy_object};
use crate::policy;
use crate::policy::mesh;
use crate::policy::{ObjectName, Origin};

/// API group of our own objects.
pub(super) const OWN_GROUP: &str = "egress-enforcer.io";

/// What identifies an object; the namespace is empty for a cluster-scoped kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) name: ObjectName,
}

/// A valid object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    Pod(Box<policy::Pod>),
    Namespace(BTreeMap<String, String>),
    Service(Box<policy::Service>),
    /// `None` for a slice that gives no endpoint anyone may dial.
    Slice(Option<policy::Slice>),
    Node(policy::Node),
    ServiceRanges(Vec<IpNet>),
    Declaration(policy::Declaration),
    Gateway(mesh::MeshGateway),
    VirtualService(istio::VirtualService),
    DestinationRule(mesh::DestinationRule),
    Sidecar(mesh::Sidecar),
    Authorization(mesh::Authorization),
    ApiGateway(mesh::ApiGateway),
    /// `None` for one of Istio's other ConfigMaps.
    MeshConfig(Option<mesh::MeshConfig>),
    Policy(Box<policy::EgressPolicy>),
    Exception(policy::EgressException),
}

/// One object as found: valid, or refused whole with every field that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) origin: Origin,
    pub(super) item: Result<Item, FieldErrors>,
}

/// `metadata` of an object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) owner_references: Vec<OwnerReference>,
    pub(super) creation_timestamp: Option<String>,
}

impl Metadata {
    /// Seconds since the epoch; `None` where nothing is said, or nothing that is a time.
    pub(super) fn created(&self) -> Option<i64> {
        let time = self.creation_timestamp.as_deref()?.parse::<jiff::Timestamp>();
        time.ok().map(jiff::Timestamp::as_second)
    }
}

/// An entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
pub(super) struct OwnerReference {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) controller: bool,
}

/// An object with its parts typed; `spec` and `status` may both be absent.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
#[serde(bound = "S: Default + DeserializeOwned, T: Default + DeserializeOwned")]
pub(super) struct Object<S, T = Nothing> {
    pub(super) metadata: Metadata,
    pub(super) spec: Option<S>,
    pub(super) status: T,
}

impl<S, T: Default> Default for Object<S, T> {
    fn default() -> Self {
        Self { metadata: Metadata::default(), spec: None, status: T::default() }
    }
}

/// A part nothing is read of.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Nothing {}

/// Declares a tolerant enum over text: known values, and `Unknown` for the rest.
macro_rules! text_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(super) enum $name {
            $($(#[$vmeta])* $variant,)+
            /// A value this version does not know.
            Unknown(String),
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                let text = String::deserialize(input)?;
                Ok(match text.as_str() {
                    $($text => Self::$variant,)+
                    _ => Self::Unknown(text),
                })
            }
        }
    };
}
pub(super) use text_enum;

text_enum! {
    /// A port's protocol.
    #[derive(Default)]
    Protocol {
        #[default]
        Tcp = "TCP",
        Udp = "UDP",
        Sctp = "SCTP",
    }
}

impl Protocol {
    /// IP protocol number; `None` for one that is not known.
    pub(super) fn number(&self) -> Option<u8> {
        match self {
            Self::Tcp => Some(6),
            Self::Udp => Some(17),
            Self::Sctp => Some(132),
            Self::Unknown(_) => None,
        }
    }
}

/// Why a value is not an object at all.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum NotAnObject {
    /// Text, a number or a list.
    #[error("a Kubernetes object was expected: a mapping with apiVersion, kind and metadata")]
    Shape,
    /// `kind` or `apiVersion` is absent.
    #[error("`{0}` is missing: a Kubernetes object was expected")]
    Missing(&'static str),
    /// `metadata.name` is absent.
    #[error("{kind}: metadata.name is missing")]
    Nameless {
        /// The object's kind.
        kind: &'static str,
    },
}

/// Reads one object. `None` for a kind that does not matter here.
pub(super) fn read(mut value: Value, file: Option<String>) -> Result<Option<Entry>, NotAnObject> {
    let map = value.as_object().ok_or(NotAnObject::Shape)?;
    let text = |name| map.get(name).and_then(Value::as_str);
    let kind_name = text("kind").ok_or(NotAnObject::Missing("kind"))?;
    let version = text("apiVersion").ok_or(NotAnObject::Missing("apiVersion"))?;
    let (group, _) = version.split_once('/').unwrap_or(("", version));
    let Some(kind) = Kind::of(group, kind_name) else {
        tracing::debug!(kind = kind_name, api_version = version, "object of another kind ignored");
        return Ok(None);
    };
    let meta = |name| value.pointer(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = meta("/metadata/name");
    if name.is_empty() {
        return Err(NotAnObject::Nameless { kind: kind.name() });
    }
    let mut namespace = if kind.namespaced() { meta("/metadata/namespace") } else { String::new() };
    if kind.namespaced() && namespace.is_empty() {
        namespace = "default".to_owned();
    }
    let label = if kind.namespaced() { format!("{namespace}/{name}") } else { name.clone() };
    let origin = Origin { kind: kind.name().to_owned(), name: label, file };
    let name = ObjectName { namespace, name };
    if kind == Kind::ConfigMap && !istio::is_mesh_config(&name) {
        return Ok(None);
    }
    strip(&mut value);
    let item = convert(kind, value, &name, &origin);
    Ok(Some(Entry { key: Key { kind, name }, origin, item }))
}

fn convert(
    kind: Kind,
    value: Value,
    name: &ObjectName,
    origin: &Origin,
) -> Result<Item, FieldErrors> {
    match kind {
        Kind::Pod => pod::pod(value, name, origin).map(|pod| Item::Pod(Box::new(pod))),
        Kind::Namespace => cluster::namespace(value, name).map(Item::Namespace),
        Kind::Node => cluster::node(value, name).map(Item::Node),
        Kind::ServiceCidr => cluster::service_ranges(value).map(Item::ServiceRanges),
        Kind::Service => {
            gateway::service(value, name, origin).map(|service| Item::Service(Box::new(service)))
        }
        Kind::EndpointSlice => gateway::slice(value, name, origin).map(Item::Slice),
        Kind::ServiceEntry => istio::declaration(value, name, origin).map(Item::Declaration),
        Kind::Gateway => istio::gateway(value, origin).map(Item::Gateway),
        Kind::VirtualService => istio::virtual_service(value, name).map(Item::VirtualService),
        Kind::DestinationRule => {
            istio::destination_rule(value, name, origin).map(Item::DestinationRule)
        }
        Kind::Sidecar => istio::sidecar(value, name, origin).map(Item::Sidecar),
        Kind::AuthorizationPolicy => {
            istio::authorization(value, name, origin).map(Item::Authorization)
        }
        Kind::ApiGateway => gateway_api::api_gateway(value, origin).map(Item::ApiGateway),
        Kind::ConfigMap => istio::mesh_config(value).map(Item::MeshConfig),
        Kind::EgressPolicy => {
            policy_object::policy(value, name, origin).map(|policy| Item::Policy(Box::new(policy)))
        }
        Kind::EgressException => policy_object::exception(value, name, origin).map(Item::Exception),
    }
}

/// Removes what carries no meaning: nulls (absent, in Kubernetes) and `managedFields`.
fn strip(value: &mut Value) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    remove_nulls(value);
}

pub(super) fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(remove_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(remove_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
