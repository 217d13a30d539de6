//! Golden records, attribution and the output.

use egress_common::key::{Addr, GatewayId, PodId, PolicyId};
use egress_common::packet::{Hook, protocol, tcp};
use egress_common::state::Capture;
use egress_common::{Mode, Reason, Verdict};
use jiff::Timestamp;
use serde_json::json;

use super::aggregate::{Process, Report};
use super::attribute::Named;
use super::*;
use crate::policy::{Coverage, CoverageState, Declaration, Desired, ObjectName, Origin, Snapshot};

fn event(hook: Hook) -> Event {
    let mut event = Event::read(&[0; Event::SIZE]).unwrap();
    event.time = crate::clock::boot_clock();
    event.pod = PodId::of("uid-1");
    event.policy = PolicyId::of("shop");
    event.generation = 3;
    event.uid = u32::MAX;
    event.src = Addr::v4([10, 10, 1, 2]);
    event.src_port = 40000;
    event.dst = Addr::v4([203, 0, 113, 10]);
    event.dst_port = 443;
    event.protocol = protocol::TCP;
    event.tcp_flags = tcp::SYN;
    event.hook = hook.number();
    event.verdict = Verdict::Drop.number();
    event.reason = Reason::NotGateway.number();
    event.line = 13;
    event.counted = 1;
    event.len = 74;
    event
}

fn report(event: Event) -> Report {
    Report { event, process: None, count: 1, first: event.time, last: event.time }
}

fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn origin(kind: &str, name: &str) -> Origin {
    Origin { kind: kind.to_owned(), name: name.to_owned(), file: None }
}

fn state(capture: Capture) -> AgentState {
    let mut desired = Desired::default();
    desired.coverage.push(Coverage {
        pod: name("shop", "cart-0"),
        uid: "uid-1".to_owned(),
        workload: ("Deployment".to_owned(), "cart".to_owned()),
        policy: Some("shop".to_owned()),
        mode: Mode::Enforce,
        capture,
        cgroup: Some(1),
        ifindex: Some(2),
        state: CoverageState::Covered,
    });
    desired.origins.policies.insert(PolicyId::of("shop"), origin("EgressPolicy", "shop"));
    let declaration = Declaration {
        name: name("shop", "stripe"),
        hosts: vec!["api.stripe.com".to_owned()],
        addresses: vec!["203.0.113.0/24".parse().unwrap()],
        ports: vec![443],
        dialled: Default::default(),
        endpoints: Vec::new(),
        endpoint_hosts: Vec::new(),
        expected: Vec::new(),
        location: Default::default(),
        resolution: Default::default(),
        export_to: vec!["*".to_owned()],
        routed_by: Vec::new(),
        origin: origin("ServiceEntry", "shop/stripe"),
    };
    AgentState::of(Snapshot { declarations: vec![declaration], ..Snapshot::default() }, desired)
}

/// A record whose times do not depend on when the test runs.
fn named(report: &Report, capture: Capture) -> Named {
    Named {
        first: Timestamp::from_millisecond(1_764_000_000_000).unwrap(),
        last: Timestamp::from_millisecond(1_764_000_001_500).unwrap(),
        ..attribute(report, &state(capture), 7)
    }
}

#[test]
fn a_refused_call_is_one_readable_line() {
    let process = Process { pid: 4711, uid: 1000, comm: "curl".to_owned() };
    let report = Report { process: Some(process), count: 12, ..report(event(Hook::Connect4)) };
    assert_eq!(
        compact::line(&named(&report, Capture::None)),
        "16:00:01 DROP  shop/cart-0 (Deployment/cart) -> 203.0.113.10:443/tcp  not_gateway  \
         curl[4711] uid 1000  declared by shop/stripe  [connect4 line 13, gen 3] x12"
    );
}

