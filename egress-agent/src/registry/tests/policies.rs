//! `EgressPolicy` and `EgressException`: what is accepted, and how a refusal reads.

use egress_common::Mode;
use egress_common::state::OnAgentLoss;

use super::*;
use crate::policy::{ExactAddress, GatewayTarget, RedirectPort};

const EXCEPTION: &str = "apiVersion: egress-enforcer.io/v1alpha1
kind: EgressException
metadata: {name: break-glass}
spec:
  scope: {namespaces: [payments]}
  destination:
    cidr: 203.0.113.0/24
    ports: [{port: 443, protocol: TCP}, {protocol: UDP}]
  expiresAt: 2026-11-30T18:00:00Z
  reason: provider outage
  requester: alice
";

#[test]
fn a_small_policy_has_the_documented_defaults() {
    let read = snapshot(POLICY);
    let policy = &read.policies["payments"];
    assert_eq!((policy.mode, policy.priority, policy.created), (Mode::Enforce, 0, None));
    assert_eq!((policy.cluster_ranges.as_ref(), policy.resolvers.as_ref()), (None, None));
    assert!(policy.api_server && policy.istiod && !policy.narrow);
    assert_eq!(policy.on_agent_loss, OnAgentLoss::Hold);
    assert_eq!(policy.gateways[0].target, GatewayTarget::Service("istio-egressgateway".to_owned()));
}

#[test]
fn every_field_of_a_policy_is_read() {
    let read = snapshot(
        "apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata:
  name: all
  creationTimestamp: 2026-11-24T00:00:01Z
spec:
  selector:
    namespaceSelector: {matchLabels: {team: pay}}
    podSelector: {matchLabels: {app: api}}
  priority: 10
  mode: off
  gateways:
  - {namespace: a, gateway: g, serviceAccount: s}
  - {namespace: a, podSelector: {matchLabels: {x: y}}, ports: [15008], serviceAccount: s}
  narrow: true
  clusterRanges: [10.0.0.0/8, 'fd00::/16']
  resolvers: [169.254.20.10]
  infrastructure: {apiServer: false, istiod: false, addresses: [{ip: 192.0.2.9, port: 4317}]}
  nodes: [{ip: 192.0.2.1, port: 53, protocol: UDP}]
  inboundRanges: [203.0.113.0/24]
  redirect: {ports: [443, {port: 80, gatewayPort: 8080}]}
  onAgentLoss: denyNew
status: {conditions: []}
",
    );
    let policy = &read.policies["all"];
    assert_eq!(
        (policy.mode, policy.priority, policy.created),
        (Mode::Off, 10, Some(1_795_478_401))
    );
    assert_eq!(policy.selector.namespace_labels["team"], "pay");
    assert_eq!(policy.selector.pod_labels["app"], "api");
    assert_eq!(policy.gateways.len(), 2);
    assert!(policy.narrow);
    assert_eq!(policy.cluster_ranges.as_ref().map(Vec::len), Some(2));
    assert_eq!(policy.resolvers.as_ref().map(Vec::len), Some(1));
    assert!(!policy.api_server && !policy.istiod);
    let exact = |ip: &str, protocol, port| ExactAddress { ip: ip.parse().unwrap(), protocol, port };
    assert_eq!(policy.infrastructure, [exact("192.0.2.9", 6, 4317)]);
    assert_eq!(policy.nodes, [exact("192.0.2.1", 17, 53)]);
    assert_eq!(policy.inbound_ranges.len(), 1);
    let redirect = |port, gateway_port| RedirectPort { port, gateway_port };
    assert_eq!(policy.redirect, [redirect(443, None), redirect(80, Some(8080))]);
    assert_eq!(policy.on_agent_loss, OnAgentLoss::DenyNew);
}

