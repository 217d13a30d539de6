//! The fixture itself: an API server that can be killed, and a way to it that can be cut.

use std::path::Path;

use anyhow::Result;
use egress_tests::control_plane::{self, Cluster, ControlPlane, EGRESS_GATEWAY, Reference, uid};
use egress_tests::lab::Lab;
use serde_json::{Value, json};

#[test]
fn a_killed_api_server_comes_back_with_its_objects_and_leaves_nothing_at_the_end() -> Result<()> {
    let mut plane = ControlPlane::start()?;
    let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    let before = uid(&plane.cluster.apply(&shop)?)?;
    plane.kill()?;
    assert!(plane.cluster.apply(&shop).is_err(), "a killed API server answers");
    plane.restart()?;
    let reference = Reference::of_cluster("v1", "Namespace", "shop");
    assert_eq!(uid(&plane.cluster.get(&reference)?)?, before);
    let directory = plane.file("");
    assert!(directory.is_dir());
    plane.stop();
    assert!(!directory.exists(), "{} is left", directory.display());
    Ok(())
}

#[test]
fn a_lab_reaches_the_api_server_until_the_way_is_cut() -> Result<()> {
    let plane = control_plane::shared()?;
    let lab = Lab::new()?;
    let (relay, kubeconfig) = plane.relay(&lab, None)?;
    // The client's threads belong to the node's namespace when they start there.
    let list =
        |kubeconfig: &Path| lab.node.run(|| Cluster::connect(kubeconfig)?.list("v1", "Namespace"));
    assert!(list(&kubeconfig)?.len() >= 3, "the API server makes namespaces of its own");
    let through = relay.traffic();
    assert!(through.connections >= 1 && through.sent > 200 && through.received > 1000);
    relay.cut();
    assert!(list(&kubeconfig).is_err(), "nothing goes through what is cut");
    relay.mend();
    list(&kubeconfig)?;
    Ok(())
}

#[test]
fn a_gateways_slices_say_what_its_controller_would() -> Result<()> {
    let plane = control_plane::shared()?;
    let cluster = &plane.cluster;
    let name = "istio-system";
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))?;
    let mut gateway = EGRESS_GATEWAY;
    cluster.apply(&gateway.manifest())?;
    let uid = gateway.create(cluster, "gw-0", "node-a")?;
    gateway.run(cluster, "gw-0", &uid, egress_tests::address::pod(40))?;
    gateway.publish(cluster)?;
    let slice =
        Reference::new("discovery.k8s.io/v1", "EndpointSlice", name, "istio-egressgateway-ipv6");
    let conditions =
        || -> Result<Value> { Ok(cluster.get(&slice)?["endpoints"][0]["conditions"].clone()) };
    assert_eq!(conditions()?, json!({"ready": true, "serving": true, "terminating": false}));
    gateway.drain(cluster, "gw-0")?;
    assert_eq!(conditions()?, json!({"ready": false, "serving": true, "terminating": true}));
    assert!(cluster.get(&gateway.pod("gw-0"))?["metadata"]["deletionTimestamp"].is_string());
    gateway.delete(cluster, "gw-0")?;
    gateway.publish(cluster)?;
    assert_eq!(conditions()?, Value::Null);
    assert!(cluster.get(&gateway.pod("gw-0")).is_err());
    Ok(())
}
