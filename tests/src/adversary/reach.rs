//! What is forbidden although it has an address inside the cluster, or none of its own.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use nix::libc;
use socket2::SockAddr;

use super::scene::{Family, Scene};
use super::tools::{dial, insist, send_message, send_raw, tcp, udp};
use super::{Actor, Attack, Judge, Row, When, raw};
use crate::address::{Dual, NODE_MAC, link_local, pod_mac};
use crate::frame::{ethernet, ethertype, network};
use crate::lab::LEDGER;
use crate::wiring::Wiring::{Bridge, Routed};

const USER: Actor = Actor::Nobody;
/// A Service whose endpoints the registry does not show, and its external address.
pub(super) const SERVICE: Dual = Dual::new([10, 96, 7, 1], [0xfd00, 0x96, 0, 0, 0, 0, 7, 1]);
/// An address outside that the node translates for everybody who dials it.
pub(super) const EXTERNAL: Dual =
    Dual::new([198, 51, 100, 7], [0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7]);
/// The bridge's address on another node of the cluster.
const OTHER_NODES_BRIDGE: Dual = Dual::new([10, 244, 9, 1], [0xfd00, 0x244, 9, 0, 0, 0, 0, 1]);
const METADATA: Dual = Dual::new([169, 254, 169, 254], [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]);
const MESH: Dual = Dual::new([240, 240, 3, 4], [0x2001, 2, 0, 0, 0, 0, 0, 0x34]);
const LINK: Dual = Dual::new([169, 254, 9, 9], [0xfe80, 0, 0, 0, 0, 0, 0, 9]);
const VXLAN: u16 = 8472;

const STAYS: &str = "the node neither forwards nor joins the group";
const NO_BRIDGE: &str = "there is no bridge";

