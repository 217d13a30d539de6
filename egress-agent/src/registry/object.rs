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
use super::gateway_api::{self, GATEWAY_API_GROUP};
use super::{cluster, gateway, istio, pod, policy_object};
use crate::policy;
use crate::policy::mesh;
use crate::policy::{ObjectName, Origin};

/// API group of our own objects.
pub(super) const OWN_GROUP: &str = "egress-enforcer.io";

/// Kinds that are read; all others are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Pod,
    Namespace,
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
    ServiceEntry,
    Gateway,
    VirtualService,
    DestinationRule,
    Sidecar,
    AuthorizationPolicy,
    /// A Gateway of the Gateway API, which is another kind than Istio's.
    ApiGateway,
    /// Of the mesh's configuration only, see [`istio::is_mesh_config`].
    ConfigMap,
    EgressPolicy,
    EgressException,
}

impl Kind {
    /// Every kind.
    pub(super) const ALL: &'static [Self] = &[
        Self::Pod,
        Self::Namespace,
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::ServiceCidr,
        Self::ServiceEntry,
        Self::Gateway,
        Self::VirtualService,
        Self::DestinationRule,
        Self::Sidecar,
        Self::AuthorizationPolicy,
        Self::ApiGateway,
        Self::ConfigMap,
        Self::EgressPolicy,
        Self::EgressException,
    ];

    /// The kind of a group and kind name; `None` for what is not read.
    fn of(group: &str, kind: &str) -> Option<Self> {
        match (group, kind) {
            ("", "Pod") => Some(Self::Pod),
            ("", "Namespace") => Some(Self::Namespace),
            ("", "Service") => Some(Self::Service),
            ("", "Node") => Some(Self::Node),
            ("discovery.k8s.io", "EndpointSlice") => Some(Self::EndpointSlice),
            ("networking.k8s.io", "ServiceCIDR") => Some(Self::ServiceCidr),
            ("networking.istio.io", "ServiceEntry") => Some(Self::ServiceEntry),
            ("networking.istio.io", "Gateway") => Some(Self::Gateway),
            ("networking.istio.io", "VirtualService") => Some(Self::VirtualService),
            ("networking.istio.io", "DestinationRule") => Some(Self::DestinationRule),
            ("networking.istio.io", "Sidecar") => Some(Self::Sidecar),
            ("security.istio.io", "AuthorizationPolicy") => Some(Self::AuthorizationPolicy),
            (GATEWAY_API_GROUP, "Gateway") => Some(Self::ApiGateway),
            ("", "ConfigMap") => Some(Self::ConfigMap),
            // Whatever its group: a policy lost to a typing error would protect nobody, silently.
            (_, "EgressPolicy") => Some(Self::EgressPolicy),
            (_, "EgressException") => Some(Self::EgressException),
            _ => None,
        }
    }

    /// The name in `kind`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::ServiceEntry => "ServiceEntry",
            Self::Gateway | Self::ApiGateway => "Gateway",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::Sidecar => "Sidecar",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::ConfigMap => "ConfigMap",
            Self::EgressPolicy => "EgressPolicy",
            Self::EgressException => "EgressException",
        }
    }

    /// Whether objects of the kind live in a namespace.
    pub(super) const fn namespaced(self) -> bool {
        match self {
            Self::Pod
            | Self::Service
            | Self::EndpointSlice
            | Self::ServiceEntry
            | Self::Gateway
            | Self::VirtualService
            | Self::DestinationRule
            | Self::Sidecar
            | Self::AuthorizationPolicy
            | Self::ApiGateway
            | Self::ConfigMap => true,
            Self::Namespace
            | Self::Node
            | Self::ServiceCidr
            | Self::EgressPolicy
            | Self::EgressException => false,
        }
    }

    /// Whether the kind is this project's own.
    pub(super) const fn is_own(self) -> bool {
        matches!(self, Self::EgressPolicy | Self::EgressException)
    }

    /// Whether the kernel's entries depend on objects of the kind: one that was never read makes
    /// the snapshot incomplete. Istio's objects only classify, or narrow what stays as it is
    /// without them; every tenant may write some, and none may hold up everybody's removals.
    pub(super) const fn decides(self) -> bool {
        match self {
            Self::Pod
            | Self::Namespace
            | Self::Service
            | Self::EndpointSlice
            | Self::Node
            | Self::ServiceCidr
            | Self::ApiGateway
            | Self::EgressPolicy
            | Self::EgressException => true,
            Self::ServiceEntry
            | Self::Gateway
            | Self::VirtualService
            | Self::DestinationRule
            | Self::Sidecar
            | Self::AuthorizationPolicy
            | Self::ConfigMap => false,
        }
    }
}

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
