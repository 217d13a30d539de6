//! A way from the lab to a control plane outside it, which counts and can be cut.
//!
//! The API server listens on loopback of the machine, the agent lives in the namespace of its
//! node. A relay listens on the node's loopback and carries bytes, so that one API server serves
//! many labs, the network between them can fail without it, and what an agent reads is counted.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// How long a connection to the far side may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What went through so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections that were accepted.
    pub connections: u64,
    /// Bytes toward the control plane.
    pub sent: u64,
    /// Bytes from the control plane.
    pub received: u64,
}

#[derive(Debug, Default)]
struct Shared {
    is_cut: AtomicBool,
    is_over: AtomicBool,
    connections: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

/// A listener in a namespace; dropping it closes it with every connection it carries.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    netns_name: String,
    acceptor: Option<JoinHandle<()>>,
    wake: TcpListener,
}

impl Relay {
    /// Listens on a free port of loopback in `netns` and carries to `target`, which is dialled
    /// from the caller's namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn start(netns: &Netns, target: SocketAddr) -> Result<Self> {
        let listener = netns.run(|| {
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen in the node's namespace")
        })?;
        let address = listener.local_addr().context("read the relay's address")?;
        let wake = listener.try_clone().context("clone the relay's listener")?;
        let shared = Arc::<Shared>::default();
        let acceptor = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || accept(&listener, target, &shared))
        };
        let netns_name = netns.name().to_owned();
        Ok(Self { address, shared, netns_name, acceptor: Some(acceptor), wake })
    }

    /// Where it listens, inside its namespace.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What went through so far.
    pub fn traffic(&self) -> Traffic {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            connections: count(&self.shared.connections),
            sent: count(&self.shared.sent),
            received: count(&self.shared.received),
        }
    }

    /// Resets every connection, and each new one until [`mend`](Self::mend).
    pub fn cut(&self) {
        self.shared.is_cut.store(true, Ordering::SeqCst);
        self.disconnect();
    }

    /// Carries again.
    pub fn mend(&self) {
        self.shared.is_cut.store(false, Ordering::SeqCst);
    }

    /// Closes the connections that are open now; the next ones are carried.
    pub fn disconnect(&self) {
        let mut open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in open.drain(..) {
            // One that has ended by itself is what was wanted.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // Ends the accept that waits: on Linux, a listener that is shut down accepts nothing.
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&self.wake),
            nix::sys::socket::Shutdown::Both,
        );
        self.disconnect();
        if let Some(acceptor) = self.acceptor.take()
            && acceptor.join().is_err()
        {
            eprintln!("the relay in {} panicked", self.netns_name);
        }
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, shared: &Arc<Shared>) {
    while let Ok((near, _)) = listener.accept() {
        if shared.is_over.load(Ordering::SeqCst) {
            return;
        }
        shared.connections.fetch_add(1, Ordering::Relaxed);
        if shared.is_cut.load(Ordering::SeqCst) {
            continue;
        }
        // A far side that is down looks to the near one as a connection that is closed at once.
        let Ok(far) = TcpStream::connect_timeout(&target, PATIENCE) else { continue };
        let _ = carry(near, far, shared);
    }
}

/// Starts both directions; they end with either side.
fn carry(near: TcpStream, far: TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
    }
    let (near_again, far_again) = (near.try_clone()?, far.try_clone()?);
    {
        let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.extend([near.try_clone()?, far.try_clone()?]);
    }
    let there = Arc::clone(shared);
    std::thread::spawn(move || pump(near, far, &there.sent));
    let back = Arc::clone(shared);
    std::thread::spawn(move || pump(far_again, near_again, &back.received));
    Ok(())
}

fn pump(mut from: TcpStream, mut to: TcpStream, counter: &AtomicU64) {
    let mut buffer = vec![0u8; 64 * 1024];
    while let Ok(length) = from.read(&mut buffer) {
        if length == 0 || to.write_all(&buffer[..length]).is_err() {
            break;
        }
        counter.fetch_add(length as u64, Ordering::Relaxed);
    }
    for stream in [&from, &to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
