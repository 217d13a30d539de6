use super::*;

const SECOND: u64 = 1_000_000_000;
const POD: u64 = 501;

fn passed(packets: u64, first: u64, last: u64) -> Exposed {
    Exposed { packets, first: first * SECOND, last: last * SECOND }
}

/// A moment, in seconds, at which the pod lives and stands so; `None` where nobody knows it.
fn at(now: u64, standing: Option<Option<Unenforced>>, packets: u64) -> Moment {
    Moment {
        now: now * SECOND,
        births: [(POD, 10 * SECOND)].into(),
        standing: standing.map(|standing| (POD, standing)).into_iter().collect(),
        passed: [(PodId::of_cgroup(POD), passed(packets, 11, now))].into(),
        ..Moment::default()
    }
}

fn sums(exposures: &Exposures) -> Vec<(Unenforced, u64, u64)> {
    let of = |reason| (reason, exposures.total(reason));
    let all = Unenforced::ALL.into_iter().map(of);
    let some = all.filter(|(_, amount)| *amount != Amount::default());
    some.map(|(reason, amount)| (reason, amount.nanoseconds / SECOND, amount.packets)).collect()
}

#[test]
fn time_and_packets_go_to_the_reason_that_held() {
    let mut all = Exposures::default();
    all.take(&at(12, None, 1), false);
    all.take(&at(13, Some(Some(Unenforced::NoInterface)), 3), false);
    all.take(&at(15, Some(Some(Unenforced::NotAttached)), 4), false);
    all.take(&at(16, Some(None), 9), false);
    all.take(&at(90, Some(None), 9), false);
    assert_eq!(
        sums(&all),
        [
            (Unenforced::NotLearned, 3, 3),
            (Unenforced::NoInterface, 2, 1),
            (Unenforced::NotAttached, 1, 5)
        ]
    );
    let pod = all.of(POD).unwrap();
    assert_eq!((pod.born, pod.covered, pod.reason), (10 * SECOND, Some(16 * SECOND), None));
    assert_eq!(pod.so_far, Amount { nanoseconds: 6 * SECOND, packets: 9 });
    // Losing its boundary counts again.
    all.take(&at(91, Some(Some(Unenforced::NotAttached)), 9), false);
    all.take(&at(93, Some(None), 10), false);
    assert_eq!(all.total(Unenforced::NotAttached), Amount { nanoseconds: 3 * SECOND, packets: 6 });
}

#[test]
fn who_died_without_ever_being_covered_is_counted() {
    let mut all = Exposures::default();
    all.take(&at(12, None, 1), false);
    let mut dead = at(14, None, 5);
    dead.births.clear();
    assert_eq!(all.take(&dead, false), [PodId::of_cgroup(POD)]);
    assert_eq!(sums(&all), [(Unenforced::NotLearned, 4, 5)]);
    assert_eq!(all.of(POD), None);
    // Between two looks: only its packets tell of it.
    let mut brief = Moment { now: 20 * SECOND, ..Moment::default() };
    brief.passed.insert(PodId::of_cgroup(777), passed(2, 17, 19));
    assert_eq!(all.take(&brief, false), [PodId::of_cgroup(777)]);
    assert_eq!(sums(&all), [(Unenforced::NotLearned, 6, 7)]);
}

#[test]
fn what_happened_while_no_agent_ran_is_added_at_the_next_start() {
    let mut all = Exposures::default();
    all.take(&at(12, Some(None), 1), false);
    let text = serde_json::to_string(&all).unwrap();
    let mut next = Exposures::resume(&text, 40 * SECOND).unwrap();
    let mut moment = at(40, Some(None), 1);
    moment.births.insert(502, 30 * SECOND);
    moment.passed.insert(PodId::of_cgroup(502), passed(8, 31, 39));
    next.take(&moment, true);
    assert_eq!(
        sums(&next),
        [(Unenforced::NotLearned, 2, 1), (Unenforced::AgentDown, 10, 8)],
        "the covered pod was covered meanwhile"
    );
    assert_eq!(Exposures::resume(&text, 5 * SECOND), None, "another boot");
    assert_eq!(Exposures::resume("{", 40 * SECOND), None);
}

#[test]
fn a_packet_older_than_the_directory_seems_to_be_is_older_than_that() {
    let mut all = Exposures::default();
    let mut moment = at(20, None, 1);
    moment.births.insert(POD, 19 * SECOND);
    all.take(&moment, false);
    assert_eq!(all.of(POD).unwrap().born, 11 * SECOND);
}

#[test]
fn a_container_counts_for_its_pod_and_an_interface_for_the_node() {
    let mut all = Exposures::default();
    let mut moment = at(12, None, 0);
    moment.below.insert(601, POD);
    moment.passed.insert(PodId::of_cgroup(601), passed(4, 11, 12));
    moment.passed.insert(PodId::of_interface(7), passed(6, 11, 12));
    moment.strangers.insert(7);
    assert_eq!(all.take(&moment, false), []);
    assert_eq!(all.of(POD).unwrap().so_far.packets, 4);
    assert_eq!(all.total(Unenforced::NotLearned).packets, 10);
    moment.strangers.clear();
    assert_eq!(all.take(&moment, false), [PodId::of_interface(7)]);
}
