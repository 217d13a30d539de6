//! What packet sockets can send: frames of the attacker's own making, below every hook but one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::raw::message;
use super::scene::{Family, Scene};
use super::tools::{check, packet_socket, send_frame, set, set_number};
use super::{Actor, Attack, Judge, Row, xsk};
use crate::address::{NODE_MAC, link_local, pod};
use crate::frame::{Packet, ethernet, ethertype, icmp, ipv6, network, octets, protocol};
use crate::lab::CHECKOUT;
use crate::wiring::Wiring::{Bridge, Routed};

const RAW: Actor = Actor::Raw;
/// Why frames that are not IP have nowhere to go between routed pods.
const ENDS: &str = "the node ends the link and forwards only IP";
const NO_ND: &str = "IPv4 has ARP instead of neighbour discovery";
const BROADCAST: [u8; 6] = [0xff; 6];

pub(super) const ATTACKS: &[Attack] = &[
    Attack::new("packet-raw", Row::PacketSocket, RAW, |s| send_frame(&frame(s))),
    Attack::new("packet-cooked", Row::PacketSocket, RAW, cooked),
    Attack::new("packet-obsolete", Row::PacketSocket, RAW, obsolete),
    Attack::new("packet-ring", Row::PacketSocket, RAW, ring),
    Attack::new("packet-segmented", Row::PacketSocket, RAW, segmented),
    Attack::new("packet-past-queues", Row::PacketSocket, RAW, |s| {
        let socket = packet_socket(Type::RAW)?;
        set_number(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        socket.send(&frame(s)).map(drop)
    }),
    Attack::new("packet-xdp", Row::PacketSocket, RAW, |s| xsk::send(&frame(s))),
    Attack::new("packet-false-mac", Row::ForeignAddress, RAW, |s| {
        let packet = s.udp(s.own(), 40000, s.at());
        send_frame(&ethernet(s.false_mac(), NODE_MAC, ethertype(s.own()), &packet))
    }),
    Attack::new("packet-false-mac-to-peer", Row::ForeignAddress, RAW, |s| {
        let packet = s.udp(s.own(), 40000, SocketAddr::new(s.peer(), s.port()));
        send_frame(&ethernet(s.false_mac(), s.peer_mac(), ethertype(s.own()), &packet))
    })
    .at(Judge::Peer),
    Attack::new("packet-broadcast-frame", Row::PacketSocket, RAW, |s| {
        let packet = s.udp(s.own(), 40000, s.at());
        send_frame(&ethernet(s.mac(), BROADCAST, ethertype(s.own()), &packet))
    })
    .at(Judge::Peer)
    .not_on(Routed, "the node forwards no frame that was not for it alone"),
    Attack::new("tag-priority", Row::Tags, RAW, |s| tagged(s, &[0x8100])),
    Attack::new("tag-twice", Row::Tags, RAW, |s| tagged(s, &[0x8100, 0x8100])),
    Attack::new("tag-service", Row::Tags, RAW, |s| tagged(s, &[0x88a8])),
    Attack::new("tag-service-and-customer", Row::Tags, RAW, |s| tagged(s, &[0x88a8, 0x8100])),
    odd("ethertype-local-experimental", |s| typed(s, 0x88b5, &[])),
    odd("ethertype-llc", |s| typed(s, 3 + 25, &[0x42, 0x42, 3])),
    odd("ethertype-snap", |s| typed(s, 8 + 25, &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0])),
    odd("ethertype-mpls", |s| typed(s, 0x8847, &[0, 1, 1, 64])),
    odd("ethertype-pppoe", |s| typed(s, 0x8864, &[0x11, 0, 0, 1, 0, 27, 0, 0x21])),
    odd("ethertype-eapol", |s| typed(s, 0x888e, &[1, 0, 0, 25])),
    odd("ethertype-rarp", |s| typed(s, 0x8035, &[])),
    odd("ip-wrong-version", |s| typed(s, 0x0800, &[0x55])),
    odd("ip-other-family", |s| {
        let packet = s.udp(s.own(), 40000, SocketAddr::new(s.peer(), s.port()));
        send_frame(&ethernet(s.mac(), s.peer_mac(), 0x86dd, &packet))
    }),
    odd("runt", |s| send_frame(&ethernet(s.mac(), s.peer_mac(), 0x0800, &s.false_mac()))),
    // A request like any, with words behind it.
    arp("arp-padding", |s| {
        let request = arp_packet(s, 1, s.mac(), s.own(), s.peer());
        let padded = [request, s.false_mac().to_vec(), vec![0; 12]].concat();
        send_frame(&ethernet(s.mac(), s.peer_mac(), 0x0806, &padded))
    }),
    arp("arp-claims-router", |s| {
        let claim = arp_packet(s, 2, s.mac(), router(s), s.target());
        send_frame(&ethernet(s.mac(), s.peer_mac(), 0x0806, &claim))
    }),
    arp("arp-false-mac", |s| {
        let claim = arp_packet(s, 2, s.false_mac(), s.own(), s.peer());
        send_frame(&ethernet(s.mac(), s.peer_mac(), 0x0806, &claim))
    }),
    nd("nd-claims-router", |s| advertise(s, s.own(), router(s))),
    nd("nd-claims-routers-link-local", |s| advertise(s, s.own(), link_local(NODE_MAC).into())),
    nd("nd-claims-peer", |s| advertise(s, s.own(), s.family.of(pod(CHECKOUT.host)))),
    nd("nd-asks-as-router", |s| {
        let from = link_local(NODE_MAC).into();
        neighbour(s, from, s.peer(), 135, &[&[0; 4], &octets(s.peer())[..], &option(s, 1)].concat())
    }),
    nd("nd-router-advertisement", |s| {
        let body = [&[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], &option(s, 1)].concat();
        neighbour(s, link_local(s.mac()).into(), ALL_NODES.into(), 134, &body)
    }),
    nd("nd-redirect", |s| {
        let body = [&[0; 4], &octets(s.own())[..], &octets(s.target()), &option(s, 2)].concat();
        neighbour(s, link_local(NODE_MAC).into(), s.peer(), 137, &body)
    }),
    Attack::new("nd-to-outside", Row::NeighbourForgery, RAW, |s| {
        let body = [&[0; 4], &octets(s.own())[..], &option(s, 1)].concat();
        neighbour(s, s.own(), s.target(), 135, &body)
    })
    .not_over(Family::V4, NO_ND),
    Attack::new("icmp-redirect", Row::NeighbourForgery, RAW, |s| {
        let quoted = s.udp(s.peer(), 40000, s.at());
        let body = [&octets(s.own())[..], &quoted].concat();
        let packet = message(s, router(s), s.peer(), 5, 1, &body);
        send_frame(&ethernet(s.mac(), s.peer_mac(), 0x0800, &packet))
    })
    .at(Judge::Peer)
    .not_over(Family::V6, "nd-redirect is IPv6's"),
    Attack::new("dhcp-offer", Row::NeighbourForgery, RAW, |s| {
        let to = SocketAddr::new(Ipv4Addr::BROADCAST.into(), 68);
        let packet = s.udp(router(s), 67, to);
        send_frame(&ethernet(s.mac(), BROADCAST, 0x0800, &packet))
    })
    .at(Judge::Peer)
    .not_on(Routed, ENDS)
    .not_over(Family::V6, "router advertisements come first"),
];

