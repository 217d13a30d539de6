//! What the mesh's own objects say, as far as egress cares. They classify destinations, and where
//! a policy asks for it they narrow who may use a gateway; they never widen.

use std::collections::BTreeMap;

use super::{ObjectName, Origin};

pub mod host;
pub mod listen;
pub mod scope;

/// Istio's root namespace where the mesh's configuration names no other.
pub const ISTIO_NAMESPACE: &str = "istio-system";

/// The mesh's objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mesh {
    /// Mesh configurations by revision; the empty revision is the ConfigMap `istio`.
    pub configs: BTreeMap<String, MeshConfig>,
    /// Sidecars, ordered by name.
    pub sidecars: Vec<Sidecar>,
    /// AuthorizationPolicies, ordered by name.
    pub authorizations: Vec<Authorization>,
    /// DestinationRules, ordered by name.
    pub destination_rules: Vec<DestinationRule>,
    /// Istio Gateways.
    pub gateways: BTreeMap<ObjectName, MeshGateway>,
    /// Gateways of the Gateway API.
    pub api_gateways: BTreeMap<ObjectName, ApiGateway>,
}

impl Mesh {
    /// The configuration of a revision; of the default one where that revision has none; Istio's
    /// defaults where there is no configuration at all.
    pub fn config(&self, revision: &str) -> MeshConfig {
        let default = || self.configs.get("").or_else(|| self.configs.values().next());
        self.configs.get(revision).or_else(default).cloned().unwrap_or_default()
    }

    /// The namespace whose Sidecars and AuthorizationPolicies hold for the whole mesh.
    pub fn root_namespace(&self) -> &str {
        let named = self.configs.get("").or_else(|| self.configs.values().next());
        named.map_or(ISTIO_NAMESPACE, |config| &config.root_namespace)
    }
}

/// MeshConfig: key `mesh` of a ConfigMap in the root namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// `rootNamespace`.
    pub root_namespace: String,
    /// `outboundTrafficPolicy`; `None` where it is absent, which means that anything may pass.
    pub outbound: Option<OutboundMode>,
    /// `defaultServiceExportTo`; `*` where it is absent.
    pub default_export_to: Vec<String>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            root_namespace: ISTIO_NAMESPACE.to_owned(),
            outbound: None,
            default_export_to: vec!["*".to_owned()],
        }
    }
}

/// What a sidecar does with a destination nobody declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboundMode {
    /// Refuses it. The proto's zero: what an `outboundTrafficPolicy` without `mode` means.
    RegistryOnly,
    /// Passes it on to the address the application chose.
    AllowAny,
    /// A mode this version does not know.
    Other(String),
}

/// `location` of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Location {
    /// Outside the mesh: what it is when nothing is said.
    #[default]
    MeshExternal,
    /// Part of the mesh.
    MeshInternal,
    /// A location this version does not know.
    Other(String),
}

/// `resolution` of a ServiceEntry: how proxies find the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resolution {
    /// They forward to the address the application chose: what it is when nothing is said.
    #[default]
    None,
    /// The listed addresses.
    Static,
    /// They resolve the host.
    Dns,
    /// They resolve the host, and use one of its addresses at a time.
    DnsRoundRobin,
    /// They resolve the name of each request.
    DynamicDns,
    /// A resolution this version does not know.
    Other(String),
}

/// A Sidecar: what the proxies of some pods import.
#[derive(Clone, Debug, PartialEq)]
pub struct Sidecar {
    /// Namespace and name.
    pub name: ObjectName,
    /// Seconds since the epoch; among equals the older wins. Absent counts as newest.
    pub created: Option<i64>,
    /// `workloadSelector.labels`; empty for the whole namespace.
    pub selector: BTreeMap<String, String>,
    /// Listeners; none at all means that everything is imported.
    pub egress: Vec<EgressListener>,
    /// `outboundTrafficPolicy`; `None` where it is absent and the mesh's holds.
    pub outbound: Option<OutboundMode>,
    /// Where it came from.
    pub origin: Origin,
}

