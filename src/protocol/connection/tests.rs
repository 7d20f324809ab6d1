use super::*;
use crate::protocol::close::CloseCode;
use crate::protocol::fuzz::client_frame;

const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
const MAX: usize = 1 << 20;

const CONT: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;
const FIN: u8 = 0x80;

/// Encodes a client frame with the given first byte and a masked payload.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    client_frame(first, KEY, payload)
}

/// An owned event, regardless of how its payload was stored.
#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<CloseCode>, String),
    Broke(Violation),
}

fn seen(event: ProtocolEvent<'_>) -> Seen {
    match event {
        ProtocolEvent::Message {
            text: true,
            payload,
        } => Seen::Text(payload.bytes().to_vec()),
        ProtocolEvent::Message {
            text: false,
            payload,
        } => Seen::Binary(payload.bytes().to_vec()),
        ProtocolEvent::Compressed { .. } => unreachable!("it was not agreed"),
        ProtocolEvent::Ping(payload) => Seen::Ping(payload.to_vec()),
        ProtocolEvent::Pong(payload) => Seen::Pong(payload.to_vec()),
        ProtocolEvent::Close(frame) => Seen::Close(frame.code, frame.reason),
    }
}

/// Feeds one part until it is consumed, and appends its events to `all`.
fn feed_part(connection: &mut FrameReader, part: &[u8], all: &mut Vec<Seen>) {
    let mut part = part.to_vec();
    let mut input = part.as_mut_slice();
    loop {
        match connection.receive(&mut input) {
            Ok(Some(event)) => all.push(seen(event)),
            Ok(None) => {
                assert!(
                    input.is_empty(),
                    "Ok(None) means that all input is consumed"
                );
                return;
            }
            Err(violation) => all.push(Seen::Broke(violation)),
        }
        if matches!(all.last(), Some(Seen::Broke(_) | Seen::Close(..))) {
            assert_eq!(connection.held_bytes(), 0);
            assert!(!connection.is_mid_message());
        }
    }
}

/// Receives `bytes` split at `cuts`.
fn feed(max: usize, bytes: &[u8], cuts: &[usize]) -> Vec<Seen> {
    let mut connection = FrameReader::new(max);
    let mut all = Vec::new();
    let mut from = 0;
    for &to in cuts.iter().chain([&bytes.len()]) {
        feed_part(&mut connection, &bytes[from..to], &mut all);
        from = to;
    }
    all
}

/// Receives `bytes` whole, split at every byte, and byte by byte, and asserts that the events are equal.
fn receive_max(max: usize, bytes: &[u8]) -> Vec<Seen> {
    let whole = feed(max, bytes, &[]);
    for cut in 0..=bytes.len() {
        assert_eq!(feed(max, bytes, &[cut]), whole, "cut at {cut}");
    }
    let every: Vec<usize> = (0..bytes.len()).collect();
    assert_eq!(feed(max, bytes, &every), whole, "byte by byte");
    whole
}

fn receive(frames: &[Vec<u8>]) -> Vec<Seen> {
    receive_max(MAX, &frames.concat())
}

fn text(payload: &str) -> Seen {
    Seen::Text(payload.as_bytes().to_vec())
}

fn ping(payload: &str) -> Seen {
    Seen::Ping(payload.as_bytes().to_vec())
}

/// Asserts that `bytes` end in `violation`, and that only their last byte causes it.
fn assert_violation_at_last_byte(max: usize, bytes: &[u8], violation: Violation) {
    let all = receive_max(max, bytes);
    assert_eq!(all.last(), Some(&Seen::Broke(violation)), "{bytes:X?}");
    let before = receive_max(max, &bytes[..bytes.len() - 1]);
    assert_eq!(before, all[..all.len() - 1], "{bytes:X?}");
}

#[test]
fn idle_connection_is_small_and_holds_no_memory() {
    // The state of a frame takes no more than a partial header, and rarely used state is boxed.
    assert!(size_of::<Progress>() <= 24);
    let connection = FrameReader::new(MAX);
    assert_eq!(connection.held_bytes(), 0);
    assert!(!connection.is_mid_message());
}

