//! The promises that users rely on, over real sockets with foreign clients. Each test would fail
//! without the behaviour in its name.

use crate::support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use humphrey_ws::{AsyncStream, AsyncWebsocketApp, CloseCode, Limits, Message, SendErrorReason};
use support::{
    Client, DEADLINE, client_frame, close_code, eventually, raise_descriptors, raw_websocket,
    read_frame, start, tcp, upgrade_request,
};

/// The shutdown timeout at the end of a test, after which remaining clients are cut off.
const STOP: Duration = Duration::from_millis(100);

/// The calls of handlers with their arguments, in order.
#[derive(Default)]
struct Log(Mutex<HashMap<SocketAddr, Vec<String>>>);

impl Log {
    fn add(&self, stream: &AsyncStream, what: &str) {
        self.0
            .lock()
            .unwrap()
            .entry(stream.peer_addr())
            .or_default()
            .push(what.to_owned());
    }

    fn of(&self, address: SocketAddr) -> Vec<String> {
        self.0
            .lock()
            .unwrap()
            .get(&address)
            .cloned()
            .unwrap_or_default()
    }
}

fn logging() -> AsyncWebsocketApp<Log> {
    AsyncWebsocketApp::new()
        .with_connect_handler(|stream, log: Arc<Log>| log.add(&stream, "connect"))
        .with_message_handler(|stream, message, log: Arc<Log>| {
            log.add(&stream, message.text().unwrap())
        })
        .with_disconnect_handler(|stream, log: Arc<Log>| log.add(&stream, "disconnect"))
}

#[test]
fn promise_1_messages_are_handled_in_order_exactly_once() {
    let app = logging();
    let log = app.get_state();
    let (running, address) = start(app);
    let clients: Vec<_> = (0..20)
        .map(|client| {
            std::thread::spawn(move || {
                let mut socket = raw_websocket(address);
                let local = socket.local_addr().unwrap();
                // One write contains everything, including the close frame.
                let mut bytes: Vec<u8> = (0..500)
                    .flat_map(|n| client_frame(0x81, format!("{client}.{n}").as_bytes()))
                    .collect();
                bytes.extend(client_frame(0x88, &1000u16.to_be_bytes()));
                socket.write_all(&bytes).unwrap();
                let (opcode, payload) = read_frame(&mut socket).unwrap();
                assert_eq!((opcode, close_code(&payload)), (0x88, 1000));
                local
            })
        })
        .map(|client| client.join().unwrap())
        .collect();
    for (client, local) in clients.into_iter().enumerate() {
        let expected: Vec<String> = std::iter::once("connect".to_owned())
            .chain((0..500).map(|n| format!("{client}.{n}")))
            .chain(["disconnect".to_owned()])
            .collect();
        eventually("the disconnect handler runs", || {
            log.of(local).len() >= expected.len()
        });
        assert_eq!(log.of(local), expected);
    }
    running.shutdown(STOP);
}

#[test]
fn promise_1_handlers_of_a_connection_never_overlap() {
    let app: AsyncWebsocketApp<AtomicBool, AtomicBool> = AsyncWebsocketApp::new()
        .with_message_handler(
            |stream: AsyncStream<AtomicBool>, message, overlap: Arc<AtomicBool>| {
                if stream.state.swap(true, Ordering::SeqCst) {
                    overlap.store(true, Ordering::SeqCst);
                }
                std::thread::yield_now();
                stream.state.store(false, Ordering::SeqCst);
                stream.send(message);
            },
        );
    let overlap = app.get_state();
    let (running, address) = start(app);
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(address)).collect();
    for n in 0..200 {
        for client in &mut clients {
            client.send(&n.to_string());
        }
    }
    for client in &mut clients {
        for n in 0..200 {
            assert_eq!(client.receive_text(), n.to_string());
        }
    }
    assert!(!overlap.load(Ordering::SeqCst));
    running.shutdown(STOP);
}

