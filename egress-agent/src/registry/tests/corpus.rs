//! Every manifest of Istio's own documentation and tests, where a copy of them is at hand.

use std::path::PathBuf;

use super::*;

#[test]
fn every_manifest_of_the_corpus_is_read_or_refused_by_name() {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/istio-corpus"));
    let corpus = std::env::var_os("EGRESS_ISTIO_CORPUS").map_or(beside, PathBuf::from);
    if !corpus.is_dir() {
        println!("no corpus: set EGRESS_ISTIO_CORPUS to a directory of Istio manifests");
        return;
    }
    let mut declared = 0;
    let (mut whole, mut refused) = (0, 0);
    for file in fs::read_dir(&corpus).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|ext| ext != "yaml") {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let root = directory(&[]);
        fs::copy(&path, root.path().join(&name)).unwrap();
        let read = read(root.path());
        declared += read.declarations.len();
        println!(
            "{name:60} {:3} declared {:3} problems",
            read.declarations.len(),
            read.problems.len()
        );
        for problem in &read.problems {
            println!("    {}", describe(problem));
        }
        if read.problems.is_empty() { whole += 1 } else { refused += 1 }
    }
    println!("{whole} files without fault, {refused} with problems, {declared} ServiceEntries");
    assert!(declared > 0, "the corpus holds ServiceEntries, and none was read");
    assert!(whole > refused, "most of the corpus is legal");
}
