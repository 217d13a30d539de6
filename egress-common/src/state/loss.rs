//! Index into the loss counters: every place where the kernel side can lose something.

/// The event ring was full.
pub const RING: u32 = 0;
/// The per-pod counter table was full; the node counters still counted.
pub const COUNTER: u32 = 1;
/// The reply table refused an entry: the pod cannot answer that flow.
pub const REPLY: u32 = 2;
/// Counted decisions that sent no event, because the same was told shortly before
/// ([`SUPPRESS_NS`](super::SUPPRESS_NS), or longer while its pod tells too much; the next event
/// carries their number) or because it is no news (listener reports).
pub const SUPPRESSED: u32 = 3;
/// What a redirected socket asked for could not be remembered: it is told the gateway's address.
pub const ORIGINAL: u32 = 4;
/// The table of what passed while its pod was not covered was full.
pub const EXPOSED: u32 = 5;
/// Counted decisions that sent no event, because their pod told too many others
/// ([`POD_EVENT_RATE`](super::POD_EVENT_RATE)).
pub const BUCKET_POD: u32 = 6;
/// The same, because all pods together did ([`NODE_EVENT_RATE`](super::NODE_EVENT_RATE)).
pub const BUCKET_NODE: u32 = 7;
/// Calls let through that sent no event, for any reason: the packets they become are counted and
/// told by themselves.
pub const CALL: u32 = 8;
/// Entries of the table.
pub const SLOTS: u32 = 9;
/// The stages at which a counted decision loses its event.
pub const EVENTS: [&str; 3] = ["ring", "bucket_pod", "bucket_node"];
/// Metric label of each index.
pub const NAMES: [&str; 9] = [
    "ring",
    "counter",
    "reply",
    "suppressed",
    "original",
    "exposed",
    "bucket_pod",
    "bucket_node",
    "call",
];
