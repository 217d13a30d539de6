//! The exposition as its readers depend on it.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::key::{Addr, GatewayId, PodId, PolicyId};
use egress_common::redirect::{RedirectKey, RedirectTo};
use egress_common::state::{Capture, Counter, CounterKey, Direction, Pod, loss};
use egress_common::{Mode, Reason, Verdict};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::collect::{before_ready, collect};
use super::health::{livez, readyz};
use super::ledger::Ledger;
use super::*;
use crate::config::Granularity;
use crate::datapath::{HookStatus, Readings};
use crate::policy::{
    Coverage, CoverageState, Desired, GatewayState, ObjectName, Origin, RejectReason, Rejection,
    Snapshot,
};

fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn pod(uid: &str, pod: &str, workload: &str) -> Coverage {
    Coverage {
        pod: name("shop", pod),
        uid: uid.to_owned(),
        workload: ("Deployment".to_owned(), workload.to_owned()),
        policy: Some("shop".to_owned()),
        mode: Mode::Enforce,
        capture: Capture::None,
        cgroup: Some(1),
        ifindex: Some(2),
        state: CoverageState::Covered,
    }
}

/// One pod, `uid-1` of workload `cart`, and one gateway.
pub(super) fn state() -> AgentState {
    let mut desired = Desired::default();
    desired.coverage.push(pod("uid-1", "cart-0", "cart"));
    desired.gateways.push(GatewayState {
        name: name("istio-system", "egw"),
        id: GatewayId::of("istio-system", "egw").0,
        policies: vec!["shop".to_owned()],
        endpoints: Vec::new(),
    });
    let judged = Pod {
        id: PodId::of("uid-1"),
        policy: PolicyId::of("shop"),
        capture: 0,
        flags: 0,
        mac: [0; 6],
        proxy_uid: Pod::NO_PROXY,
        proxy_gid: Pod::NO_PROXY,
        v4: Addr::UNSPECIFIED,
        v6: Addr::UNSPECIFIED,
        namespace: egress_common::key::NamespaceId(1),
        guarded: 0,
        netns: 0,
    };
    desired.tables.pods.insert(1, judged);
    let mut state = AgentState::of(Snapshot::default(), desired);
    let hook = HookStatus {
        hook: "wall",
        target: String::new(),
        attached: true,
        needed: true,
        detail: String::new(),
    };
    state.hooks = Arc::new(vec![hook]);
    state.usage = Arc::new(vec![("EXACT", 3, 65536)]);
    state
}

/// The same node, on which connections of the policy are redirected.
fn redirecting() -> AgentState {
    let mut state = state();
    let mut tables = (*state.tables).clone();
    let (key, gateway) = (
        RedirectKey::new(PolicyId::of("shop"), 443, true, 0),
        GatewayId::of("istio-system", "egw"),
    );
    tables.redirects.insert(key, RedirectTo::new(Addr::v4([10, 0, 0, 1]), 8443, gateway, 1));
    state.tables = Arc::new(tables);
    state
}

/// The same node after its pod has gone.
pub(super) fn without_pods() -> AgentState {
    AgentState::of(Snapshot::default(), Desired::default())
}

/// One counter of a pod.
pub(super) fn counters(uid: &str, packets: u64) -> BTreeMap<CounterKey, Counter> {
    let gateway = GatewayId::of("istio-system", "egw");
    let key =
        CounterKey::new(PodId::of(uid), gateway, Verdict::Allow, Reason::Gateway, Direction::Tx);
    BTreeMap::from([(key, Counter { connections: 1, packets, bytes: 100 * packets })])
}

fn exposition_of(state: &AgentState, pods: BTreeMap<CounterKey, Counter>) -> String {
    exposition(&mut Ledger::new(Granularity::Pod, 1000), state, pods)
}

fn exposition(
    ledger: &mut Ledger,
    state: &AgentState,
    pods: BTreeMap<CounterKey, Counter>,
) -> String {
    ledger.learn(state, 1);
    let losses = loss::NAMES.map(|name| (name, 0)).to_vec();
    let readings = ledger.continued(Readings { pods, node: BTreeMap::new(), losses });
    collect(state, &readings, (3, 8192), ledger, &EventCounts::default(), 0).unwrap()
}

/// Samples as (name with labels, value).
fn samples(text: &str) -> Vec<(&str, &str)> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|l| l.rsplit_once(' ')).collect()
}

