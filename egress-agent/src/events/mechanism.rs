//! How an attempt got around the proxy: one pure function of what the kernel saw and what is known
//! of the pod.
//!
//! The order is from what the kernel itself saw of the socket, over who sent, to what the pod's
//! annotations explain; `unexplained` is what remains, and worth a look: rules that were removed
//! inside the pod look like that.

use egress_common::Reason;
use egress_common::event::Event;
use egress_common::packet::{Hook, protocol, tcp};
use egress_common::state::Capture;

use crate::policy::Interception;

/// How an attempt got around the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mechanism {
    /// The mesh does not capture the pod.
    NoSidecar,
    /// A process other than the proxy runs under the proxy's user.
    ProxyUid,
    /// An annotation takes the port out of capture.
    ExcludedPort,
    /// An annotation takes the address out of capture.
    ExcludedRange,
    /// The proxy itself dials the destination.
    Passthrough,
    /// UDP, which the mesh does not capture.
    UdpQuic,
    /// IPv6, which the mesh does not capture unless it is told to.
    Ipv6,
    /// A raw or packet socket, or `AF_XDP`.
    RawOrPacketSocket,
    /// The pod shares the node's network, where nothing is captured.
    HostNetwork,
    /// The connection is older than what denies it.
    BeforePolicy,
    /// The socket belongs to another pod, or to none.
    ForeignSocket,
    /// None of these.
    Unexplained,
}

impl Mechanism {
    /// Every mechanism.
    pub const ALL: [Self; 12] = [
        Self::NoSidecar,
        Self::ProxyUid,
        Self::ExcludedPort,
        Self::ExcludedRange,
        Self::Passthrough,
        Self::UdpQuic,
        Self::Ipv6,
        Self::RawOrPacketSocket,
        Self::HostNetwork,
        Self::BeforePolicy,
        Self::ForeignSocket,
        Self::Unexplained,
    ];

    /// The stable word: metric label and event field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoSidecar => "no_sidecar",
            Self::ProxyUid => "proxy_uid",
            Self::ExcludedPort => "excluded_port",
            Self::ExcludedRange => "excluded_range",
            Self::Passthrough => "passthrough",
            Self::UdpQuic => "udp_quic",
            Self::Ipv6 => "ipv6",
            Self::RawOrPacketSocket => "raw_or_packet_socket",
            Self::HostNetwork => "host_network",
            Self::BeforePolicy => "before_policy",
            Self::ForeignSocket => "foreign_socket",
            Self::Unexplained => "unexplained",
        }
    }
}

/// Whose the sending socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// Not known.
    Unknown,
    /// The mesh proxy's: the container of the sidecar, or another pod, as ztunnel is.
    Proxy,
    /// Another container of the pod.
    Application,
}

/// What is known of the pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) capture: Capture,
    pub(super) host_network: bool,
    /// User of the sidecar.
    pub(super) proxy_uid: Option<u32>,
    pub(super) interception: &'a Interception,
    pub(super) sender: Sender,
}

const AF_PACKET: u8 = 17;
const AF_XDP: u8 = 44;
const SOCK_RAW: u8 = 3;
const SOCK_PACKET: u8 = 10;

/// How this attempt got around the proxy; `None` where the decision is about something else than
/// the way out.
pub(super) fn mechanism(event: &Event, facts: &Facts<'_>) -> Option<Mechanism> {
    let reason = Reason::from_number(event.reason)?;
    if reason == Reason::ForeignSocket {
        return Some(Mechanism::ForeignSocket);
    }
    let raw = matches!(event.socket_family, AF_PACKET | AF_XDP)
        || matches!(event.socket_type, SOCK_RAW | SOCK_PACKET);
    if raw && (is_about_the_destination(reason) || is_about_the_packet(reason)) {
        return Some(Mechanism::RawOrPacketSocket);
    }
    if !is_about_the_destination(reason) {
        return None;
    }
    let is_call = Hook::from_number(event.hook).is_some_and(Hook::is_socket);
    Some(if facts.host_network {
        Mechanism::HostNetwork
    } else if !is_call && event.protocol == protocol::TCP && event.tcp_flags & tcp::SYN == 0 {
        Mechanism::BeforePolicy
    } else {
        match facts.capture {
            // A datagram's sender is known where its call was judged; it was not, so that call was
            // earlier.
            Capture::None if is_unseen_datagram(event, is_call) => Mechanism::BeforePolicy,
            Capture::None => Mechanism::NoSidecar,
            Capture::Sidecar | Capture::Ambient => around_the_proxy(event, facts),
        }
    })
}

/// How it got around a proxy that captures the pod.
fn around_the_proxy(event: &Event, facts: &Facts<'_>) -> Mechanism {
    let dst = event.dst.ip();
    if facts.sender == Sender::Proxy {
        Mechanism::Passthrough
    } else if facts.proxy_uid == Some(event.uid) {
        Mechanism::ProxyUid
    } else if event.protocol != protocol::TCP {
        // Ping has no port and no capture either; it is a datagram to the mesh.
        Mechanism::UdpQuic
    } else if facts.interception.excludes_port(event.dst_port) {
        Mechanism::ExcludedPort
    } else if facts.interception.excludes_address(dst, event.dst_port) {
        Mechanism::ExcludedRange
    } else if dst.is_ipv6() {
        Mechanism::Ipv6
    } else {
        Mechanism::Unexplained
    }
}

/// A UDP datagram of an ordinary socket that no call was seen of.
fn is_unseen_datagram(event: &Event, is_call: bool) -> bool {
    const SOCK_DGRAM: u8 = 2;
    !is_call && event.protocol == protocol::UDP && event.socket_type == SOCK_DGRAM && event.pid == 0
}

