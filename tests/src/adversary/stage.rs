//! Where the adversary plays: a lab whose node does what nodes do for tunnels and Services, and
//! sniffers wherever an attack might arrive.

use std::collections::BTreeSet;
use std::io::Read;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::reach::{EXTERNAL, SERVICE, vni};
use super::scene::{Family, PORTS, Scene, signs};
use super::{Attack, Judge, attacks};
use crate::address::{NODE, NODE_MAC, STRIPE, mac_text};
use crate::lab::Lab;
use crate::manifests;
use crate::netns::sysctl;
use crate::process::{Place, Process, nft};
use crate::sniffer::Sniffer;
use crate::wiring::Wiring;

/// Attacks that arrived: where, and the [`number`](Scene::number) of each.
pub type Arrived = BTreeSet<(Judge, u16)>;

/// IP protocols of tunnels, by which the node's own reception is judged: nothing of theirs has a
/// port.
const TUNNELS: [u8; 3] = [4, 41, 47];

/// The lab, its judges, and the servers that attacks and vectors need.
#[derive(Debug)]
pub struct Stage {
    /// Dropped before the lab they serve in.
    servers: Vec<Process>,
    sniffers: [(Judge, Sniffer); 3],
    /// The lab.
    pub lab: Lab,
}

impl Stage {
    /// Builds the lab with this wiring, without an agent.
    ///
    /// # Errors
    /// When something of it cannot be made.
    pub fn new(wiring: Wiring) -> Result<Self> {
        let lab = Lab::wired(wiring)?;
        manifests::write(&lab.file("registry"), "enforce")?;
        // Whatever is dialled outside answers.
        lab.internet.batch(
            "route add local 198.18.0.0/16 dev lo\nroute add local 2001:db8:bad::/48 dev lo\n",
        )?;
        for family in Family::ALL {
            let device = format!("vxlan{}", family.digit());
            lab.node.batch(&format!(
                "link add {device} address {} type vxlan id {} local {} dev uplink dstport 8472 nolearning\n\
                 link set {device} up\n",
                mac_text(NODE_MAC),
                vni(family),
                family.of(NODE)
            ))?;
        }
        // A node that helps as little as nodes do: it passes on source routes, and its bridge does
        // not look into frames.
        lab.node.run(|| {
            sysctl("net/ipv4/conf/all/accept_source_route", "1")?;
            sysctl("net/bridge/bridge-nf-call-iptables", "0")?;
            sysctl("net/bridge/bridge-nf-call-ip6tables", "0")
        })?;
        let other_node = "apiVersion: v1\nkind: Node\nmetadata: {name: node-b}\n\
                          spec: {podCIDRs: [10.244.9.0/24, \"fd00:244:9::/64\"]}\n";
        manifests::replace(&lab.file("registry/node-b.yaml"), other_node)?;
        nft(&node(&lab), &judge())?;
        let sniffers = [
            (Judge::Outside, Sniffer::keeping(&lab.internet, "uplink")?),
            (Judge::Peer, Sniffer::keeping(&lab.ledger.netns, "eth0")?),
            (Judge::Gateway, Sniffer::keeping(&lab.gateway.netns, "eth0")?),
        ];
        let servers = vec![
            lab.serve(&lab.gateway.place(), "tcp", 8443)?,
            lab.serve(&lab.ledger.place(), "tcp", 9000)?,
        ];
        Ok(Self { servers, sniffers, lab })
    }

