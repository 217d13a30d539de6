//! Sockets as attackers open them: the calls the standard library has no word for.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use socket2::{Domain, MsgHdr, Protocol, SockAddr, Socket, Type};

use super::Scene;
use crate::sniffer::packet_address;

/// How long an attack waits for what only an open way would bring.
const PATIENCE: Duration = Duration::from_millis(250);

/// A socket of the scene's family.
pub(super) fn socket(scene: &Scene, kind: Type, protocol: Option<i32>) -> io::Result<Socket> {
    let domain = Domain::for_address(scene.at());
    Socket::new(domain, kind, protocol.map(Protocol::from))
}

/// A UDP socket.
pub(super) fn udp(scene: &Scene) -> io::Result<Socket> {
    socket(scene, Type::DGRAM, None)
}

/// A TCP socket.
pub(super) fn tcp(scene: &Scene) -> io::Result<Socket> {
    socket(scene, Type::STREAM, None)
}

/// A raw socket that brings its own IP header.
pub(super) fn raw(scene: &Scene) -> io::Result<Socket> {
    socket(scene, Type::RAW, Some(libc::IPPROTO_RAW))
}

/// Dials, and waits a little: a SYN that leaves is all an attack needs.
pub(super) fn dial(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    socket.connect_timeout(&SockAddr::from(to), PATIENCE)
}

/// Dials with a listener at the other end that answers.
pub(super) fn dialled(scene: &Scene, to: SocketAddr) -> io::Result<Socket> {
    let socket = tcp(scene)?;
    dial(&socket, to)?;
    Ok(socket)
}

/// Sends an IP packet as it is.
pub(super) fn send_raw(scene: &Scene, packet: &[u8]) -> io::Result<()> {
    let to = match scene.own() {
        IpAddr::V4(_) => {
            packet.get(16..20).and_then(|octets| <[u8; 4]>::try_from(octets).ok()).map(IpAddr::from)
        }
        IpAddr::V6(_) => packet
            .get(24..40)
            .and_then(|octets| <[u8; 16]>::try_from(octets).ok())
            .map(IpAddr::from),
    };
    let to = to.ok_or(io::ErrorKind::InvalidInput)?;
    raw(scene)?.send_to(packet, &SocketAddr::new(to, 0).into()).map(drop)
}

/// Sends to an address with options of the call itself.
pub(super) fn send_message(
    socket: &Socket,
    to: SocketAddr,
    text: &[u8],
    control: &[u8],
    flags: i32,
) -> io::Result<()> {
    let (to, buffers) = (SockAddr::from(to), [IoSlice::new(text)]);
    let mut message = MsgHdr::new().with_addr(&to).with_buffers(&buffers);
    if !control.is_empty() {
        message = message.with_control(control);
    }
    socket.sendmsg(&message, flags).map(drop)
}

/// One control message.
pub(super) fn control(level: i32, kind: i32, body: &[u8]) -> Vec<u8> {
    let length = size_of::<libc::cmsghdr>() + body.len();
    let mut bytes = Vec::with_capacity(length + 8);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(level.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(body);
    bytes.resize(length.next_multiple_of(size_of::<usize>()), 0);
    bytes
}

/// Sets a socket option to these bytes.
pub(super) fn set(socket: &impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let length = value.len() as libc::socklen_t;
    // SAFETY: the pointer and the length are those of one live slice.
    check(unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), length) }).map(drop)
}

/// Sets a socket option that is a number.
pub(super) fn set_number(socket: &impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set(socket, level, name, &value.to_ne_bytes())
}

/// The error of a system call that returned less than zero.
pub(super) fn check(returned: i32) -> io::Result<i32> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// An address as the kernel takes it, for calls that want it raw.
pub(super) fn with_family(to: SocketAddr, family: i32) -> SockAddr {
    let address = SockAddr::from(to);
    // SAFETY: the storage is large enough for any address; the family is its first field, and
    // every other byte is that of a valid address of the length given.
    unsafe {
        let ((), changed) = SockAddr::try_init(|storage, length| {
            let bytes = address.as_ptr().cast::<u8>();
            bytes.copy_to_nonoverlapping(storage.cast(), address.len() as usize);
            (*storage.cast::<libc::sockaddr>()).sa_family = family as libc::sa_family_t;
            *length = address.len();
            Ok(())
        })
        .unwrap_or(((), address));
        changed
    }
}

/// A packet socket on the pod's interface.
pub(super) fn packet_socket(kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, kind, Some(Protocol::from(0)))?;
    socket.bind(&packet_address("eth0").map_err(io::Error::other)?)?;
    Ok(socket)
}

/// Sends a frame through a packet socket.
pub(super) fn send_frame(frame: &[u8]) -> io::Result<()> {
    packet_socket(Type::RAW)?.send(frame).map(drop)
}

/// Runs a script of the pod's administrator; its complaint is the error.
pub(super) fn shell(script: &str) -> io::Result<()> {
    let output = Command::new("sh")
        .args(["-ec", script])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {complaint}", output.status)))
}

/// Runs `attack` between two scripts, the second of which undoes the first whatever happens.
pub(super) fn between(
    set_up: &str,
    tear_down: &str,
    attack: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let outcome = shell(set_up).and_then(|()| attack());
    let undone = shell(tear_down);
    outcome.and(undone)
}

/// Tries until it works or nobody has the patience any more: a device that has just been made
/// takes a moment.
pub(super) fn insist(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            outcome => return outcome,
        }
    }
}

/// Opens a device file.
pub(super) fn open(path: &str) -> io::Result<OwnedFd> {
    std::fs::File::options().read(true).write(true).open(path).map(OwnedFd::from)
}

/// Takes over a descriptor that a system call gave.
///
/// # Safety
/// `fd` is open, and nobody else closes it.
pub(super) unsafe fn own(fd: i32) -> OwnedFd {
    // SAFETY: the caller's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
