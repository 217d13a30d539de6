//! Files of the repository that are made from the code say what the code says.

use super::reference;
use crate::generated::{same, same_reference};
use crate::registry::{crd, metrics_rights, rights};

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
    let text = crd::yaml(&metrics_rights()).unwrap();
    same("deploy/metrics-authentication.yaml", &format!("{head}{text}"));
}

#[test]
fn the_reference_of_policies_is_that_of_the_code() {
    same_reference("docs/policy.md", &reference::reference(&crd::definitions().unwrap()));
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
