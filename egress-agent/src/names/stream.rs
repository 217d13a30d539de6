//! DNS over TCP: messages out of segments.
//!
//! A connection is followed from the segment that opens it, in order and without a gap; one whose
//! beginning was not seen, or that lost a segment, is followed no further. So it is the resolver
//! alone who says where a message begins: bytes that somebody else chose and had put into an
//! answer are never taken for one, however the segments fall.

use std::collections::BTreeMap;

use egress_common::dns::Head;
use egress_common::key::{Addr, PodId};
use egress_common::packet::tcp;

/// Connections followed at once on a node, and those of one pod.
const MOST: usize = 512;
const MOST_OF_POD: usize = 32;
/// Bytes of a message that are gathered. What is beyond is passed over.
const LONGEST: usize = 16 * 1024;
/// A connection that was silent for so long is forgotten, nanoseconds.
const SILENT: u64 = 30_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    pod: PodId,
    resolver: Addr,
    port: u16,
}

#[derive(Debug)]
struct Flow {
    /// Sequence number that comes next.
    next: u32,
    /// What is gathered of a message, its length in front.
    gathered: Vec<u8>,
    seen: u64,
}

/// A message, or what was copied of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Its bytes, without the length in front.
    pub(super) bytes: Vec<u8>,
    /// There was more of it.
    pub(super) cut: bool,
}

/// A segment of a connection that is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfOrder;

/// The connections that are followed.
#[derive(Debug, Default)]
pub(super) struct Streams {
    flows: BTreeMap<Key, Flow>,
}

impl Streams {
    /// Takes one segment in and gives the messages that end with it.
    pub(super) fn add(&mut self, head: &Head, payload: &[u8]) -> Result<Vec<Message>, OutOfOrder> {
        let key = Key { pod: head.pod, resolver: head.resolver, port: head.port };
        if head.tcp_flags & tcp::SYN != 0 {
            self.open(key, head);
            return Ok(Vec::new());
        }
        let Some(flow) = self.flows.get_mut(&key) else {
            return Err(OutOfOrder);
        };
        flow.seen = head.time;
        let behind = flow.next.wrapping_sub(head.sequence);
        if behind != 0 {
            // Sent again: what was read already is left out only as a whole.
            if behind <= i32::MAX as u32 && head.whole <= behind {
                return Ok(Vec::new());
            }
            self.flows.remove(&key);
            return Err(OutOfOrder);
        }
        flow.next = flow.next.wrapping_add(head.whole);
        flow.gathered.extend_from_slice(payload);
        let short = payload.len() < head.whole as usize;
        let (messages, lost) = flow.messages(short);
        if lost {
            self.flows.remove(&key);
        }
        Ok(messages)
    }

    fn open(&mut self, key: Key, head: &Head) {
        let now = head.time;
        let flow = Flow { next: head.sequence.wrapping_add(1), gathered: Vec::new(), seen: now };
        self.flows.insert(key, flow);
        if self.flows.len() > MOST {
            self.flows.retain(|_, flow| now.saturating_sub(flow.seen) < SILENT);
        }
        let of_pod = |other: &Key| other.pod == key.pod;
        if self.flows.keys().filter(|other| of_pod(other)).count() > MOST_OF_POD {
            self.forget_oldest(of_pod);
        }
        if self.flows.len() > MOST {
            self.forget_oldest(|_| true);
        }
    }

    fn forget_oldest(&mut self, of: impl Fn(&Key) -> bool) {
        let of = self.flows.iter().filter(|(key, _)| of(key));
        if let Some(oldest) = of.min_by_key(|(_, flow)| flow.seen).map(|(key, _)| *key) {
            self.flows.remove(&oldest);
        }
    }
}

impl Flow {
    /// Takes out the messages that are complete; with `short`, what is left as well, because its rest
    /// was not copied, and then the connection cannot be followed any further.
    fn messages(&mut self, short: bool) -> (Vec<Message>, bool) {
        let mut found = Vec::new();
        let mut rest = &*self.gathered;
        while let Some((length, body)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            if let Some((message, after)) = body.split_at_checked(length) {
                found.push(Message { bytes: message.to_vec(), cut: false });
                rest = after;
                continue;
            }
            if short || body.len() > LONGEST {
                found.push(Message { bytes: body.to_vec(), cut: true });
                return (found, true);
            }
            break;
        }
        self.gathered = rest.to_vec();
        (found, short)
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
