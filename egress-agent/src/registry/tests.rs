//! Tests that cross the registry's modules.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::policy::Problem;

mod corpus;
mod follow;
mod generated;
mod mesh;
mod objects;
mod policies;
mod reference;

/// A directory with these files.
fn directory(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, text) in files {
        write(root.path(), name, text);
    }
    root
}

fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn read(root: &Path) -> Snapshot {
    read_directory(root).unwrap()
}

/// Snapshot of one file, which must be without fault.
fn snapshot(text: &str) -> Snapshot {
    let snapshot = read(directory(&[("a.yaml", text)]).path());
    assert_eq!(snapshot.problems, [], "{text}");
    assert!(snapshot.complete);
    snapshot
}

/// The problems of one file, as `origin: message`.
fn problems(text: &str) -> Vec<String> {
    let snapshot = read(directory(&[("a.yaml", text)]).path());
    snapshot.problems.iter().map(describe).collect()
}

fn describe(problem: &Problem) -> String {
    format!("{} {}: {}", problem.code.name(), problem.origin, problem.message)
}

const POLICY: &str = "apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata:
  name: payments
spec:
  selector:
    namespaces: [payments]
  mode: enforce
  gateways:
    - namespace: istio-system
      service: istio-egressgateway
      serviceAccount: istio-egressgateway-service-account
";
