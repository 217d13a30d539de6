//! What comes back from the kernel: counters, losses and the event ring.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuHashMap, RingBuf};
use egress_common::dns;
use egress_common::event::{BadSample, Event};
use egress_common::state::{Counter, CounterKey, loss};
use egress_common::{Reason, Verdict};
use tokio::io::unix::AsyncFd;

use super::maps::take;
use super::{DatapathError, Options};

/// Reads the counters; cheap to clone, safe to use beside the agent's own writes.
#[derive(Clone)]
pub struct CounterReader {
    maps: Arc<Counters>,
}

struct Counters {
    options: Options,
    pods: PerCpuHashMap<MapData, CounterKey, Counter>,
    node: PerCpuArray<MapData, Counter>,
    losses: PerCpuArray<MapData, u64>,
    answers: PerCpuArray<MapData, u64>,
}

fn open<T: TryFrom<Map, Error = MapError>>(
    options: &Options,
    map: &'static str,
    kind: impl FnOnce(MapData) -> Map,
) -> Result<T, DatapathError> {
    let opened = MapData::from_pin(options.map_pin(map)).and_then(|data| T::try_from(kind(data)));
    opened.map_err(|source| DatapathError::Map { map, source })
}

impl CounterReader {
    /// Opens the pinned counters.
    ///
    /// # Errors
    /// When a pin is missing or is no map of the expected type.
    pub fn open(options: &Options) -> Result<Self, DatapathError> {
        let maps = Counters {
            options: options.clone(),
            pods: open(options, "COUNTERS", Map::PerCpuHashMap)?,
            node: open(options, "NODE_COUNTERS", Map::PerCpuArray)?,
            losses: open(options, "LOSSES", Map::PerCpuArray)?,
            answers: open(options, "ANSWER_LOSSES", Map::PerCpuArray)?,
        };
        Ok(Self { maps: Arc::new(maps) })
    }

    /// Per-pod counters, summed over CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<BTreeMap<CounterKey, Counter>, DatapathError> {
        let mut sums = BTreeMap::new();
        for entry in self.maps.pods.iter() {
            let (key, values) =
                entry.map_err(|source| DatapathError::Map { map: "COUNTERS", source })?;
            sums.insert(key, sum(values.iter()));
        }
        Ok(sums)
    }

    /// Removes per-pod counters; one that is not there is removed already.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn forget(&self, keys: &[CounterKey]) -> Result<(), DatapathError> {
        if keys.is_empty() {
            return Ok(());
        }
        // A handle of its own: every other use of the counters only reads.
        let mut pods: PerCpuHashMap<MapData, CounterKey, Counter> =
            open(&self.maps.options, "COUNTERS", Map::PerCpuHashMap)?;
        for key in keys {
            match pods.remove(key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(DatapathError::Map { map: "COUNTERS", source }),
            }
        }
        Ok(())
    }

    /// The node's totals of every verdict and reason, zeroes included.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn node(&self) -> Result<BTreeMap<(Verdict, Reason), Counter>, DatapathError> {
        let mut totals = BTreeMap::new();
        for verdict in Verdict::ALL {
            for reason in Reason::ALL {
                let slot = u32::from(verdict.number()) * Reason::SLOTS + u32::from(reason.number());
                let values = self.maps.node.get(&slot, 0);
                let values =
                    values.map_err(|source| DatapathError::Map { map: "NODE_COUNTERS", source })?;
                totals.insert((*verdict, *reason), sum(values.iter()));
            }
        }
        Ok(totals)
    }

    /// What the kernel side lost or suppressed, by name.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn losses(&self) -> Result<Vec<(&'static str, u64)>, DatapathError> {
        of_slots("LOSSES", &self.maps.losses, &loss::NAMES)
    }

    /// DNS answers the kernel side lost, by stage.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn lost_answers(&self) -> Result<Vec<(&'static str, u64)>, DatapathError> {
        of_slots("ANSWER_LOSSES", &self.maps.answers, &dns::loss::NAMES)
    }
}

/// Each slot's name with its sum over CPUs.
fn of_slots(
    map: &'static str,
    slots: &PerCpuArray<MapData, u64>,
    names: &[&'static str],
) -> Result<Vec<(&'static str, u64)>, DatapathError> {
    let sum = |(slot, name): (u32, &&'static str)| {
        let values = slots.get(&slot, 0).map_err(|source| DatapathError::Map { map, source })?;
        Ok((*name, values.iter().sum()))
    };
    (0..).zip(names).map(sum).collect()
}

fn sum<'a>(values: impl Iterator<Item = &'a Counter>) -> Counter {
    values.fold(Counter::default(), |sum, value| Counter {
        connections: sum.connections + value.connections,
        packets: sum.packets + value.packets,
        bytes: sum.bytes + value.bytes,
    })
}

/// The event ring; one reader at a time.
pub struct EventRing {
    ring: RingBuf<MapData>,
}

impl EventRing {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self { ring: take(ebpf, "EVENTS")? })
    }
}

impl Iterator for EventRing {
    type Item = Result<Event, BadSample>;

    /// The next event that is there already; never waits.
    fn next(&mut self) -> Option<Self::Item> {
        self.ring.next().map(|sample| Event::read(&sample))
    }
}

/// The ring of DNS answers; one reader at a time.
pub struct AnswerRing {
    ring: RingBuf<MapData>,
}

impl AnswerRing {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self { ring: take(ebpf, "ANSWERS")? })
    }

    /// The ring together with a way to wait until it has something.
    ///
    /// # Errors
    /// When the runtime cannot wait for it.
    pub fn wait(self) -> std::io::Result<AsyncFd<Self>> {
        super::sys::readable(self)
    }

    /// Gives the next answer that is there already to `read`; false where there is none. Never waits.
    pub fn next(&mut self, read: impl FnOnce(Result<(dns::Head, &[u8]), dns::BadRecord>)) -> bool {
        let Some(sample) = self.ring.next() else {
            return false;
        };
        read(dns::read(&sample));
        true
    }
}

impl AsRawFd for AnswerRing {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl AsRawFd for EventRing {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
