//! What raw sockets can send: headers of the attacker's own making.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use nix::libc;

use super::scene::{Family, Scene};
use super::tools::{dial, send_raw, set_number, tcp, udp};
use super::{Accomplice, Actor, Attack, Judge, Row, sockets};
use crate::address::{Dual, ELSEWHERE, pod};
use crate::frame::{self, Packet, icmp, ipv4, ipv6, network, octets, protocol};
use crate::lab::{CART, CHECKOUT};

const RAW: Actor = Actor::Raw;
const NOT_V6: &str = "IPv6 has extension headers instead of options";
const NOT_V4: &str = "IPv4 has options instead of extension headers";

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PUSH: u8 = 8;
const ACK: u8 = 16;

/// A port of the pods at which nobody listens.
const CLOSED: u16 = 9999;
/// A port that remotes of the poisoning attacks open.
const OPENED: u16 = 9100;

pub(super) const ATTACKS: &[Attack] = &[
    Attack::new("raw-udp", Row::RawIp, RAW, |s| send_raw(s, &s.udp(s.own(), 40000, s.at()))),
    Attack::new("raw-syn", Row::RawIp, RAW, |s| segment(s, SYN)),
    Attack::new("raw-ack", Row::RawIp, RAW, |s| segment(s, ACK)),
    Attack::new("raw-syn-ack", Row::RawIp, RAW, |s| segment(s, SYN | ACK)),
    Attack::new("raw-rst", Row::RawIp, RAW, |s| segment(s, RST)),
    Attack::new("raw-fin", Row::RawIp, RAW, |s| segment(s, FIN | ACK)),
    Attack::new("raw-mptcp-join", Row::Mptcp, RAW, join),
    Attack::new("raw-ipip", Row::RawIp, RAW, |s| carry(s, 4)),
    Attack::new("raw-ipv6-in-ip", Row::RawIp, RAW, |s| carry(s, 41)),
    Attack::new("raw-gre", Row::RawIp, RAW, |s| carry(s, 47)),
    Attack::new("raw-esp", Row::RawIp, RAW, |s| carry(s, 50)),
    Attack::new("raw-sctp", Row::RawIp, RAW, |s| carry(s, 132)),
    Attack::new("raw-dccp", Row::RawIp, RAW, |s| carry(s, 33)),
    Attack::new("raw-udp-lite", Row::RawIp, RAW, |s| carry(s, 136)),
    Attack::new("raw-etherip", Row::RawIp, RAW, |s| carry(s, 97)),
    Attack::new("raw-ospf", Row::RawIp, RAW, |s| carry(s, 89)),
    Attack::new("raw-experimental", Row::RawIp, RAW, |s| carry(s, 253)),
    Attack::new("raw-echo-request", Row::RawIp, RAW, |s| {
        let (request, _) = echo_types(s);
        send_raw(s, &message(s, s.own(), s.target(), request, 0, s.text()))
    }),
    Attack::new("raw-echo-reply", Row::RawIp, RAW, |s| {
        let (_, reply) = echo_types(s);
        send_raw(s, &message(s, s.own(), s.target(), reply, 0, s.text()))
    }),
    Attack::new("raw-unreachable", Row::RawIp, RAW, |s| {
        // Quotes a packet that was never there.
        let quoted = s.udp(s.target(), s.port(), SocketAddr::new(s.own(), CLOSED));
        let body = [&[0; 4][..], &quoted].concat();
        let (kind, code) = if s.own().is_ipv4() { (3, 3) } else { (1, 4) };
        send_raw(s, &message(s, s.own(), s.target(), kind, code, &body))
    }),
    Attack::new("raw-source-outside", Row::ForeignAddress, RAW, |s| {
        send_raw(s, &s.udp(s.family.of(ELSEWHERE), 40000, s.at()))
    }),
    Attack::new("raw-source-of-peer", Row::ForeignAddress, RAW, |s| {
        send_raw(s, &s.udp(s.peer(), 40000, s.at()))
    }),
    Attack::new("raw-source-of-gateway", Row::ForeignAddress, RAW, |s| {
        send_raw(s, &s.tcp(s.gateway().ip(), 40000, s.at(), SYN))
    }),
    Attack::new("raw-source-to-peer", Row::ForeignAddress, RAW, |s| {
        let to = SocketAddr::new(s.peer(), s.port());
        send_raw(s, &s.udp(s.family.of(pod(CHECKOUT.host)), 40000, to))
    })
    .at(Judge::Peer),
    Attack::new("transparent-source", Row::ForeignAddress, RAW, |s| {
        let socket = udp(s)?;
        let (level, name) = match s.family {
            Family::V4 => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
            Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
        };
        set_number(&socket, level, name, 1)?;
        socket.bind(&SocketAddr::new(s.family.of(ELSEWHERE), 0).into())?;
        sockets::send(&socket, s.at(), s.text())
    }),
    Attack::new("option-loose-source-route", Row::Options, RAW, |s| {
        let hop = octets(s.gateway().ip());
        optioned(s, &[&[131, 7, 4][..], &hop, &[0]].concat())
    })
    .not_over(Family::V6, NOT_V6),
    Attack::new("option-record-route", Row::Options, RAW, |s| {
        optioned(s, &[7, 7, 4, 0, 0, 0, 0, 0])
    })
    .not_over(Family::V6, NOT_V6),
    Attack::new("option-timestamp", Row::Options, RAW, |s| optioned(s, &[68, 8, 5, 0, 0, 0, 0, 0]))
        .not_over(Family::V6, NOT_V6),
    Attack::new("option-router-alert", Row::Options, RAW, |s| optioned(s, &[148, 4, 0, 0]))
        .not_over(Family::V6, NOT_V6),
    Attack::new("option-nothing", Row::Options, RAW, |s| optioned(s, &[1, 1, 1, 0]))
        .not_over(Family::V6, NOT_V6),
    Attack::new("option-moves-ports", Row::Options, RAW, |s| {
        // Where ports would be without the option stand allowed ones; the peer is allowed.
        let to = SocketAddr::new(s.peer(), s.port());
        let (IpAddr::V4(own), IpAddr::V4(peer)) = (s.own(), s.peer()) else { return Ok(()) };
        let packet = Packet {
            src: s.own(),
            dst: s.peer(),
            protocol: protocol::UDP,
            src_port: 53,
            dst_port: to.port(),
            flags: 0,
            payload: s.text(),
        };
        let options = [1, 1, 1, 1];
        send_raw(s, &ipv4(own, peer, &options, 0, protocol::UDP, &packet.transport()))
    })
    .at(Judge::Peer)
    .not_over(Family::V6, NOT_V6),
    Attack::new("header-hop-by-hop", Row::Extensions, RAW, |s| headed(s, 0, &PADDING))
        .not_over(Family::V4, NOT_V4),
    Attack::new("header-destination", Row::Extensions, RAW, |s| headed(s, 60, &PADDING))
        .not_over(Family::V4, NOT_V4),
    Attack::new("header-routing-0", Row::Extensions, RAW, |s| {
        let route = [&[17, 2, 0, 1, 0, 0, 0, 0][..], &octets(s.gateway().ip())].concat();
        headed(s, 43, &route)
    })
    .not_over(Family::V4, NOT_V4),
    Attack::new("header-authentication", Row::Extensions, RAW, |s| {
        headed(s, 51, &[17, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1])
    })
    .not_over(Family::V4, NOT_V4),
    Attack::new("header-no-next", Row::Extensions, RAW, |s| carry(s, 59))
        .not_over(Family::V4, NOT_V4),
    Attack::new("header-mobility", Row::Extensions, RAW, |s| headed(s, 135, &PADDING))
        .not_over(Family::V4, NOT_V4),
    Attack::new("header-hip", Row::Extensions, RAW, |s| headed(s, 139, &PADDING))
        .not_over(Family::V4, NOT_V4),
    Attack::new("header-shim6", Row::Extensions, RAW, |s| headed(s, 140, &PADDING))
        .not_over(Family::V4, NOT_V4),
    Attack::new("header-chain", Row::Extensions, RAW, |s| {
        let next = |kind: u8| [kind, 0, 1, 4, 0, 0, 0, 0];
        headed(s, 0, &[next(60), next(43), [60, 0, 0, 0, 0, 0, 0, 0], next(17)].concat())
    })
    .not_over(Family::V4, NOT_V4),
    Attack::new("header-before-allowed-ports", Row::Extensions, RAW, |s| {
        let body = [&PADDING[..], &datagram(s, s.peer(), s.text())].concat();
        send_raw(s, &ipv6(s.own(), s.peer(), 60, 64, &body))
    })
    .at(Judge::Peer)
    .not_over(Family::V4, NOT_V4),
    Attack::new("fragments-first-and-last", Row::Fragments, RAW, |s| {
        fragments(s, s.target(), &[(0, 64, true), (64, 108, false)])
    }),
    Attack::new("fragments-tiny", Row::Fragments, RAW, |s| {
        fragments(s, s.target(), &[(0, 8, true), (8, 16, true), (16, 108, false)])
    }),
    Attack::new("fragments-overlapping", Row::Fragments, RAW, |s| {
        fragments(s, s.target(), &[(0, 64, true), (32, 96, true), (64, 108, false)])
    }),
    Attack::new("fragments-later-only", Row::Fragments, RAW, |s| {
        fragments(s, s.target(), &[(64, 108, false)])
    }),
    Attack::new("fragment-alone", Row::Fragments, RAW, |s| {
        fragments(s, s.target(), &[(0, 108, false)])
    })
    .not_over(Family::V4, "an IPv4 fragment that is whole is a packet like any"),
    Attack::new("fragments-to-gateway", Row::Fragments, RAW, |s| {
        fragments(s, s.gateway().ip(), &[(0, 64, true), (64, 108, false)])
    })
    .at(Judge::Gateway),
    Attack::new("reflected-echo", Row::Reflected, RAW, |s| {
        let (request, _) = echo_types(s);
        send_raw(s, &message(s, s.target(), s.own(), request, 0, s.text()))
    }),
    Attack::new("reflected-unreachable", Row::Reflected, RAW, |s| {
        send_raw(s, &s.udp(s.target(), s.port(), SocketAddr::new(s.own(), CLOSED)))
    }),
    Attack::new("reflected-reset", Row::Reflected, RAW, |s| {
        send_raw(s, &s.tcp(s.target(), s.port(), SocketAddr::new(s.own(), CLOSED), SYN))
    }),
    Attack::new("forged-handshake", Row::ForgedInbound, RAW, |s| {
        let _listening = TcpListener::bind(SocketAddr::new(s.own(), s.port()))?;
        let own = SocketAddr::new(s.own(), s.port());
        send_raw(s, &s.tcp(s.target(), s.port(), own, SYN))?;
        std::thread::sleep(Duration::from_millis(10));
        Ok(())
    }),
    Attack::new("poisoned-by-itself", Row::Poisoned, RAW, |s| {
        let forged = s.udp(s.target(), s.port(), SocketAddr::new(s.own(), OPENED));
        super::tools::send_frame(&s.framed(&forged))?;
        std::thread::sleep(Duration::from_millis(10));
        send_raw(s, &s.udp(s.own(), OPENED, s.at()))
    }),
    Attack::new("poisoned-by-peer", Row::Poisoned, RAW, |s| {
        send_raw(s, &s.udp(s.own(), OPENED, s.at()))
    })
    .after(Accomplice::Peer(|s| forge(s, s.target()))),
    Attack::new("poisoned-by-peer-tcp", Row::Poisoned, RAW, |s| {
        send_raw(s, &s.tcp(s.own(), OPENED, s.at(), ACK | PUSH))
    })
    .after(Accomplice::Peer(|s| {
        let syn = s.tcp(s.target(), s.port(), SocketAddr::new(victim(s), OPENED), SYN);
        super::tools::send_frame(&framed_to(s, CART.host, &syn))
    })),
    Attack::new("poisoned-as-node", Row::Poisoned, RAW, |s| {
        send_raw(s, &s.udp(s.own(), OPENED, SocketAddr::new(s.node(), s.port())))
    })
    .at(Judge::Node)
    .after(Accomplice::Peer(|s| forge(s, s.node()))),
    Attack::new("poisoned-as-link-local", Row::Poisoned, RAW, |s| {
        send_raw(s, &s.udp(s.own(), OPENED, SocketAddr::new(s.family.of(PROBES), s.port())))
    })
    .after(Accomplice::Peer(|s| forge(s, s.family.of(PROBES)))),
    Attack::new("answers-with-a-syn", Row::Poisoned, RAW, |s| {
        send_raw(s, &s.tcp(s.own(), OPENED, SocketAddr::new(s.node(), s.port()), SYN))
    })
    .at(Judge::Node)
    .after(Accomplice::Node(|s| open(s, CART.host))),
    Attack::new("answers-for-another-pod", Row::Poisoned, RAW, |s| {
        send_raw(s, &s.tcp(s.own(), OPENED, SocketAddr::new(s.node(), s.port()), ACK))
    })
    .at(Judge::Node)
    .after(Accomplice::Node(|s| open(s, CHECKOUT.host))),
];

