//! What a decision leaves behind: counters always, an event for what was denied.
//!
//! A packet passes several hooks. The one that has the last word counts it: the hook that drops,
//! or else the boundary where the pod has one, or else the wall. Socket hooks count only what
//! they refuse, because what they let through comes back as packets.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_socket_uid, bpf_sk_fullsock, bpf_skb_cgroup_id,
};
use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_get_socket_cookie,
};
use egress_common::event::Event;
use egress_common::key::{GatewayId, PodId};
use egress_common::packet::{Hook, Packet, Shape};
use egress_common::state::{
    Config, Counter, CounterKey, Direction, Exposed, Pod, Process, SUPPRESS_NS, Seen, SeenKey, loss,
};
use egress_common::{Reason, Ruling, Subject, Verdict};

use crate::atomic;
use crate::maps::{COUNTERS, EVENTS, EXPOSED, NODE_COUNTERS, PROCESSES, SEEN, lost};
use crate::rate;

/// Everything one decision is told with.
pub(crate) struct Told<'a> {
    /// Who.
    pub who: &'a Subject,
    /// Where: the same as the packet's, known when the program is compiled, so that each has only
    /// the code of its own hook.
    pub hook: Hook,
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
    /// The packet, where it still has its socket; `None` for a socket call.
    pub skb: Option<*mut __sk_buff>,
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
    match told.hook {
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

/// Counts the decision and, where it denies, sends an event.
#[inline(always)]
pub(crate) fn tell(config: &Config, told: &Told<'_>) {
    let counted = final_here(told);
    if counted {
        let connections = u64::from(told.packet.counts_as_connection());
        let amount = Counter { connections, packets: 1, bytes: u64::from(told.len) };
        count(told.pod(), told.ruling, told.verdict, Direction::Tx, &amount);
    }
    if !matches!(told.verdict, Verdict::Allow)
        && let Err(untold) = event(config, told, counted)
    {
        // Every denied decision that was counted is in an event or here: the sums agree exactly.
        lost(if counted { untold } else { loss::CALL }, 1);
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
    const BPF_NOEXIST: u64 = 1;
    if matches!(way, Direction::Tx) {
        let slot = u32::from(verdict.number()) * Reason::SLOTS + u32::from(ruling.reason.number());
        if let Some(counter) = NODE_COUNTERS.get_ptr_mut(slot) {
            add(counter, verdict, amount);
        }
    }
    // Traffic of pods that nobody governs is not ours to account for.
    if matches!(ruling.reason, Reason::Exempt) {
        return;
    }
    let key = CounterKey::new(pod, ruling.gateway, verdict, ruling.reason, way);
    if let Some(counter) = COUNTERS.get_ptr_mut(key) {
        add(counter, verdict, amount);
    } else if COUNTERS.insert(key, amount, BPF_NOEXIST).is_err() {
        // The table is full; or a hook that interrupted this one was first, which is as rare as it
        // is short. The node's counters have it.
        lost(loss::COUNTER, 1);
    }
}

/// What is denied is counted exactly, against interruption too; what is allowed, fast.
#[inline(always)]
fn add(counter: *mut Counter, verdict: Verdict, amount: &Counter) {
    // SAFETY: a pointer to this CPU's slot of a per-CPU map, valid for the program's run; its
    // fields are eight aligned bytes each.
    unsafe {
        if matches!(verdict, Verdict::Allow) {
            (*counter).connections += amount.connections;
            (*counter).packets += amount.packets;
            (*counter).bytes += amount.bytes;
        } else {
            atomic::add(&raw mut (*counter).connections, amount.connections);
            atomic::add(&raw mut (*counter).packets, amount.packets);
            atomic::add(&raw mut (*counter).bytes, amount.bytes);
        }
    }
}

/// Sends an event, or gives the index of the loss counter that says why there is none. A repeat is
/// suppressed; a decision that was not told lately needs a token, so that a pod which dials a new
/// destination with every packet fills neither the ring nor this CPU's memory of what was told.
#[inline(always)]
fn event(config: &Config, told: &Told<'_>, counted: bool) -> Result<(), u32> {
    let packet = told.packet;
    // Every kernel sends listener reports when an interface comes up: counted, and no news.
    if matches!(packet.shape, Shape::Listener) {
        return Err(loss::SUPPRESSED);
    }
    let key = SeenKey {
        pod: told.pod(),
        dst: packet.dst,
        port: packet.dst_port.to_be_bytes(),
        protocol: packet.protocol,
        verdict: told.verdict.number(),
        reason: told.ruling.reason.number(),
        hook: told.hook.number(),
        pad: [0; 2],
    };
    let seen = SEEN.get_ptr_mut(key);
    // SAFETY: a pointer to this CPU's slot of a per-CPU map; likewise below.
    let fresh =
        seen.is_none_or(|seen| told.now.saturating_sub(unsafe { (*seen).last }) >= SUPPRESS_NS);
    let token = if fresh { rate::event(told.pod(), told.now) } else { Err(loss::SUPPRESSED) };
    if let Err(refused) = token {
        let Some(seen) = seen else {
            return Err(refused);
        };
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*seen).suppressed, 1) };
        return Err(loss::SUPPRESSED);
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        return Err(loss::RING);
    };
    let suppressed = match seen {
        Some(seen) => {
            // SAFETY: as above.
            unsafe {
                let suppressed = (*seen).suppressed;
                *seen = Seen { last: told.now, suppressed: 0 };
                suppressed
            }
        }
        None => {
            // A full table only means that a repeat may be told twice.
            let _ = SEEN.insert(key, Seen { last: told.now, suppressed: 0 }, 0);
            0
        }
    };
    write(entry.as_mut_ptr(), config, told, suppressed, counted);
    // The reader looks by its own clock; waking it for each event would cost more than the event.
    entry.submit(BPF_RB_NO_WAKEUP);
    Ok(())
}

