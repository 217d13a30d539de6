//! What one attack needs to know, and the signs by which it is recognised.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::attacks;
use crate::address::{Dual, NODE, NODE_MAC, pod, pod_mac};
use crate::frame::{self, Frame, Packet, protocol};
use crate::lab::{GATEWAY, LEDGER};
use crate::wiring::Wiring;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// `4` or `6`.
    pub const fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }

    /// The address of this family.
    pub const fn of(self, dual: Dual) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(dual.v4),
            Self::V6 => IpAddr::V6(dual.v6),
        }
    }
}

/// Attacks whose signs do not overlap.
pub const MOST: usize = 255;
/// Ports of the attacks, two for each.
pub const PORTS: std::ops::Range<u16> = 20_000..20_512;
const TEXT: &[u8] = b"egress-adversary-";
const MAC: [u8; 4] = [0x02, 0xad, 0x5e, 0x01];
const TARGET4: [u8; 2] = [198, 18];
const GROUP4: [u8; 2] = [239, 98];
const TARGET6: [u8; 14] = [0x20, 1, 0xd, 0xb8, 0xb, 0xad, 0, 0, 0, 0, 0, 0, 0, 0];
const GROUP6: [u8; 14] = [0xff, 0x0e, 0, 0, 0, 0, 0, 0, 0, 0, 0xb, 0xad, 0, 0];

/// One attack of one family in one wiring: all it knows.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// The family it is made over.
    pub family: Family,
    /// How its pod is joined to the node.
    pub wiring: Wiring,
    /// Last part of its pod's addresses.
    pub host: u8,
    /// Place of the attack in the table.
    pub index: u8,
}

impl Scene {
    /// For the attack with this name.
    pub fn of(id: &str, family: Family, wiring: Wiring, host: u8) -> Option<Self> {
        let index = attacks().position(|attack| attack.id == id)?;
        Some(Self { family, wiring, host, index: u8::try_from(index).ok()? })
    }

    /// Number of attack and family together.
    pub fn number(&self) -> u16 {
        u16::from(self.index) * 2 + u16::from(self.family == Family::V6)
    }

    /// The pod's own address.
    pub fn own(&self) -> IpAddr {
        self.family.of(pod(self.host))
    }

    /// The pod's own MAC address.
    pub fn mac(&self) -> [u8; 6] {
        pod_mac(self.host)
    }

    /// The forbidden address, outside the cluster, that nobody else uses.
    pub fn target(&self) -> IpAddr {
        self.marked(TARGET4, TARGET6)
    }

    /// A multicast group that nobody else uses.
    pub fn group(&self) -> IpAddr {
        self.marked(GROUP4, GROUP6)
    }

    fn marked(&self, v4: [u8; 2], v6: [u8; 14]) -> IpAddr {
        let (index, check) = (self.index, self.index ^ 0xa5);
        match self.family {
            Family::V4 => Ipv4Addr::new(v4[0], v4[1], index, check).into(),
            Family::V6 => {
                let mut octets = [0; 16];
                octets[..14].copy_from_slice(&v6);
                octets[14..].copy_from_slice(&[index, check]);
                Ipv6Addr::from(octets).into()
            }
        }
    }

    /// A port that nobody else uses.
    pub fn port(&self) -> u16 {
        PORTS.start + self.number()
    }

    /// Where the forbidden address is dialled.
    pub fn at(&self) -> SocketAddr {
        SocketAddr::new(self.target(), self.port())
    }

