//! The control plane of the tests: two programs built from their Go modules in the repository.
//!
//! Each is kept under the hash of its module, so that another clone with the same sources reuses
//! it and an edit builds anew. Go's own caches, some six gigabytes after both, are its default
//! ones and are left to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Staging;
use crate::paths::find_program;
use crate::process::Lines;
use crate::{paths, process, sources};

/// Where Go's own installer puts it, for machines whose `PATH` has not heard.
const INSTALLED: &str = "/usr/local/go/bin/go";
/// Hexadecimal digits of a module's hash in the name of its directory.
const DIGITS: usize = 12;

/// A program that is one Go module.
#[derive(Clone, Copy)]
struct Module {
    /// Name of the program.
    name: &'static str,
    /// The module, from the root of the repository.
    directory: &'static str,
    /// A dependency, and files of it that are kept beside the program.
    beside: Option<(&'static str, &'static [&'static str])>,
}

/// etcd and the API server.
const CONTROL_PLANE: Module =
    Module { name: "control-plane", directory: "tests/control-plane/apiserver", beside: None };

/// istiod, with the custom resources it serves.
const ISTIOD: Module = Module {
    name: "istiod",
    directory: "tests/control-plane/istiod",
    beside: Some((
        "istio.io/istio",
        &[
            "manifests/charts/base/files/crd-all.gen.yaml",
            "tests/integration/pilot/testdata/gateway-api-crd.yaml",
        ],
    )),
};

/// The program of etcd and the API server.
pub(crate) fn control_plane() -> Result<PathBuf> {
    CONTROL_PLANE.program()
}

/// The program of istiod; its custom resources lie beside it.
pub(crate) fn istiod() -> Result<PathBuf> {
    ISTIOD.program()
}

/// Builds the control plane unless the caller brings one.
pub(super) fn ensure_control_plane() -> Result<String> {
    for variable in ["KUBECONFIG", "KUBEBUILDER_ASSETS"] {
        if std::env::var_os(variable).is_some_and(|value| !value.is_empty()) {
            return Ok(format!("{variable} is set, so the tests use that one"));
        }
    }
    CONTROL_PLANE.ensure()
}

/// Builds istiod.
pub(super) fn ensure_istiod() -> Result<String> {
    ISTIOD.ensure()
}

impl Module {
    fn program(self) -> Result<PathBuf> {
        Ok(self.kept()?.join(self.name))
    }

    /// Directory of this version in the cache.
    fn kept(self) -> Result<PathBuf> {
        let hash = module_hash(&paths::root().join(self.directory))?;
        paths::tool(self.name, &hash[..DIGITS])
    }

    fn ensure(self) -> Result<String> {
        let directory = self.kept()?;
        if directory.join(self.name).is_file() {
            return Ok("is here".to_owned());
        }
        let go = find_program("go")
            .or_else(|| Some(PathBuf::from(INSTALLED)).filter(|path| path.is_file()))
            .with_context(|| {
                format!(
                    "Go is not installed, and {} is built with it: install the version that \
                     {}/go.mod names (https://go.dev/dl), or bring a control plane with \
                     KUBEBUILDER_ASSETS or KUBECONFIG",
                    self.name, self.directory
                )
            })?;
        eprintln!(
            "setup: {}: building with Go, some four minutes and three gigabytes of its caches",
            self.name
        );
        let module = paths::root().join(self.directory);
        let staging = Staging::beside(&directory)?;
        let mut download = Command::new(&go);
        download.args(["mod", "download"]).current_dir(&module);
        process::run_long(
            &format!("{}: downloading modules", self.name),
            &mut download,
            Lines::Kept,
        )?;
        let mut build = Command::new(&go);
        build
            .args([
                "build",
                "-trimpath",
                "-buildvcs=false",
                "-ldflags=-s -w",
                "-mod=readonly",
                "-o",
            ])
            .arg(staging.0.join(self.name))
            .arg(".")
            .current_dir(&module);
        process::run_long(&format!("{}: compiling", self.name), &mut build, Lines::Shown)?;
        if let Some((dependency, files)) = self.beside {
            copy_beside(&go, &module, dependency, files, &staging.0)?;
        }
        staging.finish("", &directory)?;
        Ok(format!("built in {}", directory.display()))
    }
}

/// Copies files of a dependency, by their last names.
fn copy_beside(
    go: &Path,
    module: &Path,
    dependency: &str,
    files: &[&str],
    destination: &Path,
) -> Result<()> {
    let mut list = Command::new(go);
    list.args(["list", "-m", "-f", "{{.Dir}}", dependency]).current_dir(module);
    let source = process::output(&mut list)?;
    for file in files {
        let source = Path::new(source.trim()).join(file);
        let name = source.file_name().with_context(|| format!("{file} has no name"))?;
        // Not `fs::copy`: Go's cache is read-only, and what is kept shall not be.
        let content =
            fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
        fs::write(destination.join(name), content)
            .with_context(|| format!("cannot keep {}", name.display()))?;
    }
    Ok(())
}

/// Hash of everything a module's program is made from: its own files and the sums of the rest.
fn module_hash(module: &Path) -> Result<String> {
    let list = || format!("cannot list {}", module.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(module).with_context(list)? {
        let path = entry.with_context(list)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_source = name.ends_with(".go") && !name.ends_with("_test.go");
        if is_source || ["go.mod", "go.sum"].contains(&name.as_str()) {
            files.push((name, path));
        }
    }
    files.sort();
    let mut lines = String::new();
    for (name, path) in files {
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        lines.push_str(&format!("{}  {name}\n", sources::sha256(&content)));
    }
    if lines.is_empty() {
        bail!("{} is not a Go module", module.display());
    }
    Ok(sources::sha256(lines.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_of_a_source_builds_anew_and_one_of_a_test_does_not() {
        let module = std::env::temp_dir().join(format!("egress-module-{}", std::process::id()));
        fs::create_dir_all(&module).unwrap();
        assert!(module_hash(&module).is_err());
        let hash = |file: &str, content: &str| {
            fs::write(module.join(file), content).unwrap();
            module_hash(&module).unwrap()
        };
        let first = hash("go.mod", "module x");
        let second = hash("main.go", "package main");
        assert_ne!(first, second);
        assert_eq!(second, hash("main_test.go", "package main"));
        assert_eq!(second, hash("README.md", "x"));
        assert_ne!(second, hash("go.sum", "x"));
        assert_eq!(second.len(), 64);
        fs::remove_dir_all(&module).unwrap();
    }

    #[test]
    fn both_modules_are_in_the_repository() {
        for module in [CONTROL_PLANE, ISTIOD] {
            let program = module.program().unwrap();
            assert!(program.ends_with(module.name), "{}", program.display());
            let go_mod = paths::root().join(module.directory).join("go.mod");
            let text = fs::read_to_string(go_mod).unwrap();
            if let Some((dependency, _)) = module.beside {
                assert!(text.contains(dependency));
            }
        }
    }
}
