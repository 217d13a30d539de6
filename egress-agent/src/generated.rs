//! Files of the repository that are made from the code, for the tests that compare them: the same
//! tests write them where `cargo xtask generate` asks for it.

use std::fs;
use std::path::PathBuf;

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}

/// Compares a file with what it should be, or writes it.
pub(crate) fn same(file: &str, expected: &str) {
    let path = path(file);
    if std::env::var_os("EGRESS_GENERATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{file} is not what the code says: run `cargo xtask generate` and commit the result"
    );
}

/// The same for the part of a document between its marks; the rest is written by hand.
pub(crate) fn same_reference(file: &str, reference: &str) {
    let (open, close) = ("<!-- reference -->\n", "<!-- /reference -->\n");
    let text = fs::read_to_string(path(file)).unwrap();
    let (before, rest) = text.split_once(open).unwrap();
    let (_, after) = rest.split_once(close).unwrap();
    same(file, &format!("{before}{open}\n{reference}{close}{after}"));
}
