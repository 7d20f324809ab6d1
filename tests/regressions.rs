//! Thirteen failures that WebSocket libraries have had although they passed the usual conformance suites, each with a
//! test: here if real sockets show it, and next to the code if only a scripted socket can.
//!
//! 1. A message of one frame over the limit is accepted, or its memory is reserved.
//!    `message_over_the_limit_is_refused_by_its_header`; `src/protocol/connection/tests.rs`:
//!    `message_over_the_limit_is_refused_before_the_key`,
//!    `announced_message_reserves_only_what_arrives`.
//! 2. Valid messages before a malformed frame in the same read are lost.
//!    `messages_before_a_malformed_frame_are_delivered`.
//! 3. A character that is split between two blocks of bytes is refused, or accepted although it
//!    is invalid. `text_split_inside_characters_is_unchanged`; `src/protocol/regressions.rs`:
//!    `split_characters_are_accepted_at_every_boundary`,
//!    `invalid_utf8_is_refused_at_every_boundary`.
//! 4. A key that is not sixteen bytes is accepted. `key_other_than_sixteen_bytes_is_refused`.
//! 5. One of several keys or versions is used. `repeated_keys_and_versions_are_refused`.
//! 6. The body of an upgrade request is parsed as frames. `body_on_the_upgrade_request_is_refused`.
//! 7. Frames that arrive with the head count towards its limit.
//!    `frames_sent_with_the_head_do_not_count_as_head`; `src/engine/sim_tests/regressions.rs`:
//!    `frames_after_a_head_do_not_count_against_its_limit`.
//! 8. A deadline does not expire while a write is blocked. `deadlines_hold_while_a_write_is_blocked`;
//!    `src/engine/sim_tests/regressions.rs`: `every_deadline_of_a_nonreader_expires_on_time`.
//! 9. Pongs and close frames starve behind queued messages, or are dropped with them.
//!    `full_outbox_sends_pong_first_and_close_frame_last`; `src/engine/sim_tests/sessions.rs`:
//!    `pongs_precede_queued_messages_but_split_no_frame`;
//!    `src/engine/sim_tests/slow.rs`: `pongs_of_a_slow_client_are_not_dropped`.
//! 10. Close codes 1012 to 1014 are refused. `valid_close_code_is_echoed`.
//! 11. A slow client gets a message after its verdict, with a gap before it.
//!     `slow_client_gets_only_a_close_frame_after_its_verdict`; `src/engine/sim_tests/slow.rs`:
//!     `slow_client_is_closed_after_the_frame_in_progress`.
//! 12. Accepted messages are lost if a connection closes and disconnects in one turn.
//!     `messages_and_the_close_after_them_are_delivered`; `src/engine/sim_tests/regressions.rs`:
//!     `messages_in_the_ending_turn_are_delivered_or_counted`.
//! 13. A bound is exceeded because bytes count when they are written, not when they are queued. No socket is exact enough
//!     to show it. `src/engine/sim_tests/regressions.rs`:
//!     `outbox_stays_within_its_bound_after_any_burst`,
//!     `mailbox_stays_within_its_bound_before_its_shard_runs`,
//!     `busy_client_is_read_only_up_to_its_bound`.

use crate::support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::RecvTimeoutError::Disconnected;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use humphrey::App;
use humphrey::stream::Stream;
use humphrey_ws::error::WebsocketError;
use humphrey_ws::ping::Heartbeat;
use humphrey_ws::{
    AsyncSender, AsyncWebsocketApp, CloseCode, Limits, Message, RunningApp, SlowConsumer,
    WebsocketStream, async_websocket_handler,
};
use support::{
    DEADLINE, client_frame, close_code, eventually, free_address, raw_websocket, read_frame,
    read_head, start, tcp, upgrade_request,
};

/// The shutdown timeout at the end of a test, after which remaining clients are cut off.
const STOP: Duration = Duration::from_millis(100);

type Told = Receiver<String>;

