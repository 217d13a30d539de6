//! AuthorizationPolicies at the gateway: evaluated as Istio does, for all that may come from one
//! namespace at once.

use super::{Question, Says};
use crate::policy::mesh::{
    AccountPattern, ApiGateway, Attachment, Authorization, AuthorizationAction, AuthorizationRule,
    AuthorizationSource, NamespaceCondition, PolicyTarget,
};
use crate::policy::snapshot::labels_match;
use crate::policy::{GatewayTarget, ObjectName};

const GATEWAY_API_GROUP: &str = "gateway.networking.k8s.io";
/// The class of waypoints, and the label of their pods: selectors do not hold for them.
const WAYPOINT_CLASS: &str = "istio-waypoint";
const MANAGED_LABEL: (&str, &str) = ("gateway.istio.io/managed", "istio.io-mesh-controller");

/// How much of what comes from a namespace a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Matches {
    Nothing,
    Some,
    Everything,
}

/// Which of the gateway's pods a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attached {
    Not,
    ToSome,
    ToAll,
}

/// What they say together: a certain DENY or no possible ALLOW forbids.
pub(super) fn says(question: &Question<'_>) -> Vec<Says> {
    let namespace = question.asker.namespace;
    let (mut says, mut allowing) = (Vec::new(), Vec::new());
    for policy in &question.facts.snapshot.mesh.authorizations {
        let attached = attached(question, policy);
        if attached == Attached::Not {
            continue;
        }
        let matches = matched(policy, namespace);
        match &policy.action {
            AuthorizationAction::Allow => allowing.push((policy, attached, matches)),
            AuthorizationAction::Deny => says.push(denied(question, policy, attached, matches)),
            AuthorizationAction::Custom | AuthorizationAction::Other(_) => {
                says.push(finer(policy, matches, "asks somebody else (its action)"));
            }
            // It logs.
            AuthorizationAction::Audit => {}
        }
    }
    says.extend(allowed(question, &allowing));
    says
}

fn denied(
    question: &Question<'_>,
    policy: &Authorization,
    attached: Attached,
    matches: Matches,
) -> Says {
    if attached == Attached::ToAll && matches == Matches::Everything {
        let (namespace, gateway) = (question.asker.namespace, question.name);
        return Says::Forbidden {
            by: policy.origin.clone(),
            why: format!(
                "refuses namespace {namespace} at gateway {gateway}; take the namespace out of its \
                 rules"
            ),
        };
    }
    finer(
        policy,
        matches,
        "refuses some of what comes from there (conditions beyond the namespace)",
    )
}

/// Once an ALLOW is attached, what none of them matches is refused.
fn allowed(
    question: &Question<'_>,
    allowing: &[(&Authorization, Attached, Matches)],
) -> Option<Says> {
    const CONDITIONS: &str =
        "lets through some of what comes from there (conditions beyond the namespace)";
    let to_all =
        |(_, attached, _): &&(&Authorization, Attached, Matches)| *attached == Attached::ToAll;
    let best = allowing.iter().map(|(_, _, matches)| *matches).max()?;
    // Of those that match best, one that holds for the whole gateway.
    let by = allowing.iter().filter(|(_, _, matches)| *matches == best);
    let (policy, attached, _) = by.clone().find(to_all).or_else(|| by.clone().next())?;
    match (best, attached) {
        (Matches::Everything, Attached::ToAll) => None,
        (Matches::Nothing, Attached::ToAll) => {
            let (namespace, gateway) = (question.asker.namespace, question.name);
            Some(Says::Forbidden {
                by: policy.origin.clone(),
                why: format!(
                    "does not let namespace {namespace} use gateway {gateway}; add the namespace to \
                     source.namespaces of one of its rules"
                ),
            })
        }
        (_, Attached::ToSome | Attached::Not) => Some(Says::Finer {
            by: policy.origin.clone(),
            what: "is for some of the gateway's pods alone",
        }),
        (Matches::Some, Attached::ToAll) => {
            Some(Says::Finer { by: policy.origin.clone(), what: CONDITIONS })
        }
    }
}

fn finer(policy: &Authorization, matches: Matches, what: &'static str) -> Says {
    match matches {
        Matches::Nothing => Says::Open,
        Matches::Some | Matches::Everything => Says::Finer { by: policy.origin.clone(), what },
    }
}

