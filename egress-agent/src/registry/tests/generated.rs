//! Files of the repository that are made from the code say what the code says.

use std::fs;
use std::path::PathBuf;

use crate::registry::{crd, rights};

/// Compares a file with what it should be, or writes it where `cargo xtask generate` asks for it.
fn same(file: &str, expected: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
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

#[test]
fn the_definitions_in_deploy_are_those_of_the_code() {
    for definition in crd::definitions().unwrap() {
        let file = format!("deploy/crds/{}.yaml", definition.plural);
        let text = crd::yaml([&definition.object]).unwrap();
        same(&file, &format!("{}{text}", head("egress-agent/src/registry/policy_spec.rs")));
    }
}

#[test]
fn the_rights_in_deploy_are_those_of_the_code() {
    let text = crd::yaml(&rights()).unwrap();
    let head = head("egress-agent/src/registry/kube/role.rs");
    same("deploy/rbac.yaml", &format!("{head}{text}"));
}

fn head(source: &str) -> String {
    format!("# Made from {source} by `cargo xtask generate`.\n")
}
