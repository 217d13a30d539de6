//! Every map, each beside the function that reads it. Only the flow, counter and suppression
//! maps are written here; the agent owns the rest.

use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_skb_ancestor_cgroup_id};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{
    Array, HashMap, LpmTrie, LruHashMap, LruPerCpuHashMap, PerCpuArray, PerCpuHashMap, RingBuf,
};
use egress_common::key::{
    AddressKey, ExactKey, ExceptionKey, GatewayId, PodId, PolicyId, RangeKey, ReplyKey,
};
use egress_common::packet::{Hook, Packet};
use egress_common::redirect::{Original, RedirectKey, RedirectTo};
use egress_common::state::{
    BucketKey, Capture, Config, Counter, CounterKey, Exact, Exception, Exposed, PlaceKey, Pod,
    Policy, Process, Range, Reply, Seen, SeenKey, Tally, loss,
};
use egress_common::{Endpoints, Lookup, Reason, Ruling, Subject, Verdict};

use crate::atomic::add;
use crate::forget::forget_ruling;

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
/// Boot clock nanoseconds of the agent's last sign of life.
#[map]
static HEARTBEAT: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static POLICIES: HashMap<PolicyId, Policy> = HashMap::with_max_entries(1024, 0);
/// Pods by the id of their cgroup.
#[map]
static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(2048, 0);
/// Pods by the index of their host-side interface.
#[map]
static INTERFACES: HashMap<u32, Pod> = HashMap::with_max_entries(2048, 0);
#[map]
static EXACT: HashMap<ExactKey, Exact> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
#[map]
static ADDRESSES: HashMap<AddressKey, u32> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
#[map]
static RANGES: LpmTrie<RangeKey, Range> = LpmTrie::with_max_entries(65536, BPF_F_NO_PREALLOC);
#[map]
static EXCEPTIONS: HashMap<ExceptionKey, Exception> =
    HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
/// Flows that remotes opened toward pods. Not an LRU of the node: each pod has
/// [`egress_common::state::REPLIES_PER_POD`] places of its own (see `flow`). Takes memory as it
/// is used.
#[map]
pub(crate) static REPLIES: HashMap<ReplyKey, Reply> =
    HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
/// Which flow each place of a pod holds.
#[map]
pub(crate) static PLACES: HashMap<PlaceKey, ReplyKey> =
    HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
/// Where each pod looks for its next place.
#[map]
pub(crate) static HANDS: HashMap<PodId, u64> = HashMap::with_max_entries(2048, BPF_F_NO_PREALLOC);
/// Up to when each bucket is filled: boot clock, nanoseconds. Four times as many as pods fit into
/// [`PODS`], and only a pod's policy makes one: what the table drops is the least used, so a pod that
/// floods keeps the bucket it has emptied.
#[map]
pub(crate) static BUCKETS: LruHashMap<BucketKey, u64> = LruHashMap::with_max_entries(16_384, 0);
/// Where denied connections go, for policies that redirect.
#[map]
static REDIRECTS: HashMap<RedirectKey, RedirectTo> =
    HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);
/// What redirected sockets asked for, by cookie: those that were connected or asked last.
#[map]
pub(crate) static ORIGINALS: LruHashMap<u64, Original> = LruHashMap::with_max_entries(32_768, 0);
#[map]
pub(crate) static COUNTERS: PerCpuHashMap<CounterKey, Counter> =
    PerCpuHashMap::with_max_entries(8192, 0);
/// Totals of the node by verdict and reason; cannot overflow.
#[map]
pub(crate) static NODE_COUNTERS: PerCpuArray<Counter> =
    PerCpuArray::with_max_entries(Verdict::SLOTS * Reason::SLOTS, 0);
