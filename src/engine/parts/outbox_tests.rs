use std::cell::{Cell, RefCell};
use std::io::IoSlice;

use super::queue::{CONTROLS_MAX, held_by};
use super::*;
use crate::protocol::encode::{HEADER_BYTES_MAX, Opcode, control, frame_len, write_header};
use crate::protocol::event_stream::tests::Parser;
use crate::protocol::event_stream::{EventData, KEEP_ALIVE, Position, event, preamble};
use crate::transport::OneByOne;

/// When everything is queued, where that does not matter.
pub(super) const NOW: Tick = Tick::FIRST;

pub(super) fn frame(payload: &[u8]) -> Vec<u8> {
    let mut header = [0; HEADER_BYTES_MAX];
    let len = write_header(Opcode::Binary, payload.len(), &mut header);
    [&header[HEADER_BYTES_MAX - len..], payload].concat()
}

pub(super) fn pong(payload: &[u8]) -> Vec<u8> {
    control(Opcode::Pong, payload)
}

fn run(payloads: &[&[u8]]) -> Bytes {
    payloads
        .iter()
        .flat_map(|payload| frame(payload))
        .collect::<Vec<u8>>()
        .into()
}

/// A transport that takes this many bytes, then blocks.
struct BlockingTransport {
    room: Cell<usize>,
    taken: RefCell<Vec<u8>>,
}

impl BlockingTransport {
    fn room(room: usize) -> Self {
        Self {
            room: Cell::new(room),
            taken: RefCell::default(),
        }
    }
}

impl ShardTransport for BlockingTransport {
    type Registry = ();
    type Writer = OneByOne;

    fn register(&mut self, _: &(), _: usize) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.room.get());
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room.set(self.room.get() - n);
        self.taken.borrow_mut().extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        self.write(&all)
    }

    fn finish(&mut self) {}
}

/// A transport that reports readiness again only after a call would have blocked, and takes few bytes a call.
struct ByBlocking {
    inner: BlockingTransport,
    step: usize,
    has_blocked: Cell<bool>,
}

impl ShardTransport for ByBlocking {
    type Registry = ();
    type Writer = OneByOne;
    const SHORT_MEANS_NOT_READY: bool = false;

    fn register(&mut self, (): &(), _: usize) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(&bytes[..bytes.len().min(self.step)]);
        self.has_blocked.set(written.is_err());
        written
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write(&pieces[0])
    }

    fn finish(&mut self) {}
}

#[test]
fn flush_after_a_short_write_goes_on_until_it_would_block() {
    let large = vec![b'L'; 20_000];
    let whole = run(&[b"a", &large, b"bb", &large, b"last"]);
    for (room, step) in [(0, 10), (10, 10), (15, 10), (30_000, 7_000), (90_000, 999)] {
        let mut outbox = Outbox::default();
        for payload in [&b"a"[..], &large, b"bb", &large, b"last"] {
            outbox.push(frame(payload).into(), 1, false, NOW);
        }
        let mut transport = ByBlocking {
            inner: BlockingTransport::room(room),
            step,
            has_blocked: Cell::new(false),
        };
        let (written, result) = outbox.flush(&mut transport, &mut Vec::new());
        assert!(result.is_ok());
        assert_eq!(written.bytes, room.min(whole.len()));
        assert_eq!(*transport.inner.taken.borrow(), whole[..written.bytes]);
        let waits = !outbox.is_empty();
        assert_eq!(transport.has_blocked.get(), waits, "{room} {step}");
    }
}

pub(super) fn flush(outbox: &mut Outbox, room: usize) -> (Vec<u8>, u64) {
    let mut transport = BlockingTransport::room(room);
    let (written, result) = outbox.flush(&mut transport, &mut Vec::new());
    assert!(result.is_ok());
    let taken = transport.taken.into_inner();
    assert_eq!(written.bytes, taken.len());
    (taken, written.messages)
}