#[test]
fn promise_1_sends_and_broadcasts_of_a_handler_keep_order() {
    let app: AsyncWebsocketApp<()> =
        AsyncWebsocketApp::new().with_message_handler(|stream, _, _| {
            for n in 0..100 {
                stream.send(Message::new(format!("s{n}")));
                stream.broadcast(Message::new(format!("b{n}")));
            }
        });
    let (running, address) = start(app);
    let mut listener = Client::connect(address);
    let mut client = Client::connect(address);
    eventually("both clients are connected", || {
        running.sender().connections() == 2
    });
    client.send("go");
    for n in 0..100 {
        assert_eq!(client.receive_text(), format!("s{n}"));
        assert_eq!(client.receive_text(), format!("b{n}"));
        assert_eq!(listener.receive_text(), format!("b{n}"));
    }
    running.shutdown(STOP);
}

#[test]
fn promise_1_broadcasts_of_a_thread_arrive_in_order() {
    const SENDERS: usize = 4;
    const MESSAGES: usize = 2_000;
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new().with_shards(3);
    let (running, address) = start(app);
    let clients: Vec<_> = (0..6)
        .map(|_| {
            let mut client = Client::connect(address);
            std::thread::spawn(move || {
                let mut next = [0; SENDERS];
                for _ in 0..SENDERS * MESSAGES {
                    let text = client.receive_text();
                    let (sender, n) = text.split_once('.').unwrap();
                    let next = &mut next[sender.parse::<usize>().unwrap()];
                    assert_eq!(n.parse::<usize>().unwrap(), *next);
                    *next += 1;
                }
            })
        })
        .collect();
    eventually("all clients are connected", || {
        running.sender().connections() == 6
    });
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let sending = running.sender();
            std::thread::spawn(move || {
                for n in 0..MESSAGES {
                    sending.broadcast(Message::new(format!("{sender}.{n}")));
                }
            })
        })
        .collect();
    for thread in senders.into_iter().chain(clients) {
        thread.join().unwrap();
    }
    running.shutdown(STOP);
}

#[test]
fn promise_2_partial_input_or_nonreaders_delay_nobody() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_shards(1)
        .with_message_handler(|stream, message, _| stream.send(message));
    let (running, address) = start(app);
    let mut half_frame = raw_websocket(address);
    half_frame
        .write_all(&client_frame(0x81, b"never finished")[..7])
        .unwrap();
    let mut half_header = raw_websocket(address);
    half_header.write_all(&[0x81]).unwrap();
    let mut unfinished = raw_websocket(address);
    unfinished
        .write_all(&client_frame(0x01, b"a first fragment"))
        .unwrap();
    let mut half_head = tcp(address);
    half_head
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n")
        .unwrap();
    let _silent = tcp(address);
    let mut deaf = raw_websocket(address);
    let echo = client_frame(0x82, &vec![0; 60_000]);
    deaf.set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    // This client requests replies without reading them, until the server stops reading from it.
    while deaf.write_all(&echo).is_ok() {}

    let mut client = Client::connect(address);
    for n in 0..100 {
        client.send(&n.to_string());
        assert_eq!(client.receive_text(), n.to_string());
    }
    running.sender().broadcast(Message::new("to all"));
    assert_eq!(client.receive_text(), "to all");
    // The partial frames and heads can still be completed.
    half_frame
        .write_all(&client_frame(0x81, b"never finished")[7..])
        .unwrap();
    assert_eq!(
        read_frame(&mut half_frame).unwrap(),
        (0x81, b"to all".to_vec())
    );
    assert_eq!(
        read_frame(&mut half_frame).unwrap(),
        (0x81, b"never finished".to_vec())
    );
    half_head
        .write_all(
            upgrade_request("/")
                .split_once("\r\n")
                .unwrap()
                .1
                .replace("Host: localhost\r\n", "")
                .as_bytes(),
        )
        .unwrap();
    assert!(support::read_head(&mut half_head).starts_with("HTTP/1.1 101 "));
    running.shutdown(STOP);
}

