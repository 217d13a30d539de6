//! The API server and the agent's parser agree about our own objects.
//!
//! Every case is sent to a real API server, which stores nothing (a dry run), and read by the
//! agent's parser: both take it or both refuse it, and both name the field.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use egress_agent::registry;
use egress_tests::agent::binary;
use egress_tests::control_plane::{self, ControlPlane, Reference, documents};
use egress_tests::process::wait_until;
use http::Request;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const GROUP: &str = "/apis/egress-enforcer.io/v1alpha1";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Requests as they are on the wire, for parameters that clients hide.
struct Raw {
    client: Client,
    runtime: Runtime,
}

impl Raw {
    fn connect(plane: &ControlPlane) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let file = Kubeconfig::read_from(plane.kubeconfig())?;
        let client = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(file, &options).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Self { client, runtime })
    }

    /// The answer, or the message of the refusal.
    fn send(&self, request: http::request::Builder, body: &Value) -> Result<Result<Value, String>> {
        let request = request.body(serde_json::to_vec(body)?)?;
        match self.runtime.block_on(self.client.request::<Value>(request)) {
            Ok(answer) => Ok(Ok(answer)),
            Err(kube::Error::Api(status)) => Ok(Err(status.message.clone())),
            Err(error) => Err(error).context("ask the API server"),
        }
    }

    /// What the server would store of an object, or why it would not.
    fn judge(&self, object: &Value) -> Result<Result<Value, String>> {
        let plural =
            if object["kind"] == "EgressPolicy" { "egresspolicies" } else { "egressexceptions" };
        let path = format!("{GROUP}/{plural}?dryRun=All&fieldValidation=Strict");
        self.send(Request::post(path).header("content-type", "application/json"), object)
    }
}

fn setup() -> Result<(std::sync::MutexGuard<'static, ControlPlane>, Raw)> {
    let plane = control_plane::shared()?;
    plane.cluster.install_own()?;
    let raw = Raw::connect(&plane)?;
    Ok((plane, raw))
}

fn printed() -> Result<Vec<Value>> {
    let output = Command::new(binary()?).arg("crd").output()?;
    ensure!(output.status.success(), "egress-agent crd: {output:?}");
    documents(&String::from_utf8(output.stdout)?)
}

#[test]
fn the_definitions_are_applied_strictly_and_become_established() -> Result<()> {
    let (plane, raw) = setup()?;
    for definition in printed()? {
        let name = definition["metadata"]["name"].as_str().context("a name")?;
        let path = format!("{DEFINITIONS}/{name}");
        let parameters = "fieldManager=kubectl&force=true&fieldValidation=Strict";
        let request = Request::patch(format!("{path}?{parameters}"))
            .header("content-type", "application/apply-patch+yaml");
        let applied = raw.send(request, &definition)?;
        ensure!(applied.is_ok(), "{name}: {applied:?}");
        let reference =
            Reference::of_cluster("apiextensions.k8s.io/v1", "CustomResourceDefinition", name);
        let is = |object: &Value, wanted: &str| {
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|one| one["type"] == wanted && one["status"] == "True")
        };
        wait_until("the definition is established", std::time::Duration::from_secs(10), || {
            Ok(is(&plane.cluster.get(&reference)?, "Established"))
        })?;
        let stored = plane.cluster.get(&reference)?;
        ensure!(!is(&stored, "NonStructuralSchema"), "{}", stored["status"]);
        // Nothing was dropped: what is in force is what the agent prints.
        let versions = &stored["spec"]["versions"][0];
        let expected = &definition["spec"]["versions"][0];
        ensure!(versions["schema"] == expected["schema"], "{name}: {versions:#}");
    }
    Ok(())
}

#[test]
fn json_says_the_same_as_yaml() -> Result<()> {
    let output = Command::new(binary()?).args(["crd", "-o", "json"]).output()?;
    let list: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(list["kind"], "List");
    assert_eq!(list["items"], Value::Array(printed()?));
    Ok(())
}

fn policy(change: impl Fn(&mut Value)) -> Value {
    let mut policy = json!({
        "apiVersion": "egress-enforcer.io/v1alpha1",
        "kind": "EgressPolicy",
        "metadata": {"name": "shop"},
        "spec": {
            "selector": {"namespaces": ["shop"]},
            "mode": "enforce",
            "gateways": [{
                "namespace": "istio-system",
                "service": "istio-egressgateway",
                "serviceAccount": "istio-egressgateway-service-account",
            }],
        },
    });
    change(&mut policy["spec"]);
    policy
}

