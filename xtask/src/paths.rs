//! Where things are: the repository, cargo's output, and the tools kept for this user.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The root of the repository this `xtask` was built from.
pub(crate) fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Cargo's output directory: the one this very program was built into, whatever chose it.
pub(crate) fn target() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|program| target_of(&program))
        .unwrap_or_else(|| root().join("target"))
}

/// A program of the debug profile.
pub(crate) fn debug_program(name: &str) -> PathBuf {
    target().join("debug").join(name)
}

/// Where a tool of this version lives, shared by all clones of this user.
pub(crate) fn tool(name: &str, version: &str) -> Result<PathBuf> {
    Ok(cache()?.join(format!("{name}-{version}")))
}

/// This project's directory in the user's cache.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    cache_in(set("XDG_CACHE_HOME"), set("HOME"))
}

/// The XDG rules: an absolute `XDG_CACHE_HOME`, else `~/.cache`.
fn cache_in(xdg: Option<OsString>, home: Option<OsString>) -> Result<PathBuf> {
    let base = match xdg.map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(path) => path,
        None => {
            let home = home.context("neither XDG_CACHE_HOME nor HOME is set: set one of them")?;
            PathBuf::from(home).join(".cache")
        }
    };
    Ok(base.join("egress-enforcer"))
}

/// `<target>/<profile>/xtask`, or `<target>/<profile>/deps/xtask-<hash>` for its tests.
fn target_of(program: &Path) -> Option<PathBuf> {
    let directory = program.parent()?;
    let profile = if directory.file_name()? == "deps" { directory.parent()? } else { directory };
    profile.parent().map(Path::to_owned)
}

/// Finds a program on `PATH`, and where administrators' tools are kept.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// Fails with `task`'s own words unless this is root on Linux.
pub(crate) fn require_root(task: &str) -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("`cargo xtask {task}` needs a Linux kernel (eBPF, namespaces): run it on Linux");
    }
    if !is_root() {
        bail!(
            "`cargo xtask {task}` loads eBPF programs and makes network namespaces, which needs \
             root: run it as root (for example `sudo -E env PATH=\"$PATH\" cargo xtask {task}`)"
        );
    }
    Ok(())
}

/// Whether the effective user is root. The owner of our own `/proc` entry is that user.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_follows_xdg_and_ignores_a_relative_one() {
        let cache = |xdg: Option<&str>, home: Option<&str>| {
            cache_in(xdg.map(OsString::from), home.map(OsString::from))
        };
        assert_eq!(cache(Some("/c"), Some("/h")).unwrap(), Path::new("/c/egress-enforcer"));
        for xdg in [None, Some("relative")] {
            assert_eq!(cache(xdg, Some("/h")).unwrap(), Path::new("/h/.cache/egress-enforcer"));
        }
        let error = cache(None, None).unwrap_err().to_string();
        assert!(error.contains("HOME"), "{error}");
    }

    #[test]
    fn target_is_found_from_the_program_and_from_its_tests() {
        for program in ["/x/target/debug/xtask", "/x/target/debug/deps/xtask-0123"] {
            assert_eq!(target_of(Path::new(program)).unwrap(), Path::new("/x/target"));
        }
    }

    #[test]
    fn root_is_this_repository() {
        assert!(root().join("xtask/src/paths.rs").is_file());
    }
}
