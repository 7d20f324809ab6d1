//! Tests of event streams with a parser that follows the WHATWG algorithm step by step.

use super::*;

/// An event as a page receives it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ParsedEvent {
    pub(crate) kind: String,
    pub(crate) data: String,
    /// The last event id, set by this event or an earlier one.
    pub(crate) id: String,
}

/// The parser of WHATWG HTML §9.2.6, for input in arbitrary pieces.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    data: String,
    kind: String,
    id_buffer: String,
    /// The value that a client would send as `Last-Event-ID`.
    pub(crate) last_event_id: String,
    pub(crate) retry_ms: Option<u64>,
    pub(crate) comments: usize,
    pub(crate) events: Vec<ParsedEvent>,
}

impl Parser {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\r' | b'\n' => self.end_line(),
                byte => self.line.push(byte),
            }
        }
    }

    /// Whether the parser is between two blocks: no line and no event has begun.
    pub(crate) fn is_between_blocks(&self) -> bool {
        self.line.is_empty() && self.data.is_empty() && self.kind.is_empty()
    }

    fn end_line(&mut self) {
        let line = String::from_utf8(std::mem::take(&mut self.line)).unwrap();
        if line.is_empty() {
            self.dispatch();
        } else if line.starts_with(':') {
            self.comments += 1;
        } else if let Some((field, value)) = line.split_once(':') {
            self.field(field, value.strip_prefix(' ').unwrap_or(value));
        } else {
            self.field(&line, "");
        }
    }

    fn field(&mut self, field: &str, value: &str) {
        match field {
            "event" => self.kind = value.to_owned(),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id_buffer = value.to_owned(),
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry_ms = value.parse().ok();
            }
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        self.last_event_id = self.id_buffer.clone();
        let mut data = std::mem::take(&mut self.data);
        let kind = std::mem::take(&mut self.kind);
        if data.is_empty() {
            return;
        }
        data.pop();
        self.events.push(ParsedEvent {
            kind: if kind.is_empty() {
                "message".into()
            } else {
                kind
            },
            data,
            id: self.last_event_id.clone(),
        });
    }
}

fn parsed(bytes: &[u8]) -> Vec<ParsedEvent> {
    let mut parser = Parser::default();
    parser.feed(bytes);
    assert!(parser.is_between_blocks(), "the last event is complete");
    parser.events
}

fn got(kind: &str, data: &str, id: &str) -> ParsedEvent {
    ParsedEvent {
        kind: kind.into(),
        data: data.into(),
        id: id.into(),
    }
}

