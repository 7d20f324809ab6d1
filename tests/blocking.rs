//! The blocking API on plain sockets: receiving, replies, and the end of streams.

use crate::support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use humphrey::stream::Stream;
use humphrey_ws::error::WebsocketError;
use humphrey_ws::restion::Restion;
use humphrey_ws::{AsyncWebsocketApp, Limits, Message, RunningApp, WebsocketStream};
use support::{DEADLINE, client_frame, close_code, eventually, read_frame};

/// Returns a stream after its handshake, and the client's socket.
fn pair() -> (WebsocketStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.set_nodelay(true).unwrap();
    let (server, _) = listener.accept().unwrap();
    (WebsocketStream::new(Stream::Tcp(server)), client)
}

type Hook = std::sync::Arc<std::sync::Mutex<std::sync::mpsc::Sender<WebsocketStream>>>;

/// Starts an app that takes streams over, and records the calls of its handlers.
fn unlinked(limits: Limits) -> (RunningApp, Hook, Receiver<String>) {
    let (tell, told) = channel();
    let [connect, message, disconnect] = [(); 3].map(|()| tell.clone());
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_unlinked()
        .with_limits(limits)
        .with_connect_handler(move |_, _| connect.send("connect".into()).unwrap())
        .with_message_handler(move |stream, text, _| {
            message.send(text.text().unwrap().into()).unwrap();
            stream.send(text);
        })
        .with_disconnect_handler(move |_, _| disconnect.send("disconnect".into()).unwrap());
    let hook = app.connect_hook().unwrap();
    (app.start().unwrap(), hook, told)
}

fn hand_over(hook: &Hook, stream: WebsocketStream) {
    assert!(hook.lock().unwrap().send(stream).is_ok());
}

/// Receives without blocking until something arrives.
fn poll(stream: &mut WebsocketStream) -> Result<Message, WebsocketError> {
    let mut outcome = None;
    eventually("something arrives", || {
        outcome = match stream.recv_nonblocking() {
            Restion::Ok(message) => Some(Ok(message)),
            Restion::Err(error) => Some(Err(error)),
            Restion::None => None,
        };
        outcome.is_some()
    });
    outcome.unwrap()
}

#[test]
fn nonblocking_receive_does_not_wait_for_a_whole_frame() {
    let (mut stream, mut client) = pair();
    assert!(stream.recv_nonblocking().is_none());
    let frame = client_frame(0x81, b"one byte at a time");
    let (last, all_but_last) = frame.split_last().unwrap();
    for byte in all_but_last {
        client.write_all(&[*byte]).unwrap();
        // The rest of the frame is only sent after this call returns.
        assert!(stream.recv_nonblocking().is_none());
    }
    client.write_all(&[*last]).unwrap();
    assert_eq!(
        poll(&mut stream).unwrap().text(),
        Some("one byte at a time")
    );
    // The socket is still in blocking mode, so sending and receiving wait.
    stream.send(Message::new("reply")).unwrap();
    assert_eq!(read_frame(&mut client).unwrap(), (0x81, b"reply".to_vec()));
    client.write_all(&client_frame(0x82, b"next")).unwrap();
    assert_eq!(stream.recv().unwrap().bytes(), b"next");
}

#[test]
fn nonblocking_receive_does_not_wait_for_unread_pongs() {
    let (mut stream, mut client) = pair();
    client.set_nonblocking(true).unwrap();
    let ping = client_frame(0x89, &[b'p'; 125]);
    // Fills the sockets with pings while the stream answers them. It must continue to receive.
    for _ in 0..20_000 {
        if client.write_all(&ping).is_err() {
            break;
        }
        assert!(!stream.recv_nonblocking().is_err());
    }
}

#[test]
fn pings_between_fragments_are_answered() {
    let (mut stream, mut client) = pair();
    let frames = [
        client_frame(0x01, b"aa"),
        client_frame(0x89, b"?"),
        client_frame(0x00, b"bb"),
        client_frame(0x80, b"cc"),
    ];
    client.write_all(&frames.concat()).unwrap();
    assert_eq!(stream.recv().unwrap().text(), Some("aabbcc"));
    assert_eq!(read_frame(&mut client).unwrap(), (0x8a, b"?".to_vec()));
    stream.ping().unwrap();
    assert_eq!(read_frame(&mut client).unwrap(), (0x89, Vec::new()));
}

