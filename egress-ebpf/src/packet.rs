//! Packet hooks: who sends, what it is, what is decided.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_skb_ancestor_cgroup_id, bpf_skb_load_bytes, bpf_skb_pull_data,
};
use aya_ebpf::programs::{SkBuffContext, TcContext};
use egress_common::key::{ExactKey, PodId, PolicyId};
use egress_common::packet::{Hook, Packet, Shape};
use egress_common::state::{Counter, Direction, Pod, Target};
use egress_common::{Lookup, Mode, Reason, Subject, Verdict, decide};

use crate::answer;
use crate::emit::{Told, count, expose, received, tell};
use crate::flow::Toward;
use crate::forget::{forget_packet, forget_ruling, forget_subject, forget_verdict, unknown_zero};
use crate::listen::Listeners;
use crate::maps::{self, Local, Stage, Tables};
use crate::names;
use crate::wire::{self, Bytes};

/// In every network namespace the loopback device is the first.
const LOOPBACK_IFINDEX: u32 = 1;

/// Whether the pod was told of its drop.
#[derive(Clone, Copy)]
pub(crate) enum Answered {
    /// The frame is gone.
    No,
    /// The frame has become the answer.
    Yes,
}

/// Judges what a pod sends, at the host side of its veth.
#[inline(always)]
pub(crate) fn pod_egress(ctx: &TcContext) -> (Verdict, Answered) {
    let skb = maps::skb(ctx);
    let config = maps::config();
    let now = maps::now();
    // SAFETY: context fields, checked and rewritten by the verifier.
    let (ifindex, len) = unsafe { ((*skb).ifindex, (*skb).len) };
    let (mut who, PodId(end)) = maps::subject_behind(skb, ifindex, &config, now);
    let end = PodId(end.wrapping_add(unknown_zero(now)));
    forget_subject(&mut who, now);
    let Some(packet) = maps::scratch(Hook::PodEgress) else {
        return (who.verdict(Reason::Malformed), Answered::No);
    };
    read_frame(skb, packet);
    packet.hook = Hook::PodEgress;
    let tables = Tables { now, config: &config, stage: Stage::Boundary(skb, end) };
    let ruling = forget_ruling(decide(&who, packet, &tables), now);
    let verdict = who.verdict(ruling.reason);
    // A Service's address may yet become another one: the uplink asks again.
    if matches!(verdict, Verdict::Allow) && matches!(ruling.line, 8..=11) {
        let bit = match who.mode {
            Mode::Enforce => config.mark_enforce,
            Mode::Audit => config.mark_audit,
            Mode::Off => 0,
        };
        // SAFETY: a context field that programs of this type may write.
        unsafe { (*skb).mark |= bit };
    }
    log(ctx, packet, verdict);
    if end != PodId::UNKNOWN && !matches!(verdict, Verdict::Drop) {
        // The wall has told of it and counted it already.
        if maps::passed_the_wall(&config, skb) {
            return (verdict, Answered::No);
        }
        expose(end, now);
    }
    // Not what is wrong with the packet itself: who forges is told nothing.
    let answerable = ruling.line >= 6 && who.answers && packet.is_answerable();
    let answers = matches!(verdict, Verdict::Drop) && answerable;
    let answers = u64::from(answers).wrapping_add(unknown_zero(now));
    let (hook, skb) = (Hook::PodEgress, Some(skb));
    tell(&config, &Told { who: &who, hook, packet, ruling, verdict, now, len, ifindex, skb });
    if answers != 0 {
        return match answer::send(maps::skb(ctx), packet, ifindex) {
            Some(()) => (verdict, Answered::Yes),
            None => (verdict, Answered::No),
        };
    }
    (verdict, Answered::No)
}

/// Judges a marked packet by the address it has after translation. Unmarked ones are answers, the
/// node's own and those of pods that nobody governs.
#[inline(always)]
pub(crate) fn uplink_egress(ctx: &TcContext) -> Verdict {
    let skb = maps::skb(ctx);
    let config = maps::config();
    // SAFETY: context fields, checked and rewritten by the verifier.
    let (ifindex, len, mark) = unsafe { ((*skb).ifindex, (*skb).len, (*skb).mark) };
    let mode = if mark & config.mark_enforce != 0 {
        Mode::Enforce
    } else if mark & config.mark_audit != 0 {
        Mode::Audit
    } else {
        return Verdict::Allow;
    };
    let now = maps::now();
    let mut who = Subject::uplink(&config, mode);
    forget_subject(&mut who, now);
    let Some(packet) = maps::scratch(Hook::UplinkEgress) else {
        return who.verdict(Reason::Malformed);
    };
    read_frame(skb, packet);
    packet.hook = Hook::UplinkEgress;
    let tables = Tables { now, config: &config, stage: Stage::Early };
    let ruling = forget_ruling(decide(&who, packet, &tables), now);
    let verdict = forget_verdict(who.verdict(ruling.reason), now);
    // Forwarding has taken its socket.
    let (hook, skb) = (Hook::UplinkEgress, None);
    tell(&config, &Told { who: &who, hook, packet, ruling, verdict, now, len, ifindex, skb });
    verdict
}

