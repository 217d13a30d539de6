//! Answers as tables.

use std::fmt::Write;

use comfy_table::{Table, presets};
use serde_json::Value;

use crate::doctor::{Check, CheckStatus};

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    table
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn name(value: &Value) -> String {
    format!("{}/{}", text(&value["namespace"]), text(&value["name"]))
}

/// How long a pod was not wholly covered, and what passed of it.
fn exposure(exposure: &Value) -> String {
    if exposure.is_null() {
        return "-".to_owned();
    }
    let now = exposure["reason"].as_str().map(|reason| format!(", {reason}")).unwrap_or_default();
    let (seconds, packets) = (text(&exposure["seconds"]), text(&exposure["packets"]));
    format!("{seconds} s, {packets} packets{now}")
}

/// `status` for people.
pub fn status(status: &Value) -> String {
    let mut out = String::new();
    let mode = text(&status["mode"]);
    let generation = text(&status["generation"]);
    let _ = writeln!(out, "mode {mode}   generation {generation}   node {}", text(&status["node"]));
    let _ = writeln!(
        out,
        "registry revision {}, known to be true {} s ago{}{}",
        text(&status["registry"]["revision"]),
        text(&status["registry"]["ageSeconds"]),
        if status["registry"]["connected"] == Value::Bool(false) {
            ", NOT IN STEP WITH ITS SOURCE"
        } else {
            ""
        },
        if status["registry"]["complete"] == Value::Bool(false) {
            ", incomplete: nothing is removed until it can be read"
        } else {
            ""
        }
    );
    if let Some(refused) = status["refused"].as_str() {
        let _ = writeln!(out, "LAST POLICY REFUSED: {refused}");
    }
    let mut hooks = table(&["HOOK", "TARGET", "STATE"]);
    for hook in rows(&status["hooks"]) {
        let attached = hook["attached"] == Value::Bool(true);
        let state = if attached { "attached".to_owned() } else { text(&hook["detail"]) };
        hooks.add_row([text(&hook["hook"]), text(&hook["target"]), state]);
    }
    let mut pods = table(&["POD", "POLICY", "MODE", "CAPTURE", "STATE", "UNENFORCED"]);
    for pod in rows(&status["pods"]) {
        pods.add_row([
            name(&pod["pod"]),
            text(&pod["policy"]),
            text(&pod["mode"]),
            text(&pod["capture"]),
            text(&pod["state"]),
            exposure(&pod["exposure"]),
        ]);
    }
    let mut gateways = table(&["GATEWAY", "ENDPOINT", "STATE", "POD"]);
    for gateway in rows(&status["gateways"]) {
        let endpoints: Vec<&Value> = rows(&gateway["endpoints"]).collect();
        if endpoints.is_empty() {
            gateways.add_row([name(&gateway["name"]), "none".into(), String::new(), String::new()]);
        }
        for endpoint in endpoints {
            let draining = endpoint["draining"] == Value::Bool(true);
            let pod = &endpoint["pod"];
            gateways.add_row([
                name(&gateway["name"]),
                format!("{}:{}", text(&endpoint["ip"]), text(&endpoint["port"])),
                if draining { "draining" } else { "serving" }.to_owned(),
                if pod.is_null() { "(Service)".to_owned() } else { name(pod) },
            ]);
        }
    }
    for block in [hooks, pods, gateways] {
        let _ = writeln!(out, "\n{}", block.trim_fmt());
    }
    if rows(&status["pods"]).any(|pod| pod["state"] == "host_network") {
        let _ = writeln!(
            out,
            "\nhost_network: judged at their sockets only; with CAP_NET_RAW no network hook contains \
             them"
        );
    }
    for problem in rows(&status["problems"]) {
        let origin = &problem["origin"];
        let file = origin["file"].as_str().map(|file| format!(" ({file})")).unwrap_or_default();
        let _ = write!(
            out,
            "\nproblem {}: {} {}",
            text(&problem["code"]),
            text(&origin["kind"]),
            text(&origin["name"])
        );
        let _ = write!(out, "{file}: {}", text(&problem["message"]));
    }
    out.truncate(out.trim_end().len());
    out
}

/// `doctor` for people.
pub fn checks(checks: &[Check]) -> String {
    let mut out = table(&["CHECK", "STATUS", "FOUND"]);
    for check in checks {
        let status = match check.status {
            CheckStatus::Ok => "OK",
            CheckStatus::Warn => "WARN",
            CheckStatus::Fail => "FAIL",
        };
        let remedy = if check.remedy.is_empty() {
            check.detail.clone()
        } else {
            format!("{}: {}", check.detail, check.remedy)
        };
        out.add_row([check.name, status, &remedy]);
    }
    out.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn status_names_what_an_operator_looks_for() {
        let shown = status(&json!({
            "mode": "enforce", "generation": 3, "node": "node-a",
            "registry":
                {"revision": 2, "ageSeconds": 70, "connected": false, "complete": true},
            "hooks": [{"hook": "wall", "target": "kubepods", "attached": true, "detail": ""}],
            "pods": [{"pod": {"namespace": "shop", "name": "cart"}, "policy": "shop",
                      "mode": "enforce", "capture": "none", "state": "no_interface"},
                     {"pod": {"namespace": "shop", "name": "exporter"}, "policy": "shop",
                      "mode": "audit", "capture": "none", "state": "host_network"}],
            "gateways": [{"name": {"namespace": "istio-system", "name": "egw"}, "endpoints": []}],
            "problems": [{"code": "gateway_empty", "message": "has no endpoint",
                          "origin": {"kind": "EgressPolicy", "name": "shop", "file": "p.yaml:1"}}],
        }));
        for expected in [
            "mode enforce",
            "generation 3",
            "known to be true 70 s ago, NOT IN STEP WITH ITS SOURCE",
            "wall",
            "shop/cart",
            "no_interface",
            "with CAP_NET_RAW no network hook contains them",
            "istio-system/egw",
            "none",
            "EgressPolicy shop (p.yaml:1): has no endpoint",
        ] {
            assert!(shown.contains(expected), "{expected}: {shown}");
        }
    }
}
