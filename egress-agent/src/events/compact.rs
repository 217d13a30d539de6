//! One readable line.

use std::fmt::Write;

use super::attribute::{Named, protocol_name};
use crate::policy::classify::Class;

/// The line.
pub(super) fn line(named: &Named) -> String {
    let time = named.last.strftime("%H:%M:%S");
    let verdict = named.verdict.name().to_uppercase();
    let pod = if named.pod.is_empty() {
        "unknown pod".to_owned()
    } else {
        format!("{}/{}", named.namespace, named.pod)
    };
    let (kind, workload) = &named.workload;
    let workload =
        if workload.is_empty() { String::new() } else { format!(" ({kind}/{workload})") };
    let dst = if named.is_v6 { format!("[{}]", named.dst) } else { named.dst.clone() };
    let protocol = protocol_name(named.protocol);
    // A name comes from an answer, which anybody may have made.
    let name = named.dst_name.as_ref().map(|name| format!(" ({})", name.escape_debug()));
    let mut line = format!(
        "{time} {verdict:<5} {pod}{workload} -> {dst}:{}/{protocol}{}  {}",
        named.dst_port,
        name.unwrap_or_default(),
        named.reason
    );
    if let Some(mechanism) = named.mechanism {
        let _ = write!(line, " by {}", mechanism.name());
    }
    if let Some((container, _)) = named.container.as_ref().filter(|(name, _)| !name.is_empty()) {
        let _ = write!(line, "  container {container}");
    }
    // Writing to a string cannot fail. A process names itself: without escapes it could end the
    // line and begin another that we never wrote.
    match (&named.process, named.socket_uid) {
        (Some(process), _) => {
            let comm = process.comm.escape_debug();
            let _ = write!(line, "  {comm}[{}] uid {}", process.pid, process.uid);
        }
        (None, Some(uid)) => {
            let _ = write!(line, "  uid {uid}");
        }
        (None, None) => {}
    }
    if named.evasion {
        line.push_str("  EVASION");
    }
    match (&named.declared_by, named.class) {
        (Some(declared), _) => {
            let _ = write!(line, "  declared by {declared}");
        }
        (None, Some(Class::OtherNamespace)) => line.push_str("  declared for other namespaces"),
        (None, Some(Class::Declared | Class::Undeclared) | None) => {}
    }
    let _ = write!(line, "  [{} line {}, gen {}]", named.hook, named.line, named.generation);
    if named.count > 1 {
        let _ = write!(line, " x{}", named.count);
    }
    line
}
