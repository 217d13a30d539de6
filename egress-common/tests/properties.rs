//! What must hold for every packet, subject and table.

use std::collections::BTreeMap;

use egress_common::key::{
    AddressKey, ExactKey, ExceptionKey, GatewayId, NamespaceId, PodId, PolicyId, RangeKey, ReplyKey,
};
use egress_common::packet::{Hook, Icmp, Shape};
use egress_common::state::{Capture, Exact, Exception, Range, Target, range};
use egress_common::{Addr, Lookup, Mode, Packet, Reason, Subject, Verdict, decide};
use proptest::prelude::*;

/// Tables that answer anything at all for the keys they hold.
#[derive(Clone, Debug, Default)]
struct Tables {
    exact: BTreeMap<ExactKey, Exact>,
    addresses: u32,
    range: Range,
    exception: Option<Exception>,
    reply: bool,
    over_rate: bool,
    foreign: bool,
}

impl Lookup for Tables {
    fn exact(&self, key: &ExactKey) -> Option<Exact> {
        self.exact.get(key).copied()
    }
    fn address(&self, _: &AddressKey) -> u32 {
        self.addresses
    }
    fn range(&self, _: &RangeKey) -> Range {
        self.range
    }
    fn exception(&self, _: &ExceptionKey) -> Option<Exception> {
        self.exception
    }
    fn reply(&self, _: &ReplyKey) -> bool {
        self.reply
    }
    fn over_rate(&self, _: &Subject, _: GatewayId) -> bool {
        self.over_rate
    }
    fn foreign_socket(&self, _: &Subject) -> bool {
        self.foreign
    }
    fn now(&self) -> u64 {
        1000
    }
}

fn addr() -> impl Strategy<Value = Addr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(Addr::v4),
        any::<[u8; 16]>().prop_map(Addr::new),
        Just(Addr::v4([10, 0, 1, 2])),
        Just(Addr::v4([127, 0, 0, 1])),
        Just(Addr::UNSPECIFIED),
    ]
}

fn subject() -> impl Strategy<Value = Subject> {
    let modes = prop::sample::select(Mode::ALL);
    let captures = prop::sample::select(Capture::ALL);
    (modes.clone(), modes, captures, any::<(bool, bool, u32, [u8; 6])>(), addr(), addr()).prop_map(
        |(mode, guard, capture, (deny_new, unknown, policy, mac), v4, v6)| Subject {
            pod: PodId(1),
            policy: PolicyId(policy % 3),
            mode,
            guard: mode.max(guard),
            capture,
            flags: 0,
            deny_new,
            unknown,
            mac,
            v4,
            v6,
            namespace: NamespaceId(1),
            answers: false,
            guarded: false,
            redirects: false,
            outside: Reason::NotGateway,
        },
    )
}

fn packet() -> impl Strategy<Value = Packet> {
    let kinds = (
        prop::sample::select(Hook::ALL),
        prop::sample::select(Shape::ALL),
        prop::sample::select(Icmp::ALL),
        prop::sample::select(&[0u8, 1, 4, 6, 17, 41, 47, 58, 132, 255][..]),
    );
    let ports = prop_oneof![Just(53u16), Just(853), Just(443), Just(4789), any::<u16>()];
    (kinds, any::<(bool, bool, bool, u8, [u8; 6], [u8; 6], u16)>(), ports, addr(), addr(), addr())
        .prop_map(
            |(
                (hook, shape, icmp, protocol),
                (on_loopback, is_v6, has_payload, tcp_flags, src_mac, arp_mac, src_port),
                dst_port,
                src,
                dst,
                target,
            )| Packet {
                hook,
                shape,
                icmp,
                on_loopback,
                is_v6,
                protocol,
                flow_protocol: protocol,
                tcp_flags,
                src_mac,
                arp_mac,
                src_port,
                dst_port,
                src,
                dst,
                target,
                has_payload,
                pad: [0; 3],
            },
        )
}

