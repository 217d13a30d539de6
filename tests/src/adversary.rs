//! The adversary: every way out of a pod that we know, as a table of attacks.
//!
//! Each attack carries signs of its own (an address, a port, a text, a MAC), so that many run in
//! one go and one capture judges them all. The probe runs them inside the pod ([`Scene`]); the
//! suite proves that each arrives where nothing enforces, and that none does under enforcement
//! ([`run`]). `docs/threat-model.md` shows the same table, and a test compares the two.

pub mod document;
mod held;
mod inside;
pub mod legit;
mod link;
mod raw;
mod reach;
pub mod run;
pub mod scene;
mod sockets;
pub mod stage;
pub mod talk;
mod tools;
mod uring;
mod xsk;

use std::io;

pub use scene::{Family, Scene};

use crate::wiring::Wiring;

/// What the attacker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// A process without capabilities.
    Plain,
    /// `CAP_NET_RAW`, as container runtimes give by default.
    Raw,
    /// `CAP_NET_RAW` and `CAP_NET_ADMIN` in the pod's own network namespace.
    Admin,
}

impl Tier {
    /// For the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "none",
            Self::Raw => "NET_RAW",
            Self::Admin => "NET_ADMIN",
        }
    }
}

/// Who attacks: a pod, a user and a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Actor {
    /// The plain pod, a user without capabilities.
    Nobody,
    /// The plain pod, with the user and group of a mesh proxy it does not have.
    FalseProxy,
    /// The sidecar pod's application, at a port the mesh does not capture.
    App,
    /// The sidecar pod, with the proxy's user.
    ProxyUser,
    /// The sidecar pod, with the proxy's group.
    ProxyGroup,
    /// The plain pod, with `CAP_NET_RAW`.
    Raw,
    /// The plain pod, with `CAP_NET_ADMIN`.
    Admin,
    /// A process of another cgroup inside the plain pod's network.
    Stranger,
}

impl Actor {
    /// All of them, in the order they attack.
    pub const ALL: [Self; 8] = [
        Self::Nobody,
        Self::FalseProxy,
        Self::App,
        Self::ProxyUser,
        Self::ProxyGroup,
        Self::Raw,
        Self::Admin,
        Self::Stranger,
    ];

    /// What it holds.
    pub const fn tier(self) -> Tier {
        match self {
            Self::Nobody
            | Self::FalseProxy
            | Self::App
            | Self::ProxyUser
            | Self::ProxyGroup
            | Self::Stranger => Tier::Plain,
            Self::Raw => Tier::Raw,
            Self::Admin => Tier::Admin,
        }
    }
}

/// Where an attack would arrive, and is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Judge {
    /// The far end of the node's uplink.
    Outside,
    /// The interface of a pod that nobody governs.
    Peer,
    /// The gateway's interface.
    Gateway,
    /// The node's own sockets.
    Node,
}

/// What somebody else does first.
#[derive(Clone, Copy, Debug)]
pub enum Accomplice {
    /// The pod that nobody governs, with `CAP_NET_RAW`.
    Peer(fn(&Scene) -> io::Result<()>),
    /// The node itself, which a pod must answer.
    Node(fn(&Scene) -> io::Result<()>),
}

/// When an attack is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At any time.
    Always,
    /// It is prepared before the agent starts and goes on afterwards.
    AcrossStart,
    /// While the node translates Service addresses.
    Translated,
    /// While the gateway's endpoint is being drained.
    Draining,
}

/// One attack.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    /// Its name.
    pub id: &'static str,
    /// The class it belongs to.
    pub row: Row,
    /// Who makes it.
    pub actor: Actor,
    /// Where it is judged.
    pub judge: Judge,
    /// When it is made.
    pub when: When,
    /// Where it cannot be made at all, and why.
    pub not_on: Option<(Wiring, &'static str)>,
    /// Over which family it cannot be made at all, and why.
    pub not_over: Option<(Family, &'static str)>,
    /// What happens elsewhere before it.
    pub accomplice: Option<Accomplice>,
    /// The attack itself, in the probe.
    pub run: fn(&Scene) -> io::Result<()>,
}

impl Attack {
    const fn new(
        id: &'static str,
        row: Row,
        actor: Actor,
        run: fn(&Scene) -> io::Result<()>,
    ) -> Self {
        let (judge, when) = (Judge::Outside, When::Always);
        let (not_on, not_over, accomplice) = (None, None, None);
        Self { id, row, actor, judge, when, not_on, not_over, accomplice, run }
    }

    const fn at(mut self, judge: Judge) -> Self {
        self.judge = judge;
        self
    }

    const fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }

    const fn after(mut self, accomplice: Accomplice) -> Self {
        self.accomplice = Some(accomplice);
        self
    }

    const fn not_on(mut self, wiring: Wiring, why: &'static str) -> Self {
        self.not_on = Some((wiring, why));
        self
    }

    const fn not_over(mut self, family: Family, why: &'static str) -> Self {
        self.not_over = Some((family, why));
        self
    }

    /// Why it cannot be made there, if so.
    pub fn impossible(&self, family: Family, wiring: Wiring) -> Option<&'static str> {
        let over = self.not_over.filter(|(not, _)| *not == family).map(|(_, why)| why);
        let on = self.not_on.filter(|(not, _)| *not == wiring).map(|(_, why)| why);
        over.or(on)
    }
}

