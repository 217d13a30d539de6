//! What ordinary sockets can be made to send.

use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::scene::{Family, Scene};
use super::tools::{
    check, control, dial, send_message, set, set_number, socket, tcp, udp, with_family,
};
use super::{Actor, Attack, Row, uring};

const IPPROTO_MPTCP: i32 = 262;
const IPPROTO_UDPLITE: i32 = 136;
const UDP_SEGMENT: i32 = 103;
const SO_ZEROCOPY: i32 = 60;
const TCP_FASTOPEN_CONNECT: i32 = 30;
const IPV6_RTHDR: i32 = 57;

const MAPPED_ONLY: &str = "mapped addresses are IPv4's";
const USER: Actor = Actor::Nobody;

pub(super) const ATTACKS: &[Attack] = &[
    Attack::new("tcp-connect", Row::Tcp, USER, |s| dial(&tcp(s)?, s.at())),
    Attack::new("tcp-bound", Row::Tcp, USER, |s| {
        let socket = tcp(s)?;
        socket.bind(&SocketAddr::new(s.own(), s.port()).into())?;
        dial(&socket, s.at())
    }),
    Attack::new("tcp-fastopen-sendto", Row::Tcp, USER, |s| {
        let socket = tcp(s)?;
        socket.set_nonblocking(true)?;
        send_message(&socket, s.at(), s.text(), &[], libc::MSG_FASTOPEN)
    }),
    Attack::new("tcp-fastopen-connect", Row::Tcp, USER, |s| {
        let socket = tcp(s)?;
        set_number(&socket, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)?;
        socket.set_nonblocking(true)?;
        let _ = socket.connect(&s.at().into());
        socket.send(s.text()).map(drop)
    }),
    Attack::new("tcp-unspec-reconnect", Row::Tcp, USER, |s| {
        let socket = tcp(s)?;
        socket.set_nonblocking(true)?;
        let _ = socket.connect(&s.gateway().into());
        // Dissolves what the hook has judged.
        socket.connect(&with_family(s.gateway(), libc::AF_UNSPEC))?;
        socket.connect(&s.at().into())
    }),
    Attack::new("tcp-bound-to-device", Row::Tcp, USER, |s| {
        let socket = tcp(s)?;
        socket.bind_device(Some(b"eth0"))?;
        dial(&socket, s.at())
    }),
    Attack::new("tcp-io-uring", Row::Tcp, USER, |s| uring::connect(&tcp(s)?, s.at(), false)),
    Attack::new("tcp-io-uring-sqpoll", Row::Tcp, USER, |s| uring::connect(&tcp(s)?, s.at(), true)),
    Attack::new("tcp-mapped", Row::Mapped, USER, |s| {
        dial(&Socket::new(Domain::IPV6, Type::STREAM, None)?, mapped(s))
    })
    .not_over(Family::V6, MAPPED_ONLY),
    Attack::new("udp-mapped", Row::Mapped, USER, |s| {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
        socket.send_to(s.text(), &mapped(s).into()).map(drop)
    })
    .not_over(Family::V6, MAPPED_ONLY),
    Attack::new("udp-mapped-connected", Row::Mapped, USER, |s| {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
        socket.connect(&mapped(s).into())?;
        socket.send(s.text()).map(drop)
    })
    .not_over(Family::V6, MAPPED_ONLY),
    Attack::new("udp-v4-address-on-v6-socket", Row::Mapped, USER, |s| {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
        socket.send_to(s.text(), &s.at().into()).map(drop)
    })
    .not_over(Family::V6, MAPPED_ONLY),
    Attack::new("mptcp-connect", Row::Mptcp, USER, |s| {
        dial(&socket(s, Type::STREAM, Some(IPPROTO_MPTCP))?, s.at())
    }),
    Attack::new("segment-routed-tcp", Row::SourceRouted, USER, |s| {
        let socket = tcp(s)?;
        set(&socket, libc::IPPROTO_IPV6, IPV6_RTHDR, &segments(s))?;
        dial(&socket, s.gateway())
    })
    .not_over(Family::V4, "routing headers are IPv6's; IPv4's source routes are options"),
    Attack::new("segment-routed-udp", Row::SourceRouted, USER, |s| {
        let socket = udp(s)?;
        set(&socket, libc::IPPROTO_IPV6, IPV6_RTHDR, &segments(s))?;
        send(&socket, SocketAddr::new(s.peer(), 9000), s.text())
    })
    .not_over(Family::V4, "routing headers are IPv6's; IPv4's source routes are options"),
    Attack::new("udp-sendto", Row::Udp, USER, |s| send(&udp(s)?, s.at(), s.text())),
    Attack::new("udp-sendmmsg", Row::Udp, USER, many),
    Attack::new("udp-corked", Row::Udp, USER, |s| {
        let socket = udp(s)?;
        send_message(&socket, s.at(), b"corked ", &[], libc::MSG_MORE)?;
        send_message(&socket, s.at(), s.text(), &[], 0)
    }),
    Attack::new("udp-segmented", Row::Udp, USER, |s| {
        let socket = udp(s)?;
        set_number(&socket, libc::SOL_UDP, UDP_SEGMENT, 25)?;
        send(&socket, s.at(), &s.text().repeat(3))
    }),
    Attack::new("udp-zerocopy", Row::Udp, USER, |s| {
        let socket = udp(s)?;
        set_number(&socket, libc::SOL_SOCKET, SO_ZEROCOPY, 1)?;
        send_message(&socket, s.at(), s.text(), &[], libc::MSG_ZEROCOPY)
    }),
    Attack::new("udp-io-uring", Row::Udp, USER, |s| {
        let socket = udp(s)?;
        uring::send_message(&socket, s.at(), s.text())
    }),
    Attack::new("udp-chosen-source", Row::Udp, USER, |s| {
        let source = match s.own() {
            IpAddr::V4(own) => {
                let info = [&[0; 4][..], &own.octets(), &[0; 4]].concat();
                control(libc::IPPROTO_IP, libc::IP_PKTINFO, &info)
            }
            IpAddr::V6(own) => {
                let info = [&own.octets()[..], &[0; 4]].concat();
                control(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
            }
        };
        send_message(&udp(s)?, s.at(), s.text(), &source, 0)
    }),
    Attack::new("udp-unspecified-family", Row::Udp, USER, |s| {
        udp(s)?.send_to(s.text(), &with_family(s.at(), libc::AF_UNSPEC)).map(drop)
    })
    .not_over(Family::V6, "an IPv6 socket takes no address without a family"),
    Attack::new("udp-connected", Row::Udp, USER, |s| {
        let socket = udp(s)?;
        socket.connect(&s.at().into())?;
        socket.send(s.text()).map(drop)
    }),
    Attack::new("udp-connected-elsewhere", Row::Udp, USER, |s| {
        let socket = udp(s)?;
        socket.connect(&SocketAddr::new(s.peer(), 9000).into())?;
        send(&socket, s.at(), s.text())
    }),
    Attack::new("udp-longer-than-mtu", Row::Udp, USER, |s| {
        send(&udp(s)?, s.at(), &s.text().repeat(200))
    }),
    Attack::new("quic-initial", Row::Udp, USER, |s| {
        // Long header, version 1, two connection ids.
        let hello = [&[0xc3, 0, 0, 0, 1, 8][..], &[7; 8], &[0, 0, 0x44, 0xb0], s.text()].concat();
        send(&udp(s)?, SocketAddr::new(s.target(), 443), &hello.repeat(24))
    }),
    Attack::new("udp-lite", Row::UdpLite, USER, |s| {
        let socket = socket(s, Type::DGRAM, Some(IPPROTO_UDPLITE))?;
        socket.connect(&s.at().into())?;
        socket.send(s.text()).map(drop)
    }),
    Attack::new("ping-socket", Row::Ping, USER, |s| ping(s)?.send_to(&echo(s), &to(s)).map(drop)),
    Attack::new("ping-socket-connected", Row::Ping, USER, |s| {
        let socket = ping(s)?;
        socket.connect(&to(s))?;
        socket.send(&echo(s)).map(drop)
    }),
    Attack::new("dns-foreign-udp", Row::Resolvers, USER, |s| {
        send(&udp(s)?, SocketAddr::new(s.target(), 53), s.text())
    }),
    Attack::new("dns-foreign-tcp", Row::Resolvers, USER, |s| {
        dial(&tcp(s)?, SocketAddr::new(s.target(), 53))
    }),
    Attack::new("dns-over-tls", Row::Resolvers, USER, |s| {
        dial(&tcp(s)?, SocketAddr::new(s.target(), 853))
    }),
    Attack::new("dns-over-quic", Row::Resolvers, USER, |s| {
        send(&udp(s)?, SocketAddr::new(s.target(), 853), s.text())
    }),
    Attack::new("dns-over-https", Row::Resolvers, USER, |s| {
        dial(&tcp(s)?, SocketAddr::new(s.target(), 443))
    }),
    Attack::new("proxy-user-in-plain-pod", Row::ProxyIdentity, Actor::FalseProxy, |s| {
        let _ = dial(&tcp(s)?, s.at());
        send(&udp(s)?, s.at(), s.text())
    }),
    Attack::new("proxy-user-tcp", Row::ProxyIdentity, Actor::ProxyUser, |s| dial(&tcp(s)?, s.at())),
    Attack::new("proxy-user-udp", Row::ProxyIdentity, Actor::ProxyUser, |s| {
        send(&udp(s)?, s.at(), s.text())
    }),
    Attack::new("proxy-group-tcp", Row::ProxyIdentity, Actor::ProxyGroup, |s| {
        dial(&tcp(s)?, s.at())
    }),
    Attack::new("proxy-group-udp", Row::ProxyIdentity, Actor::ProxyGroup, |s| {
        send(&udp(s)?, s.at(), s.text())
    }),
    Attack::new("excluded-port-tcp", Row::ProxyIdentity, Actor::App, |s| dial(&tcp(s)?, s.at())),
    Attack::new("excluded-port-udp", Row::ProxyIdentity, Actor::App, |s| {
        send(&udp(s)?, s.at(), s.text())
    }),
    Attack::new("excluded-port-fastopen-data", Row::ProxyIdentity, Actor::App, |s| {
        // Data in the SYN, which no answer has to wait for.
        let socket = tcp(s)?;
        set_number(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE, 1)?;
        socket.set_nonblocking(true)?;
        send_message(&socket, s.at(), s.text(), &[], libc::MSG_FASTOPEN)
    }),
];

fn mapped(s: &Scene) -> SocketAddr {
    let ip = match s.target() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    SocketAddr::new(ip.into(), s.port())
}

/// One datagram.
pub(super) fn send(socket: &Socket, to: SocketAddr, text: &[u8]) -> io::Result<()> {
    socket.send_to(text, &to.into()).map(drop)
}

fn to(s: &Scene) -> SockAddr {
    SocketAddr::new(s.target(), 0).into()
}

/// A segment routing header of two segments: the allowed address last, by way of the forbidden.
fn segments(s: &Scene) -> Vec<u8> {
    let octets = crate::frame::octets;
    let last = octets(s.gateway().ip());
    [&[0, 4, 4, 1, 1, 0, 0, 0][..], &last, &octets(s.target())].concat()
}

fn ping(s: &Scene) -> io::Result<Socket> {
    let protocol = if s.own().is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    Socket::new(Domain::for_address(s.at()), Type::DGRAM, Some(protocol))
}

fn echo(s: &Scene) -> Vec<u8> {
    let kind = if s.own().is_ipv4() { 8 } else { 128 };
    [&[kind, 0, 0, 0, 0, 0, 0, 1][..], s.text()].concat()
}

fn many(s: &Scene) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let socket = udp(s)?;
    let to = SockAddr::from(s.at());
    let mut part = libc::iovec { iov_base: s.text().as_ptr().cast_mut().cast(), iov_len: 25 };
    // SAFETY: all-zero headers are valid; every pointer is to a value that outlives the call, and
    // the kernel only reads what they point to.
    check(unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_name = to.as_ptr().cast_mut().cast();
        header.msg_namelen = to.len();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        let mut messages = [libc::mmsghdr { msg_hdr: header, msg_len: 0 }; 2];
        libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), 2, 0)
    })
    .map(drop)
}

/// A connected socket as a stream that is left open: its end would say more than was asked.
pub(super) fn stream(socket: Socket) -> io::Result<ManuallyDrop<TcpStream>> {
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(Duration::from_millis(250)))?;
    Ok(ManuallyDrop::new(stream))
}

/// Writes all of it.
pub(super) fn write(stream: &mut TcpStream, text: &[u8]) -> io::Result<()> {
    stream.write_all(text)
}
