//! `EgressPolicy` and `EgressException`, field by field: what is parsed and what the CRDs say.
//!
//! One set of structs for both. Doc comments become the descriptions in the CRDs, in
//! `kubectl explain` and in docs/policy.md: they speak to the author of a policy. A new field
//! wants a doc comment, a range or a type of [`schema`] where not every value is meant, and
//! `cargo xtask generate` afterwards.
#![expect(clippy::duplicated_attributes, reason = "each printer column has a type of its own")]

mod redirect;

use std::collections::BTreeMap;

use egress_common::Mode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::crd::schema;
use super::field::AutoOr;
use super::object::Metadata;
pub(in crate::registry) use redirect::RedirectSpec;

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

/// Which pods the policy governs, what they may reach, and what happens to everything else.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[kube(
    group = "egress-enforcer.io",
    version = "v1alpha1",
    kind = "EgressPolicy",
    plural = "egresspolicies",
    doc = "Makes the route through the egress gateway compulsory for the pods it selects. Exactly \
           one policy governs a pod: the highest priority, among equals the oldest. A policy with \
           a wrong field is refused whole, and its last good version stays in force.",
    shortname = "egp",
    category = "egress-enforcer",
    status = "ObjectStatus",
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".spec.mode",
        description = "What happens to traffic around the gateway: off, audit or enforce."
    ),
    printcolumn(
        name = "Priority",
        type_ = "integer",
        json_path = ".spec.priority",
        description = "The highest priority governs a pod; among equals, the oldest policy."
    ),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status",
        description = "Whether the agents take the policy as it stands; its condition says why not."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
#[schemars(extend("required" = ["mode", "selector"]))]
#[schemars(extend("x-kubernetes-validations" = schema::policy()))]
pub(super) struct PolicySpec {
    /// The pods that are meant. Every part that is given must match; `{}` selects every pod.
    #[schemars(required)]
    pub(super) selector: Option<SelectorSpec>,
    /// Among policies that select a pod the highest priority governs it; among equals, the oldest.
    pub(super) priority: i32,
    /// What happens to traffic that goes around the gateway: `off` leaves it alone, `audit` reports
    /// it, `enforce` drops it. Write `"off"` in quotes: kubectl reads YAML 1.1, where a bare off is
    /// the boolean false, and that is refused.
    #[schemars(required)]
    pub(super) mode: Option<ModeText>,
    /// The egress gateways whose endpoints the pods may reach.
    #[schemars(length(max = 64))]
    pub(super) gateways: Vec<GatewaySpec>,
    /// Whether Sidecars and AuthorizationPolicies also decide which namespaces may use which of
    /// these gateways. They only take away, and only whole namespaces: what is finer stays open
    /// and is reported.
    pub(super) narrow: bool,
    /// Ranges of pods and Services, used instead of those that Nodes, ServiceCIDRs and the agent's
    /// configuration name; leave it out for these. None wider than /8, or /16 for IPv6.
    #[serde(skip_serializing_if = "AutoOr::is_auto")]
    #[schemars(with = "Vec<schema::AllowedRange>", length(max = 256))]
    pub(super) cluster_ranges: AutoOr,
    /// Addresses of DNS resolvers, used instead of the cluster's DNS Service; leave it out for that
    /// one. All others are refused on ports 53 and 853.
    #[serde(skip_serializing_if = "AutoOr::is_auto")]
    #[schemars(with = "Vec<schema::Address>", length(max = 256))]
    pub(super) resolvers: AutoOr,
    /// Parts of the platform that the pods may reach.
    pub(super) infrastructure: InfrastructureSpec,
    /// Ports of nodes that the pods may reach; all others are refused.
    #[schemars(length(max = 256))]
    pub(super) nodes: Vec<AddressSpec>,
    /// Remotes outside the cluster whose connections toward the pods may be answered, such as load
    /// balancers that keep the client's address. None wider than /8, or /16 for IPv6.
    #[schemars(with = "Vec<schema::AllowedRange>", length(max = 256))]
    pub(super) inbound_ranges: Vec<String>,
    /// TCP connections to the outside, of pods without a proxy, that go to the gateways instead of
    /// being refused. The gateway tells TLS apart by its server name and HTTP by its Host.
    pub(super) redirect: Option<RedirectSpec>,
    /// How many connections toward gateways may be opened, counted in the kernel.
    pub(super) rate_limit: Option<RateLimitSpec>,
    /// A limit for the pods of these gateways themselves; leave it out for none. Of several policies
    /// that name a gateway, the first that governs by priority and age limits it.
    pub(super) gateway_egress: Option<GatewayEgressSpec>,
    /// What a refused client sees: `Reset` fails it in milliseconds, `Drop` leaves it waiting.
    pub(super) deny_response: DenyResponseText,
    /// Enforce on pods that share the node's network as well; they are audited at most otherwise.
    /// Only their sockets are judged: with CAP_NET_RAW no network hook contains such a pod.
    pub(super) host_network: bool,
    /// What happens once the agent has been silent for longer than its lease: `hold` keeps the
    /// policy, `denyNew` refuses new connections, `audit` lets them through and reports them.
    pub(super) on_agent_loss: OnAgentLossText,
}

