//! Socket calls that no system call of the thread makes: one entry through an io_uring.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use nix::libc;
use socket2::{SockAddr, Socket};

/// `connect(2)` by a ring; with `polled`, by a thread of the kernel.
pub(super) fn connect(socket: &Socket, to: SocketAddr, polled: bool) -> io::Result<()> {
    let to = SockAddr::from(to);
    let descriptor = types::Fd(socket.as_raw_fd());
    submit(&opcode::Connect::new(descriptor, to.as_ptr().cast(), to.len()).build(), polled)
}

/// `sendmsg(2)` by a ring.
pub(super) fn send_message(socket: &Socket, to: SocketAddr, text: &[u8]) -> io::Result<()> {
    let to = SockAddr::from(to);
    let mut part = libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: text.len() };
    // SAFETY: an all-zero header is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = to.as_ptr().cast_mut().cast();
    header.msg_namelen = to.len();
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    let descriptor = types::Fd(socket.as_raw_fd());
    submit(&opcode::SendMsg::new(descriptor, (&raw const header).cast()).build(), false)
}

/// Makes one call and waits a little for its result: callers keep what it points to until then.
fn submit(entry: &squeue::Entry, polled: bool) -> io::Result<()> {
    let mut builder = IoUring::builder();
    if polled {
        builder.setup_sqpoll(100);
    }
    let mut ring: IoUring = builder.build(4)?;
    // SAFETY: what the entry points to outlives this function; the ring, and with it whatever is
    // still under way, ends here.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    ring.submit()?;
    let until = Instant::now() + Duration::from_millis(250);
    loop {
        if let Some(done) = ring.completion().next() {
            let failed = done.result() < 0;
            return if failed { Err(io::Error::from_raw_os_error(-done.result())) } else { Ok(()) };
        }
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
