//! What a hook knows about a packet: facts, never judgements.
//!
//! A parser fills a [`Packet`]; [`crate::decide`] alone says what the facts mean.

use crate::key::{Addr, PodId, ReplyKey};
use crate::reason::closed_enum;

/// IP protocol numbers the decision names.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IP in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// GRE.
    pub const GRE: u8 = 47;
    /// IPsec.
    pub const ESP: u8 = 50;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// TCP flag bits.
pub mod tcp {
    /// Synchronize.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledge.
    pub const ACK: u8 = 0x10;
}

closed_enum! {
    /// Where a decision was made.
    pub enum Hook {
        /// TCX ingress of the pod's host-side veth: the boundary.
        PodEgress = 1 "pod_egress",
        /// TCX egress of the same veth: traffic toward the pod. Never drops.
        PodIngress = 2 "pod_ingress",
        /// `cgroup_skb/egress` at `kubepods`.
        Wall = 3 "wall",
        /// `connect(2)`, IPv4.
        Connect4 = 4 "connect4",
        /// `connect(2)`, IPv6 and mapped IPv4.
        Connect6 = 5 "connect6",
        /// `sendmsg(2)` with an address, IPv4 and mapped IPv4.
        Sendmsg4 = 6 "sendmsg4",
        /// `sendmsg(2)` with an address, IPv6.
        Sendmsg6 = 7 "sendmsg6",
        /// TCX egress of a node's uplink, after Service addresses were translated.
        UplinkEgress = 8 "uplink_egress",
        /// `cgroup_skb/ingress` at `kubepods`: what reaches a pod's sockets. Never drops.
        WallIngress = 9 "wall_ingress",
    }
}

impl Hook {
    /// Whether the hook sees a socket call rather than a packet: no source, no link header, and
    /// every call is a new flow.
    #[inline(always)]
    pub const fn is_socket(self) -> bool {
        matches!(self, Self::Connect4 | Self::Connect6 | Self::Sendmsg4 | Self::Sendmsg6)
    }
}

closed_enum! {
    /// What the parser found.
    pub enum Shape {
        /// IPv4 or IPv6 with a complete transport header; for a socket hook, its arguments.
        Ip = 0 "ip",
        /// A fragment of an IPv4 packet; ports are not known (zero).
        Fragment = 1 "fragment",
        /// ARP of exactly the right shape; `src` and `dst` are its sender and target.
        Arp = 2 "arp",
        /// Neighbour or router solicitation, or neighbour advertisement, of exactly the right
        /// shape.
        Neighbour = 3 "neighbour",
        /// Anything truncated, inconsistent or carrying options or extension headers.
        Malformed = 4 "malformed",
        /// A VLAN tag, in the frame or beside it.
        Tagged = 5 "tagged",
        /// Neither IPv4, IPv6 nor ARP.
        Ethertype = 6 "ethertype",
        /// A multicast listener report of exactly the right shape, as every kernel sends when an
        /// interface comes up.
        Listener = 7 "listener",
    }
}

closed_enum! {
    /// The part of ICMP and ICMPv6 that belongs to a flow.
    pub enum Icmp {
        /// Not ICMP, or a type that answers nothing.
        Other = 0 "other",
        /// Echo reply; `dst_port` is the identifier.
        EchoReply = 1 "echo_reply",
        /// Destination unreachable, time exceeded, packet too big or parameter problem whose
        /// quoted packet names this pod and this destination; the ports are the quoted ones,
        /// turned round.
        Error = 2 "error",
        /// Echo request; `src_port` is the identifier.
        EchoRequest = 3 "echo_request",
    }
}

