//! The ledger by itself, and through the file that the next agent reads.

use super::*;
use crate::metrics::tests::{counters, state, without_pods};

fn ledger() -> Ledger {
    Ledger::new(Granularity::Pod, 1000)
}

fn packets(sums: &Sums) -> Vec<(String, u64)> {
    let mut by_workload: BTreeMap<String, u64> = BTreeMap::new();
    for ((workload, _, _), counter) in sums {
        *by_workload.entry(workload.name.clone()).or_default() += counter.packets;
    }
    by_workload.into_iter().collect()
}

fn cart(packets: u64) -> Vec<(String, u64)> {
    vec![("cart".to_owned(), packets)]
}

#[test]
fn a_workload_counts_on_through_the_death_of_its_pod() {
    let mut ledger = ledger();
    let kernel = counters("uid-1", 7);
    ledger.learn(&state(), 1);
    assert_eq!(packets(&ledger.workloads(&kernel)), cart(7));
    ledger.learn(&without_pods(), 2);
    assert_eq!(packets(&ledger.workloads(&kernel)), cart(7), "gone, still in the kernel");
    assert_eq!(ledger.settle(&kernel, GRACE), [], "not long enough");
    let settled = ledger.settle(&kernel, 2 + GRACE);
    assert_eq!(settled, kernel.keys().copied().collect::<Vec<_>>());
    ledger.forgotten();
    assert_eq!(packets(&ledger.workloads(&BTreeMap::new())), cart(7), "out of the kernel");
    // Another pod of the same workload adds to it.
    ledger.learn(&state(), 3 + GRACE);
    assert_eq!(packets(&ledger.workloads(&counters("uid-1", 2))), cart(9));
}

#[test]
fn a_pod_the_kernel_still_judges_is_not_gone() {
    let mut ledger = ledger();
    ledger.learn(&state(), 1);
    let mut unnamed = without_pods();
    unnamed.tables = std::sync::Arc::clone(&state().tables);
    ledger.learn(&unnamed, 2);
    assert_eq!(ledger.settle(&counters("uid-1", 7), 2 + GRACE), []);
}

#[test]
fn who_died_before_the_agent_came_is_unknown_and_leaves_after_its_grace() {
    let mut ledger = ledger();
    let kernel = counters("uid-old", 5);
    assert_eq!(ledger.settle(&kernel, 1), []);
    assert_eq!(ledger.settle(&kernel, 1 + GRACE).len(), kernel.len());
    let sums = ledger.workloads(&BTreeMap::new());
    assert_eq!(packets(&sums), [("unknown".to_owned(), 5)]);
}

#[test]
fn counters_of_pods_not_learned_yet_stay_in_the_kernel() {
    let mut ledger = ledger();
    let mut kernel = counters("uid-1", 5);
    kernel = kernel
        .into_iter()
        .map(|(key, counter)| (CounterKey { pod: PodId::UNKNOWN, ..key }, counter))
        .collect();
    ledger.settle(&kernel, 1);
    assert_eq!(ledger.settle(&kernel, 1 + GRACE), []);
}

#[test]
fn a_workload_without_pods_is_forgotten_in_the_end() {
    let mut ledger = ledger();
    ledger.learn(&state(), 1);
    ledger.learn(&without_pods(), 2);
    ledger.settle(&BTreeMap::new(), 3);
    ledger.settle(&counters("uid-1", 7), 2 + GRACE);
    ledger.forgotten();
    ledger.settle(&BTreeMap::new(), 1 + GRACE + QUIET);
    assert_eq!(packets(&ledger.workloads(&BTreeMap::new())), cart(7));
    ledger.settle(&BTreeMap::new(), 2 + GRACE + QUIET);
    assert_eq!(packets(&ledger.workloads(&BTreeMap::new())), []);
}

/// What the next agent tells of the kernel's counters, from a file the ledger was written to.
fn next_agent(ledger: &mut Ledger, kernel: &Counters) -> Ledger {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(directory.path()).unwrap();
    ledger.changed = true;
    store.write(ledger).unwrap();
    let Found::Ledger(mut next) = store.read(ledger.by, 1000).unwrap() else {
        panic!("no ledger was found")
    };
    next.reconcile(kernel);
    *next
}

fn told(ledger: &Ledger, kernel: &Counters) -> Vec<(String, u64)> {
    packets(&ledger.workloads(&ledger.told(kernel)))
}

