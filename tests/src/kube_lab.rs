//! A lab whose agent follows an API server: what the `kube_*` suites start from.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use egress_common::key::ExactKey;
use egress_common::state::{Exact, Target};
use serde_json::{Value, json};

use crate::address::Dual;
use crate::agent::{self, Agent};
use crate::control_plane::{ControlPlane, EGRESS_GATEWAY, MARK, Reference, Relay, Replicas, uid};
use crate::lab::{GATEWAY, Lab};
use crate::manifests;
use crate::process::wait_until;

/// The node of every lab.
pub const NODE: &str = "node-a";

/// The agent goes first, then the way to its registry, then the lab.
#[derive(Debug)]
pub struct KubeLab {
    /// The agent.
    pub agent: Agent,
    /// Its way to the API server.
    pub relay: Relay,
    /// Its kubeconfig.
    pub kubeconfig: PathBuf,
    /// The lab.
    pub lab: Lab,
    /// The egress gateway's objects; the lab's gateway pod is their first member.
    pub gateway: Replicas,
}

impl KubeLab {
    /// The demo's cluster in this API server with the policy in `mode`, and nothing else; the
    /// definitions of Istio's objects must be installed.
    ///
    /// # Errors
    /// When the objects are refused, or the lab or the agent does not come up.
    pub fn new(plane: &ControlPlane, mode: &str) -> Result<Self> {
        let (lab, gateway) = Self::prepare(plane, mode)?;
        let (relay, kubeconfig) = plane.relay(&lab, None)?;
        let agent = Agent::start_on(&lab, &registry(&kubeconfig), &[])?;
        agent::wait_for_mode(&lab, mode)?;
        Ok(Self { agent, relay, kubeconfig, lab, gateway })
    }

    /// Lab and objects, without an agent.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn prepare(plane: &ControlPlane, mode: &str) -> Result<(Lab, Replicas)> {
        plane.clear()?;
        plane.cluster.install_own()?;
        let mut lab = Lab::new()?;
        let mut gateway = EGRESS_GATEWAY;
        for mut object in manifests::objects(mode)? {
            // The gateway's are kept by its own fixture.
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            let is_workload = ["Pod", "Service", "EndpointSlice"].contains(&kind.as_str());
            if is_workload && object["metadata"]["namespace"] == gateway.namespace {
                continue;
            }
            if kind == "Node" {
                object["metadata"]["labels"] = json!({ MARK: "true" });
            }
            let stored = plane.cluster.apply(&object)?;
            let name = stored["metadata"]["name"].as_str().unwrap_or_default();
            if kind == "Pod" {
                let pod = [&mut lab.cart, &mut lab.checkout, &mut lab.ledger]
                    .into_iter()
                    .find(|pod| pod.identity.name.ends_with(&format!("/{name}")));
                let pod = pod.with_context(|| format!("the lab has no pod {name}"))?;
                pod.adopt(uid(&stored)?, &lab.cgroups)?;
            }
        }
        plane.cluster.apply(&gateway.manifest())?;
        let name = short(GATEWAY.name);
        let gateway_uid = gateway.create(&plane.cluster, name, NODE)?;
        lab.gateway.adopt(gateway_uid.clone(), &lab.cgroups)?;
        gateway.run(&plane.cluster, name, &gateway_uid, lab.gateway.address())?;
        gateway.publish(&plane.cluster)?;
        Ok((lab, gateway))
    }

    /// Polls `status` until `done`.
    ///
    /// # Errors
    /// When it is not within ten seconds.
    pub fn until(&self, what: &str, mut done: impl FnMut(&Value) -> bool) -> Result<Duration> {
        wait_until(what, Duration::from_secs(10), || Ok(done(&agent::status(&self.lab)?)))
    }

    /// The agent's log so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self) -> Result<String> {
        std::fs::read_to_string(self.lab.file("log/agent")).context("read the agent's log")
    }

    /// Entries put and removed since the agent started, as its log tells of every application.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn writes(&self) -> Result<(u64, u64)> {
        let log = self.log()?;
        let sum = |field: &str| {
            let values = log.split_whitespace().filter_map(|word| word.strip_prefix(field));
            values.filter_map(|value| value.parse::<u64>().ok()).sum()
        };
        Ok((sum("put="), sum("removed=")))
    }

    /// The kernel's table of exact destinations.
    ///
    /// # Errors
    /// When the agent has pinned none.
    pub fn exact(&self) -> Result<ExactTable> {
        let root = self.lab.file("bpffs/egress-enforcer");
        let pin = find_pin(&root, "EXACT")
            .with_context(|| format!("no pinned map EXACT below {}", root.display()))?;
        let data = MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
        Ok(ExactTable(HashMap::try_from(Map::HashMap(data)).context("EXACT is no hash map")?))
    }
}

/// The table that names gateways' endpoints, read past the agent.
#[derive(Debug)]
pub struct ExactTable(HashMap<MapData, ExactKey, Exact>);

impl ExactTable {
    /// Whether any policy has an entry for both addresses at this TCP port.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn has(&self, address: Dual, port: u16) -> Result<bool> {
        let entries = self.0.keys().collect::<Result<Vec<ExactKey>, _>>()?;
        Ok(address.both().into_iter().all(|ip| entries.iter().any(|key| is(key, ip, port))))
    }

    /// Whether no policy has an entry for either address.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn lacks(&self, address: Dual) -> Result<bool> {
        let entries = self.0.keys().collect::<Result<Vec<ExactKey>, _>>()?;
        Ok(!entries.iter().any(|key| address.has(key.addr().ip())))
    }

    /// Every TCP endpoint of a gateway that takes new connections.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn serving_gateways(&self) -> Result<BTreeSet<(IpAddr, u16)>> {
        let entries = self.0.iter().collect::<Result<Vec<(ExactKey, Exact)>, _>>()?;
        let serving = entries.iter().filter(|(key, value)| {
            key.protocol() == TCP && value.target == Target::Gateway.number()
        });
        Ok(serving.map(|(key, _)| (key.addr().ip(), key.port())).collect())
    }

    /// Everything in it that is a TCP destination.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn destinations(&self) -> Result<BTreeSet<(IpAddr, u16)>> {
        let entries = self.0.keys().collect::<Result<Vec<ExactKey>, _>>()?;
        let tcp = entries.iter().filter(|key| key.protocol() == TCP);
        Ok(tcp.map(|key| (key.addr().ip(), key.port())).collect())
    }
}

const TCP: u8 = 6;

fn is(key: &ExactKey, ip: IpAddr, port: u16) -> bool {
    key.protocol() == TCP && key.port() == port && key.addr().ip() == ip
}

/// Finds a pin by name, whatever the number of the schema is.
pub fn find_pin(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    entries.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            find_pin(&path, name)
        } else {
            (path.file_name()? == name).then_some(path)
        }
    })
}

/// The registry argument for a kubeconfig.
pub fn registry(kubeconfig: &Path) -> String {
    format!("kube:{}", kubeconfig.display())
}

/// The name in `namespace/name`.
pub fn short(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Names the demo's policy.
pub fn policy() -> Reference {
    Reference::of_cluster("egress-enforcer.io/v1alpha1", "EgressPolicy", "shop")
}

/// The value below which this share of the sorted values lies.
///
/// # Errors
/// When there are none.
pub fn percentile(values: &[Duration], share: f64) -> Result<Duration> {
    ensure!(!values.is_empty(), "nothing was measured");
    let mut sorted = values.to_vec();
    sorted.sort();
    let index = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1;
    Ok(sorted[index])
}
