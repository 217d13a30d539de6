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
use std::path::{Path, PathBuf};
use std::str::FromStr;

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
mod kind;
mod kube;
mod manifest;
mod moment;
mod object;
mod pod;
mod policy_object;
mod policy_spec;
mod publish;
mod range;
#[cfg(test)]
mod tests;

pub use kube::ClientError;
pub use kube::report::{Enforced, NodeReport, Reporter};
pub use kube::review::{Review, Reviewer};
pub use publish::{Health, Published, Publisher, channel, report_changes};

/// Where objects are read from; written `dir:PATH`, `kube` or `kube:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Every `*.yaml`, `*.yml` and `*.json` in a directory and those below it.
    Dir(PathBuf),
    /// The API server: of this kubeconfig file, else of the one `KUBECONFIG` names, else of the
    /// cluster this pod runs in.
    Kube(Option<PathBuf>),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
            Self::Kube(None) => f.write_str("kube"),
            Self::Kube(Some(path)) => write!(f, "kube:{}", path.display()),
        }
    }
}

impl FromStr for Source {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(PathBuf::from(path))),
            Some(("kube", path)) if !path.is_empty() => Ok(Self::Kube(Some(PathBuf::from(path)))),
            None if text == "kube" => Ok(Self::Kube(None)),
            _ => Err(RegistryError::UnknownSource(text.to_owned())),
        }
    }
}

/// Why there is no registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The text names no source.
    #[error(
        "registry `{0}` is not known; write dir:PATH with the directory of the manifests, kube for \
         the API server, or kube:PATH with a kubeconfig file"
    )]
    UnknownSource(String),
    /// The API server is watched for one node's pods, and nobody said which.
    #[error(
        "registry kube watches the pods of one node: name it with --node-name, or set \
         EGRESS_NODE_NAME from spec.nodeName (downward API)"
    )]
    NodeUnnamed,
    /// There is no usable way to the API server.
    #[error(transparent)]
    Client(#[from] ClientError),
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

/// The rights the agent needs: its service account, roles and bindings, as objects for the API
/// server.
pub fn rights() -> Vec<serde_json::Value> {
    kube::role::objects()
}

/// What `metrics.authenticate` needs beyond [`rights`], and a role for those who are to be let in.
pub fn metrics_rights() -> Vec<serde_json::Value> {
    kube::role::metrics_authentication()
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

/// A source that can be followed: what is wrong with how it was asked for is known already.
pub struct Registry(Opened);

enum Opened {
    Dir(PathBuf),
    Kube(Box<kube::Cluster>),
}

impl Registry {
    /// Opens a source for the node of this name. Nothing is read yet, and an API server that does
    /// not answer is no error.
    ///
    /// # Errors
    /// When the API server is asked for and the node is not named, or no credentials are found.
    pub async fn open(source: &Source, node: Option<&str>) -> Result<Self, RegistryError> {
        match source {
            Source::Dir(root) => Ok(Self(Opened::Dir(root.clone()))),
            Source::Kube(kubeconfig) => {
                let node =
                    node.filter(|name| !name.is_empty()).ok_or(RegistryError::NodeUnnamed)?;
                let cluster = kube::Cluster::connect(kubeconfig.as_deref(), node).await?;
                Ok(Self(Opened::Kube(Box::new(cluster))))
            }
        }
    }

    /// Who writes to the API server on behalf of the node; nobody where there is none.
    pub fn reporter(&self) -> Option<Reporter> {
        match &self.0 {
            Opened::Dir(_) => None,
            Opened::Kube(cluster) => Some(cluster.reporter()),
        }
    }

    /// Who asks the API server about tokens; nobody where there is none.
    pub fn reviewer(&self) -> Option<Reviewer> {
        match &self.0 {
            Opened::Dir(_) => None,
            Opened::Kube(cluster) => Some(cluster.reviewer()),
        }
    }

    /// Publishes a snapshot once everything was read, and another after every change, until
    /// shutdown.
    ///
    /// # Errors
    /// Only before the first snapshot: afterwards whatever fails is among the snapshot's problems.
    pub async fn follow(self, publish: Publisher, shutdown: Shutdown) -> Result<(), RegistryError> {
        match self.0 {
            Opened::Dir(root) => dir::follow(&root, publish, shutdown).await,
            Opened::Kube(cluster) => {
                cluster.follow(publish, shutdown).await;
                Ok(())
            }
        }
    }
}

/// Reads a directory once; the snapshot's revision is 1.
///
/// # Errors
/// The directory cannot be listed.
pub fn read_directory(root: &Path) -> Result<Snapshot, RegistryError> {
    let mut directory = dir::Directory::new(root);
    directory
        .scan(&BTreeSet::new())
        .map_err(|source| RegistryError::Directory { path: root.to_owned(), source })?;
    Ok(Snapshot { revision: 1, ..directory.snapshot() })
}
