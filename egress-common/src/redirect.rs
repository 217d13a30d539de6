//! Redirection: a denied connection that goes to the gateway instead.
//!
//! Where a policy names ports for it, a TCP `connect` to the outside of a pod the mesh does not
//! capture is not refused but rewritten to an endpoint of the policy's gateways. [`redirect`] is
//! the one rule: the connect hooks do what it says, `explain` and the tests ask it too. It is asked
//! after [`decide`], about a denial, and the new destination is judged by [`decide`] again: what
//! is rewritten is never reached by another right than a gateway's.

use crate::decide::{Lookup, Ruling, decide};
use crate::key::{Addr, GatewayId, PolicyId};
use crate::packet::{Hook, Packet, protocol};
use crate::reason::{Mode, Reason};
use crate::state::Capture;
use crate::subject::Subject;

/// Key of the redirection table: one (policy, port dialled, family, place). The endpoints of a
/// port stand at places 0 and up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RedirectKey {
    policy: PolicyId,
    place: u32,
    /// Network order.
    port: [u8; 2],
    family: u8,
    pad: u8,
}

impl RedirectKey {
    const V4: u8 = 4;
    const V6: u8 = 6;

    /// `port` in host order: the one the application dials.
    #[inline(always)]
    pub const fn new(policy: PolicyId, port: u16, is_v4: bool, place: u32) -> Self {
        let family = if is_v4 { Self::V4 } else { Self::V6 };
        Self { policy, place, port: port.to_be_bytes(), family, pad: 0 }
    }

    /// The policy the entry belongs to.
    pub const fn policy(&self) -> PolicyId {
        self.policy
    }

    /// The port dialled, host order.
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }

    /// Whether it is for IPv4 destinations.
    pub const fn is_v4(&self) -> bool {
        self.family == Self::V4
    }

    /// Among the endpoints of its port, from 0.
    pub const fn place(&self) -> u32 {
        self.place
    }
}

/// Value of the redirection table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RedirectTo {
    /// The endpoint's address, of the key's family; unspecified where there is none.
    pub addr: Addr,
    /// Its gateway.
    pub gateway: GatewayId,
    /// Network order.
    port: [u8; 2],
    /// How many endpoints the port has; zero where it is to be redirected and there is none.
    pub places: u16,
}

impl RedirectTo {
    /// What a port gets that is to be redirected and has no endpoint of this family.
    pub const NOWHERE: Self = Self::new(Addr::UNSPECIFIED, 0, GatewayId::NONE, 0);

    /// `port` in host order; `places` endpoints share the key's port.
    pub const fn new(addr: Addr, port: u16, gateway: GatewayId, places: u16) -> Self {
        Self { addr, gateway, port: port.to_be_bytes(), places }
    }

    /// The endpoint's port, host order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

/// What a redirected socket's application asked for. Value of the table of originals, by socket
/// cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Original {
    /// The address the application dialled.
    pub asked: Addr,
    /// The endpoint it got.
    pub given: Addr,
    /// Network order.
    asked_port: [u8; 2],
    /// Network order.
    given_port: [u8; 2],
    /// Zero.
    pub pad: u32,
}

impl Original {
    /// Ports in host order.
    #[inline(always)]
    pub const fn new(asked: (Addr, u16), given: (Addr, u16)) -> Self {
        Self {
            asked: asked.0,
            given: given.0,
            asked_port: asked.1.to_be_bytes(),
            given_port: given.1.to_be_bytes(),
            pad: 0,
        }
    }

    /// What to tell an application that asks for its peer; `None` where the socket has meanwhile
    /// been connected to something else, and this entry is about its past.
    #[inline(always)]
    pub fn of_peer(&self, peer: Addr, port: u16) -> Option<(Addr, u16)> {
        let same = self.given == peer && u16::from_be_bytes(self.given_port) == port;
        if same { Some((self.asked, u16::from_be_bytes(self.asked_port))) } else { None }
    }
}

const _: () = {
    assert!(size_of::<RedirectKey>() == 12);
    assert!(size_of::<RedirectTo>() == 24);
    assert!(size_of::<Original>() == 40);
};

/// The tables that redirection reads beside those of a decision.
pub trait Endpoints: Lookup {
    /// The entry for exactly this policy, port, family and place.
    fn endpoint(&self, key: &RedirectKey) -> Option<RedirectTo>;
}

/// What becomes of a denied connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirected {
    /// What is said of it: `redirected`, or why it is denied after all.
    pub ruling: Ruling,
    /// Where it goes, port in host order; `None` where it is denied.
    pub to: Option<(Addr, u16)>,
}

/// Line 17 of the verdict order: a TCP `connect` that line 13 denies as `not_gateway`, of a pod
/// the mesh does not capture, in mode enforce, to a port its policy redirects. To a healthy
/// endpoint of the same family → allow `redirected`; where there is none → deny
/// `redirect_unavailable`; where the connection to the endpoint is denied (its rate, an expired
/// lease) → that denial. `None` where redirection has nothing to say and the ruling stands.
///
/// In mode audit nothing is rewritten: the connection is what it is, a bypass, and is reported.
///
/// `seed` spreads connections over the endpoints: the same seed gets the same endpoint for as
/// long as their number stays.
#[inline(always)]
pub fn redirect<L: Endpoints>(
    who: &Subject,
    packet: &Packet,
    ruling: Ruling,
    seed: u64,
    tables: &L,
) -> Option<Redirected> {
    let asks = who.redirects
        && matches!(who.mode, Mode::Enforce)
        && matches!(who.capture, Capture::None)
        && matches!(packet.hook, Hook::Connect4 | Hook::Connect6)
        && packet.protocol == protocol::TCP
        && matches!(ruling.reason, Reason::NotGateway);
    if !asks {
        return None;
    }
    let key = |place| RedirectKey::new(who.policy, packet.dst_port, packet.dst.is_v4(), place);
    let first = tables.endpoint(&key(0))?;
    if first.places == 0 {
        return Some(Redirected::denied(Reason::RedirectUnavailable));
    }
    let place = spread(seed) % u32::from(first.places);
    // While the agent rewrites the table a later place may be missing; the first is there.
    let chosen = if place == 0 { first } else { tables.endpoint(&key(place)).unwrap_or(first) };
    let (addr, port) = (chosen.addr, chosen.port());
    let endpoint = Packet::call(packet.hook, protocol::TCP, addr, port, packet.src_port);
    let again = decide(who, &endpoint, tables);
    if matches!(again.reason, Reason::Gateway) {
        let ruling = Ruling { reason: Reason::Redirected, line: LINE, gateway: again.gateway };
        return Some(Redirected { ruling, to: Some((addr, port)) });
    }
    if again.reason.denies() {
        return Some(Redirected { ruling: again, to: None });
    }
    // Another right than a gateway's would be another way out.
    Some(Redirected::denied(Reason::RedirectUnavailable))
}

/// Its number in the verdict order.
pub const LINE: u8 = 17;

impl Redirected {
    #[inline(always)]
    const fn denied(reason: Reason) -> Self {
        let ruling = Ruling { reason, line: LINE, gateway: GatewayId::NONE };
        Self { ruling, to: None }
    }
}

/// Neighbouring seeds (sockets' cookies count up) far apart: the upper half of a multiplication by
/// an odd number near 2^64 divided by the golden ratio.
#[inline(always)]
const fn spread(seed: u64) -> u32 {
    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

#[cfg(test)]
mod tests;
