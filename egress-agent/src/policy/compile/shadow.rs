//! Policies that govern nobody, because another one takes every pod they select.

use std::collections::BTreeMap;

use super::select::rank;
use crate::policy::snapshot::labels_match;
use crate::policy::{EgressPolicy, Selector};

/// For each policy that can govern no pod, the first policy that goes before it everywhere.
///
/// It follows from the selectors alone: a policy that is not named here may still govern no pod of
/// this cluster.
pub fn shadowed(policies: &[EgressPolicy]) -> BTreeMap<&str, &EgressPolicy> {
    let mut ranked: Vec<&EgressPolicy> = policies.iter().collect();
    ranked.sort_by_key(|policy| rank(policy));
    let places = ranked.iter().enumerate();
    let shadows = places.filter_map(|(place, policy)| {
        let takes_all = |other: &&&EgressPolicy| includes(&other.selector, &policy.selector);
        Some((&*policy.name, *ranked[..place].iter().find(takes_all)?))
    });
    shadows.collect()
}

/// Whether `wide` selects every pod that `narrow` selects, whatever the pods are.
fn includes(wide: &Selector, narrow: &Selector) -> bool {
    let named = |name| wide.namespaces.contains(name);
    let namespaces = wide.namespaces.is_empty()
        || (!narrow.namespaces.is_empty() && narrow.namespaces.iter().all(named));
    namespaces
        && labels_match(&wide.namespace_labels, &narrow.namespace_labels)
        && labels_match(&wide.pod_labels, &narrow.pod_labels)
}