#[test]
fn promise_3_blocked_handler_delays_its_connection_only() {
    let (unblock, blocked) = channel::<()>();
    let app: AsyncWebsocketApp<Mutex<Receiver<()>>> =
        AsyncWebsocketApp::new_with_config(Mutex::new(blocked), 2, 1)
            .with_shards(1)
            .with_message_handler(|stream, message, blocked: Arc<Mutex<Receiver<()>>>| {
                if message.text() == Some("block") {
                    blocked.lock().unwrap().recv().unwrap();
                }
                stream.send(message);
            });
    let (running, address) = start(app);
    let mut blocker = Client::connect(address);
    blocker.send("block");
    blocker.send("behind");
    let mut client = Client::connect(address);
    for n in 0..100 {
        client.send(&n.to_string());
        assert_eq!(client.receive_text(), n.to_string());
    }
    unblock.send(()).unwrap();
    assert_eq!(blocker.receive_text(), "block");
    assert_eq!(blocker.receive_text(), "behind");
    running.shutdown(STOP);
}

#[test]
fn promise_3_messages_of_a_blocked_handler_are_sent() {
    let (unblock, blocked) = channel::<()>();
    let app: AsyncWebsocketApp<Mutex<Receiver<()>>> =
        AsyncWebsocketApp::new_with_config(Mutex::new(blocked), 1, 1).with_message_handler(
            |stream, _, blocked: Arc<Mutex<Receiver<()>>>| {
                stream.send(Message::new("sent before"));
                blocked.lock().unwrap().recv().unwrap();
                stream.send(Message::new("sent after"));
            },
        );
    let (running, address) = start(app);
    let mut client = Client::connect(address);
    client.send("go");
    assert_eq!(client.receive_text(), "sent before");
    unblock.send(()).unwrap();
    assert_eq!(client.receive_text(), "sent after");
    running.shutdown(STOP);
}

#[test]
fn promise_3_blocking_handlers_use_all_threads() {
    const THREADS: usize = 32; // 1,024 is a multiple of it.
    // Both ends of each connection are in this process.
    raise_descriptors(2 * 1_024 + 300);
    // No handler continues until as many handlers as there are threads wait here.
    let barrier = Arc::new(Barrier::new(THREADS));
    let app: AsyncWebsocketApp<Arc<Barrier>> = AsyncWebsocketApp::new_with_config(
        barrier, THREADS, 1,
    )
    .with_message_handler(|stream, message, barrier: Arc<Arc<Barrier>>| {
        barrier.wait();
        stream.send(message);
    });
    let (running, address) = start(app);
    let mut clients: Vec<Client> = (0..1_024).map(|_| Client::connect(address)).collect();
    for client in &mut clients {
        client.send("together");
    }
    for client in &mut clients {
        assert_eq!(client.receive_text(), "together");
    }
    running.shutdown(STOP);
}

#[test]
fn promise_3_io_continues_with_all_handlers_blocked() {
    let barrier = Arc::new(Barrier::new(2));
    let app: AsyncWebsocketApp<Arc<Barrier>> =
        AsyncWebsocketApp::new_with_config(barrier.clone(), 1, 1)
            .with_shards(1)
            .with_message_handler(|_, _, barrier: Arc<Arc<Barrier>>| {
                barrier.wait();
            });
    let (running, address) = start(app);
    let mut blockers: Vec<Client> = (0..3).map(|_| Client::connect(address)).collect();
    for blocker in &mut blockers {
        blocker.send("block");
    }
    let sender = running.sender();
    eventually("all threads are counted as blocked", || {
        sender.metrics().handlers_exhausted == 1
    });
    assert_eq!(sender.metrics().handlers_blocked, 1);
    let mut newcomer = raw_websocket(address);
    newcomer
        .write_all(&client_frame(0x89, b"are you there?"))
        .unwrap();
    assert_eq!(
        read_frame(&mut newcomer).unwrap(),
        (0x8a, b"are you there?".to_vec())
    );
    sender.broadcast(Message::new("to all"));
    assert_eq!(
        read_frame(&mut newcomer).unwrap(),
        (0x81, b"to all".to_vec())
    );
    for blocker in &mut blockers {
        assert_eq!(blocker.receive_text(), "to all");
    }
    for _ in 0..3 {
        barrier.wait();
    }
    running.shutdown(STOP);
}

