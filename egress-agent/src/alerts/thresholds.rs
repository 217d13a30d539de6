//! The numbers in the rules, and why they are what they are. Durations are seconds.

/// Over which increases are taken. Four scrapes at the usual thirty seconds, and as many to lose.
pub const WINDOW: u64 = 300;
/// Between two evaluations of the recorded classes; thirty days are summed from such steps.
pub const STEP: u64 = 60;

/// Denied packets of one workload in a window that are no accident: a client that retries every
/// minute stays below.
pub const SUSTAINED_PACKETS: u64 = 5;
/// How long a workload keeps at it before somebody is woken.
pub const SUSTAINED_FOR: u64 = 900;

/// A namespace's bytes to the outside surge when they exceed this many times what they were.
pub const SURGE_TIMES: u64 = 4;
/// What a namespace's bytes are compared with: the value that 95 % of the day before stayed below.
pub const SURGE_BASELINE: u64 = 86_400;
/// The minutes before now that are not yet part of the baseline.
pub const SURGE_SETTLED: u64 = 900;
/// Bytes a second below which no namespace's baseline is taken to be, so that a quiet one does not
/// alert for a download: it surges from four times this, one MiB a second.
pub const SURGE_FLOOR: u64 = 262_144;
/// One burst is a deployment; this long is not.
pub const SURGE_FOR: u64 = 300;

/// Denials of a namespace rise when they exceed this many times the hour before.
pub const RISING_TIMES: u64 = 3;
/// What they are compared with.
pub const RISING_BASELINE: u64 = 3600;
/// The minutes before now that are not yet part of it.
pub const RISING_SETTLED: u64 = 900;
/// Denied packets a second below which nothing is called a rise.
pub const RISING_FLOOR: u64 = 1;
/// How long a rise lasts before it is told.
pub const RISING_FOR: u64 = 600;

/// A pod gets its cgroup and its interface within seconds; what lacks one after this is stuck.
pub const UNCOVERED_FOR: u64 = 600;
/// A rollout replaces a gateway's endpoints in less.
pub const EMPTY_FOR: u64 = 120;
/// The registry is checked every few seconds; an API server's upgrade takes less than this.
pub const STALE_AFTER: u64 = 300;
/// An agent's upgrade takes less.
pub const DOWN_FOR: u64 = 300;
/// The agent beats every second; a loop that hangs for this long does not come back.
pub const HUNG_AFTER: u64 = 60;
/// Time to watch what enforce would drop, and no more.
pub const AUDIT_FOR: u64 = 14 * 86_400;
/// How densely those days are looked at.
pub const AUDIT_STEP: u64 = 3600;
/// Over which lost events are counted.
pub const LOST_WINDOW: u64 = 600;
/// Part of a table, in percent, from which it is time to grow it: a plan that does not fit is
/// refused whole.
pub const FULL_PERCENT: u64 = 80;
/// Policies come and go; a table that stays this full will be full.
pub const FULL_FOR: u64 = 600;
/// Time to extend an exception that is still needed, or to warn who uses it.
pub const EXPIRING_WITHIN: u64 = 3600;

/// How far back the auditor asks.
pub const AUDITED: u64 = 30 * 86_400;
/// How often the answer is renewed: Prometheus shows nothing that is older than five minutes.
pub const AUDITED_EVERY: u64 = 240;