    /// What the attack carries.
    pub fn text(&self) -> &'static [u8] {
        TEXTS.get(usize::from(self.number())).map_or(&[], |text| text)
    }

    /// A MAC address that nobody else uses.
    pub fn false_mac(&self) -> [u8; 6] {
        let [a, b, c, d] = MAC;
        let [high, low] = self.number().to_be_bytes();
        [a, b, c, d, high, low]
    }

    /// The gateway's endpoint: allowed, at this port only.
    pub fn gateway(&self) -> SocketAddr {
        SocketAddr::new(self.family.of(pod(GATEWAY.host)), 8443)
    }

    /// A pod that nobody governs: allowed.
    pub fn peer(&self) -> IpAddr {
        self.family.of(pod(LEDGER.host))
    }

    /// The node's address on its uplink.
    pub fn node(&self) -> IpAddr {
        self.family.of(NODE)
    }

    /// The MAC address behind which a frame for an address of the cluster's pods goes.
    pub fn peer_mac(&self) -> [u8; 6] {
        match self.wiring {
            Wiring::Routed => NODE_MAC,
            Wiring::Bridge => pod_mac(LEDGER.host),
        }
    }

    /// A UDP packet with these ends and this attack's text.
    pub fn udp(&self, src: IpAddr, src_port: u16, dst: SocketAddr) -> Vec<u8> {
        self.packet(src, src_port, dst, protocol::UDP, 0).ip()
    }

    /// A TCP segment with these ends.
    pub fn tcp(&self, src: IpAddr, src_port: u16, dst: SocketAddr, flags: u8) -> Vec<u8> {
        let packet = self.packet(src, src_port, dst, protocol::TCP, flags);
        Packet { payload: b"", ..packet }.ip()
    }

    fn packet(
        &self,
        src: IpAddr,
        src_port: u16,
        dst: SocketAddr,
        protocol: u8,
        flags: u8,
    ) -> Packet<'static> {
        let (dst, dst_port, payload) = (dst.ip(), dst.port(), self.text());
        Packet { src, dst, protocol, src_port, dst_port, flags, payload }
    }

    /// A frame to the node with this packet.
    pub fn framed(&self, packet: &[u8]) -> Vec<u8> {
        frame::ethernet(self.mac(), NODE_MAC, frame::ethertype(self.own()), packet)
    }

    /// Stops until the suite says that enforcement has begun.
    ///
    /// # Errors
    /// When nobody says so.
    pub fn wait_for_start(&self) -> io::Result<()> {
        use std::io::{Read, Write};
        writeln!(io::stdout(), "held")?;
        io::stdout().flush()?;
        io::stdin().read_exact(&mut [0])
    }
}

/// [`Scene::text`] of every number.
static TEXTS: [[u8; 25]; MOST * 2] = texts();

const fn texts() -> [[u8; 25]; MOST * 2] {
    let mut texts = [*b"egress-adversary-00......"; MOST * 2];
    let mut number = 0;
    while number < texts.len() {
        texts[number][17] = (number >> 8) as u8;
        texts[number][18] = number as u8;
        number += 1;
    }
    texts
}

/// The numbers of all attacks that show in a frame: by an address anywhere in it, a port, a text
/// or a MAC address.
pub fn signs(bytes: &[u8]) -> BTreeSet<u16> {
    let mut found = BTreeSet::new();
    if let Some(frame) = Frame::parse(bytes) {
        for port in [frame.src_port, frame.dst_port] {
            found.extend(PORTS.contains(&port).then(|| port - PORTS.start));
        }
    }
    let indexed = |index: u8, check: u8| (index ^ 0xa5 == check).then(|| u16::from(index) * 2);
    for at in 0..bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        match rest {
            [a, b, index, check, ..] if [*a, *b] == TARGET4 || [*a, *b] == GROUP4 => {
                found.extend(indexed(*index, *check));
            }
            [a, b, c, d, high, low, ..] if [*a, *b, *c, *d] == MAC => {
                found.insert(u16::from_be_bytes([*high, *low]));
            }
            _ => {}
        }
        if let Some([index, check]) = after(rest, &TARGET6).or_else(|| after(rest, &GROUP6)) {
            found.extend(indexed(index, check).map(|number| number + 1));
        }
        if let Some(number) = after(rest, TEXT) {
            found.insert(u16::from_be_bytes(number));
        }
    }
    found
}

fn after(bytes: &[u8], prefix: &[u8]) -> Option<[u8; 2]> {
    bytes.strip_prefix(prefix)?.get(..2)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attack_is_known_by_each_of_its_signs_and_nobody_elses() {
        for family in Family::ALL {
            let scene = Scene { family, wiring: Wiring::Bridge, host: 2, index: 77 };
            let own = BTreeSet::from([scene.number()]);
            let elsewhere: SocketAddr = match family {
                Family::V4 => "203.0.113.9:443".parse().unwrap(),
                Family::V6 => "[2001:db8::9]:443".parse().unwrap(),
            };
            let port = SocketAddr::new(elsewhere.ip(), scene.port());
            let framed = |packet: Vec<u8>| signs(&scene.framed(&packet));
            assert_eq!(framed(scene.tcp(scene.own(), 40000, scene.at(), 2)), own);
            assert_eq!(framed(scene.tcp(scene.own(), 40000, port, 2)), own);
            assert_eq!(framed(scene.tcp(scene.own(), scene.port(), elsewhere, 2)), own);
            assert_eq!(framed(scene.udp(scene.own(), 40000, elsewhere)), own);
            assert_eq!(signs(&[&[0; 14][..], &frame::octets(scene.group())].concat()), own);
            assert_eq!(signs(&frame::ethernet(scene.false_mac(), [1; 6], 0x88b5, b"")), own);
            assert_eq!(framed(scene.tcp(scene.own(), 40000, elsewhere, 2)), BTreeSet::new());
        }
    }
}
