//! Sidecars and the mesh's configuration: what proxies import, and what they do with the rest.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::policy::mesh::{EgressListener, ISTIO_NAMESPACE, MeshConfig, OutboundMode, Sidecar};
use crate::policy::{ObjectName, Origin};
use crate::registry::field::{FieldErrors, typed};
use crate::registry::manifest;
use crate::registry::object::{Metadata, Object, remove_nulls, text_enum};

/// Name of the default revision's ConfigMap, and prefix of the others' before their revision.
const CONFIG_NAME: &str = "istio";
/// The key with the configuration, YAML in a string.
const CONFIG_KEY: &str = "mesh";

text_enum! {
    /// `outboundTrafficPolicy.mode`. The default is the proto's zero.
    #[derive(Default)]
    Mode {
        #[default]
        RegistryOnly = "REGISTRY_ONLY",
        AllowAny = "ALLOW_ANY",
    }
}

/// Its presence alone means something: without a mode it is REGISTRY_ONLY.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct OutboundTrafficPolicy {
    mode: Mode,
}

impl From<OutboundTrafficPolicy> for OutboundMode {
    fn from(policy: OutboundTrafficPolicy) -> Self {
        match policy.mode {
            Mode::RegistryOnly => Self::RegistryOnly,
            Mode::AllowAny => Self::AllowAny,
            Mode::Unknown(mode) => Self::Other(mode),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct SidecarSpec {
    workload_selector: WorkloadSelector,
    egress: Vec<Listener>,
    outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct WorkloadSelector {
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Listener {
    port: Option<Port>,
    hosts: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Port {
    number: u16,
}

/// A Sidecar.
pub(in crate::registry) fn sidecar(
    value: Value,
    name: &ObjectName,
    origin: &Origin,
) -> Result<Sidecar, FieldErrors> {
    let object: Object<SidecarSpec> = typed(value)?;
    let created = object.metadata.created();
    let spec = object.spec.unwrap_or_default();
    let listener = |listener: Listener| EgressListener {
        // Port 0 is no port anybody dials: such a listener says nothing about ports.
        port: listener.port.map(|port| port.number).filter(|port| *port != 0),
        hosts: listener.hosts,
    };
    Ok(Sidecar {
        name: name.clone(),
        created,
        selector: spec.workload_selector.labels,
        egress: spec.egress.into_iter().map(listener).collect(),
        outbound: spec.outbound_traffic_policy.map(OutboundMode::from),
        origin: origin.clone(),
    })
}

/// A ConfigMap: its parts are at the top, there is no `spec`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct ConfigMap {
    #[serde(rename = "metadata")]
    _metadata: Metadata,
    data: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Config {
    root_namespace: Option<String>,
    outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    default_service_export_to: Vec<String>,
}

/// Whether a ConfigMap of this name may hold the mesh's configuration.
pub(in crate::registry) fn is_mesh_config(name: &ObjectName) -> bool {
    name.namespace == ISTIO_NAMESPACE && revision(&name.name).is_some()
}

/// The revision a ConfigMap's name is of; empty for the default one.
pub(in crate::registry) fn revision(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(CONFIG_NAME)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('-') }
}

/// The mesh's configuration; `None` for one of Istio's other ConfigMaps.
pub(in crate::registry) fn mesh_config(value: Value) -> Result<Option<MeshConfig>, FieldErrors> {
    let path = format!("data.{CONFIG_KEY}");
    let mut object: ConfigMap = typed(value)?;
    let Some(text) = object.data.remove(CONFIG_KEY) else { return Ok(None) };
    let mut value = manifest::value(&text).map_err(|error| FieldErrors::one(&path, error))?;
    remove_nulls(&mut value);
    let config: Config = if value.is_null() {
        Config::default()
    } else {
        typed(value).map_err(|error| FieldErrors::one(&path, error))?
    };
    let default = MeshConfig::default();
    Ok(Some(MeshConfig {
        root_namespace: config
            .root_namespace
            .filter(|name| !name.is_empty())
            .unwrap_or(default.root_namespace),
        outbound: config.outbound_traffic_policy.map(OutboundMode::from),
        default_export_to: if config.default_service_export_to.is_empty() {
            default.default_export_to
        } else {
            config.default_service_export_to
        },
    }))
}
