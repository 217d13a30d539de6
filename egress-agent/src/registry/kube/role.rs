//! The agent's rights: what the watches read and what the reports write, and nothing else.
//!
//! Made from the table of kinds, so that a kind that is watched is a kind that may be watched.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::demand::standing;
use super::report::{LEASE, LEASE_VERBS, NAMESPACE, NODE_VERBS};
use super::resource::resource;
use super::review;
use crate::registry::object::{Kind, OWN_GROUP};

/// Name of the account, of its roles and of their bindings.
const NAME: &str = "egress-agent";
/// Name of the role that asks about tokens, and of the one for those who read metrics.
const METRICS: &str = "egress-agent-metrics-authentication";
const READER: &str = "egress-metrics-reader";
const RBAC: &str = "rbac.authorization.k8s.io";

/// The account, its roles and their bindings.
pub(in crate::registry) fn objects() -> Vec<Value> {
    let metadata = json!({ "name": NAME, "namespace": NAMESPACE });
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata });
    let mut objects = vec![account];
    objects.extend(role(None, &cluster_rules()));
    objects.extend(role(Some(NAMESPACE), &lease_rules()));
    for (namespace, kinds) in confined() {
        objects.extend(role(Some(&namespace), &watch_rules(kinds.into_iter())));
    }
    objects
}

/// What asking about tokens takes: a role of its own, bound to the account; and one that whoever
/// scrapes can be bound to.
pub(in crate::registry) fn metrics_authentication() -> Vec<Value> {
    let [asks, reads] = review::rules();
    let mut objects = Vec::from(named_role(METRICS, None, &asks));
    let [reader, _] = named_role(READER, None, &reads);
    objects.push(reader);
    objects
}

/// Kinds that are watched in one namespace alone, by that namespace.
fn confined() -> BTreeMap<String, BTreeSet<Kind>> {
    let mut confined: BTreeMap<String, BTreeSet<Kind>> = BTreeMap::new();
    for watch in standing("") {
        if let Some(namespace) = watch.namespace {
            confined.entry(namespace).or_default().insert(watch.kind);
        }
    }
    confined
}

fn cluster_rules() -> Vec<Value> {
    let confined: BTreeSet<Kind> = confined().into_values().flatten().collect();
    let kinds = Kind::ALL.iter().copied().filter(|kind| !confined.contains(kind));
    let mut rules = watch_rules(kinds);
    for (resource, verbs) in NODE_VERBS {
        rules.push(json!({ "apiGroups": [""], "resources": [resource], "verbs": verbs }));
    }
    let own = Kind::ALL.iter().filter(|kind| kind.is_own());
    let statuses: Vec<String> =
        own.map(|kind| format!("{}/status", resource(*kind).plural)).collect();
    rules.push(json!({ "apiGroups": [OWN_GROUP], "resources": statuses, "verbs": ["patch"] }));
    rules
}

/// One rule for each group.
fn watch_rules(kinds: impl Iterator<Item = Kind>) -> Vec<Value> {
    let mut groups: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for resource in kinds.map(resource) {
        groups.entry(resource.group).or_default().insert(resource.plural);
    }
    let rule = |(group, plurals)| json!({ "apiGroups": [group], "resources": plurals, "verbs": ["list", "watch"] });
    groups.into_iter().map(rule).collect()
}

fn lease_rules() -> Vec<Value> {
    let group = "coordination.k8s.io";
    vec![
        json!({
            "apiGroups": [group],
            "resources": ["leases"],
            "resourceNames": [LEASE],
            "verbs": LEASE_VERBS,
        }),
        // What is not there has no name to be granted by.
        json!({ "apiGroups": [group], "resources": ["leases"], "verbs": ["create"] }),
    ]
}

/// A role of a namespace, or of the cluster, and its binding to the account.
fn role(namespace: Option<&str>, rules: &[Value]) -> [Value; 2] {
    named_role(NAME, namespace, rules)
}

fn named_role(name: &str, namespace: Option<&str>, rules: &[Value]) -> [Value; 2] {
    let mut metadata = json!({ "name": name });
    let kind = if namespace.is_some() { "Role" } else { "ClusterRole" };
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    let version = format!("{RBAC}/v1");
    [
        json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "rules": rules }),
        json!({
            "apiVersion": version,
            "kind": format!("{kind}Binding"),
            "metadata": metadata,
            "roleRef": { "apiGroup": RBAC, "kind": kind, "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE }],
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(kind: &str, namespace: Option<&str>) -> Vec<Value> {
        let objects = objects();
        let found = objects.iter().find(|object| {
            object["kind"] == kind && object["metadata"]["namespace"].as_str() == namespace
        });
        found.unwrap()["rules"].as_array().unwrap().clone()
    }

    #[test]
    fn every_kind_may_be_watched_where_it_is_watched() {
        let cluster = rules("ClusterRole", None);
        let mesh = rules("Role", Some("istio-system"));
        for kind in Kind::ALL {
            let wanted = resource(*kind);
            let grants = |rules: &[Value]| {
                rules.iter().any(|rule| {
                    rule["apiGroups"] == json!([wanted.group])
                        && rule["resources"].as_array().unwrap().contains(&wanted.plural.into())
                        && rule["verbs"] == json!(["list", "watch"])
                })
            };
            let confined = *kind == Kind::ConfigMap;
            assert_eq!((grants(&cluster), grants(&mesh)), (!confined, confined), "{kind:?}");
        }
    }

    #[test]
    fn nothing_is_granted_that_could_read_secrets_or_widen_a_policy() {
        for object in objects().into_iter().chain(metrics_authentication()) {
            for rule in object["rules"].as_array().into_iter().flatten() {
                let text = rule.to_string();
                for word in ["secrets", "*", "delete", "exec", "impersonate", "escalate"] {
                    assert!(!text.contains(word), "{word}: {text}");
                }
                let ours = rule["apiGroups"] == json!([OWN_GROUP]);
                let writes = rule["verbs"] != json!(["list", "watch"]);
                if ours && writes {
                    assert!(!text.contains("egresspolicies\""), "{text}");
                }
            }
        }
    }
}
