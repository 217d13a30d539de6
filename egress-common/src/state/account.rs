//! What accounts for decisions beyond their counters: what was lost, what was told lately, who made
//! a call, and what became of the events.

use crate::key::{Addr, PodId};

/// Who made the last call of a socket. Value of the process table, by socket cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Name, zero-padded.
    pub comm: [u8; 16],
}

/// What user space did with the events it read, kept in the kernel so that it outlives an agent.
/// Every number only rises.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tally {
    /// Names the sequence: nanoseconds since the epoch when it began; zero before. A new one begins
    /// with every boot and every fresh installation.
    pub stream: u64,
    /// The last sequence number given out.
    pub sequence: u64,
    /// Counted events read from the ring.
    pub read: u64,
    /// Decisions that written records stand for, without those that the kernel suppressed.
    pub told: u64,
    /// Records written.
    pub written: u64,
    /// Decisions that were read and not told, by [`tally`] stage.
    pub lost: [u64; tally::STAGES],
}

/// Where user space can lose an event it has read: index into [`Tally::lost`].
pub mod tally {
    /// A record that is no event of this version.
    pub const DECODE: usize = 0;
    /// More different decisions at once than are kept apart.
    pub const AGGREGATE_FULL: usize = 1;
    /// The output could not be written.
    pub const OUTPUT: usize = 2;
    /// The output could not be turned over to its next file.
    pub const ROTATE: usize = 3;
    /// An agent that died with it untold.
    pub const RESTART: usize = 4;
    /// Stages, with room for more.
    pub const STAGES: usize = 8;
    /// Metric label of each stage there is.
    pub const NAMES: [&str; 5] = ["decode", "aggregate_full", "output", "rotate", "restart"];
}

/// Nanoseconds during which a repeated decision of one CPU raises no second event.
pub const SUPPRESS_NS: u64 = 100_000_000;

/// Key of the duplicate-suppression table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeenKey {
    /// The pod.
    pub pod: PodId,
    /// The destination.
    pub dst: Addr,
    /// Destination port, network order.
    pub port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// Number of a [`Verdict`].
    pub verdict: u8,
    /// Number of a [`Reason`].
    pub reason: u8,
    /// Number of a [`crate::packet::Hook`].
    pub hook: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Value of the duplicate-suppression table; one per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seen {
    /// Boot clock nanoseconds of the last event sent.
    pub last: u64,
    /// Decisions since then that sent none.
    pub suppressed: u64,
}

const _: () = {
    assert!(size_of::<SeenKey>() == 32);
    assert!(size_of::<Seen>() == 16);
    assert!(size_of::<Process>() == 24);
    assert!(size_of::<Tally>() == 40 + 8 * tally::STAGES);
};
