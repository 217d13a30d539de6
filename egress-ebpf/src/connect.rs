//! Socket calls: early, explained denials for those whose call is what the kernel will send.
//!
//! A captured application may legally dial anything, because its proxy takes the connection
//! over; so these hooks deny only when they are certain: pods the mesh does not capture, and the
//! sidecar proxy's own user. They are feedback, never the boundary; and where the policy says so,
//! what they would deny goes to the gateway instead ([`redirect`]).
//!
//! They have no debug line: with redirect in the same program the verifier's 512 bytes of stack
//! leave no room for one. Events and counters tell of every denial and redirection.

use aya_ebpf::helpers::bpf_get_current_uid_gid;
use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use aya_ebpf::programs::SockAddrContext;
use egress_common::key::PolicyId;
use egress_common::packet::{Hook, Packet, protocol};
use egress_common::state::{Capture, Pod};
use egress_common::{Verdict, decide};

use crate::emit::{Told, remember, tell};
use crate::forget::{forget_packet, forget_ruling, forget_subject, forget_verdict};
use crate::maps::{self, Local, Stage, Tables};
use crate::redirect::{self, Family, Fate};

/// `IPPROTO_MPTCP`, which falls back to or is carried in TCP.
const IPPROTO_MPTCP: u32 = 262;

/// Judges one call.
#[inline(always)]
pub(crate) fn call(ctx: &SockAddrContext, hook: Hook) -> Verdict {
    let config = maps::config();
    let now = maps::now();
    // SAFETY: the helper takes a level and returns an id, zero beyond the depth (Linux 5.6).
    let owner = maps::owner(&config, |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) });
    // A pod nobody knows yet meets the wall instead: TCP tries again after a silent drop and
    // survives the moment, an EPERM it would not.
    let Some(pod) = owner.pod else {
        return Verdict::Allow;
    };
    if !certain(pod, bpf_get_current_uid_gid()) {
        if pod.policy != PolicyId::NONE {
            remember(redirect::cookie(ctx), hook);
        }
        return Verdict::Allow;
    }
    let mut who = maps::subject(Some(pod), &config, now);
    forget_subject(&mut who, now);
    let mut packet = facts(ctx, hook);
    forget_packet(&mut packet, now);
    let bounded = who.flags & Pod::BOUNDARY != 0;
    let local = Local { cgroup: owner.cgroup, port: packet.src_port, bounded };
    let tables = Tables { now, config: &config, stage: Stage::Call(local) };
    let mut ruling = forget_ruling(decide(&who, &packet, &tables), now);
    if matches!(hook, Hook::Connect4 | Hook::Connect6) && who.redirects {
        match redirect::apply(ctx, family(hook), &who, &packet, ruling, &tables) {
            Fate::Rewritten => return Verdict::Allow,
            Fate::Stands(stands) => ruling = stands,
        }
    }
    let verdict = forget_verdict(who.verdict(ruling.reason), now);
    tell(
        &config,
        &Told {
            who: &who,
            hook,
            packet: &packet,
            ruling,
            verdict,
            now,
            len: 0,
            ifindex: 0,
            skb: None,
        },
    );
    if matches!(verdict, Verdict::Audit) {
        remember(redirect::cookie(ctx), hook);
    }
    verdict
}

/// Whether what this process dials is what leaves the pod.
#[inline(always)]
fn certain(pod: &Pod, uid_gid: u64) -> bool {
    if pod.capture == Capture::None.number() {
        return true;
    }
    pod.capture == Capture::Sidecar.number()
        && (uid_gid as u32 == pod.proxy_uid || (uid_gid >> 32) as u32 == pod.proxy_gid)
}

/// Where the hook finds its addresses.
#[inline(always)]
const fn family(hook: Hook) -> Family {
    match hook {
        Hook::Connect6 | Hook::Sendmsg6 => Family::V6,
        Hook::Connect4
        | Hook::Sendmsg4
        | Hook::PodEgress
        | Hook::PodIngress
        | Hook::UplinkEgress
        | Hook::WallIngress
        | Hook::Wall => Family::V4,
    }
}

/// The facts of the call. `user_family` is the caller's to choose and is never read; the hook
/// says which family the kernel took it for.
#[inline(always)]
fn facts(ctx: &SockAddrContext, hook: Hook) -> Packet {
    let (dst, port) = redirect::read(ctx, family(hook));
    // SAFETY: the verifier checks each of these context fields and rewrites the access.
    let (protocol, source) = unsafe {
        let call = ctx.sock_addr;
        let sk = (*call).__bindgen_anon_1.sk;
        let source = if sk.is_null() { 0 } else { (*sk).src_port as u16 };
        ((*call).protocol, source)
    };
    let protocol = match protocol {
        IPPROTO_MPTCP => protocol::TCP,
        other => other as u8,
    };
    Packet::call(hook, protocol, dst, port, source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_common::Addr;
    use egress_common::key::{NamespaceId, PodId};

    fn pod(capture: Capture) -> Pod {
        Pod {
            id: PodId(1),
            policy: PolicyId(1),
            capture: capture.number(),
            flags: 0,
            mac: [0; 6],
            proxy_uid: if capture == Capture::Sidecar { 1337 } else { Pod::NO_PROXY },
            proxy_gid: if capture == Capture::Sidecar { 1338 } else { Pod::NO_PROXY },
            v4: Addr::UNSPECIFIED,
            v6: Addr::UNSPECIFIED,
            namespace: NamespaceId(1),
            guarded: 0,
            netns: 0,
        }
    }

    #[test]
    fn certain_only_for_uncaptured_pods_and_the_sidecar_itself() {
        let ids = |uid: u64, gid: u64| (gid << 32) | uid;
        assert!(certain(&pod(Capture::None), ids(1000, 1000)));
        assert!(!certain(&pod(Capture::Sidecar), ids(1000, 1000)));
        assert!(certain(&pod(Capture::Sidecar), ids(1337, 1000)));
        assert!(certain(&pod(Capture::Sidecar), ids(1000, 1338)));
        // Under ambient the proxy is another pod's process: no user is certain.
        assert!(!certain(&pod(Capture::Ambient), ids(u64::from(u32::MAX), 0)));
    }
}
