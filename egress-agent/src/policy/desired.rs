//! What a snapshot compiles to: the kernel's tables, and what to tell people about them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use egress_common::Mode;
use egress_common::state::Capture;
use serde::Serialize;

use super::{ExactAddress, ObjectName, Origin, Problem, Rejection, Tables, tables};

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
    /// Gateways that Sidecars and AuthorizationPolicies forbid, where a policy asks them.
    pub narrowed: Vec<Narrowed>,
    /// What was offered as part of a gateway and refused, ordered.
    pub rejected: Vec<Rejection>,
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
    /// Governed, and shares the node's network: judged at its sockets only, and audited at most
    /// until its policy opts such pods in.
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
    /// Its object is gone, and its processes or its interface are not: judged as it was last.
    Orphaned,
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
        Self::Orphaned,
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
            Self::Orphaned => "orphaned",
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

/// A gateway that the pods of a namespace may not use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Narrowed {
    /// The namespace.
    pub namespace: String,
    /// It is about the namespace's pods in ambient mode; otherwise about the others.
    pub ambient: bool,
    /// The gateway.
    pub gateway: ObjectName,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The object that forbids it.
    pub by: Origin,
    /// What that object does, and how to change it.
    pub why: String,
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