#[test]
fn close_frame_is_answered_and_ends_both_directions() {
    let (mut stream, mut client) = pair();
    client
        .write_all(
            &[
                client_frame(0x81, b"last"),
                client_frame(0x88, b"\x03\xe8bye"),
            ]
            .concat(),
        )
        .unwrap();
    assert_eq!(stream.recv().unwrap().text(), Some("last"));
    assert_eq!(stream.recv().unwrap_err(), WebsocketError::ConnectionClosed);
    assert_eq!(
        read_frame(&mut client).unwrap(),
        (0x88, b"\x03\xe8".to_vec())
    );
    assert_eq!(
        stream.send(Message::new("too late")).unwrap_err(),
        WebsocketError::ConnectionClosed
    );
    assert_eq!(stream.recv().unwrap_err(), WebsocketError::ConnectionClosed);
    drop(stream);
    assert_eq!(
        client.read(&mut [0]).unwrap(),
        0,
        "bytes follow the close frame"
    );
}

#[test]
fn message_before_the_end_can_still_be_answered() {
    type Receive = fn(&mut WebsocketStream) -> Result<Message, WebsocketError>;
    let ways: [Receive; 2] = [WebsocketStream::recv, poll];
    for receive in ways {
        for (last, code) in [
            (client_frame(0x88, b"\x03\xe8"), 1000),
            (client_frame(0x83, b"x"), 1002),
        ] {
            let (mut stream, mut client) = pair();
            let question = client_frame(0x81, b"question");
            client.write_all(&[question, last].concat()).unwrap();
            let message = receive(&mut stream).unwrap();
            stream.send(message).unwrap();
            assert!(receive(&mut stream).is_err());
            assert_eq!(
                stream.send(Message::new("too late")).unwrap_err(),
                WebsocketError::ConnectionClosed
            );
            assert_eq!(
                read_frame(&mut client).unwrap(),
                (0x81, b"question".to_vec())
            );
            let (opcode, payload) = read_frame(&mut client).unwrap();
            assert_eq!((opcode, close_code(&payload)), (0x88, code));
        }
    }
}

#[test]
fn dropped_stream_closes_with_an_unread_violation() {
    let (mut stream, mut client) = pair();
    let frames = [client_frame(0x81, b"valid"), client_frame(0x83, b"x")];
    client.write_all(&frames.concat()).unwrap();
    assert_eq!(stream.recv().unwrap().text(), Some("valid"));
    drop(stream);
    let (opcode, payload) = read_frame(&mut client).unwrap();
    assert_eq!((opcode, close_code(&payload)), (0x88, 1002));
}

#[test]
fn violating_client_that_keeps_sending_gets_the_code() {
    let (mut stream, mut client) = pair();
    let more = vec![0; 64 << 10];
    client
        .write_all(&[client_frame(0x83, b"x"), more].concat())
        .unwrap();
    assert_eq!(stream.recv().unwrap_err(), WebsocketError::InvalidOpcode);
    let dropping = std::thread::spawn(move || drop(stream));
    // A reset is an error here, and may discard bytes that were sent before it.
    let (opcode, payload) = read_frame(&mut client).unwrap();
    assert_eq!((opcode, close_code(&payload)), (0x88, 1002));
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop(client);
    dropping.join().unwrap();
}

#[test]
fn panicking_handler_closes_with_1011() {
    let (stream, mut client) = pair();
    let handler = std::thread::spawn(move || {
        let _stream = stream;
        panic!("a panic on purpose");
    });
    let (opcode, payload) = read_frame(&mut client).unwrap();
    assert_eq!((opcode, close_code(&payload)), (0x88, 1011));
    drop(client);
    assert!(handler.join().is_err());
}

#[test]
fn end_of_the_stream_is_a_closed_connection() {
    let (mut stream, client) = pair();
    drop(client);
    assert_eq!(stream.recv().unwrap_err(), WebsocketError::ConnectionClosed);
    let (mut stream, client) = pair();
    drop(client);
    assert_eq!(
        poll(&mut stream).unwrap_err(),
        WebsocketError::ConnectionClosed
    );
}

#[test]
fn violations_are_errors_and_answered_with_their_code() {
    for (frame, error, code) in [
        (
            client_frame(0x83, b"x"),
            WebsocketError::InvalidOpcode,
            1002,
        ),
        (client_frame(0x81, b"\xff"), WebsocketError::ReadError, 1007),
        (vec![0x81, 1, b'x'], WebsocketError::ReadError, 1002),
    ] {
        let (mut stream, mut client) = pair();
        client
            .write_all(&[client_frame(0x81, b"valid"), frame].concat())
            .unwrap();
        assert_eq!(stream.recv().unwrap().text(), Some("valid"));
        assert_eq!(stream.recv().unwrap_err(), error);
        let (opcode, payload) = read_frame(&mut client).unwrap();
        assert_eq!((opcode, close_code(&payload)), (0x88, code));
    }
}

