//! The one addition that nothing interrupts.
//!
//! A per-CPU slot has one CPU and still two writers: a hook of a socket call is interrupted by those
//! of packets. What must add up exactly is added in one instruction.

/// Adds atomically; the only atomic operation that every kernel since 3.18 knows.
///
/// # Safety
/// `to` points to eight aligned bytes.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn add(to: *mut u64, amount: u64) {
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!("lock *(u64 *)({to} + 0) += {amount}", to = in(reg) to, amount = in(reg) amount);
    }
}

/// The host has one thread here.
///
/// # Safety
/// `to` points to eight aligned bytes.
#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn add(to: *mut u64, amount: u64) {
    // SAFETY: the caller's.
    unsafe { *to += amount };
}
