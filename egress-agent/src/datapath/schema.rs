//! Other versions' pins: told to let this agent through, counted, and dropped.
//!
//! Maps and programs are pinned below the number of their layouts' schema. Links are not: they run
//! an old version's programs, on its maps, until this one's are filled, and are then updated. What
//! stands below another number holds nothing after that.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData, MapInfo};
use egress_common::state::Pod;

use super::{DatapathError, Options, sys, uninstall};
use crate::policy::OwnPod;

/// Entries counted before "or more" is said.
const COUNTED: usize = 100_000;

/// Directories of other schemas, older and newer.
pub(super) fn others(options: &Options) -> Vec<PathBuf> {
    let own = options.schema();
    let entries = fs::read_dir(&options.bpffs).into_iter().flatten().flatten();
    let schemas = entries.map(|entry| entry.path()).filter(|path| uninstall::is_schema(path));
    let mut others: Vec<PathBuf> = schemas.filter(|path| *path != own).collect();
    others.sort();
    others
}

/// Makes the agent's own pod known to the walls that stand. Where unknown pods are denied, they
/// would keep a version with another schema from its registry, and so from taking over.
pub(super) fn exempt(options: &Options, own: &OwnPod) {
    for schema in others(options) {
        if let Err(error) = put(&schema.join("maps/PODS"), own) {
            tracing::warn!(
                schema = schema.display().to_string(),
                error,
                "the standing wall of another version does not know this agent's pod; if unknown \
                 pods are denied and the registry stays silent, run `egress-agent uninstall`"
            );
        }
    }
}

fn put(pin: &Path, own: &OwnPod) -> Result<(), String> {
    let info = MapInfo::from_pin(pin).map_err(|error| error.to_string())?;
    let sizes = (info.key_size() as usize, info.value_size() as usize);
    if sizes != (size_of::<u64>(), size_of::<Pod>()) {
        return Err("its entries have another layout".to_owned());
    }
    let data = MapData::from_pin(pin).map_err(|error| error.to_string())?;
    let mut pods =
        HashMap::<_, u64, Pod>::try_from(Map::HashMap(data)).map_err(|error| error.to_string())?;
    pods.insert(own.cgroup, own.entry(), 0).map_err(|error| error.to_string())
}

/// Drops what other schemas left, once every link runs this version's programs. Says what went
/// with it: the layouts differ, so nothing of it can be carried over.
///
/// # Errors
/// When a pin cannot be removed.
pub(super) fn drop_others(options: &Options) -> Result<Vec<String>, DatapathError> {
    let mut lost = Vec::new();
    for schema in others(options) {
        let count = |map| entries(&schema.join("maps").join(map));
        let name = schema.file_name().map_or_else(String::new, |name| name.display().to_string());
        lost.push(format!(
            "maps of schema {} were dropped for those of schema {}: {} remembered flows and {} \
             counters went with them; enforcement did not",
            name.trim_start_matches('s'),
            egress_common::SCHEMA,
            count("REPLIES"),
            count("COUNTERS"),
        ));
        uninstall::clear_schema(&schema, &options.bpffs)?;
    }
    Ok(lost)
}

fn entries(pin: &Path) -> String {
    let count = || {
        let info = MapInfo::from_pin(pin).ok()?;
        let map = sys::open_pin(pin).ok()?;
        Some(sys::entries(map.as_fd(), info.key_size(), COUNTED, "entries"))
    };
    match count() {
        Some(COUNTED) => format!("{COUNTED} or more"),
        Some(count) => count.to_string(),
        None => "no".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use crate::datapath::{map_names, object};

    /// What is pinned outlives a version, so its shape is a promise that only another schema breaks.
    #[test]
    fn a_map_changes_its_shape_only_with_the_schema() {
        let parsed = aya_obj::Object::parse(object()).unwrap();
        let mut names = map_names();
        names.sort_unstable();
        let mut now = format!("schema {}\n", egress_common::SCHEMA);
        for name in names {
            let map = &parsed.maps[name];
            now += &format!(
                "{name} type {} key {} value {} entries {} flags {}\n",
                map.map_type(),
                map.key_size(),
                map.value_size(),
                map.max_entries(),
                map.map_flags(),
            );
        }
        assert_eq!(
            include_str!("schema.txt"),
            now,
            "a pinned map differs from the frozen table: where schema.txt has the same schema and it \
             was released, raise egress_common::SCHEMA; then write the table anew"
        );
    }
}
