//! Files of the repository that are made from the code say what the code says.

use std::fs;
use std::path::PathBuf;

use super::reference;
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

#[test]
fn the_reference_of_policies_is_that_of_the_code() {
    const FILE: &str = "docs/policy.md";
    let (open, close) = ("<!-- reference -->\n", "<!-- /reference -->\n");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(FILE);
    let text = fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(open).unwrap();
    let (_, after) = rest.split_once(close).unwrap();
    let reference = reference::reference(&crd::definitions().unwrap());
    same(FILE, &format!("{before}{open}\n{reference}{close}{after}"));
}

/// A field nobody described is a field nobody understands.
#[test]
fn every_field_has_a_description() {
    fn undescribed(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let description = field["description"].as_str().unwrap_or_default();
            if !description.ends_with('.') {
                found.push(path.clone());
            }
            undescribed(field, &path, found);
            undescribed(&field["items"], &path, found);
        }
    }
    for definition in crd::definitions().unwrap() {
        let schema = &definition.object["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut found = Vec::new();
        undescribed(&schema["properties"]["spec"], "spec", &mut found);
        assert_eq!(found, Vec::<String>::new(), "{}", definition.plural);
    }
}

fn head(source: &str) -> String {
    format!("# Made from {source} by `cargo xtask generate`.\n")
}
