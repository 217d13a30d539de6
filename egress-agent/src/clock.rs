//! The kernel's clock, as its programs read it.

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