/// Adds handlers that echo messages and report their calls.
fn telling(app: AsyncWebsocketApp<()>) -> (AsyncWebsocketApp<()>, Told) {
    let (tell, told) = channel();
    let [connect, message, disconnect] = [(); 3].map(|()| tell.clone());
    let app = app
        .with_connect_handler(move |_, _| connect.send("connect".into()).unwrap())
        .with_message_handler(move |stream, text, _| {
            let payload = String::from_utf8_lossy(text.bytes()).into_owned();
            message.send(payload).unwrap();
            stream.send(text);
        })
        .with_disconnect_handler(move |_, _| disconnect.send("disconnect".into()).unwrap());
    (app, told)
}

/// The sources of connections: the app's own listener, or a linked Humphrey app.
fn both_ways() -> [(RunningApp, SocketAddr, Told); 2] {
    let (own, own_told) = telling(AsyncWebsocketApp::new());
    let (running, address) = start(own);
    let (unlinked, told) = telling(AsyncWebsocketApp::new_unlinked());
    let hook = unlinked.connect_hook().unwrap();
    let linked = free_address();
    std::thread::spawn(move || {
        let app: App<()> = App::new_with_config(4, ());
        app.with_websocket_route("/", async_websocket_handler(hook))
            .run(linked)
            .unwrap();
    });
    let unlinked = unlinked.start().unwrap();
    [(running, address, own_told), (unlinked, linked, told)]
}

fn assert_told(told: &Told, expected: &[&str]) {
    for expected in expected {
        assert_eq!(told.recv_timeout(DEADLINE).as_deref(), Ok(*expected));
    }
}

/// Returns a stream of the blocking API, and the client's socket.
fn blocking() -> (WebsocketStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = tcp(listener.local_addr().unwrap());
    let (server, _) = listener.accept().unwrap();
    (WebsocketStream::new(Stream::Tcp(server)), client)
}

fn assert_closed(socket: &mut TcpStream, code: u16) {
    let (opcode, payload) = read_frame(socket).unwrap();
    assert_eq!((opcode, close_code(&payload)), (0x88, code));
}

/// Encodes the header of a client frame whose payload never arrives.
fn header(first: u8, len: u64) -> Vec<u8> {
    [&[first, 0x80 | 127][..], &len.to_be_bytes(), &[1, 2, 3, 4]].concat()
}

// ----------------------------------------------------------- 1. a message of one frame over the limit is taken

#[test]
fn message_over_the_limit_is_refused_by_its_header() {
    const MAX: usize = 100_000;
    let limits = Limits::default().message_bytes_max(MAX);
    let (app, _told) = telling(AsyncWebsocketApp::new().with_limits(limits));
    let (running, address) = start(app);
    let part = |first, len| client_frame(first, &vec![b'x'; len]);
    for exact in [
        part(0x82, MAX),
        [part(0x02, MAX - 1), part(0x80, 1)].concat(),
    ] {
        let mut socket = raw_websocket(address);
        socket.write_all(&exact).unwrap();
        assert_eq!(read_frame(&mut socket).unwrap().1.len(), MAX);
    }
    for over in [
        header(0x82, MAX as u64 + 1),
        header(0x81, 1 << 62),
        header(0x02, MAX as u64 + 1),
        [part(0x02, MAX - 70_000), header(0x80, 70_001)].concat(),
    ] {
        let mut socket = raw_websocket(address);
        socket.write_all(&over).unwrap();
        assert_closed(&mut socket, 1009);
    }
    running.shutdown(STOP);

    // The blocking API has the default limit.
    let default = Limits::default().message_bytes_max as u64;
    for over in [
        header(0x82, default + 1),
        [part(0x02, 1), header(0x80, default)].concat(),
    ] {
        let (mut stream, mut client) = blocking();
        client.write_all(&over).unwrap();
        assert_eq!(stream.recv().unwrap_err(), WebsocketError::ReadError);
        assert_closed(&mut client, 1009);
    }
}

// ------------------------------------------------------ 2. valid messages in front of a malformed frame are lost

