//! The one function that decides.
//!
//! Kernel programs, `explain`, `simulate` and the tests call [`decide`] and nothing else. It is
//! pure: facts ([`Packet`]), identity ([`Subject`]) and tables ([`Lookup`]) go in, a [`Ruling`]
//! comes out. It does not know the mode; what a denial becomes is said in one other place,
//! [`Subject::verdict`].

mod sender;
mod unlearned;

use crate::key::{
    AddressKey, ExactKey, ExceptionKey, GatewayId, PodId, PolicyId, RangeKey, ReplyKey,
};
use crate::packet::{Hook, Packet, Shape, protocol};
use crate::reason::Reason;
use crate::state::{Exact, Exception, Range, Target, address, range};
use crate::subject::Subject;
use sender::{arp_sender_is, foreign_source, foreign_source_of_exempt, neighbour};
use unlearned::unlearned;

/// The tables a decision reads. The kernel's are maps; everybody else brings what they have.
pub trait Lookup {
    /// The entry for exactly this policy, address, protocol and port.
    fn exact(&self, key: &ExactKey) -> Option<Exact>;
    /// Bits of [`address`] for the whole address; zero where nothing is known.
    fn address(&self, key: &AddressKey) -> u32;
    /// The longest prefix that covers the address; the default where none does.
    fn range(&self, key: &RangeKey) -> Range;
    /// The exception entry for exactly this set, protocol and port.
    fn exception(&self, key: &ExceptionKey) -> Option<Exception>;
    /// Whether a remote opened this flow toward the pod.
    fn reply(&self, key: &ReplyKey) -> bool;
    /// Whether one more connection would exceed the policy's rate toward the gateway; where it
    /// would not, it may be taken into account. Asked only for what opens a connection.
    fn over_rate(&self, who: &Subject, gateway: GatewayId) -> bool;
    /// Whether the packet's socket belongs to neither the pod nor its mesh proxy. Asked only at
    /// the boundary, for packets whose socket can be told ([`Packet::has_owner`]).
    fn foreign_socket(&self, who: &Subject) -> bool;
    /// Boot clock, nanoseconds.
    fn now(&self) -> u64;
    /// The same ruling. The kernel's verifier knows where each comes from, and would walk what follows
    /// once for each of them: there the tables make it forget.
    fn settled(&self, ruling: Ruling) -> Ruling {
        ruling
    }
}

/// What the rules say, before the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Why. [`Reason::denies`] says which way.
    pub reason: Reason,
    /// The numbered line of the verdict order that matched.
    pub line: u8,
    /// The gateway the reason is about, or [`GatewayId::NONE`].
    pub gateway: GatewayId,
}

impl Ruling {
    #[inline(always)]
    const fn new(line: u8, reason: Reason) -> Self {
        Self { reason, line, gateway: GatewayId::NONE }
    }

    #[inline(always)]
    const fn about(line: u8, reason: Reason, gateway: GatewayId) -> Self {
        Self { reason, line, gateway }
    }
}

/// UDP ports that a CNI or a mesh decapsulates on a node.
const TUNNEL_PORTS: [u16; 3] = [4789, 8472, 6081];
const WIREGUARD: u16 = 51820;
const DNS: u16 = 53;
const DNS_OVER_TLS: u16 = 853;

