//! Where the cluster's objects come from, and what becomes of them: objects → [`Snapshot`].
//!
//! A source gives JSON-like values. `object` turns each into a small tolerant type and then into
//! the domain's own, and `assemble` puts them together; both are pure and do not know the source,
//! so that a directory of manifests and an API server give the same snapshot.
//!
//! Invariant: nothing that cannot be read removes anything. A file or an object that is broken
//! keeps its last good version; one that never had a good version makes the snapshot incomplete,
//! which forbids removals from the kernel; only what is seen to be deleted goes.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::policy::Snapshot;
use crate::supervise::Shutdown;

mod assemble;
mod cluster;
pub mod crd;
mod dir;
mod field;
mod gateway;
mod gateway_api;
mod istio;
mod manifest;
mod moment;
mod object;
mod pod;
mod policy_object;
mod policy_spec;
mod range;
#[cfg(test)]
mod tests;

/// Where objects are read from; written `dir:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Every `*.yaml`, `*.yml` and `*.json` in a directory and those below it.
    Dir(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

impl FromStr for Source {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(PathBuf::from(path))),
            None if text == "kube" => Err(RegistryError::KubeUnsupported),
            _ => Err(RegistryError::UnknownSource(text.to_owned())),
        }
    }
}

/// Why there is no registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The text names no source.
    #[error("registry `{0}` is not known; write dir:PATH with the directory of the manifests")]
    UnknownSource(String),
    /// The API server as a source.
    #[error(
        "registry `kube` is not in this version; dump the objects with `kubectl get -o yaml` into \
         a directory and write dir:PATH"
    )]
    KubeUnsupported,
    /// The directory cannot be listed at start.
    #[error(
        "cannot read the registry directory {path}: {source}; create it and make it readable, or \
         name another one with --registry dir:PATH"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel gave no notification channel.
    #[error(
        "cannot follow changes of {path}: {source}; raise fs.inotify.max_user_instances or the \
         limit of open files"
    )]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Reads a permanently allowed range by the rules of policies: canonical, of a sensible width, and
/// not loopback, link-local or multicast.
///
/// # Errors
/// The field with what is wrong about it.
pub fn allowed_range(field: &str, text: &str) -> Result<ipnet::IpNet, String> {
    range::read(field, text, range::Use::Allowed).map_err(|errors| errors.to_string())
}

/// Whether an object would be taken as it stands, by the rules of its kind; kinds that are not read
/// always are.
///
/// # Errors
/// Each field that is wrong, with what to do about it.
pub fn verdict(object: &serde_json::Value) -> Result<(), String> {
    match object::read(object.clone(), None) {
        Ok(Some(entry)) => entry.item.map(drop).map_err(|errors| errors.to_string()),
        Ok(None) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Publishes a snapshot once everything was read, and another after every change, until shutdown.
///
/// # Errors
/// Only before the first snapshot: afterwards whatever fails is among the snapshot's problems.
pub async fn run(
    source: Source,
    publish: watch::Sender<Arc<Snapshot>>,
    shutdown: Shutdown,
) -> Result<(), RegistryError> {
    match source {
        Source::Dir(root) => dir::follow(&root, publish, shutdown).await,
    }
}

/// Reads everything once; the snapshot's revision is 1.
///
/// # Errors
/// The directory cannot be listed.
pub fn read_once(source: &Source) -> Result<Snapshot, RegistryError> {
    match source {
        Source::Dir(root) => {
            let mut directory = dir::Directory::new(root);
            directory
                .scan(&BTreeSet::new())
                .map_err(|source| RegistryError::Directory { path: root.clone(), source })?;
            Ok(Snapshot { revision: 1, ..directory.snapshot() })
        }
    }
}
