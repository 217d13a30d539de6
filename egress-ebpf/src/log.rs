//! Debug lines from the programs, for an agent started with kernel logging. Without it the flag
//! below is a constant zero and the verifier removes every line: no cost.

/// Set by the agent before loading; read-only afterwards.
#[unsafe(no_mangle)]
static KERNEL_LOG: u8 = 0;

/// Whether the agent asked for debug lines.
#[inline(always)]
pub(crate) fn enabled() -> bool {
    // SAFETY: a read of our own constant; volatile because the agent overwrites it before load.
    unsafe { core::ptr::read_volatile(&raw const KERNEL_LOG) != 0 }
}