#[map]
pub(crate) static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(loss::SLOTS, 0);
/// What passed while its pod was not wholly covered. Twice as many as pods fit into [`PODS`]: each has
/// a cgroup and an interface.
#[map]
pub(crate) static EXPOSED: PerCpuHashMap<PodId, Exposed> = PerCpuHashMap::with_max_entries(4096, 0);
/// When each decision was last told, so that a flood tells it once.
#[map]
pub(crate) static SEEN: LruPerCpuHashMap<SeenKey, Seen> =
    LruPerCpuHashMap::with_max_entries(4096, 0);
/// Who made the last call of a socket, by cookie: of sockets whose packets may be denied though the
/// call was not.
#[map]
pub(crate) static PROCESSES: LruHashMap<u64, Process> = LruHashMap::with_max_entries(8192, 0);
/// What the agent did with the events it read. Only the agent reads and writes it.
#[map]
static TALLY: Array<Tally> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// Where the packet hooks of a veth keep the facts of the packet in hand: the stack is too small,
/// and facts that passed through memory cost the verifier one path instead of one per parse. One
/// slot per hook is enough, because these hooks run with softirqs off and never inside
/// themselves; the wall may be interrupted by itself and keeps its facts on the stack.
#[map]
static SCRATCH: PerCpuArray<MaybeUninit<Packet>> = PerCpuArray::with_max_entries(3, 0);

/// The scratch of a hook, holding an unparsed packet; `None` never happens (the index is in
/// range), and the caller treats it as a packet that cannot be read.
#[inline(always)]
pub(crate) fn scratch(hook: Hook) -> Option<&'static mut Packet> {
    let index = match hook {
        Hook::PodIngress => 1,
        Hook::UplinkEgress => 2,
        Hook::PodEgress
        | Hook::Wall
        | Hook::WallIngress
        | Hook::Connect4
        | Hook::Connect6
        | Hook::Sendmsg4
        | Hook::Sendmsg6 => 0,
    };
    let slot = SCRATCH.get_ptr_mut(index)?;
    // SAFETY: this CPU's own slot, not shared while the hook runs (see above).
    Some(unsafe { (*slot).write(Packet::unparsed(hook)) })
}

/// `CLOCK_BOOTTIME`, nanoseconds (helper since Linux 5.8).
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: takes no argument and touches nothing of ours.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The configuration; zeroes until the agent has written it, which means mode off for pods it
/// has not learned.
#[inline(always)]
pub(crate) fn config() -> Config {
    CONFIG.get(0).copied().unwrap_or_default()
}

/// Who sends on this interface.
#[inline(always)]
pub(crate) fn by_interface(ifindex: u32) -> Option<&'static Pod> {
    // SAFETY: values are replaced whole by the agent; a torn read of one pod's entry can only
    // mix two versions of the same pod.
    unsafe { INTERFACES.get(ifindex) }
}

/// Who owns a socket.
pub(crate) struct Owner {
    /// The pod, where the agent has learned it.
    pub pod: Option<&'static Pod>,
    /// The cgroup two levels below `kubepods`, or else one: a pod's own, or for guaranteed pods its
    /// container's. The same number whether or not the pod is known; zero outside `kubepods`.
    pub cgroup: u64,
}

/// The owner by cgroup: a pod's directory stands two levels below `kubepods`, or one for guaranteed
/// pods. `ancestor` gives the id at an absolute level, zero where there is none.
#[inline(always)]
pub(crate) fn owner(config: &Config, ancestor: impl Fn(i32) -> u64) -> Owner {
    let level = config.kubepods_level as i32;
    let deep = ancestor(level + 2);
    // SAFETY: as in `by_interface`.
    let found = if deep == 0 { None } else { unsafe { PODS.get(deep) } };
    if found.is_some() {
        return Owner { pod: found, cgroup: deep };
    }
    let shallow = ancestor(level + 1);
    // SAFETY: as in `by_interface`.
    let found = if shallow == 0 { None } else { unsafe { PODS.get(shallow) } };
    Owner { pod: found, cgroup: if deep == 0 { shallow } else { deep } }
}