/// A frame that is not IP, or not what it says; made once.
const fn odd(id: &'static str, run: fn(&Scene) -> io::Result<()>) -> Attack {
    let attack = Attack::new(id, Row::Ethertypes, RAW, run).at(Judge::Peer);
    attack.not_on(Routed, ENDS).not_over(Family::V6, "the frame has no family: it is made once")
}

const fn arp(id: &'static str, run: fn(&Scene) -> io::Result<()>) -> Attack {
    let attack = Attack::new(id, Row::NeighbourForgery, RAW, run).at(Judge::Peer);
    attack.not_on(Routed, ENDS).not_over(Family::V6, "IPv6 has neighbour discovery instead of ARP")
}

const fn nd(id: &'static str, run: fn(&Scene) -> io::Result<()>) -> Attack {
    let attack = Attack::new(id, Row::NeighbourForgery, RAW, run).at(Judge::Peer);
    attack.not_on(Routed, ENDS).not_over(Family::V4, NO_ND)
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The node's address on its bridge.
fn router(s: &Scene) -> IpAddr {
    s.family.of(Bridge.next_hop())
}

/// A datagram to the forbidden address, in a frame to the node.
fn frame(s: &Scene) -> Vec<u8> {
    s.framed(&s.udp(s.own(), 40000, s.at()))
}

/// The same behind tags with number zero, which a node takes off.
fn tagged(s: &Scene, tags: &[u16]) -> io::Result<()> {
    let mut body = Vec::new();
    for tag in tags.iter().skip(1) {
        body.extend([0, 0]);
        body.extend(tag.to_be_bytes());
    }
    body.extend([0, 0]);
    body.extend(ethertype(s.own()).to_be_bytes());
    body.extend(s.udp(s.own(), 40000, s.at()));
    let first = tags.first().copied().unwrap_or_default();
    send_frame(&ethernet(s.mac(), NODE_MAC, first, &body))
}

/// The text behind these bytes in a frame of this type.
fn typed(s: &Scene, kind: u16, head: &[u8]) -> io::Result<()> {
    send_frame(&ethernet(s.mac(), s.peer_mac(), kind, &[head, s.text(), &[0; 20]].concat()))
}

fn arp_packet(_: &Scene, operation: u8, mac: [u8; 6], from: IpAddr, to: IpAddr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &mac, &octets(from), &[0; 6], &octets(to)].concat()
}

/// A link-layer address option with the attack's own MAC.
fn option(s: &Scene, kind: u8) -> Vec<u8> {
    [&[kind, 1][..], &s.false_mac()].concat()
}

