//! Letting go of everything: links first, so that traffic flows before anything else is gone.

use std::fs;
use std::path::Path;

use super::attach::unlink;
use super::{DatapathError, Options};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// Links: each was a hook that held traffic.
    pub links: usize,
    /// Programs and maps.
    pub objects: usize,
}

/// Removes every pin under the agent's own directory, and the directory. Idempotent.
///
/// # Errors
/// When a pin or a directory cannot be removed.
pub fn uninstall(options: &Options) -> Result<Removed, DatapathError> {
    let root = &options.bpffs;
    let mut removed = Removed::default();
    if !root.exists() {
        return Ok(removed);
    }
    let links = root.join("links");
    if links.exists() {
        removed.links = clear(&links, root)?;
    }
    removed.objects = clear(root, root)?;
    Ok(removed)
}

/// Removes what is below `directory` and the directory; returns how many pins there were.
fn clear(directory: &Path, root: &Path) -> Result<usize, DatapathError> {
    let pins =
        |source| DatapathError::Pins { path: directory.to_owned(), root: root.to_owned(), source };
    let mut count = 0;
    for entry in fs::read_dir(directory).map_err(pins)? {
        let entry = entry.map_err(pins)?;
        if entry.file_type().map_err(pins)?.is_dir() {
            count += clear(&entry.path(), root)?;
        } else {
            unlink(&entry.path())?;
            count += 1;
        }
    }
    fs::remove_dir(directory).map_err(pins)?;
    Ok(count)
}
