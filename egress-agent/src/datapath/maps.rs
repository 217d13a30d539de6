//! The pinned maps, typed; reading them back and writing a plan.

use std::collections::{BTreeMap, BTreeSet};

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError};
use egress_common::key::{AddressKey, ExactKey, ExceptionKey, PodId, PolicyId, RangeKey, ReplyKey};
use egress_common::redirect::{RedirectKey, RedirectTo};
use egress_common::state::{
    Config, Exact, Exception, PlaceKey, Pod, Policy, REPLIES_PER_POD, Range, Reply, range,
};

use super::DatapathError;
use super::diff::{Capacities, Plan, TableDiff};
use crate::policy::Tables;

/// The maps the agent writes.
pub(super) struct Maps {
    config: Array<MapData, Config>,
    heartbeat: Array<MapData, u64>,
    policies: HashMap<MapData, PolicyId, Policy>,
    pods: HashMap<MapData, u64, Pod>,
    interfaces: HashMap<MapData, u32, Pod>,
    exact: HashMap<MapData, ExactKey, Exact>,
    addresses: HashMap<MapData, AddressKey, u32>,
    ranges: LpmTrie<MapData, RangeKey, Range>,
    exceptions: HashMap<MapData, ExceptionKey, Exception>,
    redirects: HashMap<MapData, RedirectKey, RedirectTo>,
    replies: HashMap<MapData, ReplyKey, Reply>,
    places: HashMap<MapData, PlaceKey, ReplyKey>,
    hands: HashMap<MapData, PodId, u64>,
    capacities: Capacities,
}

/// Takes a map out of the object in its type.
pub(super) fn take<T>(ebpf: &mut Ebpf, map: &'static str) -> Result<T, DatapathError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let taken =
        ebpf.take_map(map).ok_or_else(|| DatapathError::Missing { what: format!("map {map}") })?;
    T::try_from(taken).map_err(|source| DatapathError::Map { map, source })
}

fn in_map<T>(map: &'static str, result: Result<T, MapError>) -> Result<T, DatapathError> {
    result.map_err(|source| DatapathError::Map { map, source })
}