fn tables(packet: &Packet, subject: &Subject) -> impl Strategy<Value = Tables> + use<> {
    let key = ExactKey::new(subject.policy, packet.dst, packet.protocol, packet.dst_port);
    (
        any::<Option<(u8, u32)>>(),
        any::<(u32, u32, u32)>(),
        any::<Option<u64>>(),
        any::<(bool, bool, bool)>(),
    )
        .prop_map(
            move |(
                exact,
                (addresses, kinds, exceptions),
                exception,
                (reply, over_rate, foreign),
            )| Tables {
                exact: exact
                    .map(|(target, gateway)| {
                        (
                            key,
                            Exact { gateway: GatewayId(gateway), target: target % 8, pad: [0; 3] },
                        )
                    })
                    .into_iter()
                    .collect(),
                addresses: addresses % 8,
                range: Range { kinds: kinds % 32, exceptions: exceptions % 2 },
                exception: exception.map(|expires| Exception { expires }),
                reply,
                over_rate,
                foreign,
            },
        )
}

fn anything() -> impl Strategy<Value = (Subject, Packet, Tables)> {
    (subject(), packet()).prop_flat_map(|(subject, packet)| {
        let tables = tables(&packet, &subject);
        (Just(subject), Just(packet), tables)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// No input panics, and every ruling has a line of the order and a verdict of its mode.
    #[test]
    fn every_input_gets_a_ruling((subject, packet, tables) in anything()) {
        let ruling = decide(&subject, &packet, &tables);
        prop_assert!(ruling.line <= 16);
        let verdict = subject.verdict(ruling.reason);
        prop_assert_eq!(verdict == Verdict::Drop && !ruling.reason.denies(), false);
    }

    /// Nothing known, nothing allowed: only what stays on the link or in the pod, and what
    /// nobody governs.
    #[test]
    fn empty_tables_allow_nothing_to_go_anywhere((subject, packet, _) in anything()) {
        let ruling = decide(&subject, &packet, &Tables::default());
        if !ruling.reason.denies() {
            prop_assert!(matches!(ruling.reason, Reason::Local | Reason::Exempt), "{:?}", ruling);
        }
    }

    /// Audit reports exactly what enforce drops, for exactly the same reason.
    #[test]
    fn audit_differs_from_enforce_only_in_the_verdict((subject, packet, tables) in anything()) {
        let audit = Subject { mode: Mode::Audit, guard: Mode::Audit, ..subject };
        let enforce = Subject { mode: Mode::Enforce, guard: Mode::Enforce, ..subject };
        let ruling = decide(&audit, &packet, &tables);
        prop_assert_eq!(ruling, decide(&enforce, &packet, &tables));
        let verdicts = (audit.verdict(ruling.reason), enforce.verdict(ruling.reason));
        let expected = if ruling.reason.denies() {
            (Verdict::Audit, Verdict::Drop)
        } else {
            (Verdict::Allow, Verdict::Allow)
        };
        prop_assert_eq!(verdicts, expected);
    }

    /// An IPv4 destination and its mapped form are one destination, at every socket hook.
    #[test]
    fn v4_and_mapped_v6_calls_agree(
        (subject, packet, tables) in anything(),
        octets in any::<[u8; 4]>(),
    ) {
        let [a, b, c, d] = octets;
        let mapped = Addr::new([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]);
        let call = |hook, dst| {
            Packet::call(hook, packet.protocol, dst, packet.dst_port, packet.src_port)
        };
        for (plain, other) in [(Hook::Connect4, Hook::Connect6), (Hook::Sendmsg4, Hook::Sendmsg6)] {
            prop_assert_eq!(
                decide(&subject, &call(plain, Addr::v4(octets)), &tables),
                decide(&subject, &call(other, mapped), &tables)
            );
        }
    }

    /// A later line never overrules an earlier one: whatever is added at a destination that is
    /// denied by lines 2 to 8 stays denied.
    #[test]
    fn an_allowance_never_reaches_behind_an_earlier_denial((subject, packet, tables) in anything()) {
        let before = decide(&subject, &packet, &tables);
        // A tunnel's port in the cluster is open to what names it, but never on a node.
        let named = before.reason == Reason::Tunnel && !tables.range.has(range::NODE);
        if before.reason.denies() && (2..=7).contains(&before.line) && before.reason != Reason::Protocol
            && before.reason != Reason::HiddenExternal && !named
        {
            let key = ExactKey::new(subject.policy, packet.dst, packet.protocol, packet.dst_port);
            for target in [Target::Gateway, Target::Infrastructure, Target::Node] {
                let mut more = tables.clone();
                more.exact.insert(key, Exact::plain(target));
                prop_assert_eq!(decide(&subject, &packet, &more), before);
            }
        }
    }
}
