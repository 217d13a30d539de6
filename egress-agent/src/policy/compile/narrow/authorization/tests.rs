//! How much of a namespace a policy's rules match.

use super::*;
use crate::policy::compile::tests::fixture::{name, origin};

/// A policy with these rules.
fn policy(rules: Vec<AuthorizationRule>) -> Authorization {
    Authorization {
        name: name("istio-system/callers"),
        action: AuthorizationAction::Allow,
        attachment: Attachment::Pods(Default::default()),
        rules,
        origin: origin("AuthorizationPolicy", "istio-system/callers"),
    }
}

fn condition(values: &[&str], not_values: &[&str]) -> NamespaceCondition {
    let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    NamespaceCondition { values: list(values), not_values: list(not_values) }
}

fn source(values: &[&str], not_values: &[&str]) -> AuthorizationSource {
    AuthorizationSource { namespace: condition(values, not_values), ..Default::default() }
}

fn from(sources: Vec<AuthorizationSource>) -> AuthorizationRule {
    AuthorizationRule { from: sources, ..Default::default() }
}

/// How much of `shop` and of `bank` the rules match.
fn matches(rules: Vec<AuthorizationRule>) -> (Matches, Matches) {
    let policy = policy(rules);
    (matched(&policy, "shop"), matched(&policy, "bank"))
}

#[test]
fn absent_rules_match_nothing_and_an_empty_rule_matches_everything() {
    assert_eq!(matches(Vec::new()), (Matches::Nothing, Matches::Nothing));
    assert_eq!(
        matches(vec![AuthorizationRule::default()]),
        (Matches::Everything, Matches::Everything)
    );
}

#[test]
fn namespaces_are_exact_or_have_a_star_at_one_end() {
    for (values, not_values, shop, bank) in [
        (&["shop"][..], &[][..], true, false),
        (&["bank", "shop"], &[], true, true),
        (&["sh*"], &[], true, false),
        (&["*nk"], &[], false, true),
        (&["*"], &[], true, true),
        (&["shopping"], &[], false, false),
        (&[], &["shop"], false, true),
        (&["*"], &["b*"], true, false),
        (&[], &["*"], false, false),
    ] {
        let all = |yes: bool| if yes { Matches::Everything } else { Matches::Nothing };
        let sources = vec![source(values, not_values)];
        assert_eq!(
            matches(vec![from(sources)]),
            (all(shop), all(bank)),
            "{values:?} {not_values:?}"
        );
        let when =
            AuthorizationRule { when: vec![condition(values, not_values)], ..Default::default() };
        assert_eq!(matches(vec![when]), (all(shop), all(bank)), "when {values:?} {not_values:?}");
    }
}

#[test]
fn sources_and_rules_are_alternatives_and_parts_of_one_are_not() {
    let both = from(vec![source(&["shop"], &[]), source(&["bank"], &[])]);
    assert_eq!(matches(vec![both]), (Matches::Everything, Matches::Everything));
    let rules = vec![from(vec![source(&["shop"], &[])]), from(vec![source(&["bank"], &[])])];
    assert_eq!(matches(rules), (Matches::Everything, Matches::Everything));
    let contradiction = AuthorizationRule {
        when: vec![condition(&["bank"], &[])],
        ..from(vec![source(&["shop"], &[])])
    };
    assert_eq!(matches(vec![contradiction]), (Matches::Nothing, Matches::Nothing));
}

#[test]
fn what_is_finer_than_a_namespace_matches_some_of_it_at_most() {
    let hosts = AuthorizationRule { qualified: true, ..from(vec![source(&["shop"], &[])]) };
    assert_eq!(matches(vec![hosts]), (Matches::Some, Matches::Nothing));
    let addresses = AuthorizationSource { qualified: true, ..source(&["shop"], &[]) };
    assert_eq!(matches(vec![from(vec![addresses])]), (Matches::Some, Matches::Nothing));
}

#[test]
fn accounts_are_of_a_namespace() {
    use AccountPattern::{Any, Some, Unknown, Whole};
    let accounts = |lists: Vec<Vec<AccountPattern>>| {
        matches(vec![from(vec![AuthorizationSource { accounts: lists, ..Default::default() }])])
    };
    let shop = || "shop".to_owned();
    for (lists, expected) in [
        (vec![vec![Some(shop())]], (Matches::Some, Matches::Nothing)),
        (vec![vec![Whole(shop())]], (Matches::Everything, Matches::Nothing)),
        (vec![vec![Any]], (Matches::Everything, Matches::Everything)),
        (vec![vec![Unknown]], (Matches::Some, Matches::Some)),
        (vec![vec![Some(shop()), Whole("bank".to_owned())]], (Matches::Some, Matches::Everything)),
        // Principals and service accounts must both match.
        (vec![vec![Any], vec![Some(shop())]], (Matches::Some, Matches::Nothing)),
    ] {
        assert_eq!(accounts(lists.clone()), expected, "{lists:?}");
    }
}