/// Entries a hash or trie has room for.
fn capacity(ebpf: &Ebpf, map: &'static str) -> Result<usize, DatapathError> {
    let info = match ebpf.map(map) {
        Some(Map::HashMap(data) | Map::LpmTrie(data)) => data.info(),
        _ => return Err(DatapathError::Missing { what: format!("hash or trie {map}") }),
    };
    Ok(in_map(map, info)?.max_entries() as usize)
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let capacities = Capacities {
            policies: capacity(ebpf, "POLICIES")?,
            pods: capacity(ebpf, "PODS")?,
            interfaces: capacity(ebpf, "INTERFACES")?,
            exact: capacity(ebpf, "EXACT")?,
            addresses: capacity(ebpf, "ADDRESSES")?,
            ranges: capacity(ebpf, "RANGES")?,
            exceptions: capacity(ebpf, "EXCEPTIONS")?,
            redirects: capacity(ebpf, "REDIRECTS")?,
        };
        Ok(Self {
            config: take(ebpf, "CONFIG")?,
            heartbeat: take(ebpf, "HEARTBEAT")?,
            policies: take(ebpf, "POLICIES")?,
            pods: take(ebpf, "PODS")?,
            interfaces: take(ebpf, "INTERFACES")?,
            exact: take(ebpf, "EXACT")?,
            addresses: take(ebpf, "ADDRESSES")?,
            ranges: take(ebpf, "RANGES")?,
            exceptions: take(ebpf, "EXCEPTIONS")?,
            redirects: take(ebpf, "REDIRECTS")?,
            replies: take(ebpf, "REPLIES")?,
            places: take(ebpf, "PLACES")?,
            hands: take(ebpf, "HANDS")?,
            capacities,
        })
    }

    pub(super) const fn capacities(&self) -> &Capacities {
        &self.capacities
    }

    /// Reads everything back. Only the agent writes these maps, so the result is consistent.
    pub(super) fn actual(&self) -> Result<Tables, DatapathError> {
        let mut ranges = BTreeMap::new();
        for entry in self.ranges.iter() {
            let (key, range) = in_map("RANGES", entry)?;
            ranges.insert((key.prefix_len(), key.data()), range);
        }
        Ok(Tables {
            config: in_map("CONFIG", self.config.get(&0, 0))?,
            policies: in_map("POLICIES", self.policies.iter().collect())?,
            pods: in_map("PODS", self.pods.iter().collect())?,
            interfaces: in_map("INTERFACES", self.interfaces.iter().collect())?,
            exact: in_map("EXACT", self.exact.iter().collect())?,
            addresses: in_map("ADDRESSES", self.addresses.iter().collect())?,
            ranges,
            exceptions: in_map("EXCEPTIONS", self.exceptions.iter().collect())?,
            redirects: in_map("REDIRECTS", self.redirects.iter().collect())?,
        })
    }

    /// Writes a plan; then removes in the opposite order.
    ///
    /// No moment between allows more than the state before or after: denials inside a prefix are
    /// there before the prefix allows and leave after it, an address is known as a gateway's only
    /// once its endpoints are in, connections are redirected to endpoints that are in, pods come
    /// after the policy they name, the configuration last.
    pub(super) fn write(&mut self, plan: &Plan) -> Result<(), DatapathError> {
        self.put_ranges(plan, only_denies)?;
        put("EXCEPTIONS", &mut self.exceptions, &plan.exceptions)?;
        put("EXACT", &mut self.exact, &plan.exact)?;
        put("ADDRESSES", &mut self.addresses, &plan.addresses)?;
        put("REDIRECTS", &mut self.redirects, &plan.redirects)?;
        self.put_ranges(plan, |range| !only_denies(range))?;
        put("POLICIES", &mut self.policies, &plan.policies)?;
        put("PODS", &mut self.pods, &plan.pods)?;
        put("INTERFACES", &mut self.interfaces, &plan.interfaces)?;
        if let Some(config) = plan.config {
            in_map("CONFIG", self.config.set(0, config, 0))?;
        }
        remove("INTERFACES", &mut self.interfaces, &plan.interfaces)?;
        remove("PODS", &mut self.pods, &plan.pods)?;
        remove("POLICIES", &mut self.policies, &plan.policies)?;
        remove("REDIRECTS", &mut self.redirects, &plan.redirects)?;
        for (bits, key) in &plan.ranges.remove {
            absent_is_removed("RANGES", self.ranges.remove(&Key::new(*bits, *key)))?;
        }
        remove("ADDRESSES", &mut self.addresses, &plan.addresses)?;
        remove("EXACT", &mut self.exact, &plan.exact)?;
        remove("EXCEPTIONS", &mut self.exceptions, &plan.exceptions)
    }

    fn put_ranges(
        &mut self,
        plan: &Plan,
        chosen: impl Fn(&Range) -> bool,
    ) -> Result<(), DatapathError> {
        for ((bits, key), value) in plan.ranges.put.iter().filter(|(_, value)| chosen(value)) {
            in_map("RANGES", self.ranges.insert(&Key::new(*bits, *key), *value, 0))?;
        }
        Ok(())
    }

    /// Forgets the flows of pods that have no interface any more, and those of sockets whose cgroup
    /// is gone: one with the same number will not come, and the room is for the living. `cgroups`
    /// gives the ids of those that are there; where they cannot be read, nothing of theirs goes.
    /// Returns how many were swept.
    pub(super) fn sweep_replies(
        &mut self,
        cgroups: impl FnOnce() -> std::io::Result<BTreeSet<u64>>,
    ) -> Result<usize, DatapathError> {
        let known: Vec<PodId> = in_map("HANDS", self.hands.keys().collect())?;
        let mut living: BTreeSet<PodId> = in_map(
            "INTERFACES",
            self.interfaces.iter().map(|entry| entry.map(|(_, pod)| pod.id)).collect(),
        )?;
        if known.iter().all(|pod| living.contains(pod)) {
            return Ok(0);
        }
        // After the flows: a cgroup that came since has none of them.
        let Ok(cgroups) = cgroups() else {
            return Ok(0);
        };
        living.extend(cgroups.into_iter().map(PodId::of_cgroup));
        let gone: BTreeSet<PodId> = known.into_iter().filter(|pod| !living.contains(pod)).collect();
        if gone.is_empty() {
            return Ok(0);
        }
        // Every entry of theirs, also one that lost its place to a race.
        let flows: Vec<ReplyKey> = in_map("REPLIES", self.replies.keys().collect())?;
        for flow in flows.iter().filter(|flow| gone.contains(&flow.pod())) {
            absent_is_removed("REPLIES", self.replies.remove(flow))?;
        }
        for pod in &gone {
            for place in 0..REPLIES_PER_POD {
                let slot = PlaceKey { pod: *pod, place, pad: 0 };
                absent_is_removed("PLACES", self.places.remove(&slot))?;
            }
            absent_is_removed("HANDS", self.hands.remove(pod))?;
        }
        Ok(gone.len())
    }

    /// Forgets what these pods have open without a connection. While they might do more, their own
    /// datagrams may have been answered, and nothing tells such a flow from one that a remote opened:
    /// that one comes back with its next datagram.
    pub(super) fn forget_datagrams(&mut self, pods: &BTreeSet<PodId>) -> Result<(), DatapathError> {
        let known: BTreeSet<PodId> = in_map("HANDS", self.hands.keys().collect())?;
        if pods.is_disjoint(&known) {
            return Ok(());
        }
        let flows: Vec<ReplyKey> = in_map("REPLIES", self.replies.keys().collect())?;
        for flow in flows.iter().filter(|flow| !flow.is_tcp() && pods.contains(&flow.pod())) {
            absent_is_removed("REPLIES", self.replies.remove(flow))?;
        }
        Ok(())
    }

    /// Indices of the interfaces the kernel knows a pod for.
    pub(super) fn interfaces(&self) -> Result<BTreeSet<u32>, DatapathError> {
        in_map("INTERFACES", self.interfaces.keys().collect())
    }

    /// Enters one pod, outside of any plan.
    pub(super) fn put_pod(&mut self, cgroup: u64, pod: Pod) -> Result<(), DatapathError> {
        in_map("PODS", self.pods.insert(cgroup, pod, 0))
    }

    /// Enters exact entries, outside of any plan.
    pub(super) fn put_exact(&mut self, entries: &[(ExactKey, Exact)]) -> Result<(), DatapathError> {
        let mut put = |(key, entry)| in_map("EXACT", self.exact.insert(key, entry, 0));
        entries.iter().try_for_each(|(key, entry)| put((key, entry)))
    }

    /// The agent's sign of life.
    pub(super) fn beat(&mut self, now: u64) -> Result<(), DatapathError> {
        in_map("HEARTBEAT", self.heartbeat.set(0, now, 0))
    }
}

/// A prefix under which nothing becomes reachable.
const fn only_denies(value: &Range) -> bool {
    value.kinds & (range::CLUSTER | range::INBOUND) == 0 && value.exceptions == 0
}

fn put<K: aya::Pod, V: aya::Pod>(
    name: &'static str,
    map: &mut HashMap<MapData, K, V>,
    diff: &TableDiff<K, V>,
) -> Result<(), DatapathError> {
    diff.put.iter().try_for_each(|(key, value)| in_map(name, map.insert(key, value, 0)))
}

fn remove<K: aya::Pod, V: aya::Pod>(
    name: &'static str,
    map: &mut HashMap<MapData, K, V>,
    diff: &TableDiff<K, V>,
) -> Result<(), DatapathError> {
    diff.remove.iter().try_for_each(|key| absent_is_removed(name, map.remove(key)))
}

/// Removing what is already gone is what was wanted.
fn absent_is_removed(map: &'static str, result: Result<(), MapError>) -> Result<(), DatapathError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => in_map(map, other),
    }
}