const BPF_RB_NO_WAKEUP: u64 = 1;

/// Writes the event where the ring has reserved it: the stack has no room for a second copy.
#[inline(always)]
fn write(to: *mut Event, config: &Config, told: &Told<'_>, suppressed: u64, counted: bool) {
    let packet = told.packet;
    // SAFETY: memory of this size that nobody else has, and every field of it is written, padding
    // included.
    unsafe {
        (*to).time = told.now;
        (*to).pod = told.pod();
        (*to).suppressed = suppressed;
        (*to).policy = told.who.policy;
        (*to).gateway = told.ruling.gateway;
        (*to).generation = config.generation;
        (*to).ifindex = told.ifindex;
        (*to).len = told.len;
        (*to).src = packet.src;
        (*to).dst = packet.dst;
        (*to).src_port = packet.src_port;
        (*to).dst_port = packet.dst_port;
        (*to).protocol = packet.protocol;
        (*to).hook = told.hook.number();
        (*to).shape = packet.shape.number();
        (*to).verdict = told.verdict.number();
        (*to).reason = told.ruling.reason.number();
        (*to).line = told.ruling.line;
        (*to).tcp_flags = packet.tcp_flags;
        (*to).counted = u8::from(counted);
        (*to).pad = [0; 6];
    }
    write_origin(to, told);
}

/// Who is behind the decision, as far as the hook knows.
#[inline(always)]
fn write_origin(to: *mut Event, told: &Told<'_>) {
    // SAFETY: helpers that take nothing or the context; the socket's fields are checked and
    // rewritten by the verifier, which asks for each comparison with null; `to` as in `write`.
    unsafe {
        (*to).pid = 0;
        (*to).uid = u32::MAX;
        (*to).comm = [0; 16];
        (*to).cgroup = 0;
        (*to).socket_family = 0;
        (*to).socket_type = 0;
        if told.hook.is_socket() {
            let caller = caller();
            (*to).pid = caller.pid;
            (*to).uid = caller.uid;
            (*to).comm = caller.comm;
            (*to).cgroup = bpf_get_current_cgroup_id();
        } else if let Some(skb) = told.skb {
            if let Some(process) = PROCESSES.get(bpf_get_socket_cookie(skb.cast())) {
                (*to).pid = process.pid;
                (*to).uid = process.uid;
                (*to).comm = process.comm;
            } else {
                (*to).uid = bpf_get_socket_uid(skb);
            }
            (*to).cgroup = bpf_skb_cgroup_id(skb);
            let sk = (*skb).__bindgen_anon_2.sk;
            if !sk.is_null() {
                (*to).socket_family = (*sk).family as u8;
                let full = bpf_sk_fullsock(sk);
                if !full.is_null() {
                    (*to).socket_type = (*full).type_ as u8;
                }
            }
        }
    }
}

/// The process that makes the call. Before Linux 6.10 programs for packets do not load with these
/// helpers, called or not: only what is known to be a socket hook when it is compiled has them.
#[inline(always)]
fn caller() -> Process {
    Process {
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        comm: bpf_get_current_comm().unwrap_or([0; 16]),
    }
}

/// Remembers who made a call of this socket, for the packets it becomes. A `connect` is remembered
/// each time, a datagram's sender once.
#[inline(always)]
pub(crate) fn remember(cookie: u64, hook: Hook) {
    let connects = matches!(hook, Hook::Connect4 | Hook::Connect6);
    // SAFETY: an entry is replaced whole; only whether there is one is asked.
    if connects || unsafe { PROCESSES.get(cookie) }.is_none() {
        // A full table only means that a packet may name no process.
        let _ = PROCESSES.insert(cookie, caller(), 0);
    }
}

/// The ruling under which traffic from a gateway to the pod is counted.
#[inline(always)]
pub(crate) const fn received(gateway: GatewayId) -> Ruling {
    Ruling { reason: Reason::Gateway, line: 9, gateway }
}
