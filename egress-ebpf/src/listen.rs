//! Whether anybody listens where a packet goes: what tells a server's end of a TCP connection from
//! its client's, long after the connection was opened.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_release};
use egress_common::packet::Packet;

/// `BPF_F_CURRENT_NETNS`: the namespace of the packet's device or socket.
const CURRENT: u64 = u64::MAX;
/// `BPF_TCP_LISTEN`.
const LISTEN: u32 = 10;

/// The listeners of one network namespace.
pub(crate) struct Listeners {
    skb: *mut __sk_buff,
    /// As the helper takes it; `None` where it is not known, and then nobody listens.
    namespace: Option<u64>,
}

/// `struct bpf_sock_tuple` of IPv4: addresses and ports, network order.
#[repr(C)]
struct Tuple4 {
    addrs: [u32; 2],
    ports: [u16; 2],
}

/// The same of IPv6.
#[repr(C)]
struct Tuple6 {
    addrs: [[u32; 4]; 2],
    ports: [u16; 2],
}

impl Listeners {
    /// Of the packet's own socket, at a cgroup hook.
    #[inline(always)]
    pub(crate) const fn of_socket(skb: *mut __sk_buff) -> Self {
        Self { skb, namespace: Some(CURRENT) }
    }

    /// Of a pod, seen from the node ([`egress_common::state::Pod::netns`]).
    #[inline(always)]
    pub(crate) const fn of_namespace(skb: *mut __sk_buff, netns: u32) -> Self {
        let namespace = match netns.checked_sub(1) {
            Some(id) => Some(id as u64),
            None => None,
        };
        Self { skb, namespace }
    }

    /// Whether a TCP socket listens at the packet's destination. No connection has an unspecified
    /// remote, so the lookup finds nothing else.
    #[inline(always)]
    pub(crate) fn have(&self, packet: &Packet) -> bool {
        let Some(namespace) = self.namespace else {
            return false;
        };
        let port = packet.dst_port.to_be();
        let [a, b, c, d] = packet.dst.words();
        // SAFETY: the helper reads as many bytes as it is told, of a tuple that has them, and gives
        // a socket that is let go of below, or null (Linux 4.20; in this form 5.0).
        let found = unsafe {
            if packet.dst.is_v4() {
                let mut tuple = Tuple4 { addrs: [0, d], ports: [0, port] };
                let size = size_of::<Tuple4>() as u32;
                bpf_sk_lookup_tcp(self.skb.cast(), (&raw mut tuple).cast(), size, namespace, 0)
            } else {
                let mut tuple = Tuple6 { addrs: [[0; 4], [a, b, c, d]], ports: [0, port] };
                let size = size_of::<Tuple6>() as u32;
                bpf_sk_lookup_tcp(self.skb.cast(), (&raw mut tuple).cast(), size, namespace, 0)
            }
        };
        if found.is_null() {
            return false;
        }
        // SAFETY: not null; the verifier knows it for a socket until it is released.
        unsafe {
            let state = (*found).state;
            bpf_sk_release(found.cast());
            state == LISTEN
        }
    }
}
