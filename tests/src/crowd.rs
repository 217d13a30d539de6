//! An interface whose tcx chains are full: where a kernel has no room for the boundary, or no tcx.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use aya_obj::generated::{bpf_attach_type, bpf_cmd};
use nix::libc;

use crate::netns::Netns;

/// More programs than a chain has room for (`BPF_MPROG_MAX`).
const MANY: usize = 128;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `return TCX_NEXT`.
const NEXT: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];

/// Programs that let everything pass, as many as fit; dropping it detaches them.
#[derive(Debug)]
pub struct Crowd {
    _held: Vec<OwnedFd>,
}

impl Crowd {
    /// Fills both chains of an interface of `netns`.
    ///
    /// # Errors
    /// When there is no such interface, or a program is refused.
    pub fn fill(netns: &Netns, interface: &str) -> Result<Self> {
        netns.run(|| {
            let index = nix::net::if_::if_nametoindex(interface).context("find the interface")?;
            let mut held = Vec::new();
            for chain in [bpf_attach_type::BPF_TCX_INGRESS, bpf_attach_type::BPF_TCX_EGRESS] {
                let room = held.len() + MANY;
                loop {
                    ensure!(held.len() < room, "the chain takes any number of programs");
                    match attach(&load()?, index, chain as u32, 0) {
                        Ok(link) => held.push(link),
                        Err(error) if error.raw_os_error() == Some(libc::ERANGE) => break,
                        Err(error) => return Err(error).context("fill the chain"),
                    }
                }
            }
            Ok(Self { _held: held })
        })
    }
}

/// A program that lets everything pass, at the head of an interface's ingress chain until it is
/// dropped.
///
/// # Errors
/// As [`Crowd::fill`].
pub fn prepend(netns: &Netns, interface: &str) -> Result<OwnedFd> {
    /// `BPF_F_BEFORE` nobody in particular.
    const FIRST: u32 = 1 << 3;
    netns.run(|| {
        let index = nix::net::if_::if_nametoindex(interface).context("find the interface")?;
        let chain = bpf_attach_type::BPF_TCX_INGRESS as u32;
        attach(&load()?, index, chain, FIRST).context("attach ahead of others")
    })
}

fn load() -> Result<OwnedFd> {
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
        kind: SCHED_CLS,
        instructions: NEXT.len() as u32,
        code: NEXT.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 2],
        version: 0,
        name: *b"egress_crowd\0\0\0\0",
    };
    bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("load a program that passes everything")
}

fn attach(program: &OwnedFd, index: u32, chain: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        program: u32,
        index: u32,
        chain: u32,
        flags: u32,
        rest: [u32; 4],
    }
    let program = program.as_raw_fd().cast_unsigned();
    let mut attr = Attr { program, index, chain, flags, rest: [0; 4] };
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

fn bpf<T>(command: bpf_cmd, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the attribute is a live value of the size given, and what it points at outlives the
    // call.
    let returned = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size_of::<T>())
    };
    match i32::try_from(returned) {
        // SAFETY: the kernel has just given us this descriptor and nobody else holds it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