fn exception(change: impl Fn(&mut Value)) -> Value {
    let mut exception = json!({
        "apiVersion": "egress-enforcer.io/v1alpha1",
        "kind": "EgressException",
        "metadata": {"name": "outage"},
        "spec": {
            "scope": {"namespaces": ["shop"]},
            "destination": {"cidr": "198.51.100.0/24", "ports": [{"port": 443, "protocol": "TCP"}]},
            "expiresAt": "2026-12-01T00:00:00Z",
            "reason": "gateway outage",
            "requester": "oncall@example.com",
        },
    });
    change(&mut exception["spec"]);
    exception
}

/// The policy with one field of its spec set.
fn with(path: &str, value: Value) -> Value {
    policy(|spec| set(spec, path, value.clone()))
}

/// The exception with one field of its spec set.
fn excepting(path: &str, value: Value) -> Value {
    exception(|spec| set(spec, path, value.clone()))
}

/// Sets what a pointer names; a null removes it.
fn set(spec: &mut Value, path: &str, value: Value) {
    let (parent, name) = path.rsplit_once('/').expect("a pointer has a slash");
    let parent = spec.pointer_mut(parent).expect("the parent is there");
    match (parent, value) {
        (Value::Object(map), Value::Null) => drop(map.remove(name)),
        (Value::Object(map), value) => drop(map.insert(name.to_owned(), value)),
        (other, _) => panic!("{path}: {other} is no object"),
    }
}

/// Sets every field of `change`.
fn merge(object: &mut Value, change: &Value) {
    for (name, value) in change.as_object().into_iter().flatten() {
        set(object, &format!("/{name}"), value.clone());
    }
}

/// Cases that both take.
fn valid() -> Vec<Value> {
    let gateway = |change: Value| {
        let mut gateway = json!({"namespace": "istio-system", "serviceAccount": "egress"});
        merge(&mut gateway, &change);
        with("/gateways", json!([gateway]))
    };
    vec![
        policy(|_| {}),
        with("/selector", json!({})),
        with(
            "/selector",
            json!({
                "namespaces": [],
                "namespaceSelector": {"matchLabels": {"team": "pay"}},
                "podSelector": {"matchLabels": {"app": "api", "empty": ""}},
            }),
        ),
        with("/mode", json!("off")),
        with("/mode", json!("audit")),
        with("/priority", json!(-5)),
        with("/priority", json!(i32::MAX)),
        with("/gateways", Value::Null),
        with("/gateways", json!([])),
        gateway(json!({"gateway": "egress"})),
        gateway(json!({"podSelector": {"matchLabels": {"app": "egress"}}, "ports": [8443, 15008]})),
        gateway(json!({"service": "egress", "ports": []})),
        with("/clusterRanges", json!([])),
        with("/clusterRanges", json!(["10.0.0.0/8", "fd00::/16", "192.0.2.1/32", "FD00:1::/32"])),
        with("/resolvers", json!(["169.254.20.10", "2001:db8::53"])),
        with("/infrastructure", json!({})),
        with(
            "/infrastructure",
            json!({
                "apiServer": false,
                "istiod": false,
                "addresses": [{"ip": "192.0.2.9", "port": 4317}],
            }),
        ),
        with("/nodes", json!([{"ip": "192.0.2.1", "port": 53, "protocol": "UDP"}])),
        with("/nodes", json!([{"ip": "2001:db8::1", "port": 65535, "protocol": "TCP"}])),
        with("/inboundRanges", json!(["203.0.113.0/24"])),
        with("/rateLimit", json!({"connectionsPerSecond": 1})),
        with("/rateLimit", json!({"connectionsPerSecond": 100, "burst": 1_000_000})),
        with("/rateLimit", json!({"namespace": {"connectionsPerSecond": 5, "burst": 7}})),
        with("/redirect", json!({"ports": [{"port": 443}, {"port": 80, "gatewayPort": 8080}]})),
        with("/denyResponse", json!("Drop")),
        with("/hostNetwork", json!(true)),
        with("/narrow", json!(true)),
        with("/onAgentLoss", json!("denyNew")),
        exception(|_| {}),
        excepting("/scope", json!({})),
        excepting("/destination", json!({"cidr": "0.0.0.0/0"})),
        excepting(
            "/destination",
            json!({"cidr": "2001:db8::/128", "ports": [{"protocol": "UDP"}]}),
        ),
        excepting("/destination", json!({"cidr": "203.0.113.7/32", "ports": [{}]})),
        excepting("/expiresAt", json!("2026-12-01T00:00:00.25+05:30")),
        excepting("/expiresAt", json!("2020-01-01T00:00:00Z")),
        excepting("/reason", json!("Störung am Gateway")),
    ]
}

