//! istiod on the tests' API server: what the agent's view of the mesh is compared with.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{ControlPlane, assets::free_port, tail};
use crate::http;
use crate::process::{Place, Process, built, wait_until};

/// A running istiod; dropping it kills it.
#[derive(Debug)]
pub struct Istiod {
    process: Process,
    address: SocketAddr,
}

impl Istiod {
    /// Starts it with the administrator's rights and waits until it is ready. The definitions of
    /// its objects must be installed, and its namespace must exist.
    ///
    /// # Errors
    /// When it is not ready in time; its log is quoted.
    pub fn start(plane: &ControlPlane) -> Result<Self> {
        let program = built("istiod", "EGRESS_ISTIOD")?;
        let mut command = Place::default().command(program)?;
        let (http, grpc, monitoring) = (free_port()?, free_port()?, free_port()?);
        let path = plane.file("istiod.log");
        let log =
            std::fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        command
            .args(["discovery", "--httpsAddr", "", "--secureGRPCAddr", "", "--ctrlz_port", "0"])
            .arg(format!("--httpAddr=127.0.0.1:{http}"))
            .arg(format!("--grpcAddr=127.0.0.1:{grpc}"))
            .arg(format!("--monitoringAddr=127.0.0.1:{monitoring}"))
            .arg("--kubeconfig")
            .arg(plane.kubeconfig())
            .env("POD_NAME", "istiod")
            .env("POD_NAMESPACE", "istio-system")
            // Its certificates go where it runs.
            .current_dir(path.parent().unwrap_or(Path::new("/")))
            .stdout(log.try_clone()?)
            .stderr(log);
        let address = SocketAddr::from(([127, 0, 0, 1], http));
        let mut istiod = Self { process: Process::start(command, "istiod")?, address };
        let ready = wait_until("istiod is ready", Duration::from_secs(60), || {
            if let Some(status) = istiod.process.ended()? {
                bail!("istiod ended with {status}");
            }
            Ok(http::get(address, "/ready").is_ok_and(|(status, _)| status == 200))
        });
        ready.with_context(|| tail(&path))?;
        Ok(istiod)
    }

    /// Every address and port it gives to proxies for new connections to a port of a Service.
    ///
    /// # Errors
    /// When it does not answer, or knows no such Service.
    pub fn endpoints(&self, host: &str, port_name: &str) -> Result<BTreeSet<(IpAddr, u16)>> {
        let (status, body) = http::get(self.address, "/debug/endpointz")?;
        ensure!(status == 200, "endpointz: status {status}: {body}");
        let all: Value = serde_json::from_str(&body).context("read endpointz")?;
        let service = all.get(host).with_context(|| format!("istiod knows no {host}: {body}"))?;
        parse(service, port_name).with_context(|| format!("in {service}"))
    }
}

/// What istiod calls an endpoint that takes new connections.
const HEALTHY: u64 = 1;

/// The endpoints of one host: by the Service's namespace, then by the registry that knows them.
fn parse(service: &Value, port_name: &str) -> Result<BTreeSet<(IpAddr, u16)>> {
    let namespaces = service.as_object().context("no namespaces")?.values();
    let shards = namespaces.filter_map(|namespace| namespace["Shards"].as_object());
    let endpoints = shards.flat_map(|shards| shards.values()).filter_map(Value::as_array).flatten();
    let wanted = endpoints.filter(|endpoint| {
        endpoint["ServicePortName"] == port_name && endpoint["HealthStatus"] == HEALTHY
    });
    let mut found = BTreeSet::new();
    for endpoint in wanted {
        let port = endpoint["EndpointPort"].as_u64().and_then(|port| u16::try_from(port).ok());
        let port = port.context("an endpoint without a port")?;
        for address in endpoint["Addresses"].as_array().into_iter().flatten() {
            let ip = address.as_str().and_then(|text| text.parse().ok());
            found.insert((ip.with_context(|| format!("no address: {address}"))?, port));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_healthy_endpoints_of_the_port_count() {
        let endpoint = |ip: &str, port: &str, health: u64| {
            json!({"Addresses": [ip], "ServicePortName": port, "EndpointPort": 8443,
                   "HealthStatus": health})
        };
        let service = json!({"istio-system": {"Shards": {"Kubernetes/Kubernetes": [
            endpoint("10.0.0.1", "https", 1),
            endpoint("10.0.0.2", "https", 2),
            endpoint("10.0.0.3", "http2", 1),
            endpoint("fd00::1", "https", 1),
        ]}}});
        let expected = ["10.0.0.1", "fd00::1"].map(|ip| (ip.parse().unwrap(), 8443));
        assert_eq!(parse(&service, "https").unwrap(), BTreeSet::from(expected));
    }
}
