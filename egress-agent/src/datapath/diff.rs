//! What must change: pure, ordered, and refused whole when it does not fit.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::key::{AddressKey, ExactKey, ExceptionKey, PodId, PolicyId, RangeKey};
use egress_common::redirect::{RedirectKey, RedirectTo};
use egress_common::state::{Config, Exact, Exception, Pod, Policy, Range};
use egress_common::{Mode, Subject};

use crate::policy::Tables;

/// Changes of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDiff<K, V> {
    /// Entries to add or overwrite.
    pub put: Vec<(K, V)>,
    /// Keys to remove, after every addition to every table.
    pub remove: Vec<K>,
}

impl<K, V> Default for TableDiff<K, V> {
    fn default() -> Self {
        Self { put: Vec::new(), remove: Vec::new() }
    }
}

/// Everything that must change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The configuration, with the generation after this plan.
    pub config: Option<Config>,
    /// Policies.
    pub policies: TableDiff<PolicyId, Policy>,
    /// Pods by cgroup.
    pub pods: TableDiff<u64, Pod>,
    /// Pods by interface.
    pub interfaces: TableDiff<u32, Pod>,
    /// Exact entries.
    pub exact: TableDiff<ExactKey, Exact>,
    /// Address bits.
    pub addresses: TableDiff<AddressKey, u32>,
    /// Prefixes.
    pub ranges: TableDiff<(u32, RangeKey), Range>,
    /// Exceptions.
    pub exceptions: TableDiff<ExceptionKey, Exception>,
    /// Redirections.
    pub redirects: TableDiff<RedirectKey, RedirectTo>,
    /// Removals and relaxations that an incomplete snapshot asked for and did not get.
    pub withheld: usize,
}

impl Plan {
    /// Entries added or overwritten.
    pub fn puts(&self) -> usize {
        self.policies.put.len()
            + self.pods.put.len()
            + self.interfaces.put.len()
            + self.exact.put.len()
            + self.addresses.put.len()
            + self.ranges.put.len()
            + self.exceptions.put.len()
            + self.redirects.put.len()
    }

    /// Entries removed.
    pub fn removals(&self) -> usize {
        self.policies.remove.len()
            + self.pods.remove.len()
            + self.interfaces.remove.len()
            + self.exact.remove.len()
            + self.addresses.remove.len()
            + self.ranges.remove.len()
            + self.exceptions.remove.len()
            + self.redirects.remove.len()
    }

    fn clear_removals(&mut self) {
        self.policies.remove.clear();
        self.pods.remove.clear();
        self.interfaces.remove.clear();
        self.exact.remove.clear();
        self.addresses.remove.clear();
        self.ranges.remove.clear();
        self.exceptions.remove.clear();
        self.redirects.remove.clear();
    }
}

/// Sizes of the kernel's tables, entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Policies.
    pub policies: usize,
    /// Pods by cgroup.
    pub pods: usize,
    /// Pods by interface.
    pub interfaces: usize,
    /// Exact entries.
    pub exact: usize,
    /// Address bits.
    pub addresses: usize,
    /// Prefixes.
    pub ranges: usize,
    /// Exceptions.
    pub exceptions: usize,
    /// Redirections.
    pub redirects: usize,
}

/// The table of redirections: the one whose entries may be left out without harm.
pub const REDIRECTS: &str = "REDIRECTS";

/// A plan that does not fit. Nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "table {table} has room for {capacity} entries and would need {needed} while old and new \
     stand side by side; the old policy stays in force. Use fewer or wider entries."
)]
pub struct Refused {
    /// The kernel's table.
    pub table: &'static str,
    /// Entries while additions are in and removals are not.
    pub needed: usize,
    /// Its size.
    pub capacity: usize,
}