/// Replaces all line ends by LF, as the client's parser does.
fn with_line_feeds(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// Returns all texts that consist of up to `count_max` of these pieces.
fn texts(pieces: &[&str], count_max: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut from = 0;
    for _ in 0..count_max {
        let to = all.len();
        for index in from..to {
            for piece in pieces {
                let text = format!("{}{piece}", all[index]);
                all.push(text);
            }
        }
        from = to;
    }
    all
}

#[test]
fn single_line_text_has_one_data_line() {
    assert_eq!(event(None, EventData::Text(b"hi")), b"data: hi\n\n");
    assert_eq!(
        event(Some("a-1"), EventData::Text("Grüezi".as_bytes())),
        "id: a-1\ndata: Grüezi\n\n".as_bytes()
    );
}

#[test]
fn every_text_arrives_with_lf_line_ends() {
    for text in texts(&["\n", "\r", "\r\n", " ", ":", "a", "data: x", "\0"], 5) {
        let bytes = event(None, EventData::Text(text.as_bytes()));
        let expected = got("message", &with_line_feeds(&text), "");
        assert_eq!(parsed(&bytes), [expected], "{text:?}");
    }
}

#[test]
fn event_has_one_empty_line_at_its_end() {
    for text in texts(&["\n", "\r", "\r\n", "a"], 6) {
        let bytes = event(Some("a-1"), EventData::Text(text.as_bytes()));
        let ends: Vec<usize> = (1..=bytes.len())
            .filter(|&end| bytes[..end].ends_with(b"\n\n"))
            .collect();
        assert_eq!(ends, [bytes.len()], "{text:?}");
        assert_eq!(block_len(&bytes), bytes.len());
        assert!(bytes.len() <= event_bytes(Some("a-1"), EventData::Text(text.as_bytes())));
    }
}

#[test]
fn event_is_allocated_once_with_its_exact_size() {
    for (id, payload) in [
        (None, EventData::Text(b"")),
        (Some("a-1"), EventData::Text(b"a\nb\rc")),
        (None, EventData::Binary(b"")),
        (Some("a-1"), EventData::Binary(b"abcd")),
    ] {
        let bytes = event(id, payload);
        assert_eq!(bytes.len(), event_bytes(id, payload));
        assert_eq!(bytes.capacity(), bytes.len());
    }
}

#[test]
fn binary_payload_is_a_base64_event_of_type_binary() {
    for (bytes, text) in [
        (&b""[..], ""),
        (b"\xff", "/w=="),
        (b"\xff\x00", "/wA="),
        (b"\xff\xfe\xfd", "//79"),
        (b"\n\n", "Cgo="),
    ] {
        let event = event(Some("a-1"), EventData::Binary(bytes));
        assert_eq!(parsed(&event), [got("binary", text, "a-1")]);
        assert_eq!(block_len(&event), event.len());
    }
}

#[test]
fn block_len_splits_joined_blocks() {
    let blocks = [
        preamble(2000, Position::AtOnce("a-0")),
        event(None, EventData::Text(b"\n\n")),
        KEEP_ALIVE.to_vec(),
        KEEP_ALIVE.to_vec(),
        event(Some("a-1"), EventData::Binary(b"x")),
        reset("", None),
    ];
    let joined = blocks.concat();
    let mut rest = &joined[..];
    for block in &blocks {
        let (front, after) = rest.split_at(block_len(rest));
        assert_eq!(front, block);
        assert_eq!(is_comment(front), front == KEEP_ALIVE);
        rest = after;
    }
    assert!(rest.is_empty());
}

#[test]
fn preamble_sets_retry_and_position_without_an_event() {
    let no_id = event(None, EventData::Text(b"x"));
    let with_id = event(Some("a-8"), EventData::Text(b"x"));
    for (position, at_once, with_first_event) in [
        (Position::Untold, "", ""),
        (Position::WithFirstEvent("a-7"), "", "a-7"),
        (Position::AtOnce("a-7"), "a-7", "a-7"),
    ] {
        let mut parser = Parser::default();
        parser.feed(&preamble(2000, position));
        assert_eq!(parser.retry_ms, Some(2000));
        assert_eq!(parser.last_event_id, at_once, "{position:?}");
        assert_eq!(parser.events, []);
        parser.feed(KEEP_ALIVE);
        parser.feed(&no_id);
        assert_eq!(parser.events, [got("message", "x", with_first_event)]);
        parser.feed(&with_id);
        assert_eq!(parser.last_event_id, "a-8");
    }
}

#[test]
fn only_events_are_followed_by_empty_lines() {
    let reports = |bytes: &[u8]| bytes.windows(2).filter(|&ends| ends == b"\n\n").count();
    let quiet = [
        preamble(2000, Position::Untold),
        preamble(2000, Position::WithFirstEvent("a-7")),
        KEEP_ALIVE.repeat(3),
    ];
    assert_eq!(reports(&quiet.concat()), 0);
    let stream = [
        &quiet[1][..],
        KEEP_ALIVE,
        &event(None, EventData::Text(b"")),
    ]
    .concat();
    assert_eq!(reports(&stream), 1);
    assert_eq!(reports(&preamble(2000, Position::AtOnce("a-7"))), 1);
}

#[test]
fn comment_is_one_line_and_dispatches_no_event() {
    let mut parser = Parser::default();
    parser.feed(&KEEP_ALIVE.repeat(2));
    assert_eq!(parser.events, []);
    assert_eq!(parser.comments, 2);
    parser.feed(&event(None, EventData::Text(b"x")));
    assert_eq!(parser.events, [got("message", "x", "")]);
}

#[test]
fn reset_event_contains_the_requested_id() {
    assert_eq!(parsed(&reset("b-3", None)), [got("reset", "b-3", "")]);
    assert_eq!(
        parsed(&reset("b-3", Some("a-9"))),
        [got("reset", "b-3", "a-9")]
    );
    // The id comes from the client, so it is not trusted.
    assert_eq!(
        parsed(&reset("x\n\nevent: message", None)),
        [got("reset", "x\n\nevent: message", "")]
    );
}

#[test]
fn id_with_line_end_or_nul_is_omitted() {
    for id in ["a\nb", "a\rb", "a\0b"] {
        let bytes = event(Some(id), EventData::Text(b"x"));
        assert_eq!(bytes, b"data: x\n\n");
    }
}

#[test]
fn response_head_has_no_length_and_disables_buffering() {
    let head = response_head(&[("Access-Control-Allow-Origin", "*"), ("X-Evil", "a\r\nb")]);
    assert_eq!(
        String::from_utf8(head).unwrap(),
        "HTTP/1.1 200 OK\r\n\
         Content-Type: text/event-stream\r\n\
         Cache-Control: no-store, no-transform\r\n\
         X-Accel-Buffering: no\r\n\
         Connection: close\r\n\
         X-Content-Type-Options: nosniff\r\n\
         Cross-Origin-Resource-Policy: same-origin\r\n\
         Content-Security-Policy: frame-ancestors 'none'\r\n\
         Access-Control-Allow-Origin: *\r\n\
         \r\n"
    );
}

#[test]
fn last_event_id_comes_from_header_or_query() {
    let head = |target: &str, header: Option<&str>| Head {
        method: "GET".into(),
        target: target.into(),
        minor_version: 1,
        headers: header
            .map(|value| ("last-event-id".into(), value.into()))
            .into_iter()
            .collect(),
    };
    for (target, header, expected) in [
        ("/", None, &[][..]),
        ("/", Some(""), &[]),
        ("/", Some("a-1"), &["a-1"]),
        ("/?lastEventId=b-2", Some("a-1"), &["a-1"]),
        ("/", Some("a-1,b-2"), &["a-1", "b-2"]),
        (
            "/?lastEventId=a-1%2Cb-2&lastEventId=c-3",
            None,
            &["a-1", "b-2", "c-3"],
        ),
        ("/?lastEventId=b-2", None, &["b-2"]),
        ("/?lastEventId=b-2", Some(""), &["b-2"]),
        ("/?x=y&lastEventId=b%2D2&z", None, &["b-2"]),
        (
            "/?lastEventId=b-2&x&lastEventId=&lastEventId=c-3",
            None,
            &["b-2", "c-3"],
        ),
        ("/?lastEventId=", None, &[]),
        ("/?lastEventId", None, &[]),
        ("/?notlastEventId=b-2", None, &[]),
        ("/?lastEventId=%zz%4", None, &["%zz%4"]),
        ("/?lastEventId=%C3%A4", None, &["ä"]),
        ("/?lastEventId=%ff", None, &["\u{fffd}"]),
    ] {
        let found = last_event_ids(&head(target, header));
        assert_eq!(found, expected, "{target} {header:?}");
    }
}

#[test]
fn rooms_event_is_requested_by_the_query() {
    for (target, expected) in [
        ("/", false),
        ("/?eventRooms", true),
        ("/?eventRooms=", true),
        ("/?a=b&eventRooms=1&c", true),
        ("/?eventRoomsx", false),
        ("/?x=eventRooms", false),
    ] {
        let head = Head {
            method: "GET".into(),
            target: target.into(),
            minor_version: 1,
            headers: Vec::new(),
        };
        assert_eq!(asks_for_rooms(&head), expected, "{target}");
    }
}

#[test]
fn rooms_with_any_name_are_one_json_event() {
    let names = [
        "news",
        "",
        "a \"b\" \\ /",
        "line\r\nend\0\u{7f}",
        "zürich 🎉",
    ];
    let event = rooms(
        names
            .iter()
            .enumerate()
            .map(|(n, name)| (n as u64 + 9, *name)),
    );
    let mut parser = Parser::default();
    parser.feed(&event);
    let [event] = &parser.events[..] else {
        panic!("not one event: {:?}", parser.events);
    };
    assert_eq!(event.kind, "rooms");
    let read: std::collections::BTreeMap<String, String> =
        serde_json::from_str(&event.data).unwrap();
    let expected = names.iter().enumerate();
    let expected = expected.map(|(n, name)| (format!("{:x}", n + 9), (*name).to_owned()));
    assert_eq!(read, expected.collect());
    assert_eq!(rooms([].into_iter()), b"event: rooms\ndata: {}\n\n");
}

#[test]
fn joined_ids_name_the_position_in_each_room_after_every_event() {
    let text = |id: Option<&str>, text: &str| event(id, EventData::Text(text.as_bytes()));
    let mut ids = JoinedIds::new(vec!["a-1".into(), "b-1".into(), "a1-9".into()]);
    let blocks = [
        text(Some("b-2"), "of b"),
        KEEP_ALIVE.to_vec(),
        text(None, "id: b-7\nis no id"),
        text(Some("a-2"), "of a"),
        event(Some("b-3"), EventData::Binary(&[0, 1])),
        // The room of `a` begins another epoch.
        reset("a-2", Some("c-0")),
        text(Some("c-1"), "of a"),
        text(Some("d-5"), "of no room of the stream"),
    ];
    let mut parser = Parser::default();
    parser.feed(&ids.replace_in(&blocks.concat()));
    let seen: Vec<_> = parser
        .events
        .iter()
        .map(|event| (&*event.id, &*event.data))
        .collect();
    assert_eq!(
        seen,
        [
            ("a-1,b-2,a1-9", "of b"),
            ("a-1,b-2,a1-9", "id: b-7\nis no id"),
            ("a-2,b-2,a1-9", "of a"),
            ("a-2,b-3,a1-9", "AAE="),
            ("c-0,b-3,a1-9", "a-2"),
            ("c-1,b-3,a1-9", "of a"),
            ("c-1,b-3,a1-9", "of no room of the stream"),
        ]
    );
    assert_eq!(parser.comments, 1);
    assert_eq!(ids.id(), "c-1,b-3,a1-9");
}
