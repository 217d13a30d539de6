//! What the kept eBPF object was made from, as one hash.
//!
//! Included by path in `egress-agent/build.rs`, which embeds `prebuilt/egress-ebpf.o` only when the
//! hash beside it is the hash of the sources at hand, and in `xtask`, which writes both. It is a
//! file and not a crate so that a plain `cargo build` needs nothing new.
//!
//! Hashed: the sources of `egress-common` and `egress-ebpf` (not their `tests.rs` files), both
//! manifests, what the root manifest says about them, the compiler flags, and name, version and
//! checksum of every crate in `Cargo.lock` whose code ends up in the object. Not hashed: the
//! versions of rustc and `bpf-linker`, so that a newer compiler still builds the agent; `cargo
//! xtask ci` rebuilds the object and compares bytes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Where the object is kept, from the root of the repository.
pub(crate) const OBJECT: &str = "egress-ebpf/prebuilt/egress-ebpf.o";
/// The hashes that belong to [`OBJECT`], in the format of `sha256sum`.
pub(crate) const RECORD: &str = "egress-ebpf/prebuilt/SOURCES.sha256";

/// Compiler flags that shape the object. The linker and path remapping are `xtask`'s.
pub(crate) const FLAGS: [&str; 3] =
    ["--cfg=bpf_target_arch=\"x86_64\"", "-Cdebuginfo=2", "-Clink-arg=--btf"];

const TREES: [&str; 2] = ["egress-common/src", "egress-ebpf/src"];
const FILES: [&str; 2] = ["egress-common/Cargo.toml", "egress-ebpf/Cargo.toml"];
const ROOT_MANIFEST: &str = "Cargo.toml";
const LOCK: &str = "Cargo.lock";

/// Tables of the root manifest that the two crates inherit or are compiled with.
const TABLES: [&str; 3] =
    ["[workspace.package]", "[profile.release]", "[profile.release.package.egress-ebpf]"];

/// Crates whose dependencies run or live on the host only: `egress-common` has `aya` for the agent
/// and proptest for tests; the others are build tools whose own code is not in the object.
const HOST_SIDE: [&str; 7] = [
    "egress-common",
    "aya-build",
    "syn",
    "quote",
    "proc-macro2",
    "proc-macro2-diagnostics",
    "unicode-ident",
];

/// The two hashes of [`RECORD`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Hash of the sources, as [`digest`] computes it.
    pub(crate) sources: String,
    /// Hash of the object's bytes.
    pub(crate) object: String,
}

impl Record {
    /// Reads the lines `<hex>  sources` and `<hex>  egress-ebpf.o`; `#` starts a comment.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hash_of = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once("  "))
                .find(|(_, file)| *file == name)
                .map(|(hash, _)| hash.to_owned())
        };
        Some(Self { sources: hash_of("sources")?, object: hash_of("egress-ebpf.o")? })
    }
}

/// Why the kept object cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stale {
    /// No object or no record is kept.
    Missing,
    /// The sources changed after the object was built.
    Sources,
    /// The object is not the one its record describes.
    Object,
}

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Missing => "no eBPF object is kept in egress-ebpf/prebuilt",
            Self::Sources => "the kept eBPF object is older than the eBPF sources",
            Self::Object => "the kept eBPF object is not the one its SOURCES.sha256 describes",
        })
    }
}

/// Says whether the kept object is the one that the sources under `root` make.
pub(crate) fn verify(root: &Path) -> io::Result<Result<PathBuf, Stale>> {
    let path = root.join(OBJECT);
    let (object, record) = match (fs::read(&path), fs::read_to_string(root.join(RECORD))) {
        (Ok(object), Ok(record)) => (object, record),
        (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Err(Stale::Missing));
        }
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let Some(record) = Record::parse(&record) else { return Ok(Err(Stale::Missing)) };
    if record.sources != digest(root)? {
        return Ok(Err(Stale::Sources));
    }
    if record.object != sha256(&object) {
        return Ok(Err(Stale::Object));
    }
    Ok(Ok(path))
}