/// Parses whole server frames into opcodes and payloads.
fn parse(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let len = frame_len(bytes);
        let header = match bytes[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        frames.push((bytes[0], bytes[header..len].to_vec()));
        bytes = &bytes[len..];
    }
    frames
}

/// Flushes the rest of an outbox, and expects these texts as the only frames, with those that were flushed before.
#[track_caller]
fn expect_all(mut outbox: Outbox, flushed: (Vec<u8>, u64), texts: &[&str]) {
    let (mut taken, mut messages) = flushed;
    let (rest, more) = flush(&mut outbox, usize::MAX);
    taken.extend(rest);
    messages += more;
    let payloads: Vec<_> = parse(&taken).into_iter().map(|frame| frame.1).collect();
    let expected: Vec<_> = texts.iter().map(|text| text.as_bytes()).collect();
    assert_eq!(payloads, expected);
    assert_eq!(messages, texts.len() as u64);
    assert_eq!((outbox.live_bytes(), outbox.bytes()), (0, 0));
}

#[test]
fn messages_are_written_in_order_for_any_write_size() {
    let large = vec![b'L'; 20_000];
    for step in [1, 2, 3, 7, 33, 1000, 16_384, 100_000] {
        let mut outbox = Outbox::default();
        outbox.push_preface(Bytes::from_static(b"HTTP/1.1 101\r\n\r\n"), NOW);
        outbox.push(run(&[b"a", b"bb", b""]), 3, false, NOW);
        outbox.push(frame(&large).into(), 1, false, NOW);
        outbox.push(run(&[b"last"]), 1, false, NOW);
        let expected = [
            b"HTTP/1.1 101\r\n\r\n".to_vec(),
            run(&[b"a", b"bb", b"", &large, b"last"]).to_vec(),
        ]
        .concat();
        let mut taken = Vec::new();
        let mut messages = 0;
        while !outbox.is_empty() {
            let before = outbox.bytes();
            let (bytes, left) = flush(&mut outbox, step);
            assert_eq!(outbox.bytes(), before - bytes.len());
            taken.extend(bytes);
            messages += left;
        }
        assert_eq!(taken, expected, "in steps of {step}");
        assert_eq!(messages, 5, "in steps of {step}");
        assert_eq!((outbox.bytes(), in_progress(&outbox)), (0, 0));
        assert!(outbox.waiting.is_none(), "an empty outbox owns no memory");
    }
}

#[test]
fn control_frame_overtakes_messages_but_never_splits_one() {
    let whole = run(&[b"first", b"second", b"third"]);
    for sent in 0..whole.len() {
        let mut outbox = Outbox::default();
        outbox.push(whole.clone(), 3, false, NOW);
        let (mut taken, _) = flush(&mut outbox, sent);
        outbox.push_control(pong(b"1").into(), NOW);
        outbox.push_control(pong(b"2").into(), NOW);
        taken.extend(flush(&mut outbox, usize::MAX).0);
        let frames = parse(&taken);
        let data: Vec<_> = frames.iter().filter(|(first, _)| first & 8 == 0).collect();
        assert_eq!(data.len(), 3);
        // It goes behind the frame in progress, if there is one, and before all others.
        let begun = frames.iter().position(|(first, _)| first & 8 != 0).unwrap();
        let first_len = frame(b"first").len();
        let second_len = first_len + frame(b"second").len();
        let expected = match sent {
            0 => 0,
            n if n <= first_len => 1,
            n if n <= second_len => 2,
            _ => 3,
        };
        assert_eq!(begun, expected, "after {sent} bytes");
        assert_eq!(frames[begun].1, b"1");
        assert_eq!(frames[begun + 1].1, b"2");
    }
}

