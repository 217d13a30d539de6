//! What is compared: each program where the verdict order reads differently.

use egress_agent::policy::Tables;
use egress_common::Mode;
use egress_common::key::{Addr, ExactKey, PodId, PolicyId};
use egress_common::state::{DenyResponse, Exact, OnAgentLoss, Pod, Policy, Rate, Target};
use egress_tests::kernel::{LOOPBACK, POLICY, Stand, pod};

/// Connections that the rate of the boundary's part allows.
pub(crate) const TOKENS: u64 = 4;

/// One program under one set of tables.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    /// What comes in first runs through this one.
    pub(crate) tracker: Option<&'static str>,
    /// Of sixteen frames, how many are its own.
    pub(crate) share: u64,
    pub(crate) tables: fn(&mut Tables, Stand),
}

fn in_policy(tables: &mut Tables, change: impl FnOnce(&mut Policy)) {
    change(tables.policies.get_mut(&POLICY).expect("the policy"));
}

/// The pod at the wall, by its cgroup, without a boundary.
fn at_wall(tables: &mut Tables, stand: Stand, flags: u8) {
    tables.config.kubepods_level = stand.level;
    tables.pods.insert(stand.cgroup, Pod { flags, mac: [0; 6], ..pod() });
}

const BOUNDARY: Part = Part {
    name: "the boundary",
    program: "pod_egress",
    tracker: Some("pod_ingress"),
    share: 4,
    tables: |tables, _| {
        let interval = 1_000_000_000_000_000;
        let pod_rate = Rate { interval, tolerance: interval * (TOKENS - 1) };
        in_policy(tables, |policy| policy.pod_rate = pod_rate);
    },
};

pub(crate) const PARTS: [Part; 12] = [
    BOUNDARY,
    Part {
        name: "a boundary that answers",
        tracker: None,
        share: 1,
        tables: |tables, _| {
            in_policy(tables, |policy| policy.deny_response = DenyResponse::Reset.number());
        },
        ..BOUNDARY
    },
    Part {
        name: "the boundary in audit",
        share: 1,
        tables: |tables, _| in_policy(tables, |policy| policy.mode = Mode::Audit.number()),
        ..BOUNDARY
    },
    Part {
        name: "an expired lease",
        share: 1,
        tables: |tables, _| {
            tables.config.lease = 1;
            tables.policies.insert(POLICY, Policy::new(Mode::Enforce, OnAgentLoss::DenyNew));
        },
        ..BOUNDARY
    },
    Part {
        name: "a socket of somebody else",
        share: 1,
        tables: |tables, stand| {
            // The run's socket is this other pod's.
            at_wall(tables, stand, 0);
            tables.pods.get_mut(&stand.cgroup).expect("the pod").id = PodId(2);
            tables.interfaces.get_mut(&LOOPBACK).expect("the pod").flags |= Pod::OWNER;
        },
        ..BOUNDARY
    },
    Part {
        name: "a pod nobody governs",
        tracker: None,
        share: 1,
        tables: |tables, _| {
            tables.config.guard = Mode::Enforce.number();
            tables.interfaces.insert(LOOPBACK, Pod { policy: PolicyId::NONE, ..pod() });
        },
        ..BOUNDARY
    },
    Part {
        name: "a gateway limited to what names resolved to",
        share: 1,
        tables: |tables, _| {
            tables.interfaces.get_mut(&LOOPBACK).expect("the pod").flags |= Pod::LIMITED;
            let outside = Addr::v4([203, 0, 113, 10]);
            for (port, target) in [(443, Target::Resolved), (8443, Target::Earlier)] {
                let key = ExactKey::new(POLICY, outside, 6, port);
                tables.exact.insert(key, Exact::plain(target));
            }
        },
        ..BOUNDARY
    },
    Part {
        name: "the wall",
        program: "wall",
        tracker: Some("wall_ingress"),
        share: 2,
        tables: |tables, stand| at_wall(tables, stand, 0),
    },
    Part {
        name: "the wall before a boundary",
        program: "wall",
        tracker: None,
        share: 1,
        tables: |tables, stand| {
            in_policy(tables, |policy| policy.deny_response = DenyResponse::Reset.number());
            at_wall(tables, stand, Pod::BOUNDARY);
            tables.pods.get_mut(&stand.cgroup).expect("the pod").guarded = stand.ifindex;
        },
    },
    Part {
        name: "the wall before a pod on the node's network",
        program: "wall",
        tracker: Some("wall_ingress"),
        share: 1,
        tables: |tables, stand| {
            at_wall(tables, stand, Pod::HOST);
            let pod = tables.pods.get_mut(&stand.cgroup).expect("the pod");
            (pod.v4, pod.v6) = (Addr::UNSPECIFIED, Addr::UNSPECIFIED);
        },
    },
    Part {
        name: "the wall before a pod nobody knows",
        program: "wall",
        tracker: Some("wall_ingress"),
        share: 1,
        tables: |tables, stand| {
            tables.config.kubepods_level = stand.level;
            tables.config.unknown_pod = Mode::Enforce.number();
        },
    },
    Part {
        name: "the uplink",
        program: "uplink_egress",
        tracker: None,
        share: 1,
        tables: |_, _| {},
    },
];