#[test]
fn promise_4_message_over_the_limit_is_refused_both_ways() {
    let limits = Limits::default().message_bytes_max(1000);
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_limits(limits)
        .with_message_handler(|stream, message, _| stream.send(message));
    let (running, address) = start(app);
    let mut client = Client::connect(address);
    client.send(&"x".repeat(1000));
    assert_eq!(client.receive_text().len(), 1000);
    let error = running
        .sender()
        .try_broadcast(Message::new("x".repeat(1001)))
        .unwrap_err();
    assert_eq!(error.reason, SendErrorReason::TooLarge);
    assert_eq!(error.message.bytes().len(), 1001);

    let mut liar = raw_websocket(address);
    // The header announces 2^62 bytes. The server must neither allocate them nor stop.
    let mut header = vec![0x82, 0x80 | 127];
    header.extend((1u64 << 62).to_be_bytes());
    liar.write_all(&header).unwrap();
    let (opcode, payload) = read_frame(&mut liar).unwrap();
    assert_eq!((opcode, close_code(&payload)), (0x88, 1009));
    client.send("still here");
    assert_eq!(client.receive_text(), "still here");
    assert_eq!(running.sender().metrics().dropped.too_large, 1);
    running.shutdown(STOP);
}

#[test]
fn promise_4_message_of_16_mib_is_echoed_by_default() {
    let app: AsyncWebsocketApp<()> =
        AsyncWebsocketApp::new().with_message_handler(|stream, message, _| stream.send(message));
    let (running, address) = start(app);
    let mut client = Client::connect(address);
    client
        .0
        .set_config(|config| *config = config.max_frame_size(Some(16 << 20)));
    let payload: Vec<u8> = (0..16 << 20).map(|n: u32| (n % 251) as u8).collect();
    for _ in 0..3 {
        client.send_binary(payload.clone());
        let received = client.receive().into_data();
        assert!(received == payload, "the echo differs from the message");
    }
    running.shutdown(STOP);
}

#[test]
fn promise_5_undelivered_messages_are_counted_by_cause() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new();
    let sender = app.sender();
    sender.broadcast(Message::new("before the app runs"));
    let (running, address) = start(app);
    sender.broadcast(Message::new("with nobody there"));
    sender.send(address, Message::new("nobody has that address"));
    let mut client = Client::connect(address);
    eventually("the client is connected", || sender.connections() == 1);
    client.send("nobody handles it");
    sender.send(client.address(), Message::new("delivered"));
    assert_eq!(client.receive_text(), "delivered");
    eventually("all messages are counted", || {
        let metrics = sender.metrics();
        metrics.messages_in == 1 && metrics.messages_out == 1
    });
    running.shutdown(STOP);
    sender.broadcast(Message::new("after the end"));
    let metrics = sender.metrics();
    assert_eq!(metrics.dropped.not_running, 2);
    assert_eq!(metrics.dropped.no_recipient, 2);
    assert_eq!(metrics.dropped.unhandled, 1);
    assert_eq!(metrics.dropped.total(), 5);
    assert_eq!((metrics.connections, metrics.connections_opened), (0, 1));
}

#[test]
fn promise_6_handler_panic_closes_its_connection_with_1011() {
    let app: AsyncWebsocketApp<AtomicUsize> = AsyncWebsocketApp::new()
        .with_message_handler(|stream, message, _| {
            assert_ne!(message.text(), Some("panic"), "a panic on purpose");
            stream.send(message);
        })
        .with_disconnect_handler(|stream, count: Arc<AtomicUsize>| {
            count.fetch_add(1, Ordering::SeqCst);
            stream.send(Message::new("a no-op, not another panic"));
        });
    let disconnects = app.get_state();
    let (running, address) = start(app);
    let mut bystander = Client::connect(address);
    for round in 1..=40 {
        let mut client = Client::connect(address);
        client.send("before");
        client.send("panic");
        client.send("after");
        let (texts, frame) = client.receive_to_close();
        assert_eq!(texts, ["before"]);
        assert_eq!(u16::from(frame.unwrap().code), 1011);
        eventually("the disconnect handler runs", || {
            disconnects.load(Ordering::SeqCst) >= round
        });
        assert_eq!(disconnects.load(Ordering::SeqCst), round);
    }
    bystander.send("fine");
    assert_eq!(bystander.receive_text(), "fine");
    assert_eq!(running.sender().metrics().handler_panics, 40);
    running.shutdown(STOP);
}