#[test]
fn a_packet_of_an_unknown_pod_says_what_is_known() {
    let unknown = Event {
        pod: PodId::UNKNOWN,
        policy: PolicyId::NONE,
        dst: Addr::from("2001:db8::1".parse::<std::net::IpAddr>().unwrap()),
        protocol: protocol::UDP,
        verdict: Verdict::Audit.number(),
        reason: Reason::UnknownPod.number(),
        uid: 1337,
        ..event(Hook::Wall)
    };
    assert_eq!(
        compact::line(&named(&report(unknown), Capture::None)),
        "16:00:01 AUDIT unknown pod -> [2001:db8::1]:443/udp  unknown_pod  uid 1337  \
         [wall line 13, gen 3]"
    );
}

#[test]
fn a_process_cannot_write_lines_of_its_own() {
    let forged = Process { pid: 1, uid: 0, comm: "x\n12:00:00 \u{1b}[2J".to_owned() };
    let report = Report { process: Some(forged), ..report(event(Hook::Connect4)) };
    let line = compact::line(&named(&report, Capture::None));
    assert!(!line.contains(char::is_control), "{line:?}");
}

#[test]
fn a_drop_in_ocsf() {
    let process = Process { pid: 4711, uid: 1000, comm: "curl".to_owned() };
    let report = Report { process: Some(process), count: 12, ..report(event(Hook::Connect4)) };
    let mut object = ocsf::object(&named(&report, Capture::None));
    // The message is the compact line, which has its own test.
    assert!(object.as_object_mut().unwrap().remove("message").unwrap().is_string());
    let expected = json!({
        "activity_id": 5,
        "category_uid": 4,
        "class_uid": 4001,
        "type_uid": 400_105,
        "time": 1_764_000_001_500_i64,
        "start_time": 1_764_000_000_000_i64,
        "end_time": 1_764_000_001_500_i64,
        "count": 12,
        "severity_id": 3,
        "status_id": 2,
        "status_code": "not_gateway",
        "action_id": 2,
        "disposition_id": 6,
        "is_alert": true,
        "firewall_rule": { "uid": "line-13", "name": "not_gateway", "version": "gen-3" },
        "policy": { "uid": "shop", "name": "shop", "version": "gen-3" },
        "metadata": {
            "version": "1.6.0",
            "product": {
                "name": "Egress Enforcer",
                "vendor_name": "Egress Enforcer",
                "version": env!("CARGO_PKG_VERSION"),
            },
            "profiles": ["security_control", "host"],
            "uid": "node-a-1764000000000000000-7",
            "sequence": 7,
            "log_name": "egress",
        },
        "device": { "type_id": 99, "type": "Kubernetes node", "hostname": "node-a" },
        "actor": { "process": { "pid": 4711, "name": "curl", "user": { "uid": "1000" } } },
        "src_endpoint": {
            "type_id": 99,
            "type": "Pod",
            "name": "shop/cart-0",
            "uid": "uid-1",
            "svc_name": "cart",
        },
        "dst_endpoint": { "ip": "203.0.113.10", "port": 443 },
        "connection_info": {
            "protocol_num": 6,
            "protocol_name": "tcp",
            "protocol_ver_id": 4,
            "direction_id": 2,
        },
        "unmapped": {
            "k8s.namespace.name": "shop",
            "k8s.pod.name": "cart-0",
            "k8s.workload.kind": "Deployment",
            "k8s.workload.name": "cart",
            "k8s.node.name": "node-a",
            "egress.verdict": "drop",
            "egress.hook": "connect4",
            "egress.capture": "none",
            "egress.gateway": "",
            "egress.evasion": false,
            "egress.declaration": "declared",
            "egress.declared_by": "shop/stripe",
            "egress.packet_bytes": 74,
            "egress.socket_uid": null,
        },
    });
    assert_eq!(object, expected, "{object:#}");
}

#[test]
fn an_audited_packet_is_observed_and_logged_never_allowed() {
    let audited = Event { verdict: Verdict::Audit.number(), ..event(Hook::PodEgress) };
    let object = ocsf::object(&named(&report(audited), Capture::Sidecar));
    let ids =
        ["activity_id", "type_uid", "severity_id", "status_id", "action_id", "disposition_id"]
            .map(|key| object[key].as_i64());
    assert_eq!(ids, [1, 400_101, 2, 1, 3, 17].map(Some));
    assert_eq!(object["src_endpoint"]["ip"], "10.10.1.2");
    assert_eq!(object["src_endpoint"]["port"], 40000);
    assert!(object.get("actor").is_none());
}

