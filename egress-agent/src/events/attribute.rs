//! Names for numbers: which pod, policy, gateway and declaration a report is about.

use egress_common::key::PodId;
use egress_common::packet::{Hook, protocol, tcp};
use egress_common::state::Capture;
use egress_common::{Reason, Verdict};
use jiff::Timestamp;

use super::aggregate::{Process, Report};
use crate::agent::AgentState;
use crate::clock::boot_clock;
use crate::policy::classify::{Class, Destination, classify, is_outside};
use crate::policy::mesh::scope::Client;

/// A report with every name that is known.
pub(super) struct Named {
    pub(super) sequence: u64,
    pub(super) node: String,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
    pub(super) count: u64,
    pub(super) verdict: Verdict,
    pub(super) reason: Reason,
    pub(super) line: u8,
    pub(super) hook: Hook,
    pub(super) generation: u32,
    /// Namespace, name and UID; empty where the pod is unknown.
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: String,
    /// Kind and name.
    pub(super) workload: (String, String),
    pub(super) capture: Capture,
    pub(super) policy: String,
    pub(super) gateway: String,
    pub(super) src: Option<(String, u16)>,
    pub(super) dst: String,
    /// The name by which the pod resolved it.
    pub(super) host: Option<String>,
    pub(super) dst_port: u16,
    pub(super) protocol: u8,
    pub(super) is_v6: bool,
    pub(super) packets_bytes: u32,
    pub(super) process: Option<Process>,
    /// Uid of the packet's socket, where no process is known.
    pub(super) socket_uid: Option<u32>,
    /// What the mesh says of the destination; `None` for one that is not outside, and where
    /// the pod is not known.
    pub(super) class: Option<Class>,
    /// The ServiceEntry that declares the destination, for this namespace or for others.
    pub(super) declared_by: Option<String>,
    /// A packet that no call stands behind, see [`evades`].
    pub(super) evasion: bool,
}

/// Names a report.
pub(super) fn attribute(report: &Report, state: &AgentState, sequence: u64) -> Named {
    let event = &report.event;
    let coverage = state.desired.coverage.iter().find(|pod| PodId::of(&pod.uid) == event.pod);
    let origin = state.desired.origins.policies.get(&event.policy);
    let gateway = state.desired.gateways.iter().find(|gateway| {
        gateway.id == event.gateway.0 && event.gateway != egress_common::key::GatewayId::NONE
    });
    let dst = event.dst.ip();
    let host = state.names.host(event.pod, dst);
    let destination = Destination { host: host.as_deref(), ip: Some(dst), port: event.dst_port };
    let outside = Reason::from_number(event.reason).is_some_and(is_outside);
    let classified = coverage.filter(|_| outside).map(|coverage| {
        classify(&state.snapshot, &Client::of(&state.snapshot, coverage), &destination)
    });
    let hook = Hook::from_number(event.hook).unwrap_or(Hook::PodEgress);
    let capture = coverage.map_or(Capture::None, |pod| pod.capture);
    Named {
        sequence,
        node: state.node.clone().unwrap_or_default(),
        first: wall_clock(report.first),
        last: wall_clock(report.last),
        count: report.count,
        verdict: Verdict::from_number(event.verdict).unwrap_or(Verdict::Drop),
        reason: Reason::from_number(event.reason).unwrap_or(Reason::NotGateway),
        line: event.line,
        hook,
        generation: event.generation,
        namespace: coverage.map(|pod| pod.pod.namespace.clone()).unwrap_or_default(),
        pod: coverage.map(|pod| pod.pod.name.clone()).unwrap_or_default(),
        uid: coverage.map(|pod| pod.uid.clone()).unwrap_or_default(),
        workload: coverage.map(|pod| pod.workload.clone()).unwrap_or_default(),
        capture,
        policy: origin.map(|origin| origin.name.clone()).unwrap_or_default(),
        gateway: gateway.map(|gateway| gateway.name.to_string()).unwrap_or_default(),
        src: (!hook.is_socket()).then(|| (event.src.to_string(), event.src_port)),
        dst: dst.to_string(),
        host: host.clone(),
        dst_port: event.dst_port,
        protocol: event.protocol,
        is_v6: dst.is_ipv6(),
        packets_bytes: event.len,
        evasion: event.reason == Reason::ForeignSocket.number()
            || coverage.is_some_and(|pod| evades(pod.capture, report)),
        process: report.process.clone(),
        socket_uid: (event.uid != u32::MAX).then_some(event.uid),
        class: classified.map(|classified| classified.class),
        declared_by: classified
            .and_then(|classified| classified.declaration)
            .map(|declaration| declaration.name.to_string()),
    }
}

/// Whether a packet left a pod in a way no socket hook saw, where one would have denied it: the
/// mark of a raw or packet socket.
///
/// Certain for TCP. A UDP socket that was connected before the policy came looks the same. Of a
/// captured pod nothing can be said, because its calls are not judged; nor of ICMP, which no
/// socket hook sees, nor of reasons that are about the packet and not about where it goes.
fn evades(capture: Capture, report: &Report) -> bool {
    let event = &report.event;
    let is_call = Hook::from_number(event.hook).is_none_or(Hook::is_socket);
    if capture != Capture::None || is_call || report.process.is_some() {
        return false;
    }
    let opens = match event.protocol {
        protocol::TCP => event.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN,
        protocol::UDP => true,
        _ => false,
    };
    opens && Reason::from_number(event.reason).is_some_and(is_about_the_destination)
}

/// Whether a socket hook, which knows only protocol, address and port, gives this reason too.
const fn is_about_the_destination(reason: Reason) -> bool {
    match reason {
        Reason::Protocol
        | Reason::Metadata
        | Reason::MeshVip
        | Reason::Tunnel
        | Reason::HiddenExternal
        | Reason::ForeignResolver
        | Reason::GatewayPort
        | Reason::GatewayForbidden
        | Reason::GatewayDraining
        | Reason::Node
        | Reason::NotGateway => true,
        Reason::Exempt
        | Reason::Local
        | Reason::Reply
        | Reason::Resolver
        | Reason::Gateway
        | Reason::Infrastructure
        | Reason::Cluster
        | Reason::Exception
        | Reason::Redirected
        | Reason::Ethertype
        | Reason::Malformed
        | Reason::Fragment
        | Reason::SpoofedSource
        | Reason::RateLimited
        | Reason::UnknownPod
        | Reason::PolicyStale
        | Reason::ForeignSocket
        | Reason::RedirectUnavailable
        | Reason::Resolved
        // No socket hook judges a limited gateway.
        | Reason::Unresolved => false,
    }
}

/// A boot-clock time on the wall clock.
pub(super) fn wall_clock(boot: u64) -> Timestamp {
    let age = i128::from(boot_clock()) - i128::from(boot);
    let nanos = Timestamp::now().as_nanosecond() - age;
    Timestamp::from_nanosecond(nanos).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The protocol's name, or its number.
pub(super) fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMPV6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}