#[test]
fn rfc_examples_are_received() {
    // RFC 6455 §5.7
    let hello = [
        0x81, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58,
    ];
    assert_eq!(receive_max(MAX, &hello), [text("Hello")]);
    assert_eq!(
        receive(&[frame(TEXT, b"Hel"), frame(FIN | CONT, b"lo")]),
        [text("Hello")]
    );
    assert_eq!(receive(&[frame(FIN | PING, b"Hello")]), [ping("Hello")]);
    assert_eq!(
        receive(&[frame(FIN | PONG, b"Hello")]),
        [Seen::Pong(b"Hello".to_vec())]
    );
}

#[test]
fn payload_with_each_length_form_is_received() {
    for len in [0, 1, 7, 8, 125, 126, 127, 300] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        assert_eq!(
            receive(&[frame(FIN | BINARY, &payload)]),
            [Seen::Binary(payload)]
        );
    }
    for len in [0xFFFF, 0x1_0000, 0x1_0001, MAX] {
        let payload: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
        let bytes = frame(FIN | BINARY, &payload);
        for cuts in [&[][..], &[1], &[5, 9, 13], &[14], &[15, 20, 4000], &[len]] {
            assert_eq!(feed(MAX, &bytes, cuts), [Seen::Binary(payload.clone())]);
        }
    }
}

#[test]
fn frames_in_one_input_are_returned_one_by_one() {
    let frames = [
        frame(FIN | TEXT, b"one"),
        frame(FIN | PING, b""),
        client_frame(FIN | BINARY, [0; 4], b"two"),
        frame(FIN | PONG, b"x"),
        frame(FIN | TEXT, b""),
    ];
    let expected = [
        text("one"),
        ping(""),
        Seen::Binary(b"two".to_vec()),
        Seen::Pong(b"x".to_vec()),
        text(""),
    ];
    assert_eq!(receive(&frames), expected);
}

#[test]
fn empty_fragments_and_interleaved_controls_are_accepted() {
    // RFC 6455 §5.4
    let frames = [
        frame(TEXT, b""),
        frame(FIN | PING, b"in between"),
        frame(CONT, b"a"),
        frame(CONT, b""),
        frame(FIN | PONG, b""),
        client_frame(CONT, [9, 8, 7, 6], b"bcdef"),
        frame(FIN | CONT, b""),
        frame(FIN | TEXT, b"next"),
    ];
    let expected = [
        ping("in between"),
        Seen::Pong(vec![]),
        text("abcdef"),
        text("next"),
    ];
    assert_eq!(receive(&frames), expected);
    assert_eq!(
        receive(&[frame(BINARY, b""), frame(FIN, b"")]),
        [Seen::Binary(vec![])]
    );
}

#[test]
fn control_frame_between_fragments_precedes_the_message() {
    let mut connection = FrameReader::new(MAX);
    let mut all = Vec::new();
    feed_part(&mut connection, &frame(TEXT, b"a"), &mut all);
    let ping_frame = frame(FIN | PING, &[b'p'; 125]);
    feed_part(&mut connection, &ping_frame[..60], &mut all);
    assert!(all.is_empty());
    feed_part(&mut connection, &ping_frame[60..], &mut all);
    assert_eq!(all, [ping(&"p".repeat(125))]);
    feed_part(&mut connection, &frame(FIN, b"b"), &mut all);
    assert_eq!(all[1..], [text("ab")]);
}

#[test]
fn message_complete_in_the_input_is_not_copied() {
    let bytes = frame(FIN | TEXT, b"whole");
    // The header may have arrived earlier. Only the payload must be complete in the input.
    for cut in 0..=6 {
        let mut connection = FrameReader::new(MAX);
        let mut bytes = bytes.clone();
        let range = bytes.as_ptr_range();
        let (mut header, mut rest) = bytes.split_at_mut(cut);
        assert!(connection.receive(&mut header).unwrap().is_none());
        let Ok(Some(ProtocolEvent::Message {
            payload: MessagePayload::Whole(payload),
            ..
        })) = connection.receive(&mut rest)
        else {
            panic!("cut at {cut}");
        };
        assert_eq!(payload, b"whole");
        assert!(range.contains(&payload.as_ptr()));
    }
}

