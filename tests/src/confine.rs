//! A container runtime's seccomp profile, as far as `bpf(2)` is concerned.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc::{
    self, BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO,
};

/// Becomes a program for which `bpf(2)` fails with `EPERM` before the kernel looks at it. Returns
/// only when that fails. Needs `CAP_SYS_ADMIN`, or capabilities would be lost.
pub fn without_bpf(program: &[String]) -> io::Error {
    let step =
        |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number of the call is the first word of what a filter is shown.
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, libc::SYS_bpf as u32),
        step(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW),
    ];
    let program_of = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the filter and its description outlive the call, which copies them.
    let returned = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program_of)
    };
    if returned != 0 {
        return io::Error::last_os_error();
    }
    match program {
        [name, arguments @ ..] => Command::new(name).args(arguments).exec(),
        [] => io::ErrorKind::InvalidInput.into(),
    }
}
