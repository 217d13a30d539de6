//! Segments as they come.

use proptest::prelude::*;

use super::*;

const SYN_ACK: u8 = tcp::SYN | tcp::ACK;

fn head(port: u16, sequence: u32, whole: usize, tcp_flags: u8) -> Head {
    Head {
        time: u64::from(sequence),
        pod: PodId(1),
        resolver: Addr::v4([10, 96, 0, 10]),
        whole: whole as u32,
        sequence,
        copied: whole as u16,
        port,
        protocol: 6,
        tcp_flags,
        pad: [0; 2],
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

fn opened(isn: u32) -> Streams {
    let mut streams = Streams::default();
    streams.add(&head(1, isn, 0, SYN_ACK), &[]).unwrap();
    streams
}

fn whole(bytes: &[u8]) -> Message {
    Message { bytes: bytes.to_vec(), cut: false }
}

#[test]
fn messages_come_out_of_segments_however_they_fall() {
    // Across the end of the sequence numbers.
    let isn = u32::MAX - 3;
    let bytes = [framed(b"hello"), framed(b"world")].concat();
    for size in 1..=bytes.len() {
        let mut streams = opened(isn);
        let mut found = Vec::new();
        let mut next = isn.wrapping_add(1);
        for part in bytes.chunks(size) {
            found.extend(streams.add(&head(1, next, part.len(), tcp::ACK), part).unwrap());
            next = next.wrapping_add(part.len() as u32);
        }
        assert_eq!(found, [whole(b"hello"), whole(b"world")], "{size}");
    }
}

#[test]
fn bytes_without_a_beginning_are_never_a_message() {
    let bytes = framed(b"forged");
    let data = |sequence| head(1, sequence, bytes.len(), tcp::ACK);
    assert_eq!(Streams::default().add(&data(1), &bytes), Err(OutOfOrder));
    // A gap ends it, also for what comes in order after that.
    let mut streams = opened(0);
    assert_eq!(streams.add(&data(9), &bytes), Err(OutOfOrder));
    assert_eq!(streams.add(&data(1), &bytes), Err(OutOfOrder));
    // What is sent again is not read again; what overlaps is not guessed at.
    let mut streams = opened(0);
    assert_eq!(streams.add(&data(1), &bytes).unwrap(), [whole(b"forged")]);
    assert_eq!(streams.add(&data(1), &bytes).unwrap(), []);
    assert_eq!(streams.add(&data(5), &bytes), Err(OutOfOrder));
}

#[test]
fn what_was_not_copied_ends_the_connection() {
    let bytes = [framed(b"one"), framed(&[7; 100])].concat();
    let mut streams = opened(0);
    let found = streams.add(&head(1, 1, bytes.len(), tcp::ACK), &bytes[..20]).unwrap();
    assert_eq!(found, [whole(b"one"), Message { bytes: vec![7; 13], cut: true }]);
    let more = framed(b"two");
    let next = head(1, 1 + bytes.len() as u32, more.len(), tcp::ACK);
    assert_eq!(streams.add(&next, &more), Err(OutOfOrder));
}

#[test]
fn neither_connections_nor_messages_grow_without_end() {
    let mut streams = Streams::default();
    for port in 0..100 {
        streams.add(&head(port, u32::from(port), 0, SYN_ACK), &[]).unwrap();
    }
    assert_eq!(streams.flows.len(), MOST_OF_POD);
    for pod in 0..2000 {
        let opens = Head { pod: PodId(pod), ..head(1, pod as u32, 0, SYN_ACK) };
        streams.add(&opens, &[]).unwrap();
    }
    assert_eq!(streams.flows.len(), MOST);
    let mut streams = opened(0);
    let mut next = 1;
    let part = [0xff; 4000];
    let mut cut = false;
    while !cut {
        let found = streams.add(&head(1, next, part.len(), tcp::ACK), &part).unwrap();
        cut = found.iter().any(|message| message.cut && message.bytes.len() < 2 * LONGEST);
        next += part.len() as u32;
    }
    assert!(streams.flows.is_empty());
}

proptest! {
    #[test]
    fn any_segments_are_taken(
        segments in prop::collection::vec((0..4u16, any::<u32>(), 0..40usize, any::<u8>()), 0..60),
    ) {
        let mut streams = Streams::default();
        for (port, sequence, length, flags) in segments {
            let sequence = sequence % 64;
            let payload = vec![0; length];
            if let Ok(found) = streams.add(&head(port, sequence, length, flags), &payload) {
                prop_assert!(found.iter().map(|one| one.bytes.len()).sum::<usize>() <= 64 * 40);
            }
        }
        prop_assert!(streams.flows.len() <= 4);
    }
}