#[test]
fn promise_7_violations_close_with_the_code_of_the_rfc() {
    let app: AsyncWebsocketApp<()> =
        AsyncWebsocketApp::new().with_message_handler(|stream, message, _| stream.send(message));
    let (running, address) = start(app);
    let unmasked = [0x81, 2, b'h', b'i'].to_vec();
    let cases: [(&str, Vec<u8>, u16); 10] = [
        ("unmasked frame", unmasked, 1002),
        ("reserved bit", client_frame(0xc1, b"x"), 1002),
        ("reserved opcode", client_frame(0x83, b"x"), 1002),
        ("fragmented ping", client_frame(0x09, b"x"), 1002),
        ("long ping", client_frame(0x89, &[0; 126]), 1002),
        ("continuation of nothing", client_frame(0x80, b"x"), 1002),
        ("invalid text", client_frame(0x81, b"\xff"), 1007),
        ("close code of one byte", client_frame(0x88, b"\x03"), 1002),
        (
            "close code 1005",
            client_frame(0x88, &1005u16.to_be_bytes()),
            1002,
        ),
        (
            "close reason not UTF-8",
            client_frame(0x88, b"\x03\xe8\xff"),
            1007,
        ),
    ];
    for (what, frame, code) in cases {
        let mut socket = raw_websocket(address);
        let mut bytes = client_frame(0x81, b"valid");
        bytes.extend(frame);
        socket.write_all(&bytes).unwrap();
        assert_eq!(
            read_frame(&mut socket).unwrap(),
            (0x81, b"valid".to_vec()),
            "{what}"
        );
        let (opcode, payload) = read_frame(&mut socket).unwrap();
        assert_eq!((opcode, close_code(&payload)), (0x88, code), "{what}");
        assert!(payload.len() > 2, "{what}: the reason says what was wrong");
        assert_eq!(
            socket.read(&mut [0]).unwrap(),
            0,
            "{what}: then the stream ends"
        );
    }
    assert_eq!(running.sender().metrics().protocol_errors, 10);
    running.shutdown(STOP);
}

#[test]
fn promise_7_handshake_is_checked_and_early_frames_kept() {
    let app: AsyncWebsocketApp<()> =
        AsyncWebsocketApp::new().with_message_handler(|stream, message, _| stream.send(message));
    let (running, address) = start(app);
    let request = upgrade_request("/any/path?query");
    let mut socket = tcp(address);
    socket
        .write_all(&[request.as_bytes(), &client_frame(0x81, b"early")].concat())
        .unwrap();
    let head = support::read_head(&mut socket);
    assert!(
        head.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
        "{head}"
    );
    assert_eq!(read_frame(&mut socket).unwrap(), (0x81, b"early".to_vec()));

    let refused = [
        (request.replace("Version: 13", "Version: 8"), "426 "),
        (
            request.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="),
            "400 ",
        ),
        (
            request.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
            "400 ",
        ),
        (request.replace("Connection: Upgrade\r\n", ""), "426 "),
        (request.replace("Upgrade: websocket\r\n", ""), "426 "),
        (request.replace("Host: localhost\r\n", ""), "400 "),
        ("nonsense\r\n\r\n".to_owned(), "400 "),
        (
            format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000)),
            "431 ",
        ),
    ];
    for (request, status) in refused {
        let mut socket = tcp(address);
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{request}: {answer}"
        );
    }
    running.shutdown(STOP);
}

