//! OCSF 4001 Network Activity, version 1.6.0, with the security_control profile.
//!
//! An audited packet is action 3 (Observed) and disposition 17 (Logged): a reader can never take
//! it for an allowed one.

use egress_common::Verdict;
use serde_json::{Map, Value, json};

use super::attribute::{Named, protocol_name};
use super::mechanism::Mechanism;
use crate::policy::classify::Class;

/// The object.
pub(super) fn object(named: &Named) -> Value {
    let (activity, action, disposition, severity) = match named.verdict {
        Verdict::Allow => (1, 1, 1, 1),
        Verdict::Audit => (1, 3, 17, 2),
        Verdict::Drop => (5, 2, 6, 3),
    };
    let class = 4001;
    let protocol = protocol_name(named.protocol);
    let mut event = json!({
        "activity_id": activity,
        "category_uid": 4,
        "class_uid": class,
        "type_uid": class * 100 + activity,
        "time": named.last.as_millisecond(),
        "start_time": named.first.as_millisecond(),
        "end_time": named.last.as_millisecond(),
        "count": named.count,
        "severity_id": severity,
        "status_id": if named.verdict == Verdict::Drop { 2 } else { 1 },
        "status_code": named.reason.name(),
        "action_id": action,
        "disposition_id": disposition,
        "is_alert": true,
        "message": super::compact::line(named),
        "firewall_rule": {
            "uid": format!("line-{}", named.line),
            "name": named.reason.name(),
            "version": format!("gen-{}", named.generation),
        },
        "metadata": {
            "version": "1.6.0",
            "product": {
                "name": "Egress Enforcer",
                "vendor_name": "Egress Enforcer",
                "version": env!("CARGO_PKG_VERSION"),
            },
            "profiles": ["security_control", "host"],
            "uid": format!("{}-{:x}-{}", named.node, named.stream, named.sequence),
            "sequence": named.sequence,
            "log_name": "egress",
        },
        "device": { "type_id": 99, "type": "Kubernetes node", "hostname": named.node },
        "src_endpoint": source(named),
        "dst_endpoint": destination(named),
        "connection_info": {
            "protocol_num": named.protocol,
            "protocol_name": protocol,
            "protocol_ver_id": if named.is_v6 { 6 } else { 4 },
            "direction_id": 2,
        },
        "unmapped": unmapped(named),
    });
    if !named.policy.is_empty() {
        event["policy"] = json!({
            "uid": named.policy,
            "name": named.policy,
            "version": format!("gen-{}", named.generation),
        });
    }
    if let Some(process) = &named.process {
        event["actor"] = json!({
            "process": {
                "pid": process.pid,
                "name": process.comm,
                "user": { "uid": process.uid.to_string() },
            },
        });
    }
    event
}

fn destination(named: &Named) -> Value {
    let mut destination = json!({ "ip": named.dst, "port": named.dst_port });
    if let Some(name) = &named.dst_name {
        destination["hostname"] = json!(name);
    }
    destination
}

fn source(named: &Named) -> Value {
    let mut source = Map::new();
    source.insert("type_id".to_owned(), json!(99));
    source.insert("type".to_owned(), json!("Pod"));
    if !named.pod.is_empty() {
        source.insert("name".to_owned(), json!(format!("{}/{}", named.namespace, named.pod)));
        source.insert("uid".to_owned(), json!(named.uid));
        source.insert("svc_name".to_owned(), json!(named.workload.1));
    }
    if let Some((ip, port)) = &named.src {
        source.insert("ip".to_owned(), json!(ip));
        source.insert("port".to_owned(), json!(port));
    }
    Value::Object(source)
}

/// What OCSF has no field for, under OpenTelemetry's names where it has one.
fn unmapped(named: &Named) -> Value {
    let container = |part: usize| {
        let (name, id) = named.container.as_ref()?;
        Some(if part == 0 { name } else { id }.as_str()).filter(|text| !text.is_empty())
    };
    json!({
        "k8s.namespace.name": named.namespace,
        "k8s.pod.name": named.pod,
        "k8s.workload.kind": named.workload.0,
        "k8s.workload.name": named.workload.1,
        "k8s.node.name": named.node,
        "egress.verdict": named.verdict.name(),
        "egress.hook": named.hook.name(),
        "k8s.container.name": container(0),
        "container.id": container(1),
        "egress.capture": named.capture.name(),
        "egress.mechanism": named.mechanism.map(Mechanism::name),
        "egress.stream": format!("{:x}", named.stream),
        "egress.decisions": named.own,
        "egress.gateway": named.gateway,
        "egress.evasion": named.evasion,
        "egress.declaration": named.class.map(Class::name),
        "egress.declared_by": named.declared_by,
        "egress.packet_bytes": named.packets_bytes,
        "egress.socket_uid": named.socket_uid,
    })
}
