//! istiod on the same API server: what it gives to proxies is what the kernel lets pods reach.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use egress_tests::address::pod;
use egress_tests::agent;
use egress_tests::control_plane::{self, ControlPlane, Istiod};
use egress_tests::kube_lab::{ExactTable, KubeLab, NODE};
use egress_tests::process::wait_until;

const ARTICLE: &str = include_str!("../manifests/kube/article.yaml");
const HOST: &str = "istio-egressgateway.istio-system.svc.cluster.local";

/// Waits until both agree on as many replicas; gives the number of endpoints.
fn agree(istiod: &Istiod, table: &ExactTable, replicas: usize) -> Result<usize> {
    let mut last = (BTreeSet::new(), BTreeSet::new());
    let agreed = wait_until("istiod and the kernel agree", Duration::from_secs(15), || {
        let mut given = istiod.endpoints(HOST, "http2")?;
        given.extend(istiod.endpoints(HOST, "https")?);
        // The Service's own address is for clients without a proxy.
        let held = table.serving_gateways()?.into_iter().filter(|(ip, _)| !is_service(*ip));
        last = (given, held.collect());
        Ok(last.0 == last.1 && last.0.len() == replicas * 4)
    });
    agreed.with_context(|| format!("istiod gives {:?}, the kernel holds {:?}", last.0, last.1))?;
    Ok(last.0.len())
}

fn is_service(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == [10, 96],
        IpAddr::V6(ip) => ip.segments()[..2] == [0xfd00, 0x96],
    }
}

fn grow(plane: &ControlPlane, scenario: &mut KubeLab, hosts: std::ops::Range<u8>) -> Result<()> {
    for host in hosts {
        let name = format!("gw-{host}");
        let uid = scenario.gateway.create(&plane.cluster, &name, NODE)?;
        scenario.gateway.run(&plane.cluster, &name, &uid, pod(host))?;
    }
    scenario.gateway.publish(&plane.cluster)
}

#[test]
fn the_kernel_holds_the_endpoints_that_istiod_gives_to_proxies() -> Result<()> {
    let plane = control_plane::shared()?;
    plane.cluster.install_istio()?;
    let mut scenario = KubeLab::new(&plane, "enforce")?;
    let applied = plane.cluster.apply_yaml(ARTICLE)?;
    println!("{} objects of the article applied", applied.len());
    let istiod = Istiod::start(&plane)?;
    let table = scenario.exact()?;
    let mut agreed = vec![agree(&istiod, &table, 1)?];
    grow(&plane, &mut scenario, 51..60)?;
    agreed.push(agree(&istiod, &table, 10)?);
    for host in 51..58 {
        let name = format!("gw-{host}");
        scenario.gateway.drain(&plane.cluster, &name)?;
        scenario.gateway.delete(&plane.cluster, &name)?;
    }
    scenario.gateway.publish(&plane.cluster)?;
    agreed.push(agree(&istiod, &table, 3)?);
    println!("endpoints that both have, with 1, 10 and 3 replicas: {agreed:?}");
    // Slices lag behind the pods that were deleted.
    wait_until("none of the article's objects is a problem", Duration::from_secs(10), || {
        let status = agent::status(&scenario.lab)?;
        Ok(status["problems"].as_array().is_some_and(Vec::is_empty))
    })?;
    Ok(())
}
