//! The standard library's source, in the place where cargo's `build-std` looks for it.
//!
//! It must be exactly this compiler's. `rustup` is asked first; where it cannot reach its server,
//! Debian has the same release as the package `rust-src`, read from the machine's own mirror with
//! a private apt configuration and checked against Debian's keys. No package is installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Staging;
use super::archive::Archive;
use crate::paths::find_program;
use crate::process;

/// Where Debian keeps current compilers for its stable release.
const SUITE: &str = "trixie-backports";

/// Where cargo looks for the source.
pub(crate) fn directory() -> Result<PathBuf> {
    let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library"))
}

/// The compiler's own line about itself.
pub(crate) fn rustc_version() -> Result<String> {
    Ok(process::output(Command::new("rustc").arg("--version"))?.trim().to_owned())
}

pub(super) fn ensure() -> Result<String> {
    let directory = directory()?;
    if directory.join("core/src/lib.rs").is_file() {
        return Ok("is here".to_owned());
    }
    let version = rustc_version()?;
    let release = release(&version)?;
    if find_program("rustup").is_some() {
        let mut rustup = Command::new("rustup");
        rustup.args(["component", "add", "rust-src"]);
        match process::output(&mut rustup) {
            Ok(_) if directory.join("core/src/lib.rs").is_file() => {
                return Ok(format!("added by rustup for {release}"));
            }
            Ok(_) => eprintln!("setup: rustup added rust-src to another toolchain; trying Debian"),
            Err(_) => eprintln!("setup: rustup cannot fetch rust-src here; trying Debian"),
        }
    }
    from_debian(release, &directory)?;
    Ok(format!("{release} unpacked from Debian into {}", directory.display()))
}

/// `1.95.0` of `rustc 1.95.0 (hash date)`. Only a release has a package of the same source.
fn release(version: &str) -> Result<&str> {
    let release = version.split(' ').nth(1).unwrap_or_default();
    let plain = release.split('.').count() == 3
        && release.chars().all(|character| character.is_ascii_digit() || character == '.');
    if !plain {
        bail!(
            "`{version}` is not a stable release, so no package has its source: run \
             `rustup component add rust-src`, or use the toolchain of `rust-version` in Cargo.toml"
        );
    }
    Ok(release)
}

fn from_debian(release: &str, directory: &Path) -> Result<()> {
    // Staged beside the destination: a rename cannot cross file systems.
    let staging = Staging::beside(directory)?;
    eprintln!("setup: downloading rust-src {release} ({SUITE}) from this machine's Debian mirror");
    Archive::open(&staging.0, &[SUITE])
        .and_then(|archive| archive.unpack(&[format!("rust-src={release}+*")]))
        .with_context(|| {
            format!(
                "neither rustup nor Debian's {SUITE} gave the source of Rust {release}, the version \
                 of this rustc: put its `library` directory at {}",
                directory.display()
            )
        })?;
    staging.finish(&format!("unpacked/usr/src/rustc-{release}/library"), directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_release_has_a_package() {
        assert_eq!(release("rustc 1.95.0 (59807616e 2026-04-14)").unwrap(), "1.95.0");
        for version in ["rustc 1.97.0-nightly (0 2026-05-01)", "rustc 1.96.0-beta.2", "rustc", ""] {
            assert!(release(version).unwrap_err().to_string().contains("rust-src"), "{version}");
        }
    }
}