/// Judges one packet or socket call. The first matching line wins:
///
///  0. A pod the agent has not learned is judged by lines 2 to 7 as its interface shows itself, under
///     the tables of no policy, which know the cluster's ranges, its resolvers and whom any pod may
///     answer. Without an address, asking the link for one (DHCP) → allow `local`. Of what lines 8
///     to 13 are left with, a named resolver → allow `resolver`; else deny `unknown_pod`.
///  1. Not governed (no policy, mode off, exempt) → allow `exempt`; on its veth the source guard
///     of line 4 still applies.
///  2. A VLAN tag, or an ethertype that is not IPv4, IPv6 or ARP → deny `ethertype`. ARP of
///     exactly the right shape and sender → allow `local`, else deny `malformed`.
///  3. Malformed, truncated, options, extension headers, a mapped address on an IPv6 wire → deny
///     `malformed`. Fragments → deny `fragment` unless the destination is a plain in-cluster one.
///  4. Source MAC or address not the pod's (for neighbour discovery and listener reports its
///     link-local address too, or none yet), or another's address advertised → deny
///     `spoofed_source`.
///  5. Loopback (never on the wire, where a node may route it), own addresses (for a pod on the
///     node's network: the node's), exact neighbour discovery on the link → allow `local`, but for
///     tunnels of a pod on the node's network, which line 6 denies; multicast and broadcast, and
///     link-local that neither the reply table nor an exact or metadata entry names → deny
///     `protocol`.
///  6. Metadata service; mesh VIPs; tunnel ports and protocols toward nodes, and toward whatever in
///     the cluster no exact entry names, because any address there may be another node's bridge, for
///     a pod on the node's network also toward its own; Service ports known to end outside → deny
///     `metadata`, `mesh_vip`, `tunnel`, `hidden_external`. Not even an answer goes there, but to
///     WireGuard's port.
///  7. Answer on a flow opened from outside, to a remote that may still be answered → allow `reply`:
///     never what opens a connection.
///  8. Named resolver, port 53 → allow `resolver`. Port 53 or 853 elsewhere → deny
///     `foreign_resolver`.
///  9. Gateway endpoint, exact → allow `gateway`, over the rate → deny `rate_limited`; one that
///     is draining → deny `gateway_draining` to what opens a connection; the address with
///     another port → deny `gateway_port`; another policy's gateway → deny `gateway_forbidden`.
/// 10. Named infrastructure, exact → allow `infrastructure`.
/// 11. A node address listed exactly → allow `cluster`, else deny `node`; cluster ranges → allow
///     `cluster`.
/// 12. An address that DNS gave to a limited gateway's pods, exact, and for what is open one that was
///     such → allow `resolved`. Exception in force → allow `exception`.
/// 13. Protocols other than TCP and UDP → deny `protocol`; everything else → deny `not_gateway`, to a
///     limited gateway's pod `unresolved`.
/// 14. Whatever lines 8 to 12 allow, when the lease has expired and the policy denies new
///     connections then: what opens one, and datagrams → deny `policy_stale`.
/// 15. Whatever lines 8 to 12 allow at the boundary, when its socket is known to be neither the
///     pod's nor its mesh proxy's: a SYN, data, a datagram → deny `foreign_socket`.
/// 16. At the uplink, what lines 8 to 11 allowed is judged once more by the address that Service
///     translation left: what any policy of the node names exactly, cluster ranges and the
///     node's own tunnels → as there; else deny `metadata`, `node`, `fragment`, `malformed`,
///     `hidden_external`.
/// 17. What line 13 denies as `not_gateway` may be rewritten to a gateway instead: said in
///     [`redirect`](crate::redirect::redirect), which asks this function about the endpoint.
#[inline(always)]
pub fn decide<L: Lookup>(who: &Subject, packet: &Packet, lookup: &L) -> Ruling {
    // 1
    let ungoverned = who.policy == PolicyId::NONE || matches!(who.mode, crate::Mode::Off);
    if ungoverned && !who.unknown {
        return if foreign_source_of_exempt(who, packet) {
            Ruling::new(1, Reason::SpoofedSource)
        } else {
            Ruling::new(1, Reason::Exempt)
        };
    }
    // 16
    if matches!(packet.hook, Hook::UplinkEgress) {
        return translated(who.policy, packet, lookup);
    }
    let ruling = lookup.settled(governed(who, packet, lookup));
    // 0
    if who.unknown {
        return unlearned(who, packet, ruling);
    }
    // 14
    let named = ruling.line >= 8 && !ruling.reason.denies();
    if who.deny_new && named && (packet.opens() || packet.protocol != protocol::TCP) {
        return Ruling::about(14, Reason::PolicyStale, ruling.gateway);
    }
    // 15
    let judged_by_owner = named && matches!(packet.hook, Hook::PodEgress) && packet.has_owner();
    if judged_by_owner && lookup.foreign_socket(who) {
        return Ruling::about(15, Reason::ForeignSocket, ruling.gateway);
    }
    ruling
}

