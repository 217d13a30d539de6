//! What the cluster says and what the kernel should know: domain types and pure functions.
//!
//! A [`Snapshot`] is everything the registry knows at one moment; [`compile`](compile::compile)
//! turns it, together with what this node knows of itself ([`NodeState`]), into [`Desired`].
//! Nothing here does I/O, reads a clock or knows where an object came from beyond its [`Origin`];
//! values are immutable and ordered, so that the same input always gives the same tables.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use egress_common::Mode;
use egress_common::key::{GatewayId, PodId, PolicyId};
use egress_common::state::{Capture, OnAgentLoss};
use ipnet::IpNet;
use serde::Serialize;

pub mod compile;
pub mod explain;
pub mod tables;

pub use tables::Tables;

/// Namespace and name of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where a rule or an entry came from, in words an operator can act on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Origin {
    /// Kind of the object, or `Config` for the agent's own configuration.
    pub kind: String,
    /// `namespace/name`, or the name of a cluster-scoped object.
    pub name: String,
    /// File of a directory registry, with the line the object starts at (`stripe.yaml:12`).
    pub file: Option<String>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)?;
        match &self.file {
            Some(file) => write!(f, " ({file})"),
            None => Ok(()),
        }
    }
}

/// Something that is wrong in what the cluster says; shown in `status` and counted by code.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The class: a metric label.
    pub code: ProblemCode,
    /// The object it is about.
    pub origin: Origin,
    /// One sentence: what is wrong, what was done about it, what to change.
    pub message: String,
}

/// Classes of [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// A file or object could not be read; the last good version stays.
    Unreadable,
    /// An object was read and refused whole; the last good version stays.
    Invalid,
    /// A policy names a gateway that does not exist.
    GatewayMissing,
    /// A gateway has no endpoint.
    GatewayEmpty,
    /// A pod is selected by more than one policy of the same priority.
    PolicyOverlap,
    /// A gateway endpoint was refused: no matching pod, or not the pinned service account.
    EndpointRejected,
    /// The cluster's ranges are not known, so that `auto` allows nothing.
    ClusterRangesUnknown,
    /// Two names share one identity number; the later one was refused.
    IdentityCollision,
    /// A snapshot did not fit the kernel's tables; the old state stays.
    TableFull,
}

impl ProblemCode {
    /// Every class, for metrics that must exist at zero.
    pub const ALL: &'static [Self] = &[
        Self::Unreadable,
        Self::Invalid,
        Self::GatewayMissing,
        Self::GatewayEmpty,
        Self::PolicyOverlap,
        Self::EndpointRejected,
        Self::ClusterRangesUnknown,
        Self::IdentityCollision,
        Self::TableFull,
    ];

    /// The metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Invalid => "invalid",
            Self::GatewayMissing => "gateway_missing",
            Self::GatewayEmpty => "gateway_empty",
            Self::PolicyOverlap => "policy_overlap",
            Self::EndpointRejected => "endpoint_rejected",
            Self::ClusterRangesUnknown => "cluster_ranges_unknown",
            Self::IdentityCollision => "identity_collision",
            Self::TableFull => "table_full",
        }
    }
}

/// Everything the registry knows at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Rises by one with every published snapshot; 0 before the first.
    pub revision: u64,
    /// Every source was read. When false, something that was never read may be missing, and
    /// nothing may be removed from the kernel because of this snapshot.
    pub complete: bool,
    /// Pods by UID (all of them: governed ones, gateways', resolvers').
    pub pods: BTreeMap<String, Pod>,
    /// Namespaces' labels, by name; `kubernetes.io/metadata.name` is always present.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Services.
    pub services: BTreeMap<ObjectName, Service>,
    /// Endpoint slices, ordered by name.
    pub slices: Vec<Slice>,
    /// Nodes.
    pub nodes: BTreeMap<String, Node>,
    /// Ranges of `ServiceCIDR` objects.
    pub service_ranges: Vec<IpNet>,
    /// Valid policies, by name.
    pub policies: BTreeMap<String, EgressPolicy>,
    /// Valid exceptions, by name.
    pub exceptions: BTreeMap<String, EgressException>,
    /// Destinations the mesh declares.
    pub declarations: Vec<Declaration>,
    /// What could not be read or was refused.
    pub problems: Vec<Problem>,
}