/// `name{label,label}`: what a dashboard or an alert may rely on.
fn shape(sample: &str) -> String {
    let Some((name, labels)) = sample.split_once('{') else { return sample.to_owned() };
    let names: Vec<&str> =
        labels.split("\",").filter_map(|pair| Some(pair.split_once('=')?.0)).collect();
    format!("{name}{{{}}}", names.join(","))
}

#[test]
fn what_the_catalogue_promises_is_exported_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("objects.yaml"), OBJECTS).unwrap();
    let mut state = redirecting();
    state.snapshot = Arc::new(crate::registry::read_directory(directory.path()).unwrap());
    assert_eq!(state.snapshot.problems, []);
    let text = exposition_of(&state, counters("uid-1", 7));
    let exported: BTreeSet<String> =
        samples(&text).iter().map(|(sample, _)| shape(sample)).collect();
    let mut promised = BTreeSet::new();
    for metric in Metric::ALL {
        let mut labels: Vec<&str> = metric.labels().iter().map(|label| label.name).collect();
        let suffixes: &[&str] = match metric.kind() {
            Kind::Counter | Kind::Gauge => &[""],
            Kind::Histogram => &["_count", "_sum"],
        };
        let named = |name: &str, labels: &[&str]| match labels {
            [] => name.to_owned(),
            labels => format!("{name}{{{}}}", labels.join(",")),
        };
        promised.extend(
            suffixes.iter().map(|suffix| named(&format!("{}{suffix}", metric.name()), &labels)),
        );
        if metric.kind() == Kind::Histogram {
            labels.push("le");
            promised.insert(named(&format!("{}_bucket", metric.name()), &labels));
        }
    }
    assert_eq!(exported, promised);
}

const OBJECTS: &str = "apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata: {name: shop}
spec:
  selector: {namespaces: [shop]}
  mode: audit
---
apiVersion: egress-enforcer.io/v1alpha1
kind: EgressException
metadata: {name: outage}
spec:
  scope: {namespaces: [shop]}
  destination: {cidr: 198.51.100.0/24}
  expiresAt: \"2100-01-01T00:00:00Z\"
  reason: gateway outage
  requester: oncall@example.com
";

/// Whoever writes an alert or a dashboard relies on these. A name is only ever added.
#[test]
fn names_types_and_labels_are_frozen() {
    let row = |metric: &Metric| {
        let labels: Vec<&str> = metric.labels().iter().map(|label| label.name).collect();
        format!("{} {} {}", metric.kind().name(), metric.name(), labels.join(","))
    };
    let mut rows: Vec<String> =
        Metric::ALL.iter().map(|metric| row(metric).trim_end().to_owned()).collect();
    rows.sort();
    assert_eq!(rows.join("\n"), include_str!("frozen.txt").trim_end());
}

