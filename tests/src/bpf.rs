//! What another hand does to BPF objects: programs of no sense, links detached and updated.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use aya_obj::generated::{bpf_attach_type, bpf_cmd};
use nix::libc;

/// `return TCX_NEXT`: the next program of the chain decides.
pub const NEXT: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
/// `return TCX_PASS`: the packet passes and no later program of the chain sees it. For a cgroup
/// hook that answers with 0, the same is a denial.
pub const PASS: [u64; 2] = [0x0000_00b7, 0x95];
/// `return 1`: what a cgroup hook lets pass with.
pub const ONE: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

/// `BPF_PROG_TYPE_SCHED_CLS`.
pub const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_CGROUP_SKB`.
pub const CGROUP_SKB: u32 = 8;

const BPF_F_BEFORE: u32 = 1 << 3;

/// Loads a program, under the name `egress_crowd`.
///
/// # Errors
/// When the verifier refuses it.
pub fn load(kind: u32, code: &[u64]) -> Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log: [u64; 2],
        version: u64,
        name: [u8; 16],
    }
    let license = c"GPL";
    let mut attr = Attr {
        kind,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 2],
        version: 0,
        name: *b"egress_crowd\0\0\0\0",
    };
    open(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("load a program")
}

/// Links a program to the end of an interface's chain, or with `first` to its head.
///
/// # Errors
/// The kernel's, unchanged.
pub fn link(
    program: &OwnedFd,
    index: u32,
    chain: bpf_attach_type,
    first: bool,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        program: u32,
        index: u32,
        chain: u32,
        flags: u32,
        rest: [u32; 4],
    }
    let program = program.as_raw_fd().cast_unsigned();
    let flags = if first { BPF_F_BEFORE } else { 0 };
    open(
        bpf_cmd::BPF_LINK_CREATE,
        &mut Attr { program, index, chain: chain as u32, flags, rest: [0; 4] },
    )
}

/// Detaches the link pinned at `pin`, as `bpftool link detach` does.
///
/// # Errors
/// When it is not pinned there, or the kernel refuses.
pub fn detach(pin: &Path) -> Result<()> {
    let link = get(pin)?;
    let mut attr = link.as_raw_fd().cast_unsigned();
    call(bpf_cmd::BPF_LINK_DETACH, &mut attr).context("detach a link")?;
    Ok(())
}

/// Gives the link pinned at `pin` another program.
///
/// # Errors
/// As [`detach`].
pub fn update(pin: &Path, program: &OwnedFd) -> Result<()> {
    let link = get(pin)?;
    let (link, program) = (link.as_raw_fd().cast_unsigned(), program.as_raw_fd().cast_unsigned());
    let mut attr = [link, program, 0, 0];
    call(bpf_cmd::BPF_LINK_UPDATE, &mut attr).context("update a link")?;
    Ok(())
}

/// Pins a program.
///
/// # Errors
/// When the path is taken, or not in a bpffs.
pub fn pin(program: &OwnedFd, path: &Path) -> Result<()> {
    let name = CString::new(path.as_os_str().as_bytes()).context("a path with a zero")?;
    let fd = program.as_raw_fd().cast_unsigned();
    let mut attr = [name.as_ptr() as u64, u64::from(fd)];
    call(bpf_cmd::BPF_OBJ_PIN, &mut attr).with_context(|| format!("pin {}", path.display()))?;
    Ok(())
}

/// How many programs an interface's chain has.
///
/// # Errors
/// When there is no such interface.
pub fn count(index: u32, chain: bpf_attach_type) -> Result<u32> {
    let mut attr = [0u32; 16];
    (attr[0], attr[1]) = (index, chain as u32);
    call(bpf_cmd::BPF_PROG_QUERY, &mut attr).context("query a chain")?;
    // `prog_cnt` follows target, type, flags and the 64-bit pointer.
    Ok(attr[6])
}

fn get(pin: &Path) -> Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes()).context("a path with a zero")?;
    let mut attr = [path.as_ptr() as u64, 0];
    open(bpf_cmd::BPF_OBJ_GET, &mut attr).with_context(|| format!("open {}", pin.display()))
}

fn open<T>(command: bpf_cmd, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: the kernel has just given us this descriptor and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T>(command: bpf_cmd, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the attribute is a live value of the size given, and what it points at outlives the
    // call.
    let returned = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size_of::<T>())
    };
    match i32::try_from(returned) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}