macro_rules! rows {
    ($($row:ident: $title:literal, $socket:literal, $wall:literal;)*) => {
        /// A class of attacks, with the hooks that see it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Row { $(#[doc = $title] $row,)* }

        impl Row {
            /// All of them, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$row,)*];

            /// What it is, for people.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$row => $title,)* }
            }

            /// What the socket hooks see of it.
            pub const fn socket_hooks(self) -> &'static str {
                match self { $(Self::$row => $socket,)* }
            }

            /// What the wall sees of it.
            pub const fn wall(self) -> &'static str {
                match self { $(Self::$row => $wall,)* }
            }
        }
    };
}

rows! {
    Tcp: "TCP, however it is dialled", "yes", "yes";
    Mapped: "IPv4 through IPv6 sockets", "yes", "yes";
    Mptcp: "MPTCP and its subflows", "yes", "yes";
    SourceRouted: "Source routes and routing headers by socket option", "the allowed address", "yes";
    Udp: "UDP and QUIC, however they are sent", "yes", "yes";
    UdpLite: "UDP-Lite", "no", "yes";
    Ping: "Echo requests from unprivileged sockets", "connect only", "yes";
    Resolvers: "Foreign resolvers: DNS, over TLS, over HTTPS, over QUIC", "yes", "yes";
    Named: "Metadata service and mesh addresses on the wire", "yes", "yes";
    Multicast: "Multicast, broadcast, link-local", "yes", "yes";
    Reports: "Group membership reports", "no", "no";
    ProxyIdentity: "The proxy's user or group; a port excluded from capture", "yes, certain ones", "yes";
    RawIp: "Raw sockets: any protocol, flags, forged sources", "no", "yes";
    Options: "IPv4 options", "no", "yes";
    Extensions: "IPv6 extension headers", "no", "yes";
    Fragments: "Fragments", "no", "yes";
    ForeignAddress: "Addresses the pod was not given", "yes", "yes";
    Reflected: "The pod's own kernel made to answer a forged packet", "no", "no";
    ForgedInbound: "A handshake forged from inside", "no", "the SYN-ACK";
    Poisoned: "Answers on flows nobody opened, or somebody else did", "no", "no";
    PacketSocket: "Packet sockets and AF_XDP", "no", "no";
    Tags: "VLAN tags, alone and stacked", "no", "no";
    Ethertypes: "Frames that are not IP, or not what they say", "no", "no";
    NeighbourForgery: "Forged ARP, neighbour discovery, router advertisements, redirects, DHCP", "no", "no";
    Repair: "TCP repair mode", "yes", "yes";
    Forwarded: "Packets the pod forwards: TUN, a namespace of its own", "no", "no";
    Tunnelled: "Tunnels of the pod: VXLAN, segment routing, macvlan", "the inner address", "in part";
    Rewritten: "Addresses rewritten inside the pod", "the allowed address", "in part";
    BeforeStart: "Sockets and connections older than enforcement", "connect only", "yes";
    ForeignSocket: "A socket of another cgroup, to an allowed address", "no", "no";
    AllowedAddress: "The gateway's address with another port or protocol; a draining one", "yes", "yes";
    Nodes: "Nodes: their ports, under any of their addresses", "yes", "yes";
    NodeTunnels: "Packets forged for a node's tunnels", "yes", "yes";
    Services: "Services, node ports and external addresses that end outside", "the Service's address", "the Service's address";
}

/// Every attack, in the order it is made.
pub fn attacks() -> impl Iterator<Item = &'static Attack> {
    let parts: [&'static [Attack]; 6] = [
        sockets::ATTACKS,
        reach::ATTACKS,
        raw::ATTACKS,
        link::ATTACKS,
        inside::ATTACKS,
        held::ATTACKS,
    ];
    parts.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_attack_has_a_name_of_its_own_and_every_row_an_attack() {
        let mut ids = BTreeSet::new();
        for attack in attacks() {
            assert!(ids.insert(attack.id), "{} is there twice", attack.id);
        }
        assert!(ids.len() < scene::MOST, "the signs of {} attacks would overlap", ids.len());
        for row in Row::ALL {
            assert!(attacks().any(|attack| attack.row == *row), "{row:?} has no attack");
        }
    }
}
