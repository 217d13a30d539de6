//! One record per decision and window: the first at once, the rest as a count.

use std::collections::BTreeMap;

use egress_common::Verdict;
use egress_common::event::Event;
use egress_common::key::{Addr, PodId};
use egress_common::packet::Hook;

/// How long repeats are gathered, nanoseconds.
const WINDOW: u64 = 30_000_000_000;
/// Different decisions kept apart at once. A pod that scans makes many; the counters have them
/// all.
const MOST: usize = 4096;
/// Of one pod: one that scans takes no other's room.
const MOST_OF_POD: usize = 512;

/// What repeats of one decision share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    pod: PodId,
    dst: Addr,
    port: u16,
    protocol: u8,
    verdict: u8,
    reason: u8,
    /// A refused call never becomes a packet: a packet that is dropped is somebody else's doing,
    /// and must not be taken for the call that was refused beside it.
    refused_call: bool,
}

impl Key {
    fn of(event: &Event) -> Self {
        Self {
            pod: event.pod,
            dst: event.dst,
            port: event.dst_port,
            protocol: event.protocol,
            verdict: event.verdict,
            reason: event.reason,
            refused_call: is_call(event) && event.verdict == Verdict::Drop.number(),
        }
    }
}

/// Whether a socket hook made the event.
fn is_call(event: &Event) -> bool {
    Hook::from_number(event.hook).is_some_and(Hook::is_socket)
}

/// The process behind a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) uid: u32,
    pub(super) comm: String,
}

/// One record to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// The last packet or call of it.
    pub(super) event: Event,
    /// The process, where a socket hook saw it.
    pub(super) process: Option<Process>,
    /// Packets and calls this record stands for, each counted by the hook that had the last
    /// word on it. Where none had (an audited call that never became a packet): the calls.
    pub(super) count: u64,
    /// Counted decisions of these that were read from the ring one by one, without those that the
    /// kernel suppressed.
    pub(super) own: u64,
    /// Boot clock of the first and the last, nanoseconds.
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Report {
    /// Of an event that is still to be taken in.
    fn of(event: &Event) -> Self {
        Self { event: *event, process: None, count: 0, own: 0, first: event.time, last: 0 }
    }
}

#[derive(Debug)]
struct Gathered {
    report: Report,
    /// Events of hooks that did not have the last word.
    passed: u64,
    opened: u64,
    told: bool,
}

/// The open windows.
#[derive(Debug, Default)]
pub(super) struct Aggregates {
    open: BTreeMap<Key, Gathered>,
    /// Open windows of each pod.
    pods: BTreeMap<PodId, usize>,
}

impl Aggregates {
    /// Takes one event in; false when there is no room for another decision.
    pub(super) fn add(&mut self, event: &Event) -> bool {
        let key = Key::of(event);
        if !self.open.contains_key(&key) {
            let of_pod = self.pods.entry(key.pod).or_default();
            if self.open.len() >= MOST || *of_pod >= MOST_OF_POD {
                return false;
            }
            *of_pod += 1;
        }
        let gathered = self.open.entry(key).or_insert_with(|| Gathered {
            report: Report::of(event),
            passed: 0,
            opened: event.time,
            told: false,
        });
        let report = &mut gathered.report;
        // A socket hook lets an audited call through; it comes back as a packet and is counted
        // there. What it adds is the process.
        if event.counted != 0 {
            report.count += 1 + event.suppressed;
            report.own += 1;
            report.event = *event;
        } else {
            gathered.passed += 1 + event.suppressed;
        }
        // A packet names the process whose call made its socket.
        if event.pid != 0 {
            report.process = Some(Process {
                pid: event.pid,
                uid: event.uid,
                comm: event.comm().unwrap_or_default().to_owned(),
            });
        }
        if report.first == 0 {
            report.first = event.time;
        }
        report.last = event.time;
        true
    }

    /// Records due now: decisions not told yet, and windows that have ended.
    pub(super) fn due(&mut self, now: u64) -> Vec<Report> {
        let mut due = Vec::new();
        self.open.retain(|key, gathered| {
            let ended = now.saturating_sub(gathered.opened) >= WINDOW;
            let fresh = !gathered.told && gathered.report.count > 0;
            if fresh || (ended && (gathered.report.count > 0 || !gathered.told)) {
                let mut report = gathered.report.clone();
                if report.count == 0 {
                    report.count = gathered.passed;
                }
                due.push(report);
                gathered.told = true;
                gathered.passed = 0;
                gathered.report.count = 0;
                gathered.report.own = 0;
                gathered.report.first = 0;
            }
            if ended && let Some(of_pod) = self.pods.get_mut(&key.pod) {
                *of_pod -= 1;
            }
            !ended
        });
        self.pods.retain(|_, open| *open > 0);
        due
    }

