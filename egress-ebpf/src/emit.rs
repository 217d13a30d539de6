//! What a decision leaves behind: counters always, an event for what was denied.
//!
//! A packet passes several hooks. The one that has the last word counts it: the hook that drops,
//! or else the boundary where the pod has one, or else the wall. Socket hooks count only what
//! they refuse, because what they let through comes back as packets.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use egress_common::event::Event;
use egress_common::key::{GatewayId, PodId};
use egress_common::packet::{Hook, Packet, Shape};
use egress_common::state::{
    Config, Counter, CounterKey, Direction, Exposed, Pod, SUPPRESS_NS, Seen, SeenKey, loss,
};
use egress_common::{Reason, Ruling, Subject, Verdict};

use crate::maps::{COUNTERS, EVENTS, EXPOSED, NODE_COUNTERS, SEEN, lost};

/// Everything one decision is told with.
pub(crate) struct Told<'a> {
    /// Who.
    pub who: &'a Subject,
    /// What.
    pub packet: &'a Packet,
    /// Why.
    pub ruling: Ruling,
    /// What became of it.
    pub verdict: Verdict,
    /// Boot clock, nanoseconds.
    pub now: u64,
    /// Length of the packet, bytes; zero for a socket call.
    pub len: u32,
    /// Interface, zero for a socket call.
    pub ifindex: u32,
}

/// Who acted, as an event tells it.
pub(crate) struct Actor {
    /// Zero where the hook knows no process.
    pid: u32,
    /// The process's, or the packet's socket's; `u32::MAX` for nobody's.
    uid: u32,
    comm: [u8; 16],
}

impl Actor {
    /// The process that makes a socket call. Before Linux 6.10 programs for packets do not load
    /// with these helpers, called or not.
    #[inline(always)]
    pub(crate) fn process() -> Self {
        Self {
            pid: (bpf_get_current_pid_tgid() >> 32) as u32,
            uid: bpf_get_current_uid_gid() as u32,
            comm: bpf_get_current_comm().unwrap_or([0; 16]),
        }
    }

    /// The owner of a packet's socket.
    #[inline(always)]
    pub(crate) const fn socket(uid: u32) -> Self {
        Self { pid: 0, uid, comm: [0; 16] }
    }
}

impl Told<'_> {
    /// Whom it is counted and told of: pods that are not learned are one.
    #[inline(always)]
    const fn pod(&self) -> PodId {
        if self.who.unknown { PodId::UNKNOWN } else { self.who.pod }
    }
}

/// Whether this hook has the last word.
#[inline(always)]
fn final_here(told: &Told<'_>) -> bool {
    if matches!(told.verdict, Verdict::Drop) {
        return true;
    }
    match told.packet.hook {
        Hook::PodEgress => true,
        Hook::Wall => told.who.flags & Pod::BOUNDARY == 0 && !told.packet.on_loopback,
        // What it lets through was counted at the boundary.
        Hook::UplinkEgress => matches!(told.verdict, Verdict::Audit),
        Hook::Connect4
        | Hook::Connect6
        | Hook::Sendmsg4
        | Hook::Sendmsg6
        | Hook::PodIngress
        | Hook::WallIngress => false,
    }
}

/// Counts the decision and, where it denies, sends an event, which alone asks for the actor.
#[inline(always)]
pub(crate) fn tell(config: &Config, told: &Told<'_>, actor: impl FnOnce() -> Actor) {
    let counted = final_here(told);
    if counted {
        let connections = u64::from(told.packet.counts_as_connection());
        let amount = Counter { connections, packets: 1, bytes: u64::from(told.len) };
        count(told.pod(), told.ruling, told.verdict, Direction::Tx, &amount);
    }
    // Every kernel sends listener reports when an interface comes up: counted, and no news.
    let news = !matches!(told.packet.shape, Shape::Listener);
    if !matches!(told.verdict, Verdict::Allow) && news {
        event(config, told, counted, actor);
    }
}

