//! DestinationRules: whether proxies talk to a host in plaintext or with the mesh's identity.

use serde::Deserialize;
use serde_json::Value;

use crate::policy::mesh::{DestinationRule, TlsMode, TrafficTls};
use crate::policy::{ObjectName, Origin};
use crate::registry::field::{FieldErrors, typed};
use crate::registry::object::{Object, text_enum};

text_enum! {
    /// `tls.mode`. The default is the proto's zero.
    #[derive(Default)]
    Mode {
        #[default]
        Disable = "DISABLE",
        Simple = "SIMPLE",
        Mutual = "MUTUAL",
        IstioMutual = "ISTIO_MUTUAL",
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Spec {
    host: String,
    traffic_policy: TrafficPolicy,
    subsets: Vec<Subset>,
    export_to: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct TrafficPolicy {
    tls: Option<Tls>,
    port_level_settings: Vec<PortSettings>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct PortSettings {
    port: Port,
    tls: Option<Tls>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Port {
    number: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Tls {
    mode: Mode,
}

impl From<Tls> for TlsMode {
    fn from(tls: Tls) -> Self {
        match tls.mode {
            Mode::Disable => Self::Disable,
            Mode::Simple => Self::Simple,
            Mode::Mutual => Self::Mutual,
            Mode::IstioMutual => Self::IstioMutual,
            Mode::Unknown(mode) => Self::Other(mode),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Subset {
    name: String,
    traffic_policy: TrafficPolicy,
}

impl From<TrafficPolicy> for TrafficTls {
    fn from(policy: TrafficPolicy) -> Self {
        let ports = policy.port_level_settings.into_iter();
        Self {
            mode: policy.tls.map(TlsMode::from),
            ports: ports.filter_map(|one| Some((one.port.number, one.tls?.into()))).collect(),
        }
    }
}

/// A DestinationRule.
pub(in crate::registry) fn destination_rule(
    value: Value,
    name: &ObjectName,
    origin: &Origin,
) -> Result<DestinationRule, FieldErrors> {
    let object: Object<Spec> = typed(value)?;
    let spec = object.spec.unwrap_or_default();
    let subset = |one: Subset| (one.name, TrafficTls::from(one.traffic_policy));
    Ok(DestinationRule {
        name: name.clone(),
        host: spec.host,
        tls: spec.traffic_policy.into(),
        subsets: spec.subsets.into_iter().map(subset).collect(),
        export_to: spec.export_to,
        origin: origin.clone(),
    })
}
