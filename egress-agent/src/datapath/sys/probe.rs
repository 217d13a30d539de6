//! `bpf(2)` for finding out: smallest programs and maps, and who else is attached.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_map_type, bpf_prog_type};
use nix::libc;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use super::{SysError, Target, bpf};

/// Programs a query has room for: a hook has no more (`BPF_MPROG_MAX`).
const MOST: usize = 64;

/// What the kernel answers to an attribute that is larger than it takes: `E2BIG`, whoever asks.
/// Anything else was not said by the kernel's own code, but by what stands before it.
pub(in crate::datapath) fn errno_of_oversize() -> i32 {
    // Larger than a page on any machine.
    let mut attr = vec![[0u64; 32]; 1024];
    let size = attr.len() * size_of::<[u64; 32]>();
    // SAFETY: the buffer is as large as its size says, and the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_MAP_CREATE as libc::c_int,
            attr.as_mut_ptr(),
            size,
        )
    };
    if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
}

/// `BPF_MAP_CREATE`: an array of one word, which nobody else sees and which goes with its
/// descriptor.
pub(in crate::datapath) fn create_map() -> Result<OwnedFd, SysError> {
    #[repr(C)]
    struct Attr {
        kind: u32,
        key: u32,
        value: u32,
        entries: u32,
        flags: u32,
        pad: u32,
    }
    let kind = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    let mut attr = Attr { kind, key: 4, value: 8, entries: 1, flags: 0, pad: 0 };
    let mut create =
        || bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr, || "an array of one entry".to_owned());
    let fd = match create() {
        // Before Linux 5.11 maps are paid for from a limit. It is raised as aya raises it for the
        // agent's own maps; where it may not be, the second refusal is the answer.
        Err(error) if error.errno() == libc::EPERM => {
            let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
            create()?
        }
        created => created?,
    };
    // SAFETY: the kernel has just given us this descriptor and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_PROG_LOAD`: the program that returns `verdict` and does nothing else.
pub(in crate::datapath) fn load(
    kind: bpf_prog_type,
    attach: bpf_attach_type,
    verdict: i32,
) -> Result<OwnedFd, SysError> {
    #[repr(C)]
    struct Attr {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log: [u64; 2],
        version: u32,
        flags: u32,
        name: [u8; 16],
        ifindex: u32,
        attach: u32,
    }
    // `r0 = verdict; exit`
    let code = [(u64::from(verdict.cast_unsigned()) << 32) | 0xb7, 0x95];
    let license = c"GPL";
    let mut attr = Attr {
        kind: kind as u32,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 2],
        version: 0,
        flags: 0,
        name: *b"egress_doctor\0\0\0",
        ifindex: 0,
        attach: attach as u32,
    };
    let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr, || "a program of two instructions".to_owned())?;
    // SAFETY: the kernel has just given us this descriptor and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Who is attached at a hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::datapath) struct Attendance {
    /// Ids of the programs, in the order in which they run.
    pub(in crate::datapath) programs: Vec<u32>,
    /// `BPF_F_ALLOW_OVERRIDE`, `BPF_F_ALLOW_MULTI` or, where nobody may be attached below, 0.
    pub(in crate::datapath) flags: u32,
}

/// `BPF_PROG_QUERY`. Needs `CAP_NET_ADMIN`.
pub(in crate::datapath) fn query(
    target: Target<'_>,
    attach: bpf_attach_type,
    what: &str,
) -> Result<Attendance, SysError> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        target: u32,
        attach: u32,
        query: u32,
        flags: u32,
        programs: u64,
        count: u32,
        pad: u32,
        program_flags: u64,
        links: u64,
        link_flags: u64,
        revision: u64,
    }
    let target = match target {
        Target::Cgroup { directory, .. } => directory.as_raw_fd().cast_unsigned(),
        Target::Interface(index) => index,
    };
    let mut programs = vec![0u32; MOST];
    let mut attr = Attr {
        target,
        attach: attach as u32,
        programs: programs.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Attr::default()
    };
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr, || what.to_owned())?;
    programs.truncate(attr.count as usize);
    Ok(Attendance { programs, flags: attr.flags })
}

/// The name of a program. Only `CAP_SYS_ADMIN` may ask.
pub(in crate::datapath) fn program_name(id: u32) -> Option<String> {
    #[repr(C)]
    struct ById {
        id: u32,
        next: u32,
        flags: u32,
        pad: u32,
    }
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    /// `struct bpf_prog_info` up to the name.
    const NAME: usize = 64;
    let what = || format!("program {id}");
    let mut attr = ById { id, next: 0, flags: 0, pad: 0 };
    let fd = bpf(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr, what).ok()?;
    // SAFETY: the kernel has just given us this descriptor and nobody else holds it.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = [0u64; 10];
    let mut attr = Attr {
        fd: program.as_raw_fd().cast_unsigned(),
        len: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr, what).ok()?;
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).skip(NAME).collect();
    let name: Vec<u8> = bytes.into_iter().take_while(|byte| *byte != 0).collect();
    String::from_utf8(name).ok()
}