/// Where the gateways' own pods may go.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
#[schemars(extend("required" = ["mode"]))]
pub(super) struct GatewayEgressSpec {
    /// What happens to their traffic to an address that no DNS answer gave them for a host of a
    /// ServiceEntry outside the mesh, and that no such ServiceEntry names itself: `off` leaves it
    /// alone, `audit` reports it, `enforce` drops it. Write `"off"` in quotes.
    #[schemars(required)]
    pub(super) mode: Option<ModeText>,
}

/// Connections per second; of each pod, of a namespace, or both.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
#[schemars(extend("x-kubernetes-validations" = schema::rate_limit()))]
pub(super) struct RateLimitSpec {
    /// New connections per second of each pod.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) connections_per_second: Option<u32>,
    /// Connections at once after a pause; one second's worth unless given.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) burst: Option<u32>,
    /// The limit of all pods of a namespace on one node together.
    pub(super) namespace: Option<RateSpec>,
}

/// Connections per second.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
#[schemars(extend("required" = ["connectionsPerSecond"]))]
pub(super) struct RateSpec {
    /// New connections per second.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) connections_per_second: Option<u32>,
    /// Connections at once after a pause; one second's worth unless given.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) burst: Option<u32>,
}

/// A selection of pods: every part that is given must match.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct SelectorSpec {
    /// Names of namespaces; none for all of them.
    #[schemars(with = "Vec<schema::Name>", length(max = 1024))]
    pub(super) namespaces: Vec<String>,
    /// Labels of the pods' namespace.
    pub(super) namespace_selector: Labels,
    /// Labels of the pods.
    pub(super) pod_selector: Labels,
}

/// Labels that must all be there.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct Labels {
    /// Pairs of key and value, all of which must be there. Expressions are not supported.
    pub(super) match_labels: BTreeMap<String, String>,
}

/// What happens to traffic that goes around the gateway.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ModeText {
    Off,
    Audit,
    Enforce,
}

impl ModeText {
    pub(super) const fn mode(self) -> Mode {
        match self {
            Self::Off => Mode::Off,
            Self::Audit => Mode::Audit,
            Self::Enforce => Mode::Enforce,
        }
    }
}

/// What a refused client sees.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, Serialize)]
pub(super) enum DenyResponseText {
    #[default]
    Reset,
    Drop,
}

/// What happens once the agent is silent.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum OnAgentLossText {
    #[default]
    Hold,
    DenyNew,
    Audit,
}

/// An egress gateway: its endpoints are running pods of the service account.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
#[schemars(extend("required" = ["namespace", "serviceAccount"]))]
#[schemars(extend("x-kubernetes-validations" = schema::gateway()))]
pub(super) struct GatewaySpec {
    /// The gateway's namespace.
    #[schemars(with = "schema::Name")]
    pub(super) namespace: String,
    /// Its Service, whose endpoint slices name the addresses and ports. Exactly one of `service`,
    /// `gateway` and `podSelector` is given.
    #[schemars(with = "schema::Name")]
    pub(super) service: Option<String>,
    /// Its Gateway (gateway.networking.k8s.io), whose Service is found by label and owner.
    #[schemars(with = "schema::Name")]
    pub(super) gateway: Option<String>,
    /// Labels of its pods, where there is no Service. `ports` is then required.
    pub(super) pod_selector: Option<Labels>,
    /// TCP ports to dial; only with `podSelector`.
    #[schemars(with = "Vec<schema::Port>", length(max = 64))]
    pub(super) ports: Vec<u16>,
    /// The service account its pods run as, which no label can forge.
    #[schemars(with = "schema::Name")]
    pub(super) service_account: String,
}