/// One of a Sidecar's `egress` listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressListener {
    /// The only port it is for; `None` for all that have no listener of their own.
    pub port: Option<u16>,
    /// What it imports, as `namespace/dnsName`.
    pub hosts: Vec<String>,
}

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct Authorization {
    /// Namespace and name.
    pub name: ObjectName,
    /// What happens to what its rules match.
    pub action: AuthorizationAction,
    /// Which workloads it is for.
    pub attachment: Attachment,
    /// Alternatives. None at all matches nothing; one without any condition matches everything.
    pub rules: Vec<AuthorizationRule>,
    /// Where it came from.
    pub origin: Origin,
}

/// `action` of an AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorizationAction {
    /// Once one of these is attached, only what one of them matches is let through.
    Allow,
    /// What is matched is refused, before any of the former is asked.
    Deny,
    /// An external authorizer decides about what is matched.
    Custom,
    /// What is matched is logged.
    Audit,
    /// An action this version does not know.
    Other(String),
}

/// Which workloads an AuthorizationPolicy is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Pods with these labels: of its own namespace, or of all if it is in the root namespace.
    Pods(BTreeMap<String, String>),
    /// Named objects.
    Targets(Vec<PolicyTarget>),
}

/// An entry of `targetRefs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTarget {
    /// API group; empty for the core group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name, in the policy's namespace.
    pub name: String,
}

/// A rule: every given part must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthorizationRule {
    /// Alternatives; empty for any source.
    pub from: Vec<AuthorizationSource>,
    /// Conditions on the source's namespace, all of which must hold.
    pub when: Vec<NamespaceCondition>,
    /// It also asks for something that is not the source's namespace: an operation, a header, a
    /// port, an address.
    pub qualified: bool,
}

/// A `source`: every given part must match, by one of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthorizationSource {
    /// `namespaces` and `notNamespaces`.
    pub namespace: NamespaceCondition,
    /// `principals` and `serviceAccounts`, one list for each that is given.
    pub accounts: Vec<Vec<AccountPattern>>,
    /// It also asks for something that is not the source's namespace.
    pub qualified: bool,
}

/// What a principal or service account says of the namespace it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountPattern {
    /// Any identity of the mesh.
    Any,
    /// Every account of this namespace.
    Whole(String),
    /// Some account of this namespace.
    Some(String),
    /// It cannot be told.
    Unknown,
}

/// A condition on the source's namespace. Values are exact, `abc*`, `*abc` or `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceCondition {
    /// One of these must match; empty for any.
    pub values: Vec<String>,
    /// None of these may match.
    pub not_values: Vec<String>,
}

/// A DestinationRule: how proxies talk to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRule {
    /// Namespace and name.
    pub name: ObjectName,
    /// `host`, as written: short names are those of its own namespace.
    pub host: String,
    /// `trafficPolicy`.
    pub tls: TrafficTls,
    /// Subsets by name; what one leaves open is the rule's.
    pub subsets: BTreeMap<String, TrafficTls>,
    /// Namespaces it is exported to; empty for all.
    pub export_to: Vec<String>,
    /// Where it came from.
    pub origin: Origin,
}

/// The TLS of a `trafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficTls {
    /// `tls.mode`; `None` where it is absent.
    pub mode: Option<TlsMode>,
    /// `portLevelSettings` that set a mode, by the Service's port.
    pub ports: BTreeMap<u16, TlsMode>,
}

/// `tls.mode` of a DestinationRule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Plaintext.
    Disable,
    /// TLS, without a certificate of its own.
    Simple,
    /// TLS with a certificate from a file.
    Mutual,
    /// TLS with the mesh's identity.
    IstioMutual,
    /// A mode this version does not know.
    Other(String),
}

/// An Istio Gateway: what some proxies serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshGateway {
    /// Labels of the pods, whatever their namespace; empty for every gateway's.
    pub selector: BTreeMap<String, String>,
    /// Servers.
    pub servers: Vec<MeshServer>,
    /// Where it came from.
    pub origin: Origin,
}

/// One of a Gateway's servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshServer {
    /// `port.number`: a Service's port, or the number to listen on where no Service has it.
    pub port: u16,
    /// Hosts, without the namespace that restricts who may bind them.
    pub hosts: Vec<String>,
}

/// A Gateway of the Gateway API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiGateway {
    /// UID; empty where the manifest has none, and nothing can then be owned by it.
    pub uid: String,
    /// `gatewayClassName`.
    pub class: String,
    /// Where it came from.
    pub origin: Origin,
}
