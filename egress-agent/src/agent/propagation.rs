//! How long a change of the registry takes to reach the kernel.

use std::time::Duration;

/// Upper bounds of the classes, seconds; what takes longer is in none of them.
const BOUNDS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Times from the moment at which a change was noticed to the moment at which the kernel held it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Propagation {
    counts: [u64; BOUNDS.len()],
    total: u64,
    sum: f64,
}

impl Propagation {
    /// Counts one change.
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (count, bound) in self.counts.iter_mut().zip(BOUNDS) {
            *count += u64::from(seconds <= bound);
        }
        self.total += 1;
        self.sum += seconds;
    }

    /// Each bound with the number of changes that took no longer.
    pub fn classes(&self) -> impl Iterator<Item = (f64, u64)> {
        BOUNDS.into_iter().zip(self.counts)
    }

    /// How many changes there were, and how many seconds they took together.
    pub const fn total(&self) -> (u64, f64) {
        (self.total, self.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_in_every_class_it_is_fast_enough_for() {
        let mut propagation = Propagation::default();
        propagation.observe(Duration::from_millis(30));
        propagation.observe(Duration::from_secs(60));
        let classes: Vec<u64> = propagation.classes().map(|(_, count)| count).collect();
        assert_eq!(classes, [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(propagation.total(), (2, 60.03));
    }
}
