//! What the registry knows: the cluster's objects, reduced to what egress needs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egress_common::Mode;
use egress_common::key::{GatewayId, PolicyId};
use egress_common::state::{Capture, DenyResponse, OnAgentLoss};
use ipnet::IpNet;
use serde::Serialize;

use super::mesh::{Location, Mesh, Resolution};
use super::{ObjectName, Origin, Problem};

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
    /// What else the mesh's objects say.
    pub mesh: Mesh,
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
    /// Condition `Ready`; true where nothing is said.
    pub ready: bool,
    /// `status.phase` is Succeeded or Failed: it owns no address any more.
    pub finished: bool,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// How the mesh captures it, from its status annotations.
    pub capture: Capture,
    /// Uid and gid of the sidecar proxy.
    pub proxy: Option<(u32, u32)>,
    /// What its annotations take out of the sidecar's capture.
    pub interception: Interception,
    /// Names of its containers by the id that the container runtime gave them.
    pub containers: BTreeMap<String, String>,
    /// Label [`QUARANTINE`] is set, whatever its value.
    pub quarantined: bool,
    /// Owning workload: kind (`Deployment`, `StatefulSet`, ...) and name; the pod itself where
    /// nothing owns it.
    pub workload: (String, String),
    /// Where it came from.
    pub origin: Origin,
}

/// What the annotations `traffic.sidecar.istio.io/…Outbound…` say of a sidecar's capture. It
/// explains attempts, and no verdict depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interception {
    /// Ports that are not captured.
    pub exclude_ports: Vec<u16>,
    /// Addresses that are not captured.
    pub exclude_ranges: Vec<IpNet>,
    /// The only addresses that are captured; `None` for all.
    pub include_ranges: Option<Vec<IpNet>>,
    /// Ports that are captured wherever they are dialled.
    pub include_ports: Vec<u16>,
}

impl Interception {
    /// Whether the port is taken out.
    pub fn excludes_port(&self, port: u16) -> bool {
        self.exclude_ports.contains(&port)
    }

    /// Whether the address is taken out, dialled at this port.
    pub fn excludes_address(&self, ip: IpAddr, port: u16) -> bool {
        let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&ip));
        let left_out = self.include_ranges.as_ref().is_some_and(|ranges| !within(ranges));
        within(&self.exclude_ranges) || (left_out && !self.include_ports.contains(&port))
    }
}

/// The container of a sidecar.
pub const PROXY_CONTAINER: &str = "istio-proxy";

/// Label that takes a gateway's pod out of service.
pub const QUARANTINE: &str = "egress-enforcer.io/quarantine";

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
    /// UIDs of the Gateways (of the Gateway API) that own it.
    pub gateway_owners: Vec<String>,
    /// Where it came from.
    pub origin: Origin,
}

/// A port of a Service or of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty for the only port.
    pub name: String,
    /// The Service's own port, or the slice's, which is the target.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The target of a Service's port; `None` where it is a name, and for a slice's.
    pub target: Option<u16>,
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
    /// Whether Sidecars and AuthorizationPolicies decide which namespaces may use which of them.
    pub narrow: bool,
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
    /// Ports of the outside whose connections go to the gateways, for pods without a proxy.
    pub redirect: Vec<RedirectPort>,
    /// Connections each pod may open toward gateways.
    pub pod_rate: Option<ConnectionRate>,
    /// Connections all pods of a namespace on one node may open toward gateways.
    pub namespace_rate: Option<ConnectionRate>,
    /// What its pods are told of dropped packets.
    pub deny_response: DenyResponse,
    /// Whether it enforces on pods that share the node's network; otherwise they are audited at
    /// most.
    pub host_network: bool,
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

/// A port of the outside whose TCP connections go to the gateways instead of being refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RedirectPort {
    /// The port an application dials, 1 to 65535.
    pub port: u16,
    /// The port of the gateways' pods that takes it; `None` for the one their Services map
    /// [`port`](Self::port) to.
    pub gateway_port: Option<u16>,
}

/// How many connections may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ConnectionRate {
    /// Sustained, 1 to 1,000,000.
    pub per_second: u32,
    /// At once after a pause, 1 to 1,000,000.
    pub burst: u32,
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
    /// A Gateway API Gateway: the Service that is labelled with its name and owned by it.
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
    /// `location`.
    pub location: Location,
    /// `resolution`.
    pub resolution: Resolution,
    /// Namespaces it is exported to: `*` for all, `.` for its own, `~` for none; empty for the
    /// mesh's default.
    pub export_to: Vec<String>,
    /// VirtualServices that route one of its hosts through a gateway.
    pub routed_by: Vec<ObjectName>,
    /// Where it came from.
    pub origin: Origin,
}

/// Whether `labels` has every pair that is wanted.
pub(crate) fn labels_match(
    wanted: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
