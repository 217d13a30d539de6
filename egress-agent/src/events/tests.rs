//! Golden records, attribution and the output.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use egress_common::key::{Addr, GatewayId, PodId, PolicyId};
use egress_common::packet::{Hook, protocol, tcp};
use egress_common::state::Capture;
use egress_common::{Mode, Reason, Verdict};
use jiff::Timestamp;
use serde_json::json;

use super::aggregate::{Process, Report};
use super::attribute::Named;
use super::*;
use crate::policy::{
    Coverage, CoverageState, Declaration, Desired, ObjectName, Origin, Pod, Snapshot,
};

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
    event.cgroup = 5;
    event
}

fn report(event: Event) -> Report {
    Report { event, process: None, count: 1, own: 1, first: event.time, last: event.time }
}

fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn origin(kind: &str, name: &str) -> Origin {
    Origin { kind: kind.to_owned(), name: name.to_owned(), file: None }
}

fn pod(capture: Capture) -> Pod {
    Pod {
        uid: "uid-1".to_owned(),
        cgroup_uid: "uid-1".to_owned(),
        name: name("shop", "cart-0"),
        labels: BTreeMap::new(),
        service_account: "default".to_owned(),
        node: Some("node-a".to_owned()),
        ips: vec!["10.10.1.2".parse().unwrap()],
        running: true,
        ready: true,
        quarantined: false,
        interception: Default::default(),
        containers: BTreeMap::from([("0123".to_owned(), "app".to_owned())]),
        finished: false,
        host_network: false,
        capture,
        proxy: (capture == Capture::Sidecar).then_some((1337, 1337)),
        workload: ("Deployment".to_owned(), "cart".to_owned()),
        origin: origin("Pod", "shop/cart-0"),
    }
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
        location: Default::default(),
        resolution: Default::default(),
        export_to: vec!["*".to_owned()],
        routed_by: Vec::new(),
        origin: origin("ServiceEntry", "shop/stripe"),
    };
    let pods = BTreeMap::from([("uid-1".to_owned(), pod(capture))]);
    AgentState::of(
        Snapshot { declarations: vec![declaration], pods, ..Snapshot::default() },
        desired,
    )
}

/// A record whose times do not depend on when the test runs.
fn named(report: &Report, capture: Capture) -> Named {
    Named {
        first: Timestamp::from_millisecond(1_764_000_000_000).unwrap(),
        last: Timestamp::from_millisecond(1_764_000_001_500).unwrap(),
        ..with_pod(report, &state(capture))
    }
}

/// Container `app` of the pod is behind the events.
fn with_pod(report: &Report, state: &AgentState) -> Named {
    let given = Tally { stream: 0xabc, sequence: 7, ..Tally::default() };
    let mut containers = Containers::of(5, "uid-1", "0123");
    let name_of: NameOf = Arc::new(|pod, ip| {
        let asked = pod == PodId::of("uid-1") && ip.to_string() == "203.0.113.80";
        asked.then(|| "pay.example.com".to_owned())
    });
    attribute(report, state, &given, &mut containers, &name_of)
}

#[test]
fn a_refused_call_is_one_readable_line() {
    let process = Process { pid: 4711, uid: 1000, comm: "curl".to_owned() };
    let report = Report { process: Some(process), count: 12, ..report(event(Hook::Connect4)) };
    assert_eq!(
        compact::line(&named(&report, Capture::None)),
        "16:00:01 DROP  shop/cart-0 (Deployment/cart) -> 203.0.113.10:443/tcp  not_gateway \
         by no_sidecar  container app  curl[4711] uid 1000  declared by shop/stripe  [connect4 line 13, gen 3] x12"
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
            "uid": "node-a-abc-7",
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
    });
    let unmapped = json!({
        "k8s.namespace.name": "shop",
        "k8s.pod.name": "cart-0",
        "k8s.workload.kind": "Deployment",
        "k8s.workload.name": "cart",
        "k8s.node.name": "node-a",
        "egress.verdict": "drop",
        "egress.hook": "connect4",
        "k8s.container.name": "app",
        "container.id": "0123",
        "egress.capture": "none",
        "egress.mechanism": "no_sidecar",
        "egress.stream": "abc",
        "egress.decisions": 1,
        "egress.gateway": "",
        "egress.evasion": false,
        "egress.declaration": "declared",
        "egress.declared_by": "shop/stripe",
        "egress.packet_bytes": 74,
        "egress.socket_uid": null,
    });
    assert_eq!(object.as_object_mut().unwrap().remove("unmapped"), Some(unmapped));
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
fn another_namespace_is_told_that_something_is_declared_and_not_by_whom() {
    let mut state = state(Capture::None);
    let mut snapshot = Snapshot::clone(&state.snapshot);
    snapshot.declarations[0].name = name("bank", "payments");
    snapshot.declarations[0].export_to = vec![".".to_owned()];
    state.snapshot = Arc::new(snapshot);
    let named = with_pod(&report(event(Hook::PodEgress)), &state);
    let (line, object) = (compact::line(&named), ocsf::object(&named).to_string());
    assert!(line.contains("declared for other namespaces"), "{line}");
    assert!(object.contains("other_namespace"), "{object}");
    for text in [line, object] {
        assert!(!text.contains("bank") && !text.contains("payments"), "{text}");
    }
}