/// A neighbour discovery message to the peer's link.
fn neighbour(s: &Scene, from: IpAddr, to: IpAddr, kind: u8, body: &[u8]) -> io::Result<()> {
    let packet = ipv6(from, to, protocol::ICMPV6, 255, &icmp(from, to, kind, 0, body));
    let mac = if to == s.target() { NODE_MAC } else { s.peer_mac() };
    send_frame(&ethernet(s.mac(), mac, 0x86dd, &packet))
}

/// Tells the peer that `target` is behind the attack's own MAC, whatever it knew before.
fn advertise(s: &Scene, from: IpAddr, target: IpAddr) -> io::Result<()> {
    let body = [&[0x60, 0, 0, 0], &octets(target)[..], &option(s, 2)].concat();
    neighbour(s, from, s.peer(), 136, &body)
}

/// The address of a packet socket whose link header the kernel writes.
fn link_address(s: &Scene) -> io::Result<SockAddr> {
    let index = nix::net::if_::if_nametoindex("eth0")?;
    // SAFETY: the storage is large enough for a `sockaddr_ll`, all of which is written.
    unsafe {
        SockAddr::try_init(|storage, length| {
            let mut link: libc::sockaddr_ll = std::mem::zeroed();
            link.sll_family = libc::AF_PACKET as u16;
            link.sll_protocol = ethertype(s.own()).to_be();
            link.sll_ifindex = index as i32;
            link.sll_halen = 6;
            link.sll_addr[..6].copy_from_slice(&NODE_MAC);
            storage.cast::<libc::sockaddr_ll>().write(link);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
        .map(|((), address)| address)
    }
}

fn cooked(s: &Scene) -> io::Result<()> {
    let packet = s.udp(s.own(), 40000, s.at());
    packet_socket(Type::DGRAM)?.send_to(&packet, &link_address(s)?).map(drop)
}

/// A socket of the kind that packet sockets replaced in 1999.
fn obsolete(s: &Scene) -> io::Result<()> {
    const SOCK_PACKET: i32 = 10;
    let kind = Type::from(SOCK_PACKET);
    let everything = i32::from((libc::ETH_P_ALL as u16).to_be());
    let socket = Socket::new(Domain::PACKET, kind, Some(Protocol::from(everything)))?;
    // SAFETY: the storage is larger than the eighteen bytes written: family, name, protocol.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let bytes = storage.cast::<u8>();
            bytes.cast::<u16>().write_unaligned(libc::AF_PACKET as u16);
            bytes.add(2).copy_from(b"eth0".as_ptr(), 4);
            bytes.add(16).cast::<u16>().write_unaligned(ethertype(s.own()).to_be());
            *length = 18;
            Ok(())
        })?
    };
    socket.send_to(&frame(s), &address).map(drop)
}

/// A frame laid into a ring shared with the kernel, of which only the link header is linear.
fn ring(s: &Scene) -> io::Result<()> {
    const BLOCK: usize = 4096;
    const SEND_REQUEST: u64 = 1;
    const DATA: usize = 32;
    let socket = packet_socket(Type::RAW)?;
    let request: Vec<u8> =
        [BLOCK as u32, 1, BLOCK as u32 / 2, 2].iter().flat_map(|word| word.to_ne_bytes()).collect();
    set(&socket, libc::SOL_PACKET, libc::PACKET_TX_RING, &request)?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let frame = frame(s);
    // SAFETY: a fresh mapping of the socket's ring of one block; the header of the first slot is
    // its state and its length, its data follow at the offset the kernel prescribes.
    unsafe {
        let fd = socket.as_raw_fd();
        let mapped = libc::mmap(std::ptr::null_mut(), BLOCK, access, libc::MAP_SHARED, fd, 0);
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let slot = mapped.cast::<u8>();
        slot.add(DATA).copy_from(frame.as_ptr(), frame.len());
        slot.add(8).cast::<u32>().write(frame.len() as u32);
        slot.cast::<u64>().write_volatile(SEND_REQUEST);
        let sent = check(libc::send(fd, std::ptr::null(), 0, 0) as i32);
        libc::munmap(mapped, BLOCK);
        sent.map(drop)
    }
}

/// A segment of many, which the kernel cuts later.
fn segmented(s: &Scene) -> io::Result<()> {
    const PACKET_VNET_HDR: i32 = 15;
    const NEEDS_CHECKSUM: u8 = 1;
    let socket = packet_socket(Type::RAW)?;
    set_number(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
    let text = s.text().repeat(16);
    let segment = Packet {
        src: s.own(),
        dst: s.target(),
        protocol: protocol::TCP,
        src_port: 40000,
        dst_port: s.port(),
        flags: 0x18,
        payload: &text,
    };
    let frame = s.framed(&network(s.own(), s.target(), protocol::TCP, &segment.transport()));
    let (kind, network) = if s.own().is_ipv4() { (1, 20) } else { (4, 40) };
    let start: u16 = 14 + network;
    let words = [start + 20, 100, start, 16].map(u16::to_ne_bytes).concat();
    socket.send(&[&[NEEDS_CHECKSUM, kind][..], &words, &frame].concat()).map(drop)
}
