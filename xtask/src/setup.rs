//! Fetches what a task needs and nothing else, once per machine.
//!
//! Each need is checked first, so that repeating costs nothing. Tools are put together in a
//! directory of their own and renamed into place when complete: an interrupted installation is
//! never taken for a finished one. Nothing of the system's configuration is changed; packages are
//! installed by their exact names, and only where a program is missing.

mod apt;
mod archive;
mod envoy;
mod golang;
mod kernels;
mod linker;
mod mirror;
mod prometheus;
pub(crate) mod stdsource;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::paths;

pub(crate) use envoy::program as envoy;
pub(crate) use golang::{control_plane, istiod};
pub(crate) use kernels::{KERNELS, Kernel, qemu};
pub(crate) use linker::{VERSION as BPF_LINKER, program as bpf_linker};
pub(crate) use prometheus::{promtool, server as prometheus};

/// Something a task cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// `nft`, `ip`, `nsenter`: namespaces and redirection of the demo and the tests.
    Net,
    /// The standard library's source, from which `core` is built for the BPF target.
    StdSource,
    /// Links the kernel programs.
    BpfLinker,
    /// The gateway and the sidecar of the demo and the tests.
    Envoy,
    /// etcd and the API server of the tests.
    ControlPlane,
    /// qemu and the kernels of the matrix.
    Kernels,
    /// Istio's own control plane, which the tests compare the agent with.
    Istiod,
    /// Scrapes the agent in the tests of alerts and dashboards, and tests their rules.
    Prometheus,
}

/// All of it.
pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    ensure(&[
        Need::Net,
        Need::StdSource,
        Need::BpfLinker,
        Need::Envoy,
        Need::ControlPlane,
        Need::Istiod,
        Need::Kernels,
        Need::Prometheus,
    ])?;
    eprintln!("setup: ready after {}", seconds(start));
    Ok(())
}

/// Makes every need available, and says for each what was done and how long it took.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    for need in needs {
        let start = Instant::now();
        let (what, outcome) = match need {
            Need::Net => ("network tools", apt::ensure_network_tools()),
            Need::StdSource => ("standard library source", stdsource::ensure()),
            Need::BpfLinker => ("bpf-linker", linker::ensure()),
            Need::Envoy => ("envoy", envoy::ensure()),
            Need::ControlPlane => ("control plane", golang::ensure_control_plane()),
            Need::Kernels => ("kernel matrix", kernels::ensure()),
            Need::Istiod => ("istiod", golang::ensure_istiod()),
            Need::Prometheus => ("prometheus", prometheus::ensure()),
        };
        let outcome = outcome.with_context(|| format!("setup of {what} failed"))?;
        eprintln!("setup: {what}: {outcome} ({})", seconds(start));
    }
    Ok(())
}

fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f32())
}

/// A directory under construction; gone when dropped unless it was [moved into place](Self::finish).
struct Staging(PathBuf);

impl Staging {
    /// Starts what shall become `destination`, beside it, so that the rename is atomic.
    fn beside(destination: &Path) -> Result<Self> {
        let name = destination.file_name().context("a tool's directory has a name")?;
        let directory = destination.with_file_name(format!(
            ".{}.{}",
            name.to_string_lossy(),
            std::process::id()
        ));
        // A process of the same number may have been killed here.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self(directory))
    }

    /// Moves `part` of it into place. If another process was faster, its result stands.
    fn finish(self, part: &str, destination: &Path) -> Result<()> {
        let part = self.0.join(part);
        match fs::rename(&part, destination) {
            Err(_) if destination.is_dir() => Ok(()),
            outcome => outcome.with_context(|| {
                format!("cannot move {} to {}", part.display(), destination.display())
            }),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Left-overs are hidden directories that the next run does not look at.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where a tool's program is, whether installed or not.
fn tool_program(name: &str, version: &str, inside: &str) -> Result<PathBuf> {
    Ok(paths::tool(name, version)?.join(inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_installation_leaves_nothing() {
        let base = std::env::temp_dir().join(format!("egress-staging-{}", std::process::id()));
        let destination = base.join("tool-1");
        let staging = Staging::beside(&destination).unwrap();
        fs::create_dir(staging.0.join("bin")).unwrap();
        drop(staging);
        assert_eq!(fs::read_dir(&base).unwrap().count(), 0);
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn a_finished_one_is_in_place_and_a_second_is_not_an_error() {
        let base = std::env::temp_dir().join(format!("egress-finish-{}", std::process::id()));
        let destination = base.join("tool-1");
        for content in ["first", "second"] {
            let staging = Staging::beside(&destination).unwrap();
            fs::write(staging.0.join("program"), content).unwrap();
            staging.finish("", &destination).unwrap();
        }
        assert_eq!(fs::read_to_string(destination.join("program")).unwrap(), "first");
        assert_eq!(fs::read_dir(&base).unwrap().count(), 1);
        fs::remove_dir_all(&base).unwrap();
    }
}
