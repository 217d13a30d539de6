//! The standard library's source, in the place where cargo's `build-std` looks for it.
//!
//! It must be exactly this compiler's. `rustup` is asked first; where it cannot reach its server,
//! Debian has the same release as the package `rust-src`, read from the machine's own mirror with
//! a private apt configuration and checked against Debian's keys. No package is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Staging, apt, mirror};
use crate::paths::find_program;
use crate::process::{self, Lines};

/// Where Debian keeps current compilers for its stable release.
const SUITE: &str = "trixie-backports";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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
    for program in ["apt-get", "dpkg"] {
        if find_program(program).is_none() {
            bail!(
                "rustup could not add rust-src and this system has no {program}: put the \
                 `library` directory of the Rust {release} sources at {}",
                directory.display()
            );
        }
    }
    if !Path::new(KEYRING).is_file() {
        bail!(
            "{KEYRING} is missing, so packages cannot be verified: install debian-archive-keyring"
        );
    }
    let mirror = mirror::debian()?;
    // Staged beside the destination: a rename cannot cross file systems.
    let staging = Staging::beside(directory)?;
    let apt = Apt::new(&staging.0, &mirror)?;
    eprintln!("setup: downloading rust-src {release} ({SUITE}) from this machine's Debian mirror");
    process::run_long("apt-get update", apt.command().arg("update"), Lines::Kept)?;
    process::run_long(
        "apt-get download",
        apt.command().args(["download", &format!("rust-src={release}+*")]).current_dir(&staging.0),
        Lines::Kept,
    )
    .with_context(|| format!("{SUITE} has no rust-src {release}, the version of this rustc"))?;
    let package = apt::package_in(&staging.0)?;
    let unpacked = staging.0.join("unpacked");
    process::run_long(
        "unpacking",
        Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked),
        Lines::Kept,
    )?;
    staging.finish(&format!("unpacked/usr/src/rustc-{release}/library"), directory)
}

/// apt with lists, cache and sources of its own. Proxies and the like stay the machine's.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(base: &Path, mirror: &str) -> Result<Self> {
        let directory = |name: &str| -> Result<String> {
            let path = base.join(name);
            fs::create_dir_all(path.join("partial"))
                .with_context(|| format!("cannot create {}", path.display()))?;
            Ok(path.display().to_string())
        };
        let sources = directory("sources")?;
        fs::write(
            Path::new(&sources).join("private.sources"),
            format!(
                "Types: deb\nURIs: {mirror}\nSuites: {SUITE}\nComponents: main\n\
                 Signed-By: {KEYRING}\n"
            ),
        )
        .context("cannot write apt's private sources")?;
        Ok(Self {
            options: vec![
                "Dir::Etc::sourcelist=/dev/null".to_owned(),
                "Dir::Etc::preferences=/dev/null".to_owned(),
                "Dir::Etc::preferencesparts=/dev/null".to_owned(),
                format!("Dir::Etc::sourceparts={sources}"),
                format!("Dir::State::lists={}", directory("lists")?),
                format!("Dir::Cache={}", directory("cache")?),
                // The unprivileged download user may not enter a home directory.
                "APT::Sandbox::User=root".to_owned(),
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            ],
        })
    }

    fn command(&self) -> Command {
        let mut apt = Command::new("apt-get");
        for option in &self.options {
            apt.args(["-o", option]);
        }
        apt
    }
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