#[test]
fn drop_oldest_drops_whole_messages_and_counts_each() {
    let whole = run(&[b"first", b"second", b"third", b"fourth"]);
    for sent in 0..whole.len() {
        let mut outbox = Outbox::default();
        outbox.push(whole.clone(), 4, false, NOW);
        let (mut taken, mut messages) = flush(&mut outbox, sent);
        outbox.push_control(pong(b"!").into(), NOW);
        // Room for one more of this size, beside the bytes that can't be dropped.
        let more = frame(b"fifth!!");
        let bytes_max =
            in_progress(&outbox) + pong(b"!").len() + more.len() + frame(b"fourth").len();
        let dropped = outbox.drop_oldest(more.len(), bytes_max);
        outbox.push(more.into(), 1, false, NOW);
        assert!(outbox.bytes() <= bytes_max, "after {sent} bytes");
        let (rest, left) = flush(&mut outbox, usize::MAX);
        taken.extend(rest);
        messages += left;
        let frames = parse(&taken);
        let mut data = frames.iter().filter(|(first, _)| first & 8 == 0);
        assert_eq!(data.clone().count() as u64, messages);
        assert_eq!(messages + dropped, 5, "after {sent} bytes");
        assert_eq!(data.next_back().unwrap().1, b"fifth!!");
        assert!(
            frames.iter().any(|(_, payload)| payload == b"!"),
            "the pong is not dropped"
        );
    }
}

#[test]
fn drop_messages_keeps_the_frame_in_progress_and_controls() {
    let whole = run(&[b"first", b"second", b"third", b"fourth"]);
    for own in [false, true] {
        for sent in 0..whole.len() {
            let mut outbox = Outbox::default();
            outbox.push(whole.clone(), 4, own, NOW);
            outbox.push(run(&[b"fifth", b"sixth"]), 2, own, NOW);
            let (mut taken, mut messages) = flush(&mut outbox, sent);
            outbox.push_control(pong(b"!").into(), NOW);
            let rest = in_progress(&outbox);
            let dropped = outbox.drop_messages();
            assert_eq!(
                outbox.bytes(),
                rest + pong(b"!").len(),
                "after {sent} bytes"
            );
            assert_eq!(outbox.live_bytes(), outbox.bytes());
            assert_eq!(in_progress(&outbox), rest);
            assert_eq!(outbox.own_bytes(), outbox.held_by_chunks());
            assert_eq!(outbox.messages(), u64::from(rest > 0));
            assert_eq!(outbox.drop_messages(), 0, "only once");
            outbox.push(run(&[b"newest"]), 1, own, NOW);
            let (bytes, left) = flush(&mut outbox, usize::MAX);
            taken.extend(bytes);
            messages += left;
            assert_eq!(messages + dropped, 7, "after {sent} bytes");
            let frames = parse(&taken);
            let data: Vec<_> = frames
                .iter()
                .filter(|(first, _)| first & 8 == 0)
                .map(|(_, payload)| &payload[..])
                .collect();
            let all: [&[u8]; 4] = [b"first", b"second", b"third", b"fourth"];
            let begun = data.len() - 1;
            assert_eq!(data[..begun], all[..begun], "after {sent} bytes");
            assert_eq!(data[begun], b"newest");
            assert_eq!(frames[begun].1, b"!", "the pong is not dropped");
        }
    }
}

#[test]
fn drop_messages_keeps_whole_replays() {
    let replay = run(&[b"kept 1", b"kept 2", b"kept 3"]);
    for written in 0..=replay.len() {
        let mut outbox = Outbox::default();
        outbox.push_replay(replay.clone(), 3, false, NOW);
        outbox.push(run(&[b"live 1", b"live 2"]), 2, false, NOW);
        outbox.push_replay(run(&[b"kept 4"]), 1, false, NOW);
        outbox.push(run(&[b"live 3"]), 1, true, NOW);
        let flushed = flush(&mut outbox, written);
        assert_eq!(outbox.drop_messages(), 3);
        assert_eq!(outbox.live_bytes(), 0);
        assert_eq!(outbox.own_bytes(), outbox.held_by_chunks());
        outbox.push(run(&[b"live 4"]), 1, false, NOW);
        let expected = ["kept 1", "kept 2", "kept 3", "kept 4", "live 4"];
        expect_all(outbox, flushed, &expected);
    }
}