#[test]
fn an_evasion_is_a_packet_no_call_stands_behind() {
    let process = Some(Process { pid: 1, uid: 0, comm: String::new() });
    let packet = event(Hook::PodEgress);
    let with = |reason: Reason| Event { reason: reason.number(), ..packet };
    let cases = [
        ("raw socket", true, Capture::None, report(packet)),
        ("raw UDP", true, Capture::None, report(Event { protocol: protocol::UDP, ..packet })),
        ("raw socket at the wall", true, Capture::None, report(event(Hook::Wall))),
        ("a call", false, Capture::None, report(event(Hook::Connect4))),
        ("an audited call", false, Capture::None, Report { process, ..report(packet) }),
        ("a captured pod", false, Capture::Sidecar, report(packet)),
        ("ping", false, Capture::None, report(Event { protocol: protocol::ICMP, ..packet })),
        ("an old connection", false, Capture::None, report(Event { tcp_flags: 0x10, ..packet })),
        ("a fragment", false, Capture::None, report(with(Reason::Fragment))),
        ("a spoofed source", false, Capture::None, report(with(Reason::SpoofedSource))),
    ];
    for (what, expected, capture, report) in cases {
        assert_eq!(named(&report, capture).evasion, expected, "{what}");
    }
}

#[test]
fn names_come_from_the_state_and_only_where_they_match() {
    let known = named(&report(event(Hook::PodEgress)), Capture::None);
    assert_eq!((known.pod.as_str(), known.policy.as_str()), ("cart-0", "shop"));
    assert_eq!(known.declared_by.as_deref(), Some("shop/stripe"));
    let elsewhere = Event { dst_port: 80, gateway: GatewayId(9), ..event(Hook::PodEgress) };
    let elsewhere = named(&report(elsewhere), Capture::None);
    assert_eq!((elsewhere.declared_by, elsewhere.gateway.as_str()), (None, ""));
}

#[test]
fn a_file_moved_away_is_opened_anew_and_sequence_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let mut outlet = Outlet::open(EventFormat::Ocsf, Some(&path)).unwrap();
    let state = state(Capture::None);
    outlet.write(&report(event(Hook::Wall)), &state);
    std::fs::rename(&path, dir.path().join("events.1")).unwrap();
    outlet.write(&report(event(Hook::Wall)), &state);
    let sequence = |name: &str| {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1, "{text}");
        lines[0]["metadata"]["sequence"].clone()
    };
    assert_eq!((sequence("events.1"), sequence("events.jsonl")), (json!(1), json!(2)));
}

#[test]
fn a_record_that_cannot_be_written_is_counted_and_leaves_a_gap() {
    let mut outlet = Outlet::open(EventFormat::Compact, Some(Path::new("/dev/full"))).unwrap();
    outlet.write(&report(event(Hook::Wall)), &state(Capture::None));
    let lost: Vec<_> = outlet.lost().counts().collect();
    assert_eq!(lost, [("decode", 0), ("aggregate", 0), ("write", 1)]);
    assert_eq!(outlet.sequence, 1);
}

#[tokio::test]
async fn what_is_open_is_written_when_the_agent_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.txt");
    let outlet = Outlet::open(EventFormat::Compact, Some(&path)).unwrap();
    let lost = outlet.lost();
    let (trigger, shutdown) = crate::supervise::pair();
    let (_states, seen) = watch::channel(Arc::new(state(Capture::None)));
    let ring = [Ok(event(Hook::Wall)), Err(BadSample { len: 3 })].into_iter();
    trigger.request();
    let (_told, findings) = mpsc::channel(1);
    run(ring, outlet, Sources { states: seen, findings }, shutdown).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    assert_eq!(lost.counts().next(), Some(("decode", 1)));
}
