//! The key of a flow that a remote opened.

use super::{Addr, PodId};

/// Key of the reply table: a flow that a remote opened toward a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyKey {
    pod: PodId,
    remote: Addr,
    /// Network order. For ICMP the echo identifier.
    remote_port: [u8; 2],
    /// Network order. Zero for ICMP.
    local_port: [u8; 2],
    /// In a word of its own: three bytes of padding would be a loop in the kernel.
    protocol: u32,
}

impl ReplyKey {
    /// Ports in host order.
    #[inline(always)]
    pub const fn new(
        pod: PodId,
        remote: Addr,
        remote_port: u16,
        local_port: u16,
        protocol: u8,
    ) -> Self {
        Self {
            pod,
            remote,
            remote_port: remote_port.to_be_bytes(),
            local_port: local_port.to_be_bytes(),
            protocol: protocol as u32,
        }
    }

    /// The pod the entry belongs to; another pod's traffic never matches it.
    pub const fn pod(&self) -> PodId {
        self.pod
    }

    /// The same flow, as another owner's.
    #[inline(always)]
    pub const fn of(&self, pod: PodId) -> Self {
        let mut key = *self;
        key.pod = pod;
        key
    }

    /// Whether the flow is TCP's.
    #[inline(always)]
    pub const fn is_tcp(&self) -> bool {
        self.protocol == crate::packet::protocol::TCP as u32
    }

    /// The same flow as the sockets of this cgroup see it: on the socket's own port (host order;
    /// zero where it has none), whatever address translation made of it behind the socket.
    #[inline(always)]
    pub const fn at_socket(&self, cgroup: u64, port: u16) -> Self {
        let mut key = self.of(PodId::of_cgroup(cgroup));
        if port != 0 {
            key.local_port = port.to_be_bytes();
        }
        key
    }
}