#[test]
fn drop_messages_keeps_a_response_that_precedes_them() {
    const RESPONSE: &[u8] = b"HTTP/1.1 101\r\n\r\n";
    for written in 0..RESPONSE.len() {
        let mut outbox = Outbox::default();
        outbox.push_preface(Bytes::from_static(RESPONSE), NOW);
        outbox.push(run(&[b"first", b"second"]), 2, true, NOW);
        let (mut taken, _) = flush(&mut outbox, written);
        assert_eq!(outbox.drop_messages(), 2);
        assert_eq!(outbox.own_bytes(), outbox.held_by_chunks());
        outbox.push(run(&[b"newest"]), 1, true, NOW);
        taken.extend(flush(&mut outbox, usize::MAX).0);
        assert_eq!(taken, [RESPONSE, &run(&[b"newest"])].concat());
    }
}

#[test]
fn replay_bytes_do_not_count_and_are_not_dropped() {
    let replay = run(&[b"kept 1", b"kept 2", b"kept 3"]);
    let live = run(&[b"live 1", b"live 2"]);
    let cases = (0..=replay.len()).flat_map(|written| [(written, true), (written, false)]);
    for (written, is_shared) in cases {
        let mut outbox = Outbox::default();
        outbox.push_replay(replay.clone(), 3, is_shared, NOW);
        outbox.push(live.clone(), 2, false, NOW);
        let flushed = flush(&mut outbox, written);
        assert_eq!(outbox.live_bytes(), live.len());
        assert_eq!(outbox.bytes(), replay.len() - written + live.len());
        let is_held = written < replay.len();
        let of_replay = if is_shared { 0 } else { replay.len() };
        let held = if is_held { held_by(of_replay) } else { 0 };
        assert_eq!(outbox.own_bytes(), held);
        let fill = outbox.fill(100);
        assert_eq!((fill.bytes, fill.in_progress), (live.len(), 0));
        // There is room for one message, so the older of the live ones is dropped.
        assert_eq!(outbox.drop_oldest(live.len() / 2, live.len()), 1);
        outbox.push(run(&[b"live 3"]), 1, false, NOW);
        assert_eq!(outbox.live_bytes(), live.len());
        let expected = ["kept 1", "kept 2", "kept 3", "live 2", "live 3"];
        expect_all(outbox, flushed, &expected);
    }
}

#[test]
fn drop_waiting_keeps_the_frame_in_progress() {
    let whole = run(&[b"first", b"second", b"third"]);
    for sent in 0..whole.len() {
        let mut outbox = Outbox::default();
        outbox.push(whole.clone(), 3, false, NOW);
        let (mut taken, mut messages) = flush(&mut outbox, sent);
        let dropped = outbox.drop_waiting();
        assert_eq!(outbox.bytes(), in_progress(&outbox));
        outbox.push_last(control(Opcode::Close, b"\x03\xf5").into(), NOW);
        let (rest, left) = flush(&mut outbox, usize::MAX);
        taken.extend(rest);
        messages += left;
        assert_eq!(messages + dropped, 3, "after {sent} bytes");
        assert_eq!(parse(&taken).last().unwrap().0, 0x88, "after {sent} bytes");
        assert_eq!(parse(&taken).len() as u64, messages + 1);
    }
}

#[test]
fn control_frame_over_the_limit_replaces_the_latest() {
    let mut outbox = Outbox::default();
    outbox.push(run(&[b"data"]), 1, false, NOW);
    flush(&mut outbox, 1);
    for _ in 0..CONTROLS_MAX {
        assert!(!outbox.controls_full());
        outbox.push_control(pong(b"old").into(), NOW);
    }
    assert!(outbox.controls_full());
    let bytes = outbox.bytes();
    outbox.push_control_or_replace(pong(b"new").into(), NOW);
    assert_eq!(outbox.bytes(), bytes);
    let (taken, _) = flush(&mut outbox, usize::MAX);
    assert!(taken.ends_with(&pong(b"new")));
    assert!(!outbox.controls_full());
}