#[test]
fn a_closed_label_has_only_the_words_of_the_catalogue() {
    let text = exposition_of(&redirecting(), counters("uid-1", 7));
    let mut seen = 0;
    for (sample, _) in samples(&text) {
        let Some((name, labels)) = sample.split_once('{') else { continue };
        let Some(metric) = Metric::ALL.iter().find(|metric| metric.name() == name) else {
            continue;
        };
        for label in metric.labels() {
            let Values::Words(all) = label.values else { continue };
            let start = format!("{}=\"", label.name);
            let (_, rest) = labels.split_once(&start).unwrap();
            let word = rest.split('"').next().unwrap();
            assert!(all().contains(&word), "{sample}");
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen}");
}

#[test]
fn the_generated_reference_is_that_of_the_catalogue() {
    crate::generated::same_reference("docs/metrics.md", &reference());
}

#[test]
fn no_label_set_appears_twice() {
    // Two pods of one name, as when one replaces the other, and a pod nobody knows.
    let mut state = state();
    let mut desired = (*state.desired).clone();
    desired.coverage.push(pod("uid-2", "cart-0", "cart"));
    state.desired = Arc::new(desired);
    let mut kernel = counters("uid-1", 7);
    kernel.extend(counters("uid-2", 5));
    kernel.extend(counters("uid-gone", 3));
    let text = exposition_of(&state, kernel);
    let all = samples(&text);
    let unique: BTreeSet<&str> = all.iter().map(|(sample, _)| *sample).collect();
    assert_eq!(unique.len(), all.len());
    let value = |start: &str| {
        let found = all.iter().find(|(sample, _)| sample.starts_with(start));
        found.map(|(_, value)| *value)
    };
    let both = r#"egress_pod_packets_total{source_namespace="shop",source_workload="cart",source_pod="cart-0",gateway="istio-system/egw",verdict="allow""#;
    assert_eq!(value(both), Some("12"));
    let unknown = r#"egress_workload_connections_total{source_namespace="unknown""#;
    assert_eq!(value(unknown), Some("1"));
}

/// Sum of the samples that start so.
fn sum(text: &str, start: &str) -> f64 {
    let matching = samples(text).into_iter().filter(|(sample, _)| sample.starts_with(start));
    matching.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
}

/// A node with this many pods, each of a workload of its own, and their counters.
fn crowd(pods: std::ops::Range<usize>) -> (AgentState, BTreeMap<CounterKey, Counter>) {
    let mut state = state();
    let mut desired = (*state.desired).clone();
    desired.coverage.clear();
    let mut kernel = BTreeMap::new();
    for index in pods {
        let (uid, name) = (format!("uid-{index}"), format!("job-{index}"));
        desired.coverage.push(pod(&uid, &name, &name));
        kernel.extend(counters(&uid, 7));
    }
    state.desired = Arc::new(desired);
    (state, kernel)
}

#[test]
fn series_are_bounded_and_what_finds_no_room_counts_in_the_overflow() {
    let mut ledger = Ledger::new(Granularity::Pod, 160);
    let told = |text: &str| samples(text).iter().filter(|(name, _)| traffic(name)).count();
    let totals = |text: &str| {
        [sum(text, "egress_pod_packets_total"), sum(text, "egress_workload_packets_total")]
    };
    let (first, mut kernel) = crowd(0..8);
    let text = exposition(&mut ledger, &first, kernel.clone());
    let before = told(&text);
    assert!(text.contains("egress_metrics_series_truncated_total 0\n"), "{text}");
    assert_eq!(totals(&text), [56.0; 2]);

    let (more, counted) = crowd(0..40);
    kernel.extend(counted);
    let text = exposition(&mut ledger, &more, kernel.clone());
    // The overflow has a series for each word, of both levels.
    assert!(told(&text) <= 160 + 2 * 8, "{before} {}", told(&text));
    assert_eq!(totals(&text), [280.0; 2], "{text}");
    assert!(text.contains("source_pod=\"job-3\""), "who was there keeps its series");
    let overflow = "egress_pod_packets_total{source_namespace=\"_overflow\",source_workload=\"_overflow\",source_pod=\"_overflow\"";
    let overflowing = sum(&text, overflow);
    assert!(overflowing > 0.0 && !text.contains("truncated_total 0\n"), "{text}");

    // Those with series go: there is room, and still nothing moves out of the overflow.
    let (rest, _) = crowd(8..40);
    let text = exposition(&mut ledger, &rest, kernel.clone());
    assert_eq!(sum(&text, overflow), overflowing);
    // Nor does the overflow fall when what counted in it ends.
    let text = exposition(&mut ledger, &crowd(0..0).0, kernel.clone());
    assert_eq!(sum(&text, overflow), overflowing);
}

fn traffic(series: &str) -> bool {
    ["egress_pod_", "egress_workload_"].iter().any(|start| series.starts_with(start))
}

#[test]
fn granularity_takes_labels_away_and_no_count() {
    let (state, kernel) = crowd(0..5);
    for (by, workloads) in
        [(Granularity::Workload, 5), (Granularity::Namespace, 1), (Granularity::Pod, 5)]
    {
        let mut ledger = Ledger::new(by, 1000);
        let text = exposition(&mut ledger, &state, kernel.clone());
        assert_eq!(text.contains("\negress_pod_packets_total{"), by == Granularity::Pod);
        let all = samples(&text);
        let sent = "egress_workload_packets_total{source_namespace=\"shop\"";
        let sent = all.iter().filter(|(name, _)| name.starts_with(sent));
        let allowed = sent.filter(|(name, _)| name.contains("verdict=\"allow\""));
        let values: Vec<f64> = allowed.map(|(_, value)| value.parse().unwrap()).collect();
        assert_eq!((values.len(), values.iter().sum::<f64>()), (workloads, 35.0), "{by:?}");
    }
}

#[test]
fn a_redirected_connection_counts_as_one_and_not_as_another_connection() {
    let state = redirecting();
    let gateway = GatewayId::of("istio-system", "egw");
    let pod = r#"{source_namespace="shop",source_workload="cart",source_pod="cart-0",gateway="istio-system/egw"}"#;
    let unused = exposition_of(&state, BTreeMap::new());
    assert!(unused.contains(&format!("egress_pod_redirects_total{pod} 0\n")), "{unused}");

    let once = Counter { connections: 3, packets: 0, bytes: 0 };
    let (reason, way) = (Reason::Redirected, Direction::Tx);
    let key = CounterKey::new(PodId::of("uid-1"), gateway, Verdict::Allow, reason, way);
    let text = exposition_of(&state, BTreeMap::from([(key, once)]));
    assert!(text.contains(&format!("egress_pod_redirects_total{pod} 3\n")), "{text}");
    let workload = r#"{source_namespace="shop",source_workload="cart",gateway="istio-system/egw"}"#;
    assert!(text.contains(&format!("egress_workload_redirects_total{workload} 3\n")), "{text}");
    assert!(!text.contains("reason=\"redirected\""), "{text}");
}

#[test]
fn what_may_never_have_happened_is_there_at_zero() {
    let text = exposition_of(&state(), BTreeMap::new());
    for reason in Reason::ALL.iter().filter(|reason| reason.denies()) {
        for family in ["egress_node_drops_total", "egress_node_audit_total"] {
            let sample = format!("{family}{{reason=\"{reason}\"}} 0\n");
            assert!(text.contains(&sample), "{sample}");
        }
    }
    for code in crate::policy::ProblemCode::ALL {
        assert!(
            text.contains(&format!("egress_registry_problems{{code=\"{}\"}} 0\n", code.name()))
        );
    }
    for reason in RejectReason::ALL {
        let family = "egress_gateway_rejected_endpoints_total";
        assert!(text.contains(&format!("{family}{{reason=\"{}\"}} 0\n", reason.name())));
    }
    for state in CoverageState::ALL {
        assert!(text.contains(&format!("egress_pods{{state=\"{}\"}} ", state.name())));
    }
    for verdict in ["audit", "drop"] {
        let sample = format!(
            "egress_pod_connections_total{{source_namespace=\"shop\",source_workload=\"cart\",\
             source_pod=\"cart-0\",gateway=\"\",verdict=\"{verdict}\",reason=\"not_gateway\"}} 0\n"
        );
        assert!(text.contains(&sample), "{sample}");
        let workload =
            sample.replace("egress_pod", "egress_workload").replace("source_pod=\"cart-0\",", "");
        assert!(text.contains(&workload), "{workload}");
    }
}

#[test]
fn a_refused_policy_is_a_problem_and_a_count() {
    let refused =
        AgentState { refused: Some("does not fit".to_owned()), applies: (4, 2), ..state() };
    let text = exposition_of(&refused, BTreeMap::new());
    for sample in [
        "egress_registry_problems{code=\"table_full\"} 1\n",
        "egress_apply_total{result=\"applied\"} 4\n",
        "egress_apply_total{result=\"refused\"} 2\n",
    ] {
        assert!(text.contains(sample), "{sample}");
    }
}

#[test]
fn a_refused_endpoint_is_counted_when_it_appears() {
    let refused = Rejection {
        gateway: name("istio-system", "egw"),
        reason: RejectReason::WrongServiceAccount,
        subject: "10.0.0.9".to_owned(),
        origin: Origin { kind: "EndpointSlice".to_owned(), name: "x".to_owned(), file: None },
    };
    let mut state = state();
    state.desired = Arc::new(Desired { rejected: vec![refused], ..(*state.desired).clone() });
    for _ in 0..3 {
        state.count_rejections();
    }
    let text = exposition_of(&state, BTreeMap::new());
    let sample = "egress_gateway_rejected_endpoints_total{reason=\"wrong_service_account\"} 1\n";
    assert!(text.contains(sample), "{text}");
}

#[test]
fn before_the_first_snapshot_only_the_build_is_known() {
    let text = before_ready().unwrap();
    assert!(samples(&text).iter().all(|(sample, _)| sample.starts_with("egress_build_info")));
}

async fn status_of(response: Response) -> (StatusCode, String) {
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn probes_before_the_first_snapshot_are_alive_and_not_ready() {
    let readiness = Readiness::default();
    assert_eq!(status_of(livez(State(readiness.clone())).await).await.0, StatusCode::OK);
    let (status, why) = status_of(readyz(State(readiness)).await).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(why.contains("first snapshot"), "{why}");
}
