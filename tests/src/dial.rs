//! Every way in which an application opens a TCP connection.
//!
//! What the kernel's connect hooks are shown differs by way in nothing but the moment; that it
//! does differ in nothing is what the suites show with this.

use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// A way of opening a TCP connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// `connect` on a non-blocking socket, then `poll`.
    #[default]
    NonBlocking,
    /// `connect` that returns once the connection stands.
    Blocking,
    /// `sendto` with `MSG_FASTOPEN`: no `connect` at all.
    FastOpen,
    /// `TCP_FASTOPEN_CONNECT`: `connect` returns before anything is sent.
    FastOpenConnect,
    /// `IORING_OP_CONNECT`.
    IoUring,
    /// `connect` of an `IPPROTO_MPTCP` socket.
    Mptcp,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::NonBlocking,
        Self::Blocking,
        Self::FastOpen,
        Self::FastOpenConnect,
        Self::IoUring,
        Self::Mptcp,
    ];

    /// The probe's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NonBlocking => "non-blocking",
            Self::Blocking => "blocking",
            Self::FastOpen => "fast-open",
            Self::FastOpenConnect => "fast-open-connect",
            Self::IoUring => "io-uring",
            Self::Mptcp => "mptcp",
        }
    }
}

/// Opens a connection and sends the first bytes on it, which may be none.
///
/// # Errors
/// What the kernel says; `TimedOut` after `patience`.
pub fn dial(
    way: Way,
    address: SocketAddr,
    first: &[u8],
    patience: Duration,
) -> io::Result<TcpStream> {
    let peer = SockAddr::from(address);
    let protocol = if way == Way::Mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))?;
    // Bounds a blocking connect too.
    socket.set_write_timeout(Some(patience))?;
    match way {
        Way::NonBlocking => socket.connect_timeout(&peer, patience)?,
        Way::Blocking | Way::Mptcp => in_time(socket.connect(&peer))?,
        Way::FastOpen => {
            in_time(socket.send_to_with_flags(first, &peer, libc::MSG_FASTOPEN).map(drop))?;
            return Ok(socket.into());
        }
        Way::FastOpenConnect => {
            fast_open_connect(&socket)?;
            in_time(socket.connect(&peer))?;
        }
        Way::IoUring => io_uring_connect(&socket, &peer, patience)?,
    }
    let mut stream = TcpStream::from(socket);
    in_time(stream.write_all(first))?;
    Ok(stream)
}

/// A timeout of a blocking call has two names.
fn in_time(result: io::Result<()>) -> io::Result<()> {
    result.map_err(|error| {
        let late = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINPROGRESS));
        if late { ErrorKind::TimedOut.into() } else { error }
    })
}

fn fast_open_connect(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value is a live `int` of the size given.
    let returned = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN_CONNECT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn io_uring_connect(socket: &Socket, peer: &SockAddr, patience: Duration) -> io::Result<()> {
    let mut ring = IoUring::new(4)?;
    let descriptor = types::Fd(socket.as_raw_fd());
    let timeout = types::Timespec::from(patience);
    let connect = opcode::Connect::new(descriptor, peer.as_ptr().cast(), peer.len()).build();
    let connect = connect.flags(io_uring::squeue::Flags::IO_LINK).user_data(1);
    let timeout = opcode::LinkTimeout::new(&raw const timeout).build().user_data(2);
    // SAFETY: socket, address and timeout outlive the wait for both completions below.
    unsafe { ring.submission().push_multiple(&[connect, timeout]) }.map_err(io::Error::other)?;
    ring.submit_and_wait(2)?;
    let connected = ring.completion().find(|done| done.user_data() == 1);
    match connected.map(|done| done.result()) {
        Some(0) => Ok(()),
        Some(error) if -error == libc::ECANCELED => Err(ErrorKind::TimedOut.into()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::Error::other("the ring has not completed the connect")),
    }
}

/// Connects one socket to two addresses, one after the other; gives it connected to the second.
///
/// # Errors
/// What the kernel says to any of the calls.
pub fn redial(one: SocketAddr, other: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(one), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_write_timeout(Some(patience))?;
    in_time(socket.connect(&SockAddr::from(one)))?;
    // `AF_UNSPEC` undoes a connection.
    let mut nowhere = SockAddr::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    // SAFETY: the storage holds a `sockaddr_in`, whose family alone changes.
    let returned = unsafe {
        let nowhere = (&raw mut nowhere).cast::<libc::sockaddr>();
        (*nowhere).sa_family = libc::AF_UNSPEC as libc::sa_family_t;
        libc::connect(socket.as_raw_fd(), nowhere, size_of::<libc::sockaddr_in>() as u32)
    };
    if returned != 0 {
        return Err(io::Error::last_os_error());
    }
    in_time(socket.connect(&SockAddr::from(other)))?;
    Ok(socket.into())
}