#[test]
fn clear_counts_the_message_in_progress() {
    let mut outbox = Outbox::default();
    outbox.push(run(&[b"first", b"second"]), 2, false, NOW);
    flush(&mut outbox, 3);
    outbox.push_control(pong(b"").into(), NOW);
    assert_eq!(outbox.clear(), 2);
    assert!(outbox.is_empty());
    assert_eq!(outbox.bytes(), 0);
}

#[test]
fn whole_frames_within_a_length_are_found() {
    let whole = run(&[b"12345678", b"12345678", b"12345678"]);
    assert_eq!(Encoding::Frames.whole(&whole, 0), (10, 1), "at least one");
    assert_eq!(Encoding::Frames.whole(&whole, 19), (10, 1));
    assert_eq!(Encoding::Frames.whole(&whole, 20), (20, 2));
    assert_eq!(Encoding::Frames.whole(&whole, usize::MAX), (30, 3));
    assert_eq!(Encoding::Frames.whole(&[], 10), (0, 0));
}

#[test]
fn small_messages_take_little_memory_beyond_their_bytes() {
    let mut outbox = Outbox::default();
    let mut expected = Vec::new();
    for n in 0..10_000u32 {
        let message = frame(&n.to_be_bytes());
        expected.extend_from_slice(&message);
        outbox.push(message.into(), 1, false, NOW);
    }
    assert_eq!(outbox.bytes(), expected.len());
    assert!(chunks(&outbox) < 100, "{} chunks", chunks(&outbox));
    let mut taken = Vec::new();
    let mut messages = 0;
    while !outbox.is_empty() {
        let (bytes, left) = flush(&mut outbox, 1_001);
        taken.extend(bytes);
        messages += left;
    }
    assert!(taken == expected, "in order, and whole");
    assert_eq!(messages, 10_000);
}

fn events(texts: &[&str]) -> Bytes {
    texts
        .iter()
        .flat_map(|text| event(None, EventData::Text(text.as_bytes())))
        .collect::<Vec<u8>>()
        .into()
}

/// Parses a stream, which must end with a whole event, into the events' data and the number of comments.
fn parse_events(bytes: &[u8]) -> (Vec<String>, usize) {
    let mut parser = Parser::default();
    parser.feed(bytes);
    assert!(parser.is_between_blocks(), "half an event");
    let data = parser.events.into_iter().map(|event| event.data);
    (data.collect(), parser.comments)
}

const TEXTS: [&str; 4] = ["first", "second\n\nline\n", "", "fourth"];

#[test]
fn events_are_written_in_order_for_any_write_size() {
    for step in 1..60 {
        let mut outbox = Outbox::new(Encoding::Events);
        outbox.push_preface(preamble(1000, Position::Untold).into(), NOW);
        outbox.push(events(&TEXTS), 4, false, NOW);
        outbox.push(events(&["last"]), 1, false, NOW);
        let (mut taken, mut messages) = (Vec::new(), 0);
        while !outbox.is_empty() {
            let (bytes, left) = flush(&mut outbox, step);
            taken.extend(bytes);
            messages += left;
            let mut parser = Parser::default();
            parser.feed(&taken);
            assert_eq!(parser.events.len() as u64, messages, "in steps of {step}");
        }
        let (data, _) = parse_events(&taken);
        assert_eq!(data[..4], TEXTS, "in steps of {step}");
        assert_eq!(messages, 5);
    }
}

#[test]
fn comment_overtakes_events_but_never_splits_one() {
    let whole = events(&TEXTS);
    for sent in 0..whole.len() {
        let mut outbox = Outbox::new(Encoding::Events);
        outbox.push(whole.clone(), 4, false, NOW);
        let (mut taken, begun) = flush(&mut outbox, sent);
        outbox.push_control(Bytes::from_static(KEEP_ALIVE), NOW);
        // A comment is found as a whole, like an event.
        let mut messages = begun;
        while !outbox.is_empty() {
            let (bytes, left) = flush(&mut outbox, 2);
            taken.extend(bytes);
            messages += left;
        }
        assert_eq!(messages, 4);
        let (data, comments) = parse_events(&taken);
        assert_eq!((&data[..], comments), (&TEXTS.map(String::from)[..], 1));
    }
}