/// What a node's probes of captured pods are rewritten to, and what no pod may pretend to be.
const PROBES: Dual =
    Dual::new([169, 254, 7, 127], [0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff]);

/// Six bytes of nothing behind a header that UDP follows.
const PADDING: [u8; 8] = [17, 0, 1, 4, 0, 0, 0, 0];

fn segment(s: &Scene, flags: u8) -> io::Result<()> {
    send_raw(s, &s.tcp(s.own(), 40000, s.at(), flags))
}

/// The text directly behind the IP header.
fn carry(s: &Scene, next: u8) -> io::Result<()> {
    send_raw(s, &network(s.own(), s.target(), next, s.text()))
}

/// A SYN that joins an MPTCP connection (RFC 8684 3.2).
fn join(s: &Scene) -> io::Result<()> {
    let mut packet = s.tcp(s.own(), 40000, s.at(), SYN);
    let (header, length_at) = if s.own().is_ipv4() { (20, 2) } else { (40, 4) };
    let at = header + 12;
    if let Some(offset) = packet.get_mut(at) {
        *offset = 0x80;
    }
    packet.extend([30, 12, 0x10, 1, 0, 0, 0, 1, 0, 0, 0, 2]);
    let length = packet.len() - if s.own().is_ipv4() { 0 } else { 40 };
    if let Some(field) = packet.get_mut(length_at..length_at + 2) {
        field.copy_from_slice(&(length as u16).to_be_bytes());
    }
    send_raw(s, &packet)
}