/// The subject of a decision about this pod.
#[inline(always)]
pub(crate) fn subject(pod: Option<&Pod>, config: &Config, now: u64) -> Subject {
    let Some(pod) = pod else {
        return Subject::unknown(config);
    };
    // SAFETY: four bytes, replaced whole.
    let policy = unsafe { POLICIES.get(pod.policy) };
    let beat = HEARTBEAT.get(0).copied().unwrap_or(0);
    Subject::of(pod, policy, config, now.saturating_sub(beat))
}

/// The subject of a decision about what comes from this interface, and whose flows it may answer
/// beside its own: zero for nobody's. Behind an interface that is not learned a packet's socket may
/// still say whose it is, because cgroups are known earlier.
#[inline(always)]
pub(crate) fn subject_behind(
    skb: *mut aya_ebpf::bindings::__sk_buff,
    ifindex: u32,
    config: &Config,
    now: u64,
) -> (Subject, PodId) {
    let end = match by_interface(ifindex) {
        Some(end) if end.flags & Pod::UNLEARNED != 0 => end,
        pod => return (subject(pod, config, now), PodId::UNKNOWN),
    };
    // SAFETY: as in `foreign_socket`.
    let owner = owner(config, |level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) });
    (subject(owner.pod, config, now).behind(end), end.id)
}

/// Adds to a loss counter.
#[inline(always)]
pub(crate) fn lost(what: u32, count: u64) {
    if let Some(slot) = LOSSES.get_ptr_mut(what) {
        // SAFETY: this CPU's own slot, eight aligned bytes.
        unsafe { add(slot, count) };
    }
}

/// The kernel's tables, as `decide` reads them.
pub(crate) struct Tables<'a> {
    /// Boot clock, read once per packet.
    pub now: u64,
    /// The configuration.
    pub config: &'a Config,
    /// Where the hook stands.
    pub stage: Stage,
}

/// What a hook may ask beyond the tables.
pub(crate) enum Stage {
    /// Knows no socket; others follow that count the connection.
    Early,
    /// A socket call: likewise, but knows the socket.
    Call(Local),
    /// The wall: has the last word of a pod without a boundary, and takes its connections into
    /// account.
    Wall(Local),
    /// The boundary: takes connections into account, and knows the packet's socket and whose flows
    /// it may answer beside its own (see [`subject_behind`]).
    Boundary(*mut aya_ebpf::bindings::__sk_buff, PodId),
}

/// A hook's own socket.
#[derive(Clone, Copy)]
pub(crate) struct Local {
    /// [`Owner::cgroup`].
    pub cgroup: u64,
    /// The port it is bound to, host order; zero for none.
    pub port: u16,
    /// Its pod has a boundary, which knows what was opened toward it.
    pub bounded: bool,
}

impl Tables<'_> {
    /// Where `wall_ingress` may have remembered the flow: everything toward a pod without a
    /// boundary, and TCP that was opened before the boundary was there. A datagram that comes after
    /// is remembered at the interface.
    #[inline(always)]
    fn at_socket(&self, key: &ReplyKey) -> Option<ReplyKey> {
        let (cgroup, port) = match self.stage {
            Stage::Call(local) | Stage::Wall(local) if key.is_tcp() || !local.bounded => {
                (local.cgroup, local.port)
            }
            Stage::Boundary(_, end) if end != PodId::UNKNOWN && !key.is_tcp() => {
                return Some(key.of(end));
            }
            Stage::Boundary(skb, _) if key.is_tcp() => {
                // SAFETY: as in `foreign_socket`.
                let owner =
                    owner(self.config, |level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) });
                (owner.cgroup, socket_port(skb))
            }
            Stage::Early | Stage::Call(_) | Stage::Wall(_) | Stage::Boundary(..) => return None,
        };
        if cgroup == 0 { None } else { Some(key.at_socket(cgroup, port)) }
    }
}

