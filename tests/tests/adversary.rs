//! Nothing gets around: every attack we know, on both wirings and over both families, first where
//! nothing enforces and then under enforcement.

use std::io::Write;

use anyhow::Result;
use egress_tests::address::STRIPE;
use egress_tests::adversary::legit::{self, Older, Told, World};
use egress_tests::adversary::run::{Cgroup, Held, Report, play, scenes};
use egress_tests::adversary::stage::Stage;
use egress_tests::adversary::{Family, Scene, When};
use egress_tests::agent::{self, Agent};
use egress_tests::lab::Lab;
use egress_tests::manifests;
use egress_tests::mesh::{Mesh, PLAIN_HOST, TLS_HOST};
use egress_tests::process::{Place, nft, wait_until};
use egress_tests::scenario::{Scenario, to};
use egress_tests::sniffer::Sniffer;
use egress_tests::wiring::Wiring;

mod adversary {
    use super::*;

    #[test]
    fn every_attack_arrives_without_enforcement_and_none_under_it() -> Result<()> {
        let mut report = Report::default();
        for wiring in Wiring::ALL {
            attack(wiring, &mut report)?;
        }
        writeln!(std::io::stderr(), "{}", report.table())?;
        assert_eq!(report.faults(), Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn every_legitimate_vector_works_under_enforcement() -> Result<()> {
        let mut broken = Vec::new();
        for wiring in Wiring::ALL {
            for (vector, told) in legitimate(wiring)? {
                let (ok, said) = match told {
                    Ok(said) => ("works", said),
                    Err(said) => ("BROKEN", said),
                };
                writeln!(std::io::stderr(), "{:6} {vector:50} {ok:8} {said}", wiring.name())?;
                if ok != "works" {
                    broken.push(format!("{vector}, {}: {said}", wiring.name()));
                }
            }
        }
        assert_eq!(broken, Vec::<String>::new());
        Ok(())
    }
}

/// Every vector on one wiring.
fn legitimate(wiring: Wiring) -> Result<Vec<Told>> {
    let lab = Lab::wired(wiring)?;
    let mut world = World::new(&lab)?;
    let registry = lab.file("registry");
    manifests::write(&registry, "enforce")?;
    manifests::replace(&registry.join("more.yaml"), MORE)?;
    let policy = std::fs::read_to_string(registry.join("policy.yaml"))?;
    let resolvers = format!("resolvers: [{}, \"{}\", ", legit::DNS.v4, legit::DNS.v6);
    manifests::replace(&registry.join("policy.yaml"), &policy.replace("resolvers: [", &resolvers))?;
    let big = Sniffer::start(&lab.gateway.netns, "eth0")?;
    let mut older = Older::open(&lab)?;
    let agent = Agent::start(&lab, &[])?;
    let scenario = Scenario { agent, lab };
    let lab = &scenario.lab;
    agent::wait_for_mode(lab, "enforce")?;
    wait_for_boundaries(lab)?;

    let mut told = older.go_on();
    let before = legit::too_big(lab)?;
    for (family, before) in Family::ALL.into_iter().zip(before) {
        let name = |(what, told): Told| (format!("v{} {what}", family.digit()), told);
        told.extend(world.vectors(lab, family)?.into_iter().map(name));
        let after = legit::too_big(lab)?[family as usize];
        let discovered =
            if after > before { Ok(String::new()) } else { Err("none sent".to_owned()) };
        told.push((format!("v{} too big, said outside", family.digit()), discovered));
    }
    // How long segments become is the windows' to say.
    let longest = big.since(0)?.iter().filter(|f| f.src.is_ipv6()).map(|f| f.length).max();
    let bulk = longest.ok_or_else(|| "no frame".to_owned());
    let said = bulk.map(|length| format!("longest frame of at least {length} bytes"));
    told.push(("v6 bulk where segments may be BIG TCP's".to_owned(), said));

    // The sidecar's capture, by real proxies.
    world.clear_gateway();
    let mesh = Mesh::start(lab)?;
    let app = Place { user: Some((1000, 1000)), ..lab.checkout.place() };
    for (what, arguments, answer) in [
        ("TLS", ["tcp", &to(STRIPE.v4, 443), "--sni", TLS_HOST], "TLS"),
        ("HTTP", ["tcp", &to(STRIPE.v4, 80), "--http", PLAIN_HOST], "HTTP/1.1 200 OK"),
    ] {
        let outcome = lab.attempt(&app, &arguments)?;
        let right = outcome.ok && outcome.answer == answer;
        let said = format!("{outcome:?}");
        told.push((
            format!("v4 {what} captured by the sidecar"),
            if right { Ok(outcome.answer) } else { Err(said) },
        ));
    }
    drop(mesh);
    nft(&Place { netns: Some(&lab.checkout.netns), ..Place::default() }, "delete table ip mesh\n")?;

    // The same pod under ambient.
    let sidecar = "sidecar.istio.io/status: '{\"containers\":[\"istio-proxy\"]}'";
    let container = "  - {name: istio-proxy, image: istio/proxyv2, \
                     securityContext: {runAsUser: 1337, runAsGroup: 1337}}\n";
    scenario.edit("cluster.yaml", container, "")?;
    scenario.edit("cluster.yaml", sidecar, "ambient.istio.io/redirection: enabled")?;
    wait_until("the pod is captured by ambient", std::time::Duration::from_secs(5), || {
        let (_, said) = agent::command(lab, &["explain", "shop/checkout", "10.244.1.20:15008"])?;
        Ok(!said.contains("sidecar"))
    })?;
    for family in Family::ALL {
        let (what, outcome) = world.ambient(lab, family)?;
        told.push((format!("v{} {what}", family.digit()), outcome));
    }
    Ok(told)
}

/// Another node, and the mesh proxy of ambient mode on this one.
const MORE: &str = r#"apiVersion: v1
kind: Node
metadata: {name: node-b}
spec: {podCIDRs: [10.244.9.0/24, "fd00:244:9::/64"]}
---
apiVersion: v1
kind: Pod
metadata:
  name: ztunnel-x
  namespace: istio-system
  uid: 5f0c1a52-0c4b-4c1e-9d53-000000000040
  labels: {app: ztunnel}
spec:
  nodeName: node-a
  containers: [{name: istio-proxy, image: istio/ztunnel}]
status: {phase: Running, podIPs: [{ip: 10.244.1.40}]}
"#;

/// All phases on one wiring.
fn attack(wiring: Wiring, report: &mut Report) -> Result<()> {
    let stage = Stage::new(wiring)?;
    let [always, across, translated, draining] =
        [When::Always, When::AcrossStart, When::Translated, When::Draining]
            .map(|when| scenes(wiring, when));
    let (mut without, complaints) = play(&stage, &always, Cgroup::Own)?;
    if std::env::var_os("EGRESS_ADVERSARY_TALKS").is_some() {
        writeln!(std::io::stderr(), "{wiring:?}: {complaints:#?}")?;
    }
    let (held, complaints) = Held::start(&stage, &across)?.go_on(&stage)?;
    without.extend(held);
    if std::env::var_os("EGRESS_ADVERSARY_TALKS").is_some() {
        writeln!(std::io::stderr(), "{wiring:?}: {complaints:#?}")?;
    }
    without.extend(stage.translating(|| play(&stage, &translated, Cgroup::Own))?.0);
    without.extend(play(&stage, &draining, Cgroup::Own)?.0);

    stage.undeceive()?;

    let held = Held::start(&stage, &across)?;
    hairpin_is_listed(&stage)?;
    let _agent = Agent::start(&stage.lab, &[])?;
    agent::wait_for_mode(&stage.lab, "enforce")?;
    wait_for_boundaries(&stage.lab)?;
    let mut enforced = held.go_on(&stage)?.0;
    for cgroup in [Cgroup::Own, Cgroup::Escaped] {
        enforced.extend(play(&stage, &always, cgroup)?.0);
        enforced.extend(stage.translating(|| play(&stage, &translated, cgroup))?.0);
    }
    stage.drain_gateway()?;
    wait_until("the gateway is draining", std::time::Duration::from_secs(5), || {
        let (_, said) = agent::command(&stage.lab, &["explain", "shop/cart", "10.244.1.10:8443"])?;
        Ok(said.contains("gateway_draining"))
    })?;
    enforced.extend(play(&stage, &draining, Cgroup::Own)?.0);
    for scenes in [&always, &across, &translated, &draining] {
        report.add(wiring, scenes, &without, &enforced);
    }
    Ok(())
}

/// The hairpin needs node ports that the policy lists, as an operator in a hurry would.
fn hairpin_is_listed(stage: &Stage) -> Result<()> {
    let ports = Family::ALL.map(|family| {
        let scene = Scene::of("node-port-hairpin", family, stage.lab.wiring, 0);
        scene.map_or_else(String::new, |s| format!("{{ip: \"{}\", port: {}}}", s.node(), s.port()))
    });
    let path = stage.lab.file("registry/policy.yaml");
    let text = std::fs::read_to_string(&path)?;
    let listed = text.replace("  mode:", &format!("  nodes: [{}]\n  mode:", ports.join(", ")));
    manifests::replace(&path, &listed)
}

/// Waits until every pod's boundary is attached and seen to be.
fn wait_for_boundaries(lab: &Lab) -> Result<()> {
    wait_until("every pod has its boundary", std::time::Duration::from_secs(5), || {
        let status = agent::status(lab)?;
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let attached = pods.iter().filter(|pod| pod["ifindex"].is_u64());
        Ok(attached.count() >= 4)
    })?;
    // The wall leaves to the boundary what that can answer only once it has seen it there.
    std::thread::sleep(std::time::Duration::from_millis(2200));
    Ok(())
}
