//! Index into the loss counters: every place where the kernel side can lose something.

/// The event ring was full.
pub const RING: u32 = 0;
/// The per-pod counter table was full; the node counters still counted.
pub const COUNTER: u32 = 1;
/// The reply table refused an entry: the pod cannot answer that flow.
pub const REPLY: u32 = 2;
/// Events not sent because the same decision was reported less than
/// [`SUPPRESS_NS`](super::SUPPRESS_NS) before; the next event carries their number.
pub const SUPPRESSED: u32 = 3;
/// What a redirected socket asked for could not be remembered: it is told the gateway's address.
pub const ORIGINAL: u32 = 4;
/// The table of what passed while its pod was not covered was full.
pub const EXPOSED: u32 = 5;
/// Entries of the table.
pub const SLOTS: u32 = 6;
/// Metric label of each index.
pub const NAMES: [&str; 6] = ["ring", "counter", "reply", "suppressed", "original", "exposed"];