pub(super) const ATTACKS: &[Attack] = &[
    Attack::new("metadata-tcp", Row::Named, USER, |s| tcp_to(s, METADATA)),
    Attack::new("metadata-udp", Row::Named, USER, |s| udp_to(s, METADATA)),
    Attack::new("mesh-address-tcp", Row::Named, USER, |s| tcp_to(s, MESH)),
    Attack::new("mesh-address-udp", Row::Named, USER, |s| udp_to(s, MESH)),
    Attack::new("multicast", Row::Multicast, USER, |s| {
        udp(s)?.send_to(s.text(), &SocketAddr::new(s.group(), s.port()).into()).map(drop)
    })
    .at(Judge::Peer)
    .not_on(Routed, STAYS),
    Attack::new("broadcast", Row::Multicast, USER, |s| {
        let socket = udp(s)?;
        socket.set_broadcast(true)?;
        let all: IpAddr = [255, 255, 255, 255].into();
        socket.send_to(s.text(), &SocketAddr::new(all, s.port()).into()).map(drop)
    })
    .at(Judge::Peer)
    .not_on(Routed, STAYS)
    .not_over(Family::V6, "IPv6 has no broadcast"),
    Attack::new("link-local-outside", Row::Multicast, USER, |s| udp_to(s, LINK))
        .not_over(Family::V6, "the kernel asks for the neighbour and sends nothing"),
    Attack::new("link-local-peer", Row::Multicast, USER, |s| {
        let peer = link_local(pod_mac(LEDGER.host));
        let index = nix::net::if_::if_nametoindex("eth0")?;
        let to = SocketAddrV6::new(peer, s.port(), 0, index);
        insist(|| udp(s)?.send_to(s.text(), &SockAddr::from(to)).map(drop))?;
        std::thread::sleep(std::time::Duration::from_millis(20));
        Ok(())
    })
    .at(Judge::Peer)
    .not_on(Routed, STAYS)
    .not_over(Family::V4, "IPv4's goes outside: link-local-outside"),
    Attack::new("group-report", Row::Reports, USER, |s| {
        let socket = udp(s)?;
        let index = nix::net::if_::if_nametoindex("eth0")?;
        match s.group() {
            IpAddr::V4(group) => {
                socket.join_multicast_v4_n(&group, &socket2::InterfaceIndexOrAddress::Index(index))
            }
            IpAddr::V6(group) => socket.join_multicast_v6(&group, index),
        }?;
        // The kernel takes up to a second to report; the first report comes at once.
        std::thread::sleep(std::time::Duration::from_millis(50));
        Ok(())
    })
    .at(Judge::Peer)
    .not_on(Routed, STAYS),
    Attack::new("gateway-other-port-tcp", Row::AllowedAddress, USER, |s| {
        dial(&tcp(s)?, SocketAddr::new(s.gateway().ip(), s.port()))
    })
    .at(Judge::Gateway),
    Attack::new("gateway-other-port-udp", Row::AllowedAddress, USER, |s| {
        let to = SocketAddr::new(s.gateway().ip(), s.port());
        udp(s)?.send_to(s.text(), &to.into()).map(drop)
    })
    .at(Judge::Gateway),
    Attack::new("gateway-udp-at-its-port", Row::AllowedAddress, USER, |s| {
        udp(s)?.send_to(s.text(), &s.gateway().into()).map(drop)
    })
    .at(Judge::Gateway),
    Attack::new("gateway-echo", Row::AllowedAddress, Actor::Raw, |s| {
        let (request, _) = raw::echo_types(s);
        let to = s.gateway().ip();
        send_raw(s, &raw::message(s, s.own(), to, request, 0, s.text()))
    })
    .at(Judge::Gateway),
    Attack::new("gateway-tunnelled", Row::AllowedAddress, Actor::Raw, |s| {
        send_raw(s, &network(s.own(), s.gateway().ip(), 4, s.text()))
    })
    .at(Judge::Gateway),
    Attack::new("gateway-draining", Row::AllowedAddress, USER, |s| from_port(s, s.gateway()))
        .at(Judge::Gateway)
        .when(When::Draining),
    Attack::new("foreign-socket-to-gateway", Row::ForeignSocket, Actor::Stranger, |s| {
        from_port(s, s.gateway())
    })
    .at(Judge::Gateway),
    Attack::new("foreign-socket-to-peer", Row::ForeignSocket, Actor::Stranger, |s| {
        udp(s)?.send_to(s.text(), &SocketAddr::new(s.peer(), s.port()).into()).map(drop)
    })
    .at(Judge::Peer),
    Attack::new("node-port-tcp", Row::Nodes, USER, |s| {
        dial(&tcp(s)?, SocketAddr::new(s.node(), s.port()))
    })
    .at(Judge::Node),
    Attack::new("node-port-udp", Row::Nodes, USER, |s| {
        udp(s)?.send_to(s.text(), &SocketAddr::new(s.node(), s.port()).into()).map(drop)
    })
    .at(Judge::Node),
    Attack::new("node-bridge-address-tcp", Row::Nodes, USER, |s| tcp_to(s, Bridge.next_hop()))
        .at(Judge::Node)
        .not_on(Routed, NO_BRIDGE),
    Attack::new("node-bridge-address-udp", Row::Nodes, USER, |s| udp_to(s, Bridge.next_hop()))
        .at(Judge::Node)
        .not_on(Routed, NO_BRIDGE),
    Attack::new("vxlan-to-node", Row::NodeTunnels, USER, |s| wrapped(s, s.node(), VXLAN)),
    Attack::new("vxlan-to-node-bridge", Row::NodeTunnels, USER, |s| {
        wrapped(s, s.family.of(Bridge.next_hop()), VXLAN)
    })
    .not_on(Routed, NO_BRIDGE),
    Attack::new("vxlan-to-other-nodes-bridge", Row::NodeTunnels, USER, |s| {
        wrapped(s, s.family.of(OTHER_NODES_BRIDGE), VXLAN)
    }),
    Attack::new("geneve-to-node", Row::NodeTunnels, USER, |s| datagram_to_node(s, 6081))
        .at(Judge::Node),
    Attack::new("wireguard-to-node", Row::NodeTunnels, USER, |s| datagram_to_node(s, 51820))
        .at(Judge::Node),
    Attack::new("ipip-to-node", Row::NodeTunnels, Actor::Raw, |s| inner_to_node(s, 4))
        .at(Judge::Node),
    Attack::new("ipv6-in-ip-to-node", Row::NodeTunnels, Actor::Raw, |s| inner_to_node(s, 41))
        .at(Judge::Node),
    Attack::new("gre-to-node", Row::NodeTunnels, Actor::Raw, |s| inner_to_node(s, 47))
        .at(Judge::Node),
    Attack::new("ipip-to-other-nodes-bridge", Row::NodeTunnels, Actor::Raw, |s| {
        let inner = s.udp(s.own(), 40000, s.at());
        send_raw(s, &network(s.own(), s.family.of(OTHER_NODES_BRIDGE), 4, &inner))
    }),
    Attack::new("service-outside-tcp", Row::Services, USER, |s| tcp_to(s, SERVICE))
        .when(When::Translated),
    Attack::new("service-outside-udp", Row::Services, USER, |s| udp_to(s, SERVICE))
        .when(When::Translated),
    Attack::new("service-outside-fragments", Row::Services, USER, |s| {
        let to = SocketAddr::new(s.family.of(SERVICE), s.port());
        udp(s)?.send_to(&s.text().repeat(200), &to.into()).map(drop)
    })
    .when(When::Translated),
    Attack::new("service-in-pieces", Row::Services, USER, |s| {
        // Never whole, and corked: the kernel cuts it before the node puts it together.
        let socket = udp(s)?;
        let to = SocketAddr::new(s.family.of(SERVICE), s.port());
        send_message(&socket, to, &s.text().repeat(100), &[], libc::MSG_MORE)?;
        send_message(&socket, to, &s.text().repeat(100), &[], 0)
    })
    .when(When::Translated),
    Attack::new("node-port-hairpin", Row::Services, USER, |s| {
        dial(&tcp(s)?, SocketAddr::new(s.node(), s.port()))
    })
    .when(When::Translated),
    Attack::new("external-address", Row::Services, USER, |s| tcp_to(s, EXTERNAL))
        .when(When::Translated),
];