/// Every file and directory whose change may change [`digest`], from the root of the repository.
#[allow(dead_code, reason = "one of the two includers has no use for it")]
pub(crate) fn watched() -> impl Iterator<Item = &'static str> {
    TREES.into_iter().chain(FILES).chain([ROOT_MANIFEST, LOCK, OBJECT, RECORD])
}

/// The hash of everything the object is made from.
pub(crate) fn digest(root: &Path) -> io::Result<String> {
    let mut files = BTreeSet::new();
    for tree in TREES {
        collect(root, Path::new(tree), &mut files)?;
    }
    files.extend(FILES.map(PathBuf::from));

    let mut hash = Sha256::new();
    for file in &files {
        add(&mut hash, &file.to_string_lossy(), &fs::read(root.join(file))?);
    }
    let manifest = fs::read_to_string(root.join(ROOT_MANIFEST))?;
    add(&mut hash, ROOT_MANIFEST, relevant_manifest(&manifest).as_bytes());
    let lock = fs::read_to_string(root.join(LOCK))?;
    add(&mut hash, LOCK, relevant_lock(&lock).as_bytes());
    add(&mut hash, "flags", FLAGS.join(" ").as_bytes());
    Ok(hex(&hash.finalize()))
}

/// SHA-256 of `bytes` in lower-case hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Adds one named part. Both lengths go first: no two lists of parts hash the same bytes.
fn add(hash: &mut Sha256, name: &str, content: &[u8]) {
    for part in [name.as_bytes(), content] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn collect(root: &Path, tree: &Path, files: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(tree))? {
        let entry = entry?;
        let path = tree.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.ends_with("tests.rs")
        {
            files.insert(path);
        }
    }
    Ok(())
}

/// The lines of the root manifest that matter: whole [`TABLES`], and of the shared dependencies
/// those of the `aya-*` kernel crates and of `egress-common`.
fn relevant_manifest(manifest: &str) -> String {
    let mut kept = String::new();
    let mut table = "";
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            table = line;
        }
        let dependency = table == "[workspace.dependencies]"
            && line.split_once('=').is_some_and(|(name, _)| {
                matches!(name.trim(), "aya-ebpf" | "aya-log-ebpf" | "egress-common")
            });
        let setting = TABLES.contains(&table) && !line.is_empty() && !line.starts_with('#');
        if dependency || setting {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// `name version checksum` of each crate reachable from `egress-ebpf`, not looking beyond
/// [`HOST_SIDE`].
fn relevant_lock(lock: &str) -> String {
    let packages: Vec<Locked<'_>> = lock.split("[[package]]").skip(1).map(Locked::parse).collect();
    let mut wanted = vec!["egress-ebpf"];
    let mut seen = BTreeSet::new();
    let mut kept = BTreeSet::new();
    while let Some(wish) = wanted.pop() {
        if !seen.insert(wish) {
            continue;
        }
        // A dependency is written `name`, or `name version` where two versions are locked.
        let mut words = wish.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next());
        if HOST_SIDE.contains(&name) {
            continue;
        }
        for package in packages
            .iter()
            .filter(|package| package.name == name && version.is_none_or(|v| v == package.version))
        {
            kept.insert(format!("{} {} {}\n", package.name, package.version, package.checksum));
            wanted.extend(&package.dependencies);
        }
    }
    kept.into_iter().collect()
}

/// One `[[package]]` of `Cargo.lock`.
#[derive(Default)]
struct Locked<'a> {
    name: &'a str,
    version: &'a str,
    checksum: &'a str,
    dependencies: Vec<&'a str>,
}

impl<'a> Locked<'a> {
    fn parse(text: &'a str) -> Self {
        let mut package = Self::default();
        for line in text.lines() {
            match line.split_once(" = ") {
                Some(("name", value)) => package.name = value.trim_matches('"'),
                Some(("version", value)) => package.version = value.trim_matches('"'),
                Some(("checksum", value)) => package.checksum = value.trim_matches('"'),
                Some(_) => {}
                None if line.starts_with(" \"") => {
                    package.dependencies.push(line.trim().trim_matches([',', '"']));
                }
                None => {}
            }
        }
        package
    }
}