#[test]
fn assembled_message_has_headroom_and_little_slack() {
    let mut connection = FrameReader::new(MAX);
    let mut bytes = frame(FIN | BINARY, &[7; 10_000]);
    let (mut first, mut second) = bytes.split_at_mut(3_000);
    assert!(connection.receive(&mut first).unwrap().is_none());
    let event = connection.receive(&mut second).unwrap();
    let Some(ProtocolEvent::Message {
        payload: MessagePayload::Assembled(buffer),
        ..
    }) = event
    else {
        panic!()
    };
    assert_eq!(buffer.len(), HEADER_BYTES_MAX + 10_000);
    assert!(buffer.capacity() <= buffer.len() + buffer.len() / 8);
    let payload = MessagePayload::Assembled(buffer);
    assert_eq!(payload.bytes(), [7; 10_000]);
    assert_eq!(format!("{payload:?}"), "Assembled(10000 bytes)");
    assert_eq!(
        format!("{:?}", MessagePayload::Whole(b"abc")),
        "Whole(3 bytes)"
    );
}

#[test]
fn held_bytes_are_counted_and_released() {
    let bytes = [
        frame(TEXT, &[b'a'; 200]),
        frame(FIN | PING, b"abc"),
        frame(FIN, b"b"),
    ]
    .concat();
    let mut connection = FrameReader::new(MAX);
    let mut all = Vec::new();
    for (i, byte) in bytes.iter().enumerate() {
        feed_part(&mut connection, &[*byte], &mut all);
        let last = i + 1 == bytes.len();
        assert_eq!(connection.is_mid_message(), !last, "{i}");
        if i >= 8 && !last {
            assert!(connection.held_bytes() >= (i - 7).min(200), "{i}");
        }
    }
    assert_eq!(connection.held_bytes(), 0);
    // This also holds inside a control frame.
    feed_part(
        &mut connection,
        &frame(FIN | PING, &[1; 100])[..50],
        &mut all,
    );
    assert!(connection.is_mid_message() && connection.held_bytes() >= 44);
    // And it holds inside a header.
    let mut connection = FrameReader::new(MAX);
    feed_part(&mut connection, &[0x82, 0xFE], &mut all);
    assert!(connection.is_mid_message() && connection.held_bytes() == 2);
}

#[test]
fn announced_message_reserves_only_what_arrives() {
    let mut connection = FrameReader::new(usize::MAX >> 1);
    let mut all = Vec::new();
    let header = [0x82, 0xFF, 0, 0, 0, 0xFF, 0, 0, 0, 0, 1, 2, 3, 4];
    feed_part(&mut connection, &header, &mut all);
    assert_eq!(connection.held_bytes(), 0);
    feed_part(&mut connection, b"x", &mut all);
    assert!(connection.held_bytes() < 10_000);
}

#[test]
fn invalid_header_is_refused_at_its_first_wrong_byte() {
    use Violation::*;
    let cases: [(&[u8], Violation); 22] = [
        // RFC 6455 §5.2
        (&[0xC1], ReservedBits),
        (&[0xA1], ReservedBits),
        (&[0x91], ReservedBits),
        (&[0xF3], ReservedBits),
        (&[0x83], ReservedOpcode),
        (&[0x07], ReservedOpcode),
        (&[0x8B], ReservedOpcode),
        (&[0x0F], ReservedOpcode),
        (&[0x81, 0xFE, 0, 125], NonMinimalLength),
        (
            &[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF],
            NonMinimalLength,
        ),
        (&[0x82, 0xFF, 0x80], LengthTopBit),
        // RFC 6455 §5.1
        (&[0x81, 0x00], UnmaskedFrame),
        (&[0x81, 0x05], UnmaskedFrame),
        (&[0x89, 0x00], UnmaskedFrame),
        // RFC 6455 §5.5
        (&[0x08], FragmentedControl),
        (&[0x09], FragmentedControl),
        (&[0x0A], FragmentedControl),
        (&[0x88, 0xFE], ControlTooLong),
        (&[0x89, 0xFF], ControlTooLong),
        // RFC 6455 §5.4
        (&[0x80], UnexpectedContinuation),
        (&[0x00], UnexpectedContinuation),
        // RFC 6455 §10.4
        (
            &[0x82, 0xFF, 0x7F, 255, 255, 255, 255, 255, 255, 255],
            MessageTooBig,
        ),
    ];
    for (bytes, violation) in cases {
        assert_violation_at_last_byte(MAX, bytes, violation);
        // Valid messages before the header are still delivered.
        let after = [frame(FIN | TEXT, b"valid"), bytes.to_vec()].concat();
        assert_violation_at_last_byte(MAX, &after, violation);
        assert_eq!(receive_max(MAX, &after)[0], text("valid"));
    }
}