#[test]
fn dropped_stream_closes_a_client_that_still_sends() {
    let (stream, mut client) = pair();
    client.write_all(&client_frame(0x81, b"unread")).unwrap();
    let dropping = std::thread::spawn(move || drop(stream));
    let (opcode, payload) = read_frame(&mut client).unwrap();
    assert_eq!((opcode, close_code(&payload)), (0x88, 1000));
    client.write_all(&client_frame(0x88, b"\x03\xe8")).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop(client);
    dropping.join().unwrap();
}

#[test]
fn handed_over_stream_delivers_received_messages() {
    let close = client_frame(0x88, b"\x0f\xa1");
    let violation = client_frame(0x83, b"");
    for (end, code) in [(close, 4001), (violation, 1002)] {
        let (running, hook, told) = unlinked(Limits::default());
        let (mut stream, mut client) = pair();
        let messages = ["a", "b", "c"].map(|text| client_frame(0x81, text.as_bytes()));
        client
            .write_all(&[messages.concat(), end].concat())
            .unwrap();
        assert_eq!(stream.recv().unwrap().text(), Some("a"));
        hand_over(&hook, stream);
        for expected in ["connect", "b", "c", "disconnect"] {
            assert_eq!(told.recv_timeout(DEADLINE).as_deref(), Ok(expected));
        }
        for reply in ["b", "c"] {
            let frame = read_frame(&mut client).unwrap();
            assert_eq!(
                frame,
                (0x81, reply.into()),
                "the reply precedes the close frame"
            );
        }
        let (opcode, payload) = read_frame(&mut client).unwrap();
        assert_eq!((opcode, close_code(&payload)), (0x88, code));
        assert_eq!(
            client.read(&mut [0]).unwrap(),
            0,
            "bytes follow the close frame"
        );
        drop(client);
        let metrics = || running.sender().metrics();
        eventually("the connection has ended", || metrics().connections == 0);
        assert_eq!(
            (metrics().messages_in, metrics().connections_opened),
            (2, 1)
        );
        assert_eq!(metrics().dropped.total(), 0);
        running.shutdown(DEADLINE);
        assert_eq!(told.recv().ok(), None, "a handler was called again");
    }
}

#[test]
fn half_closed_client_handed_over_gets_its_replies() {
    let (running, hook, told) = unlinked(Limits::default());
    let (mut stream, mut client) = pair();
    client
        .write_all(&client_frame(0x81, b"a").repeat(2))
        .unwrap();
    assert_eq!(stream.recv().unwrap().text(), Some("a"));
    client.shutdown(Shutdown::Write).unwrap();
    hand_over(&hook, stream);
    for expected in ["connect", "a", "disconnect"] {
        assert_eq!(told.recv_timeout(DEADLINE).as_deref(), Ok(expected));
    }
    assert_eq!(read_frame(&mut client).unwrap(), (0x81, b"a".to_vec()));
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    running.shutdown(DEADLINE);
}

#[test]
fn vanished_client_handed_over_has_messages_handled() {
    let (running, hook, told) = unlinked(Limits::default());
    let (mut stream, mut client) = pair();
    let bytes = [
        client_frame(0x81, b"a").repeat(2),
        client_frame(0x88, b"\x03\xe8"),
    ];
    client.write_all(&bytes.concat()).unwrap();
    // After a failed write, the operating system no longer knows the address of the client.
    drop(client);
    assert_eq!(stream.recv().unwrap().text(), Some("a"));
    stream.ping().unwrap();
    eventually("the address of the client is unknown", || {
        stream.peer_addr().is_err()
    });
    hand_over(&hook, stream);
    for expected in ["connect", "a", "disconnect"] {
        assert_eq!(told.recv_timeout(DEADLINE).as_deref(), Ok(expected));
    }
    running.shutdown(DEADLINE);
}

#[test]
fn messages_of_a_refused_stream_are_counted() {
    let limits = Limits::default().connections_max(0);
    let (running, hook, _told) = unlinked(limits);
    let (mut stream, mut client) = pair();
    client
        .write_all(&client_frame(0x81, b"a").repeat(3))
        .unwrap();
    assert_eq!(stream.recv().unwrap().text(), Some("a"));
    hand_over(&hook, stream);
    let (opcode, payload) = read_frame(&mut client).unwrap();
    assert_eq!((opcode, close_code(&payload)), (0x88, 1013));
    let metrics = running.sender().metrics();
    assert_eq!((metrics.messages_in, metrics.dropped.unhandled), (2, 2));
    running.shutdown(Duration::ZERO);
}
