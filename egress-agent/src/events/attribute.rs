//! Names for numbers: which pod, policy, gateway and declaration a report is about.

use std::net::IpAddr;

use egress_common::key::PodId;
use egress_common::packet::{Hook, protocol, tcp};
use egress_common::state::{Capture, Tally};
use egress_common::{Reason, Verdict};
use jiff::Timestamp;

use super::NameOf;
use super::aggregate::{Process, Report};
use super::containers::Containers;
use super::mechanism::{Facts, Mechanism, Sender, is_about_the_destination, mechanism};
use crate::agent::AgentState;
use crate::clock::boot_clock;
use crate::identity::cgroup::Container;
use crate::policy::Pod;
use crate::policy::classify::{Class, Destination, classify, is_outside};
use crate::policy::mesh::scope::Client;
use crate::policy::snapshot::PROXY_CONTAINER;

/// A report with every name that is known.
pub(super) struct Named {
    /// Of the numbers, and the number.
    pub(super) stream: u64,
    pub(super) sequence: u64,
    pub(super) node: String,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
    pub(super) count: u64,
    /// See [`Report::own`].
    pub(super) own: u64,
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
    /// Container's name and id, where the socket's cgroup is known.
    pub(super) container: Option<(String, String)>,
    pub(super) capture: Capture,
    /// How it got around the proxy, where it tried.
    pub(super) mechanism: Option<Mechanism>,
    pub(super) policy: String,
    pub(super) gateway: String,
    pub(super) src: Option<(String, u16)>,
    pub(super) dst: String,
    /// The name that the pod looked this address up by.
    pub(super) dst_name: Option<String>,
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
    /// The ServiceEntry that declares the destination for this namespace; who reads events of one
    /// tenant learns no other's.
    pub(super) declared_by: Option<String>,
    /// A packet that no call stands behind, see [`evades`].
    pub(super) evasion: bool,
}

/// Names a report. `given` holds its sequence number.
pub(super) fn attribute(
    report: &Report,
    state: &AgentState,
    given: &Tally,
    containers: &mut Containers,
    name_of: &NameOf,
) -> Named {
    let event = &report.event;
    let coverage = &state.desired.coverage;
    let hook = Hook::from_number(event.hook).unwrap_or(Hook::PodEgress);
    let coverage = if hook == Hook::UplinkEgress {
        by_source(state, event.src.ip()).and_then(|uid| coverage.iter().find(|pod| pod.uid == uid))
    } else {
        coverage.iter().find(|pod| PodId::of(&pod.uid) == event.pod)
    };
    let pod = coverage.and_then(|coverage| state.snapshot.pods.get(&coverage.uid));
    let origin = state.desired.origins.policies.get(&event.policy);
    let gateway = state.desired.gateways.iter().find(|gateway| {
        gateway.id == event.gateway.0 && event.gateway != egress_common::key::GatewayId::NONE
    });
    let dst = event.dst.ip();
    let dst_name = coverage.and_then(|pod| name_of(PodId::of(&pod.uid), dst));
    let destination =
        Destination { host: dst_name.as_deref(), ip: Some(dst), port: event.dst_port };
    let outside = Reason::from_number(event.reason).is_some_and(is_outside);
    let classified = coverage.filter(|_| outside).map(|coverage| {
        classify(&state.snapshot, &Client::of(&state.snapshot, coverage), &destination)
    });
    let capture = coverage.map_or(Capture::None, |pod| pod.capture);
    let owner = containers.find(event.cgroup).cloned();
    let container = owner.as_ref().zip(pod).filter(|(owner, pod)| owner.pod == pod.cgroup_uid);
    let container = container.map(|(owner, pod)| {
        (pod.containers.get(&owner.id).cloned().unwrap_or_default(), owner.id.clone())
    });
    let mechanism = pod.and_then(|pod| {
        let facts = Facts {
            capture,
            host_network: pod.host_network,
            proxy_uid: pod.proxy.map(|(user, _)| user),
            interception: &pod.interception,
            sender: sender(capture, owner.as_ref(), container.as_ref(), pod),
        };
        mechanism(event, &facts)
    });
    let class = classified.map(|classified| classified.class);
    Named {
        stream: given.stream,
        sequence: given.sequence,
        node: state.node.clone().unwrap_or_default(),
        first: wall_clock(report.first),
        last: wall_clock(report.last),
        count: report.count,
        own: report.own,
        verdict: Verdict::from_number(event.verdict).unwrap_or(Verdict::Drop),
        reason: Reason::from_number(event.reason).unwrap_or(Reason::NotGateway),
        line: event.line,
        hook,
        generation: event.generation,
        namespace: coverage.map(|pod| pod.pod.namespace.clone()).unwrap_or_default(),
        pod: coverage.map(|pod| pod.pod.name.clone()).unwrap_or_default(),
        uid: coverage.map(|pod| pod.uid.clone()).unwrap_or_default(),
        workload: coverage.map(|pod| pod.workload.clone()).unwrap_or_default(),
        container,
        capture,
        mechanism,
        policy: origin.map(|origin| origin.name.clone()).unwrap_or_default(),
        gateway: gateway.map(|gateway| gateway.name.to_string()).unwrap_or_default(),
        src: (!hook.is_socket()).then(|| (event.src.to_string(), event.src_port)),
        dst: dst.to_string(),
        dst_name,
        dst_port: event.dst_port,
        protocol: event.protocol,
        is_v6: dst.is_ipv6(),
        packets_bytes: event.len,
        evasion: matches!(mechanism, Some(Mechanism::RawOrPacketSocket | Mechanism::ForeignSocket))
            || coverage.is_some_and(|pod| evades(pod.capture, report)),
        process: report.process.clone(),
        socket_uid: (event.uid != u32::MAX).then_some(event.uid),
        class,
        declared_by: classified
            .filter(|_| class == Some(Class::Declared))
            .and_then(|classified| classified.declaration)
            .map(|declaration| declaration.name.to_string()),
    }
}

/// The local pod of a packet at the uplink. Its own boundary has vouched for the source, unless the
/// node has put another in its place: then nobody is named.
fn by_source(state: &AgentState, source: IpAddr) -> Option<&str> {
    let local =
        |pod: &&Pod| pod.ips.contains(&source) && !pod.host_network && pod.node == state.node;
    let mut found = state.snapshot.pods.values().filter(local);
    // An address of two pods names none.
    found.next().filter(|_| found.next().is_none()).map(|pod| pod.uid.as_str())
}

/// Whose the socket is, by its container.
fn sender(
    capture: Capture,
    owner: Option<&Container>,
    container: Option<&(String, String)>,
    pod: &Pod,
) -> Sender {
    match (capture, owner, container) {
        // In an ambient pod's network, another pod's socket that is not foreign is ztunnel's.
        (Capture::Ambient, Some(owner), _) if owner.pod != pod.cgroup_uid => Sender::Proxy,
        (Capture::Sidecar, _, Some((name, _))) if name == PROXY_CONTAINER => Sender::Proxy,
        (_, _, Some((name, _))) if !name.is_empty() => Sender::Application,
        (_, _, _) => Sender::Unknown,
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

/// A boot-clock time on the wall clock.
fn wall_clock(boot: u64) -> Timestamp {
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