    /// One more server, for as long as the stage stands.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn serve(&mut self, server: Process) {
        self.servers.push(server);
    }

    /// Forgets what has arrived.
    ///
    /// # Errors
    /// When a judge has lost something.
    pub fn clear(&self) -> Result<()> {
        self.arrived().map(drop)
    }

    /// Undoes what attacks without enforcement have told neighbours: who was taken in sends to false
    /// addresses for a while, and that would look like an attack under enforcement.
    ///
    /// # Errors
    /// When a table cannot be flushed.
    pub fn undeceive(&self) -> Result<()> {
        let lab = &self.lab;
        for netns in [&lab.node, &lab.ledger.netns, &lab.gateway.netns, &lab.checkout.netns] {
            netns.batch("neigh flush all\n")?;
        }
        Ok(())
    }

    /// What has arrived since the last call, anywhere.
    ///
    /// # Errors
    /// When a judge has lost something.
    pub fn arrived(&self) -> Result<Arrived> {
        let mut arrived = Arrived::new();
        for (judge, sniffer) in &self.sniffers {
            for frame in sniffer.take()? {
                arrived.extend(signs(&frame).into_iter().map(|number| (*judge, number)));
            }
        }
        arrived.extend(self.at_the_node()?.into_iter().map(|number| (Judge::Node, number)));
        Ok(arrived)
    }

    /// What the node's own sockets would have been given.
    fn at_the_node(&self) -> Result<BTreeSet<u16>> {
        let mut command = node(&self.lab).command("nft")?;
        let output = command.args(["-j", "-n", "list", "table", "inet", "judge"]).output()?;
        ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
        let listed: Value = serde_json::from_slice(&output.stdout).context("read nft's JSON")?;
        let mut found = BTreeSet::new();
        for object in listed["nftables"].as_array().into_iter().flatten() {
            let (name, elements) = (&object["set"]["name"], &object["set"]["elem"]);
            for element in elements.as_array().into_iter().flatten().filter_map(Value::as_u64) {
                let element = u16::try_from(element).context("an element is no port")?;
                match name.as_str() {
                    Some("ports") => found.extend(element.checked_sub(PORTS.start)),
                    Some("tunnels4") => found.extend(tunnel(element, Family::V4)),
                    Some("tunnels6") => found.extend(tunnel(element, Family::V6)),
                    Some(_) | None => {}
                }
            }
        }
        let sets =
            ["ports", "tunnels4", "tunnels6"].map(|set| format!("flush set inet judge {set}\n"));
        nft(&node(&self.lab), &sets.concat())?;
        Ok(found)
    }

    /// Makes the node translate Service addresses, as kube-proxy does, while `during` runs.
    ///
    /// # Errors
    /// When the rules are refused, or as `during`.
    pub fn translating<T>(&self, during: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut rules = String::new();
        for (name, family) in [("ip", Family::V4), ("ip6", Family::V6)] {
            let (from, to) = (PORTS.start, PORTS.end - 1);
            let doors = [SERVICE, EXTERNAL, NODE].map(|dual| family.of(dual).to_string());
            rules.push_str(&format!(
                "table {name} services {{\n chain prerouting {{\n\
                 type nat hook prerouting priority dstnat;\n\
                 {name} daddr {{ {} }} meta l4proto {{tcp, udp}} th dport {from}-{to} dnat to {}\n}}\n}}\n",
                doors.join(", "),
                family.of(STRIPE),
            ));
        }
        nft(&node(&self.lab), &rules)?;
        let outcome = during();
        nft(&node(&self.lab), "delete table ip services\ndelete table ip6 services\n")?;
        outcome
    }

    /// The registry's manifest of the cluster, with the gateway's endpoint as it is or draining.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn drain_gateway(&self) -> Result<()> {
        let path = self.lab.file("registry/cluster.yaml");
        let text = std::fs::read_to_string(&path).context("read the cluster's manifest")?;
        let serving = "{ready: true, serving: true, terminating: false}";
        ensure!(text.contains(serving), "the manifest has no serving endpoint");
        let draining = "{ready: false, serving: false, terminating: true}";
        manifests::replace(&path, &text.replace(serving, draining))
    }

    /// Runs the probe with these attacks at a place and gives what each of them met.
    pub(super) fn probe(
        &self,
        place: &Place<'_>,
        capabilities: Option<&str>,
        scenes: &[(&Attack, Scene)],
    ) -> Result<std::process::Command> {
        let mut command = match capabilities {
            None => self.lab.probe(place)?,
            Some(set) => {
                let probe = crate::process::built("probe", "EGRESS_PROBE")?;
                let mut command = place.command("setpriv")?;
                command.args([&format!("--bounding-set=-all,{set}"), "--inh-caps=-all"]).arg(probe);
                command
            }
        };
        command.args(["attack", &format!("--wiring={}", self.lab.wiring.name())]);
        for (attack, scene) in scenes {
            command.arg(format!("{}/{}@{}", attack.id, scene.family.digit(), scene.host));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(command)
    }
}

/// The node's namespace.
fn node(lab: &Lab) -> Place<'_> {
    Place { netns: Some(&lab.node), ..Place::default() }
}

/// Rules that remember what reaches the node's own sockets.
fn judge() -> String {
    let (from, to) = (PORTS.start, PORTS.end - 1);
    format!(
        "table inet judge {{\n\
         set ports {{ type inet_service; flags dynamic; size 4096; }}\n\
         set tunnels4 {{ type inet_proto; flags dynamic; size 16; }}\n\
         set tunnels6 {{ type inet_proto; flags dynamic; size 16; }}\n\
         chain input {{\n\
         type filter hook input priority 0;\n\
         meta l4proto {{tcp, udp}} th dport {from}-{to} add @ports {{ th dport }}\n\
         meta l4proto {{tcp, udp}} th sport {from}-{to} add @ports {{ th sport }}\n\
         ip protocol {{4, 41, 47}} add @tunnels4 {{ ip protocol }}\n\
         ip6 nexthdr {{4, 41, 47}} add @tunnels6 {{ ip6 nexthdr }}\n\
         }}\n}}\n"
    )
}

/// The attack that sends this protocol to the node.
fn tunnel(protocol: u16, family: Family) -> Option<u16> {
    let [ipip, v6, _] = TUNNELS.map(u16::from);
    let id = match protocol {
        protocol if protocol == ipip => "ipip-to-node",
        protocol if protocol == v6 => "ipv6-in-ip-to-node",
        _ => "gre-to-node",
    };
    debug_assert!(attacks().any(|attack| attack.id == id));
    Scene::of(id, family, Wiring::Routed, 0).map(|scene| scene.number())
}

/// Reads a probe's output to its end.
pub(super) fn read(process: &mut Process) -> Result<String> {
    let mut text = String::new();
    process.child().stdout.take().context("no output")?.read_to_string(&mut text)?;
    Ok(text)
}
