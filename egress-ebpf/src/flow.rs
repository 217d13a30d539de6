//! The reply table: flows that a remote opened toward a pod, so that the pod may answer.
//!
//! It is an attack surface, so it is narrow: only `pod_ingress` writes it, and for pods whose
//! interface is not known `wall_ingress`, each under its own number; only from remotes in the
//! policy's inbound ranges, each entry belongs to one pod, and `decide` never lets it excuse what
//! opens a connection.

use egress_common::key::{AddressKey, ExactKey, PodId, PolicyId, RangeKey, ReplyKey};
use egress_common::packet::{Icmp, Packet, Shape, protocol, tcp};
use egress_common::state::{PlaceKey, REPLIES_PER_POD, Reply, loss, range};
use egress_common::{Lookup, lately_excepted};

use crate::listen::Listeners;
use crate::maps::{HANDS, PLACES, REPLIES, Tables, lost};

/// Whether the flow is tracked; refreshes it.
#[inline(always)]
pub(crate) fn answers(key: &ReplyKey, now: u64) -> bool {
    match REPLIES.get_ptr_mut(key) {
        Some(entry) => {
            // SAFETY: an eight-byte store; racing CPUs write nearly the same time.
            unsafe { (*entry).last_seen = now };
            true
        }
        None => false,
    }
}

/// Whom an inbound packet is for.
pub(crate) struct Toward {
    /// Whose places its flow takes.
    pub table: PodId,
    /// Whose inbound ranges count.
    pub policy: PolicyId,
}

/// What an inbound packet says of its flow.
enum Says {
    /// The remote opens it: a SYN, a datagram, an echo request (whose identifier the parser put into
    /// `src_port`).
    Opens,
    /// It goes on: whoever opened it did so before anybody looked, or was forgotten since.
    GoesOn,
    /// Nothing.
    Nothing,
}

#[inline(always)]
fn says(inbound: &Packet) -> Says {
    match inbound.protocol {
        protocol::TCP if inbound.is_bare_syn() => Says::Opens,
        protocol::TCP if inbound.tcp_flags & (tcp::SYN | tcp::RST) == 0 => Says::GoesOn,
        protocol::UDP => Says::Opens,
        protocol::ICMP | protocol::ICMPV6 if matches!(inbound.icmp, Icmp::EchoRequest) => {
            Says::Opens
        }
        _ => Says::Nothing,
    }
}

/// Remembers what a remote opens toward the pod. Of a TCP connection that is open already, its
/// server's end is told by its listener: it is remembered as well, unless the pod's own allow-list
/// explains the remote. Nothing is gained by that, because nobody answers with what was denied; what
/// audit let through, the agent has forgotten when it enforces.
#[inline(always)]
pub(crate) fn track(toward: &Toward, inbound: &Packet, tables: &Tables<'_>, listeners: &Listeners) {
    let says = says(inbound);
    if !matches!(inbound.shape, Shape::Ip) || matches!(says, Says::Nothing) {
        return;
    }
    let Toward { table, policy } = *toward;
    let (remote, port) = (inbound.src, inbound.src_port);
    let key = ReplyKey::new(table, remote, port, inbound.dst_port, inbound.flow_protocol);
    if answers(&key, tables.now) {
        return;
    }
    let nets = tables.range(&RangeKey { policy, addr: remote });
    if !nets.has(range::INBOUND) {
        return;
    }
    // A sender that the pod may dial answers the pod's own datagrams and connections; the table is
    // for the others.
    let goes_on = matches!(says, Says::GoesOn);
    let asks = match inbound.protocol {
        protocol::UDP => true,
        protocol::TCP => goes_on,
        _ => false,
    };
    let sender = ExactKey::new(policy, remote, inbound.protocol, port);
    let its_own = asks
        && (tables.exact(&sender).is_some()
            || lately_excepted(inbound.protocol, port, nets.exceptions, tables)
            || (goes_on && tables.address(&AddressKey { policy, addr: remote }) != 0)
            || (goes_on && !listeners.have(inbound)));
    if !its_own && remember(table, &key, tables.now).is_err() {
        lost(loss::REPLY, 1);
    }
}

/// Places looked at before one is taken from a flow that is in use.
const CHANCES: u32 = 4;

/// Gives the flow a place of its pod: the next free one, or that of a flow which nobody used since
/// the pod's hand last came by. Two CPUs may take the same place; the flow that loses it keeps its
/// entry until the agent sweeps the pod, and nobody else's flow is touched.
#[inline(always)]
fn remember(pod: PodId, key: &ReplyKey, now: u64) -> Result<(), i32> {
    let hand = match HANDS.get_ptr_mut(pod) {
        Some(hand) => hand,
        None => {
            HANDS.insert(pod, 0, 0)?;
            HANDS.get_ptr_mut(pod).ok_or(0)?
        }
    };
    let mut chance = 0;
    loop {
        // SAFETY: eight aligned bytes of a map, valid for the program's run.
        let place = unsafe {
            let next = hand.read_volatile();
            hand.write_volatile(next.wrapping_add(1));
            next as u32 % REPLIES_PER_POD
        };
        chance += 1;
        let slot = PlaceKey { pod, place, pad: 0 };
        // SAFETY: copied at once; a flow that changes meanwhile is only found unused or gone.
        let Some(held) = unsafe { PLACES.get(slot) }.copied() else {
            PLACES.insert(slot, key, 0)?;
            break;
        };
        if chance < CHANCES && spared(&held, now) {
            continue;
        }
        // What is gone already makes room as well.
        let _ = REPLIES.remove(held);
        PLACES.insert(slot, key, 0)?;
        break;
    }
    REPLIES.insert(key, Reply { last_seen: now, passed: 0 }, 0)
}

/// Whether a flow was used since it was last passed over; it is passed over now.
#[inline(always)]
fn spared(key: &ReplyKey, now: u64) -> bool {
    let Some(entry) = REPLIES.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: aligned stores of eight bytes; racing CPUs write nearly the same time.
    unsafe {
        let used = (*entry).last_seen > (*entry).passed;
        (*entry).passed = now;
        used
    }
}