/// Parts of the platform that the pods may reach.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct InfrastructureSpec {
    /// The API server.
    pub(super) api_server: bool,
    /// The mesh's control plane.
    pub(super) istiod: bool,
    /// Others, exactly: telemetry, for example.
    #[schemars(length(max = 256))]
    pub(super) addresses: Vec<AddressSpec>,
}

impl Default for InfrastructureSpec {
    fn default() -> Self {
        Self { api_server: true, istiod: true, addresses: Vec::new() }
    }
}

/// One address, port and protocol.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
pub(super) struct AddressSpec {
    /// The address.
    #[schemars(with = "schema::Address")]
    pub(super) ip: String,
    /// The port.
    #[schemars(with = "schema::Port")]
    pub(super) port: u16,
    /// TCP or UDP.
    #[serde(default)]
    pub(super) protocol: ProtocolText,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, Serialize)]
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

/// Which pods may reach what, until when, why, and who asked for it.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[kube(
    group = "egress-enforcer.io",
    version = "v1alpha1",
    kind = "EgressException",
    doc = "Lets pods reach a destination around the gateway until a moment that the kernel's own \
           clock enforces, whether an agent is alive or not.",
    shortname = "egx",
    category = "egress-enforcer",
    status = "ObjectStatus",
    printcolumn(
        name = "Destination",
        type_ = "string",
        json_path = ".spec.destination.cidr",
        description = "The range that may be reached."
    ),
    printcolumn(
        name = "Expires",
        type_ = "string",
        json_path = ".spec.expiresAt",
        description = "When it ends."
    ),
    printcolumn(
        name = "Requester",
        type_ = "string",
        json_path = ".spec.requester",
        description = "Who asked for it."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".spec.reason",
        description = "Why it is needed.",
        priority = 1
    ),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status",
        description = "Whether the agents take it as it stands; its condition says why not."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
#[schemars(extend("required" = ["destination", "expiresAt", "reason", "requester", "scope"]))]
pub(super) struct ExceptionSpec {
    /// The pods it is for. Every part that is given must match; `{}` covers every governed pod.
    #[schemars(required)]
    pub(super) scope: Option<SelectorSpec>,
    /// What they may reach.
    #[schemars(required)]
    pub(super) destination: Option<DestinationSpec>,
    /// When it ends: an RFC 3339 time such as 2026-11-30T18:00:00Z.
    #[schemars(with = "schema::Moment")]
    pub(super) expires_at: String,
    /// Why the exception is needed.
    #[schemars(with = "schema::Words")]
    pub(super) reason: String,
    /// Who asked for it.
    #[schemars(with = "schema::Words")]
    pub(super) requester: String,
}

/// A destination of an exception.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
pub(super) struct DestinationSpec {
    /// The range, as 203.0.113.0/24 or 2001:db8::/64. Never loopback, link-local or multicast.
    #[schemars(with = "schema::ExceptedRange")]
    pub(super) cidr: String,
    /// Its ports; none for every port and protocol.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub(super) ports: Vec<PortSpec>,
}

/// A port of a protocol.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
pub(super) struct PortSpec {
    /// The port; absent for every port of the protocol.
    #[schemars(with = "Option<schema::Port>")]
    pub(super) port: Option<u16>,
    /// TCP or UDP.
    #[serde(default)]
    pub(super) protocol: ProtocolText,
}

/// What the agents say about the object.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ObjectStatus {
    /// `Accepted`: whether the agents take the object as it stands; the message names each field
    /// that is wrong. `Shadowed`, of policies: whether another policy governs every pod that this
    /// one selects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub(super) conditions: Vec<Condition>,
}