#[test]
fn closing_handshake_from_either_side_is_clean() {
    let app: AsyncWebsocketApp<Mutex<Option<Sender<()>>>> = AsyncWebsocketApp::new()
        .with_message_handler(|stream, _, _| {
            stream.send(Message::new("last words"));
            stream.close(CloseCode::try_from(4321).unwrap(), "as you wish");
            stream.send(Message::new("too late"));
        })
        .with_disconnect_handler(|_, told: Arc<Mutex<Option<Sender<()>>>>| {
            if let Some(told) = &*told.lock().unwrap() {
                told.send(()).unwrap();
            }
        });
    let (tell, told) = channel();
    *app.get_state().lock().unwrap() = Some(tell);
    let (running, address) = start(app);

    let mut closed_by_server = Client::connect(address);
    closed_by_server.send("close me");
    let (texts, frame) = closed_by_server.receive_to_close();
    let frame = frame.unwrap();
    assert_eq!(texts, ["last words"]);
    assert_eq!(
        (u16::from(frame.code), frame.reason.as_str()),
        (4321, "as you wish")
    );
    told.recv_timeout(DEADLINE).unwrap();

    let mut closed_by_client = raw_websocket(address);
    closed_by_client
        .write_all(&client_frame(0x88, b"\x03\xe8bye"))
        .unwrap();
    let (opcode, payload) = read_frame(&mut closed_by_client).unwrap();
    assert_eq!((opcode, payload), (0x88, b"\x03\xe8".to_vec()));
    assert_eq!(closed_by_client.read(&mut [0]).unwrap(), 0);
    told.recv_timeout(DEADLINE).unwrap();

    let mut silent_end = raw_websocket(address);
    silent_end.write_all(&client_frame(0x88, b"")).unwrap();
    assert_eq!(read_frame(&mut silent_end).unwrap(), (0x88, Vec::new()));
    told.recv_timeout(DEADLINE).unwrap();
    running.shutdown(STOP);
}

#[test]
fn half_closed_client_gets_its_replies_and_disconnects() {
    let app: AsyncWebsocketApp<AtomicUsize> = AsyncWebsocketApp::new()
        .with_message_handler(|stream, message, _| stream.send(message))
        .with_disconnect_handler(|_, count: Arc<AtomicUsize>| {
            count.fetch_add(1, Ordering::SeqCst);
        });
    let disconnects = app.get_state();
    let (running, address) = start(app);
    let mut socket = raw_websocket(address);
    for n in 0..50 {
        socket
            .write_all(&client_frame(0x81, n.to_string().as_bytes()))
            .unwrap();
    }
    socket.shutdown(Shutdown::Write).unwrap();
    for n in 0..50 {
        assert_eq!(
            read_frame(&mut socket).unwrap(),
            (0x81, n.to_string().into_bytes())
        );
    }
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    eventually("the disconnect handler runs", || {
        disconnects.load(Ordering::SeqCst) == 1
    });
    drop(raw_websocket(address));
    eventually("the disconnect handler runs", || {
        disconnects.load(Ordering::SeqCst) == 2
    });
    running.shutdown(STOP);
}

#[test]
fn senders_reach_connections_by_id_path_and_address() {
    let (tell, told) = channel();
    let app: AsyncWebsocketApp<()> =
        AsyncWebsocketApp::new().with_connect_handler(move |stream, _| {
            tell.send((stream.id(), stream.path().to_owned(), stream.peer_addr()))
                .unwrap();
        });
    let (running, address) = start(app);
    let sender = running.sender();
    let mut first = Client::connect_to(address, "/first?token=1");
    let (first_id, path, peer) = told.recv_timeout(DEADLINE).unwrap();
    assert_eq!((path.as_str(), peer), ("/first", first.address()));
    let mut second = Client::connect_to(address, "/second");
    let (second_id, ..) = told.recv_timeout(DEADLINE).unwrap();
    assert_ne!(first_id, second_id);
    sender.send_to(second_id, Message::new("for the second"));
    sender.send(first.address(), Message::new("for the first"));
    assert_eq!(first.receive_text(), "for the first");
    assert_eq!(second.receive_text(), "for the second");
    sender.close(first_id, CloseCode::POLICY_VIOLATION, "not you");
    assert_eq!(u16::from(first.receive_to_close().1.unwrap().code), 1008);
    eventually("the first connection has ended", || {
        sender.connections() == 1
    });
    let error = sender
        .try_send(first.address(), Message::new("gone"))
        .unwrap_err();
    assert_eq!(error.reason, SendErrorReason::Closed);
    assert_eq!(error.message.text(), Some("gone"));
    second.close();
    eventually("the second connection has ended", || {
        sender.connections() == 0
    });
    running.shutdown(STOP);
}