/// A pod as far as egress cares.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// UID of the API object (the mirror pod's, for a static pod).
    pub uid: String,
    /// UID in the cgroup's name: the configuration hash of a static pod, else `uid`.
    pub cgroup_uid: String,
    /// Namespace and name.
    pub name: ObjectName,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `spec.serviceAccountName`; `default` where absent.
    pub service_account: String,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `status.podIPs`; empty for a pod that has finished.
    pub ips: Vec<IpAddr>,
    /// `status.phase` is Running.
    pub running: bool,
    /// `status.phase` is Succeeded or Failed: it owns no address any more.
    pub finished: bool,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// How the mesh captures it, from its status annotations.
    pub capture: Capture,
    /// Uid and gid of the sidecar proxy.
    pub proxy: Option<(u32, u32)>,
    /// Owning workload: kind (`Deployment`, `StatefulSet`, ...) and name; the pod itself where
    /// nothing owns it.
    pub workload: (String, String),
    /// Where it came from.
    pub origin: Origin,
}

/// A Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `spec.selector`; empty where the endpoints are made by hand.
    pub selector: BTreeMap<String, String>,
    /// `spec.clusterIPs` without `None`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Where it came from.
    pub origin: Origin,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty for the only port.
    pub name: String,
    /// The Service's own port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Namespace and name.
    pub name: ObjectName,
    /// Label `kubernetes.io/service-name`.
    pub service: String,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Ports, resolved to the target.
    pub ports: Vec<ServicePort>,
    /// Where it came from.
    pub origin: Origin,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceEndpoint {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// `conditions.serving`, or `ready` where absent, or true.
    pub serving: bool,
    /// UID of the pod in `targetRef`, where there is one.
    pub pod_uid: Option<String>,
}

/// A Node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// `status.addresses` that are IP addresses.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_ranges: Vec<IpNet>,
}

/// What a pod is selected by: every given part must match; nothing given matches everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Selector {
    /// Namespaces by name.
    pub namespaces: Vec<String>,
    /// Labels of the namespace.
    pub namespace_labels: BTreeMap<String, String>,
    /// Labels of the pod.
    pub pod_labels: BTreeMap<String, String>,
}

/// A valid `EgressPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct EgressPolicy {
    /// Name; [`PolicyId::of`] it is its number in the kernel.
    pub name: String,
    /// Which pods it governs.
    pub selector: Selector,
    /// Higher wins; default 0.
    pub priority: i32,
    /// `metadata.creationTimestamp` in seconds since the epoch; the older policy wins among
    /// equals. Absent counts as newest.
    pub created: Option<i64>,
    /// What happens to what its rules deny.
    pub mode: Mode,
    /// The trusted gateways.
    pub gateways: Vec<GatewayRef>,
    /// In-cluster ranges; `None` for `auto`.
    pub cluster_ranges: Option<Vec<IpNet>>,
    /// Resolvers; `None` for `auto` (the cluster's DNS Service).
    pub resolvers: Option<Vec<IpAddr>>,
    /// Whether the API server may be reached.
    pub api_server: bool,
    /// Whether istiod may be reached.
    pub istiod: bool,
    /// Further infrastructure, exact.
    pub infrastructure: Vec<ExactAddress>,
    /// Node addresses that may be reached, exact.
    pub nodes: Vec<ExactAddress>,
    /// Remotes outside the cluster whose connections toward these pods may be answered (load
    /// balancers that keep the client's address).
    pub inbound_ranges: Vec<IpNet>,
    /// What the kernel does when the agent's lease expires.
    pub on_agent_loss: OnAgentLoss,
    /// Where it came from.
    pub origin: Origin,
}

impl EgressPolicy {
    /// Its number in the kernel.
    pub fn id(&self) -> PolicyId {
        PolicyId::of(&self.name)
    }
}

/// An address with protocol and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ExactAddress {
    /// The address.
    pub ip: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The port, 1 to 65535.
    pub port: u16,
}