/// Line 7. `nets` is asked again each time: a flow outlives what allowed to remember it.
#[inline(always)]
fn answers<L: Lookup>(pod: PodId, nets: &Range, packet: &Packet, lookup: &L) -> bool {
    nets.has(range::INBOUND)
        && whole(packet)
        && packet.may_reply()
        && lookup.reply(&packet.reply_key(pod))
}

/// Lines 0 and 2 to 13.
#[inline(always)]
fn governed<L: Lookup>(who: &Subject, packet: &Packet, lookup: &L) -> Ruling {
    // Inside the pod's own namespace a proxy's answers carry any source: they are judged before
    // the sender is.
    if packet.on_loopback {
        return local(who, packet);
    }
    // 2
    match packet.shape {
        Shape::Tagged | Shape::Ethertype => return Ruling::new(2, Reason::Ethertype),
        Shape::Arp => {
            let exact = packet.src_mac == who.mac && arp_sender_is(who, packet);
            let reason = if exact { Reason::Local } else { Reason::Malformed };
            return Ruling::new(2, reason);
        }
        Shape::Ip | Shape::Fragment | Shape::Neighbour | Shape::Listener | Shape::Malformed => {}
    }
    // 3
    let mapped_on_wire = packet.is_v6 && (packet.dst.is_v4() || packet.src.is_v4());
    if matches!(packet.shape, Shape::Malformed) || mapped_on_wire {
        return Ruling::new(3, Reason::Malformed);
    }
    let nets = lookup.range(&RangeKey { policy: who.policy, addr: packet.dst });
    let known = lookup.address(&AddressKey { policy: who.policy, addr: packet.dst });
    if matches!(packet.shape, Shape::Fragment) {
        let plain = nets.has(range::CLUSTER) && !nets.has(range::NODE) && known == 0;
        if !plain {
            return Ruling::new(3, Reason::Fragment);
        }
    }
    // 4
    if foreign_source(who, packet) {
        return Ruling::new(4, Reason::SpoofedSource);
    }
    // 5
    let own = who.owns(&packet.dst) || (on_host(who, packet) && nets.has(range::THIS_NODE));
    if stays_in_pod(packet) || own {
        return local(who, packet);
    }
    if neighbour(packet) {
        // A router would pass on what is addressed beyond the link.
        let on_link = packet.dst.is_link_scoped_multicast()
            || packet.dst.is_link_local()
            || nets.has(range::CLUSTER)
            || nets.has(range::NODE);
        return Ruling::new(5, if on_link { Reason::Local } else { Reason::Protocol });
    }
    if packet.dst.is_multicast_or_broadcast() || packet.dst.is_unspecified() {
        return Ruling::new(5, Reason::Protocol);
    }
    let exact = if whole(packet) {
        let key = ExactKey::new(who.policy, packet.dst, packet.protocol, packet.dst_port);
        lookup.exact(&key)
    } else {
        None
    };
    // 6
    if nets.has(range::METADATA) {
        return Ruling::new(6, Reason::Metadata);
    }
    if nets.has(range::MESH_VIP) {
        return Ruling::new(6, Reason::MeshVip);
    }
    let unnamed = nets.has(range::CLUSTER) && exact.is_none();
    let tunnel_end = nets.has(range::NODE) || unnamed;
    if tunnel_end && unwraps(packet) {
        return Ruling::new(6, Reason::Tunnel);
    }
    // Compared as a number: the verifier would walk what follows once for each variant.
    let target = match &exact {
        Some(entry) => entry.target,
        None => 0,
    };
    if target == Target::HiddenExternal.number() {
        return Ruling::new(6, Reason::HiddenExternal);
    }
    // 7, before the rest of 5: a node's probes may come from a link-local address.
    if answers(who.pod, &nets, packet, lookup) {
        return Ruling::new(7, Reason::Reply);
    }
    // 6 again
    if tunnel_end && is_wireguard(packet) {
        return Ruling::new(6, Reason::Tunnel);
    }
    if packet.dst.is_link_local() && exact.is_none() {
        return Ruling::new(5, Reason::Protocol);
    }
    // 8
    let ported = packet.protocol == protocol::TCP || packet.protocol == protocol::UDP;
    if ported && packet.dst_port == DNS && target == Target::Resolver.number() {
        return Ruling::new(8, Reason::Resolver);
    }
    if ported && (packet.dst_port == DNS || packet.dst_port == DNS_OVER_TLS) {
        return Ruling::new(8, Reason::ForeignResolver);
    }
    // 9
    if let Some(entry) = &exact {
        if target == Target::Gateway.number() {
            let over = packet.opens() && lookup.over_rate(who, entry.gateway);
            let reason = if over { Reason::RateLimited } else { Reason::Gateway };
            return Ruling::about(9, reason, entry.gateway);
        }
        if target == Target::Draining.number() {
            let reason = if packet.opens() { Reason::GatewayDraining } else { Reason::Gateway };
            return Ruling::about(9, reason, entry.gateway);
        }
    }
    if known & address::GATEWAY != 0 {
        return Ruling::new(9, Reason::GatewayPort);
    }
    if known & address::FOREIGN_GATEWAY != 0 {
        return Ruling::new(9, Reason::GatewayForbidden);
    }
    // 10
    if target == Target::Infrastructure.number() {
        return Ruling::new(10, Reason::Infrastructure);
    }
    // 11
    if target == Target::Node.number() {
        return Ruling::new(11, Reason::Cluster);
    }
    if nets.has(range::NODE) {
        return Ruling::new(11, Reason::Node);
    }
    if nets.has(range::CLUSTER) {
        return Ruling::new(11, Reason::Cluster);
    }
    // 12
    let resolved = target == Target::Resolved.number();
    if resolved || (target == Target::Earlier.number() && !packet.opens()) {
        return Ruling::new(12, Reason::Resolved);
    }
    if nets.exceptions != 0 && excepted(packet, nets.exceptions, lookup) {
        return Ruling::new(12, Reason::Exception);
    }
    // 13
    let reason = if ported { who.outside } else { Reason::Protocol };
    Ruling::new(13, reason)
}

