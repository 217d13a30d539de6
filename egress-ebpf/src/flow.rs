//! The reply table: flows that a remote opened toward a pod, so that the pod may answer.
//!
//! It is an attack surface, so it is narrow: only `pod_ingress` writes it, only from remotes in
//! the policy's inbound ranges, each entry belongs to one pod, and `decide` never lets it excuse
//! what opens a connection.

use egress_common::Subject;
use egress_common::key::ReplyKey;
use egress_common::packet::{Icmp, Packet, protocol};
use egress_common::state::{Reply, loss, range};
use egress_common::{Lookup, key::RangeKey};

use crate::maps::{REPLIES, Tables, lost};

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

/// Remembers what a remote opens toward the pod: a SYN, a datagram that no entry of the pod's
/// own allow-list explains, an echo request (whose identifier the parser put into `src_port`).
#[inline(always)]
pub(crate) fn track(who: &Subject, inbound: &Packet, tables: &Tables) {
    let opens = match inbound.protocol {
        protocol::TCP => inbound.is_bare_syn(),
        protocol::UDP => true,
        protocol::ICMP | protocol::ICMPV6 => matches!(inbound.icmp, Icmp::EchoRequest),
        _ => false,
    };
    if !opens {
        return;
    }
    let remote = inbound.src;
    let nets = tables.range(&RangeKey { policy: who.policy, addr: remote });
    if !nets.has(range::INBOUND) {
        return;
    }
    let key =
        ReplyKey::new(who.pod, remote, inbound.src_port, inbound.dst_port, inbound.flow_protocol);
    if answers(&key, tables.now) {
        return;
    }
    if REPLIES.insert(key, Reply { last_seen: tables.now }, 0).is_err() {
        lost(loss::REPLY, 1);
    }
}
