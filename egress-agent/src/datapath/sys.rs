//! Raw `bpf(2)` for what aya 0.14 does not do: cgroup and tcx links by descriptor, live
//! replacement with the expected old program, and what a link says of itself.
//!
//! With `probe` below it the only file of the agent with `unsafe`. Each wrapper is one command; errors carry the
//! command, the object and the kernel's answer.
#![expect(unsafe_code, reason = "the one place where the agent talks to bpf(2) itself")]

pub(super) mod probe;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_cmd};
use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::AnswerRing;

/// A `bpf(2)` command that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} on {object}: {source}")]
pub struct SysError {
    /// The command.
    pub call: &'static str,
    /// The path, interface or hook it was about.
    pub object: String,
    /// The kernel's answer.
    pub source: io::Error,
}

impl SysError {
    /// The errno, or 0.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}

/// Where a link attaches.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// A cgroup. Links on cgroups always share the hook with others (Linux 5.7).
    Cgroup {
        /// Its directory, open.
        directory: BorrowedFd<'a>,
        /// Its id: the directory's inode number.
        id: u64,
    },
    /// The head of an interface's tcx chain (Linux 6.6).
    Interface(u32),
}

impl Target<'_> {
    /// What [`LinkInfo::target`] says of a live link here.
    pub(super) fn id(self) -> u64 {
        match self {
            Self::Cgroup { id, .. } => id,
            Self::Interface(index) => u64::from(index),
        }
    }
}

const BPF_F_REPLACE: u32 = 1 << 2;
const BPF_F_BEFORE: u32 = 1 << 3;

/// `BPF_OBJ_GET`: opens a pin. Linux 4.4; links since 5.7.
pub(super) fn open_pin(path: &Path) -> Result<OwnedFd, SysError> {
    let name = c_path(path, "BPF_OBJ_GET")?;
    let mut attr = Pin { pathname: name.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr, || path.display().to_string())?;
    // SAFETY: the kernel has just given us this descriptor and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_OBJ_PIN`: pins a program or link under a new name.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> Result<(), SysError> {
    let name = c_path(path, "BPF_OBJ_PIN")?;
    let fd = fd.as_raw_fd().cast_unsigned();
    let mut attr = Pin { pathname: name.as_ptr() as u64, fd, flags: 0 };
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr, || path.display().to_string()).map(drop)
}

/// `union bpf_attr` of the two pin commands.
#[repr(C)]
struct Pin {
    pathname: u64,
    fd: u32,
    flags: u32,
}

/// `BPF_LINK_CREATE`.
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach: bpf_attach_type,
    what: &str,
) -> Result<OwnedFd, SysError> {
    #[repr(C)]
    struct Attr {
        program: u32,
        target: u32,
        attach: u32,
        flags: u32,
        relative: u32,
        pad: u32,
        revision: u64,
    }
    let (target, flags) = match target {
        Target::Cgroup { directory, .. } => (directory.as_raw_fd().cast_unsigned(), 0),
        // Before nothing in particular: the head of the chain.
        Target::Interface(index) => (index, BPF_F_BEFORE),
    };
    let program = program.as_raw_fd().cast_unsigned();
    let attach = attach as u32;
    let mut attr = Attr { program, target, attach, flags, relative: 0, pad: 0, revision: 0 };
    let fd = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr, || what.to_owned())?;
    // SAFETY: the kernel has just given us this descriptor and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_LINK_UPDATE`: replaces the program of a live link, without a moment in between. With
/// `old`, only if that is the program it runs now. `ENOLINK`: what the link was on is gone.
pub(super) fn update_link(
    link: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    old: Option<BorrowedFd<'_>>,
    what: &str,
) -> Result<(), SysError> {
    #[repr(C)]
    struct Attr {
        link: u32,
        new: u32,
        flags: u32,
        old: u32,
    }
    let mut attr = Attr {
        link: link.as_raw_fd().cast_unsigned(),
        new: new.as_raw_fd().cast_unsigned(),
        flags: if old.is_some() { BPF_F_REPLACE } else { 0 },
        old: old.map_or(0, |fd| fd.as_raw_fd().cast_unsigned()),
    };
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr, || what.to_owned()).map(drop)
}

/// `BPF_LINK_DETACH` (Linux 5.9): the link holds nothing from here on. Without it the kernel lets
/// go of a link some time after its last descriptor and pin are gone.
pub(super) fn detach_link(link: BorrowedFd<'_>, what: &str) -> Result<(), SysError> {
    let mut attr = link.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr, || what.to_owned()).map(drop)
}

