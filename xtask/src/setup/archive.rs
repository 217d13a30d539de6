//! Packages of Debian suites that this machine's own apt does not follow: read from its own mirror
//! with a private apt configuration, checked against Debian's keys, unpacked and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::mirror;
use crate::paths::find_program;
use crate::process::{self, Lines};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with lists, cache and sources of its own. Proxies and the like stay the machine's.
pub(super) struct Archive {
    base: PathBuf,
    options: Vec<String>,
}

impl Archive {
    /// Reads the lists of `suites` into `base`.
    pub(super) fn open(base: &Path, suites: &[&str]) -> Result<Self> {
        for program in ["apt-get", "dpkg"] {
            if find_program(program).is_none() {
                bail!("this system has no {program}: packages of Debian cannot be fetched here");
            }
        }
        if !Path::new(KEYRING).is_file() {
            bail!(
                "{KEYRING} is missing, so packages cannot be verified: install \
                 debian-archive-keyring"
            );
        }
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
                "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nSigned-By: {KEYRING}\n",
                mirror::debian()?,
                suites.join(" ")
            ),
        )
        .context("cannot write apt's private sources")?;
        let archive = Self {
            base: base.to_owned(),
            options: vec![
                "Dir::Etc::sourcelist=/dev/null".to_owned(),
                "Dir::Etc::preferences=/dev/null".to_owned(),
                "Dir::Etc::preferencesparts=/dev/null".to_owned(),
                format!("Dir::Etc::sourceparts={sources}"),
                format!("Dir::State::lists={}", directory("lists")?),
                format!("Dir::Cache={}", directory("cache")?),
                format!("Dir::Cache::archives={}", directory("archives")?),
                // The unprivileged download user may not enter a home directory.
                "APT::Sandbox::User=root".to_owned(),
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
                // Nothing is installed: another apt may be at work meanwhile.
                "Debug::NoLocking=1".to_owned(),
            ],
        };
        process::run_long("apt-get update", archive.apt().arg("update"), Lines::Kept)?;
        Ok(archive)
    }

    /// Downloads packages of exactly these names (`name` or `name=version*`) and unpacks them
    /// into `unpacked` below the base.
    pub(super) fn unpack(&self, packages: &[String]) -> Result<PathBuf> {
        let archives = self.base.join("archives");
        let mut download = self.apt();
        download.arg("download").args(packages).current_dir(&archives);
        process::run_long("apt-get download", &mut download, Lines::Kept)?;
        self.unpacked()
    }

    /// The same with every library they need and this machine lacks, the newest of them all.
    pub(super) fn unpack_with_libraries(&self, package: &str, suite: &str) -> Result<PathBuf> {
        let mut download = self.apt();
        download.args(["install", "--download-only", "--yes", "--no-install-recommends"]).args([
            "--target-release",
            suite,
            package,
        ]);
        process::run_long("apt-get install --download-only", &mut download, Lines::Kept)?;
        self.unpacked()
    }

    fn unpacked(&self) -> Result<PathBuf> {
        let unpacked = self.base.join("unpacked");
        let archives = self.base.join("archives");
        let entries = fs::read_dir(&archives).context("cannot list what apt downloaded")?;
        let mut count = 0;
        for entry in entries {
            let package = entry.context("cannot list what apt downloaded")?.path();
            if package.extension().is_some_and(|extension| extension == "deb") {
                let mut dpkg = Command::new("dpkg");
                dpkg.arg("-x").arg(&package).arg(&unpacked);
                process::run_long("unpacking", &mut dpkg, Lines::Kept)?;
                count += 1;
            }
        }
        if count == 0 {
            bail!("apt-get downloaded no package");
        }
        Ok(unpacked)
    }

    fn apt(&self) -> Command {
        let mut apt = Command::new("apt-get");
        for option in &self.options {
            apt.args(["-o", option]);
        }
        apt
    }
}
