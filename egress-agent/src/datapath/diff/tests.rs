use super::*;
use egress_common::key::{Addr, PodId};

const ROOM: Capacities = Capacities {
    policies: 8,
    pods: 8,
    interfaces: 8,
    exact: 4,
    addresses: 8,
    ranges: 8,
    exceptions: 8,
    redirects: 8,
};

fn pod(policy: u32) -> Pod {
    Pod {
        id: PodId(1),
        policy: PolicyId(policy),
        capture: 0,
        flags: 0,
        mac: [0; 6],
        proxy_uid: Pod::NO_PROXY,
        proxy_gid: Pod::NO_PROXY,
        v4: Addr::UNSPECIFIED,
        v6: Addr::UNSPECIFIED,
        namespace: egress_common::key::NamespaceId(1),
        guarded: 0,
        netns: 0,
    }
}

fn policy(mode: Mode) -> Policy {
    Policy::new(mode, egress_common::state::OnAgentLoss::Hold)
}

fn exact(ports: impl IntoIterator<Item = u16>) -> Tables {
    let mut tables = Tables::default();
    for port in ports {
        let key = ExactKey::new(PolicyId(1), Addr::v4([10, 0, 0, 1]), 6, port);
        tables.exact.insert(key, Exact::plain(egress_common::state::Target::Infrastructure));
    }
    tables
}

/// What the kernel holds after a plan.
fn after(mut tables: Tables, plan: &Plan) -> Tables {
    fn apply<K: Ord + Copy, V: Copy>(table: &mut BTreeMap<K, V>, diff: &TableDiff<K, V>) {
        table.extend(diff.put.iter().copied());
        for key in &diff.remove {
            table.remove(key);
        }
    }
    tables.config = plan.config.unwrap_or(tables.config);
    apply(&mut tables.policies, &plan.policies);
    apply(&mut tables.pods, &plan.pods);
    apply(&mut tables.interfaces, &plan.interfaces);
    apply(&mut tables.exact, &plan.exact);
    apply(&mut tables.addresses, &plan.addresses);
    apply(&mut tables.ranges, &plan.ranges);
    apply(&mut tables.exceptions, &plan.exceptions);
    tables
}

#[test]
fn a_diff_of_nothing_writes_nothing() {
    let first = diff(&Tables::default(), &exact([1, 2]), true, &ROOM).unwrap();
    let held = after(Tables::default(), &first);
    assert_eq!(held.config.generation, 1);
    assert_eq!(diff(&held, &exact([1, 2]), true, &ROOM).unwrap(), Plan::default());
}

#[test]
fn what_does_not_fit_side_by_side_is_refused_whole() {
    let held = exact([1, 2, 3]);
    let refused = diff(&held, &exact([4, 5]), true, &ROOM).unwrap_err();
    assert_eq!(refused, Refused { table: "EXACT", needed: 5, capacity: 4 });
    // One at a time fits.
    assert!(diff(&held, &exact([1, 2, 4]), true, &ROOM).is_ok());
}

#[test]
fn a_table_that_is_too_full_may_still_shrink() {
    let held = exact([1, 2, 3, 4, 5]);
    let plan = diff(&held, &exact([1]), true, &ROOM).unwrap();
    assert_eq!(plan.exact.remove.len(), 4);
}

#[test]
fn an_incomplete_snapshot_takes_nothing_away() {
    let mut held = exact([1, 2]);
    held.pods.insert(7, pod(1));
    held.interfaces.insert(3, pod(1));
    held.policies.insert(PolicyId(1), policy(Mode::Enforce));
    held.config.generation = 1;
    let mut desired = exact([3]);
    desired.pods.insert(7, pod(0));
    desired.policies.insert(PolicyId(1), policy(Mode::Audit));

    let plan = diff(&held, &desired, false, &ROOM).unwrap();
    let kept = after(held.clone(), &plan);
    assert_eq!(kept.exact.len(), 3, "additions still arrive");
    assert_eq!(kept.pods[&7], pod(1));
    assert_eq!(kept.interfaces[&3], pod(1));
    assert_eq!(kept.policies[&PolicyId(1)], policy(Mode::Enforce));
    assert_eq!(plan.withheld, 5);

    let plan = diff(&held, &desired, true, &ROOM).unwrap();
    let mut expected = desired;
    expected.config.generation = 2;
    assert_eq!(after(held, &plan), expected);
}

#[test]
fn a_reused_interface_is_its_new_pods() {
    let mut held = Tables::default();
    held.interfaces.insert(3, pod(1));
    let mut desired = Tables::default();
    desired.interfaces.insert(3, Pod { id: PodId(2), ..pod(0) });
    let plan = diff(&held, &desired, false, &ROOM).unwrap();
    assert_eq!(plan.withheld, 0);
    assert_eq!(after(held, &plan).interfaces, desired.interfaces);
}

#[test]
fn an_incomplete_snapshot_may_still_tighten() {
    let mut held = Tables::default();
    held.policies.insert(PolicyId(1), policy(Mode::Audit));
    held.pods.insert(7, pod(0));
    let mut desired = Tables::default();
    desired.policies.insert(PolicyId(1), policy(Mode::Enforce));
    desired.pods.insert(7, pod(1));
    let plan = diff(&held, &desired, false, &ROOM).unwrap();
    assert_eq!(plan.withheld, 0);
    assert_eq!(after(held, &plan).policies, desired.policies);
}

proptest::proptest! {
    #[test]
    fn applying_a_plan_gives_what_was_desired(
        held in proptest::collection::btree_set(0u16..12, 0..5),
        wanted in proptest::collection::btree_set(0u16..12, 0..5),
    ) {
        let (actual, mut desired) = (exact(held), exact(wanted));
        match diff(&actual, &desired, true, &ROOM) {
            Ok(plan) => {
                let result = after(actual, &plan);
                desired.config.generation = result.config.generation;
                proptest::prop_assert_eq!(result, desired);
            }
            Err(refused) => proptest::prop_assert!(refused.needed > ROOM.exact),
        }
    }
}