fn tcp_to(s: &Scene, dual: Dual) -> io::Result<()> {
    dial(&tcp(s)?, SocketAddr::new(s.family.of(dual), s.port()))
}

fn udp_to(s: &Scene, dual: Dual) -> io::Result<()> {
    udp(s)?.send_to(s.text(), &SocketAddr::new(s.family.of(dual), s.port()).into()).map(drop)
}

/// Dials from the attack's port: the one sign where both ends are allowed.
fn from_port(s: &Scene, to: SocketAddr) -> io::Result<()> {
    let socket = tcp(s)?;
    socket.set_reuse_address(true)?;
    // Closed by reset: the port is free for the next run.
    socket.set_linger(Some(std::time::Duration::ZERO))?;
    socket.bind(&SocketAddr::new(s.own(), s.port()).into())?;
    dial(&socket, to)
}

/// A frame to the forbidden address in a VXLAN of the node's.
fn wrapped(s: &Scene, node: IpAddr, port: u16) -> io::Result<()> {
    let inner = s.udp(s.own(), 40000, s.at());
    let frame = ethernet(s.mac(), NODE_MAC, ethertype(s.own()), &inner);
    let header = [8, 0, 0, 0, 0, 0, vni(s.family), 0];
    let wrapped = [&header[..], &frame].concat();
    udp(s)?.send_to(&wrapped, &SocketAddr::new(node, port).into()).map(drop)
}

/// Number of the node's own VXLAN of the family.
pub(super) const fn vni(family: Family) -> u8 {
    match family {
        Family::V4 => 1,
        Family::V6 => 2,
    }
}

fn datagram_to_node(s: &Scene, port: u16) -> io::Result<()> {
    let socket = udp(s)?;
    socket.bind(&SocketAddr::new(s.own(), s.port()).into())?;
    socket.send_to(s.text(), &SocketAddr::new(s.node(), port).into()).map(drop)
}

fn inner_to_node(s: &Scene, protocol: u8) -> io::Result<()> {
    send_raw(s, &network(s.own(), s.node(), protocol, &s.udp(s.own(), 40000, s.at())))
}