#[test]
fn messages_before_a_malformed_frame_are_delivered() {
    let bytes = [
        client_frame(0x81, b"one"),
        client_frame(0x01, b"tw"),
        client_frame(0x80, b"o"),
        client_frame(0xC1, b"a reserved bit"),
        client_frame(0x81, b"never"),
    ]
    .concat();
    for (running, address, told) in both_ways() {
        let mut socket = raw_websocket(address);
        socket.write_all(&bytes).unwrap();
        assert_told(&told, &["connect", "one", "two", "disconnect"]);
        assert_eq!(read_frame(&mut socket).unwrap().1, b"one");
        assert_eq!(read_frame(&mut socket).unwrap().1, b"two");
        assert_closed(&mut socket, 1002);
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);
        running.shutdown(STOP);
    }

    let (mut stream, mut client) = blocking();
    client.write_all(&bytes).unwrap();
    assert_eq!(stream.recv().unwrap().text(), Some("one"));
    assert_eq!(stream.recv().unwrap().text(), Some("two"));
    assert_eq!(stream.recv().unwrap_err(), WebsocketError::ReadError);
    assert_closed(&mut client, 1002);
}

// --------------------------------------------------- 3. a character that is cut at a border of blocks is refused

#[test]
fn text_split_inside_characters_is_unchanged() {
    let (app, _told) = telling(AsyncWebsocketApp::new());
    let (running, address) = start(app);
    for character in ["é", "日", "🦀"] {
        // Longer than any read. Each shift splits other characters at the end of a read.
        for shift in 0..character.len() {
            let text = "x".repeat(shift) + &character.repeat(200_000 / character.len());
            let mut socket = raw_websocket(address);
            let whole = client_frame(0x81, text.as_bytes());
            let at = 70_000 + shift;
            let in_two = [
                client_frame(0x01, &text.as_bytes()[..at]),
                client_frame(0x80, &text.as_bytes()[at..]),
            ];
            let mut reader = socket.try_clone().unwrap();
            let expected = text.clone().into_bytes();
            let reading = std::thread::spawn(move || {
                for _ in 0..2 {
                    assert!(read_frame(&mut reader).unwrap() == (0x81, expected.clone()));
                }
            });
            socket
                .write_all(&[whole.clone(), in_two.concat()].concat())
                .unwrap();
            reading.join().unwrap();

            let (mut stream, mut client) = blocking();
            let sending = std::thread::spawn(move || client.write_all(&whole).unwrap());
            assert!(stream.recv().unwrap().text() == Some(&text));
            sending.join().unwrap();
        }
    }
    running.shutdown(STOP);
}

// --------------------------------------- 4., 5., 6. keys, repeated headers and bodies of the handshake are let through

/// Returns the response to an upgrade request in which a part is replaced.
fn refused(address: SocketAddr, from: &str, to: &str) -> String {
    let request = upgrade_request("/");
    assert!(request.contains(from));
    let mut socket = tcp(address);
    socket
        .write_all(request.replace(from, to).as_bytes())
        .unwrap();
    read_head(&mut socket)
}

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";

fn assert_all_refused(cases: &[(&str, String)]) {
    for (running, address, told) in both_ways() {
        for (from, to) in cases {
            let head = refused(address, from, to);
            assert!(head.starts_with("HTTP/1.1 400 "), "{to}: {head}");
        }
        assert_eq!(running.sender().metrics().connections_opened, 0);
        running.shutdown(STOP);
        let end = told.recv_timeout(DEADLINE);
        assert_eq!(end, Err(Disconnected), "a handler was called");
    }
}

#[test]
fn key_other_than_sixteen_bytes_is_refused() {
    let keys = [
        "",
        "AAAAAAAAAAAAAAAAAAAA",         // 15 bytes
        "AAAAAAAAAAAAAAAAAAAAAAA=",     // 17
        "AAAAAAAAAAAAAAAAAAAAAAAA",     // 18
        "AAAAAAAAAAAAAAAAAAAAAA",       // 16, without padding
        "AAAAAAAAAAAAAAAAAAAAAA==AAAA", // 16, with more after the padding
        "AAAAAAAAAAA!AAAAAAAAAA==",
        "-_-_-_-_-_-_-_-_-_-_-w==",
    ];
    let cases = keys.map(|key| (KEY, format!("Sec-WebSocket-Key: {key}\r\n")));
    assert_all_refused(&cases);
}

