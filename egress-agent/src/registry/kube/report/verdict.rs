//! What the statuses of policies and exceptions should say: pure, from the objects alone.
//!
//! `Accepted` is what the parser of every agent says of the object, `Shadowed` what the order of
//! policies says. Neither depends on a node.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::policy::EgressPolicy;
use crate::policy::compile::shadowed;
use crate::registry::object::{self, Item, Kind};

/// What identifies one of our objects.
pub(super) type Key = (Kind, String);

/// A condition of our objects, without its times.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Condition {
    r#type: String,
    status: String,
    reason: String,
    message: String,
    #[serde(default)]
    observed_generation: i64,
    #[serde(default)]
    last_transition_time: Option<Timestamp>,
}

/// The status to write for each object whose status says something else.
pub(super) fn due(objects: &BTreeMap<Key, Value>, now: Timestamp) -> Vec<(Key, Value)> {
    let mut policies = Vec::new();
    let mut verdicts: BTreeMap<&Key, Result<(), String>> = BTreeMap::new();
    for (key, object) in objects {
        let verdict = match object::read(object.clone(), None) {
            Ok(Some(entry)) => entry.item.map_err(|errors| errors.to_string()),
            Ok(None) => continue,
            Err(error) => Err(error.to_string()),
        };
        let verdict = verdict.map(|item| {
            if let Item::Policy(policy) = item {
                policies.push(*policy);
            }
        });
        verdicts.insert(key, verdict);
    }
    let shadows = shadowed(&policies);
    let wanted = verdicts.into_iter().filter_map(|(key, verdict)| {
        let object = objects.get(key)?;
        let mut conditions = vec![accepted(&verdict)];
        if key.0 == Kind::EgressPolicy && verdict.is_ok() {
            conditions.push(governs(shadows.get(&*key.1).copied()));
        }
        let status = status(object, conditions, now)?;
        Some((key.clone(), status))
    });
    wanted.collect()
}

fn accepted(verdict: &Result<(), String>) -> Condition {
    match verdict {
        Ok(()) => condition("Accepted", true, "Valid", "every field is understood"),
        Err(errors) => condition(
            "Accepted",
            false,
            "Invalid",
            &format!("{errors}; it is refused whole, and its last good version stays in force"),
        ),
    }
}

fn governs(shadow: Option<&EgressPolicy>) -> Condition {
    match shadow {
        None => condition("Shadowed", false, "Governs", "no other policy takes all of its pods"),
        Some(by) => condition(
            "Shadowed",
            true,
            "GovernedByAnother",
            &format!(
                "EgressPolicy {} (priority {}) selects every pod that this one selects and goes \
                 before it: raise spec.priority above {0}'s, or remove one of them",
                by.name, by.priority
            ),
        ),
    }
}

fn condition(r#type: &str, status: bool, reason: &str, message: &str) -> Condition {
    Condition {
        r#type: r#type.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: 0,
        last_transition_time: None,
    }
}