#[test]
fn drop_oldest_drops_whole_events_and_counts_each() {
    let whole = events(&TEXTS);
    for sent in 0..whole.len() {
        let mut outbox = Outbox::new(Encoding::Events);
        outbox.push(whole.clone(), 4, false, NOW);
        let (mut taken, mut messages) = flush(&mut outbox, sent);
        outbox.push_control(Bytes::from_static(KEEP_ALIVE), NOW);
        let more = events(&["fifth"]);
        let bytes_max =
            in_progress(&outbox) + KEEP_ALIVE.len() + more.len() + events(&["fourth"]).len();
        let dropped = outbox.drop_oldest(more.len(), bytes_max);
        outbox.push(more, 1, false, NOW);
        assert!(outbox.bytes() <= bytes_max, "after {sent} bytes");
        let (rest, left) = flush(&mut outbox, usize::MAX);
        taken.extend(rest);
        messages += left;
        let (data, comments) = parse_events(&taken);
        assert_eq!(data.len() as u64, messages, "after {sent} bytes");
        assert_eq!(messages + dropped, 5, "after {sent} bytes");
        assert_eq!(data.last().unwrap(), "fifth");
        assert_eq!(comments, 1);
    }
}

#[test]
fn drop_messages_keeps_the_event_in_progress_and_comments() {
    let whole = events(&TEXTS);
    for sent in 0..whole.len() {
        let mut outbox = Outbox::new(Encoding::Events);
        outbox.push(whole.clone(), 4, false, NOW);
        let (mut taken, mut messages) = flush(&mut outbox, sent);
        outbox.push_control(Bytes::from_static(KEEP_ALIVE), NOW);
        let dropped = outbox.drop_messages();
        outbox.push(events(&["newest"]), 1, false, NOW);
        let (rest, left) = flush(&mut outbox, usize::MAX);
        taken.extend(rest);
        messages += left;
        let (data, comments) = parse_events(&taken);
        assert_eq!(data.len() as u64, messages, "after {sent} bytes");
        assert_eq!(messages + dropped, 5, "after {sent} bytes");
        let begun = data.len() - 1;
        assert_eq!(data[..begun], TEXTS[..begun]);
        assert_eq!((&data[begun][..], comments), ("newest", 1));
    }
}

#[test]
fn drop_waiting_keeps_the_event_in_progress() {
    let whole = events(&TEXTS);
    for sent in 0..whole.len() {
        let mut outbox = Outbox::new(Encoding::Events);
        outbox.push(whole.clone(), 4, false, NOW);
        let (mut taken, mut messages) = flush(&mut outbox, sent);
        let dropped = outbox.drop_waiting();
        let (rest, left) = flush(&mut outbox, usize::MAX);
        taken.extend(rest);
        messages += left;
        assert_eq!(messages + dropped, 4, "after {sent} bytes");
        assert_eq!(parse_events(&taken).0.len() as u64, messages);
    }
}

#[test]
fn cleared_outbox_keeps_its_encoding() {
    let mut outbox = Outbox::new(Encoding::Events);
    outbox.push(events(&TEXTS), 4, false, NOW);
    assert_eq!(outbox.clear(), 4);
    assert_eq!(outbox.encoding, Encoding::Events);
}

#[test]
fn whole_events_within_a_length_are_found() {
    let whole = events(&["1234", "1\n2", "12345678"]);
    let lens = [12, 17, 16];
    assert_eq!(
        Encoding::Events.whole(&whole, 0),
        (lens[0], 1),
        "at least one"
    );
    assert_eq!(Encoding::Events.whole(&whole, 28), (12, 1));
    assert_eq!(Encoding::Events.whole(&whole, 29), (29, 2));
    assert_eq!(Encoding::Events.whole(&whole, usize::MAX), (45, 3));
}

