//! What was opened before enforcement began, and is used afterwards.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use nix::libc;
use socket2::{Socket, Type};

use super::scene::Scene;
use super::tools::{check, dial, dialled, packet_socket, raw, set_number, socket, tcp, udp};
use super::{Actor, Attack, Row, When, sockets};

const MPTCP: i32 = 262;
const SO_ZEROCOPY: i32 = 60;
/// Where the internet answers.
const ECHO: u16 = 9000;

const fn held(id: &'static str, actor: Actor, run: fn(&Scene) -> io::Result<()>) -> Attack {
    Attack::new(id, Row::BeforeStart, actor, run).when(When::AcrossStart)
}

pub(super) const ATTACKS: &[Attack] = &[
    held("older-socket", Actor::Nobody, |s| {
        let socket = tcp(s)?;
        s.wait_for_start()?;
        dial(&socket, s.at())
    }),
    held("older-connection", Actor::Nobody, |s| {
        let mut stream = sockets::stream(dialled(s, echo(s))?)?;
        s.wait_for_start()?;
        sockets::write(&mut stream, s.text())
    }),
    held("older-connection-sendfile", Actor::Nobody, |s| {
        let (socket, file) = (dialled(s, echo(s))?, file(s)?);
        s.wait_for_start()?;
        // SAFETY: takes descriptors, a null pointer and a length.
        check(unsafe {
            libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), 25) as i32
        })
        .map(|_| std::mem::forget(socket))
    }),
    held("older-connection-splice", Actor::Nobody, |s| {
        let (socket, file) = (dialled(s, echo(s))?, file(s)?);
        s.wait_for_start()?;
        let mut pipe = [0; 2];
        let none = std::ptr::null_mut();
        // SAFETY: takes descriptors, null pointers and lengths; the pipe is a live array of two.
        unsafe {
            check(libc::pipe(pipe.as_mut_ptr()))?;
            check(libc::splice(file.as_raw_fd(), none, pipe[1], none, 25, 0) as i32)?;
            check(libc::splice(pipe[0], none, socket.as_raw_fd(), none, 25, 0) as i32)
        }
        .map(|_| std::mem::forget(socket))
    }),
    held("older-connection-zerocopy", Actor::Nobody, |s| {
        let socket = dialled(s, echo(s))?;
        set_number(&socket, libc::SOL_SOCKET, SO_ZEROCOPY, 1)?;
        s.wait_for_start()?;
        socket.send_with_flags(s.text(), libc::MSG_ZEROCOPY).map(|_| std::mem::forget(socket))
    }),
    held("older-mptcp-connection", Actor::Nobody, |s| {
        let socket = socket(s, Type::STREAM, Some(MPTCP))?;
        dial(&socket, echo(s))?;
        let mut stream = sockets::stream(socket)?;
        s.wait_for_start()?;
        sockets::write(&mut stream, s.text())
    }),
    held("older-connected-udp", Actor::Nobody, |s| {
        let socket = udp(s)?;
        socket.connect(&s.at().into())?;
        s.wait_for_start()?;
        socket.send(s.text()).map(drop)
    }),
    held("older-raw-socket", Actor::Raw, |s| {
        let socket = raw(s)?;
        socket.connect(&SocketAddr::new(s.target(), 0).into())?;
        s.wait_for_start()?;
        socket.send(&s.udp(s.own(), 40000, s.at())).map(drop)
    }),
    held("older-packet-socket", Actor::Raw, |s| {
        let socket: Socket = packet_socket(Type::RAW)?;
        s.wait_for_start()?;
        socket.send(&s.framed(&s.udp(s.own(), 40000, s.at()))).map(drop)
    }),
];

fn echo(s: &Scene) -> SocketAddr {
    SocketAddr::new(s.target(), ECHO)
}

/// A file of this attack's text.
fn file(s: &Scene) -> io::Result<std::fs::File> {
    use std::io::{Seek, Write};
    let mut file = tempfile::tempfile()?;
    file.write_all(s.text())?;
    file.rewind()?;
    Ok(file)
}
