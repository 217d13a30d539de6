//! The kernel side of the agent: loads, attaches, applies, reads back.
//!
//! States are types: [`Loaded`] has programs and maps and holds nothing up; consuming it with
//! [`Loaded::attach`] fills the maps, then adopts or creates the links, and gives [`Attached`],
//! the only value that writes policy into the kernel. Everything it needs to live on without the
//! agent is pinned; dropping [`Attached`] detaches nothing.
//!
//! Invariant: nothing here knows where a policy came from, and nothing else imports aya.

mod attach;
mod counters;
mod diff;
mod hooks;
mod load;
mod maps;
pub mod probe;
mod sys;
mod uninstall;

use std::path::{Path, PathBuf};

pub use attach::{Applied, Attached};
pub use counters::{CounterReader, EventRing, EventTally, Readings};
pub use diff::{Capacities, Plan, REDIRECTS, Refused, diff};
pub use hooks::HookStatus;
pub use load::{Loaded, Logger, hook_names, map_names};
pub use sys::SysError;
pub use uninstall::{Removed, uninstall};

/// The release object of the kernel programs, as the build script has verified it against their
/// sources.
pub fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(env!("EGRESS_EBPF_OBJECT"))
}

/// Where and how the datapath is loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// The agent's own directory in a bpffs.
    pub bpffs: PathBuf,
    /// Load the programs with their debug lines.
    pub kernel_log: bool,
    /// Overrides the size of the exact, address, range and redirect tables, entries.
    pub capacity: Option<u32>,
    /// How programs are put at interfaces.
    pub attach: Way,
}

/// How programs are put at interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Way {
    /// By tcx where the kernel has it (Linux 6.6), else by clsact.
    #[default]
    Auto,
    /// By tcx, and not at all where the kernel has none.
    Tcx,
    /// By clsact, which tcx programs of others come before.
    Clsact,
}

impl Options {
    fn schema(&self) -> PathBuf {
        self.bpffs.join(format!("s{}", egress_common::SCHEMA))
    }

    fn map_pin(&self, map: &str) -> PathBuf {
        self.schema().join("maps").join(map)
    }

    fn program_pin(&self, hook: &str) -> PathBuf {
        self.schema().join("progs").join(hook)
    }

    fn link_pin(&self, hook: &str) -> PathBuf {
        self.bpffs.join("links").join(hook)
    }

    fn interface_pins(&self) -> PathBuf {
        self.bpffs.join("links").join("tcx")
    }

    /// Directories that say at which interfaces the clsact qdisc is ours.
    fn qdisc_marks(&self) -> PathBuf {
        self.bpffs.join("links").join("clsact")
    }

    fn uplink_pins(&self) -> PathBuf {
        self.bpffs.join("links").join("uplinks")
    }
}

/// Why the datapath could not be loaded, attached or read.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// A directory of pins could not be made or read.
    #[error("cannot use {path}: {source}; check that {root} is a bpffs (mount -t bpf bpf {root})",
        path = path.display(), root = root.display())]
    Pins {
        /// The path.
        path: PathBuf,
        /// The configured directory.
        root: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A pinned map has another shape than this version's.
    #[error(
        "pinned map {map} has {field} {found}, this version needs {expected}: it belongs to another \
        version; run `egress-agent uninstall` to remove it"
    )]
    MapShape {
        /// The map.
        map: String,
        /// Which property differs.
        field: &'static str,
        /// What the pin has.
        found: u64,
        /// What the object needs.
        expected: u64,
    },
    /// The object or a program in it was refused.
    #[error("cannot load {what}: {source}")]
    Load {
        /// The object, program or map.
        what: String,
        /// aya's account, verifier log included.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The object lacks something this agent needs.
    #[error("the eBPF object has no {what}: it was built from other sources")]
    Missing {
        /// The program or map.
        what: String,
    },
    /// A raw system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// A map could not be read or written.
    #[error("map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// aya's account.
        source: aya::maps::MapError,
    },
    /// The plan did not fit.
    #[error(transparent)]
    Refused(#[from] Refused),
}

fn make_dir(path: &Path, root: &Path) -> Result<(), DatapathError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| {
        DatapathError::Pins { path: path.to_owned(), root: root.to_owned(), source }
    })
}