/// The facts of one packet or socket call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it was seen.
    pub hook: Hook,
    /// What it is.
    pub shape: Shape,
    /// Which answer it is, for ICMP.
    pub icmp: Icmp,
    /// It leaves through the loopback device of its namespace (packet hooks inside the pod).
    pub on_loopback: bool,
    /// It travels as IPv6, whatever the form of its addresses.
    pub is_v6: bool,
    /// IP protocol; for an ICMP error, still ICMP.
    pub protocol: u8,
    /// Protocol of the flow an answer belongs to: differs from `protocol` for ICMP errors.
    pub flow_protocol: u8,
    /// TCP flags, or zero.
    pub tcp_flags: u8,
    /// Source MAC of the frame, where the hook sees one.
    pub src_mac: [u8; 6],
    /// Sender MAC inside ARP.
    pub arp_mac: [u8; 6],
    /// Source port, or the local port of a socket; host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
    /// Source address; unspecified at socket hooks.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// The address that a neighbour advertisement is about, or a solicitation without a source.
    pub target: Addr,
    /// It is TCP with something behind its header.
    pub has_payload: bool,
    /// Zero.
    pub pad: [u8; 3],
}

impl Packet {
    /// A packet of which nothing is known yet; every parser starts here, so that what it does
    /// not reach is denied.
    #[inline(always)]
    pub const fn unparsed(hook: Hook) -> Self {
        Self {
            hook,
            shape: Shape::Malformed,
            icmp: Icmp::Other,
            on_loopback: false,
            is_v6: false,
            protocol: 0,
            flow_protocol: 0,
            tcp_flags: 0,
            src_mac: [0; 6],
            arp_mac: [0; 6],
            src_port: 0,
            dst_port: 0,
            src: Addr::UNSPECIFIED,
            dst: Addr::UNSPECIFIED,
            target: Addr::UNSPECIFIED,
            has_payload: false,
            pad: [0; 3],
        }
    }

    /// The facts of a socket call. A mapped IPv4 destination is an IPv4 call, as the kernel will
    /// send it.
    #[inline(always)]
    pub const fn call(hook: Hook, protocol: u8, dst: Addr, dst_port: u16, src_port: u16) -> Self {
        let mut packet = Self::unparsed(hook);
        packet.shape = Shape::Ip;
        packet.is_v6 = !dst.is_v4();
        packet.protocol = protocol;
        packet.flow_protocol = protocol;
        packet.dst = dst;
        packet.dst_port = dst_port;
        packet.src_port = src_port;
        packet
    }

    /// A TCP SYN without ACK.
    #[inline(always)]
    pub const fn is_bare_syn(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// Whether it opens a connection: a `connect` for TCP or a bare SYN. Datagrams open nothing,
    /// because nothing tells the first from the next.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.is_bare_syn() || (self.hook.is_socket() && self.protocol == protocol::TCP)
    }

    /// Whether the counters take it for one connection: what opens one, and every datagram.
    #[inline(always)]
    pub const fn counts_as_connection(&self) -> bool {
        self.opens() || self.protocol != protocol::TCP
    }

    /// Whether its socket tells who sends it: a SYN, data or a datagram. The kernel itself sends
    /// bare ACKs for sockets that are gone, and ICMP for nobody.
    #[inline(always)]
    pub const fn has_owner(&self) -> bool {
        match self.protocol {
            protocol::TCP => self.is_bare_syn() || self.has_payload,
            protocol::UDP => true,
            _ => false,
        }
    }

    /// Whether its sender can be told that it was dropped: whole TCP but for resets, and UDP, to
    /// one host.
    #[inline(always)]
    pub const fn is_answerable(&self) -> bool {
        let told = match self.protocol {
            protocol::TCP => self.tcp_flags & tcp::RST == 0,
            protocol::UDP => true,
            _ => false,
        };
        told && matches!(self.shape, Shape::Ip) && !self.dst.is_multicast_or_broadcast()
    }

    /// Whether it can be an answer on a flow from outside: never anything that opens one.
    #[inline(always)]
    pub const fn may_reply(&self) -> bool {
        match self.protocol {
            protocol::TCP => !self.opens(),
            protocol::UDP => true,
            protocol::ICMP | protocol::ICMPV6 => matches!(self.icmp, Icmp::EchoReply | Icmp::Error),
            _ => false,
        }
    }

    /// The reply-table entry that would explain it.
    #[inline(always)]
    pub const fn reply_key(&self, pod: PodId) -> ReplyKey {
        ReplyKey::new(pod, self.dst, self.dst_port, self.src_port, self.flow_protocol)
    }
}
