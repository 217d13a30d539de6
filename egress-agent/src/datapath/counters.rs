//! What comes back from the kernel: counters, losses and the event ring.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{Array, Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuHashMap, RingBuf};
use egress_common::event::{BadSample, Event};
use egress_common::state::{Counter, CounterKey, Tally, loss};
use egress_common::{Reason, Verdict};

use super::maps::take;
use super::{DatapathError, Options};

/// What the kernel counted, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// Counters of pods, summed over CPUs.
    pub pods: BTreeMap<CounterKey, Counter>,
    /// The node's totals of every verdict and reason, zeroes included.
    pub node: BTreeMap<(Verdict, Reason), Counter>,
    /// What the kernel side lost or suppressed, by name.
    pub losses: Vec<(&'static str, u64)>,
}

/// Reads the counters; cheap to clone, safe to use beside the agent's own writes.
#[derive(Clone)]
pub struct CounterReader {
    maps: Arc<Counters>,
}

struct Counters {
    /// The pins' directory.
    pins: PathBuf,
    /// The kernel's number of the pods' counters: of this table and, until the next boot, no other.
    table: u32,
    /// Entries of that table, at most.
    room: u32,
    pods: PerCpuHashMap<MapData, CounterKey, Counter>,
    node: PerCpuArray<MapData, Counter>,
    losses: PerCpuArray<MapData, u64>,
}

fn open<T: TryFrom<Map, Error = MapError>>(
    pins: &Path,
    map: &'static str,
    kind: impl FnOnce(MapData) -> Map,
) -> Result<T, DatapathError> {
    let opened = MapData::from_pin(pins.join(map)).and_then(|data| T::try_from(kind(data)));
    opened.map_err(|source| DatapathError::Map { map, source })
}

impl CounterReader {
    /// Opens the pinned counters.
    ///
    /// # Errors
    /// When a pin is missing or is no map of the expected type.
    pub fn open(options: &Options) -> Result<Self, DatapathError> {
        Self::open_at(options.schema().join("maps"))
    }

    /// The counters that agents of other table layouts have left pinned, where they have the shape
    /// of this version's. Whoever holds them can read them after their pins are gone.
    pub fn earlier(options: &Options) -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir(&options.bpffs) else {
            return Vec::new();
        };
        let own = options.schema();
        let layouts = entries.flatten().map(|entry| entry.path()).filter(|path| *path != own);
        let pins = layouts.map(|path| path.join("maps")).filter(|pins| pins.join(PODS).exists());
        let opened = pins.map(|pins| (Self::open_at(pins.clone()), pins));
        opened
            .filter_map(|(reader, pins)| match reader {
                Ok(reader) => Some(reader),
                Err(error) => {
                    let (pins, error) = (pins.display().to_string(), error.to_string());
                    tracing::warn!(pins, error, "counters of another version are lost");
                    None
                }
            })
            .collect()
    }

    fn open_at(pins: PathBuf) -> Result<Self, DatapathError> {
        let info = shaped(&pins, PODS, size_of::<CounterKey>(), size_of::<Counter>())?;
        shaped(&pins, "NODE_COUNTERS", size_of::<u32>(), size_of::<Counter>())?;
        shaped(&pins, "LOSSES", size_of::<u32>(), size_of::<u64>())?;
        let maps = Counters {
            table: info.id(),
            room: info.max_entries(),
            pods: open(&pins, PODS, Map::PerCpuHashMap)?,
            node: open(&pins, "NODE_COUNTERS", Map::PerCpuArray)?,
            losses: open(&pins, "LOSSES", Map::PerCpuArray)?,
            pins,
        };
        Ok(Self { maps: Arc::new(maps) })
    }

    /// The kernel's number of the pods' counters.
    pub fn table(&self) -> u32 {
        self.maps.table
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn read(&self) -> Result<Readings, DatapathError> {
        Ok(Readings { pods: self.counters()?, node: self.node()?, losses: self.losses()? })
    }

    /// How many counters of pods there is room for.
    pub fn room(&self) -> u32 {
        self.maps.room
    }

    /// Per-pod counters, summed over CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<BTreeMap<CounterKey, Counter>, DatapathError> {
        let mut sums = BTreeMap::new();
        for entry in self.maps.pods.iter() {
            let (key, values) = entry.map_err(|source| DatapathError::Map { map: PODS, source })?;
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
            open(&self.maps.pins, PODS, Map::PerCpuHashMap)?;
        for key in keys {
            match pods.remove(key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(DatapathError::Map { map: PODS, source }),
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
        let mut losses = Vec::new();
        // Another layout may have fewer of them.
        for (slot, name) in (0..self.maps.losses.len()).zip(loss::NAMES) {
            let values = self.maps.losses.get(&slot, 0);
            let values = values.map_err(|source| DatapathError::Map { map: "LOSSES", source })?;
            losses.push((name, values.iter().sum()));
        }
        Ok(losses)
    }
}

fn sum<'a>(values: impl Iterator<Item = &'a Counter>) -> Counter {
    values.fold(Counter::default(), |sum, value| Counter {
        connections: sum.connections + value.connections,
        packets: sum.packets + value.packets,
        bytes: sum.bytes + value.bytes,
    })
}

/// What becomes of the events that are read, kept in the kernel.
pub struct EventTally {
    map: Array<MapData, Tally>,
}

impl EventTally {
    /// Opens the pinned tally.
    ///
    /// # Errors
    /// When its pin is missing or is no map of the expected type.
    pub fn open(options: &Options) -> Result<Self, DatapathError> {
        Ok(Self { map: open(&options.schema().join("maps"), "TALLY", Map::Array)? })
    }

    /// As the last agent left it.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn load(&self) -> Result<Tally, DatapathError> {
        self.map.get(&0, 0).map_err(|source| DatapathError::Map { map: "TALLY", source })
    }

    /// For the next agent.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn save(&mut self, tally: Tally) -> Result<(), DatapathError> {
        self.map.set(0, tally, 0).map_err(|source| DatapathError::Map { map: "TALLY", source })
    }
}

/// What the kernel tells of a pinned map, which has keys and values of this many bytes.
fn shaped(
    pins: &Path,
    map: &'static str,
    key: usize,
    value: usize,
) -> Result<MapInfo, DatapathError> {
    let info = MapInfo::from_pin(pins.join(map));
    let info = info.map_err(|source| DatapathError::Map { map, source })?;
    for (field, found, expected) in
        [("key size", info.key_size(), key), ("value size", info.value_size(), value)]
    {
        let (found, expected) = (u64::from(found), expected as u64);
        if found != expected {
            return Err(DatapathError::MapShape { map: map.to_owned(), field, found, expected });
        }
    }
    Ok(info)
}

const PODS: &str = "COUNTERS";

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

impl AsRawFd for EventRing {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
