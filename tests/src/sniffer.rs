//! The judge: an AF_PACKET socket in the internet namespace, at the far end of the node's uplink.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::address::NODE;
use crate::frame::Frame;
use crate::lab;
use crate::netns::Netns;

/// Every protocol, in network order as `AF_PACKET` wants it.
const EVERY_PROTOCOL: u16 = (libc::ETH_P_ALL as u16).to_be();

/// Bytes kept of a frame: every header an attack may stack, and the start of what it carries.
pub const KEPT: usize = 400;

/// A reader thread and what it has seen.
#[derive(Debug)]
pub struct Sniffer {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    frames: Mutex<Vec<Frame>>,
    /// The first bytes of every frame, where they are kept.
    bytes: Option<Mutex<Vec<Vec<u8>>>>,
    stop: AtomicBool,
    lost: AtomicU64,
}

impl Shared {
    fn frames(&self) -> MutexGuard<'_, Vec<Frame>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sniffer {
    /// Starts reading what arrives at `interface` of `netns`.
    pub fn start(netns: &Netns, interface: &str) -> Result<Self> {
        Self::reading(netns, interface, Shared::default())
    }

    /// The same, keeping the first [`KEPT`] bytes of every frame, of whatever kind.
    pub fn keeping(netns: &Netns, interface: &str) -> Result<Self> {
        let bytes = Some(Mutex::default());
        Self::reading(netns, interface, Shared { bytes, ..Shared::default() })
    }

    fn reading(netns: &Netns, interface: &str, shared: Shared) -> Result<Self> {
        let socket = netns.run(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))
                .context("open the sniffer's packet socket")?;
            socket.set_recv_buffer_size(8 << 20).context("set the sniffer's buffer size")?;
            socket.bind(&packet_address(interface)?).context("bind the sniffer")?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(20))).context("set a timeout")?;
        let shared = Arc::new(shared);
        let theirs = Arc::clone(&shared);
        let reader = std::thread::spawn(move || read(&socket, &theirs));
        Ok(Self { shared, reader: Some(reader) })
    }

    /// How many frames were recorded so far: a mark for [`since`](Self::since).
    pub fn mark(&self) -> usize {
        self.shared.frames().len()
    }

    /// The frames after `mark`.
    ///
    /// # Errors
    /// When the kernel lost frames the sniffer should have seen: no verdict is possible then.
    pub fn since(&self, mark: usize) -> Result<Vec<Frame>> {
        let lost = self.shared.lost.load(Ordering::Relaxed);
        ensure!(lost == 0, "the sniffer lost {lost} frames: its verdict would be worth nothing");
        Ok(self.shared.frames().get(mark..).unwrap_or_default().to_vec())
    }

    /// What was kept since the last call.
    ///
    /// # Errors
    /// As [`since`](Self::since).
    pub fn take(&self) -> Result<Vec<Vec<u8>>> {
        self.since(usize::MAX)?;
        let bytes = self.shared.bytes.as_ref().context("this sniffer keeps no bytes")?;
        Ok(std::mem::take(&mut bytes.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// The frames after `mark` for which `wanted` holds.
    pub fn matching(&self, mark: usize, wanted: impl Fn(&Frame) -> bool) -> Result<Vec<Frame>> {
        Ok(self.since(mark)?.into_iter().filter(wanted).collect())
    }

    /// The frames after `mark` that neither the gateway nor the node itself sent: whatever a
    /// workload got out, under any source address.
    pub fn escapes(&self, mark: usize) -> Result<Vec<Frame>> {
        self.matching(mark, |frame| !may_leave(frame.src))
    }

    /// [`escapes`](Self::escapes) toward one address.
    pub fn escapes_to(&self, mark: usize, to: IpAddr) -> Result<Vec<Frame>> {
        self.matching(mark, |frame| !may_leave(frame.src) && frame.dst == to)
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The gateway, the node, and what IPv6 says on a link of its own.
fn may_leave(src: IpAddr) -> bool {
    let link_local = match src {
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_unspecified(),
        IpAddr::V4(_) => false,
    };
    link_local || NODE.has(src) || crate::address::pod(lab::GATEWAY.host).has(src)
}

fn read(socket: &Socket, shared: &Shared) {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 65_536];
    let mut rounds = 0u32;
    while !shared.stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if !is_outgoing(&from) => {
                // SAFETY: the kernel has written `length` bytes, which is at most the buffer's.
                let bytes = unsafe { buffer[..length].assume_init_ref() };
                shared.frames().extend(Frame::parse(bytes));
                if let Some(kept) = &shared.bytes {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.push(bytes[..length.min(KEPT)].to_vec());
                }
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                count_losses(socket, shared);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                // Without its socket the sniffer is blind, and a blind judge must say so.
                shared.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(1024) {
            count_losses(socket, shared);
        }
    }
}

/// Adds what the kernel dropped for want of buffer since the last call; reading resets it.
fn count_losses(socket: &Socket, shared: &Shared) {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: the pointers are to live values of the sizes given.
    let returned = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    if returned == 0 {
        shared.lost.fetch_add(u64::from(stats.tp_drops), Ordering::Relaxed);
    }
}

/// The address of an interface for packet sockets of every protocol.
pub fn packet_address(interface: &str) -> Result<SockAddr> {
    let index = nix::net::if_::if_nametoindex(interface)
        .with_context(|| format!("no interface {interface}"))?;
    // SAFETY: the storage is large enough for a `sockaddr_ll`, an all-zero one is valid, and the
    // length given is its own.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            link.write(std::mem::zeroed());
            (*link).sll_family = libc::AF_PACKET as u16;
            (*link).sll_protocol = EVERY_PROTOCOL;
            (*link).sll_ifindex = index as i32;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }
    .context("make a packet socket's address")?;
    Ok(address)
}

/// Whether a frame was sent by this end of the interface.
fn is_outgoing(from: &SockAddr) -> bool {
    // SAFETY: the kernel fills a `sockaddr_ll` for a packet socket, and the storage is larger.
    let link = unsafe { &*from.as_ptr().cast::<libc::sockaddr_ll>() };
    link.sll_pkttype == libc::PACKET_OUTGOING
}