/// Line 16.
#[inline(always)]
fn translated<L: Lookup>(policy: PolicyId, packet: &Packet, lookup: &L) -> Ruling {
    let ruled = |reason| Ruling::new(16, reason);
    if !matches!(packet.shape, Shape::Ip | Shape::Fragment) {
        return ruled(Reason::Malformed);
    }
    let nets = lookup.range(&RangeKey { policy, addr: packet.dst });
    if nets.has(range::METADATA) {
        return ruled(Reason::Metadata);
    }
    if whole(packet) {
        let key = ExactKey::new(policy, packet.dst, packet.protocol, packet.dst_port);
        if let Some(entry) = lookup.exact(&key) {
            return Ruling::about(16, named(&entry), entry.gateway);
        }
    }
    if nets.has(range::NODE) {
        // The network plugin's own wrapping: a pod's would not have passed line 6.
        let from = lookup.range(&RangeKey { policy, addr: packet.src });
        let wrapped = tunnels(packet) || packet.protocol == protocol::ESP;
        let by_node = wrapped && from.has(range::NODE);
        return ruled(if by_node { Reason::Cluster } else { Reason::Node });
    }
    if nets.has(range::CLUSTER) {
        return ruled(Reason::Cluster);
    }
    ruled(if whole(packet) { Reason::HiddenExternal } else { Reason::Fragment })
}