fn chunks(outbox: &Outbox) -> usize {
    outbox
        .waiting
        .as_ref()
        .map_or(0, |queue| queue.chunks.len())
}

fn in_progress(outbox: &Outbox) -> usize {
    outbox.fill(0).in_progress
}

#[test]
fn age_is_that_of_the_oldest_waiting_bytes() {
    let at = |seconds| NOW.after(Duration::from_secs(seconds));
    let age = |outbox: &Outbox, seconds| outbox.age(at(seconds)).as_secs();
    let write = |outbox: &mut Outbox, room| {
        let mut transport = BlockingTransport::room(room);
        outbox.flush(&mut transport, &mut Vec::new()).1.unwrap();
    };
    let mut outbox = Outbox::default();
    assert_eq!(age(&outbox, 9), 0);
    outbox.push(run(&[b"first"]), 1, true, at(10));
    outbox.push(run(&[b"second"]), 1, true, at(20));
    assert_eq!(age(&outbox, 25), 15);
    write(&mut outbox, 3);
    // A pong overtakes the messages of which nothing was written.
    outbox.push_control(pong(b"").into(), at(26));
    assert_eq!(age(&outbox, 30), 20, "a part of the first waits");
    write(&mut outbox, 4);
    assert_eq!(age(&outbox, 30), 10, "the second waits behind the pong");
    write(&mut outbox, 2);
    assert_eq!(age(&outbox, 30), 10);
    outbox.push_last(control(Opcode::Close, b"\x03\xf5").into(), at(40));
    write(&mut outbox, 8);
    assert_eq!(age(&outbox, 42), 2, "only the close frame waits");
    write(&mut outbox, 99);
    assert_eq!(age(&outbox, 99), 0);
}

#[test]
fn age_after_drops_is_that_of_the_messages_that_stay() {
    let at = |seconds| NOW.after(Duration::from_secs(seconds));
    let age = |outbox: &Outbox| outbox.age(at(100)).as_secs();
    let mut outbox = Outbox::default();
    for second in 0..10 {
        outbox.push(run(&[b"12345678"]), 1, true, at(second));
    }
    assert_eq!(age(&outbox), 100);
    assert_eq!(outbox.drop_oldest(10, 60), 5);
    assert_eq!(age(&outbox), 95);
    assert_eq!(outbox.drop_messages(), 5);
    assert_eq!(age(&outbox), 0);
    outbox.push_replay(run(&[b"kept"]), 1, false, at(99));
    assert_eq!(age(&outbox), 1);
}

#[test]
fn joined_messages_have_the_age_of_the_oldest() {
    let at = |seconds| NOW.after(Duration::from_secs(seconds));
    let mut outbox = Outbox::default();
    for second in 0..1_000 {
        outbox.push(run(&[b"short"]), 1, true, at(second));
    }
    let mut ages = Vec::new();
    for _ in 0..1_000 {
        ages.push(outbox.age(at(1_000)).as_secs());
        outbox
            .flush(&mut BlockingTransport::room(7), &mut Vec::new())
            .1
            .unwrap();
    }
    assert!(outbox.is_empty());
    assert!(ages.is_sorted_by(|a, b| a >= b), "{ages:?}");
    // A chunk of joined messages holds 4 KiB.
    for (ago, age) in (0..1_000).map(|n| 1_000 - n).zip(ages) {
        assert!((ago..ago + (4 << 10) / 7).contains(&age), "{ago} {age}");
    }
}

/// Thousands of chunks may wait for slow clients.
#[cfg(target_pointer_width = "64")]
#[test]
fn age_takes_no_memory_in_a_chunk() {
    const ALLOCATOR_BYTES: usize = 16;
    assert_eq!(
        held_by(0),
        size_of::<Bytes>() + 2 * size_of::<usize>() + ALLOCATOR_BYTES
    );
}
