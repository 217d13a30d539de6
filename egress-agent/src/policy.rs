//! What the cluster says and what the kernel should know: domain types and pure functions.
//!
//! A [`Snapshot`] is everything the registry knows at one moment; [`compile`](compile::compile)
//! turns it, together with what this node knows of itself ([`NodeState`]), into [`Desired`].
//! Nothing here does I/O, reads a clock or knows where an object came from beyond its [`Origin`];
//! values are immutable and ordered, so that the same input always gives the same tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use egress_common::Mode;
use egress_common::key::{Addr, NamespaceId, PodId, PolicyId};
use egress_common::state::{Capture, Pod as KernelPod, Policy as KernelPolicy};
use ipnet::IpNet;
use serde::Serialize;

pub mod classify;
pub mod compile;
pub mod desired;
pub mod explain;
pub mod mesh;
pub mod rejection;
pub mod snapshot;
pub mod tables;
pub mod well_known;

pub use desired::{Coverage, CoverageState, Desired, GatewayEndpoint, GatewayState, Narrowed};
pub use rejection::{RejectReason, Rejection, RejectionCount};
pub use snapshot::{
    ConnectionRate, Declaration, EgressException, EgressPolicy, ExactAddress, GatewayRef,
    GatewayTarget, Interception, Node, Pod, RedirectPort, Selector, Service, ServicePort, Slice,
    SliceEndpoint, Snapshot,
};
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
    /// Something was offered as part of a gateway and refused, see [`RejectReason`].
    EndpointRejected,
    /// A ServiceEntry claims an address of a gateway.
    GatewayAddressClaimed,
    /// A Sidecar or AuthorizationPolicy restricts a gateway in a way that is finer than a namespace.
    NarrowingIncomplete,
    /// The cluster's ranges are not known, so that `auto` allows nothing.
    ClusterRangesUnknown,
    /// Two names share one identity number; the later one was refused.
    IdentityCollision,
    /// A policy redirects a port, and this node or its gateways cannot take it.
    RedirectUnavailable,
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
        Self::GatewayAddressClaimed,
        Self::NarrowingIncomplete,
        Self::ClusterRangesUnknown,
        Self::IdentityCollision,
        Self::RedirectUnavailable,
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
            Self::GatewayAddressClaimed => "gateway_address_claimed",
            Self::NarrowingIncomplete => "narrowing_incomplete",
            Self::ClusterRangesUnknown => "cluster_ranges_unknown",
            Self::IdentityCollision => "identity_collision",
            Self::RedirectUnavailable => "redirect_unavailable",
            Self::TableFull => "table_full",
        }
    }
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
    /// What was known before: a pod may change the addresses it carries, and its object may be
    /// deleted while its processes run.
    pub held: Held,
    /// The pod the agent itself runs in: nobody governs it, or it could not learn what to do.
    pub own: Option<OwnPod>,
    /// What this node's own interfaces carry, whatever range it is in: a bridge's address lies among
    /// those of its pods. Dummy ones are left out, where Service proxies keep those of Services.
    pub addresses: BTreeSet<IpAddr>,
    /// Interfaces that default routes leave by.
    pub uplinks: BTreeSet<u32>,
    /// Names of interfaces, or of bridges whose ports they are, that lead to no pods as the node's
    /// operator says; `*` at the end stands for any rest. Only the node's root names them.
    pub not_pods: Vec<String>,
    /// Interfaces on which the boundary was seen to be attached, as the kernel says.
    pub verified: BTreeSet<u32>,
    /// Absolute level of `kubepods`.
    pub kubepods_level: u8,
    /// Cgroup id of `kubepods`.
    pub kubepods: u64,
    /// What pods nobody knows get.
    pub unknown_pod: Mode,
    /// Bits of the packet mark for the uplink.
    pub mark: Mark,
    /// Why connections cannot be redirected on this node, if they cannot.
    pub no_redirect: Option<String>,
    /// Heartbeat lease in nanoseconds; 0 for none.
    pub lease: u64,
    /// `CLOCK_BOOTTIME` nanoseconds at the epoch: added to an absolute time it gives the
    /// kernel's clock. Negative on every machine that booted after 1970.
    pub boot_epoch: i128,
}

/// The bits that tell the uplink which packets the boundary let through; both zero where none are
/// marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// For policies in mode audit.
    pub audit: u32,
    /// For policies in mode enforce.
    pub enforce: u32,
}

/// What the kernel's tables hold, and what was said of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// Pods by cgroup id.
    pub pods: BTreeMap<u64, KernelPod>,
    /// Pods by the index of their host-side interface.
    pub interfaces: BTreeMap<u32, KernelPod>,
    /// Policies.
    pub policies: BTreeMap<PolicyId, KernelPolicy>,
    /// The names of these pods, where this agent has compiled them.
    pub coverage: Vec<Coverage>,
}

/// The agent's own pod, as its cgroup says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPod {
    /// UID in the directory's name.
    pub uid: String,
    /// Cgroup id.
    pub cgroup: u64,
}

impl OwnPod {
    /// Its entry, as long as the registry has no more to say of it.
    pub fn entry(&self) -> KernelPod {
        KernelPod {
            id: PodId::of(&self.uid),
            policy: PolicyId::NONE,
            capture: Capture::None.number(),
            flags: 0,
            mac: [0; 6],
            proxy_uid: KernelPod::NO_PROXY,
            proxy_gid: KernelPod::NO_PROXY,
            v4: Addr::UNSPECIFIED,
            v6: Addr::UNSPECIFIED,
            namespace: NamespaceId::UNKNOWN,
            guarded: 0,
            netns: 0,
        }
    }
}

/// The host side of a pod's interface pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Index in the node's namespace.
    pub ifindex: u32,
    /// Index of the pod's side, in the pod's namespace.
    pub peer: u32,
    /// Name, for people only.
    pub name: String,
    /// Addresses of the pod's side.
    pub ips: Vec<IpAddr>,
    /// MAC of the pod's side.
    pub mac: [u8; 6],
    /// The pod's namespace as the node numbers it (`IFLA_LINK_NETNSID`), from 0.
    pub netns: u32,
    /// It is one end of a veth or netkit pair, through which whatever the other end sends comes.
    pub pair: bool,
    /// Addresses of the node's side, link-local ones left out.
    pub own_ips: Vec<IpAddr>,
    /// The bridge it is a port of: index and name.
    pub bridge: Option<(u32, String)>,
}
