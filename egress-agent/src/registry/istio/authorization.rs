//! AuthorizationPolicies, as far as they are about who asks: what is not about the source's
//! namespace is only noted to be there.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::policy::mesh::{
    AccountPattern, Attachment, Authorization, AuthorizationAction, AuthorizationRule,
    AuthorizationSource, NamespaceCondition, PolicyTarget,
};
use crate::policy::{ObjectName, Origin};
use crate::registry::field::{FieldErrors, typed};
use crate::registry::object::{Object, text_enum};

/// The trust domain of a mesh that was given no other.
const TRUST_DOMAIN: &str = "cluster.local";
/// The condition of `when` that is about the source's namespace.
const SOURCE_NAMESPACE: &str = "source.namespace";

text_enum! {
    /// `action`.
    #[derive(Default)]
    Action {
        #[default]
        Allow = "ALLOW",
        Deny = "DENY",
        Custom = "CUSTOM",
        Audit = "AUDIT",
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Spec {
    selector: Selector,
    target_ref: Option<Target>,
    target_refs: Vec<Target>,
    action: Action,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Target {
    group: String,
    kind: String,
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Rule {
    from: Vec<From>,
    to: Vec<serde::de::IgnoredAny>,
    when: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct From {
    source: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Condition {
    key: String,
    values: Vec<String>,
    not_values: Vec<String>,
}

/// An AuthorizationPolicy.
pub(in crate::registry) fn authorization(
    value: Value,
    name: &ObjectName,
    origin: &Origin,
) -> Result<Authorization, FieldErrors> {
    let object: Object<Spec> = typed(value)?;
    let spec = object.spec.unwrap_or_default();
    let mut errors = FieldErrors::default();
    let rules = spec.rules.into_iter().enumerate().filter_map(|(i, one)| {
        errors.take(rule(&format!("spec.rules[{i}]"), one, &name.namespace))
    });
    let rules = rules.collect();
    let target = |Target { group, kind, name }| PolicyTarget { group, kind, name };
    let targets: Vec<PolicyTarget> =
        spec.target_refs.into_iter().chain(spec.target_ref).map(target).collect();
    errors.finish(Some(Authorization {
        name: name.clone(),
        action: match spec.action {
            Action::Allow => AuthorizationAction::Allow,
            Action::Deny => AuthorizationAction::Deny,
            Action::Custom => AuthorizationAction::Custom,
            Action::Audit => AuthorizationAction::Audit,
            Action::Unknown(action) => AuthorizationAction::Other(action),
        },
        attachment: if targets.is_empty() {
            Attachment::Pods(spec.selector.match_labels)
        } else {
            Attachment::Targets(targets)
        },
        rules,
        origin: origin.clone(),
    }))
}

fn rule(path: &str, rule: Rule, namespace: &str) -> Result<AuthorizationRule, FieldErrors> {
    let mut errors = FieldErrors::default();
    let from = rule.from.into_iter().enumerate().filter_map(|(i, from)| {
        errors.take(source(&format!("{path}.from[{i}].source"), from.source, namespace))
    });
    let from = from.collect();
    let (namespaces, others): (Vec<Condition>, Vec<Condition>) =
        rule.when.into_iter().partition(|condition| condition.key == SOURCE_NAMESPACE);
    let condition =
        |Condition { key: _, values, not_values }| NamespaceCondition { values, not_values };
    errors.finish(Some(AuthorizationRule {
        from,
        when: namespaces.into_iter().map(condition).collect(),
        qualified: !rule.to.is_empty() || !others.is_empty(),
    }))
}

/// A source. Fields are lists of texts; one this version does not know is a condition all the
/// same, and only its meaning is lost.
fn source(
    path: &str,
    fields: BTreeMap<String, Value>,
    namespace: &str,
) -> Result<AuthorizationSource, FieldErrors> {
    let mut source = AuthorizationSource::default();
    for (field, value) in fields {
        let list = || {
            let texts: Result<Vec<String>, _> = typed(value.clone());
            texts.map_err(|error| FieldErrors::one(&format!("{path}.{field}"), error))
        };
        match field.as_str() {
            "namespaces" => source.namespace.values = list()?,
            "notNamespaces" => source.namespace.not_values = list()?,
            "principals" => {
                source.accounts.push(list()?.iter().map(|text| principal(text)).collect());
            }
            "serviceAccounts" => {
                let account = |text: &String| {
                    let namespace = text.split_once('/').map_or(namespace, |(named, _)| named);
                    AccountPattern::Some(namespace.to_owned())
                };
                source.accounts.push(list()?.iter().map(account).collect());
            }
            _ => source.qualified |= value.as_array().is_none_or(|list| !list.is_empty()),
        }
    }
    source.accounts.retain(|list| !list.is_empty());
    Ok(source)
}

/// What a principal (`trust domain/ns/namespace/sa/account`, with a `*` at one end) says of the
/// namespace.
fn principal(text: &str) -> AccountPattern {
    if text == "*" {
        return AccountPattern::Any;
    }
    let parts: Vec<&str> = text.split('/').collect();
    match parts.as_slice() {
        [TRUST_DOMAIN, "ns", namespace, "*"] | [TRUST_DOMAIN, "ns", namespace, "sa", "*"]
            if !namespace.contains('*') =>
        {
            AccountPattern::Whole((*namespace).to_owned())
        }
        [_, "ns", namespace, ..] if !namespace.contains('*') && parts.len() > 3 => {
            AccountPattern::Some((*namespace).to_owned())
        }
        _ => AccountPattern::Unknown,
    }
}
