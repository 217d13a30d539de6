//! How pods are joined to their node: the two shapes that network plugins give it.

use anyhow::Result;

use crate::address::{Dual, NEXT_HOP, NODE, NODE_MAC, mac_text, pod_mac};
use crate::lab::Pod;
use crate::netns::Netns;

/// Name of the node's bridge, where there is one.
pub const BRIDGE: &str = "cni0";

/// The node's address on its bridge, inside the range of its pods.
pub const BRIDGE_ADDRESS: Dual = crate::address::pod(1);

/// How pods are joined to their node. The node's side answers with [`NODE_MAC`] in either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Wiring {
    /// Point to point: addresses with full-length prefixes, and one link-local next hop that the
    /// node's end of each pair answers for.
    Routed,
    /// A bridge on the node: pods share a /24 and a /64, reach each other without the node's
    /// stack, and leave through the bridge's address; hairpin is on at every port.
    Bridge,
}

impl Wiring {
    /// Both, for whoever must hold on each.
    pub const ALL: [Self; 2] = [Self::Routed, Self::Bridge];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Bridge => "bridge",
        }
    }

    /// What a pod's default routes lead to.
    pub const fn next_hop(self) -> Dual {
        match self {
            Self::Routed => NEXT_HOP,
            Self::Bridge => BRIDGE_ADDRESS,
        }
    }

    /// Makes what pods are joined to.
    pub(crate) fn prepare(self, node: &Netns) -> Result<()> {
        match self {
            Self::Routed => Ok(()),
            Self::Bridge => node.batch(&format!(
                "link add {BRIDGE} address {} type bridge\n\
                 addr add {}/24 dev {BRIDGE}\n\
                 addr add {}/64 dev {BRIDGE} nodad\n\
                 link set {BRIDGE} up\n",
                mac_text(NODE_MAC),
                BRIDGE_ADDRESS.v4,
                BRIDGE_ADDRESS.v6
            )),
        }
    }

    /// Joins a pod's namespace to the node.
    pub(crate) fn join(self, node: &Netns, pod: &Pod) -> Result<()> {
        let own = mac_text(pod_mac(pod.identity.host));
        let (interface, inside) = (pod.interface(), pod.netns.name());
        let Dual { v4, v6 } = pod.address();
        let next_hop = self.next_hop();
        let (outer, inner) = match self {
            Self::Routed => (
                format!(
                    "link add {interface} address {} type veth peer name eth0 address {own} netns {inside}\n\
                     addr add {}/32 dev {interface}\n\
                     addr add {}/64 dev {interface} nodad\n\
                     link set {interface} up\n\
                     route add {v4}/32 dev {interface} src {}\n\
                     route add {v6}/128 dev {interface} src {}\n",
                    mac_text(NODE_MAC),
                    next_hop.v4,
                    next_hop.v6,
                    NODE.v4,
                    NODE.v6,
                ),
                format!(
                    "addr add {v4}/32 dev eth0\n\
                     addr add {v6}/128 dev eth0 nodad\n\
                     link set eth0 up\n\
                     route add {} dev eth0 scope link\n",
                    next_hop.v4
                ),
            ),
            Self::Bridge => (
                format!(
                    "link add {interface} type veth peer name eth0 address {own} netns {inside}\n\
                     link set {interface} master {BRIDGE}\n\
                     link set {interface} type bridge_slave hairpin on\n\
                     link set {interface} up\n"
                ),
                format!(
                    "addr add {v4}/24 dev eth0\n\
                     addr add {v6}/64 dev eth0 nodad\n\
                     link set eth0 up\n"
                ),
            ),
        };
        node.batch(&outer)?;
        pod.netns.batch(&format!(
            "{inner}route add default via {} dev eth0\nroute add default via {} dev eth0\n",
            next_hop.v4, next_hop.v6
        ))
    }
}