/// Remembers what remotes open toward a pod that is governed or not learned, counts what gateways
/// send it, and copies what resolvers answer; of a pod that nobody governs nothing but the last.
#[inline(always)]
pub(crate) fn pod_ingress(ctx: &TcContext) {
    let skb = maps::skb(ctx);
    let config = maps::config();
    let now = maps::now();
    // SAFETY: context fields, checked and rewritten by the verifier.
    let (ifindex, len) = unsafe { ((*skb).ifindex, (*skb).len) };
    let Some(pod) = maps::by_interface(ifindex) else {
        return;
    };
    let judged = pod.policy != PolicyId::NONE || pod.flags & Pod::UNLEARNED != 0;
    if !(judged || pod.flags & Pod::NAMES != 0 && names::may_answer(skb)) {
        return;
    }
    let Some(packet) = maps::scratch(Hook::PodIngress) else {
        return;
    };
    read_frame(skb, packet);
    // A bridge floods what it does not know the port of: other pods' flows pass by here too.
    if !matches!(packet.shape, Shape::Ip) || !pod.owns(&packet.dst) {
        return;
    }
    if !judged {
        names::copy(skb, pod, packet, now);
        return;
    }
    let tables = Tables { now, config: &config, stage: Stage::Early };
    let sender = ExactKey::new(pod.policy, packet.src, packet.protocol, packet.src_port);
    if let Some(entry) = tables.exact(&sender) {
        let target = Target::from_number(entry.target);
        if matches!(target, Some(Target::Resolver)) && pod.flags & Pod::NAMES != 0 {
            names::copy(skb, pod, packet, now);
        }
        if matches!(target, Some(Target::Gateway | Target::Draining)) {
            let amount = Counter { connections: 0, packets: 1, bytes: u64::from(len) };
            count(pod.id, received(entry.gateway), Verdict::Allow, Direction::Rx, &amount);
        }
    }
    let toward = Toward { table: pod.id, policy: pod.policy };
    crate::flow::track(&toward, packet, &tables, &Listeners::of_namespace(skb, pod.netns));
}

/// Judges what a socket of a pod sends, before it leaves the pod's namespace.
#[inline(always)]
pub(crate) fn wall(ctx: &SkBuffContext) -> Verdict {
    let skb = maps::skb(ctx);
    let config = maps::config();
    let now = maps::now();
    // SAFETY: context fields, checked and rewritten by the verifier; the helper takes a level
    // and returns the id of the socket's cgroup there, zero beyond its depth (Linux 4.18).
    let (ifindex, len, family, owner) = unsafe {
        let owner = maps::owner(&config, |level| bpf_skb_ancestor_cgroup_id(skb, level));
        ((*skb).ifindex, (*skb).len, u16::from_be((*skb).protocol as u16), owner)
    };
    let mut who = maps::subject(owner.pod, &config, now);
    if who.unknown {
        who.pod = PodId::of_cgroup(owner.cgroup);
    }
    who.guarded = owner.pod.is_some_and(|pod| pod.guarded != 0 && pod.guarded == ifindex);
    forget_subject(&mut who, now);
    let mut packet = Packet::unparsed(Hook::Wall);
    packet.on_loopback = ifindex == LOOPBACK_IFINDEX;
    wire::network(&mut packet, &Copied { skb, len }, family);
    forget_packet(&mut packet, now);
    let bounded = who.flags & Pod::BOUNDARY != 0;
    let stage = Stage::Wall(Local { cgroup: owner.cgroup, port: maps::socket_port(skb), bounded });
    let ruling = forget_ruling(decide(&who, &packet, &Tables { now, config: &config, stage }), now);
    let verdict = forget_verdict(who.verdict(ruling.reason), now);
    // The boundary drops it too, counts it, tells of it, and can answer.
    if matches!(verdict, Verdict::Drop) && ruling.line >= 6 && who.defers(&packet) {
        return Verdict::Allow;
    }
    let (hook, packet, skb) = (Hook::Wall, &packet, Some(skb));
    tell(&config, &Told { who: &who, hook, packet, ruling, verdict, now, len, ifindex, skb });
    let passes = !packet.on_loopback && !matches!(verdict, Verdict::Drop);
    if passes && who.is_exposed() {
        expose(PodId::of_cgroup(owner.cgroup), now);
    }
    verdict
}

