//! The kernels of the matrix and the machine that runs them: Debian's packages, unpacked and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::archive::Archive;
use super::{Staging, tool_program};
use crate::{paths, process};

/// A kernel of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// What the matrix calls it.
    pub(crate) line: &'static str,
    suite: &'static str,
    /// As `uname -r` says it.
    release: &'static str,
    packages: &'static [&'static str],
}

/// The oldest with everything the wall needs; the two long-term ones between; the newest. Each is
/// of a suite that keeps it, not of its security updates, which drop what they replace.
pub(crate) const KERNELS: [Kernel; 4] = [
    Kernel {
        line: "5.10",
        suite: "bullseye",
        release: "5.10.0-32-cloud-amd64",
        packages: &["linux-image-5.10.0-32-cloud-amd64"],
    },
    Kernel {
        line: "6.1",
        suite: "bookworm",
        release: "6.1.0-50-cloud-amd64",
        packages: &["linux-image-6.1.0-50-cloud-amd64"],
    },
    Kernel {
        line: "6.12",
        suite: "bookworm-backports",
        release: "6.12.95+deb12-cloud-amd64",
        packages: &["linux-image-6.12.95+deb12-cloud-amd64"],
    },
    Kernel {
        line: "7.3",
        suite: "trixie-backports",
        release: "7.3.4+deb13-cloud-amd64",
        packages: &[
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
        ],
    },
];

/// The emulator: Debian 12's own panics under kernel 6.12, that of its backports does not.
const QEMU_SUITES: [&str; 2] = ["bookworm", "bookworm-backports"];
const QEMU_PACKAGE: &str = "qemu-system-x86";
const QEMU_VERSION: &str = "debian-12-backports";

impl Kernel {
    fn directory(self) -> Result<PathBuf> {
        paths::tool("kernel", self.release)
    }

    /// The bootable image.
    pub(crate) fn image(self) -> Result<PathBuf> {
        let directory = self.directory()?;
        let places = [
            directory.join("boot").join(format!("vmlinuz-{}", self.release)),
            self.modules()?.join("vmlinuz"),
        ];
        places.into_iter().find(|path| path.is_file()).with_context(|| {
            format!("{} has no image: remove the directory and run again", directory.display())
        })
    }

    /// The directory of its modules, `.../lib/modules/RELEASE`.
    pub(crate) fn modules(self) -> Result<PathBuf> {
        let directory = self.directory()?;
        let places = ["lib/modules", "usr/lib/modules"];
        let mut places = places.map(|place| directory.join(place).join(self.release)).into_iter();
        places.find(|path| path.is_dir()).with_context(|| {
            format!("{} has no modules: remove the directory and run again", directory.display())
        })
    }

    fn fetch(self) -> Result<()> {
        let directory = self.directory()?;
        if directory.is_dir() {
            return Ok(());
        }
        let Self { suite, packages, line, .. } = self;
        eprintln!("setup: downloading {} ({suite})", packages.join(", "));
        let staging = Staging::beside(&directory)?;
        let archive = Archive::open(&staging.0, &[suite])?;
        let names: Vec<String> = packages.iter().map(|name| (*name).to_owned()).collect();
        archive.unpack(&names).with_context(|| {
            format!(
                "Debian's {suite} has no {} any more: choose another {line} of those that \
                 `apt-cache pkgnames linux-image-{line}` lists on a machine with this suite (a \
                 cloud-amd64 one; from 7.2 on linux-binary and linux-modules), and name it in \
                 xtask/src/setup/kernels.rs",
                names.join(", ")
            )
        })?;
        staging.finish("unpacked", &directory)
    }
}

/// The emulator, ready for its arguments.
pub(crate) fn qemu() -> Result<Command> {
    let root = tool_program("qemu", QEMU_VERSION, "")?;
    Ok(emulator(&root))
}

fn emulator(root: &Path) -> Command {
    let mut command = Command::new(root.join("usr/bin/qemu-system-x86_64"));
    let libraries =
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| root.join(path));
    let libraries = libraries.map(|path| path.display().to_string()).join(":");
    command.env("LD_LIBRARY_PATH", libraries);
    for data in ["usr/share/qemu", "usr/share/seabios"] {
        command.arg("-L").arg(root.join(data));
    }
    command
}

pub(super) fn ensure() -> Result<String> {
    let directory = paths::tool("qemu", QEMU_VERSION)?;
    if !directory.is_dir() {
        eprintln!("setup: downloading {QEMU_PACKAGE} and what it needs ({})", QEMU_SUITES[1]);
        let staging = Staging::beside(&directory)?;
        let archive = Archive::open(&staging.0, &QEMU_SUITES)?;
        let unpacked = archive.unpack_with_libraries(QEMU_PACKAGE, QEMU_SUITES[1])?;
        // A program that lacks a library says so here and not in the middle of a boot.
        process::output(emulator(&unpacked).arg("--version"))?;
        fs::remove_dir_all(unpacked.join("usr/share/doc")).context("cannot drop documentation")?;
        staging.finish("unpacked", &directory)?;
    }
    KERNELS.into_iter().try_for_each(Kernel::fetch)?;
    let lines = KERNELS.map(|kernel| kernel.line).join(", ");
    Ok(format!("qemu and the kernels {lines} are here"))
}