#[test]
fn an_agent_killed_while_counters_move_counts_none_twice_and_loses_none() {
    let mut ledger = ledger();
    let kernel = counters("uid-1", 7);
    ledger.learn(&state(), 1);
    ledger.learn(&without_pods(), 2);
    let keys = ledger.settle(&kernel, 2 + GRACE);
    assert_eq!(keys.len(), 1);
    // Killed before the kernel forgot, and after.
    for held in [kernel.clone(), Counters::new()] {
        let mut next = next_agent(&mut ledger, &held);
        assert_eq!(told(&next, &held), cart(7));
        let again = next.settle(&held, 3 + GRACE);
        assert_eq!(told(&next, &held), cart(7), "settled once more");
        let forgotten: Counters =
            held.into_iter().filter(|(key, _)| !again.contains(key)).collect();
        next.forgotten();
        assert_eq!(told(&next, &forgotten), cart(7));
    }
    // The kernel forgot, and counts the same key anew.
    let anew = counters("uid-1", 3);
    assert_eq!(
        told(&next_agent(&mut ledger, &anew), &anew),
        [("cart".to_owned(), 7), ("unknown".to_owned(), 3)]
    );
}

#[test]
fn a_pod_that_dies_with_the_agent_counts_for_its_workload_with_the_next() {
    let mut ledger = ledger();
    ledger.learn(&state(), 1);
    let kernel = counters("uid-1", 7);
    let mut next = next_agent(&mut ledger, &kernel);
    next.learn(&without_pods(), 5);
    assert_eq!(told(&next, &kernel), cart(7));
    assert_eq!(next.settle(&kernel, 4 + GRACE), [], "its grace begins when it is missed");
    next.settle(&kernel, 5 + GRACE);
    next.forgotten();
    assert_eq!(told(&next, &Counters::new()), cart(7));
}

#[test]
fn tables_of_another_layout_count_on_and_are_taken_over_once() {
    let total = Counter { connections: 1, packets: 5, bytes: 0 };
    let readings = |packets| Readings {
        pods: counters("uid-1", packets),
        node: BTreeMap::from([((Verdict::Drop, Reason::NotGateway), total)]),
        losses: vec![("ring", 2)],
    };
    let mut ledger = ledger();
    ledger.learn(&state(), 1);
    ledger.carry(9, readings(7), false);
    // Killed before the programs were replaced: the old table went on counting.
    let mut next = next_agent(&mut ledger, &Counters::new());
    next.carry(9, readings(8), true);
    assert_eq!(told(&next, &counters("uid-1", 1)), cart(9));
    let continued = next.continued(readings(1));
    assert_eq!(continued.node[&(Verdict::Drop, Reason::NotGateway)].packets, 10);
    assert_eq!(continued.losses, [("ring", 4)]);
    // What has been settled from it does not come back with the next start.
    next.learn(&without_pods(), 2);
    next.settle(&Counters::new(), 2 + GRACE);
    let mut third = next_agent(&mut next, &Counters::new());
    third.carry(9, readings(8), false);
    assert_eq!(told(&third, &Counters::new()), cart(8));
}

#[test]
fn a_namespace_keeps_what_its_workloads_had() {
    let mut ledger = ledger();
    ledger.learn(&state(), 1);
    ledger.learn(&without_pods(), 2);
    ledger.settle(&counters("uid-1", 7), 2 + GRACE);
    ledger.by = Granularity::Namespace;
    let next = next_agent(&mut ledger, &Counters::new());
    assert_eq!(told(&next, &Counters::new()), [(String::new(), 7)]);
}

#[test]
fn the_ledger_of_another_boot_is_none_and_an_unreadable_one_is_put_aside() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(directory.path()).unwrap();
    let found = || store.read(Granularity::Pod, 1000).unwrap();
    assert!(matches!(found(), Found::Nothing));
    let mut ledger = ledger();
    ledger.learn(&state(), 1);
    store.write(&mut ledger).unwrap();
    assert!(matches!(found(), Found::Ledger(_)));
    let file = directory.path().join("totals.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    std::fs::write(&file, text.replace(boot.trim(), "another")).unwrap();
    assert!(matches!(found(), Found::Nothing));
    std::fs::write(&file, &text[..text.len() / 2]).unwrap();
    let Found::Unreadable(why) = found() else { panic!("half a file was read") };
    assert!(why.contains("totals.unreadable"), "{why}");
    assert!(matches!(found(), Found::Nothing), "it is out of the way");
}

#[test]
fn what_cannot_be_written_down_stays_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(&directory.path().join("gone")).unwrap();
    let mut ledger = ledger();
    ledger.learn(&state(), 1);
    let error = store.write(&mut ledger).unwrap_err().to_string();
    assert!(error.contains("totals.json") && error.contains("--run-dir"), "{error}");
    assert!(ledger.changed, "the next write tries again");
}
