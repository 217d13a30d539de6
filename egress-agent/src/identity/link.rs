//! Host-side interfaces of pods: which namespace each leads to and which addresses are there,
//! by netlink alone (`IFLA_LINK_NETNSID`, then dumps of that namespace from outside, Linux 4.20).
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's attributes and messages are the kernel's to extend"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use tokio::sync::Notify;

use super::IdentityError;
use crate::netlink;
use crate::policy::Link;
use crate::supervise::Shutdown;

/// Every interface of this namespace that is one end of a pair leading into another one.
///
/// # Errors
/// When the kernel does not answer; a namespace that vanishes meanwhile is skipped.
pub fn links() -> Result<Vec<Link>, IdentityError> {
    let mut ends = Vec::new();
    let messages = dump_links(None)?;
    let names: BTreeMap<u32, &str> = messages.iter().filter_map(named).collect();
    let own = dump_addresses(None)?;
    for message in &messages {
        let ifindex = message.header.index;
        let carried = own.iter().filter(|address| address.header.index == ifindex);
        let own_ips = routed(carried).into_iter().collect();
        let pair = message.attributes.iter().any(is_pair);
        let mut end = End { ifindex, pair, own_ips, ..End::default() };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Controller(bridge) => {
                    let name = names.get(bridge).copied().unwrap_or_default();
                    end.bridge = Some((*bridge, name.to_owned()));
                }
                LinkAttribute::IfName(name) => end.name.clone_from(name),
                LinkAttribute::LinkNetNsId(namespace) => end.namespace = Some(*namespace),
                LinkAttribute::Link(index) => end.peer = *index,
                _ => {}
            }
        }
        ends.extend(end.namespace.map(|namespace| (namespace, end)));
    }
    let namespaces: BTreeSet<i32> = ends.iter().map(|(namespace, _)| *namespace).collect();
    let mut inside = BTreeMap::new();
    for namespace in namespaces {
        let addresses = dump_addresses(Some(namespace));
        if let (Ok(links), Ok(addresses)) = (dump_links(Some(namespace)), addresses) {
            inside.insert(namespace, (links, addresses));
        }
    }
    let pairs = ends.into_iter().filter_map(|(namespace, end)| {
        let (links, addresses) = inside.get(&namespace)?;
        end.join(links, addresses)
    });
    Ok(pairs.collect())
}

fn named(message: &LinkMessage) -> Option<(u32, &str)> {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })?;
    Some((message.header.index, name))
}

fn is_pair(attribute: &LinkAttribute) -> bool {
    matches!(attribute, LinkAttribute::LinkInfo(infos)
        if infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth | InfoKind::Netkit))))
}

fn is_dummy(attribute: &LinkAttribute) -> bool {
    matches!(attribute, LinkAttribute::LinkInfo(infos)
        if infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Dummy))))
}

/// The host side of a pair.
#[derive(Default)]
struct End {
    ifindex: u32,
    name: String,
    namespace: Option<i32>,
    peer: u32,
    pair: bool,
    own_ips: Vec<IpAddr>,
    bridge: Option<(u32, String)>,
}

impl End {
    fn join(self, links: &[LinkMessage], addresses: &[AddressMessage]) -> Option<Link> {
        let peer = links.iter().find(|link| link.header.index == self.peer)?;
        let mac = peer.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => None,
        })?;
        let carried = addresses.iter().filter(|message| message.header.index == self.peer);
        let ips = routed(carried).into_iter().collect();
        let netns = u32::try_from(self.namespace?).ok()?;
        let Self { ifindex, name, peer, pair, own_ips, bridge, namespace: _ } = self;
        Some(Link { ifindex, peer, name, ips, mac, netns, pair, own_ips, bridge })
    }
}

/// Addresses of this namespace's own interfaces, loopback's and link-local ones left out. What lies
/// on a dummy device is no address of a service that runs here: there kube-proxy in mode IPVS
/// gathers the addresses of all Services, wherever they lead.
///
/// # Errors
/// When the kernel does not answer.
pub fn addresses() -> Result<BTreeSet<IpAddr>, IdentityError> {
    let links = dump_links(None)?;
    let dummy = links.iter().filter(|link| link.attributes.iter().any(is_dummy));
    let dummies: BTreeSet<u32> = dummy.map(|link| link.header.index).collect();
    let messages = dump_addresses(None)?;
    let mut own = routed(messages.iter().filter(|at| !dummies.contains(&at.header.index)));
    own.retain(|ip| !ip.is_loopback());
    Ok(own)
}

/// The local addresses in these messages that are not link-local.
fn routed<'a>(messages: impl IntoIterator<Item = &'a AddressMessage>) -> BTreeSet<IpAddr> {
    let ips = messages.into_iter().filter_map(local);
    ips.filter(|ip| !egress_common::Addr::from(*ip).is_link_local()).collect()
}

/// The address of this end: where the other end has one too, `Address` is that one's.
fn local(message: &AddressMessage) -> Option<IpAddr> {
    let attributes = message.attributes.iter();
    let own = attributes.clone().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    own.or_else(|| {
        attributes.clone().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

fn dump_links(namespace: Option<i32>) -> Result<Vec<LinkMessage>, IdentityError> {
    let mut message = LinkMessage::default();
    message.attributes.extend(namespace.map(LinkAttribute::IfNetnsId));
    dump("RTM_GETLINK", RouteNetlinkMessage::GetLink(message), |answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    })
}

fn dump_addresses(namespace: Option<i32>) -> Result<Vec<AddressMessage>, IdentityError> {
    let mut message = AddressMessage::default();
    message.attributes.extend(namespace.map(AddressAttribute::TargetNetNsId));
    dump("RTM_GETADDR", RouteNetlinkMessage::GetAddress(message), |answer| match answer {
        RouteNetlinkMessage::NewAddress(address) => Some(address),
        _ => None,
    })
}

/// One dump, and what was asked for where it fails.
pub(super) fn dump<T>(
    request: &'static str,
    message: RouteNetlinkMessage,
    keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
) -> Result<Vec<T>, IdentityError> {
    netlink::dump(message, keep).map_err(|source| IdentityError::Netlink { request, source })
}

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_IFADDR` and
/// `RTNLGRP_IPV6_ROUTE`: the node's own addresses and its default route may change.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];
/// Addresses inside a new namespace come after its link, and no event crosses over.
const LOOK_AGAIN: [Duration; 4] = [
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(500),
];

/// Wakes `wake` whenever an interface, an address or a route of this namespace comes, goes or changes, and again a
/// little later. A lost event (`ENOBUFS`) wakes too: whoever is woken dumps again.
///
/// # Errors
/// When the kernel refuses the subscription.
pub async fn watch(wake: Arc<Notify>, mut shutdown: Shutdown) -> Result<(), IdentityError> {
    let failed = |source| IdentityError::Netlink { request: "RTNLGRP_LINK", source };
    let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(failed)?;
    socket.socket_mut().bind_auto().map_err(failed)?;
    for group in GROUPS {
        socket.socket_mut().add_membership(group).map_err(failed)?;
    }
    let mut again = LOOK_AGAIN.len();
    loop {
        wake.notify_one();
        let delay = LOOK_AGAIN.get(again).copied();
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            received = socket.recv_from_full() => match received {
                Ok(_) => again = 0,
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => again = 0,
                Err(error) => return Err(failed(error)),
            },
            () = tokio::time::sleep(delay.unwrap_or_default()), if delay.is_some() => again += 1,
        }
    }
}
