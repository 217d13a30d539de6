//! Who a decision is about: pod, policy, configuration and heartbeat, read into one value.

use crate::key::{Addr, NamespaceId, PodId, PolicyId};
use crate::packet::Packet;
use crate::reason::{Mode, Reason, Verdict};
use crate::state::{Capture, Config, DenyResponse, OnAgentLoss, Pod, Policy};

/// Who a decision is about, read from pod, policy, configuration and heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The pod.
    pub pod: PodId,
    /// Its policy.
    pub policy: PolicyId,
    /// Mode in force, after the lease.
    pub mode: Mode,
    /// Mode of the source guard: at least the policy's own.
    pub guard: Mode,
    /// How the mesh captures it.
    pub capture: Capture,
    /// [`Pod::flags`].
    pub flags: u8,
    /// The lease has expired and the policy denies new connections then.
    pub deny_new: bool,
    /// The agent has not learned this pod.
    pub unknown: bool,
    /// The pod's MAC.
    pub mac: [u8; 6],
    /// The pod's IPv4 address, or unspecified.
    pub v4: Addr,
    /// The pod's IPv6 address, or unspecified.
    pub v6: Addr,
    /// Its namespace.
    pub namespace: NamespaceId,
    /// The pod is told when its packets are dropped.
    pub answers: bool,
    /// The packet in hand leaves by the interface behind which the boundary was seen to be
    /// ([`Pod::guarded`]); the wall finds out.
    pub guarded: bool,
    /// Its policy redirects some ports of the outside.
    pub redirects: bool,
    /// Why it is denied what lies outside: a limited gateway's pod, for another reason than others.
    pub outside: Reason,
}

impl Subject {
    /// Reads the subject. `policy` is the entry of the pod's policy; a governed pod whose policy
    /// entry is missing is judged in mode enforce, so that a half-written map never widens.
    /// `silence` is the age of the agent's heartbeat in nanoseconds.
    #[inline(always)]
    pub fn of(pod: &Pod, policy: Option<&Policy>, config: &Config, silence: u64) -> Self {
        let governed = pod.policy != PolicyId::NONE;
        let (declared, on_loss) = match policy {
            _ if !governed => (Mode::Off, OnAgentLoss::Hold),
            Some(policy) => (
                Mode::from_number(policy.mode).unwrap_or(Mode::Enforce),
                OnAgentLoss::from_number(policy.on_agent_loss).unwrap_or(OnAgentLoss::Hold),
            ),
            None => (Mode::Enforce, OnAgentLoss::Hold),
        };
        let stale = config.lease != 0 && silence > config.lease;
        let eased =
            (stale && matches!(on_loss, OnAgentLoss::Audit)) || pod.flags & Pod::AUDITED != 0;
        let mode = match declared {
            Mode::Enforce if eased => Mode::Audit,
            Mode::Off | Mode::Audit | Mode::Enforce => declared,
        };
        Self {
            pod: pod.id,
            policy: pod.policy,
            mode,
            guard: mode.max(Mode::from_number(config.guard).unwrap_or(Mode::Enforce)),
            capture: Capture::from_number(pod.capture).unwrap_or(Capture::None),
            flags: pod.flags,
            deny_new: stale && matches!(on_loss, OnAgentLoss::DenyNew),
            unknown: false,
            mac: pod.mac,
            v4: pod.v4,
            v6: pod.v6,
            namespace: pod.namespace,
            answers: policy
                .is_some_and(|policy| policy.deny_response == DenyResponse::Reset.number()),
            guarded: false,
            redirects: policy.is_some_and(|policy| policy.redirect != 0),
            outside: match pod.flags & Pod::LIMITED {
                0 => Reason::NotGateway,
                _ => Reason::Unresolved,
            },
        }
    }

    /// The subject of traffic whose pod the agent has not learned.
    #[inline(always)]
    pub fn unknown(config: &Config) -> Self {
        let mode = Mode::from_number(config.unknown_pod).unwrap_or(Mode::Enforce);
        Self {
            pod: PodId::UNKNOWN,
            policy: PolicyId::NONE,
            mode,
            guard: mode,
            capture: Capture::None,
            flags: 0,
            deny_new: false,
            unknown: true,
            mac: [0; 6],
            v4: Addr::UNSPECIFIED,
            v6: Addr::UNSPECIFIED,
            namespace: NamespaceId::UNKNOWN,
            answers: false,
            guarded: false,
            redirects: false,
            outside: Reason::NotGateway,
        }
    }