/// Counts what passes of a pod that is not wholly covered, under its cgroup or its interface.
#[inline(always)]
pub(crate) fn expose(whose: PodId, now: u64) {
    if let Some(exposed) = EXPOSED.get_ptr_mut(whose) {
        // SAFETY: a pointer to this CPU's slot of a per-CPU map; a CPU that has counted nothing yet
        // holds zeroes.
        let exposed = unsafe { &mut *exposed };
        exposed.packets += 1;
        exposed.first = if exposed.first == 0 { now } else { exposed.first };
        exposed.last = now;
    } else if EXPOSED.insert(whose, Exposed { packets: 1, first: now, last: now }, 0).is_err() {
        lost(loss::EXPOSED, 1);
    }
}

/// Adds to the pod's and, for what it sends, to the node's counters.
#[inline(always)]
pub(crate) fn count(
    pod: PodId,
    ruling: Ruling,
    verdict: Verdict,
    way: Direction,
    amount: &Counter,
) {
    if matches!(way, Direction::Tx) {
        let slot = u32::from(verdict.number()) * Reason::SLOTS + u32::from(ruling.reason.number());
        if let Some(counter) = NODE_COUNTERS.get_ptr_mut(slot) {
            add(counter, amount);
        }
    }
    // Traffic of pods that nobody governs is not ours to account for.
    if matches!(ruling.reason, Reason::Exempt) {
        return;
    }
    let key = CounterKey::new(pod, ruling.gateway, verdict, ruling.reason, way);
    if let Some(counter) = COUNTERS.get_ptr_mut(key) {
        add(counter, amount);
    } else if COUNTERS.insert(key, amount, 0).is_err() {
        lost(loss::COUNTER, 1);
    }
}

#[inline(always)]
fn add(counter: *mut Counter, amount: &Counter) {
    // SAFETY: a pointer to this CPU's slot of a per-CPU map, valid for the program's run.
    let counter = unsafe { &mut *counter };
    counter.connections += amount.connections;
    counter.packets += amount.packets;
    counter.bytes += amount.bytes;
}

/// Returns how many repeats went untold since the last event, or `None` when this one is a
/// repeat itself.
#[inline(always)]
fn first_in_window(told: &Told<'_>) -> Option<u64> {
    let key = SeenKey {
        pod: told.pod(),
        dst: told.packet.dst,
        port: told.packet.dst_port.to_be_bytes(),
        protocol: told.packet.protocol,
        verdict: told.verdict.number(),
        reason: told.ruling.reason.number(),
        hook: told.packet.hook.number(),
        pad: [0; 2],
    };
    let Some(seen) = SEEN.get_ptr_mut(key) else {
        // A full table only means that a repeat may be told twice.
        let _ = SEEN.insert(key, Seen { last: told.now, suppressed: 0 }, 0);
        return Some(0);
    };
    // SAFETY: a pointer to this CPU's slot of a per-CPU map.
    let seen = unsafe { &mut *seen };
    if told.now.saturating_sub(seen.last) < SUPPRESS_NS {
        seen.suppressed += 1;
        lost(loss::SUPPRESSED, 1);
        return None;
    }
    let suppressed = seen.suppressed;
    *seen = Seen { last: told.now, suppressed: 0 };
    Some(suppressed)
}

#[inline(always)]
fn event(config: &Config, told: &Told<'_>, counted: bool, actor: impl FnOnce() -> Actor) {
    let Some(suppressed) = first_in_window(told) else {
        return;
    };
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        lost(loss::RING, 1);
        return;
    };
    let packet = told.packet;
    let Actor { pid, uid, comm } = actor();
    entry.write(Event {
        time: told.now,
        pod: told.pod(),
        suppressed,
        policy: told.who.policy,
        gateway: told.ruling.gateway,
        generation: config.generation,
        pid,
        uid,
        ifindex: told.ifindex,
        len: told.len,
        src: packet.src,
        dst: packet.dst,
        src_port: packet.src_port,
        dst_port: packet.dst_port,
        protocol: packet.protocol,
        hook: packet.hook.number(),
        shape: packet.shape.number(),
        verdict: told.verdict.number(),
        reason: told.ruling.reason.number(),
        line: told.ruling.line,
        tcp_flags: packet.tcp_flags,
        counted: u8::from(counted),
        comm,
        pad: [0; 8],
    });
    entry.submit(0);
}

/// The ruling under which traffic from a gateway to the pod is counted.
#[inline(always)]
pub(crate) const fn received(gateway: GatewayId) -> Ruling {
    Ruling { reason: Reason::Gateway, line: 9, gateway }
}
