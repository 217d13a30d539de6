//! Map values.
//!
//! The agent writes these; the kernel only reads them, except counters, replies and the
//! duplicate-suppression table, which only the kernel writes.

mod account;
mod exposed;
pub mod loss;

pub use account::{Process, SUPPRESS_NS, Seen, SeenKey, Tally, tally};

use crate::key::{Addr, GatewayId, NamespaceId, PodId, PolicyId};
use crate::reason::{Mode, Reason, Verdict, closed_enum};

pub use exposed::Exposed;

closed_enum! {
    /// How the mesh captures a pod's traffic.
    pub enum Capture {
        /// Not at all: what the app dials is what the kernel sends.
        None = 0 "none",
        /// A proxy in the pod, with its own uid and gid.
        Sidecar = 1 "sidecar",
        /// The node's ztunnel, with sockets inside the pod's network namespace.
        Ambient = 2 "ambient",
    }
}

closed_enum! {
    /// What a pod is told of a denied packet.
    pub enum DenyResponse {
        /// Nothing: it waits until it gives up.
        Drop = 0 "drop",
        /// A TCP reset, or "administratively prohibited" for UDP: it fails at once.
        Reset = 1 "reset",
    }
}

closed_enum! {
    /// What the kernel does when the agent's heartbeat is older than the lease.
    pub enum OnAgentLoss {
        /// Keep deciding by the last policy.
        Hold = 0 "hold",
        /// Refuse new connections, keep established ones.
        DenyNew = 1 "denyNew",
        /// Report instead of dropping.
        Audit = 2 "audit",
    }
}

/// Who a cgroup or an interface belongs to. Value of the pod table (by cgroup id) and of the
/// interface table (by ifindex).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pod {
    /// The pod.
    pub id: PodId,
    /// The one policy that governs it, or [`PolicyId::NONE`].
    pub policy: PolicyId,
    /// Number of a [`Capture`].
    pub capture: u8,
    /// [`Pod::BOUNDARY`] and other bits.
    pub flags: u8,
    /// The pod's MAC, as its side of the veth reports it; zero in the pod table.
    pub mac: [u8; 6],
    /// The mesh proxy's user, where capture is `sidecar`; [`Pod::NO_PROXY`] otherwise.
    pub proxy_uid: u32,
    /// The mesh proxy's group, likewise.
    pub proxy_gid: u32,
    /// The pod's IPv4 address, or unspecified.
    pub v4: Addr,
    /// The pod's IPv6 address, or unspecified.
    pub v6: Addr,
    /// Its namespace, by the hash of the name: what a namespace's rate is counted under.
    pub namespace: NamespaceId,
    /// Index, inside the pod, of the interface behind whose other end the boundary was seen to be
    /// attached; zero for none. What leaves by it the wall may leave to the boundary.
    pub guarded: u32,
    /// The pod's network namespace as the node numbers it (`IFLA_LINK_NETNSID`), plus one; zero
    /// for none.
    pub netns: u32,
}

impl Pod {
    /// The pod's veth carries `pod_egress`, which then counts what the wall lets through.
    pub const BOUNDARY: u8 = 1;
    /// The pod's cgroup is known, and its mesh proxy's where it has one outside: a socket of
    /// another owner can be told.
    pub const OWNER: u8 = 2;
    /// The node's mesh proxy (ztunnel), which opens sockets inside other pods' namespaces.
    pub const MESH_PROXY: u8 = 4;
    /// It shares the node's network: no interface is its own, and the node's addresses are.
    pub const HOST: u8 = 8;
    /// Its policy has not opted in pods on the node's network: what it denies passes and is told.
    pub const AUDITED: u8 = 16;
    /// Of an interface: it leads to a pod that the agent has not learned. `id` is the interface's
    /// ([`PodId::of_interface`]), the addresses are those it was seen to carry.
    pub const UNLEARNED: u8 = 32;
    /// A uid and gid that no process has.
    pub const NO_PROXY: u32 = u32::MAX;
}

/// Value of the policy table: what all pods of a policy share.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Policy {
    /// Number of a [`Mode`].
    pub mode: u8,
    /// Number of an [`OnAgentLoss`].
    pub on_agent_loss: u8,
    /// Number of a [`DenyResponse`].
    pub deny_response: u8,
    /// Other than zero where some ports of the outside are redirected ([`crate::redirect`]).
    pub redirect: u8,
    /// Zero.
    pub pad: [u8; 4],
    /// Connections of one pod toward gateways.
    pub pod_rate: Rate,
    /// Connections of all pods of one namespace on this node toward gateways.
    pub namespace_rate: Rate,
}