#[test]
fn repeated_keys_and_versions_are_refused() {
    let other = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    assert_all_refused(&[
        (KEY, format!("{KEY}{KEY}")),
        (KEY, format!("{KEY}{other}")),
        (KEY, format!("{KEY}{}", KEY.to_lowercase())),
        (VERSION, format!("{VERSION}{VERSION}")),
        (VERSION, format!("{VERSION}Sec-WebSocket-Version: 8\r\n")),
        (VERSION, format!("Sec-WebSocket-Version: 8\r\n{VERSION}")),
    ]);
}

#[test]
fn body_on_the_upgrade_request_is_refused() {
    let smuggled = "smuggled";
    let len = smuggled.len();
    let end = "\r\n\r\n";
    assert_all_refused(&[
        (end, format!("\r\nContent-Length: {len}{end}{smuggled}")),
        (
            end,
            format!("\r\nTransfer-Encoding: chunked{end}{len}\r\n{smuggled}\r\n0{end}"),
        ),
        (
            end,
            format!("\r\nTransfer-Encoding: identity{end}{smuggled}"),
        ),
        (
            end,
            format!("\r\nContent-Length: 0\r\nContent-Length: {len}{end}{smuggled}"),
        ),
    ]);
}

// --------------------------------------------------------- 7. frames that come with the head count against its limit

#[test]
fn frames_sent_with_the_head_do_not_count_as_head() {
    let request = upgrade_request("/");
    for (head_bytes_max, status) in [
        (request.len(), "101"),
        (request.len() + 1, "101"),
        (request.len() - 1, "431"),
    ] {
        let limits = Limits::default().head_bytes_max(head_bytes_max);
        let (app, _told) = telling(AsyncWebsocketApp::new().with_limits(limits));
        let (running, address) = start(app);
        let payload = vec![b'x'; 50_000];
        let mut socket = tcp(address);
        socket
            .write_all(&[request.as_bytes(), &client_frame(0x81, &payload)].concat())
            .unwrap();
        let head = read_head(&mut socket);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        if status == "101" {
            assert!(read_frame(&mut socket).unwrap() == (0x81, payload));
        }
        running.shutdown(STOP);
    }
}

// ----------------------------------------------------------------- 8. a deadline stands still while a write is blocked

/// Starts an app with one client that reads nothing and whose outbox is full.
fn stuck(app: AsyncWebsocketApp<()>, limits: Limits) -> (RunningApp, AsyncSender, TcpStream) {
    let limits = limits.outbox_bytes_max(OUTBOX);
    let app = app
        .with_limits(limits)
        .with_slow_consumer(SlowConsumer::DropNewest);
    let (running, address) = start(app);
    let sender = running.sender();
    let socket = raw_websocket(address);
    eventually("the client is connected", || sender.connections() == 1);
    let mut n = 0;
    eventually("the outbox is full", || {
        sender.broadcast(numbered(n));
        n += 1;
        let metrics = sender.metrics();
        // On a busy machine its deadline may expire first, which is fine too.
        metrics.dropped.slow_consumer > 0 || metrics.connections == 0
    });
    (running, sender, socket)
}

/// Far more than the buffers of a socket hold.
const OUTBOX: usize = 4 << 20;
const NUMBERED_BYTES: usize = 10_000;

fn numbered(n: usize) -> Message {
    Message::new(format!("{n:0width$}", width = NUMBERED_BYTES))
}

/// Disables all deadlines other than the tested one.
fn never() -> Limits {
    let long = Duration::from_secs(3_600);
    Limits::default().write_timeout(long).close_timeout(long)
}