/// The status to write; `None` when it is there already.
fn status(object: &Value, conditions: Vec<Condition>, now: Timestamp) -> Option<Value> {
    let generation = object.pointer("/metadata/generation").and_then(Value::as_i64);
    let found = object.pointer("/status/conditions").and_then(Value::as_array);
    let found: Vec<Condition> =
        found.into_iter().flatten().filter_map(|one| Condition::deserialize(one).ok()).collect();
    let mut news = false;
    let mut written = Vec::new();
    for mut wanted in conditions {
        wanted.observed_generation = generation.unwrap_or_default();
        let old = found.iter().find(|old| old.r#type == wanted.r#type);
        let since = old.filter(|old| old.status == wanted.status);
        wanted.last_transition_time = since.and_then(|old| old.last_transition_time);
        news |= old != Some(&wanted);
        let since = wanted.last_transition_time.unwrap_or(now);
        written.push(json!({
            "type": wanted.r#type,
            "status": wanted.status,
            "reason": wanted.reason,
            "message": wanted.message,
            "observedGeneration": wanted.observed_generation,
            "lastTransitionTime": format!("{since:.0}"),
        }));
    }
    // Nobody else writes `Shadowed`; of a policy that is not accepted it says nothing.
    news |= found
        .iter()
        .any(|old| old.r#type == "Shadowed" && written.iter().all(|one| one["type"] != "Shadowed"));
    news.then(|| json!({ "conditions": written }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn policy(name: &str, priority: i32, namespaces: &[&str]) -> (Key, Value) {
        let object = json!({
            "apiVersion": "egress-enforcer.io/v1alpha1",
            "kind": "EgressPolicy",
            "metadata": {"name": name, "generation": 3},
            "spec": {"selector": {"namespaces": namespaces}, "mode": "audit", "priority": priority},
        });
        ((Kind::EgressPolicy, name.to_owned()), object)
    }

    /// The conditions that are due for an object, by type: status, reason and message.
    fn conditions(
        objects: &BTreeMap<Key, Value>,
        name: &str,
    ) -> Option<BTreeMap<String, (String, String, String)>> {
        let due = due(objects, now());
        let (_, status) = due.into_iter().find(|((_, found), _)| found == name)?;
        let text = |one: &Value, field: &str| one[field].as_str().unwrap().to_owned();
        let conditions = status["conditions"].as_array().unwrap().iter();
        let by_type = conditions.map(|one| {
            assert_eq!(one["observedGeneration"], 3, "{one}");
            let said = (text(one, "status"), text(one, "reason"), text(one, "message"));
            (text(one, "type"), said)
        });
        Some(by_type.collect())
    }

    #[test]
    fn a_valid_policy_is_accepted_and_governs() {
        let objects = BTreeMap::from([policy("shop", 0, &["shop"])]);
        let said = conditions(&objects, "shop").unwrap();
        assert_eq!((&*said["Accepted"].0, &*said["Accepted"].1), ("True", "Valid"));
        assert_eq!((&*said["Shadowed"].0, &*said["Shadowed"].1), ("False", "Governs"));
    }

    #[test]
    fn a_refused_policy_names_the_field_and_shadows_nobody() {
        let mut objects = BTreeMap::from([policy("all", 9, &[]), policy("shop", 0, &["shop"])]);
        let all = objects.get_mut(&(Kind::EgressPolicy, "all".to_owned())).unwrap();
        all["spec"]["inboundRanges"] = json!(["10.0.0.1/8"]);
        let said = conditions(&objects, "all").unwrap();
        let (status, reason, message) = &said["Accepted"];
        assert_eq!((&**status, &**reason), ("False", "Invalid"));
        assert!(message.contains("spec.inboundRanges[0]: `10.0.0.1/8` has host bits"), "{message}");
        assert!(message.contains("last good version stays"), "{message}");
        assert!(!said.contains_key("Shadowed"));
        assert_eq!(conditions(&objects, "shop").unwrap()["Shadowed"].0, "False");
    }

    #[test]
    fn a_shadowed_policy_is_told_by_whom() {
        let objects = BTreeMap::from([policy("all", 9, &[]), policy("shop", 0, &["shop"])]);
        let said = conditions(&objects, "shop").unwrap();
        let (status, _, message) = &said["Shadowed"];
        assert!(status == "True" && message.contains("EgressPolicy all (priority 9)"), "{message}");
    }

    #[test]
    fn what_is_written_is_not_written_again_and_a_transition_keeps_its_moment() {
        let mut objects = BTreeMap::from([policy("shop", 0, &["shop"])]);
        let key = (Kind::EgressPolicy, "shop".to_owned());
        let (_, status) = due(&objects, now()).pop().unwrap();
        objects.get_mut(&key).unwrap()["status"] = status;
        assert_eq!(due(&objects, now()), []);
        // A new generation that is as valid: told, but no transition.
        objects.get_mut(&key).unwrap()["metadata"]["generation"] = json!(4);
        let later = Timestamp::from_second(1_800_000_900).unwrap();
        let (_, status) = due(&objects, later).pop().unwrap();
        assert_eq!(status["conditions"][0]["observedGeneration"], 4);
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "2027-01-15T08:00:00Z");
        // Refused now: a transition, and nothing is said of shadows any more.
        objects.get_mut(&key).unwrap()["spec"]["mode"] = json!("no");
        let (_, status) = due(&objects, later).pop().unwrap();
        assert_eq!(status["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "2027-01-15T08:15:00Z");
    }

    #[test]
    fn an_exception_is_accepted_or_not() {
        let object = json!({
            "apiVersion": "egress-enforcer.io/v1alpha1",
            "kind": "EgressException",
            "metadata": {"name": "outage", "generation": 3},
            "spec": {"scope": {}, "destination": {"cidr": "203.0.113.0/24"}, "requester": "me"},
        });
        let objects = BTreeMap::from([((Kind::EgressException, "outage".to_owned()), object)]);
        let said = conditions(&objects, "outage").unwrap();
        assert_eq!(said["Accepted"].0, "False");
        assert!(said["Accepted"].2.contains("spec.reason: required"), "{said:?}");
        assert_eq!(said.len(), 1);
    }
}
