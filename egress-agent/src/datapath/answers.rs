//! DNS answers as they come back from the kernel.

use std::os::fd::{AsRawFd, RawFd};

use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use egress_common::dns;
use tokio::io::unix::AsyncFd;

use super::maps::take;
use super::{DatapathError, sys};

const LOSSES: &str = "ANSWER_LOSSES";

/// The ring of DNS answers, and what is lost before it; one reader at a time.
pub struct AnswerRing {
    ring: RingBuf<MapData>,
    losses: PerCpuArray<MapData, u64>,
}

impl AnswerRing {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self { ring: take(ebpf, "ANSWERS")?, losses: take(ebpf, LOSSES)? })
    }

    /// The ring together with a way to wait until it has something.
    ///
    /// # Errors
    /// When the runtime cannot wait for it.
    pub fn wait(self) -> std::io::Result<AsyncFd<Self>> {
        sys::readable(self)
    }

    /// Gives the next answer that is there already to `read`; false where there is none. Never waits.
    pub fn next(&mut self, read: impl FnOnce(Result<(dns::Head, &[u8]), dns::BadRecord>)) -> bool {
        let Some(sample) = self.ring.next() else {
            return false;
        };
        read(dns::read(&sample));
        true
    }

    /// Answers the kernel side lost, in the order of [`dns::loss`].
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn losses(&self) -> Result<[u64; dns::loss::NAMES.len()], DatapathError> {
        let mut sums = [0; dns::loss::NAMES.len()];
        for (slot, sum) in (0..).zip(&mut sums) {
            let values = self.losses.get(&slot, 0);
            let values = values.map_err(|source| DatapathError::Map { map: LOSSES, source })?;
            *sum = values.iter().sum();
        }
        Ok(sums)
    }
}

impl AsRawFd for AnswerRing {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
