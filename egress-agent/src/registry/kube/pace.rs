//! When to publish: changes that come together go together, and one alone does not wait.

use std::time::{Duration, Instant};

/// Changes that come so close together are published together.
const SETTLE: Duration = Duration::from_millis(10);
/// Between two snapshots while changes do not end: a node's pods that start together are few
/// compilations.
const SPACING: Duration = Duration::from_millis(100);

/// The changes that are not published, and when the last ones were.
#[derive(Debug, Default)]
pub(super) struct Pace {
    first: Option<Instant>,
    published: Option<Instant>,
}

impl Pace {
    /// Something changed.
    pub(super) fn note(&mut self, now: Instant) {
        self.first.get_or_insert(now);
    }

    /// When the next snapshot is due; `None` while there is nothing to say.
    pub(super) fn due(&self) -> Option<Instant> {
        let settled = self.first? + SETTLE;
        Some(self.published.map_or(settled, |last| settled.max(last + SPACING)))
    }

    /// Takes the time of the first change, to publish it and all since.
    pub(super) fn take(&mut self) -> Option<Instant> {
        self.first.take()
    }

    /// They were published.
    pub(super) const fn published(&mut self, now: Instant) {
        self.published = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When changes at these times, milliseconds, are published.
    fn publications(changes: &[u64]) -> Vec<u64> {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let (mut pace, mut told) = (Pace::default(), Vec::new());
        for millis in 0..10_000 {
            for _ in changes.iter().filter(|change| **change == millis) {
                pace.note(at(millis));
            }
            if pace.due().is_some_and(|due| due <= at(millis)) {
                assert!(pace.take().is_some());
                pace.published(at(millis));
                told.push(millis);
            }
        }
        told
    }

    #[test]
    fn one_change_waits_for_hardly_anything() {
        assert_eq!(publications(&[500]), [510]);
        assert_eq!(publications(&[500, 1_500]), [510, 1_510]);
    }

    #[test]
    fn changes_that_come_together_are_published_together() {
        assert_eq!(publications(&[500, 501, 505]), [510]);
        assert_eq!(publications(&[500, 511, 530]), [510, 610]);
    }

    #[test]
    fn changes_without_end_are_published_every_so_often() {
        // 250 pods in a second.
        let changes: Vec<u64> = (0..250).map(|pod| 1_000 + pod * 4).collect();
        let told = publications(&changes);
        assert_eq!(told.len(), 11);
        assert!(told.windows(2).all(|pair| pair[1] - pair[0] == 100), "{told:?}");
    }
}
