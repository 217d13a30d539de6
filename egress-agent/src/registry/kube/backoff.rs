//! How long to wait before asking again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Pauses that double, each a random part shorter: thousands of nodes lose the same server at the
/// same moment.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Pauses from one span to another, before jitter.
    pub(super) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// Pauses between tries: after an outage everybody is back in step within ten seconds.
    pub(super) const fn of_tries() -> Self {
        Self::new(Duration::from_millis(250), Duration::from_secs(10))
    }

    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        jittered(pause)
    }

    /// It went well, or something changed.
    pub(super) const fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Between half of a span and all of it.
pub(super) fn jittered(span: Duration) -> Duration {
    // Keyed by the kernel's randomness, and anew for each instance.
    let part = RandomState::new().hash_one(()) % 1024;
    span / 2 + span * u32::try_from(part).unwrap_or_default() / 2048
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_limit_and_start_again_after_success() {
        let (first, longest) = (Duration::from_millis(250), Duration::from_secs(10));
        let mut backoff = Backoff::new(first, longest);
        let mut expected = first;
        for _ in 0..20 {
            let pause = backoff.next();
            assert!(pause >= expected / 2 && pause <= expected, "{pause:?} of {expected:?}");
            expected = (expected * 2).min(longest);
        }
        backoff.reset();
        assert!(backoff.next() <= first);
    }

    #[test]
    fn two_nodes_do_not_wait_equally_long() {
        let pauses: std::collections::BTreeSet<Duration> =
            (0..32).map(|_| jittered(Duration::from_secs(10))).collect();
        assert!(pauses.len() > 16, "{pauses:?}");
    }
}
