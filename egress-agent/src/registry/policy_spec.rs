//! The YAML of `EgressPolicy` and `EgressException`, field by field.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::field::AutoOr;
use super::object::Metadata;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct Whole<S> {
    #[serde(rename = "apiVersion")]
    pub(super) _api_version: String,
    #[serde(rename = "kind")]
    pub(super) _kind: String,
    pub(super) metadata: Metadata,
    pub(super) spec: S,
    #[serde(default, rename = "status")]
    pub(super) _status: serde::de::IgnoredAny,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct PolicySpec {
    pub(super) selector: Option<SelectorSpec>,
    pub(super) priority: i32,
    pub(super) mode: Option<ModeText>,
    pub(super) gateways: Vec<GatewaySpec>,
    pub(super) cluster_ranges: AutoOr,
    pub(super) resolvers: AutoOr,
    pub(super) infrastructure: InfrastructureSpec,
    pub(super) nodes: Vec<AddressSpec>,
    pub(super) inbound_ranges: Vec<String>,
    pub(super) rate_limit: Option<RateLimitSpec>,
    pub(super) deny_response: DenyResponseText,
    pub(super) on_agent_loss: OnAgentLossText,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct RateLimitSpec {
    /// For each pod.
    pub(super) connections_per_second: Option<u32>,
    pub(super) burst: Option<u32>,
    /// For all pods of a namespace on one node together.
    pub(super) namespace: Option<RateSpec>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct RateSpec {
    pub(super) connections_per_second: Option<u32>,
    pub(super) burst: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct SelectorSpec {
    pub(super) namespaces: Vec<String>,
    pub(super) namespace_selector: Labels,
    pub(super) pod_selector: Labels,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct Labels {
    pub(super) match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ModeText {
    Off,
    Audit,
    Enforce,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) enum DenyResponseText {
    #[default]
    Reset,
    Drop,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum OnAgentLossText {
    #[default]
    Hold,
    DenyNew,
    Audit,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct GatewaySpec {
    pub(super) namespace: String,
    pub(super) service: Option<String>,
    pub(super) gateway: Option<String>,
    pub(super) pod_selector: Option<Labels>,
    pub(super) ports: Vec<u16>,
    pub(super) service_account: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct InfrastructureSpec {
    pub(super) api_server: bool,
    pub(super) istiod: bool,
    pub(super) addresses: Vec<AddressSpec>,
}

impl Default for InfrastructureSpec {
    fn default() -> Self {
        Self { api_server: true, istiod: true, addresses: Vec::new() }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
pub(super) struct AddressSpec {
    pub(super) ip: String,
    pub(super) port: u16,
    #[serde(default)]
    pub(super) protocol: ProtocolText,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) enum ProtocolText {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
}

impl ProtocolText {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct ExceptionSpec {
    pub(super) scope: Option<SelectorSpec>,
    pub(super) destination: Option<DestinationSpec>,
    pub(super) expires_at: String,
    pub(super) reason: String,
    pub(super) requester: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct DestinationSpec {
    pub(super) cidr: String,
    #[serde(default)]
    pub(super) ports: Vec<PortSpec>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
pub(super) struct PortSpec {
    /// Absent means every port of the protocol.
    pub(super) port: Option<u16>,
    #[serde(default)]
    pub(super) protocol: ProtocolText,
}
