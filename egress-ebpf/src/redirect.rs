//! Rewriting a connection to the gateway, and telling the application the peer it asked for.
//!
//! The rule is [`egress_common::redirect`]; this file only does what it says. What a socket asked
//! for is remembered under its cookie, in a table that forgets the least used: an application whose
//! entry is gone is told the gateway's address, and nothing else changes for it.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::programs::SockAddrContext;
use egress_common::packet::{Packet, protocol};
use egress_common::redirect::{Original, Redirected, redirect};
use egress_common::state::{Counter, Direction, loss};
use egress_common::{Addr, Ruling, Subject, Verdict};

use crate::emit::count;
use crate::forget::forget_ruling;
use crate::maps::{ORIGINALS, Tables, lost};

/// Which of the two families a hook's addresses are written in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// The IPv4 word.
    V4,
    /// The four IPv6 words, of a mapped address too.
    V6,
}

/// What redirection makes of a ruling on a connection.
pub(crate) enum Fate {
    /// Nothing: this ruling stands.
    Stands(Ruling),
    /// The call has been rewritten, and counted.
    Rewritten,
}

/// Rewrites the call where the rule says so. Asked only for pods whose policy redirects at all.
/// `family` is the hook's, known when the program is compiled: the verifier lets each touch its
/// own fields only.
#[inline(always)]
pub(crate) fn apply(
    ctx: &SockAddrContext,
    family: Family,
    who: &Subject,
    packet: &Packet,
    ruling: Ruling,
    tables: &Tables<'_>,
) -> Fate {
    if packet.protocol != protocol::TCP {
        return Fate::Stands(ruling);
    }
    let cookie = cookie(ctx);
    let Some(Redirected { ruling, to }) = redirect(who, packet, ruling, cookie, tables) else {
        // The socket goes where its application wants, and so ends what it was told before.
        let _ = ORIGINALS.remove(cookie);
        return Fate::Stands(ruling);
    };
    let ruling = forget_ruling(ruling, tables.now);
    let Some((addr, port)) = to else {
        return Fate::Stands(ruling);
    };
    let asked = (packet.dst, packet.dst_port);
    if ORIGINALS.insert(cookie, Original::new(asked, (addr, port)), 0).is_err() {
        lost(loss::ORIGINAL, 1);
    }
    write(ctx, family, addr, port);
    // Its packets are counted on their way to the gateway.
    let once = Counter { connections: 1, packets: 0, bytes: 0 };
    count(who.pod, ruling, Verdict::Allow, Direction::Tx, &once);
    Fate::Rewritten
}

/// Tells an application that asks for its peer the one it dialled.
#[inline(always)]
pub(crate) fn peer(ctx: &SockAddrContext, family: Family) {
    // SAFETY: an entry is replaced whole, by the socket's own connect.
    let Some(original) = (unsafe { ORIGINALS.get(cookie(ctx)) }) else {
        return;
    };
    let (peer, port) = read(ctx, family);
    if let Some((addr, port)) = original.of_peer(peer, port) {
        write(ctx, family, addr, port);
    }
}

/// The number of the call's socket, which no other socket of this boot has.
#[inline(always)]
pub(crate) fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the context (Linux 4.20).
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Address and port of the call. `user_family` is never read: see [`crate::connect`].
#[inline(always)]
pub(crate) fn read(ctx: &SockAddrContext, family: Family) -> (Addr, u16) {
    let call = ctx.sock_addr;
    // SAFETY: the verifier checks each of these context fields and rewrites the access.
    unsafe {
        let addr = match family {
            Family::V4 => Addr::from_v4_word((*call).user_ip4),
            Family::V6 => Addr::from_words([
                (*call).user_ip6[0],
                (*call).user_ip6[1],
                (*call).user_ip6[2],
                (*call).user_ip6[3],
            ]),
        };
        (addr, u16::from_be((*call).user_port as u16))
    }
}

/// Replaces them. The rule keeps to the family, so that an IPv4 word is all there is to write.
#[inline(always)]
fn write(ctx: &SockAddrContext, family: Family, addr: Addr, port: u16) {
    let call = ctx.sock_addr;
    let words = addr.words();
    // SAFETY: as above, for fields that programs of these types may write; volatile, because the
    // verifier of older kernels knows no wider store than the field's.
    unsafe {
        match family {
            Family::V4 => (&raw mut (*call).user_ip4).write_volatile(words[3]),
            Family::V6 => {
                (&raw mut (*call).user_ip6[0]).write_volatile(words[0]);
                (&raw mut (*call).user_ip6[1]).write_volatile(words[1]);
                (&raw mut (*call).user_ip6[2]).write_volatile(words[2]);
                (&raw mut (*call).user_ip6[3]).write_volatile(words[3]);
            }
        }
        (&raw mut (*call).user_port).write_volatile(u32::from(port.to_be()));
    }
}
