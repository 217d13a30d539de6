//! A frame through an `AF_XDP` socket, which no queue and no packet socket of the pod sees.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::libc;

use super::tools::{check, insist, own, set};

const SOL_XDP: i32 = 283;
const MMAP_OFFSETS: i32 = 1;
const TX_RING: i32 = 3;
const UMEM_REG: i32 = 4;
const UMEM_FILL_RING: i32 = 5;
const UMEM_COMPLETION_RING: i32 = 6;
const COPY: u16 = 2;
const PGOFF_TX: libc::off_t = 0x8000_0000;
const PAGE: usize = 4096;
/// Bytes of the memory that frames lie in.
const MEMORY: usize = 16 * PAGE;
const SLOTS: u32 = 8;

/// Sends one frame on the pod's interface.
pub(super) fn send(frame: &[u8]) -> io::Result<()> {
    let memory = map(-1, MEMORY, libc::MAP_ANONYMOUS | libc::MAP_PRIVATE, 0)?;
    // SAFETY: takes integers, and gives a descriptor of our own.
    let socket = unsafe { own(check(libc::socket(libc::AF_XDP, libc::SOCK_RAW, 0))?) };
    let region = [memory.0 as u64, MEMORY as u64, 4096, 0].map(u64::to_ne_bytes).concat();
    set(&socket, SOL_XDP, UMEM_REG, &region)?;
    for ring in [UMEM_FILL_RING, UMEM_COMPLETION_RING, TX_RING] {
        set(&socket, SOL_XDP, ring, &SLOTS.to_ne_bytes())?;
    }
    let [producer, descriptors] = offsets(&socket)?;
    let ring = map(socket.as_raw_fd(), PAGE, libc::MAP_SHARED | libc::MAP_POPULATE, PGOFF_TX)?;
    // The queue is another's until the kernel has cleaned up after it.
    insist(|| bind(&socket))?;
    // SAFETY: the frame fits the first slot of the memory; the descriptor is the ring's first,
    // sixteen bytes at the kernel's offset; the producer is written last.
    unsafe {
        memory.0.copy_from(frame.as_ptr(), frame.len());
        let descriptor = ring.0.add(descriptors);
        descriptor.cast::<u64>().write(0);
        descriptor.add(8).cast::<u32>().write(frame.len() as u32);
        descriptor.add(12).cast::<u32>().write(0);
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        ring.0.add(producer).cast::<u32>().write_volatile(1);
        check(libc::sendto(
            socket.as_raw_fd(),
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        ) as i32)?;
    }
    // The frame is the kernel's until it is sent.
    std::thread::sleep(Duration::from_millis(10));
    Ok(())
}

/// Where producer and descriptors of the TX ring lie.
fn offsets(socket: &OwnedFd) -> io::Result<[usize; 2]> {
    // Four rings of four offsets each: producer, consumer, descriptors, flags.
    let mut all = [0u64; 16];
    let mut length = size_of_val(&all) as libc::socklen_t;
    // SAFETY: the pointers are to live values of the sizes given.
    check(unsafe {
        let into = all.as_mut_ptr().cast();
        libc::getsockopt(socket.as_raw_fd(), SOL_XDP, MMAP_OFFSETS, into, &raw mut length)
    })?;
    let [_, _, _, _, producer, _, descriptors, ..] = all;
    Ok([producer as usize, descriptors as usize])
}

fn bind(socket: &OwnedFd) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex("eth0")?;
    let family = (libc::AF_XDP as u16).to_ne_bytes();
    let address = [&family[..], &COPY.to_ne_bytes(), &index.to_ne_bytes(), &[0; 8]].concat();
    // SAFETY: the pointer and the length are those of one live slice.
    check(unsafe {
        libc::bind(socket.as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t)
    })
    .map(drop)
}

/// A mapping that ends with its value.
struct Mapping(*mut u8, usize);

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `map`, of this length.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

fn map(fd: i32, length: usize, flags: i32, offset: libc::off_t) -> io::Result<Mapping> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping of memory, or of the socket's ring.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, fd, offset) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(Mapping(mapped.cast(), length))
}