/// A deadline that is longer than filling an outbox takes.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn deadlines_hold_while_a_write_is_blocked() {
    let heartbeat = std::thread::spawn(|| {
        let app = AsyncWebsocketApp::new().with_heartbeat(Heartbeat::new(SOON / 2, SOON));
        let (running, sender, _socket) = stuck(app, never());
        eventually("the heartbeat disconnects the client", || {
            sender.metrics().heartbeat_timeouts == 1 && sender.metrics().connections == 0
        });
        running.shutdown(STOP);
    });
    let write = std::thread::spawn(|| {
        let limits = never().write_timeout(SOON);
        let (running, sender, _socket) = stuck(AsyncWebsocketApp::new(), limits);
        eventually("the write timeout disconnects the client", || {
            sender.metrics().slow_consumers == 1 && sender.metrics().connections == 0
        });
        running.shutdown(STOP);
    });
    let close = std::thread::spawn(|| {
        let (tell, told) = channel();
        let app = AsyncWebsocketApp::new()
            .with_connect_handler(move |stream, _| tell.send(stream.id()).unwrap());
        let limits = never().close_timeout(SOON);
        let (running, sender, _socket) = stuck(app, limits);
        let id = told.recv_timeout(DEADLINE).unwrap();
        sender.close(id, CloseCode::NORMAL, "");
        eventually("the close timeout disconnects the client", || {
            sender.metrics().connections == 0
        });
        running.shutdown(STOP);
    });
    for deadline in [heartbeat, write, close] {
        deadline.join().unwrap();
    }
}

// ------------------------------------ 9. pongs and close frames starve behind queued messages, or are dropped with them