/// Each fault is made by replacing a part of a good policy.
#[test]
fn a_policy_is_refused_whole_with_the_field_named() {
    let spec = "  mode: enforce\n";
    for (from, to, expected) in [
        ("  selector:\n    namespaces: [payments]\n", "", "spec.selector: required"),
        (
            "    namespaces: [payments]",
            "    namespace: payments",
            "spec.selector.namespace: unknown field",
        ),
        (
            "    namespaces: [payments]",
            "    podSelector: {matchExpressions: []}",
            "spec.selector.podSelector.matchExpressions: unknown field",
        ),
        (
            "mode: enforce",
            "mode: enforced",
            "spec.mode: unknown variant `enforced`, expected one of `off`, `audit`, `enforce`",
        ),
        (spec, "", "spec.mode: required"),
        (spec, "  mode: false\n", "spec.mode: a boolean; write \"off\" in quotes"),
        (
            spec,
            "  mode: audit\n  priority: high\n",
            "spec.priority: invalid type: string \"high\", expected i32",
        ),
        (
            "      serviceAccount: istio-egressgateway-service-account\n",
            "",
            "spec.gateways[0].serviceAccount: required",
        ),
        (
            "    - namespace: istio-system\n      service",
            "    - service",
            "spec.gateways[0].namespace: required",
        ),
        ("      service:", "      gateway: g\n      service:", "spec.gateways[0]: exactly one of"),
        ("      service: istio-egressgateway\n", "", "spec.gateways[0]: exactly one of"),
        (
            "      service: istio-egressgateway\n",
            "      service: ''\n",
            "spec.gateways[0]: exactly one of",
        ),
        (
            "      service:",
            "      ports: [443]\n      service:",
            "spec.gateways[0].ports: only for podSelector",
        ),
        (
            "      service: istio-egressgateway\n",
            "      podSelector: {matchLabels: {a: b}}\n",
            "spec.gateways[0].ports: required",
        ),
        (
            "      service: istio-egressgateway\n",
            "      podSelector: {}\n      ports: [1]\n",
            "spec.gateways[0].podSelector.matchLabels: required",
        ),
        (
            spec,
            "  mode: audit\n  clusterRanges: [10.0.0.0/8, 10.1.2.3/16]\n",
            "spec.clusterRanges[1]: `10.1.2.3/16` has host bits set; did you mean 10.1.0.0/16?",
        ),
        (
            spec,
            "  mode: audit\n  clusterRanges: all\n",
            "spec.clusterRanges: invalid value: string \"all\", expected `auto` or a list",
        ),
        (
            spec,
            "  mode: audit\n  inboundRanges: [0.0.0.0/0]\n",
            "spec.inboundRanges[0]: `0.0.0.0/0` is wider than /8",
        ),
        (
            spec,
            "  mode: audit\n  resolvers: [dns.example]\n",
            "spec.resolvers[0]: `dns.example` is not an IP address",
        ),
        (
            spec,
            "  mode: audit\n  resolvers: ['::ffff:192.0.2.1']\n",
            "spec.resolvers[0]: `::ffff:192.0.2.1` is IPv4-mapped; write 192.0.2.1",
        ),
        (
            spec,
            "  mode: audit\n  nodes: [{ip: 127.0.0.1, port: 1}]\n",
            "spec.nodes[0].ip: `127.0.0.1` is a loopback",
        ),
        (
            spec,
            "  mode: audit\n  nodes: [{ip: 192.0.2.1, port: 0}]\n",
            "spec.nodes[0].port: must be 1 to 65535",
        ),
        (
            spec,
            "  mode: audit\n  nodes: [{ip: 192.0.2.1, port: 1, protocol: tcp}]\n",
            "spec.nodes[0].protocol: unknown variant `tcp`",
        ),
        (
            spec,
            "  mode: audit\n  onAgentLoss: allow\n",
            "spec.onAgentLoss: unknown variant `allow`",
        ),
        (spec, "  mode: audit\n  redirect: {}\n", "spec.redirect.ports: required"),
        (
            spec,
            "  mode: audit\n  redirect: {ports: [0]}\n",
            "spec.redirect.ports[0].port: must be 1 to 65535",
        ),
        (
            spec,
            "  mode: audit\n  redirect: {ports: [70000]}\n",
            "spec.redirect.ports[0]: invalid value: integer `70000`, expected a port, or a mapping",
        ),
        (
            spec,
            "  mode: audit\n  redirect: {ports: [{port: 443, gatewayPort: 0}]}\n",
            "spec.redirect.ports[0].gatewayPort: must be 1 to 65535",
        ),
        (
            spec,
            "  mode: audit\n  redirect: {ports: [{port: 443, to: 8443}]}\n",
            "spec.redirect.ports[0].to: unknown field `to`, expected `port` or `gatewayPort`",
        ),
        (
            spec,
            "  mode: audit\n  redirect: {ports: [{gatewayPort: 8443}]}\n",
            "spec.redirect.ports[0].port: must be 1 to 65535",
        ),
        (
            spec,
            "  mode: audit\n  redirect: {ports: [443, {port: 443, gatewayPort: 8443}]}\n",
            "spec.redirect.ports[1].port: 443 is listed twice",
        ),
        (
            spec,
            "  mode: audit\n  redirect: {ports: [853]}\n",
            "spec.redirect.ports[0].port: 853 is DNS, which only named resolvers get",
        ),
        (spec, "  mode: audit\n  rateLimit: 5\n", "spec.rateLimit: invalid type"),
        (spec, "  mode: audit\n  rateLimit: {}\n", "spec.rateLimit: is empty"),
        (
            spec,
            "  mode: audit\n  rateLimit: {burst: 5}\n",
            "spec.rateLimit.connectionsPerSecond: required",
        ),
        (
            spec,
            "  mode: audit\n  rateLimit: {namespace: {connectionsPerSecond: 0}}\n",
            "spec.rateLimit.namespace.connectionsPerSecond: must be 1 to 1000000",
        ),
        (
            spec,
            "  mode: audit\n  rateLimit: {connectionsPerSecond: 5, burst: 1000001}\n",
            "spec.rateLimit.burst: must be 1 to 1000000",
        ),
        (
            spec,
            "  mode: audit\n  denyResponse: reset\n",
            "spec.denyResponse: unknown variant `reset`, expected `Reset` or `Drop`",
        ),
        (
            spec,
            "  mode: audit\n  hostNetwork: sometimes\n",
            "spec.hostNetwork: invalid type: string \"sometimes\", expected a boolean",
        ),
        (spec, "  mode: audit\n  gatways: []\n", "spec.gatways: unknown field `gatways`"),
        ("\nspec:", "\nsepc:", "sepc: unknown field `sepc`"),
        (
            "  name: payments",
            "  name: payments\n  namespace: payments",
            "metadata.namespace: EgressPolicy is cluster-scoped",
        ),
        (
            "  name: payments",
            "  name: payments\n  creationTimestamp: today",
            "metadata.creationTimestamp: an RFC 3339 time",
        ),
        ("v1alpha1", "v2", "apiVersion: `egress-enforcer.io/v2` is not known for EgressPolicy"),
        (
            "egress-enforcer.io",
            "egress-enforcer.example",
            "apiVersion: `egress-enforcer.example/v1alpha1` is not known",
        ),
    ] {
        let text = POLICY.replacen(from, to, 1);
        assert_ne!(text, POLICY, "{from} is not in the policy");
        let found = problems(&text);
        let [found] = found.as_slice() else { panic!("{text}: {found:?}") };
        assert!(found.starts_with("invalid EgressPolicy payments (a.yaml:1): "), "{found}");
        assert!(found.contains(expected), "expected {expected}\nfound    {found}");
    }
}