/// Cases that both refuse, with the field both name and what the server says of it.
fn invalid() -> Vec<(Value, &'static str, &'static str)> {
    let gateway = |change: Value| {
        let mut gateway = json!({"namespace": "istio-system", "serviceAccount": "egress"});
        merge(&mut gateway, &change);
        with("/gateways", json!([gateway]))
    };
    let range = |text: &str| with("/clusterRanges", json!(["10.0.0.0/8", text]));
    let cidr = |text: &str| excepting("/destination", json!({"cidr": text}));
    let redirect = |value: Value| with("/redirect", value);
    let address = |text: &str| with("/nodes", json!([{"ip": text, "port": 53}]));
    vec![
        (with("/selector", Value::Null), "spec.selector", "Required value"),
        (
            with("/selector", json!({"namespace": "shop"})),
            "spec.selector.namespace",
            "unknown field",
        ),
        (
            with("/selector", json!({"namespaces": "shop"})),
            "spec.selector.namespaces",
            "type array",
        ),
        (
            with("/selector", json!({"namespaces": [""]})),
            "spec.selector.namespaces[0]",
            "at least 1",
        ),
        (
            with("/selector", json!({"podSelector": {"matchExpressions": []}})),
            "spec.selector.podSelector.matchExpressions",
            "unknown field",
        ),
        (with("/mode", Value::Null), "spec.mode", "Required value"),
        (with("/mode", json!("enforced")), "spec.mode", "supported values"),
        // What a YAML 1.1 reader makes of a bare `off`.
        (with("/mode", json!(false)), "spec.mode", "must be of type string: \"boolean\""),
        (with("/priority", json!("high")), "spec.priority", "type integer"),
        (with("/priority", json!(3_000_000_000_i64)), "spec.priority", "int32"),
        (with("/gatways", json!([])), "spec.gatways", "unknown field"),
        (gateway(json!({})), "spec.gateways[0]", "exactly one of service, gateway and podSelector"),
        (
            gateway(json!({"service": "a", "gateway": "b"})),
            "spec.gateways[0]",
            "exactly one of service, gateway and podSelector",
        ),
        (gateway(json!({"service": ""})), "spec.gateways[0]", "at least 1"),
        (
            gateway(json!({"service": "a", "serviceAccount": null})),
            "spec.gateways[0].serviceAccount",
            "Required value",
        ),
        (
            gateway(json!({"service": "a", "namespace": ""})),
            "spec.gateways[0].namespace",
            "at least 1",
        ),
        (
            gateway(json!({"service": "a", "ports": [443]})),
            "spec.gateways[0].ports",
            "only for podSelector",
        ),
        (
            gateway(json!({"podSelector": {"matchLabels": {"a": "b"}}})),
            "spec.gateways[0].ports",
            "required with podSelector",
        ),
        (
            gateway(json!({"podSelector": {"matchLabels": {"a": "b"}}, "ports": [0]})),
            "spec.gateways[0].ports",
            "greater than or equal to 1",
        ),
        (
            gateway(json!({"podSelector": {"matchLabels": {"a": "b"}}, "ports": [65536]})),
            "spec.gateways[0].ports",
            "less than or equal to 65535",
        ),
        (
            gateway(json!({"podSelector": {}, "ports": [443]})),
            "spec.gateways[0].podSelector",
            "trust every pod",
        ),
        (range("10.1.2.3/16"), "spec.clusterRanges[1]", "host bits"),
        (range("10.0.0.0"), "spec.clusterRanges[1]", "is not a range"),
        (range("010.0.0.0/8"), "spec.clusterRanges[1]", "is not a range"),
        (range("10.0.0.0/08"), "spec.clusterRanges[1]", "is not a range"),
        (range("10.0.0.0/7"), "spec.clusterRanges[1]", "wider than /8"),
        (range("0.0.0.0/0"), "spec.clusterRanges[1]", "wider than /8"),
        (range("::/0"), "spec.clusterRanges[1]", "wider than /8"),
        (range("fc00::/15"), "spec.clusterRanges[1]", "wider than /8"),
        (range("127.0.0.0/8"), "spec.clusterRanges[1]", "no rule can allow it"),
        (range("::ffff:10.0.0.0/104"), "spec.clusterRanges[1]", "is not a range"),
        (
            with("/inboundRanges", json!(["224.0.0.0/4"])),
            "spec.inboundRanges[0]",
            "no rule can allow it",
        ),
        (with("/clusterRanges", json!("all")), "spec.clusterRanges", "type array"),
        (with("/resolvers", json!(["dns.example"])), "spec.resolvers[0]", "is not an IP address"),
        (with("/resolvers", json!(["::ffff:192.0.2.1"])), "spec.resolvers[0]", "written as IPv4"),
        (with("/resolvers", json!(["127.0.0.53"])), "spec.resolvers[0]", "loopback"),
        (address("0.0.0.0"), "spec.nodes[0].ip", "unspecified"),
        (address("ff02::1"), "spec.nodes[0].ip", "multicast"),
        (address("239.1.2.3"), "spec.nodes[0].ip", "multicast"),
        (
            with("/nodes", json!([{"ip": "192.0.2.1", "port": 0}])),
            "spec.nodes[0].port",
            "greater than or equal to 1",
        ),
        (with("/nodes", json!([{"port": 53}])), "spec.nodes[0]", "Required value"),
        (
            with("/nodes", json!([{"ip": "192.0.2.1", "port": 1, "protocol": "tcp"}])),
            "spec.nodes[0].protocol",
            "supported values",
        ),
        (with("/rateLimit", json!(5)), "spec.rateLimit", "type object"),
        (with("/rateLimit", json!({})), "spec.rateLimit", "is empty"),
        (
            with("/rateLimit", json!({"burst": 5})),
            "spec.rateLimit.connectionsPerSecond",
            "required with burst",
        ),
        (
            with("/rateLimit", json!({"namespace": {"connectionsPerSecond": 0}})),
            "spec.rateLimit.namespace.connectionsPerSecond",
            "greater than or equal to 1",
        ),
        (
            with("/rateLimit", json!({"namespace": {"burst": 3}})),
            "spec.rateLimit.namespace.connectionsPerSecond",
            "Required value",
        ),
        (
            with("/rateLimit", json!({"connectionsPerSecond": 5, "burst": 1_000_001})),
            "spec.rateLimit.burst",
            "less than or equal to 1000000",
        ),
        (redirect(json!({})), "spec.redirect.ports", "Required value"),
        (redirect(json!({"ports": []})), "spec.redirect.ports", "at least 1"),
        (
            redirect(json!({"ports": [{"gatewayPort": 8443}]})),
            "spec.redirect.ports[0].port",
            "Required value",
        ),
        (redirect(json!({"ports": [{"port": 0}]})), "spec.redirect.ports[0].port", "or equal to 1"),
        (redirect(json!({"ports": [{"port": 853}]})), "spec.redirect.ports[0].port", "is DNS"),
        (
            redirect(json!({"ports": [{"port": 443}, {"port": 443, "gatewayPort": 1}]})),
            "spec.redirect.ports[1]",
            "Duplicate value",
        ),
        (
            policy(|spec| {
                set(spec, "/gateways", json!([]));
                set(spec, "/redirect", json!({"ports": [{"port": 443}]}));
            }),
            "spec.redirect",
            "needs a gateway",
        ),
        (with("/denyResponse", json!("reset")), "spec.denyResponse", "supported values"),
        (with("/onAgentLoss", json!("allow")), "spec.onAgentLoss", "supported values"),
        (with("/hostNetwork", json!("yes")), "spec.hostNetwork", "type boolean"),
        (with("/narrow", json!({})), "spec.narrow", "type boolean"),
        (excepting("/scope", Value::Null), "spec.scope", "Required value"),
        (excepting("/destination", Value::Null), "spec.destination", "Required value"),
        (excepting("/expiresAt", Value::Null), "spec.expiresAt", "Required value"),
        (excepting("/reason", Value::Null), "spec.reason", "Required value"),
        (excepting("/requester", Value::Null), "spec.requester", "Required value"),
        (excepting("/reason", json!("")), "spec.reason", "required: say it in words"),
        (excepting("/requester", json!(" \t")), "spec.requester", "required: say it in words"),
        (excepting("/approver", json!("bob")), "spec.approver", "unknown field"),
        (excepting("/expiresAt", json!("tomorrow")), "spec.expiresAt", "date-time"),
        (excepting("/expiresAt", json!("2026-12-01")), "spec.expiresAt", "spec.expiresAt in body"),
        (excepting("/expiresAt", json!("2026-12-01T00:00:00")), "spec.expiresAt", "should match"),
        (excepting("/expiresAt", json!("2026-13-01T00:00:00Z")), "spec.expiresAt", "date-time"),
        (cidr("203.0.113.1/24"), "spec.destination.cidr", "host bits"),
        (cidr("169.254.169.254/32"), "spec.destination.cidr", "no rule can allow it"),
        (cidr("fe80::/64"), "spec.destination.cidr", "no rule can allow it"),
        (cidr("example.com"), "spec.destination.cidr", "is not a range"),
        (
            excepting("/destination", json!({"cidr": "203.0.113.0/24", "ports": [{"port": 0}]})),
            "spec.destination.ports[0].port",
            "greater than or equal to 1",
        ),
    ]
}

