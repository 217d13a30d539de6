//! The node's uplinks: where default routes leave, by netlink alone.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's attributes and messages are the kernel's to extend"
)]

use std::collections::BTreeSet;

use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::IdentityError;
use super::link::dump;

/// Indices of the interfaces that any default route of this namespace uses, of either family and
/// in any table; every next hop of a route with several.
///
/// # Errors
/// When the kernel does not answer.
pub fn uplinks() -> Result<BTreeSet<u32>, IdentityError> {
    let mut found = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let routes =
            dump("RTM_GETROUTE", RouteNetlinkMessage::GetRoute(request), |answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => Some(route),
                _ => None,
            })?;
        for route in routes.iter().filter(|route| is_default(route)) {
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Oif(ifindex) => {
                        found.insert(*ifindex);
                    }
                    RouteAttribute::MultiPath(hops) => {
                        found.extend(hops.iter().map(|hop| hop.interface_index));
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(found)
}

/// A route to everywhere that leaves: `unreachable default` is none.
fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}
