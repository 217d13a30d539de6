//! The `dir` registry: a directory of manifests, read whole and followed for changes.
//!
//! [`Directory::scan`] looks at every file and reads those that changed; what it knows survives
//! whatever cannot be read, so that only the deletion of a file or of an object removes anything.
//! [`follow`] decides when to look.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::assemble::{Kept, assemble};
use super::manifest;
use super::object::Entry;
use crate::policy::{Origin, Problem, ProblemCode, Snapshot};

mod follow;

pub(super) use follow::follow;

/// Sub-directories deeper than this are not read.
const DEPTH: usize = 16;
/// A file that changed less than this before it was looked at may change again within the same
/// tick of the file system's clock, and is read again next time.
const RACY: Duration = Duration::from_secs(2);

/// What the directory held when it was last readable.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// Sub-directories that were listed at least once.
    listed: BTreeSet<PathBuf>,
    /// Sub-directories that could not be listed now, and why.
    unlisted: BTreeMap<PathBuf, String>,
    /// Why the directory itself could not be read now.
    lost: Option<String>,
    kept: Kept,
}

/// A file's last good objects and its present state.
#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    entries: Vec<Entry>,
    /// It was read successfully at least once.
    good: bool,
    problem: Option<Problem>,
}

/// Tells whether a file changed without reading it. The change time cannot be set by a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the file may change again without the stamp changing.
    fn is_racy(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let settled = now.saturating_sub(RACY).as_secs();
        self.changed.0.try_into().unwrap_or(0u64) >= settled
    }
}

/// What one look at the tree found.
#[derive(Debug, Default)]
struct Listing {
    files: BTreeMap<PathBuf, PathBuf>,
    directories: BTreeSet<PathBuf>,
    unlisted: BTreeMap<PathBuf, String>,
}

impl Directory {
    /// A directory of which nothing was read yet.
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            files: BTreeMap::new(),
            listed: BTreeSet::new(),
            unlisted: BTreeMap::new(),
            lost: None,
            kept: Kept::new(),
        }
    }

    /// Looks at every file and reads those that changed; `writing` names files that somebody is
    /// writing now, which stay what they were. Returns the directories looked at, relative to
    /// the root. On an error everything known stays.
    pub(super) fn scan(&mut self, writing: &BTreeSet<PathBuf>) -> io::Result<BTreeSet<PathBuf>> {
        let mut listing = Listing::default();
        if let Err(error) = list(&self.root, Path::new(""), &mut Vec::new(), &mut listing) {
            self.lost = Some(error.to_string());
            return Err(error);
        }
        let Listing { files, directories, unlisted } = listing;
        self.lost = None;
        self.files.retain(|path, _| {
            files.contains_key(path) || unlisted.keys().any(|above| path.starts_with(above))
        });
        for (path, absolute) in files {
            if writing.contains(&path) {
                continue;
            }
            self.look(path, &absolute);
        }
        self.listed.retain(|path| directories.contains(path) || unlisted.contains_key(path));
        self.listed.extend(directories.iter().cloned());
        self.unlisted = unlisted;
        Ok(directories)
    }

    /// Reads one file if it changed.
    fn look(&mut self, path: PathBuf, absolute: &Path) {
        let metadata = match fs::metadata(absolute) {
            // A pipe or a device would block, and holds no manifest.
            Ok(metadata) if !metadata.is_file() => return,
            Ok(metadata) => metadata,
            // Deleted since it was listed; a dangling link is still there and stays what it was.
            Err(_) if fs::symlink_metadata(absolute).is_err() => {
                self.files.remove(&path);
                return;
            }
            Err(error) => return self.files.entry(path.clone()).or_default().fail(&path, 1, error),
        };
        let stamp = Stamp::of(&metadata);
        let file = self.files.entry(path.clone()).or_default();
        if file.stamp == Some(stamp) {
            return;
        }
        let bytes = match fs::read(absolute) {
            Ok(bytes) => bytes,
            Err(error) => return file.fail(&path, 1, error),
        };
        match manifest::read(&path.to_string_lossy(), &bytes) {
            Ok(entries) => {
                file.entries = entries;
                file.good = true;
                file.problem = None;
            }
            Err(error) => file.fail(&path, error.line, error),
        }
        file.stamp = (!stamp.is_racy()).then_some(stamp);
    }

    /// The snapshot of what is known; its revision is the publisher's to set.
    pub(super) fn snapshot(&mut self) -> Snapshot {
        let mut problems: Vec<Problem> =
            self.files.values().filter_map(|file| file.problem.clone()).collect();
        let subdirectories = self.unlisted.iter().map(|(path, why)| (self.root.join(path), why));
        let lost = self.lost.iter().map(|why| (self.root.clone(), why));
        problems.extend(subdirectories.chain(lost).map(|(path, why)| Problem {
            code: ProblemCode::Unreadable,
            origin: Origin {
                kind: "Directory".to_owned(),
                name: path.to_string_lossy().into_owned(),
                file: None,
            },
            message: format!("cannot be listed: {why}; what was last read of it stays"),
        }));
        let complete = self.files.values().all(|file| file.good)
            && self.unlisted.keys().all(|path| self.listed.contains(path));
        let entries = self.files.values().flat_map(|file| &file.entries);
        let kept = std::mem::take(&mut self.kept);
        let (snapshot, kept) = assemble(entries, problems, complete, kept);
        self.kept = kept;
        snapshot
    }
}

impl File {
    /// Notes why the file cannot be read; its objects stay.
    fn fail(&mut self, path: &Path, line: u64, error: impl std::fmt::Display) {
        let outcome = if self.good {
            "the objects last read from it stay"
        } else {
            "it was never read, so nothing is removed from the kernel until it is"
        };
        let name = path.to_string_lossy().into_owned();
        self.problem = Some(Problem {
            code: ProblemCode::Unreadable,
            origin: Origin { kind: "File".to_owned(), file: Some(format!("{name}:{line}")), name },
            message: format!("{error}; {outcome}"),
        });
        self.stamp = None;
    }
}

/// Lists a directory and those below it. Names that start with a dot are skipped: editors' files,
/// and the directories behind the links of a mounted ConfigMap. `above` holds the identity of
/// every directory on the way, so that a link to one of them ends there.
fn list(
    directory: &Path,
    relative: &Path,
    above: &mut Vec<(u64, u64)>,
    found: &mut Listing,
) -> io::Result<()> {
    let metadata = fs::metadata(directory)?;
    let identity = (metadata.dev(), metadata.ino());
    if above.contains(&identity) || above.len() >= DEPTH {
        return Ok(());
    }
    let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    found.directories.insert(relative.to_owned());
    above.push(identity);
    for entry in entries {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let (path, relative) = (entry.path(), relative.join(&name));
        let is_manifest = path
            .extension()
            .is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known));
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                if let Err(error) = list(&path, &relative, above, found) {
                    found.unlisted.insert(relative, error.to_string());
                }
            }
            _ if is_manifest => {
                found.files.insert(relative, path);
            }
            _ => {}
        }
    }
    above.pop();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_trusted_unread_only_once_it_has_rested() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a.yaml"), "# nothing\n").unwrap();
        let mut directory = Directory::new(root.path());
        directory.scan(&BTreeSet::new()).unwrap();
        // Just written: a second write within the same tick of the clock would not show.
        assert_eq!(directory.files[Path::new("a.yaml")].stamp, None);
        let mut stamp = Stamp::of(&fs::metadata(root.path().join("a.yaml")).unwrap());
        assert!(stamp.is_racy());
        stamp.changed.0 -= 10;
        assert!(!stamp.is_racy());
    }
}
