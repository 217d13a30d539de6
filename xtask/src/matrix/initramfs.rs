//! The file system a kernel of the matrix starts with: one program as process 1, what it runs, and
//! the modules that the kernel leaves to its user.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// A cpio archive of the kind the kernel unpacks (`newc`), grown entry by entry.
#[derive(Default)]
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
    made: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// Adds a file, with its directories.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        self.parents(Path::new(path));
        self.entry(path, PROGRAM, content, (0, 0));
    }

    /// Copies a program of this machine with the libraries it is linked with, each to its own path.
    pub(super) fn program(&mut self, program: &Path) -> Result<()> {
        let linked = process::output(Command::new("ldd").arg(program))?;
        let libraries = linked.split_whitespace().filter(|word| word.starts_with('/'));
        let name = program.file_name().context("a program has a name")?.to_string_lossy();
        self.file(&format!("bin/{name}"), &read(program)?);
        for library in libraries {
            if self.made.insert(PathBuf::from(library)) {
                self.file(library.trim_start_matches('/'), &read(Path::new(library))?);
            }
        }
        Ok(())
    }

    /// Adds these modules and those they need, and the list in whose order they are loaded.
    pub(super) fn modules(&mut self, directory: &Path, names: &[&str]) -> Result<()> {
        let mut files = Vec::new();
        find(&directory.join("kernel"), &mut files)?;
        let mut ordered = Vec::new();
        for name in names {
            self.module(name, &files, &mut ordered)?;
        }
        let list: String = ordered.iter().map(|name| format!("/modules/{name}.ko\n")).collect();
        self.file("modules.list", list.as_bytes());
        Ok(())
    }

    /// A kernel may have a module built in: then there is no file, and nothing to load.
    fn module(&mut self, name: &str, files: &[PathBuf], ordered: &mut Vec<String>) -> Result<()> {
        let name = name.replace('-', "_");
        let Some(file) = files.iter().find(|path| module_name(path) == name) else {
            return Ok(());
        };
        if ordered.contains(&name) {
            return Ok(());
        }
        let content = match file.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => unpacked(file)?,
            _ => read(file)?,
        };
        for needed in needs(&content) {
            self.module(&needed, files, ordered)?;
        }
        self.file(&format!("modules/{name}.ko"), &content);
        ordered.push(name);
        Ok(())
    }

    /// Writes the archive.
    pub(super) fn write(mut self, path: &Path) -> Result<()> {
        self.parents(Path::new("dev/console"));
        self.entry("dev/console", CHARACTER_DEVICE, &[], (5, 1));
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        let failed = || format!("cannot write {}", path.display());
        let mut file = fs::File::create(path).with_context(failed)?;
        file.write_all(&self.bytes).with_context(failed)
    }

    fn parents(&mut self, path: &Path) {
        let parents: Vec<&Path> = path.ancestors().skip(1).collect();
        for parent in parents.into_iter().rev().filter(|parent| !parent.as_os_str().is_empty()) {
            if self.made.insert(parent.to_owned()) {
                self.entry(&parent.to_string_lossy(), DIRECTORY, &[], (0, 0));
            }
        }
    }

    /// The header is thirteen numbers of eight hexadecimal digits (usr/gen_init_cpio.c).
    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.entries += 1;
        let (size, name_size) = (content.len(), name.len() + 1);
        let (major, minor) = device;
        let inode = self.entries;
        let header = format!(
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{major:08x}\
             {minor:08x}{name_size:08x}{:08x}",
            0, 0, 1, 0, 0, 0, 0
        );
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output();
    let output = output.context("cannot start xz (Debian package xz-utils)")?;
    anyhow::ensure!(output.status.success(), "xz cannot unpack {}", path.display());
    Ok(output.stdout)
}

/// `cls_bpf` of `.../cls_bpf.ko.xz`; dashes and underscores are one.
fn module_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

fn find(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", directory.display()))?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// What a module says it needs: `depends=` and names with commas between, in its `.modinfo`.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let rest = module.get(at + KEY.len()..).unwrap_or_default();
    let value = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_directories_and_are_aligned() {
        let mut archive = Initramfs::default();
        archive.file("a/b/c", b"content");
        let text = String::from_utf8_lossy(&archive.bytes);
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what}"));
        assert!(at("a\0") < at("a/b\0") && at("a/b\0") < at("a/b/c\0"));
        assert_eq!(at("content") % 4, 0);
        assert_eq!(archive.bytes.len() % 4, 0);
        // 110 bytes of header.
        assert_eq!(at("a\0"), 110);
    }

    #[test]
    fn modules_name_what_they_need() {
        assert_eq!(needs(b"x\0license=GPL\0depends=stp,llc\0name=bridge\0"), ["stp", "llc"]);
        assert!(needs(b"x\0depends=\0").is_empty() && needs(b"").is_empty());
        assert_eq!(module_name(Path::new("/k/act-bpf.ko.xz")), "act_bpf");
    }
}
