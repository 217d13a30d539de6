//! What process 1 of the virtual machine does before and after the proof: file systems, modules,
//! and the end of the machine.

use std::convert::Infallible;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use super::finding;

/// File systems of a node, in the order of their mount points.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

/// Kernel modules, one path a line, each after those it needs.
const MODULES: &str = "/modules.list";

/// Makes a system, proves, and turns the machine off. Returns only if it cannot be turned off.
pub fn run() -> ExitCode {
    let outcome = system().and_then(|()| super::prove());
    if let Err(error) = outcome {
        finding::broke(&error);
    }
    let Err(error): Result<Infallible, _> = reboot(RebootMode::RB_POWER_OFF);
    finding::broke(&anyhow::Error::new(error).context("turn the machine off"));
    ExitCode::FAILURE
}

fn system() -> Result<()> {
    for (kind, target) in MOUNTS {
        fs::create_dir_all(target).with_context(|| format!("make {target}"))?;
        mount(Some("none"), target, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind} on {target}"))?;
    }
    let modules = fs::read_to_string(MODULES).with_context(|| format!("read {MODULES}"))?;
    for path in modules.lines() {
        let module = fs::File::open(path).with_context(|| format!("open {path}"))?;
        finit_module(&module, c"", ModuleInitFlags::empty())
            .with_context(|| format!("load module {path}"))?;
    }
    Ok(())
}
