//! The record of a DNS answer toward a pod, and its one reader.
//!
//! The kernel copies what a resolver sends; it reads nothing of it. A record is a [`Head`] and room
//! for the first bytes of the payload, in one of two sizes.

use crate::key::{Addr, PodId};
use crate::state::Rate;

/// Port that resolvers answer from.
pub const PORT: u16 = 53;
/// Room for payload in a record of the small size, bytes: most answers over UDP.
pub const SMALL: usize = 512;
/// Room for payload in a record of the large size, bytes. What a payload has beyond is not read.
pub const LARGE: usize = 4096;

/// Answers of one pod that are copied; what is more is counted as lost ([`loss::RATE`]).
pub const ANSWER_RATE: Rate = Rate::per_second(250, 250);

/// What is known of an answer beside its bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Boot clock nanoseconds.
    pub time: u64,
    /// The pod it goes to.
    pub pod: PodId,
    /// The resolver it comes from.
    pub resolver: Addr,
    /// Bytes of payload behind the transport header, copied or not.
    pub whole: u32,
    /// TCP sequence number of the first byte of the payload, of a SYN its own; zero for UDP.
    pub sequence: u32,
    /// Bytes of payload in the record, at most [`LARGE`].
    pub copied: u16,
    /// The pod's port, host order.
    pub port: u16,
    /// IP protocol, TCP or UDP.
    pub protocol: u8,
    /// TCP flags, or zero.
    pub tcp_flags: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// A record as it lies in the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Record<const ROOM: usize> {
    /// What is known of it.
    pub head: Head,
    /// The payload, [`Head::copied`] bytes of it.
    pub payload: [u8; ROOM],
}

const _: () = {
    assert!(size_of::<Head>() == 48);
    assert!(size_of::<Record<SMALL>>() == 48 + SMALL);
    assert!(size_of::<Record<LARGE>>() == 48 + LARGE);
};

/// Where the kernel side can lose an answer: index into its loss counters.
pub mod loss {
    /// The ring was full.
    pub const RING: u32 = 0;
    /// The pod got more than [`ANSWER_RATE`](super::ANSWER_RATE).
    pub const RATE: u32 = 1;
    /// The payload could not be copied.
    pub const COPY: u32 = 2;
    /// Entries of the table.
    pub const SLOTS: u32 = 3;
    /// Metric label of each index.
    pub const NAMES: [&str; 3] = ["ring", "rate", "copy"];
}

/// A ring sample that is no record of this schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Length of the sample, bytes.
    pub len: usize,
}

impl core::fmt::Display for BadRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "a sample of {} bytes is no DNS answer", self.len)
    }
}

impl core::error::Error for BadRecord {}

/// Reads a ring sample: what is known of the answer, and the bytes that were copied.
///
/// # Errors
/// [`BadRecord`] where the sample has neither size, or says that it holds more than it does.
pub fn read(sample: &[u8]) -> Result<(Head, &[u8]), BadRecord> {
    let bad = BadRecord { len: sample.len() };
    let Some((head, payload)) = sample.split_at_checked(size_of::<Head>()) else {
        return Err(bad);
    };
    if payload.len() != SMALL && payload.len() != LARGE {
        return Err(bad);
    }
    // SAFETY: the length was checked; every bit pattern is a `Head`, whose fields are integers and
    // integer arrays; `read_unaligned` asks for no alignment.
    let head: Head = unsafe { core::ptr::read_unaligned(head.as_ptr().cast()) };
    match payload.get(..usize::from(head.copied)) {
        Some(copied) => Ok((head, copied)),
        None => Err(bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: usize = size_of::<Head>();
    /// Offset of [`Head::copied`].
    const COPIED: usize = core::mem::offset_of!(Head, copied);

    #[test]
    fn a_record_gives_as_many_bytes_as_were_copied() {
        let mut sample = [7u8; HEAD + SMALL];
        sample[COPIED..COPIED + 2].copy_from_slice(&3u16.to_ne_bytes());
        let (head, payload) = read(&sample).unwrap();
        assert_eq!((head.copied, payload), (3, &[7, 7, 7][..]));
    }

    #[test]
    fn samples_of_another_size_or_with_less_than_they_say_are_refused() {
        for len in [0, HEAD - 1, HEAD, HEAD + SMALL - 1, HEAD + SMALL + 1] {
            assert_eq!(read(&[0; HEAD + LARGE][..len]).unwrap_err(), BadRecord { len });
        }
        let mut sample = [0u8; HEAD + SMALL];
        sample[COPIED..COPIED + 2].copy_from_slice(&(SMALL as u16 + 1).to_ne_bytes());
        assert!(read(&sample).is_err());
    }
}