#[test]
fn receive_frame_returns_after_each_fragment() {
    let frames = [
        (frame(TEXT, b"a"), Opcode::Text),
        (frame(FIN | PING, b"p"), Opcode::Ping),
        (frame(CONT, b""), Opcode::Continuation),
        (frame(FIN, b"c"), Opcode::Continuation),
        (frame(FIN | BINARY, b"whole"), Opcode::Binary),
        (frame(FIN | CLOSE, b""), Opcode::Close),
    ];
    let bytes: Vec<u8> = frames.iter().flat_map(|(frame, _)| frame.clone()).collect();
    for cut in 0..bytes.len() {
        let mut progress = Progress::<ServerRole>::default();
        let (mut events, mut opcodes, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let (mut before, mut after) = (bytes[..cut].to_vec(), bytes[cut..].to_vec());
        for (from, part) in [(0, &mut before), (cut, &mut after)] {
            let len = part.len();
            let mut input = part.as_mut_slice();
            while !input.is_empty() {
                let opcode = progress.next_opcode(input);
                let event = progress
                    .receive_frame(&mut input, ReceiveRules::plain(MAX))
                    .unwrap();
                let is_whole = event.is_some() || progress.is_between_frames();
                events.extend(event.map(seen));
                if is_whole {
                    opcodes.extend(opcode);
                    ends.push(from + len - input.len());
                } else {
                    assert!(input.is_empty() && progress.frame_remaining() <= 5, "{cut}");
                }
            }
        }
        assert!(
            opcodes.iter().eq(frames.iter().map(|(_, opcode)| opcode)),
            "{cut}"
        );
        let lens = frames.iter().scan(0, |at, (frame, _)| {
            *at += frame.len();
            Some(*at)
        });
        assert!(ends.into_iter().eq(lens), "{cut}");
        let ping = Seen::Ping(b"p".to_vec());
        let close = Seen::Close(None, String::new());
        assert_eq!(
            events,
            [ping, text("ac"), Seen::Binary(b"whole".to_vec()), close]
        );
        assert_eq!(progress.next_opcode(b"\x81"), None);
    }
}

#[test]
fn interleaved_messages_are_refused() {
    // RFC 6455 §5.4
    for begun in [TEXT, BINARY] {
        for next in [TEXT, BINARY, FIN | TEXT, FIN | BINARY] {
            let bytes = [frame(begun, b"a"), vec![next]].concat();
            assert_violation_at_last_byte(MAX, &bytes, Violation::ExpectedContinuation);
            let bytes = [frame(begun, b""), frame(FIN | PING, b""), vec![next]].concat();
            assert_violation_at_last_byte(MAX, &bytes, Violation::ExpectedContinuation);
        }
        let bytes = [frame(begun, b"a"), frame(FIN, b"b"), vec![FIN]].concat();
        assert_violation_at_last_byte(MAX, &bytes, Violation::UnexpectedContinuation);
    }
}

#[test]
fn length_over_32_bits_is_not_truncated() {
    for length in [1 << 32, (1 << 32) + 5, (1 << 40) + 5, i64::MAX as u64] {
        let header = [&[0x82, 0xFF][..], &u64::to_be_bytes(length)].concat();
        assert_violation_at_last_byte(1000, &header, Violation::MessageTooBig);
        let begun = [frame(BINARY, b"a"), vec![FIN | CONT, 0xFF]].concat();
        let over = [&begun[..], &u64::to_be_bytes(length)].concat();
        assert_violation_at_last_byte(1000, &over, Violation::MessageTooBig);
    }
}

#[test]
fn message_over_the_limit_is_refused_before_the_key() {
    // RFC 6455 §10.4
    let at = frame(FIN | BINARY, &[1; 10]);
    assert_eq!(receive_max(10, &at), [Seen::Binary(vec![1; 10])]);
    assert_violation_at_last_byte(9, &at[..2], Violation::MessageTooBig);
    assert_violation_at_last_byte(0, &[0x82, 0x81], Violation::MessageTooBig);
    assert_eq!(receive_max(0, &frame(FIN | TEXT, b"")), [text("")]);
    assert_violation_at_last_byte(1000, &[0x82, 0xFE, 0x03, 0xE9], Violation::MessageTooBig);

    let parts = [
        frame(BINARY, &[1; 6]),
        frame(CONT, &[1; 4]),
        frame(FIN, b""),
    ]
    .concat();
    assert_eq!(receive_max(10, &parts), [Seen::Binary(vec![1; 10])]);
    let over = [frame(BINARY, &[1; 6]), vec![CONT, 0x85]].concat();
    assert_violation_at_last_byte(10, &over, Violation::MessageTooBig);
    // The count starts anew with the next message, and control frames don't count.
    let twice = [at.clone(), frame(FIN | PING, &[2; 100]), at].concat();
    assert_eq!(receive_max(10, &twice).len(), 3);
}

#[test]
fn invalid_utf8_is_refused_at_its_first_wrong_byte() {
    // RFC 6455 §8.1; Autobahn 6.4
    let long = frame(FIN | TEXT, "κόσμε…".repeat(3).as_bytes());
    assert_eq!(receive_max(MAX, &long).len(), 1);
    // Invalid text fails inside a frame that is far from complete.
    let mut connection = FrameReader::new(MAX);
    let mut all = Vec::new();
    let whole = frame(FIN | TEXT, b"abc\xF4\x90.....................");
    feed_part(&mut connection, &whole[..6 + 4], &mut all);
    assert!(all.is_empty());
    feed_part(&mut connection, &whole[10..11], &mut all);
    assert_eq!(all, [Seen::Broke(Violation::InvalidUtf8)]);
    // Whole, split and fragmented messages are refused alike.
    assert_eq!(receive(&[whole]), [Seen::Broke(Violation::InvalidUtf8)]);
    let bytes = [frame(TEXT, b"\xED"), frame(CONT, b"\xA0")].concat();
    assert_violation_at_last_byte(MAX, &bytes, Violation::InvalidUtf8);
    // The last character of the message is incomplete.
    assert_violation_at_last_byte(
        MAX,
        &frame(FIN | TEXT, b"ab\xE6\x97"),
        Violation::InvalidUtf8,
    );
    let end = [frame(TEXT, b"\xE6\x97"), frame(FIN, b"")].concat();
    assert_violation_at_last_byte(MAX, &end, Violation::InvalidUtf8);
    // Binary messages may contain any bytes, and fragments may split a character.
    assert_eq!(
        receive(&[frame(FIN | BINARY, b"\xFF")]),
        [Seen::Binary(vec![0xFF])]
    );
    let cut = [
        frame(TEXT, b"\xE6\x97"),
        frame(FIN | PING, b"\xFF"),
        frame(FIN, b"\xA5"),
    ];
    assert_eq!(receive(&cut)[1], text("日"));
}

#[test]
fn close_frame_is_parsed_and_ends_the_input() {
    // RFC 6455 §5.5.1, §7.1.5
    let rest = [frame(FIN | TEXT, b"too late"), vec![0xFF; 20]].concat();
    let close = |payload: &[u8]| receive(&[frame(FIN | CLOSE, payload), rest.clone()]);
    assert_eq!(close(b""), [Seen::Close(None, String::new())]);
    assert_eq!(
        close(b"\x03\xE8"),
        [Seen::Close(Some(CloseCode::NORMAL), String::new())]
    );
    let expected = [Seen::Close(
        Some(CloseCode::GOING_AWAY),
        "tschüß".to_owned(),
    )];
    assert_eq!(
        close(&[b"\x03\xE9", "tschüß".as_bytes()].concat()),
        expected
    );
    assert_eq!(close(b"\x03"), [Seen::Broke(Violation::CloseTooShort)]);
    assert_eq!(
        close(b"\x03\xED"),
        [Seen::Broke(Violation::CloseCodeInvalid)]
    );
    assert_eq!(
        close(b"\x03\xE8\xFF"),
        [Seen::Broke(Violation::CloseReasonInvalid)]
    );
    let long = [b"\x03\xE8".to_vec(), vec![b'r'; 123]].concat();
    assert_eq!(
        close(&long),
        [Seen::Close(Some(CloseCode::NORMAL), "r".repeat(123))]
    );
    // A close frame may also arrive in the middle of a message.
    let frames = [frame(TEXT, b"never finished"), frame(FIN | CLOSE, b"")];
    assert_eq!(receive(&frames), [Seen::Close(None, String::new())]);
}

#[test]
fn input_after_a_violation_is_ignored() {
    // RFC 6455 §7.1.7
    let frames = [
        vec![0xC1],
        frame(FIN | TEXT, b"too late"),
        frame(FIN | CLOSE, b""),
    ];
    assert_eq!(receive(&frames), [Seen::Broke(Violation::ReservedBits)]);
}

/// A reproducible pseudo-random number generator (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Generates frames of a client and the events that they must cause.
fn script(numbers: &mut Numbers) -> (Vec<u8>, Vec<Seen>) {
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..numbers.below(5) + 1 {
        let is_text = numbers.below(2) == 0;
        let payload = "aé日🦀\n".repeat(numbers.below(30)).into_bytes();
        let mut opcode = if is_text { TEXT } else { BINARY };
        let mut rest = payload.as_slice();
        loop {
            if numbers.below(4) == 0 {
                let payload = vec![b'c'; numbers.below(126)];
                bytes.extend(frame(FIN | PING, &payload));
                expected.push(Seen::Ping(payload));
            }
            let fin = numbers.below(2) == 0;
            let len = if fin {
                rest.len()
            } else {
                numbers.below(rest.len() + 1)
            };
            let key = [(); 4].map(|()| numbers.below(256) as u8);
            bytes.extend(client_frame(
                if fin { FIN | opcode } else { opcode },
                key,
                &rest[..len],
            ));
            rest = &rest[len..];
            opcode = CONT;
            if fin {
                break;
            }
        }
        expected.push(if is_text {
            Seen::Text(payload)
        } else {
            Seen::Binary(payload)
        });
    }
    (bytes, expected)
}

fn cuts(numbers: &mut Numbers, len: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = (0..numbers.below(12))
        .map(|_| numbers.below(len + 1))
        .collect();
    cuts.sort_unstable();
    cuts
}

#[test]
fn random_conversation_is_received_at_any_split() {
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    for round in 0..2_000 {
        let (bytes, expected) = script(&mut numbers);
        assert_eq!(feed(MAX, &bytes, &[]), expected, "{round}");
        let cuts = cuts(&mut numbers, bytes.len());
        assert_eq!(feed(MAX, &bytes, &cuts), expected, "{round} {cuts:?}");
    }
}

#[test]
fn damaged_conversation_ends_alike_at_any_split() {
    let mut numbers = Numbers(0xD1B5_4A32_D192_ED03);
    let mut broke = 0;
    for round in 0..5_000 {
        let (mut bytes, _) = script(&mut numbers);
        for _ in 0..numbers.below(3) + 1 {
            let at = numbers.below(bytes.len());
            bytes[at] = numbers.below(256) as u8;
        }
        let max = [MAX, 300][round % 2];
        let whole = feed(max, &bytes, &[]);
        let cuts = cuts(&mut numbers, bytes.len());
        // Invalid text in an incomplete frame is detected by its bytes, independently of the cuts.
        assert_eq!(feed(max, &bytes, &cuts), whole, "{round} {cuts:?}");
        broke += usize::from(matches!(whole.last(), Some(Seen::Broke(_))));
    }
    assert!(broke > 1_000, "{broke}");
}