#[test]
fn the_name_that_was_looked_up_stands_beside_the_address() {
    let looked_up = Event { dst: Addr::v4([203, 0, 113, 80]), ..event(Hook::PodEgress) };
    let named = named(&report(looked_up), Capture::None);
    assert!(compact::line(&named).contains("203.0.113.80:443/tcp (pay.example.com)  not_gateway"));
    assert_eq!(ocsf::object(&named)["dst_endpoint"]["hostname"], "pay.example.com");
}

#[test]
fn a_packet_at_the_uplink_names_the_pod_whose_address_it_still_has() {
    let at_uplink = Event { pod: PodId::UNKNOWN, ..event(Hook::UplinkEgress) };
    assert_eq!(named(&report(at_uplink), Capture::None).pod, "cart-0");
    let translated = Event { src: Addr::v4([192, 0, 2, 1]), ..at_uplink };
    assert_eq!(named(&report(translated), Capture::None).pod, "");
}

#[test]
fn a_socket_of_another_pods_container_names_no_container() {
    let mut state = state(Capture::None);
    let mut snapshot = Snapshot::clone(&state.snapshot);
    snapshot.pods.get_mut("uid-1").unwrap().cgroup_uid = "other".to_owned();
    state.snapshot = Arc::new(snapshot);
    assert_eq!(with_pod(&report(event(Hook::PodEgress)), &state).container, None);
}

/// Runs a desk on these samples until shutdown, which is asked for at once; the last tally.
async fn desk(
    format: EventFormat,
    path: &Path,
    ring: Vec<Result<Event, BadSample>>,
    left: Tally,
) -> Tally {
    let outlet = Outlet::open(Some(path), Rotation::default()).unwrap();
    let desk = Desk::with(format, outlet, Containers::default());
    let (trigger, shutdown) = supervise::pair();
    let (_states, seen) = watch::channel(Arc::new(state(Capture::None)));
    trigger.request();
    let mut kept = Tally::default();
    run(ring.into_iter(), desk, left, |tally| kept = tally, seen, shutdown).await.unwrap();
    kept
}

#[tokio::test]
async fn what_is_open_is_written_when_the_agent_stops_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    let ring = || vec![Ok(event(Hook::Wall)), Err(BadSample { len: 3 })];
    let first = desk(EventFormat::Ocsf, &path, ring(), Tally::default()).await;
    assert_eq!((first.read, first.told, first.written), (2, 1, 1));
    assert_eq!(first.lost[tally::DECODE], 1);
    let second = desk(EventFormat::Ocsf, &path, ring(), first).await;
    assert_eq!((second.stream, second.read, second.told), (first.stream, 4, 2));
    let text = std::fs::read_to_string(&path).unwrap();
    let sequences: Vec<u64> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|event| event["metadata"]["sequence"].as_u64().unwrap())
        .collect();
    assert_eq!(sequences, [1, 2]);
}

#[tokio::test]
async fn a_record_that_cannot_be_written_is_counted_and_leaves_a_gap() {
    let kept = desk(
        EventFormat::Compact,
        Path::new("/dev/full"),
        vec![Ok(event(Hook::Wall))],
        Tally::default(),
    )
    .await;
    assert_eq!((kept.sequence, kept.told, kept.lost[tally::OUTPUT]), (1, 0, 1));
}

#[tokio::test]
async fn an_output_that_is_stuck_keeps_nobody_from_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Somebody has it open, does not read, and it is full.
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK);
    let mut reader = options.open(&path).unwrap();
    while reader.write(&[0; 4096]).is_ok() {}
    let outlet = Outlet::open(Some(&path), Rotation::default()).unwrap();
    let desk = Desk::with(EventFormat::Ocsf, outlet, Containers::default());
    let (trigger, shutdown) = supervise::pair();
    let (_states, seen) = watch::channel(Arc::new(state(Capture::None)));
    let counts = desk.counts();
    let mut port = 0;
    // Every other sample says that there are no more for now.
    let ring = std::iter::from_fn(move || {
        port += 1;
        (port % 2 == 0).then(|| Ok(Event { dst_port: port, ..event(Hook::Wall) }))
    });
    let mut kept = Tally::default();
    let running = run(ring, desk, Tally::default(), |tally| kept = tally, seen, shutdown);
    let ended = async {
        while counts.tally().read < 5 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(counts.tally().told, 0, "nothing could be written");
        trigger.request();
    };
    let (ran, ()) = tokio::join!(running, ended);
    ran.unwrap();
    // Whoever is asked for the pipe now is told that nobody reads it.
    drop(reader);
    assert!(kept.read >= 5 && kept.told == 0, "{kept:?}");
}
