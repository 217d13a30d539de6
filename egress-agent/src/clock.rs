//! The kernel's clock, as its programs read it, and its distance from the node's wall clock.

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_BOOTTIME`, nanoseconds: what `bpf_ktime_get_boot_ns` returns (Linux 5.8). It goes on
/// while the machine sleeps and nobody can set it.
pub fn boot_clock() -> u64 {
    // The clock exists since Linux 2.6.39; without it every lease would count as fresh.
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
        return 0;
    };
    now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
}

/// What turns a wall clock time into one of the boot clock: the two clocks' distance, in whole
/// seconds and rounded down, so that nothing ends later than its object says.
///
/// The distance is kept for as long as it may still be the true one: it is measured anew all the
/// time, never twice the same, and at the edge of a second would flip from one to the next. It
/// moves when the wall clock is set, and with it every end; sleep moves both clocks alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootEpoch(i128);

const SECOND: i128 = 1_000_000_000;
/// How far two measurements of an unchanged distance may be apart: what a clock that is being
/// disciplined drifts in minutes, nanoseconds.
const SLACK: i128 = SECOND / 20;

impl BootEpoch {
    /// The distance now.
    pub fn now() -> Self {
        Self::of(distance())
    }

    fn of(measured: i128) -> Self {
        Self(measured.div_euclid(SECOND) * SECOND)
    }

    /// Measures again. By how many seconds the ends of all exceptions move, where they do.
    pub fn follow(&mut self) -> Option<i128> {
        self.take(distance())
    }

    fn take(&mut self, measured: i128) -> Option<i128> {
        if (-SLACK..SECOND + SLACK).contains(&(measured - self.0)) {
            return None;
        }
        let Self(old) = std::mem::replace(self, Self::of(measured));
        Some((self.0 - old) / SECOND)
    }

    /// Boot clock minus wall clock, nanoseconds.
    pub const fn nanoseconds(self) -> i128 {
        self.0
    }
}

/// The boot clock at a time of the wall clock, both nanoseconds; zero for one before the boot.
pub fn boot_clock_at(wall: i128) -> u64 {
    u64::try_from((wall + distance()).max(0)).unwrap_or(u64::MAX)
}

/// Boot clock minus wall clock, nanoseconds, as exactly as three attempts tell: whoever is
/// interrupted between the two readings takes that time for distance.
fn distance() -> i128 {
    let attempt = || {
        let before = boot_clock();
        let wall = jiff::Timestamp::now().as_nanosecond();
        (boot_clock() - before, i128::from(before) - wall)
    };
    let attempts = [attempt(), attempt(), attempt()];
    attempts.into_iter().min().map_or(0, |(_, distance)| distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: i128 = SECOND / 1000;

    #[test]
    fn the_edge_of_a_second_moves_no_end() {
        let mut epoch = BootEpoch::of(-5 * SECOND);
        for measured in [1, 999 * MILLISECOND, -1, 1001 * MILLISECOND, -40 * MILLISECOND, 0] {
            assert_eq!(epoch.take(-5 * SECOND + measured), None, "{measured}");
        }
        assert_eq!(epoch, BootEpoch(-5 * SECOND));
    }

    #[test]
    fn a_clock_that_is_set_moves_every_end_by_as_much() {
        let mut epoch = BootEpoch::of(7 * SECOND + 300 * MILLISECOND);
        assert_eq!(epoch.nanoseconds(), 7 * SECOND, "never later than the object says");
        // Set forward by an hour: what ends at a wall clock time ends an hour earlier.
        assert_eq!(epoch.take(7 * SECOND + 300 * MILLISECOND - 3600 * SECOND), Some(-3600));
        assert_eq!(epoch.take(7 * SECOND + 300 * MILLISECOND), Some(3600));
        // A drift over days is followed too, a second at a time.
        assert_eq!(epoch.take(8 * SECOND + 60 * MILLISECOND), Some(1));
    }

    #[test]
    fn the_distance_is_that_of_the_clocks() {
        let epoch = BootEpoch::now();
        let there = i128::from(boot_clock()) - epoch.nanoseconds();
        let off = there - jiff::Timestamp::now().as_nanosecond();
        assert!((-SECOND..=2 * SECOND).contains(&off), "{off}");
    }
}