/// Whether the packet itself is wrong in a way that only a raw or packet socket makes it.
const fn is_about_the_packet(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Ethertype | Reason::Malformed | Reason::Fragment | Reason::SpoofedSource
    )
}

/// Whether a socket hook, which knows only protocol, address and port, gives this reason too.
pub(super) const fn is_about_the_destination(reason: Reason) -> bool {
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
        | Reason::RedirectUnavailable => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_common::key::Addr;

    fn packet(protocol: u8, uid: u32) -> Event {
        let mut event = Event::read(&[0; Event::SIZE]).unwrap();
        event.hook = Hook::PodEgress.number();
        event.reason = Reason::NotGateway.number();
        event.protocol = protocol;
        event.tcp_flags = if protocol == protocol::TCP { tcp::SYN } else { 0 };
        event.dst = Addr::v4([203, 0, 113, 10]);
        event.dst_port = 443;
        event.uid = uid;
        event.socket_family = 2;
        event.socket_type = if protocol == protocol::TCP { 1 } else { 2 };
        event
    }

    fn facts(capture: Capture, interception: &Interception) -> Facts<'_> {
        let proxy_uid = (capture == Capture::Sidecar).then_some(1337);
        Facts { capture, host_network: false, proxy_uid, interception, sender: Sender::Unknown }
    }

    #[test]
    fn every_mechanism_by_what_gives_it_away() {
        use Capture::{Ambient, None as Plain, Sidecar};
        let all = Interception::default();
        let ports = Interception { exclude_ports: vec![443], ..all.clone() };
        let ranges =
            Interception { exclude_ranges: vec!["203.0.113.0/24".parse().unwrap()], ..all.clone() };
        let narrow = Interception {
            include_ranges: Some(vec!["10.0.0.0/8".parse().unwrap()]),
            ..all.clone()
        };
        let included = Interception { include_ports: vec![443], ..narrow.clone() };
        let tcp = packet(protocol::TCP, 1000);
        let udp = packet(protocol::UDP, 1000);
        let v6 =
            Event { dst: Addr::from("2001:db8::1".parse::<std::net::IpAddr>().unwrap()), ..tcp };
        let proxy = packet(protocol::TCP, 1337);
        let call = Event { hook: Hook::Connect4.number(), tcp_flags: 0, socket_type: 0, ..tcp };
        let with = |reason: Reason| Event { reason: reason.number(), ..tcp };
        let sent_by = |sender, facts: Facts<'static>| Facts { sender, ..facts };
        static ALL: std::sync::LazyLock<Interception> =
            std::sync::LazyLock::new(Interception::default);
        for (what, expected, event, facts) in [
            ("a pod outside the mesh", Some("no_sidecar"), tcp, facts(Plain, &all)),
            ("its refused call", Some("no_sidecar"), call, facts(Plain, &all)),
            ("its datagram", Some("no_sidecar"), Event { pid: 7, ..udp }, facts(Plain, &all)),
            (
                "another process of that user",
                Some("proxy_uid"),
                proxy,
                sent_by(Sender::Application, facts(Sidecar, &ALL)),
            ),
            ("that user, container unknown", Some("proxy_uid"), proxy, facts(Sidecar, &all)),
            (
                "the sidecar",
                Some("passthrough"),
                proxy,
                sent_by(Sender::Proxy, facts(Sidecar, &ALL)),
            ),
            ("ztunnel", Some("passthrough"), tcp, sent_by(Sender::Proxy, facts(Ambient, &ALL))),
            ("an excluded port", Some("excluded_port"), tcp, facts(Sidecar, &ports)),
            ("an excluded range", Some("excluded_range"), tcp, facts(Sidecar, &ranges)),
            ("outside the included ranges", Some("excluded_range"), tcp, facts(Sidecar, &narrow)),
            ("an included port there", Some("unexplained"), tcp, facts(Sidecar, &included)),
            ("UDP", Some("udp_quic"), udp, facts(Sidecar, &ports)),
            ("UDP under ambient", Some("udp_quic"), udp, facts(Ambient, &all)),
            ("IPv6", Some("ipv6"), v6, facts(Sidecar, &all)),
            (
                "a raw socket",
                Some("raw_or_packet_socket"),
                Event { socket_type: SOCK_RAW, ..tcp },
                facts(Plain, &all),
            ),
            (
                "a packet socket",
                Some("raw_or_packet_socket"),
                Event { socket_family: AF_PACKET, ..udp },
                facts(Sidecar, &all),
            ),
            (
                "a forged source",
                Some("raw_or_packet_socket"),
                Event { socket_type: SOCK_RAW, ..with(Reason::SpoofedSource) },
                facts(Plain, &all),
            ),
            (
                "the node's network",
                Some("host_network"),
                tcp,
                Facts { host_network: true, ..facts(Plain, &all) },
            ),
            (
                "an open connection",
                Some("before_policy"),
                Event { tcp_flags: tcp::ACK, ..tcp },
                facts(Sidecar, &all),
            ),
            ("a datagram of an earlier socket", Some("before_policy"), udp, facts(Plain, &all)),
            (
                "another pod's socket",
                Some("foreign_socket"),
                with(Reason::ForeignSocket),
                facts(Plain, &all),
            ),
            ("rules that are gone", Some("unexplained"), tcp, facts(Sidecar, &all)),
            (
                "a wrong source without a raw socket",
                None,
                with(Reason::SpoofedSource),
                facts(Plain, &all),
            ),
            ("too many connections", None, with(Reason::RateLimited), facts(Plain, &all)),
        ] {
            let found = mechanism(&event, &facts).map(Mechanism::name);
            assert_eq!(found, expected, "{what}");
        }
    }
}