/// A trusted gateway reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct GatewayRef {
    /// The namespace everything of the gateway is in.
    pub namespace: String,
    /// What it is named by.
    pub target: GatewayTarget,
    /// The service account its pods must run as.
    pub service_account: String,
}

/// What a gateway is named by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum GatewayTarget {
    /// A Service: its endpoint slices give the ports.
    Service(String),
    /// A Gateway API Gateway: the Service labelled with its name.
    Gateway(String),
    /// Labels of the pods themselves, with the ports that may be dialled (TCP).
    Pods {
        /// The labels.
        labels: BTreeMap<String, String>,
        /// Target ports, at least one.
        ports: Vec<u16>,
    },
}

impl GatewayRef {
    /// Name within the namespace: the Service's, the Gateway's, or the labels as `k=v,k=v`.
    pub fn name(&self) -> String {
        match &self.target {
            GatewayTarget::Service(name) | GatewayTarget::Gateway(name) => name.clone(),
            GatewayTarget::Pods { labels, .. } => {
                let pairs: Vec<String> =
                    labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                pairs.join(",")
            }
        }
    }

    /// Its number in the kernel.
    pub fn id(&self) -> GatewayId {
        GatewayId::of(&self.namespace, &self.name())
    }
}

/// A valid `EgressException`.
#[derive(Clone, Debug, PartialEq)]
pub struct EgressException {
    /// Name.
    pub name: String,
    /// Which pods it is for.
    pub scope: Selector,
    /// The destination.
    pub cidr: IpNet,
    /// Protocol and port pairs; port 0 means any port of the protocol. Empty means anything.
    pub ports: Vec<(u8, u16)>,
    /// End, seconds since the epoch.
    pub expires_at: i64,
    /// Why.
    pub reason: String,
    /// Who asked.
    pub requester: String,
    /// Where it came from.
    pub origin: Origin,
}

/// A destination that a ServiceEntry declares; it classifies, and never widens.
#[derive(Clone, Debug, PartialEq)]
pub struct Declaration {
    /// Namespace and name of the ServiceEntry.
    pub name: ObjectName,
    /// Hosts.
    pub hosts: Vec<String>,
    /// Addresses, from spec and status.
    pub addresses: Vec<IpNet>,
    /// Ports.
    pub ports: Vec<u16>,
    /// Namespaces it is exported to; `*` for all, `.` for its own.
    pub export_to: Vec<String>,
    /// VirtualServices that route one of its hosts through a gateway.
    pub routed_by: Vec<ObjectName>,
    /// Where it came from.
    pub origin: Origin,
}

/// The cluster facts of the agent's own configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterConfig {
    /// Pod and service ranges, added to what Nodes and ServiceCIDRs say.
    pub ranges: Vec<IpNet>,
    /// Node addresses, added to what Nodes say.
    pub node_addresses: Vec<IpNet>,
    /// Metadata service addresses.
    pub metadata_addresses: Vec<IpAddr>,
    /// Ranges of the mesh's virtual addresses.
    pub mesh_vip_ranges: Vec<IpNet>,
    /// Remotes whose connections toward any pod may be answered, beside cluster and nodes.
    pub inbound_ranges: Vec<IpNet>,
    /// Namespaces whose pods no policy governs.
    pub exempt_namespaces: Vec<String>,
}

/// What this node knows of itself, read from the kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// Name, as in `spec.nodeName`. Pods of other nodes are not compiled; `None` takes all.
    pub name: Option<String>,
    /// Cgroup id of each pod directory under `kubepods`, by the UID in its name.
    pub cgroups: BTreeMap<String, u64>,
    /// Host-side interfaces of pods.
    pub links: Vec<Link>,
    /// The pod each interface was last known to belong to (the kernel's own table): a pod may
    /// change the addresses it carries, and stays behind its interface all the same.
    pub bound: BTreeMap<u32, PodId>,
    /// Absolute level of `kubepods`.
    pub kubepods_level: u32,
    /// What pods nobody knows get.
    pub unknown_pod: Mode,
    /// Heartbeat lease in nanoseconds; 0 for none.
    pub lease: u64,
    /// `CLOCK_BOOTTIME` nanoseconds at the epoch: added to an absolute time it gives the
    /// kernel's clock. Negative on every machine that booted after 1970.
    pub boot_epoch: i128,
}