    /// Everything that was not told.
    pub(super) fn flush(&mut self) -> Vec<Report> {
        self.due(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_common::Reason;

    fn event(hook: Hook, counted: u8, time: u64) -> Event {
        let mut bytes = [0u8; Event::SIZE];
        bytes[0..8].copy_from_slice(&time.to_ne_bytes());
        let mut event = Event::read(&bytes).unwrap();
        event.hook = hook.number();
        event.verdict = Verdict::Audit.number();
        event.reason = Reason::NotGateway.number();
        event.counted = counted;
        event.pid = if hook.is_socket() { 42 } else { 0 };
        event
    }

    #[test]
    fn the_first_is_told_at_once_and_repeats_at_the_end_of_the_window() {
        let mut open = Aggregates::default();
        for time in 1..=3 {
            assert!(open.add(&event(Hook::PodEgress, 1, time)));
        }
        let first = open.due(10);
        assert_eq!((first.len(), first[0].count, first[0].first, first[0].last), (1, 3, 1, 3));
        assert_eq!(first[0].own, 3);
        open.add(&Event { suppressed: 7, ..event(Hook::PodEgress, 1, 20) });
        assert_eq!(open.due(30), []);
        let rest = open.due(WINDOW + 1);
        assert_eq!((rest.len(), rest[0].count, rest[0].first), (1, 8, 20));
        assert_eq!(rest[0].own, 1, "what the kernel suppressed is counted there");
        // The window is closed: the next one is a first again.
        open.add(&event(Hook::PodEgress, 1, WINDOW + 5));
        assert_eq!(open.due(WINDOW + 6).len(), 1);
    }

    #[test]
    fn a_quiet_window_ends_silently() {
        let mut open = Aggregates::default();
        open.add(&event(Hook::PodEgress, 1, 1));
        assert_eq!(open.due(2).len(), 1);
        assert_eq!(open.due(WINDOW + 1), []);
    }

    #[test]
    fn one_connection_seen_by_two_hooks_is_one_with_its_process() {
        let mut open = Aggregates::default();
        open.add(&event(Hook::Connect4, 0, 1));
        open.add(&event(Hook::PodEgress, 1, 2));
        let told = open.due(3);
        assert_eq!((told.len(), told[0].count), (1, 1));
        assert_eq!(told[0].process.as_ref().map(|process| process.pid), Some(42));
        assert_eq!(told[0].event.hook, Hook::PodEgress.number());
    }

    #[test]
    fn a_call_that_never_became_a_packet_is_told_with_its_calls() {
        let mut open = Aggregates::default();
        open.add(&event(Hook::Connect4, 0, 1));
        open.add(&event(Hook::Connect4, 0, 2));
        assert_eq!(open.due(3), []);
        let told = open.due(WINDOW + 1);
        assert_eq!((told.len(), told[0].count), (1, 2));
    }

    #[test]
    fn a_dropped_packet_is_not_taken_for_the_call_refused_beside_it() {
        let mut open = Aggregates::default();
        for hook in [Hook::Connect4, Hook::PodEgress] {
            open.add(&Event { verdict: Verdict::Drop.number(), ..event(hook, 1, 1) });
        }
        let processes: Vec<bool> =
            open.due(2).iter().map(|report| report.process.is_some()).collect();
        assert_eq!(processes, [false, true]);
    }

    #[test]
    fn too_many_different_decisions_are_refused_and_none_is_forgotten() {
        let mut open = Aggregates::default();
        for port in 0..=u16::try_from(MOST).unwrap() {
            let pod = PodId(u64::from(port) / MOST_OF_POD as u64);
            let fits = open.add(&Event { pod, dst_port: port, ..event(Hook::PodEgress, 1, 1) });
            assert_eq!(fits, usize::from(port) < MOST);
        }
        assert_eq!(open.flush().len(), MOST);
        assert!(open.pods.is_empty());
    }

    #[test]
    fn a_pod_that_scans_takes_no_other_ones_room() {
        let mut open = Aggregates::default();
        for port in 0..1000 {
            let fits = open.add(&Event { dst_port: port, ..event(Hook::PodEgress, 1, 1) });
            assert_eq!(fits, usize::from(port) < MOST_OF_POD);
        }
        assert!(open.add(&Event { pod: PodId(7), ..event(Hook::PodEgress, 1, 1) }));
    }
}
