//! The record the kernel writes to the event ring, and its one reader.

use crate::key::{Addr, GatewayId, PodId, PolicyId};

/// One decision worth telling: drops and audits, first at once, repeats suppressed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Boot clock nanoseconds.
    pub time: u64,
    /// The pod.
    pub pod: PodId,
    /// Repeats of this decision on this CPU that sent no event since the last one.
    pub suppressed: u64,
    /// Its policy.
    pub policy: PolicyId,
    /// The gateway the reason is about, if any.
    pub gateway: GatewayId,
    /// Generation of the compiled policy that decided.
    pub generation: u32,
    /// Process id in the initial namespace: of the caller or, for a packet, of who made the call
    /// that its socket was last seen with; zero where no call was seen.
    pub pid: u32,
    /// User id of that process or else of the packet's socket; `u32::MAX` where unknown.
    pub uid: u32,
    /// Index of the interface, for packet hooks.
    pub ifindex: u32,
    /// Length in bytes, link header included; zero for socket calls.
    pub len: u32,
    /// Source address, unspecified for socket calls.
    pub src: Addr,
    /// Destination as the kernel would send it.
    pub dst: Addr,
    /// Source or local port, host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Number of a [`crate::packet::Hook`].
    pub hook: u8,
    /// Number of a [`crate::packet::Shape`].
    pub shape: u8,
    /// Number of a [`crate::Verdict`].
    pub verdict: u8,
    /// Number of a [`crate::Reason`].
    pub reason: u8,
    /// The numbered line of the decision.
    pub line: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// 1 where this hook was the last word on the packet and counted it; 0 where a later hook
    /// will see it again.
    pub counted: u8,
    /// Name of the process, zero-padded; empty where none is known.
    pub comm: [u8; 16],
    /// Id of the cgroup of the caller or of the packet's socket: a container's. Zero without one.
    pub cgroup: u64,
    /// Address family of the packet's socket (`AF_INET` 2, `AF_INET6` 10, `AF_PACKET` 17,
    /// `AF_XDP` 44); zero for a socket call, and for a packet without a socket.
    pub socket_family: u8,
    /// Type of the packet's socket (`SOCK_STREAM` 1, `SOCK_DGRAM` 2, `SOCK_RAW` 3, `SOCK_PACKET`
    /// 10); zero likewise.
    pub socket_type: u8,
    /// Zero.
    pub pad: [u8; 6],
}

impl Event {
    /// Size of a record in the ring, bytes.
    pub const SIZE: usize = size_of::<Self>();
}

const _: () = {
    assert!(Event::SIZE == 128);
    // The last field ends where the record does: no byte is left to chance.
    assert!(core::mem::offset_of!(Event, pad) + 6 == Event::SIZE);
};

/// A ring sample that is not an event of this schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadSample {
    /// Length of the sample, bytes; [`Event::SIZE`] was expected.
    pub len: usize,
}

impl core::fmt::Display for BadSample {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "event of {} bytes, expected {}", self.len, Event::SIZE)
    }
}

impl core::error::Error for BadSample {}

impl Event {
    /// Reads a ring sample.
    ///
    /// # Errors
    /// [`BadSample`] when the length is not exactly [`Event::SIZE`].
    pub fn read(sample: &[u8]) -> Result<Self, BadSample> {
        if sample.len() != Self::SIZE {
            return Err(BadSample { len: sample.len() });
        }
        // SAFETY: the length was checked; every bit pattern is an `Event`, whose fields are
        // integers and integer arrays; `read_unaligned` asks for no alignment.
        Ok(unsafe { core::ptr::read_unaligned(sample.as_ptr().cast()) })
    }

    /// The process name up to the first zero byte; non-UTF-8 names come back as `None`.
    pub fn comm(&self) -> Option<&str> {
        let end = self.comm.iter().position(|byte| *byte == 0).unwrap_or(self.comm.len());
        core::str::from_utf8(&self.comm[..end]).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_and_oversized_samples_are_refused() {
        for len in [0, 1, Event::SIZE - 1, Event::SIZE + 1] {
            let sample = [0u8; Event::SIZE + 1];
            assert_eq!(Event::read(&sample[..len]), Err(BadSample { len }));
        }
    }

    #[test]
    fn an_unaligned_sample_reads_every_field() {
        let mut sample = [0u8; Event::SIZE + 1];
        sample[1..9].copy_from_slice(&7u64.to_ne_bytes());
        sample[1 + 96..1 + 100].copy_from_slice(b"curl");
        let event = Event::read(&sample[1..]).unwrap();
        assert_eq!((event.time, event.comm()), (7, Some("curl")));
    }
}
