//! What passed of pods that were not wholly covered.

/// Value of the table of what passed while its pod was not wholly covered; one per CPU. Keyed by the
/// pod's cgroup ([`PodId::of_cgroup`](crate::key::PodId::of_cgroup)), and for what only the boundary saw by the interface
/// ([`PodId::of_interface`](crate::key::PodId::of_interface)).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Exposed {
    /// Packets that passed.
    pub packets: u64,
    /// Boot clock nanoseconds of the first.
    pub first: u64,
    /// Boot clock nanoseconds of the last.
    pub last: u64,
}

const _: () = assert!(size_of::<Exposed>() == 24);