/// Types of an echo request and its reply.
pub(super) fn echo_types(s: &Scene) -> (u8, u8) {
    if s.own().is_ipv4() { (8, 0) } else { (128, 129) }
}

/// An ICMP packet; `body` follows the checksum.
pub(super) fn message(
    s: &Scene,
    src: IpAddr,
    dst: IpAddr,
    kind: u8,
    code: u8,
    body: &[u8],
) -> Vec<u8> {
    let proto = if s.own().is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
    network(src, dst, proto, &icmp(src, dst, kind, code, body))
}

/// UDP header and payload toward the attack's port.
fn datagram(s: &Scene, dst: IpAddr, payload: &[u8]) -> Vec<u8> {
    Packet {
        src: s.own(),
        dst,
        protocol: protocol::UDP,
        src_port: 40000,
        dst_port: s.port(),
        flags: 0,
        payload,
    }
    .transport()
}

fn optioned(s: &Scene, options: &[u8]) -> io::Result<()> {
    let (IpAddr::V4(own), IpAddr::V4(target)) = (s.own(), s.target()) else { return Ok(()) };
    let body = datagram(s, s.target(), s.text());
    send_raw(s, &ipv4(own, target, options, 0, protocol::UDP, &body))
}

fn headed(s: &Scene, next: u8, headers: &[u8]) -> io::Result<()> {
    let body = [headers, &datagram(s, s.target(), s.text())].concat();
    send_raw(s, &ipv6(s.own(), s.target(), next, 64, &body))
}

