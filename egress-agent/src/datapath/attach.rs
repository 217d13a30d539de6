//! Links: adopted where an earlier agent left them, created where they are missing, their
//! programs replaced in place. Never detach-then-attach.

mod cgroup;
mod chain;
mod filter;
mod interface;
mod link;
mod uplink;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use egress_common::key::ExactKey;
use egress_common::state::{Config, Exact};

use super::diff::{diff, tightened};
use super::load::{Loaded, Logger};
use super::maps::Maps;
use super::{AnswerRing, Capacities, CounterReader, DatapathError, EventRing, EventTally, schema};
use crate::policy::Tables;
use cgroup::cgroups;
use chain::Chain;

pub(super) use chain::Place;
pub(super) use filter::clear as clear_filters;
pub(super) use interface::{ROUND, places};
pub(super) use link::{FRESH, Links, unlink};

/// What an apply did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Applied {
    /// Generation the kernel runs now.
    pub generation: u32,
    /// Entries added or changed.
    pub put: usize,
    /// Entries removed.
    pub removed: usize,
    /// Removals and relaxations withheld because the snapshot was incomplete.
    pub withheld: usize,
    /// Interfaces newly attached.
    pub attached: usize,
    /// Interfaces let go.
    pub detached: usize,
    /// Interfaces that were left for the next apply, because this one has taken long enough.
    pub pending: usize,
    /// What could not be done for single interfaces, and why.
    pub warnings: Vec<String>,
    /// What another version had left and this one could not take over.
    pub lost: Vec<String>,
}

/// A datapath that holds traffic. Dropping it lets go of nothing: the pins do the holding.
pub struct Attached {
    pub(super) kubepods: PathBuf,
    pub(super) links: Links,
    maps: Maps,
    events: Option<EventRing>,
    answers: Option<AnswerRing>,
    logger: Option<Logger>,
    /// Why connections cannot be redirected, whatever is attached.
    unloaded: Option<String>,
    no_redirect: Option<String>,
    uplinks: BTreeSet<u32>,
    /// Interfaces may still be held in the other way.
    unsettled: bool,
}

impl Loaded {
    /// Fills the maps, then adopts or creates every link.
    ///
    /// # Errors
    /// When the policy does not fit or a cgroup link cannot be made. Single interfaces that
    /// cannot be attached are warnings: their pods still stand behind the wall.
    pub fn attach(
        mut self,
        kubepods: &Path,
        tables: &Tables,
        may_remove: bool,
    ) -> Result<(Attached, Applied), DatapathError> {
        let mut applied = write(&mut self.maps, tables, may_remove)?;
        self.maps.beat(crate::clock::boot_clock())?;
        let boundary = self.programs.iter().find(|program| program.hook.name == "pod_egress");
        let chain = Chain::of(self.options.attach, boundary);
        tracing::info!(attach = chain.name(), "datapath is put at interfaces");
        let mut attached = Attached {
            kubepods: kubepods.to_owned(),
            links: Links::new(self.options, self.programs, chain),
            maps: self.maps,
            events: Some(self.events),
            answers: Some(self.answers),
            logger: self.logger,
            unloaded: self.no_redirect,
            no_redirect: None,
            uplinks: BTreeSet::new(),
            unsettled: true,
        };
        attached.link_cgroup()?;
        attached.link_interfaces(true, &mut applied)?;
        attached.links.keep_programs()?;
        applied.lost = attached.links.retire()?;
        applied.lost.extend(schema::drop_others(&attached.links.options)?);
        Ok((attached, applied))
    }
}

impl Attached {
    /// Brings the kernel to `tables`.
    ///
    /// # Errors
    /// [`DatapathError::Refused`] when it does not fit, and then nothing has changed; otherwise
    /// a write or link failed half-way, and the next apply finishes it from what is there.
    pub fn apply(&mut self, tables: &Tables, may_remove: bool) -> Result<Applied, DatapathError> {
        let mut applied = write(&mut self.maps, tables, may_remove)?;
        self.link_interfaces(false, &mut applied)?;
        self.maps.sweep_replies(|| cgroups(&self.kubepods))?;
        Ok(applied)
    }

    /// Enters exact entries of policies that are in force, outside of any plan.
    ///
    /// # Errors
    /// When the table is full or cannot be written.
    pub fn put_exact(&mut self, entries: &[(ExactKey, Exact)]) -> Result<(), DatapathError> {
        self.maps.put_exact(entries)
    }

    /// Reads the kernel's tables back.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn actual(&self) -> Result<Tables, DatapathError> {
        self.maps.actual()
    }

    /// Interfaces that should carry the boundary. None where the kernel's table cannot be read,
    /// which the next apply reports.
    pub(super) fn interfaces(&self) -> BTreeSet<u32> {
        self.maps.interfaces().unwrap_or_default()
    }

    /// Interfaces that should carry the second question.
    pub(super) fn uplinks(&self) -> BTreeSet<u32> {
        self.uplinks.clone()
    }

    /// Sizes of the kernel's tables.
    pub const fn capacities(&self) -> &Capacities {
        self.maps.capacities()
    }

    /// A reader of the counters.
    ///
    /// # Errors
    /// When a pinned counter map is gone.
    pub fn reader(&self) -> Result<CounterReader, DatapathError> {
        CounterReader::open(&self.links.options)
    }

    /// The tally of events.
    ///
    /// # Errors
    /// When its pin is gone.
    pub fn tally(&self) -> Result<EventTally, DatapathError> {
        EventTally::open(&self.links.options)
    }

    /// Why connections cannot be redirected on this node, if they cannot.
    pub fn no_redirect(&self) -> Option<&str> {
        self.no_redirect.as_deref()
    }

    /// Entries held and room in each table the agent fills.
    pub fn usage(&self, held: &Tables) -> Vec<(&'static str, usize, usize)> {
        let room = self.maps.capacities();
        vec![
            ("POLICIES", held.policies.len(), room.policies),
            ("PODS", held.pods.len(), room.pods),
            ("INTERFACES", held.interfaces.len(), room.interfaces),
            ("EXACT", held.exact.len(), room.exact),
            ("ADDRESSES", held.addresses.len(), room.addresses),
            ("RANGES", held.ranges.len(), room.ranges),
            ("EXCEPTIONS", held.exceptions.len(), room.exceptions),
            ("REDIRECTS", held.redirects.len(), room.redirects),
        ]
    }

    /// The event ring; `None` the second time.
    pub const fn take_events(&mut self) -> Option<EventRing> {
        self.events.take()
    }

    /// The ring of DNS answers; `None` the second time.
    pub const fn take_answers(&mut self) -> Option<AnswerRing> {
        self.answers.take()
    }

    /// The reader of debug lines, where kernel logging is on; `None` the second time.
    pub const fn take_logger(&mut self) -> Option<Logger> {
        self.logger.take()
    }

    /// Stamps the heartbeat.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn beat(&mut self) -> Result<(), DatapathError> {
        self.maps.beat(crate::clock::boot_clock())
    }
}

fn write(maps: &mut Maps, tables: &Tables, may_remove: bool) -> Result<Applied, DatapathError> {
    let actual = maps.actual()?;
    let plan = diff(&actual, tables, may_remove, maps.capacities())?;
    maps.write(&plan)?;
    maps.forget_datagrams(&tightened(&actual, tables))?;
    let Config { generation, .. } = plan.config.unwrap_or(actual.config);
    Ok(Applied {
        generation,
        put: plan.puts(),
        removed: plan.removals(),
        withheld: plan.withheld,
        ..Applied::default()
    })
}
