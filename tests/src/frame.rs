//! Frames by hand: what the sniffer reads and the probe writes.

use std::net::{IpAddr, Ipv4Addr};

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// What one frame on the wire says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol; of IPv6 the next header of the fixed header.
    pub protocol: u8,
    /// Source port; zero where there is none.
    pub src_port: u16,
    /// Destination port; zero where there is none.
    pub dst_port: u16,
    /// TCP flags, or the ICMP type.
    pub flags: u8,
    /// Length in bytes, link header included.
    pub length: usize,
}

/// TCP flag SYN.
pub const SYN: u8 = 0x02;
/// TCP flag ACK.
pub const ACK: u8 = 0x10;

impl Frame {
    /// Reads an Ethernet frame; `None` for what is neither IPv4 nor IPv6.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (src, dst, protocol, payload) = match (bytes.get(12)?, bytes.get(13)?) {
            (0x08, 0x00) => {
                let header = bytes.get(14..34)?;
                let length = usize::from(header[0] & 0x0f) * 4;
                let src: [u8; 4] = header[12..16].try_into().ok()?;
                let dst: [u8; 4] = header[16..20].try_into().ok()?;
                (src.into(), dst.into(), header[9], bytes.get(14 + length..)?)
            }
            (0x86, 0xdd) => {
                let header = bytes.get(14..54)?;
                let src: [u8; 16] = header[8..24].try_into().ok()?;
                let dst: [u8; 16] = header[24..40].try_into().ok()?;
                (src.into(), dst.into(), header[6], bytes.get(54..)?)
            }
            _ => return None,
        };
        let word = |at: usize| match payload.get(at..at + 2) {
            Some([high, low]) => u16::from_be_bytes([*high, *low]),
            Some(_) | None => 0,
        };
        let ported = matches!(protocol, protocol::TCP | protocol::UDP);
        let (src_port, dst_port) = if ported { (word(0), word(2)) } else { (0, 0) };
        let flags_at = if protocol == protocol::TCP { 13 } else { 0 };
        let flags =
            if protocol == protocol::UDP { 0 } else { *payload.get(flags_at).unwrap_or(&0) };
        Some(Self { src, dst, protocol, src_port, dst_port, flags, length: bytes.len() })
    }

    /// A TCP segment that opens a connection.
    pub fn is_bare_syn(&self) -> bool {
        self.protocol == protocol::TCP && self.flags & (SYN | ACK) == SYN
    }
}

impl std::fmt::Display for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { src, dst, protocol, src_port, dst_port, flags, length } = self;
        write!(f, "{src} port {src_port} > {dst} port {dst_port} protocol {protocol} ")?;
        write!(f, "flags {flags:#04x} length {length}")
    }
}

/// An IP packet to be sent raw.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Source address, of the same family as `dst`.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// [`protocol::TCP`], [`protocol::UDP`] or anything else, which gets no transport header.
    pub protocol: u8,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// TCP flags.
    pub flags: u8,
    /// Payload.
    pub payload: &'a [u8],
}

impl Packet<'_> {
    /// The IP packet with every checksum right.
    pub fn ip(&self) -> Vec<u8> {
        network(self.src, self.dst, self.protocol, &self.transport())
    }

    /// The packet in an Ethernet frame.
    pub fn ethernet(&self, src: [u8; 6], dst: [u8; 6]) -> Vec<u8> {
        ethernet(src, dst, ethertype(self.dst), &self.ip())
    }

    /// The transport header with its payload.
    pub fn transport(&self) -> Vec<u8> {
        let ports = [self.src_port.to_be_bytes(), self.dst_port.to_be_bytes()].concat();
        let (mut header, at) = match self.protocol {
            protocol::UDP => {
                let length = (8 + self.payload.len()) as u16;
                ([&ports[..], &length.to_be_bytes(), &[0, 0]].concat(), 6)
            }
            protocol::TCP => {
                let numbers = [0, 0, 0, 1, 0, 0, 0, 0];
                ([&ports[..], &numbers, &[0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]].concat(), 16)
            }
            _ => return self.payload.to_vec(),
        };
        header.extend(self.payload);
        let length = (header.len() as u32).to_be_bytes();
        let (src, dst) = (octets(self.src), octets(self.dst));
        let sum = checksum(&[&src, &dst, &length, &[0, 0, 0, self.protocol], &header]);
        header[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        header
    }
}

/// The ethertype of an address's family.
pub const fn ethertype(ip: IpAddr) -> u16 {
    if ip.is_ipv4() { 0x0800 } else { 0x86dd }
}

/// An Ethernet frame.
pub fn ethernet(src: [u8; 6], dst: [u8; 6], ethertype: u16, body: &[u8]) -> Vec<u8> {
    [&dst[..], &src[..], &ethertype.to_be_bytes(), body].concat()
}

/// An IP packet of the addresses' family, without options or extension headers.
pub fn network(src: IpAddr, dst: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4(src, dst, &[], 0, protocol, body),
        (src, dst) => ipv6(src, dst, protocol, 64, body),
    }
}

/// An IPv4 packet: options are of a length divisible by four, `fragment` is the word of flags and
/// offset.
pub fn ipv4(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    options: &[u8],
    fragment: u16,
    protocol: u8,
    body: &[u8],
) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let mut packet = Vec::with_capacity(60 + body.len());
    packet.extend([0x40 | words as u8, 0]);
    packet.extend(((words * 4 + body.len()) as u16).to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend(options);
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

/// An IPv6 packet; extension headers are the start of `body`.
pub fn ipv6(src: IpAddr, dst: IpAddr, next: u8, hops: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((body.len() as u16).to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(octets(src));
    packet.extend(octets(dst));
    packet.extend(body);
    packet
}

/// An ICMP or ICMPv6 message: type, code, and what follows the checksum.
pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], body].concat();
    let sum = if dst.is_ipv4() {
        checksum(&[&message])
    } else {
        let length = (message.len() as u32).to_be_bytes();
        let next = [0, 0, 0, protocol::ICMPV6];
        checksum(&[&octets(src), &octets(dst), &length, &next, &message])
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// An address's bytes.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The internet checksum over parts of even length; only the last may be odd.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for (src, dst) in [("10.0.0.1", "203.0.113.10"), ("fd00::1", "2001:db8::1")] {
            for (protocol, flags) in [(protocol::TCP, SYN), (protocol::UDP, 0)] {
                let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
                let packet = Packet {
                    src,
                    dst,
                    protocol,
                    src_port: 7,
                    dst_port: 443,
                    flags,
                    payload: b"abc",
                };
                let frame = Frame::parse(&packet.ethernet([1; 6], [2; 6])).unwrap();
                assert_eq!((frame.src, frame.dst, frame.protocol), (src, dst, protocol));
                assert_eq!((frame.src_port, frame.dst_port, frame.flags), (7, 443, flags));
                assert_eq!(frame.is_bare_syn(), protocol == protocol::TCP);
            }
        }
    }

    #[test]
    fn a_header_with_its_checksum_sums_to_zero() {
        let packet = Packet {
            src: "10.0.0.1".parse().unwrap(),
            dst: "10.0.0.2".parse().unwrap(),
            protocol: protocol::UDP,
            src_port: 1,
            dst_port: 2,
            flags: 0,
            payload: b"odd",
        };
        assert_eq!(checksum(&[&packet.ip()[..20]]), 0);
    }

    #[test]
    fn truncated_and_foreign_frames_are_no_frames() {
        assert_eq!(Frame::parse(&[0; 13]), None);
        assert_eq!(Frame::parse(&[0; 60]), None);
    }
}
