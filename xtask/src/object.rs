//! Makes the eBPF object, the same bytes on every machine.
//!
//! What could differ between two machines is removed: paths are remapped, the user's flags and
//! wrappers are not passed on, DWARF is stripped once BTF has been made from it. What is left is
//! the sources, the flags of [`sources::FLAGS`] and the pinned tools.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::Lines;
use crate::setup::{self, Need, stdsource};
use crate::{paths, process, sources, strip};

const TARGET: &str = "bpfel-unknown-none";
/// Separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";
/// Variables of the caller that would change the object.
const FOREIGN: [&str; 6] = [
    "RUSTFLAGS",
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
];

/// Builds the object into `output` (a cargo target directory) and returns its stripped bytes.
pub(crate) fn make(output: &Path) -> Result<Vec<u8>> {
    setup::ensure(&[Need::BpfLinker, Need::StdSource])?;
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(paths::root())
        .args(["build", "--release", "--package", "egress-ebpf", "--target", TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(output)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(output)?)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", setup::bpf_linker()?)
        // `build-std` is not stable; this is what lets the stable compiler do it.
        .env("RUSTC_BOOTSTRAP", "1");
    for name in FOREIGN {
        cargo.env_remove(name);
    }
    eprintln!("eBPF object: building for {TARGET}");
    process::run_long("eBPF object", &mut cargo, Lines::Shown)?;
    let built = output.join(TARGET).join("release/egress-ebpf");
    let elf = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    strip::strip_debug(&elf).with_context(|| format!("cannot strip {}", built.display()))
}

/// Makes the object and keeps it, with its record, in the repository.
pub(crate) fn keep(output: &Path) -> Result<()> {
    let root = paths::root();
    let object = make(output)?;
    let record = format!(
        "# Written by `cargo xtask build`: what egress-ebpf.o was built from (see sources.rs).\n\
         # {}, bpf-linker {}\n\
         {}  sources\n\
         {}  egress-ebpf.o\n",
        stdsource::rustc_version()?,
        setup::BPF_LINKER,
        sources::digest(root).context("cannot hash the eBPF sources")?,
        sources::sha256(&object),
    );
    for (path, content) in
        [(sources::OBJECT, object.as_slice()), (sources::RECORD, record.as_bytes())]
    {
        replace(&root.join(path), content)?;
    }
    eprintln!("eBPF object: kept in {} ({} bytes)", sources::OBJECT, object.len());
    Ok(())
}

/// Builds and keeps a new object unless the kept one was made from these sources.
pub(crate) fn ensure_kept() -> Result<()> {
    match sources::verify(paths::root()).context("cannot check the kept eBPF object")? {
        Ok(_) => Ok(()),
        Err(stale) => {
            eprintln!("eBPF object: {stale}");
            keep(&paths::target().join("bpf"))
        }
    }
}

/// Writes a file only if it differs (cargo watches it), and never half of it.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let failed = || format!("cannot write {}", path.display());
    let directory = path.parent().with_context(failed)?;
    fs::create_dir_all(directory).with_context(failed)?;
    let new = path.with_extension("new");
    fs::write(&new, content).with_context(failed)?;
    fs::rename(&new, path).with_context(failed)
}

fn flags(output: &Path) -> Result<OsString> {
    let mut flags = OsString::from(sources::FLAGS.join(SEPARATOR));
    for (from, to) in remapped(output)? {
        flags.push(SEPARATOR);
        flags.push("--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    Ok(flags)
}

/// Directories of this machine and what the object calls them. The last match wins, so the
/// target directory, usually inside the clone, comes after it.
fn remapped(output: &Path) -> Result<Vec<(PathBuf, &'static str)>> {
    let mut prefixes = vec![(paths::root().to_owned(), "/egress-enforcer")];
    prefixes.push((output.to_owned(), "/target"));
    prefixes.push((stdsource::directory()?, "/rustc/library"));
    // One directory per registry; its name depends on which mirror cargo is told to use.
    let registries = cargo_home()?.join("registry/src");
    if let Ok(entries) = fs::read_dir(&registries) {
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", registries.display()))?;
            prefixes.push((entry.path(), "/registry"));
        }
    }
    Ok(prefixes)
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME").filter(|home| !home.is_empty()) {
        return Ok(home.into());
    }
    let home = std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cargo"))
}

#[cfg(test)]
#[path = "object_tests.rs"]
mod tests;