/// The host side of a pod's interface pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Index in the node's namespace.
    pub ifindex: u32,
    /// Name, for people only.
    pub name: String,
    /// Addresses of the pod's side.
    pub ips: Vec<IpAddr>,
    /// MAC of the pod's side.
    pub mac: [u8; 6],
}

/// What the kernel should hold, and what to tell people about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// The kernel's tables.
    pub tables: Tables,
    /// The snapshot may remove entries ([`Snapshot::complete`]).
    pub may_remove: bool,
    /// Where each policy-made entry came from.
    pub origins: tables::Origins,
    /// Every local pod and whether it is governed and covered.
    pub coverage: Vec<Coverage>,
    /// Every gateway any policy names.
    pub gateways: Vec<GatewayState>,
    /// Problems of the snapshot and of compiling it.
    pub problems: Vec<Problem>,
}

/// Whether a pod is governed and by which hooks it is covered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Coverage {
    /// Namespace and name.
    pub pod: ObjectName,
    /// UID.
    pub uid: String,
    /// Workload kind and name.
    pub workload: (String, String),
    /// Governing policy.
    pub policy: Option<String>,
    /// Mode in force.
    #[serde(serialize_with = "as_text")]
    pub mode: Mode,
    /// How the mesh captures it.
    #[serde(serialize_with = "as_text")]
    pub capture: Capture,
    /// Cgroup id, where its cgroup was found.
    pub cgroup: Option<u64>,
    /// Index of its host-side interface, where it was found.
    pub ifindex: Option<u32>,
    /// What state it is in.
    pub state: CoverageState,
}

fn as_text<T: fmt::Display, S: serde::Serializer>(value: &T, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(value)
}

/// States of [`Coverage`]: label of `egress_pods` and word in `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CoverageState {
    /// Governed, and both cgroup and interface are known.
    Covered,
    /// Governed at the cgroup only: its interface was not found.
    NoInterface,
    /// Governed at the interface only: its cgroup was not found.
    NoCgroup,
    /// Governed, but neither was found.
    Missing,
    /// Shares the node's network; no policy may opt it in yet.
    HostNetwork,
    /// No policy selects it.
    NoPolicy,
    /// Its policy's mode is off.
    Off,
    /// A gateway's pod.
    Gateway,
    /// In an exempt namespace.
    Exempt,
    /// It has finished.
    Finished,
}

impl CoverageState {
    /// Every state, for metrics that must exist at zero.
    pub const ALL: &'static [Self] = &[
        Self::Covered,
        Self::NoInterface,
        Self::NoCgroup,
        Self::Missing,
        Self::HostNetwork,
        Self::NoPolicy,
        Self::Off,
        Self::Gateway,
        Self::Exempt,
        Self::Finished,
    ];

    /// The metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Covered => "covered",
            Self::NoInterface => "no_interface",
            Self::NoCgroup => "no_cgroup",
            Self::Missing => "missing",
            Self::HostNetwork => "host_network",
            Self::NoPolicy => "no_policy",
            Self::Off => "off",
            Self::Gateway => "gateway",
            Self::Exempt => "exempt",
            Self::Finished => "finished",
        }
    }
}

/// A gateway as resolved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GatewayState {
    /// Namespace and name.
    pub name: ObjectName,
    /// Its number in the kernel.
    pub id: u32,
    /// Policies that name it.
    pub policies: Vec<String>,
    /// Endpoints, ordered.
    pub endpoints: Vec<GatewayEndpoint>,
}

/// One endpoint of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct GatewayEndpoint {
    /// Address, protocol and port.
    #[serde(flatten)]
    pub address: ExactAddress,
    /// It may finish what it has, and takes nothing new.
    pub draining: bool,
    /// The pod behind it; `None` for the Service's own address.
    pub pod: Option<ObjectName>,
}
