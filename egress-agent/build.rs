//! Embeds the kept eBPF object, and refuses to embed a stale one.
//!
//! Kernel programs need a BPF linker and the standard library's source; the agent should not. So
//! the object is kept in the repository and a build on plain stable Rust uses it as it is. The
//! path goes to the agent as `EGRESS_EBPF_OBJECT`. Invariant: an agent never carries programs that
//! were built from other sources than its own.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[path = "../egress-ebpf/sources.rs"]
mod sources;

fn main() -> ExitCode {
    let Some(root) = repository_root() else {
        eprintln!("CARGO_MANIFEST_DIR names no directory inside the repository; build with cargo");
        return ExitCode::FAILURE;
    };
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../egress-ebpf/sources.rs");
    for path in sources::watched() {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    match sources::verify(&root) {
        Ok(Ok(object)) => {
            println!("cargo::rustc-env=EGRESS_EBPF_OBJECT={}", object.display());
            ExitCode::SUCCESS
        }
        Ok(Err(stale)) => {
            println!(
                "cargo::error={stale}: run `cargo xtask build`, which builds and keeps a new one"
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            println!(
                "cargo::error=cannot check the kept eBPF object ({}): {error}",
                sources::OBJECT
            );
            ExitCode::FAILURE
        }
    }
}

fn repository_root() -> Option<PathBuf> {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")?;
    Path::new(&manifest).parent().map(Path::to_owned)
}
