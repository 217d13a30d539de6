//! Conversations with an echo server, by every way that applications open one.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use crate::dial::{Way, dial};

/// How long one read or write may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes that are sent with the opening, where the way can.
const FIRST: usize = 25;

/// Sends so many bytes and has them all sent back.
///
/// # Errors
/// When a call fails, or what comes back differs.
pub fn talk(way: Way, to: SocketAddr, bytes: usize) -> io::Result<String> {
    let text: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
    let (first, rest) = text.split_at(bytes.min(FIRST));
    let mut stream = dial(way, to, first, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut writer = stream.try_clone()?;
    let mut back = Vec::with_capacity(bytes);
    std::thread::scope(|scope| {
        let written = scope.spawn(|| {
            writer.write_all(rest)?;
            writer.shutdown(Shutdown::Write)
        });
        stream.read_to_end(&mut back)?;
        written.join().map_err(|_| io::Error::other("the writer panicked"))?
    })?;
    if back != text {
        return Err(io::Error::other(format!("{} of {bytes} bytes came back", back.len())));
    }
    Ok(format!("{bytes} bytes came back"))
}
