//! Whose packet it says it is: line 4, and the source guard on every pod's veth.

use crate::key::Addr;
use crate::packet::{Hook, Packet, Shape};
use crate::subject::Subject;

#[inline(always)]
pub(super) fn neighbour(packet: &Packet) -> bool {
    matches!(packet.shape, Shape::Neighbour)
}

/// A source that is never routed, where the packet may carry one: the pod's own link-local address,
/// or none where it has none yet. Another's would answer for whoever it belongs to, a router first.
#[inline(always)]
fn may_be_unrouted(who: &Subject, packet: &Packet) -> bool {
    match packet.shape {
        Shape::Neighbour => packet.src.is_unspecified() || packet.src == Addr::link_local(who.mac),
        Shape::Listener => packet.src.is_unspecified() || packet.src.is_link_local(),
        Shape::Ip
        | Shape::Fragment
        | Shape::Arp
        | Shape::Malformed
        | Shape::Tagged
        | Shape::Ethertype => false,
    }
}

#[inline(always)]
pub(super) fn arp_sender_is(who: &Subject, packet: &Packet) -> bool {
    packet.arp_mac == who.mac && (packet.src.is_unspecified() || who.owns(&packet.src))
}

/// A neighbour advertisement for an address that is not the pod's, or a claim to one: what has no
/// source yet asks whether it may have its target.
#[inline(always)]
fn advertises_another(who: &Subject, packet: &Packet) -> bool {
    let claims = packet.src.is_unspecified() && packet.target.is_link_local();
    neighbour(packet)
        && !packet.target.is_unspecified()
        && packet.target != Addr::link_local(who.mac)
        && !who.owns(&packet.target)
        && !claims
}

/// Line 4, for a pod that is governed or not learned.
#[inline(always)]
pub(super) fn foreign_source(who: &Subject, packet: &Packet) -> bool {
    match packet.hook {
        Hook::Connect4
        | Hook::Connect6
        | Hook::Sendmsg4
        | Hook::Sendmsg6
        | Hook::PodIngress
        | Hook::WallIngress
        | Hook::UplinkEgress => false,
        // The wall meets pods whose address the registry does not know yet.
        Hook::Wall if who.is_unaddressed() => false,
        Hook::Wall => !who.owns(&packet.src),
        Hook::PodEgress => {
            packet.src_mac != who.mac
                || !(who.owns(&packet.src) || may_be_unrouted(who, packet))
                || advertises_another(who, packet)
        }
    }
}

/// The source guard on a pod that no policy governs: it keeps such a pod from writing another
/// pod's reply table, and asks for no more than that.
#[inline(always)]
pub(super) fn foreign_source_of_exempt(who: &Subject, packet: &Packet) -> bool {
    if !matches!(packet.hook, Hook::PodEgress) {
        return false;
    }
    if packet.src_mac != who.mac {
        return true;
    }
    match packet.shape {
        // The node's stack would strip the tag and route what is behind it.
        Shape::Tagged => true,
        Shape::Ethertype => false,
        Shape::Arp => !arp_sender_is(who, packet),
        Shape::Ip | Shape::Fragment | Shape::Neighbour | Shape::Listener | Shape::Malformed => {
            let own = who.owns(&packet.src)
                || packet.src.is_unspecified()
                || packet.src == Addr::link_local(who.mac);
            !own || advertises_another(who, packet)
        }
    }
}