impl Policy {
    /// A policy without rates.
    pub const fn new(mode: Mode, on_agent_loss: OnAgentLoss) -> Self {
        Self {
            mode: mode.number(),
            on_agent_loss: on_agent_loss.number(),
            deny_response: DenyResponse::Drop.number(),
            redirect: 0,
            pad: [0; 4],
            pod_rate: Rate::NONE,
            namespace_rate: Rate::NONE,
        }
    }
}

/// How often something may happen, as a token bucket: virtual scheduling, which needs one number
/// for each bucket and no lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate {
    /// Nanoseconds one connection costs; zero for no limit.
    pub interval: u64,
    /// Nanoseconds a bucket may be ahead of the clock: what the burst, less one, costs.
    pub tolerance: u64,
}

impl Rate {
    /// No limit.
    pub const NONE: Self = Self { interval: 0, tolerance: 0 };

    /// `per_second` connections, `burst` of them at once; both at least 1.
    pub const fn per_second(per_second: u32, burst: u32) -> Self {
        let interval = 1_000_000_000 / per_second as u64;
        Self { interval, tolerance: interval * (burst as u64 - 1) }
    }

    /// Whether a bucket that is filled up to `at` (boot clock, nanoseconds) has room for one more.
    #[inline(always)]
    pub const fn allows(&self, at: u64, now: u64) -> bool {
        at <= now.saturating_add(self.tolerance)
    }
}

/// Key of the bucket table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketKey {
    /// Number of a pod or of a namespace.
    pub id: u64,
    /// [`BucketKey::POD`], [`BucketKey::NAMESPACE`] or one of the event buckets.
    pub kind: u32,
    /// The policy whose rate it is: a pod that changes policy starts with a full bucket.
    /// [`PolicyId::NONE`] for event buckets.
    pub policy: PolicyId,
}

impl BucketKey {
    /// The bucket of one pod.
    pub const POD: u32 = 1;
    /// The bucket of a namespace's pods on this node.
    pub const NAMESPACE: u32 = 2;
    /// Events of one pod.
    pub const POD_EVENTS: u32 = 3;
    /// Events of the node; the number is zero.
    pub const NODE_EVENTS: u32 = 4;
}

/// New decisions of one pod that may be told: what one pod puts into the ring.
pub const POD_EVENT_RATE: Rate = Rate::per_second(10, 200);

/// New decisions of the whole node that may be told. The ring has room for three bursts, and the
/// reader looks ten times a second.
pub const NODE_EVENT_RATE: Rate = Rate::per_second(500, 600);

closed_enum! {
    /// What an entry of the exact table is.
    pub enum Target {
        /// A resolver this policy names.
        Resolver = 1 "resolver",
        /// A gateway endpoint.
        Gateway = 2 "gateway",
        /// A gateway endpoint that is being drained.
        Draining = 3 "draining",
        /// API server, istiod, telemetry.
        Infrastructure = 4 "infrastructure",
        /// A node address, listed with protocol and port.
        Node = 5 "node",
        /// A Service port that ends outside the cluster.
        HiddenExternal = 6 "hidden_external",
    }
}

/// Value of the exact table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Exact {
    /// The gateway of a `gateway` or `draining` entry, else [`GatewayId::NONE`].
    pub gateway: GatewayId,
    /// Number of a [`Target`].
    pub target: u8,
    /// Zero.
    pub pad: [u8; 3],
}

impl Exact {
    /// An entry that belongs to no gateway.
    pub const fn plain(target: Target) -> Self {
        Self { gateway: GatewayId::NONE, target: target.number(), pad: [0; 3] }
    }

    /// An entry of a gateway.
    pub const fn gateway(gateway: GatewayId, draining: bool) -> Self {
        let target = if draining { Target::Draining } else { Target::Gateway };
        Self { gateway, target: target.number(), pad: [0; 3] }
    }
}

/// Bits of the address table: what is true of an address whatever the port.
pub mod address {
    /// An address of one of this policy's gateways.
    pub const GATEWAY: u32 = 1;
    /// An address of a gateway the node knows and this policy does not name.
    pub const FOREIGN_GATEWAY: u32 = 2;
    /// A Service that ends outside the cluster on at least one port.
    pub const HIDDEN_EXTERNAL: u32 = 4;
}