/// Whether the wall has seen the packet as it left its socket: every packet of a pod's socket, but
/// those of packet sockets.
#[inline(always)]
pub(crate) fn passed_the_wall(config: &Config, skb: *mut aya_ebpf::bindings::__sk_buff) -> bool {
    const AF_PACKET: u32 = 17;
    // SAFETY: context fields, checked and rewritten by the verifier, which asks for the comparison
    // with null; the helper as in `foreign_socket`.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        !sk.is_null()
            && (*sk).family != AF_PACKET
            && config.kubepods != 0
            && bpf_skb_ancestor_cgroup_id(skb, config.kubepods_level as i32) == config.kubepods
    }
}

/// The port that the packet's socket is bound to, host order; zero without one.
#[inline(always)]
pub(crate) fn socket_port(skb: *mut aya_ebpf::bindings::__sk_buff) -> u16 {
    // SAFETY: context fields, checked and rewritten by the verifier, which asks for the comparison
    // with null.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() { 0 } else { (*sk).src_port as u16 }
    }
}

impl Lookup for Tables<'_> {
    #[inline(always)]
    fn exact(&self, key: &ExactKey) -> Option<Exact> {
        // SAFETY: eight bytes, replaced whole.
        unsafe { EXACT.get(key) }.copied()
    }

    #[inline(always)]
    fn address(&self, key: &AddressKey) -> u32 {
        // SAFETY: four bytes, replaced whole.
        unsafe { ADDRESSES.get(key) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn range(&self, key: &RangeKey) -> Range {
        RANGES.get(Key::new(RangeKey::FULL_BITS, *key)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn exception(&self, key: &ExceptionKey) -> Option<Exception> {
        // SAFETY: eight bytes, replaced whole.
        unsafe { EXCEPTIONS.get(key) }.copied()
    }

    #[inline(always)]
    fn reply(&self, key: &ReplyKey) -> bool {
        if crate::flow::answers(key, self.now) {
            return true;
        }
        match self.at_socket(key) {
            Some(key) => crate::flow::answers(&key, self.now),
            None => false,
        }
    }

    #[inline(always)]
    fn over_rate(&self, who: &Subject, _: GatewayId) -> bool {
        // SAFETY: an entry is replaced whole.
        match unsafe { POLICIES.get(who.policy) } {
            Some(policy) => {
                let take = match self.stage {
                    Stage::Early | Stage::Call(_) => false,
                    Stage::Wall(local) => !local.bounded,
                    Stage::Boundary(..) => true,
                };
                crate::rate::over(who, policy, self.now, take)
            }
            // As everywhere, a half-written map never widens.
            None => true,
        }
    }

    #[inline(always)]
    fn foreign_socket(&self, who: &Subject) -> bool {
        match self.stage {
            Stage::Boundary(skb, _) if who.flags & Pod::OWNER != 0 => {
                // SAFETY: the helper takes a level and returns the id of the socket's cgroup
                // there, zero without a socket or beyond its depth (Linux 4.18; at this hook the
                // socket of the pod's namespace is still known).
                let owner =
                    owner(self.config, |level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) });
                !owner.pod.is_some_and(|owner| {
                    owner.id == who.pod
                        || (matches!(who.capture, Capture::Ambient)
                            && owner.flags & Pod::MESH_PROXY != 0)
                })
            }
            Stage::Boundary(..) | Stage::Wall(_) | Stage::Call(_) | Stage::Early => false,
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        self.now
    }

    #[inline(always)]
    fn settled(&self, ruling: Ruling) -> Ruling {
        forget_ruling(ruling, self.now)
    }
}

impl Endpoints for Tables<'_> {
    #[inline(always)]
    fn endpoint(&self, key: &RedirectKey) -> Option<RedirectTo> {
        // SAFETY: an entry is replaced whole; one read while it is, is judged like any other.
        unsafe { REDIRECTS.get(key) }.copied()
    }
}

/// The `__sk_buff` of either packet context.
#[inline(always)]
pub(crate) fn skb<C: EbpfContext>(ctx: &C) -> *mut aya_ebpf::bindings::__sk_buff {
    ctx.as_ptr().cast()
}