/// Pieces of one datagram of 108 bytes: start, end, and whether more follow.
fn fragments(s: &Scene, dst: IpAddr, pieces: &[(usize, usize, bool)]) -> io::Result<()> {
    let whole = datagram(s, dst, &s.text().repeat(4));
    for (start, end, more) in pieces {
        let piece = whole.get(*start..*end).unwrap_or_default();
        let packet = match (s.own(), dst) {
            (IpAddr::V4(own), IpAddr::V4(dst)) => {
                let word = (start / 8) as u16 | if *more { 0x2000 } else { 0 };
                ipv4(own, dst, &[], word, protocol::UDP, piece)
            }
            (own, dst) => {
                let word = *start as u16 | u16::from(*more);
                let head = [&[protocol::UDP, 0][..], &word.to_be_bytes(), &[0, 0, 0, 7]].concat();
                ipv6(own, dst, 44, 64, &[&head[..], piece].concat())
            }
        };
        // A raw socket would not send a piece as it is given; below IP nobody asks.
        super::tools::send_frame(&s.framed(&packet))?;
    }
    Ok(())
}

/// The pod that accomplices write about.
fn victim(s: &Scene) -> IpAddr {
    s.family.of(pod(CART.host))
}

/// A frame of the accomplice to another pod.
fn framed_to(s: &Scene, host: u8, packet: &[u8]) -> Vec<u8> {
    let mac = match s.wiring {
        crate::wiring::Wiring::Routed => crate::address::NODE_MAC,
        crate::wiring::Wiring::Bridge => crate::address::pod_mac(host),
    };
    frame::ethernet(s.mac(), mac, frame::ethertype(s.own()), packet)
}

/// The accomplice writes to the victim in another's name.
fn forge(s: &Scene, name: IpAddr) -> io::Result<()> {
    let forged = s.udp(name, s.port(), SocketAddr::new(victim(s), OPENED));
    super::tools::send_frame(&framed_to(s, CART.host, &forged))
}

/// The node opens a connection toward a pod, from the attack's port.
fn open(s: &Scene, host: u8) -> io::Result<()> {
    let socket = tcp(s)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(s.node(), s.port()).into())?;
    // Refused, and remembered nevertheless.
    let _ = dial(&socket, SocketAddr::new(s.family.of(pod(host)), OPENED));
    Ok(())
}
