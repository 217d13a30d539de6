//! What passed of pods that were not wholly covered, as the kernel counted it.

use std::collections::BTreeMap;

use aya::maps::{Map, MapData, MapError, PerCpuHashMap};
use egress_common::key::PodId;
use egress_common::state::Exposed;

use super::counters::open;
use super::{Attached, DatapathError};

const MAP: &str = "EXPOSED";

impl Attached {
    fn exposed_map(&self) -> Result<PerCpuHashMap<MapData, PodId, Exposed>, DatapathError> {
        open(&self.links.options.schema().join("maps"), MAP, Map::PerCpuHashMap)
    }

    /// Every entry, over all CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn exposed(&self) -> Result<BTreeMap<PodId, Exposed>, DatapathError> {
        let mut all = BTreeMap::new();
        for entry in self.exposed_map()?.iter() {
            let (id, values) = entry.map_err(|source| DatapathError::Map { map: MAP, source })?;
            let counted = values.iter().filter(|value| value.packets > 0);
            let sum =
                counted.fold(Exposed { first: u64::MAX, ..Exposed::default() }, |sum, one| {
                    Exposed {
                        packets: sum.packets + one.packets,
                        first: sum.first.min(one.first),
                        last: sum.last.max(one.last),
                    }
                });
            all.insert(id, sum);
        }
        Ok(all)
    }

    /// Removes entries; one that is not there is removed already.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn forget_exposed(&self, gone: &[PodId]) -> Result<(), DatapathError> {
        if gone.is_empty() {
            return Ok(());
        }
        let mut map = self.exposed_map()?;
        for id in gone {
            match map.remove(id) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(DatapathError::Map { map: MAP, source }),
            }
        }
        Ok(())
    }
}
