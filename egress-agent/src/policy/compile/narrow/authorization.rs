//! AuthorizationPolicies at the gateway: evaluated as Istio does, for all that may come from one
//! namespace at once.

use super::{Question, Says};
use crate::policy::GatewayTarget;
use crate::policy::mesh::{
    AccountPattern, ApiGateway, Attachment, Authorization, AuthorizationAction, AuthorizationRule,
    AuthorizationSource, NamespaceCondition, PolicyTarget,
};
use crate::policy::snapshot::labels_match;
use crate::policy::well_known::GATEWAY_NAME_LABEL;

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
    /// To the Gateway object that the gateway's Service carries the label of, which the reference
    /// does not name: whose it is was not asked.
    Elsewhere,
    ToSome,
    ToAll,
}

const BY_SERVICE: &str = "is for a Gateway, which spec.gateways names by its Service (write \
    `gateway` there)";

/// What they say together: a certain DENY or no possible ALLOW forbids.
pub(super) fn says(question: &Question<'_>) -> Vec<Says> {
    let namespace = question.asker.namespace;
    let (mut says, mut allowing) = (Vec::new(), Vec::new());
    for policy in &question.facts.snapshot.mesh.authorizations {
        let attached = attached(question, policy);
        let matches = matched(policy, namespace);
        match attached {
            Attached::Not => continue,
            Attached::Elsewhere => {
                says.push(Says::Finer { by: policy.origin.clone(), what: BY_SERVICE });
                continue;
            }
            Attached::ToSome | Attached::ToAll => {}
        }
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
        (_, Attached::ToSome | Attached::Elsewhere | Attached::Not) => Some(Says::Finer {
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
            let there = |kind: &str, name: &str| {
                let named = |one: &PolicyTarget| one.kind == kind && one.name == name;
                targets.iter().any(|one| one.group == GATEWAY_API_GROUP && named(one))
            };
            // Targets of other kinds are about what is behind the gateway.
            match api_gateway(question) {
                Some(gateway) => {
                    let named = own && there("Gateway", &question.name.name)
                        || global && there("GatewayClass", &gateway.class);
                    if named { Attached::ToAll } else { Attached::Not }
                }
                None if own && labels_of(question).any(|name| there("Gateway", name)) => {
                    Attached::Elsewhere
                }
                None => Attached::Not,
            }
        }
    }
}

/// The Gateway of the Gateway API that the reference names. One that is named by its Service is
/// not looked for: a registry that watches by demand would not know it.
fn api_gateway<'q>(question: &'q Question<'_>) -> Option<&'q ApiGateway> {
    match &question.gateway.target {
        GatewayTarget::Gateway(_) => question.facts.snapshot.mesh.api_gateways.get(question.name),
        GatewayTarget::Service(_) | GatewayTarget::Pods { .. } => None,
    }
}

/// Names of the Gateways whose Services the gateway's Services say they are.
fn labels_of<'q>(question: &'q Question<'_>) -> impl Iterator<Item = &'q String> {
    let services = &question.facts.snapshot.services;
    let own = question.resolved.services.iter().filter_map(|name| services.get(name));
    own.filter_map(|service| service.labels.get(GATEWAY_NAME_LABEL))
}

fn is_waypoint(question: &Question<'_>) -> bool {
    let (key, value) = MANAGED_LABEL;
    api_gateway(question).is_some_and(|gateway| gateway.class == WAYPOINT_CLASS)
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