/// Bits of [`Range::kinds`]. A prefix carries the union of its own bits and those of every wider
/// prefix, because the trie returns only the longest match.
pub mod range {
    /// Pod or service range of the cluster.
    pub const CLUSTER: u32 = 1;
    /// A node's address.
    pub const NODE: u32 = 2;
    /// The cloud's metadata service.
    pub const METADATA: u32 = 4;
    /// A virtual address of the mesh.
    pub const MESH_VIP: u32 = 8;
    /// A remote whose connections toward the pod may be answered.
    pub const INBOUND: u32 = 16;
    /// An address of this very node: to a pod on the node's network it is its own.
    pub const THIS_NODE: u32 = 32;
}

/// Value of the range trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// Bits of [`range`].
    pub kinds: u32,
    /// The exception set to consult, or zero.
    pub exceptions: u32,
}

impl Range {
    /// Whether all the bits are set.
    #[inline(always)]
    pub const fn has(&self, kinds: u32) -> bool {
        self.kinds & kinds == kinds
    }
}

/// Value of the exception table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Exception {
    /// End, in nanoseconds of the boot clock (`CLOCK_BOOTTIME`), compared in the kernel.
    pub expires: u64,
}

/// The one entry of the configuration table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Config {
    /// Nanoseconds after which a silent agent's lease has expired; zero for never.
    pub lease: u64,
    /// Id of the `kubepods` cgroup, below which the wall sees every packet of a socket.
    pub kubepods: u64,
    /// Number of the compiled policy in force.
    pub generation: u32,
    /// Bit of the packet mark that says: allowed at the boundary for a policy in mode audit; zero
    /// where packets are not marked.
    pub mark_audit: u32,
    /// The same for mode enforce.
    pub mark_enforce: u32,
    /// Absolute level of the `kubepods` cgroup, as `bpf_get_current_ancestor_cgroup_id` counts.
    pub kubepods_level: u8,
    /// Number of the [`Mode`] for pods the agent has not learned.
    pub unknown_pod: u8,
    /// Number of the [`Mode`] of the source guard on pods no policy enforces.
    pub guard: u8,
    /// Zero.
    pub pad: u8,
}

/// Value of the reply table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reply {
    /// Boot clock nanoseconds of the last packet in either direction.
    pub last_seen: u64,
    /// Boot clock nanoseconds when the pod's table last passed over it, looking for room.
    pub passed: u64,
}

/// Flows from outside that are remembered for one pod. A pod that is flooded forgets its own
/// flows and nobody else's.
pub const REPLIES_PER_POD: u32 = 512;

/// Key of the places in a pod's reply table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlaceKey {
    /// The pod.
    pub pod: PodId,
    /// Below [`REPLIES_PER_POD`].
    pub place: u32,
    /// Zero.
    pub pad: u32,
}

/// Key of the per-pod counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterKey {
    /// The pod.
    pub pod: PodId,
    /// The gateway, where the reason is about one.
    pub gateway: GatewayId,
    /// Number of a [`Verdict`].
    pub verdict: u8,
    /// Number of a [`Reason`].
    pub reason: u8,
    /// Number of a [`Direction`].
    pub direction: u8,
    /// Zero.
    pub pad: u8,
}

impl CounterKey {
    /// The key a ruling is counted under.
    #[inline(always)]
    pub const fn new(
        pod: PodId,
        gateway: GatewayId,
        verdict: Verdict,
        reason: Reason,
        direction: Direction,
    ) -> Self {
        Self {
            pod,
            gateway,
            verdict: verdict.number(),
            reason: reason.number(),
            direction: direction.number(),
            pad: 0,
        }
    }
}

closed_enum! {
    /// Which way counted traffic went, seen from the pod.
    pub enum Direction {
        /// Sent by the pod.
        Tx = 0 "tx",
        /// Toward the pod.
        Rx = 1 "rx",
    }
}

/// Value of the per-pod and the node counters; one per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counter {
    /// Connections opened or attempted: TCP SYNs and refused `connect` calls; for protocols
    /// without connections, datagrams.
    pub connections: u64,
    /// Packets; a packet the kernel will segment later counts once.
    pub packets: u64,
    /// Bytes on the wire, link header included.
    pub bytes: u64,
}

const _: () = {
    assert!(size_of::<Pod>() == 72);
    assert!(size_of::<Policy>() == 40);
    assert!(size_of::<Rate>() == 16);
    assert!(size_of::<BucketKey>() == 16);
    assert!(size_of::<PlaceKey>() == 16);
    assert!(size_of::<Exact>() == 8);
    assert!(size_of::<Range>() == 8);
    assert!(size_of::<Exception>() == 8);
    assert!(size_of::<Config>() == 32);
    assert!(size_of::<Reply>() == 16);
    assert!(size_of::<CounterKey>() == 16);
    assert!(size_of::<Counter>() == 24);
};
