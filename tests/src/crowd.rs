//! An interface whose tcx chains are full: where a kernel has no room for the boundary, or no tcx.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use aya_obj::generated::bpf_attach_type;
use nix::libc;

use crate::bpf;
use crate::netns::Netns;

/// More programs than a chain has room for (`BPF_MPROG_MAX`).
const MANY: usize = 128;

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
                    match bpf::link(&bpf::load(bpf::SCHED_CLS, &bpf::NEXT)?, index, chain, false) {
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
    netns.run(|| {
        let index = nix::net::if_::if_nametoindex(interface).context("find the interface")?;
        let program = bpf::load(bpf::SCHED_CLS, &bpf::NEXT)?;
        let link = bpf::link(&program, index, bpf_attach_type::BPF_TCX_INGRESS, true);
        link.context("attach ahead of others")
    })
}