/// What a link says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Id of the program it runs.
    pub(super) program: u32,
    /// What it is on: a cgroup id or an interface index; zero once that is gone.
    pub(super) target: u64,
}

/// `BPF_OBJ_GET_INFO_BY_FD` on a link.
pub(super) fn link_info(link: BorrowedFd<'_>, what: &str) -> Result<LinkInfo, SysError> {
    /// `struct bpf_link_info` up to the first words of its union; the kernel fills what fits.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        pad: u32,
        target: [u32; 4],
    }
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    const BPF_LINK_TYPE_CGROUP: u32 = 3;
    let mut info = Info::default();
    let mut attr = Attr {
        fd: link.as_raw_fd().cast_unsigned(),
        len: u32::try_from(size_of::<Info>()).unwrap_or(0),
        info: (&raw mut info) as u64,
    };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr, || what.to_owned())?;
    let [low, high, ..] = info.target;
    let high = if info.kind == BPF_LINK_TYPE_CGROUP { high } else { 0 };
    Ok(LinkInfo { program: info.program, target: u64::from(low) | (u64::from(high) << 32) })
}

/// Counts the entries of a hash map, at most `limit` (`BPF_MAP_GET_NEXT_KEY`).
pub(super) fn entries(map: BorrowedFd<'_>, key_size: u32, limit: usize, what: &str) -> usize {
    #[repr(C)]
    struct Attr {
        map: u32,
        pad: u32,
        key: u64,
        next: u64,
    }
    let mut key = vec![0u8; key_size as usize];
    let mut next = key.clone();
    let mut count = 0;
    while count < limit {
        let mut attr = Attr {
            map: map.as_raw_fd().cast_unsigned(),
            pad: 0,
            key: if count == 0 { 0 } else { key.as_ptr() as u64 },
            next: next.as_mut_ptr() as u64,
        };
        if bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr, || what.to_owned()).is_err() {
            break;
        }
        std::mem::swap(&mut key, &mut next);
        count += 1;
    }
    count
}

/// Whether the kernel has tcx: creating a link on an interface that cannot exist is `ENODEV`
/// where it has, `EINVAL` where it has not (Linux 6.6, or a vendor's backport).
pub(super) fn has_tcx(program: BorrowedFd<'_>) -> bool {
    let impossible = Target::Interface(0x7fff_ffff);
    match create_link(program, impossible, bpf_attach_type::BPF_TCX_INGRESS, "tcx probe") {
        Ok(_) => true,
        Err(error) => error.errno() == libc::ENODEV,
    }
}

fn bpf<T>(
    command: bpf_cmd,
    attr: &mut T,
    object: impl FnOnce() -> String,
) -> Result<i32, SysError> {
    // SAFETY: `attr` is a prefix of `union bpf_attr` for this command, as long as its size says;
    // pointers inside it outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_int, &raw mut *attr, size_of::<T>())
    };
    i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(|| SysError {
        call: name(command),
        object: object(),
        source: io::Error::last_os_error(),
    })
}

const fn name(command: bpf_cmd) -> &'static str {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the kernel's list is longer than ours")]
    match command {
        bpf_cmd::BPF_OBJ_GET => "BPF_OBJ_GET",
        bpf_cmd::BPF_OBJ_PIN => "BPF_OBJ_PIN",
        bpf_cmd::BPF_LINK_CREATE => "BPF_LINK_CREATE",
        bpf_cmd::BPF_LINK_UPDATE => "BPF_LINK_UPDATE",
        bpf_cmd::BPF_LINK_DETACH => "BPF_LINK_DETACH",
        bpf_cmd::BPF_PROG_QUERY => "BPF_PROG_QUERY",
        bpf_cmd::BPF_OBJ_GET_INFO_BY_FD => "BPF_OBJ_GET_INFO_BY_FD",
        bpf_cmd::BPF_MAP_CREATE => "BPF_MAP_CREATE",
        bpf_cmd::BPF_PROG_LOAD => "BPF_PROG_LOAD",
        _ => "bpf",
    }
}

fn c_path(path: &Path, call: &'static str) -> Result<CString, SysError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| SysError {
        call,
        object: path.display().to_string(),
        source: io::Error::new(io::ErrorKind::InvalidInput, error),
    })
}

/// Registers a ring with the runtime, to wait until it has something.
pub(super) fn readable(ring: AnswerRing) -> io::Result<AsyncFd<AnswerRing>> {
    // SAFETY: the ring owns its map's descriptor, gives no other while it lives, and lives as long as
    // the value returned.
    let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}
