//! Requests to the kernel's routing netlink, each on a socket of its own.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's messages are the kernel's to extend"
)]

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// One dump. Strict checking makes the kernel honour a target namespace instead of silently
/// answering for this one.
///
/// # Errors
/// When the kernel refuses or an answer cannot be read.
pub fn dump<T>(
    message: RouteNetlinkMessage,
    keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
) -> io::Result<Vec<T>> {
    exchange(message, NLM_F_DUMP, keep)
}

/// One change, with `flags` such as `NLM_F_CREATE`; returns when the kernel has made it.
///
/// # Errors
/// When the kernel refuses; its errno is kept.
pub fn change(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    exchange(message, NLM_F_ACK | flags, |_| None::<()>).map(drop)
}

fn exchange<T>(
    message: RouteNetlinkMessage,
    flags: u16,
    mut keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
) -> io::Result<Vec<T>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_netlink_get_strict_chk(true)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut kept = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            // Each message is padded to four bytes; a length of zero would never end.
            let length = (message.header.length as usize).next_multiple_of(4).max(16);
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(kept),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) => return Ok(kept),
                NetlinkPayload::InnerMessage(inner) => kept.extend(keep(inner)),
                _ => {}
            }
        }
    }
}
