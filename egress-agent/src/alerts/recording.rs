//! What is recorded: the series that alerts and dashboards share, the auditor's thirty days, and
//! the comparison with what Istio counted.

use super::thresholds::{AUDITED, STEP, WINDOW};
use super::{DestinationClass, Pace, Recording};
use crate::metrics::Metric;

/// What alerts read; evaluated with them.
pub(super) fn shared(pace: Pace) -> Vec<Recording> {
    let packets = Metric::WorkloadPackets.name();
    let denied = grown(packets, "verdict=~\"audit|drop\"", WINDOW, pace);
    let outside =
        [DestinationClass::Gateway, DestinationClass::Exception, DestinationClass::Bypass]
            .map(DestinationClass::pattern)
            .join("|");
    let sent = format!("direction=\"tx\", reason=~\"{outside}\"");
    let sent = grown(Metric::WorkloadBytes.name(), &sent, WINDOW, pace);
    let seconds = pace.seconds(WINDOW);
    let rule = |name, expr| Recording { name, label: None, expr };
    vec![
        rule(
            "egress:workload_denied_packets:increase5m",
            format!("sum by (source_namespace, source_workload, verdict, reason) (\n{denied})"),
        ),
        rule(
            "egress:namespace_denied_packets:rate5m",
            format!(
                "sum by (source_namespace) (egress:workload_denied_packets:increase5m) / {seconds}"
            ),
        ),
        rule(
            "egress:namespace_external_bytes:rate5m",
            format!("sum by (source_namespace) (\n{sent}) / {seconds}"),
        ),
    ]
}

/// Bytes and connections by namespace and class of destination, step by step.
pub(super) fn classes(pace: Pace) -> Vec<Recording> {
    let bytes = |class: DestinationClass| {
        let matcher = format!("reason=~\"{}\"", class.pattern());
        let grown = grown(Metric::WorkloadBytes.name(), &matcher, WINDOW, pace);
        let seconds = pace.seconds(WINDOW);
        format!("sum by (source_namespace, direction, verdict) (\n{grown}) / {seconds}")
    };
    let connections = |class: DestinationClass| {
        let matcher = format!("reason=~\"{}\"", class.pattern());
        let grown = grown(Metric::WorkloadConnections.name(), &matcher, WINDOW, pace);
        let seconds = pace.seconds(WINDOW);
        format!("sum by (source_namespace, verdict) (\n{grown}) / {seconds}")
    };
    let told = || {
        DestinationClass::ALL.iter().filter(|class| **class != DestinationClass::Exempt).copied()
    };
    let label = |class: DestinationClass| Some(("destination_class", class.name()));
    let mut rules = Vec::new();
    for class in told() {
        let name = "egress:namespace_class_bytes:rate5m";
        rules.push(Recording { name, label: label(class), expr: bytes(class) });
    }
    for class in told() {
        let name = "egress:namespace_class_connections:rate5m";
        rules.push(Recording { name, label: label(class), expr: connections(class) });
    }
    rules
}

/// The auditor's question, answered ahead: what each namespace sent where in thirty days. Each
/// recorded step stands for its length; where Prometheus was down, nothing is made up.
pub(super) fn audited(pace: Pace) -> Vec<Recording> {
    let (range, step) = (pace.span(AUDITED), pace.seconds(STEP));
    let sum = |name, of: &str| Recording {
        name,
        label: None,
        expr: format!("sum_over_time({of}[{range}]) * {step}"),
    };
    vec![
        sum("egress:namespace_class_bytes:increase30d", "egress:namespace_class_bytes:rate5m"),
        sum(
            "egress:namespace_class_connections:increase30d",
            "egress:namespace_class_connections:rate5m",
        ),
    ]
}

/// The same traffic as the node and as Istio counted it. Istio's `sent` is what the server sent, so
/// it is compared with what the pod received, and `received` with what the pod sent. The node
/// counts bytes on the wire; Istio counts payload, so that the node's number is the larger.
pub(super) fn cross_check(pace: Pace) -> Vec<Recording> {
    let window = pace.span(WINDOW);
    let bytes = Metric::WorkloadBytes.name();
    let node = |direction| {
        format!(
            "sum by (source_namespace, source_workload) (rate({bytes}{{reason=\"gateway\", \
             direction=\"{direction}\"}}[{window}]))"
        )
    };
    // The mesh's own labels become ours; its word for a gateway's pod is the workload's name.
    let istio = |metric: &str| {
        format!(
            "sum by (source_namespace, source_workload) (label_replace(rate({metric}{{reporter=\
             \"source\", destination_workload=~\".*egressgateway.*|.*egress-gateway.*\"}}[{window}]), \
             \"source_namespace\", \"$1\", \"source_workload_namespace\", \"(.*)\"))"
        )
    };
    let rule = |name, expr| Recording { name, label: None, expr };
    vec![
        rule("egress:workload_gateway_received_bytes:rate5m", node("rx")),
        rule("egress:workload_gateway_sent_bytes:rate5m", node("tx")),
        rule("egress:istio_gateway_received_bytes:rate5m", istio("istio_tcp_sent_bytes_total")),
        rule("egress:istio_gateway_sent_bytes:rate5m", istio("istio_tcp_received_bytes_total")),
        rule(
            "egress:workload_gateway_received_bytes:ratio_istio5m",
            "egress:workload_gateway_received_bytes:rate5m\n/ on (source_namespace, source_workload)\n\
             (egress:istio_gateway_received_bytes:rate5m > 0)"
                .to_owned(),
        ),
        // Bytes toward a gateway of which no proxy of the workload knows.
        rule(
            "egress:workload_gateway_sent_bytes:unseen_by_istio5m",
            "(egress:workload_gateway_sent_bytes:rate5m > 0)\nunless on (source_namespace, \
             source_workload)\n(egress:istio_gateway_sent_bytes:rate5m > 0)"
                .to_owned(),
        ),
    ]
}

/// Every recording rule.
pub fn recordings(pace: Pace) -> Vec<Recording> {
    [shared(pace), classes(pace), audited(pace), cross_check(pace)].concat()
}

/// How much each series of a counter grew. A series that was born within the window grew by all it
/// has, which `increase` does not know, unless the agent itself was not scraped before.
fn grown(metric: &str, matcher: &str, window: u64, pace: Pace) -> String {
    let window = pace.span(window);
    let selector =
        if matcher.is_empty() { metric.to_owned() } else { format!("{metric}{{{matcher}}}") };
    let guard = Metric::Generation.name();
    format!(
        "  (\n    ({selector} unless {selector} offset {window})\n    and on (instance) {guard} \
         offset {window}\n  )\n  or\n  increase({selector}[{window}])\n"
    )
}
