//! Who may read metrics, as a real API server says.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egress_agent::registry::metrics_rights;
use egress_tests::agent::{self, Agent, HEALTH, METRICS};
use egress_tests::control_plane::{self, ControlPlane, Relay};
use egress_tests::http;
use egress_tests::kube_lab::{KubeLab, registry};
use egress_tests::lab::Lab;
use egress_tests::manifests;
use egress_tests::process::wait_until;
use serde_json::json;

/// An agent that asks who reads, with the rights of deploy/ and those that asking takes.
struct Guarded {
    _agent: Agent,
    relay: Relay,
    lab: Lab,
}

fn guarded(plane: &ControlPlane) -> Result<Guarded> {
    plane.cluster.install_istio()?;
    let (lab, _) = KubeLab::prepare(plane, "enforce")?;
    plane.deploy()?;
    plane.cluster.apply_all(&metrics_rights())?;
    let token = plane.agent_token("node-a")?;
    let (relay, kubeconfig) = plane.relay(&lab, Some(&token))?;
    manifests::config(&lab.file("agent.yaml"), "metrics: {authenticate: true}\n")?;
    let agent = Agent::start_on(&lab, &registry(&kubeconfig), &[])?;
    Ok(Guarded { _agent: agent, relay, lab })
}

impl Guarded {
    fn read(&self, token: Option<&str>) -> Result<(u16, String)> {
        let header = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
        let header = header.unwrap_or_default();
        self.lab.node.run(|| http::get_with(METRICS, "/metrics", &header))
    }
}

/// What no tenant may learn of another: names of pods, workloads, namespaces and gateways.
const NAMES: [&str; 5] = ["cart", "checkout", "ledger", "bank", "istio-egressgateway"];

fn names_nobody(text: &str) -> Result<()> {
    for name in NAMES {
        ensure!(!text.contains(name), "{name}: {text}");
    }
    Ok(())
}

#[test]
fn whoever_may_read_metrics_does_and_nobody_else() -> Result<()> {
    let plane = control_plane::shared()?;
    let guarded = guarded(&plane)?;
    let reads = json!([{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]);
    let prometheus = plane.account("prometheus", reads)?;
    // Everything in a tenant's own namespaces, and nothing beyond.
    let everything = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    let tenant = plane.account("tenant", everything)?;

    wait_until("the roles are in force", Duration::from_secs(10), || {
        Ok(guarded.read(Some(&plane.token("prometheus", &[])?))?.0 == 200)
    })?;
    let (status, text) = guarded.read(Some(&prometheus))?;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("source_pod=\"cart\""), "{text}");

    let other_audience = plane.token("prometheus", &["https://vault.example"])?;
    for (who, token, expected) in [
        ("a tenant", Some(&*tenant), 403),
        ("nobody", None, 401),
        ("somebody made up", Some("made.up.token"), 401),
        ("another server's client", Some(&*other_audience), 401),
    ] {
        let (status, text) = guarded.read(token)?;
        assert_eq!(status, expected, "{who}: {text}");
        names_nobody(&text)?;
        // The second answer is a remembered one.
        assert_eq!(guarded.read(token)?.0, expected, "{who}");
    }
    for path in ["/livez", "/readyz", "/metrics", "/status"] {
        let (_, text) = guarded.lab.node.run(|| http::get(HEALTH, path))?;
        names_nobody(&text)?;
    }

    // Without the server, what is remembered is let in and nobody else.
    guarded.relay.cut();
    assert_eq!(guarded.read(Some(&prometheus))?.0, 200);
    let (status, text) = guarded.read(Some(&plane.token("prometheus", &[])?))?;
    assert_eq!(status, 503, "{text}");
    names_nobody(&text)?;
    assert_eq!(agent::probe(&guarded.lab, "/livez")?.0, 200);
    assert_eq!(agent::probe(&guarded.lab, "/readyz")?.0, 200);
    guarded.relay.mend();
    let late = plane.token("prometheus", &[])?;
    wait_until("a new token is let in again", Duration::from_secs(20), || {
        Ok(guarded.read(Some(&late))?.0 == 200)
    })?;
    Ok(())
}

#[test]
fn an_agent_that_may_not_ask_refuses_and_says_what_it_lacks() -> Result<()> {
    let plane = control_plane::shared()?;
    let guarded = guarded(&plane)?;
    for object in metrics_rights() {
        if object["kind"] == "ClusterRoleBinding" {
            plane.cluster.delete(&control_plane::Reference::to(&object)?)?;
        }
    }
    let reads = json!([{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]);
    plane.account("prometheus", reads)?;
    wait_until("nobody is let in", Duration::from_secs(10), || {
        Ok(guarded.read(Some(&plane.token("prometheus", &[])?))?.0 == 503)
    })?;
    let log = std::fs::read_to_string(guarded.lab.file("log/agent")).context("the agent's log")?;
    assert!(log.contains("--metrics-authentication"), "{log}");
    Ok(())
}