/// Whether a policy is for the gateway's pods.
fn attached(question: &Question<'_>, policy: &Authorization) -> Attached {
    let root = question.facts.snapshot.mesh.root_namespace();
    let (own, global) =
        (policy.name.namespace == question.gateway.namespace, policy.name.namespace == root);
    let object = api_gateway(question);
    match &policy.attachment {
        Attachment::Pods(labels) => {
            if !(own || global) || is_waypoint(question) {
                return Attached::Not;
            }
            let selected = question.pods().filter(|pod| labels_match(labels, &pod.labels)).count();
            match selected {
                0 => Attached::Not,
                all if all == question.pods().count() => Attached::ToAll,
                _ => Attached::ToSome,
            }
        }
        // Other proxies than those of the Gateway API ignore a policy with targets.
        Attachment::Targets(targets) => {
            let Some((name, gateway)) = object else { return Attached::Not };
            let names = |target: &PolicyTarget| match target.kind.as_str() {
                "Gateway" => own && target.name == name.name,
                "GatewayClass" => global && target.name == gateway.class,
                // Those are about what is behind the gateway.
                _ => false,
            };
            let named = targets.iter().any(|one| one.group == GATEWAY_API_GROUP && names(one));
            if named { Attached::ToAll } else { Attached::Not }
        }
    }
}

/// The Gateway of the Gateway API behind the reference, whatever it is named by.
fn api_gateway<'q>(question: &'q Question<'_>) -> Option<(&'q ObjectName, &'q ApiGateway)> {
    let snapshot = question.facts.snapshot;
    let gateways = &snapshot.mesh.api_gateways;
    if let GatewayTarget::Gateway(_) = &question.gateway.target {
        return gateways.get_key_value(question.name);
    }
    let services = question.resolved.services.iter().filter_map(|name| snapshot.services.get(name));
    let owners: Vec<&String> = services.flat_map(|service| &service.gateway_owners).collect();
    gateways.iter().find(|(name, gateway)| {
        name.namespace == question.gateway.namespace && owners.contains(&&gateway.uid)
    })
}

fn is_waypoint(question: &Question<'_>) -> bool {
    let (key, value) = MANAGED_LABEL;
    api_gateway(question).is_some_and(|(_, gateway)| gateway.class == WAYPOINT_CLASS)
        || question.pods().any(|pod| pod.labels.get(key).is_some_and(|managed| managed == value))
}

/// How much of what comes from a namespace a policy's rules match: without rules nothing.
pub(super) fn matched(policy: &Authorization, namespace: &str) -> Matches {
    let each = policy.rules.iter().map(|rule| rule_matches(rule, namespace));
    each.max().unwrap_or(Matches::Nothing)
}

fn rule_matches(rule: &AuthorizationRule, namespace: &str) -> Matches {
    if !rule.when.iter().all(|condition| holds(condition, namespace)) {
        return Matches::Nothing;
    }
    let from = rule.from.iter().map(|source| source_matches(source, namespace)).max();
    limited(from.unwrap_or(Matches::Everything), rule.qualified)
}

fn source_matches(source: &AuthorizationSource, namespace: &str) -> Matches {
    if !holds(&source.namespace, namespace) {
        return Matches::Nothing;
    }
    let account = |pattern: &AccountPattern| match pattern {
        AccountPattern::Any => Matches::Everything,
        AccountPattern::Whole(there) if there == namespace => Matches::Everything,
        AccountPattern::Some(there) if there == namespace => Matches::Some,
        AccountPattern::Unknown => Matches::Some,
        AccountPattern::Whole(_) | AccountPattern::Some(_) => Matches::Nothing,
    };
    let each = source.accounts.iter();
    let lists = each.map(|list| list.iter().map(account).max().unwrap_or(Matches::Everything));
    limited(lists.min().unwrap_or(Matches::Everything), source.qualified)
}

/// A further condition leaves at most some of it.
fn limited(matches: Matches, qualified: bool) -> Matches {
    if qualified { matches.min(Matches::Some) } else { matches }
}

fn holds(condition: &NamespaceCondition, namespace: &str) -> bool {
    let matches = |pattern: &String| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(suffix), _) => namespace.ends_with(suffix),
        (None, Some(prefix)) => namespace.starts_with(prefix),
        (None, None) => pattern == namespace,
    };
    (condition.values.is_empty() || condition.values.iter().any(matches))
        && !condition.not_values.iter().any(matches)
}

#[cfg(test)]
mod tests;