    /// The same, behind an interface whose pod the agent has not learned ([`Pod::UNLEARNED`]): its
    /// own MAC and addresses are those that were seen there. Whoever is not known goes by the
    /// interface's number.
    #[inline(always)]
    pub fn behind(self, end: &Pod) -> Self {
        let pod = if self.unknown { end.id } else { self.pod };
        Self { pod, mac: end.mac, v4: end.v4, v6: end.v6, ..self }
    }

    /// The subject of a marked packet at the uplink, where its pod is not known any more.
    #[inline(always)]
    pub fn uplink(config: &Config, mode: Mode) -> Self {
        Self {
            policy: PolicyId::UPLINK,
            mode,
            guard: mode,
            unknown: false,
            ..Self::unknown(config)
        }
    }

    /// Whether this is one of the pod's own addresses.
    #[inline(always)]
    pub fn owns(&self, addr: &Addr) -> bool {
        addr.is_either(&self.v4, &self.v6)
    }

    /// Whether no address of its own is known.
    #[inline(always)]
    pub const fn is_unaddressed(&self) -> bool {
        self.v4.is_unspecified() && self.v6.is_unspecified()
    }

    /// Whether what it sends passes fewer hooks than a pod's that is wholly covered: nobody knows
    /// it, or its policy has no boundary at its interface.
    #[inline(always)]
    pub fn is_exposed(&self) -> bool {
        let covered =
            self.policy == PolicyId::NONE || self.flags & (Pod::BOUNDARY | Pod::HOST) != 0;
        self.unknown || !covered
    }

    /// Whether the wall leaves a drop to the boundary: only that can answer the pod. What leaves by
    /// any other way, and what the boundary would not answer, the wall drops itself.
    #[inline(always)]
    pub const fn defers(&self, packet: &Packet) -> bool {
        self.answers && self.guarded && packet.is_answerable()
    }

    /// Whether it shares the node's network.
    #[inline(always)]
    pub const fn on_host(&self) -> bool {
        self.flags & Pod::HOST != 0
    }

    /// What a reason becomes for this subject: the source guard has a mode of its own.
    #[inline(always)]
    pub const fn verdict(&self, reason: Reason) -> Verdict {
        // Both are asked: of a choice between them the compiler makes one between their places, in a
        // way that the kernel's verifier refuses.
        let (own, guarded) = (self.mode.verdict(reason), self.guard.verdict(reason));
        if matches!(reason, Reason::SpoofedSource) { guarded } else { own }
    }
}

