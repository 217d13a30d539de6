//! Which policies can govern nobody.

use super::fixture::*;
use crate::policy::compile::shadowed;
use crate::policy::{EgressPolicy, Selector};

fn selecting(name: &str, priority: i32, selector: Selector) -> EgressPolicy {
    EgressPolicy { priority, selector, ..policy(name, &[]) }
}

fn by<'a>(policies: &'a [EgressPolicy], name: &str) -> Option<&'a str> {
    shadowed(policies).get(name).map(|by| &*by.name)
}

#[test]
fn a_policy_whose_pods_all_belong_to_one_before_it_is_shadowed() {
    let everything = || selecting("all", 5, Selector::default());
    let shop = || selecting("shop", 0, in_namespaces(&["shop"]));
    assert_eq!(by(&[everything(), shop()], "shop"), Some("all"));
    assert_eq!(by(&[everything(), shop()], "all"), None);
    // The narrow one goes first: both govern.
    let first = EgressPolicy { priority: 9, ..shop() };
    assert!(shadowed(&[everything(), first]).is_empty());
}

#[test]
fn among_equals_the_older_shadows_the_newer() {
    let mut old = selecting("zeta", 0, in_namespaces(&["shop"]));
    old.created = Some(1);
    let new = selecting("alpha", 0, in_namespaces(&["shop"]));
    assert_eq!(by(&[new, old], "alpha"), Some("zeta"));
}

#[test]
fn a_part_more_in_the_selector_selects_less() {
    let wide = selecting("wide", 1, in_namespaces(&["shop", "bank"]));
    for (namespaces, pods, shadowed) in [
        (&["shop"][..], &[("app", "web")][..], true),
        (&["bank", "shop"], &[], true),
        (&["shop", "mail"], &[], false),
        (&[], &[("app", "web")], false),
    ] {
        let selector = Selector { pod_labels: labels(pods), ..in_namespaces(namespaces) };
        let narrow = selecting("narrow", 0, selector);
        let by = by(&[wide.clone(), narrow], "narrow").map(str::to_owned);
        assert_eq!(by.is_some(), shadowed, "{namespaces:?} {pods:?}");
    }
    let labelled = Selector { pod_labels: labels(&[("app", "web")]), ..Selector::default() };
    let other = Selector { pod_labels: labels(&[("app", "api")]), ..Selector::default() };
    let pair = [selecting("wide", 1, labelled), selecting("narrow", 0, other)];
    assert_eq!(by(&pair, "narrow"), None);
}