/// Remembers what is opened toward a pod that has no boundary: one that the agent has not learned,
/// whose interface is not known, or that is on the node's network. Its own loopback opens nothing:
/// there a raw socket may say anything.
#[inline(always)]
pub(crate) fn wall_ingress(ctx: &SkBuffContext) {
    let skb = maps::skb(ctx);
    let config = maps::config();
    // SAFETY: as in `wall`.
    let (ifindex, len, family, owner) = unsafe {
        let owner = maps::owner(&config, |level| bpf_skb_ancestor_cgroup_id(skb, level));
        ((*skb).ifindex, (*skb).len, u16::from_be((*skb).protocol as u16), owner)
    };
    let policy = match owner.pod {
        // Nobody governs it, or its interface remembers.
        Some(pod) if pod.policy == PolicyId::NONE || pod.flags & Pod::BOUNDARY != 0 => return,
        Some(pod) => pod.policy,
        None => PolicyId::NONE,
    };
    if owner.cgroup == 0 || ifindex == LOOPBACK_IFINDEX {
        return;
    }
    let now = maps::now();
    let mut packet = Packet::unparsed(Hook::WallIngress);
    wire::network(&mut packet, &Copied { skb, len }, family);
    forget_packet(&mut packet, now);
    let tables = Tables { now, config: &config, stage: Stage::Early };
    let toward = Toward { table: PodId::of_cgroup(owner.cgroup), policy };
    crate::flow::track(&toward, &packet, &tables, &Listeners::of_socket(skb));
}

/// Reads a frame, after making sure that what the parser may need lies in linear memory: frames
/// of a packet ring have 14 bytes there. A frame that cannot be pulled stays short and is judged
/// as malformed.
#[inline(always)]
fn read_frame(skb: *mut __sk_buff, packet: &mut Packet) {
    // SAFETY: context fields, checked and rewritten by the verifier; pulling invalidates packet
    // pointers, and they are read again below.
    let (protocol, tagged) = unsafe {
        let needed = if (*skb).len < wire::DEEPEST { (*skb).len } else { wire::DEEPEST };
        // Only where it must: pulling a cloned packet copies it.
        if (*skb).data as usize + needed as usize > (*skb).data_end as usize {
            bpf_skb_pull_data(skb, needed);
        }
        (u16::from_be((*skb).protocol as u16), (*skb).vlan_present != 0)
    };
    wire::frame(packet, &Linear { skb }, protocol, tagged);
}

/// Packet bytes read in place.
pub(crate) struct Linear {
    pub(crate) skb: *mut __sk_buff,
}

impl Linear {
    /// A pointer to a `T` of the packet. Fields of network headers are aligned as the kernel
    /// aligns them (`NET_IP_ALIGN`), which is what the verifier checks.
    #[inline(always)]
    fn field<T>(&self, at: usize) -> Option<*const T> {
        // SAFETY: context fields; the comparison against `data_end` is the bound the verifier
        // asks for.
        let (start, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        if start + at + size_of::<T>() > end { None } else { Some((start + at) as *const T) }
    }
}

impl Bytes for Linear {
    #[inline(always)]
    fn byte(&self, at: usize) -> Option<u8> {
        // SAFETY: within the packet, as `field` has checked; likewise below.
        self.field::<u8>(at).map(|field| unsafe { *field })
    }

    #[inline(always)]
    fn half(&self, at: usize) -> Option<u16> {
        // SAFETY: as above.
        self.field::<u16>(at).map(|field| u16::from_be(unsafe { *field }))
    }

    #[inline(always)]
    fn word(&self, at: usize) -> Option<u32> {
        // SAFETY: as above.
        self.field::<u32>(at).map(|field| unsafe { *field })
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: a context field.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        // SAFETY: a context field (Linux 5.7).
        unsafe { (*self.skb).gso_size != 0 }
    }
}

/// Packet bytes copied out: cgroup programs have no helper to pull them.
pub(crate) struct Copied {
    pub(crate) skb: *mut __sk_buff,
    pub(crate) len: u32,
}

impl Copied {
    #[inline(always)]
    fn field<T: Default>(&self, at: usize) -> Option<T> {
        let mut copy = T::default();
        // SAFETY: the helper writes exactly the size of `T`, an integer, or fails.
        let failed = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                at as u32,
                (&raw mut copy).cast(),
                size_of::<T>() as u32,
            )
        };
        if failed == 0 { Some(copy) } else { None }
    }
}

impl Bytes for Copied {
    #[inline(always)]
    fn byte(&self, at: usize) -> Option<u8> {
        self.field(at)
    }

    #[inline(always)]
    fn half(&self, at: usize) -> Option<u16> {
        self.field::<u16>(at).map(u16::from_be)
    }

    #[inline(always)]
    fn word(&self, at: usize) -> Option<u32> {
        self.field(at)
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        // SAFETY: a context field (Linux 5.7).
        unsafe { (*self.skb).gso_size != 0 }
    }
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
fn log(ctx: &TcContext, packet: &Packet, verdict: Verdict) {
    if crate::log::enabled() {
        aya_log_ebpf::debug!(
            ctx,
            "pod_egress protocol {} port {} verdict {}",
            packet.protocol,
            packet.dst_port,
            verdict.number()
        );
    }
}

#[cfg(not(target_arch = "bpf"))]
fn log(_: &TcContext, _: &Packet, _: Verdict) {}