/// The reason an entry of the uplink's tables allows for.
#[inline(always)]
fn named(entry: &Exact) -> Reason {
    match Target::from_number(entry.target) {
        Some(Target::Gateway | Target::Draining) => Reason::Gateway,
        Some(Target::Resolver) => Reason::Resolver,
        Some(Target::Infrastructure) => Reason::Infrastructure,
        Some(Target::Node) => Reason::Cluster,
        Some(Target::HiddenExternal | Target::Resolved | Target::Earlier) | None => {
            Reason::HiddenExternal
        }
    }
}

/// Ports and ICMP identifiers are known: not a fragment.
#[inline(always)]
const fn whole(packet: &Packet) -> bool {
    matches!(packet.shape, Shape::Ip)
}

/// Traffic the kernel will keep inside the pod. On the wire nothing is: a node with
/// `route_localnet` set would take `127.0.0.1` from a pod for its own (CVE-2020-8558).
#[inline(always)]
fn stays_in_pod(packet: &Packet) -> bool {
    match packet.hook {
        Hook::PodEgress | Hook::PodIngress | Hook::UplinkEgress | Hook::WallIngress => false,
        Hook::Wall => packet.on_loopback || packet.dst.is_loopback(),
        Hook::Connect4 | Hook::Connect6 | Hook::Sendmsg4 | Hook::Sendmsg6 => {
            packet.dst.is_loopback() || packet.dst.is_unspecified()
        }
    }
}

/// Whether it shares the node's network: then it has no boundary.
#[inline(always)]
fn on_host(who: &Subject, packet: &Packet) -> bool {
    !matches!(packet.hook, Hook::PodEgress) && who.on_host()
}

/// What ends where it starts. On the node's network that may be a tunnel's end: the node would
/// unwrap it and forward what is inside as its own.
#[inline(always)]
fn local(who: &Subject, packet: &Packet) -> Ruling {
    if on_host(who, packet) && unwraps(packet) {
        Ruling::new(6, Reason::Tunnel)
    } else {
        Ruling::new(5, Reason::Local)
    }
}

/// The node's own wrapping, or a pod's that passes for it.
#[inline(always)]
fn tunnels(packet: &Packet) -> bool {
    unwraps(packet) || is_wireguard(packet)
}

/// What a tunnel's end takes from anybody.
#[inline(always)]
fn unwraps(packet: &Packet) -> bool {
    match packet.protocol {
        protocol::IPIP | protocol::IPV6 | protocol::GRE => true,
        protocol::UDP => {
            let [vxlan, linux_vxlan, geneve] = TUNNEL_PORTS;
            let port = packet.dst_port;
            port == vxlan || port == linux_vxlan || port == geneve
        }
        _ => false,
    }
}

/// Its end takes nothing from strangers, and clients send from its port as well.
#[inline(always)]
fn is_wireguard(packet: &Packet) -> bool {
    packet.protocol == protocol::UDP && packet.dst_port == WIREGUARD
}

/// Line 12.
#[inline(always)]
fn excepted<L: Lookup>(packet: &Packet, set: u32, lookup: &L) -> bool {
    excepted_at(packet.protocol, packet.dst_port, set, lookup.now(), lookup)
}

/// Nanoseconds for which an answer may come behind what asked for it.
const ANSWER_NS: u64 = 180_000_000_000;

/// Whether what comes from this port may answer what an exception of the set allowed: one in force,
/// or one that has just expired.
#[inline(always)]
pub fn lately_excepted<L: Lookup>(protocol: u8, port: u16, set: u32, lookup: &L) -> bool {
    set != 0 && excepted_at(protocol, port, set, lookup.now().saturating_sub(ANSWER_NS), lookup)
}

/// The exact port, then any port of the protocol, then anything.
#[inline(always)]
fn excepted_at<L: Lookup>(protocol: u8, port: u16, set: u32, time: u64, lookup: &L) -> bool {
    let in_force = |key: ExceptionKey| match lookup.exception(&key) {
        Some(exception) => time < exception.expires,
        None => false,
    };
    in_force(ExceptionKey::new(set, protocol, port))
        || in_force(ExceptionKey::new(set, protocol, 0))
        || in_force(ExceptionKey::new(set, 0, 0))
}

#[cfg(test)]
pub(crate) mod tests;