/// The difference between what the kernel holds and what it should hold.
///
/// Additions come before removals, so both must fit at once. An incomplete snapshot
/// (`may_remove` false) takes nothing away: no entry is removed, no pod leaves its policy, and no
/// mode is lowered.
///
/// # Errors
/// [`Refused`] when a table is too small.
pub fn diff(
    actual: &Tables,
    desired: &Tables,
    may_remove: bool,
    room: &Capacities,
) -> Result<Plan, Refused> {
    let mut plan = Plan {
        policies: table(&actual.policies, &desired.policies),
        pods: table(&actual.pods, &desired.pods),
        interfaces: table(&actual.interfaces, &desired.interfaces),
        exact: table(&actual.exact, &desired.exact),
        addresses: table(&actual.addresses, &desired.addresses),
        ranges: table(&actual.ranges, &desired.ranges),
        exceptions: table(&actual.exceptions, &desired.exceptions),
        redirects: table(&actual.redirects, &desired.redirects),
        ..Plan::default()
    };
    if !may_remove {
        plan.withheld = plan.removals()
            + withhold(&mut plan.pods, &actual.pods, freed)
            + withhold(&mut plan.interfaces, &actual.interfaces, freed)
            + withhold(&mut plan.policies, &actual.policies, lowered);
        plan.clear_removals();
    }
    fits("POLICIES", &plan.policies, &actual.policies, room.policies)?;
    fits("PODS", &plan.pods, &actual.pods, room.pods)?;
    fits("INTERFACES", &plan.interfaces, &actual.interfaces, room.interfaces)?;
    fits("EXACT", &plan.exact, &actual.exact, room.exact)?;
    fits("ADDRESSES", &plan.addresses, &actual.addresses, room.addresses)?;
    fits("RANGES", &plan.ranges, &actual.ranges, room.ranges)?;
    fits("EXCEPTIONS", &plan.exceptions, &actual.exceptions, room.exceptions)?;
    fits(REDIRECTS, &plan.redirects, &actual.redirects, room.redirects)?;

    let generation = actual.config.generation;
    let configured = Config { generation, ..desired.config } == actual.config;
    let idle = configured && plan.puts() + plan.removals() == 0;
    if generation == 0 || !idle {
        plan.config = Some(Config { generation: generation.wrapping_add(1), ..desired.config });
    }
    Ok(plan)
}

/// A governed pod that would be governed no more. A cgroup or interface that has become another
/// pod's says nothing about the old one.
fn freed(old: &Pod, new: &Pod) -> bool {
    old.id == new.id && old.policy != PolicyId::NONE && new.policy == PolicyId::NONE
}

/// A policy whose mode would be lowered.
fn lowered(old: &Policy, new: &Policy) -> bool {
    let mode = |policy: &Policy| Mode::from_number(policy.mode).unwrap_or(Mode::Enforce);
    mode(new) < mode(old)
}

/// Pods that may do less than before, under every number that their flows may have: a policy has
/// come, become another one (each set of exceptions makes one), or become stricter.
pub(super) fn tightened(actual: &Tables, desired: &Tables) -> BTreeSet<PodId> {
    let mode = |tables: &Tables, pod: &Pod| {
        Subject::of(pod, tables.policies.get(&pod.policy), &Config::default(), 0).mode
    };
    let stricter = |old: Option<&Pod>, new: &Pod| match old.filter(|old| old.id == new.id) {
        _ if new.policy == PolicyId::NONE => false,
        Some(old) => old.policy != new.policy || mode(actual, old) < mode(desired, new),
        None => true,
    };
    let mut pods = BTreeSet::new();
    for (cgroup, new) in &desired.pods {
        if stricter(actual.pods.get(cgroup), new) {
            pods.extend([PodId::of_cgroup(*cgroup), new.id]);
        }
    }
    for (ifindex, new) in &desired.interfaces {
        if stricter(actual.interfaces.get(ifindex), new) {
            pods.insert(new.id);
        }
    }
    pods
}

fn table<K: Ord + Copy, V: PartialEq + Copy>(
    actual: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
) -> TableDiff<K, V> {
    let put = desired.iter().filter(|(key, value)| actual.get(key) != Some(value));
    let remove = actual.keys().filter(|key| !desired.contains_key(key));
    TableDiff {
        put: put.map(|(key, value)| (*key, *value)).collect(),
        remove: remove.copied().collect(),
    }
}

/// Takes relaxing changes out of a table's diff; returns how many.
fn withhold<K: Ord, V>(
    diff: &mut TableDiff<K, V>,
    actual: &BTreeMap<K, V>,
    relaxes: impl Fn(&V, &V) -> bool,
) -> usize {
    let before = diff.put.len();
    diff.put.retain(|(key, new)| !actual.get(key).is_some_and(|old| relaxes(old, new)));
    before - diff.put.len()
}

fn fits<K: Ord, V>(
    table: &'static str,
    diff: &TableDiff<K, V>,
    actual: &BTreeMap<K, V>,
    capacity: usize,
) -> Result<(), Refused> {
    let added = diff.put.iter().filter(|(key, _)| !actual.contains_key(key)).count();
    let needed = actual.len() + added;
    if added > 0 && needed > capacity {
        return Err(Refused { table, needed, capacity });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
