//! Where records go: standard output, or a file that turns over.
//!
//! A record is written whole or not at all: what a full disk took half of is cut off again. A
//! failure is told by its stage, and the next record tries again.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use egress_common::state::tally;

/// Nobody but root reads what every tenant was denied.
const MODE: u32 = 0o600;

/// When a file turns over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes a file may grow to; zero for any size.
    pub size: u64,
    /// Files kept beside the one that is written.
    pub keep: u32,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { size: 64 << 20, keep: 4 }
    }
}

/// The output.
#[derive(Debug)]
pub struct Outlet {
    target: Target,
    rotation: Rotation,
}

#[derive(Debug)]
enum Target {
    Stdout,
    File { path: PathBuf, file: File },
}

/// Why a record was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("cannot write: {0}")]
    Output(io::Error),
    #[error("cannot turn over: {0}")]
    Rotate(io::Error),
}

impl WriteError {
    /// Index of the loss counter.
    pub(super) const fn stage(&self) -> usize {
        match self {
            Self::Output(_) => tally::OUTPUT,
            Self::Rotate(_) => tally::ROTATE,
        }
    }
}

impl Outlet {
    /// Opens the output: standard output, or a file that is appended to.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: Option<&Path>, rotation: Rotation) -> io::Result<Self> {
        let target = match path {
            Some(path) if path != Path::new("stdout") => {
                Target::File { path: path.to_owned(), file: append(path)? }
            }
            _ => Target::Stdout,
        };
        Ok(Self { target, rotation })
    }

    /// Opens the file anew under its name, where it has been moved away, or always with `always`.
    ///
    /// # Errors
    /// When it cannot be opened; the old one is written on.
    pub(super) fn reopen(&mut self, always: bool) -> io::Result<()> {
        let Target::File { path, file } = &mut self.target else {
            return Ok(());
        };
        let same = match (std::fs::metadata(&*path), file.metadata()) {
            (Ok(named), Ok(held)) => (named.dev(), named.ino()) == (held.dev(), held.ino()),
            _ => false,
        };
        if always || !same {
            *file = append(path)?;
        }
        Ok(())
    }

    /// Writes one record, a line without its end.
    pub(super) fn write(&mut self, line: &str) -> Result<(), WriteError> {
        let record = format!("{line}\n");
        let Target::File { path, file } = &mut self.target else {
            return io::stdout().write_all(record.as_bytes()).map_err(WriteError::Output);
        };
        let held = file.metadata().map_err(WriteError::Output)?;
        let mut before = held.len();
        let limit = self.rotation.size;
        if held.is_file() && limit > 0 && before > 0 && before + record.len() as u64 > limit {
            turn_over(path, self.rotation.keep).map_err(WriteError::Rotate)?;
            *file = append(path).map_err(WriteError::Rotate)?;
            before = 0;
        }
        file.write_all(record.as_bytes()).map_err(|error| {
            if held.is_file() {
                // Best effort: where it fails too, a reader meets one torn line.
                let _ = file.set_len(before);
            }
            WriteError::Output(error)
        })
    }
}

fn append(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).mode(MODE).open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(MODE))?;
    }
    Ok(file)
}

/// Renames `path` to `path.1`, what was that to `path.2`, and so on; the oldest is replaced. A rename
/// is whole or not at all, so that a reader never meets half a file.
fn turn_over(path: &Path, keep: u32) -> io::Result<()> {
    let numbered = |number: u32| {
        let mut name = OsString::from(path);
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    if keep == 0 {
        return std::fs::remove_file(path);
    }
    for number in (1..keep).rev() {
        match std::fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    std::fs::rename(path, numbered(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_file_turns_over_at_its_size_and_keeps_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let mut outlet = Outlet::open(Some(&path), Rotation { size: 10, keep: 2 }).unwrap();
        for line in ["one", "two", "three", "four", "five", "six", "seven"] {
            outlet.write(line).unwrap();
        }
        assert_eq!(lines(&path), ["six", "seven"]);
        assert_eq!(lines(&dir.path().join("events.1")), ["four", "five"]);
        assert_eq!(lines(&dir.path().join("events.2")), ["three"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
    }

    #[test]
    fn a_file_that_cannot_turn_over_takes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let mut outlet = Outlet::open(Some(&path), Rotation { size: 4, keep: 1 }).unwrap();
        outlet.write("one").unwrap();
        std::fs::create_dir(dir.path().join("events.1")).unwrap();
        let error = outlet.write("two").unwrap_err();
        assert_eq!(error.stage(), tally::ROTATE, "{error}");
        std::fs::remove_dir(dir.path().join("events.1")).unwrap();
        outlet.write("three").unwrap();
        assert_eq!(lines(&path), ["three"]);
    }

    #[test]
    fn a_file_moved_away_is_opened_anew_and_others_cannot_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let mut outlet = Outlet::open(Some(&path), Rotation::default()).unwrap();
        outlet.write("old").unwrap();
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        outlet.reopen(false).unwrap();
        outlet.write("new").unwrap();
        assert_eq!(
            (lines(&dir.path().join("moved")), lines(&path)),
            (vec!["old".to_owned()], vec!["new".to_owned()])
        );
        for file in ["moved", "events"] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, MODE, "{file}");
        }
    }

    #[test]
    fn a_full_disk_is_an_error_of_the_output() {
        let mut outlet = Outlet::open(Some(Path::new("/dev/full")), Rotation::default()).unwrap();
        assert_eq!(outlet.write("line").unwrap_err().stage(), tally::OUTPUT);
    }
}