#[test]
fn full_outbox_sends_pong_first_and_close_frame_last() {
    let (running, sender, mut socket) = stuck(AsyncWebsocketApp::new(), never());
    let before = sender.metrics().bytes_in;
    let ping = client_frame(0x89, b"are you there?");
    socket.write_all(&ping).unwrap();
    eventually("the ping is read", || {
        sender.metrics().bytes_in == before + ping.len() as u64
    });
    // From now on messages are dropped, but no control frames.
    for n in 0..100 {
        sender.broadcast(numbered(n));
    }
    let close = client_frame(0x88, b"\x03\xe8");
    socket.write_all(&close).unwrap();
    eventually("the close frame is read", || sender.connections() == 0);
    let mut behind_the_pong = None;
    let close = loop {
        match read_frame(&mut socket).unwrap() {
            (0x81, payload) => {
                assert_eq!(payload.len(), NUMBERED_BYTES);
                behind_the_pong = behind_the_pong.map(|n| n + 1);
            }
            (0x8A, payload) => {
                assert_eq!(payload, b"are you there?");
                assert_eq!(behind_the_pong.replace(0), None, "a second pong");
            }
            (0x88, payload) => break close_code(&payload),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(close, 1000);
    // Sockets may have accepted some of the queued messages in the end.
    let waited = OUTBOX / (NUMBERED_BYTES + 4);
    let behind = behind_the_pong.expect("a pong arrives");
    assert!(behind >= waited / 2, "{behind} messages");
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    running.shutdown(STOP);
}

// ------------------------------------------------------------------------ 10. close codes 1012 to 1014 are refused

#[test]
fn valid_close_code_is_echoed() {
    let (app, _told) = telling(AsyncWebsocketApp::new());
    let (running, address) = start(app);
    let registered = (1000..=1014).filter(|code| !(1004..=1006).contains(code));
    for code in registered.chain([3000, 3999, 4000, 4999]) {
        let frame = client_frame(0x88, &[&u16::to_be_bytes(code)[..], b"reason"].concat());
        let mut socket = raw_websocket(address);
        socket.write_all(&frame).unwrap();
        assert_closed(&mut socket, code);
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);

        let (mut stream, mut client) = blocking();
        client.write_all(&frame).unwrap();
        assert_eq!(stream.recv().unwrap_err(), WebsocketError::ConnectionClosed);
        assert_closed(&mut client, code);
    }
    assert_eq!(running.sender().metrics().protocol_errors, 0);
    running.shutdown(STOP);
}

// ------------------------------------------------------- 11. a message is sent behind the verdict on a slow client

#[test]
fn slow_client_gets_only_a_close_frame_after_its_verdict() {
    let limits = never().outbox_bytes_max(OUTBOX);
    let (tell, told) = channel();
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_limits(limits)
        .with_connect_handler(move |stream, _| tell.send(stream.id()).unwrap());
    let (running, address) = start(app);
    let sender = running.sender();
    let mut socket = raw_websocket(address);
    let id = told.recv_timeout(DEADLINE).unwrap();
    let mut n = 0;
    eventually("the client gets its verdict", || {
        sender.broadcast(numbered(n));
        n += 1;
        sender.metrics().slow_consumers == 1
    });
    // Another client keeps broadcasting messages.
    let beside = raw_websocket(address);
    let beside_id = told.recv_timeout(DEADLINE).unwrap();
    socket.write_all(&client_frame(0x89, b"?")).unwrap();
    for more in n..n + 50 {
        sender.broadcast(numbered(more));
        sender.send_to(id, numbered(more));
    }
    sender.close(beside_id, CloseCode::NORMAL, "");
    let mut others = beside;
    while read_frame(&mut others).unwrap().0 != 0x88 {}
    // The slow client reads only now, after every message was sent or dropped.
    let mut expected = 0;
    loop {
        match read_frame(&mut socket).unwrap() {
            (0x81, payload) => {
                let text = String::from_utf8(payload).unwrap();
                assert_eq!(text.parse(), Ok(expected), "a message is missing");
                expected += 1;
            }
            (0x88, payload) => {
                assert_eq!(close_code(&payload), 1013);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(expected < n);
    socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    running.shutdown(STOP);
}

// -------------------------------------------- 12. accepted messages are lost where a connection closes in the same turn

#[test]
fn messages_and_the_close_after_them_are_delivered() {
    const MESSAGES: usize = 200;
    // The program sends and closes at once.
    let app: AsyncWebsocketApp<()> =
        AsyncWebsocketApp::new().with_message_handler(|stream, _, _| {
            for n in 0..MESSAGES {
                stream.send(Message::new(n.to_string()));
            }
            stream.close(CloseCode::GOING_AWAY, "");
        });
    let (running, address) = start(app);
    let mut socket = raw_websocket(address);
    socket.write_all(&client_frame(0x81, b"go")).unwrap();
    for n in 0..MESSAGES {
        let (_, payload) = read_frame(&mut socket).unwrap();
        assert_eq!(String::from_utf8(payload).unwrap().parse(), Ok(n));
    }
    assert_closed(&mut socket, 1001);
    eventually("all messages are counted", || {
        running.sender().metrics().messages_out == MESSAGES as u64
    });
    running.shutdown(STOP);

    // The client sends, closes and disconnects at once.
    for (running, address, told) in both_ways() {
        let mut socket = raw_websocket(address);
        let text: Vec<String> = (0..MESSAGES).map(|n| n.to_string()).collect();
        let messages = text.iter().map(|text| client_frame(0x81, text.as_bytes()));
        let mut bytes: Vec<u8> = messages.flatten().collect();
        bytes.extend(client_frame(0x88, &1001u16.to_be_bytes()));
        socket.write_all(&bytes).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut expected = vec!["connect"];
        expected.extend(text.iter().map(String::as_str));
        expected.push("disconnect");
        assert_told(&told, &expected);
        for text in &text {
            assert_eq!(read_frame(&mut socket).unwrap().1, text.as_bytes());
        }
        assert_closed(&mut socket, 1001);
        running.shutdown(STOP);
    }
}

// ------------------------------------------------------------------------------------------ the list at the top is true

#[test]
fn list_names_thirteen_failures_and_existing_tests() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).unwrap();
    let own = read("tests/regressions.rs");
    let list = own.lines().map_while(|line| line.strip_prefix("//!"));
    let list = list.collect::<Vec<_>>().join("\n");
    let entries = list.lines().filter(|line| {
        let number = line.trim_start().split('.').next().unwrap_or_default();
        number.parse::<usize>().is_ok()
    });
    assert_eq!(entries.count(), 13);
    let (mut file, mut tests) = (own.clone(), 0);
    for line in list.lines() {
        let starts = line.trim_start().starts_with(|c: char| c.is_ascii_digit());
        if starts {
            file.clone_from(&own);
        }
        for name in line.split('`').skip(1).step_by(2) {
            if name.ends_with(".rs") {
                file = read(name);
            } else {
                let test = format!("#[test]\nfn {name}() {{");
                assert!(file.contains(&test), "{name} is not where it is said to be");
                tests += 1;
            }
        }
    }
    assert!(tests >= 20, "{tests}");
}