#[test]
fn what_the_api_server_takes_the_parser_takes() -> Result<()> {
    let (_plane, raw) = setup()?;
    for object in valid() {
        let stored = match raw.judge(&object)? {
            Ok(stored) => stored,
            Err(message) => bail!("the API server refuses {object:#}\n{message}"),
        };
        // As its author wrote it, and as the server gives it to the agent: with defaults.
        for (whose, object) in [("the author", &object), ("the API server", &stored)] {
            if let Err(message) = registry::verdict(object) {
                bail!("the parser refuses what {whose} gives: {object:#}\n{message}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_examples_of_the_documentation_are_taken() -> Result<()> {
    let (_plane, raw) = setup()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (file, expected) in [("README.md", 2), ("docs/policy.md", 5)] {
        let text = std::fs::read_to_string(root.join(file))?;
        let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let mut taken = 0;
        for block in blocks.filter(|block| block.contains("kind: Egress")) {
            for object in documents(block)? {
                if let Err(message) = raw.judge(&object)? {
                    bail!("{file}: {block}\n{message}");
                }
                registry::verdict(&object).map_err(anyhow::Error::msg)?;
                taken += 1;
            }
        }
        ensure!(taken >= expected, "{file}: only {taken} examples");
    }
    Ok(())
}

#[test]
fn what_the_api_server_refuses_the_parser_refuses_and_both_name_the_field() -> Result<()> {
    let (_plane, raw) = setup()?;
    let mut wrong = Vec::new();
    for (object, field, expected) in invalid() {
        match raw.judge(&object)? {
            Ok(_) => wrong.push(format!("{field}: the API server takes {}", object["spec"])),
            Err(message) if !message.contains(field) || !message.contains(expected) => {
                wrong.push(format!("{field}: {expected} is not in the API server's: {message}"));
            }
            Err(_) => {}
        }
        match registry::verdict(&object) {
            Ok(()) => wrong.push(format!("{field}: the parser takes {}", object["spec"])),
            Err(message) if !message.contains(field) => {
                wrong.push(format!("{field} is not in the parser's: {message}"));
            }
            Err(_) => {}
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The differences that are meant; docs/policy.md names them.
#[test]
fn the_differences_are_those_that_are_documented() -> Result<()> {
    let (_plane, raw) = setup()?;
    // The word `auto` is for manifests of a directory; in the API it is leaving the field out.
    let word = with("/clusterRanges", json!("auto"));
    assert!(registry::verdict(&word).is_ok() && raw.judge(&word)?.is_err());
    // The same goes for a port that is a number alone.
    let number = with("/redirect", json!({"ports": [443]}));
    assert!(registry::verdict(&number).is_ok() && raw.judge(&number)?.is_err());
    // The API server limits lists and texts.
    let long = with("/inboundRanges", json!(vec!["203.0.113.0/24"; 257]));
    let refusal = raw.judge(&long)?.unwrap_err();
    assert!(registry::verdict(&long).is_ok() && refusal.contains("at most 256"), "{refusal}");
    // A writer that does not ask for strict validation loses unknown fields, and is warned.
    let unknown = with("/gatways", json!([]));
    let request = Request::post(format!("{GROUP}/egresspolicies?dryRun=All&fieldValidation=Warn"))
        .header("content-type", "application/json");
    let stored = raw.send(request, &unknown)?.unwrap();
    assert!(stored["spec"].get("gatways").is_none() && registry::verdict(&unknown).is_err());
    Ok(())
}

#[test]
fn defaults_are_written_where_they_say_something() -> Result<()> {
    let (_plane, raw) = setup()?;
    let stored = raw.judge(&with("/infrastructure", json!({"istiod": false})))?.unwrap();
    let spec = &stored["spec"];
    assert_eq!(
        (&spec["priority"], &spec["denyResponse"], &spec["onAgentLoss"]),
        (&json!(0), &json!("Reset"), &json!("hold"))
    );
    assert_eq!(spec["infrastructure"], json!({"apiServer": true, "istiod": false}));
    // Nothing is written for what follows from the cluster.
    assert!(spec.get("clusterRanges").is_none() && spec.get("resolvers").is_none());
    Ok(())
}

#[test]
fn kubectl_shows_what_matters() -> Result<()> {
    let (plane, raw) = setup()?;
    plane.clear()?;
    plane.cluster.apply(&with("/priority", json!(7)))?;
    let reference = Reference::of_cluster("egress-enforcer.io/v1alpha1", "EgressPolicy", "shop");
    let condition = json!({
        "type": "Accepted", "status": "True", "reason": "Valid", "message": "",
        "observedGeneration": 1, "lastTransitionTime": "2026-11-25T00:00:00Z",
    });
    plane.cluster.patch_status(&reference, &json!({"conditions": [condition]}))?;
    plane.cluster.apply(&exception(|_| {}))?;
    let table = |plural: &str| -> Result<Vec<(String, String)>> {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let request = Request::get(format!("{GROUP}/{plural}")).header("accept", accept);
        let table = raw.send(request, &Value::Null)?.map_err(anyhow::Error::msg)?;
        let columns = table["columnDefinitions"].as_array().context("columns")?;
        let cells = table["rows"][0]["cells"].as_array().context("a row")?;
        let shown = columns.iter().zip(cells).filter(|(column, _)| column["priority"] == 0);
        Ok(shown
            .map(|(column, cell)| {
                let cell = cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
                (column["name"].as_str().unwrap_or_default().to_owned(), cell)
            })
            .collect())
    };
    let pairs = |expected: &[(&str, &str)]| -> Vec<(String, String)> {
        expected.iter().map(|(name, cell)| ((*name).to_owned(), (*cell).to_owned())).collect()
    };
    let policies = table("egresspolicies")?;
    let expected = [("Name", "shop"), ("Mode", "enforce"), ("Priority", "7"), ("Accepted", "True")];
    assert_eq!(policies[..4], pairs(&expected));
    assert_eq!(policies[4].0, "Age");
    let exceptions = table("egressexceptions")?;
    let expected = [
        ("Name", "outage"),
        ("Destination", "198.51.100.0/24"),
        ("Expires", "2026-12-01T00:00:00Z"),
        ("Requester", "oncall@example.com"),
    ];
    assert_eq!(exceptions[..4], pairs(&expected));
    plane.clear()
}

#[test]
fn status_is_a_subresource_that_changes_no_generation() -> Result<()> {
    let (plane, _raw) = setup()?;
    plane.clear()?;
    plane.cluster.apply(&policy(|_| {}))?;
    let reference = Reference::of_cluster("egress-enforcer.io/v1alpha1", "EgressPolicy", "shop");
    let changed =
        plane.cluster.patch(&reference, &json!({"status": {"conditions": [{"type": "X"}]}}))?;
    assert!(changed.get("status").is_none(), "{changed:#}");
    assert_eq!(changed["metadata"]["generation"], 1);
    let changed = plane.cluster.patch(&reference, &json!({"spec": {"mode": "audit"}}))?;
    assert_eq!(changed["metadata"]["generation"], 2);
    plane.clear()
}
