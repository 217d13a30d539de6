//! Line 0: a pod that the agent has not learned.

use super::Ruling;
use crate::key::Addr;
use crate::packet::{Packet, Shape, protocol};
use crate::reason::Reason;
use crate::subject::Subject;

/// Line 0, of what the other lines say under the tables of no policy.
#[inline(always)]
pub(super) fn unlearned(who: &Subject, packet: &Packet, ruling: Ruling) -> Ruling {
    if ruling.line >= 8 && !matches!(ruling.reason, Reason::Resolver) {
        Ruling::new(0, Reason::UnknownPod)
    } else if ruling.line == 4 && asks_for_address(who, packet) {
        Ruling::new(5, Reason::Local)
    } else {
        ruling
    }
}

/// A client that has no address asks its link for one (DHCP), as some network plugins have it do
/// from inside the pod.
#[inline(always)]
fn asks_for_address(who: &Subject, packet: &Packet) -> bool {
    const CLIENT: u16 = 68;
    const SERVER: u16 = 67;
    packet.src_mac == who.mac
        && packet.protocol == protocol::UDP
        && matches!(packet.shape, Shape::Ip)
        && packet.src_port == CLIENT
        && packet.dst_port == SERVER
        && packet.src.is_unspecified()
        && packet.dst == Addr::BROADCAST
}
