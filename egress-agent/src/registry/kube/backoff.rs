//! How long to wait before asking again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(250);
/// The longest one, before jitter: after an outage everybody is back in step within it.
const LONGEST: Duration = Duration::from_secs(10);

/// Pauses that double, each a random part shorter: thousands of nodes lose the same server at the
/// same moment.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let pause = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        jittered(pause)
    }

    /// It went well.
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
        let mut backoff = Backoff::default();
        let mut expected = FIRST;
        for _ in 0..20 {
            let pause = backoff.next();
            assert!(pause >= expected / 2 && pause <= expected, "{pause:?} of {expected:?}");
            expected = (expected * 2).min(LONGEST);
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }

    #[test]
    fn two_nodes_do_not_wait_equally_long() {
        let pauses: std::collections::BTreeSet<Duration> =
            (0..32).map(|_| jittered(LONGEST)).collect();
        assert!(pauses.len() > 16, "{pauses:?}");
    }
}