#[test]
fn a_policy_that_redirects_needs_a_gateway() {
    let (before, gateways) = POLICY.split_once("  gateways:\n").unwrap();
    let rest: String = gateways
        .lines()
        .skip_while(|line| line.starts_with("    "))
        .map(|l| format!("{l}\n"))
        .collect();
    let found = problems(&format!("{before}  redirect: {{ports: [443]}}\n{rest}"));
    assert!(found[0].contains("spec.redirect: needs a gateway"), "{found:?}");
}

#[test]
fn every_wrong_field_is_named_at_once() {
    let found = problems(
        &POLICY
            .replace("  mode: enforce\n", "")
            .replace("    - namespace: istio-system\n      service", "    - service"),
    );
    assert!(
        found[0].contains("spec.mode: required") && found[0].contains("spec.gateways[0].namespace"),
        "{found:?}"
    );
}

#[test]
fn exceptions_are_read_and_refused() {
    let read = snapshot(EXCEPTION);
    let exception = &read.exceptions["break-glass"];
    assert_eq!(exception.ports, [(6, 443), (17, 0)]);
    assert_eq!(exception.expires_at, 1_796_061_600);
    snapshot(&EXCEPTION.replace("203.0.113.0/24", "0.0.0.0/0"));
    for moment in ["18:00:00.25Z", "18:00:00-05:30", "18:00:00z"] {
        snapshot(&EXCEPTION.replace("18:00:00Z", moment));
    }
    for (from, to, expected) in [
        ("  expiresAt: 2026-11-30T18:00:00Z\n", "", "spec.expiresAt: an RFC 3339 time is required"),
        ("18:00:00Z", "18:00:00", "spec.expiresAt: an RFC 3339 time is required"),
        ("T18:00:00Z", " 18:00:00Z", "spec.expiresAt: an RFC 3339 time is required"),
        ("18:00:00Z", "18:00:00.Z", "spec.expiresAt: an RFC 3339 time is required"),
        ("18:00:00Z", "18:00:00+01", "spec.expiresAt: an RFC 3339 time is required"),
        ("11-30T18", "13-30T18", "spec.expiresAt: an RFC 3339 time is required"),
        ("  reason: provider outage\n", "", "spec.reason: required"),
        ("  requester: alice\n", "  requester: ' '\n", "spec.requester: required"),
        ("  scope: {namespaces: [payments]}\n", "", "spec.scope: required"),
        (
            "203.0.113.0/24",
            "203.0.113.1/24",
            "spec.destination.cidr: `203.0.113.1/24` has host bits set",
        ),
        (
            "203.0.113.0/24",
            "169.254.169.254/32",
            "spec.destination.cidr: `169.254.169.254/32` is link-local",
        ),
        ("port: 443", "port: 0", "spec.destination.ports[0].port: must be 1 to 65535"),
        ("  requester", "  approver: bob\n  requester", "spec.approver: unknown field"),
    ] {
        let text = EXCEPTION.replacen(from, to, 1);
        assert_ne!(text, EXCEPTION, "{from} is not in the exception");
        let found = problems(&text);
        assert!(found[0].contains(expected), "expected {expected}\nfound    {found:?}");
    }
}
