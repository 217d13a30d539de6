//! What is wrong with a DNS answer: one readable line, or OCSF 4003 DNS Activity, version 1.6.0.
//!
//! Nothing was dropped: what the answer says is seen, and what follows from it is another event.

use serde_json::{Value, json};

use super::attribute::{protocol_name, wall_clock};
use crate::names::{Finding, Kind};

/// The line.
pub(super) fn line(finding: &Finding) -> String {
    let Finding { time, kind, pod, host, ip, resolver, declared_by, untold, .. } = finding;
    let time = wall_clock(*time).strftime("%H:%M:%S").to_string();
    let (owner, workload) = &pod.workload;
    let class = kind.name().to_uppercase();
    let about = match kind {
        Kind::Rebinding(place) => format!("an external name leads inside: {}", place.name()),
        Kind::Drift(drift) => format!("a registered host moved: {}", drift.name()),
    };
    let declared =
        declared_by.as_ref().map_or_else(String::new, |by| format!("  declared by {by}"));
    let more = if *untold > 0 { format!("  ({untold} like it untold)") } else { String::new() };
    format!(
        "{time} {class} {} ({owner}/{workload}) <- {host} is {ip}  {about}{declared}  \
         [resolver {resolver}/{}]{more}",
        pod.name,
        protocol_name(finding.protocol)
    )
}

/// The object.
pub(super) fn object(finding: &Finding, node: &str, sequence: u64) -> Value {
    const RESPONSE: u32 = 2;
    const CLASS: u32 = 4003;
    let Finding { kind, pod, host, ip, ttl, resolver, .. } = finding;
    let time = wall_clock(finding.time);
    let record = if ip.is_ipv4() { "A" } else { "AAAA" };
    let declared_by = finding.declared_by.as_ref().map(ToString::to_string);
    json!({
        "activity_id": RESPONSE,
        "category_uid": 4,
        "class_uid": CLASS,
        "type_uid": CLASS * 100 + RESPONSE,
        "time": time.as_millisecond(),
        "count": finding.untold + 1,
        "severity_id": match kind { Kind::Rebinding(_) => 4, Kind::Drift(_) => 3 },
        "status_id": 1,
        "action_id": 3,
        "disposition_id": 17,
        "is_alert": true,
        "message": line(finding),
        "rcode_id": 0,
        "query": { "hostname": host.as_str(), "type": record, "class": "IN" },
        "answers": [{ "rdata": ip.to_string(), "type": record, "class": "IN", "ttl": ttl }],
        "metadata": {
            "version": "1.6.0",
            "product": {
                "name": "Egress Enforcer",
                "vendor_name": "Egress Enforcer",
                "version": env!("CARGO_PKG_VERSION"),
            },
            "profiles": ["security_control", "host"],
            "uid": format!("{node}-dns-{}-{sequence}", time.as_nanosecond()),
            "sequence": sequence,
            "log_name": "egress",
        },
        "device": { "type_id": 99, "type": "Kubernetes node", "hostname": node },
        "src_endpoint": { "ip": resolver.to_string(), "port": 53 },
        "dst_endpoint": {
            "type_id": 99,
            "type": "Pod",
            "name": pod.name.to_string(),
            "uid": pod.uid,
            "svc_name": pod.workload.1,
        },
        "connection_info": {
            "protocol_num": finding.protocol,
            "protocol_name": protocol_name(finding.protocol),
            "protocol_ver_id": if resolver.is_ipv6() { 6 } else { 4 },
            "direction_id": 1,
        },
        "unmapped": {
            "k8s.namespace.name": pod.name.namespace,
            "k8s.pod.name": pod.name.name,
            "k8s.workload.kind": pod.workload.0,
            "k8s.workload.name": pod.workload.1,
            "k8s.node.name": node,
            "egress.dns.finding": kind.name(),
            "egress.dns.detail": kind.detail(),
            "egress.declared_by": declared_by,
        },
    })
}
