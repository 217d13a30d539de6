//! The hash of the sources: what must change it, and what must not.

use std::fs;
use std::path::{Path, PathBuf};

use crate::paths;
use crate::sources::{self, Record, Stale};

#[test]
fn a_source_changes_the_hash_and_a_test_does_not() {
    let copy = Copy::new("source");
    let before = copy.digest();
    copy.append("egress-ebpf/src/wire/tests.rs", "// more");
    assert_eq!(copy.digest(), before, "tests are not in the object");
    copy.append("egress-ebpf/src/main.rs", "// more");
    assert_ne!(copy.digest(), before);
}

#[test]
fn a_new_file_or_another_name_changes_the_hash() {
    let copy = Copy::new("name");
    let before = copy.digest();
    copy.write("egress-common/src/extra.rs", "");
    let added = copy.digest();
    assert_ne!(added, before);
    fs::rename(copy.0.join("egress-common/src/extra.rs"), copy.0.join("egress-common/src/more.rs"))
        .unwrap();
    assert_ne!(copy.digest(), added);
}

#[test]
fn only_crates_of_the_object_change_the_hash() {
    let copy = Copy::new("lock");
    let before = copy.digest();
    for (unrelated, old, new) in [
        (true, "name = \"tokio\"\nversion = \"", "name = \"tokio\"\nversion = \"9"),
        (true, "name = \"aya\"\nversion = \"", "name = \"aya\"\nversion = \"9"),
        (true, "name = \"proptest\"\nversion = \"", "name = \"proptest\"\nversion = \"9"),
        (false, "name = \"aya-ebpf\"\nversion = \"", "name = \"aya-ebpf\"\nversion = \"9"),
        (
            false,
            "name = \"aya-ebpf-bindings\"\nversion = \"",
            "name = \"aya-ebpf-bindings\"\nversion = \"9",
        ),
        (
            false,
            "name = \"aya-log-common\"\nversion = \"",
            "name = \"aya-log-common\"\nversion = \"9",
        ),
    ] {
        let lock = fs::read_to_string(copy.0.join("Cargo.lock")).unwrap();
        assert!(lock.contains(old), "{old}");
        copy.write("Cargo.lock", &lock.replace(old, new));
        assert_eq!(copy.digest() == before, unrelated, "{old}");
        copy.write("Cargo.lock", &lock);
    }
}

#[test]
fn of_the_root_manifest_only_the_relevant_lines_count() {
    let copy = Copy::new("manifest");
    let before = copy.digest();
    let manifest = fs::read_to_string(copy.0.join("Cargo.toml")).unwrap();
    copy.write("Cargo.toml", &manifest.replace("anyhow = \"1\"", "anyhow = \"1.0\""));
    assert_eq!(copy.digest(), before);
    copy.write("Cargo.toml", &manifest.replace("codegen-units = 1", "codegen-units = 2"));
    assert_ne!(copy.digest(), before);
    copy.write("Cargo.toml", &manifest.replace("aya-ebpf = \"=", "aya-ebpf = \"^"));
    assert_ne!(copy.digest(), before);
}

#[test]
fn a_kept_object_is_used_only_with_its_own_sources_and_bytes() {
    let copy = Copy::new("verify");
    assert_eq!(sources::verify(&copy.0).unwrap(), Err(Stale::Missing));
    copy.write(sources::OBJECT, "object");
    let record =
        format!("# c\n{}  sources\n{}  egress-ebpf.o\n", copy.digest(), sources::sha256(b"object"));
    copy.write(sources::RECORD, &record);
    assert_eq!(sources::verify(&copy.0).unwrap(), Ok(copy.0.join(sources::OBJECT)));
    copy.write(sources::OBJECT, "another");
    assert_eq!(sources::verify(&copy.0).unwrap(), Err(Stale::Object));
    copy.append("egress-common/src/lib.rs", "// more");
    assert_eq!(sources::verify(&copy.0).unwrap(), Err(Stale::Sources));
}

#[test]
fn a_record_without_both_hashes_is_none() {
    assert_eq!(Record::parse("aa  sources\n"), None);
    let record = Record::parse("# x\naa  sources\nbb  egress-ebpf.o\n").unwrap();
    assert_eq!((record.sources.as_str(), record.object.as_str()), ("aa", "bb"));
}

/// What the hash reads, in a directory that a test may change; removed at the end.
struct Copy(PathBuf);

impl Copy {
    fn new(name: &str) -> Self {
        let directory =
            std::env::temp_dir().join(format!("egress-xtask-{}-{name}", std::process::id()));
        let copy = Self(directory);
        for path in ["Cargo.toml", "Cargo.lock", "egress-common", "egress-ebpf"] {
            duplicate(&paths::root().join(path), &copy.0.join(path));
        }
        let _ = fs::remove_dir_all(copy.0.join("egress-ebpf/prebuilt"));
        copy
    }

    fn digest(&self) -> String {
        sources::digest(&self.0).unwrap()
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn append(&self, path: &str, more: &str) {
        let content = fs::read_to_string(self.0.join(path)).unwrap();
        self.write(path, &(content + more));
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn duplicate(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            duplicate(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
}
