//! One agent per node: an exclusive lock on a file in the run directory, which names its holder,
//! and one on the directory of the pins, which all agents of a node share wherever they run.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held for as long as it lives; a dead holder's lock is free.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("another agent runs on this node (pid {pid}, lock {path}); nothing was changed", path = path.display())]
    Held {
        /// The holder, as it wrote itself down.
        pid: String,
        /// The lock file.
        path: PathBuf,
    },
    /// The file cannot be used.
    #[error(
        "cannot lock {path}: {source}; make it writable, or name other places with --run-dir and \
         --bpffs",
        path = path.display()
    )]
    Unusable {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Lock {
    /// Takes the lock on the directory of the pins, made if it is missing. Never waits.
    ///
    /// # Errors
    /// When another agent has it or the directory cannot be used.
    pub fn take_pins(bpffs: &Path) -> Result<Self, LockError> {
        let path = bpffs.to_owned();
        let unusable = |source| LockError::Unusable { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(bpffs).map_err(unusable)?;
        let directory = File::open(bpffs).map_err(unusable)?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(directory) => Ok(Self { _file: directory }),
            Err((_, Errno::EWOULDBLOCK)) => {
                Err(LockError::Held { pid: "of another --run-dir".to_owned(), path })
            }
            Err((_, errno)) => Err(unusable(errno.into())),
        }
    }

    /// Takes the lock, or says who has it. Never waits.
    ///
    /// # Errors
    /// When another agent has it or the file cannot be used.
    pub fn take(run_dir: &Path) -> Result<Self, LockError> {
        let path = run_dir.join("agent.lock");
        let unusable = |source| LockError::Unusable { path: path.clone(), source };
        fs::create_dir_all(run_dir).map_err(unusable)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(unusable)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let pid = std::process::id();
                let written = file
                    .set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| write!(file, "{pid}"));
                written.map_err(unusable)?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                // Only for the message; an unreadable pid is an unknown one.
                let _ = file.read_to_string(&mut pid);
                let pid = if pid.is_empty() { "unknown".to_owned() } else { pid };
                Err(LockError::Held { pid, path })
            }
            Err((_, errno)) => Err(unusable(errno.into())),
        }
    }
}

/// Process id of the agent that has the lock of a run directory, as it wrote itself down; `None`
/// where nobody has it.
pub fn holder(run_dir: &Path) -> Option<String> {
    let path = run_dir.join("agent.lock");
    let held = is_held(&path);
    held.then(|| fs::read_to_string(path).unwrap_or_else(|_| "unknown".to_owned()))
}

/// Whether somebody has the lock on this file or directory. Nobody has one that is not there.
pub fn is_held(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::take(dir.path()).unwrap();
        let error = Lock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        assert_eq!(holder(dir.path()), Some(std::process::id().to_string()));
        drop(held);
        assert_eq!(holder(dir.path()), None);
        Lock::take(dir.path()).unwrap();
    }

    #[test]
    fn the_pins_have_one_agent_whatever_run_directory_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let pins = dir.path().join("pins");
        let held = Lock::take_pins(&pins).unwrap();
        let error = Lock::take_pins(&pins).unwrap_err().to_string();
        assert!(error.contains("another agent") && error.contains("pins"), "{error}");
        drop(held);
        Lock::take_pins(&pins).unwrap();
    }
}