impl Pod {
    /// Whether this is one of its own addresses.
    #[inline(always)]
    pub fn owns(&self, addr: &Addr) -> bool {
        addr.is_either(&self.v4, &self.v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Hook, Shape, protocol, tcp};

    const POD: Pod = Pod {
        id: PodId(1),
        policy: PolicyId(2),
        capture: 0,
        flags: 0,
        mac: [0; 6],
        proxy_uid: Pod::NO_PROXY,
        proxy_gid: Pod::NO_PROXY,
        v4: Addr::UNSPECIFIED,
        v6: Addr::UNSPECIFIED,
        namespace: NamespaceId(3),
        guarded: 0,
        netns: 0,
    };

    fn subject(mode: Mode, on_loss: OnAgentLoss, guard: Mode, silence: u64) -> Subject {
        let policy = Policy::new(mode, on_loss);
        let config = Config { lease: 100, guard: guard.number(), ..Config::default() };
        Subject::of(&POD, Some(&policy), &config, silence)
    }

    #[test]
    fn an_expired_lease_changes_only_what_the_policy_says() {
        for (on_loss, mode, deny_new) in [
            (OnAgentLoss::Hold, Mode::Enforce, false),
            (OnAgentLoss::DenyNew, Mode::Enforce, true),
            (OnAgentLoss::Audit, Mode::Audit, false),
        ] {
            let fresh = subject(Mode::Enforce, on_loss, Mode::Off, 100);
            assert_eq!((fresh.mode, fresh.deny_new), (Mode::Enforce, false));
            let stale = subject(Mode::Enforce, on_loss, Mode::Off, 101);
            assert_eq!((stale.mode, stale.deny_new), (mode, deny_new), "{on_loss}");
        }
        // A lease never turns enforcement on.
        assert_eq!(subject(Mode::Off, OnAgentLoss::Audit, Mode::Off, 101).mode, Mode::Off);
    }

    #[test]
    fn a_pod_owns_its_addresses_and_not_the_absence_of_one() {
        let v4 = Addr::v4([10, 0, 1, 2]);
        let subject = Subject { v4, ..Subject::of(&POD, None, &Config::default(), 0) };
        assert!(subject.owns(&v4));
        assert!(!subject.owns(&Addr::v4([10, 0, 1, 3])));
        assert!(!subject.owns(&Addr::UNSPECIFIED));
    }

    #[test]
    fn a_pod_on_the_nodes_network_is_audited_until_its_policy_opts_it_in() {
        let of = |flags, mode| {
            let pod = Pod { flags, ..POD };
            let policy = Policy::new(mode, OnAgentLoss::Hold);
            Subject::of(&pod, Some(&policy), &Config::default(), 0)
        };
        let audited = of(Pod::HOST | Pod::AUDITED, Mode::Enforce);
        assert_eq!(audited.verdict(Reason::NotGateway), Verdict::Audit);
        assert_eq!(of(Pod::HOST, Mode::Enforce).verdict(Reason::NotGateway), Verdict::Drop);
        assert_eq!(of(Pod::HOST | Pod::AUDITED, Mode::Off).mode, Mode::Off);
        // Nor does a missing policy entry, which is judged in mode enforce.
        let pod = Pod { flags: Pod::HOST | Pod::AUDITED, ..POD };
        assert_eq!(Subject::of(&pod, None, &Config::default(), 0).mode, Mode::Audit);
    }

    #[test]
    fn a_missing_policy_entry_never_widens() {
        let subject = Subject::of(&POD, None, &Config::default(), 0);
        assert_eq!(subject.mode, Mode::Enforce);
    }

    #[test]
    fn the_source_guard_is_at_least_as_strict_as_the_policy() {
        let guarded = subject(Mode::Audit, OnAgentLoss::Hold, Mode::Enforce, 0);
        assert_eq!(guarded.verdict(Reason::SpoofedSource), Verdict::Drop);
        assert_eq!(guarded.verdict(Reason::NotGateway), Verdict::Audit);
        let enforced = subject(Mode::Enforce, OnAgentLoss::Hold, Mode::Off, 0);
        assert_eq!(enforced.verdict(Reason::SpoofedSource), Verdict::Drop);
    }

    #[test]
    fn the_wall_leaves_only_to_a_boundary_that_is_there_what_that_can_answer() {
        let answering = Policy {
            deny_response: DenyResponse::Reset.number(),
            ..Policy::new(Mode::Enforce, OnAgentLoss::Hold)
        };
        let syn = Packet {
            protocol: protocol::TCP,
            tcp_flags: tcp::SYN,
            shape: Shape::Ip,
            dst: Addr::v4([203, 0, 113, 10]),
            ..Packet::unparsed(Hook::Wall)
        };
        let of = |policy: &Policy, guarded| Subject {
            guarded,
            ..Subject::of(&POD, Some(policy), &Config::default(), 0)
        };
        assert!(of(&answering, true).defers(&syn));
        assert!(!of(&answering, false).defers(&syn));
        let silent = Policy::new(Mode::Enforce, OnAgentLoss::Hold);
        assert!(!of(&silent, true).defers(&syn));
        for unanswered in [
            Packet { tcp_flags: tcp::RST, ..syn },
            Packet { protocol: protocol::ICMP, ..syn },
            Packet { shape: Shape::Fragment, ..syn },
            Packet { dst: Addr::v4([224, 0, 0, 1]), ..syn },
        ] {
            assert!(!of(&answering, true).defers(&unanswered), "{unanswered:?}");
        }
    }
}
