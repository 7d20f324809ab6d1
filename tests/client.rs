//! The blocking client with this library's server, with tungstenite's, and with misbehaving servers.

use crate::support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::websocket_client::{
    Client, ClientBuilder, ClientError, HandshakeError, InvalidHeader,
};
use humphrey_ws::{AsyncWebsocketApp, CloseCode, Message};
use support::{DEADLINE, read_head, serve_one, start};
use tungstenite::handshake::server::{Request, Response};

fn builder(address: SocketAddr) -> ClientBuilder {
    Client::builder(&format!("ws://{address}/")).with_read_timeout(Some(DEADLINE))
}

/// Accepts a handshake with tungstenite, and sends bytes before and after the response.
fn accept(stream: &mut TcpStream, before: &str, behind: &[u8]) {
    let head = read_head(stream);
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
        .unwrap();
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let answer = format!(
        "{before}HTTP/1.1 101 x\r\nConnection: keep-alive\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream
        .write_all(&[answer.as_bytes(), behind].concat())
        .unwrap();
}

/// Sends a byte per interval until the client ends the connection, but no longer than the deadline. The pauses are reads, so the
/// end is seen at once.
fn trickle(stream: &mut TcpStream, interval: Duration) {
    stream.set_read_timeout(Some(interval)).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline && stream.write_all(b"x").is_ok() {
        match stream.read(&mut [0; 64]) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

/// Reads to the end of the connection.
fn drain(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    // A reset ends it as well.
    let _ = stream.read_to_end(&mut rest);
    rest
}

#[test]
fn messages_of_every_size_are_echoed() {
    let app: AsyncWebsocketApp<()> =
        AsyncWebsocketApp::new().with_message_handler(|stream, message, _| stream.send(message));
    let (app, address) = start(app);
    let mut client = builder(address).connect().unwrap();
    for len in [0, 1, 125, 126, 65_535, 65_536, 5 << 20] {
        for message in [
            Message::new("x".repeat(len)),
            Message::new_binary(vec![0xff; len]),
        ] {
            client.send(message.clone()).unwrap();
            let echo = client.receive().unwrap();
            assert_eq!(echo.is_text(), message.is_text());
            assert!(echo.bytes() == message.bytes(), "{len}");
        }
    }
    client.close(CloseCode::NORMAL, "bye").unwrap();
    // It stays closed.
    assert!(client.close(CloseCode::NORMAL, "").is_ok());
    for error in [client.receive().err(), client.send(Message::new("x")).err()] {
        assert!(
            matches!(error, Some(ClientError::Closed { .. })),
            "{error:?}"
        );
    }
    app.shutdown(DEADLINE);
}

#[test]
fn foreign_server_gets_headers_host_and_subprotocols() {
    let (address, server) = serve_one(|stream| {
        let mut asked = None;
        #[allow(clippy::result_large_err)] // tungstenite's own.
        let look = |request: &Request, mut response: Response| {
            asked = Some(request.headers().clone());
            let headers = response.headers_mut();
            headers.insert("Sec-WebSocket-Protocol", "ocpp1.6".parse().unwrap());
            headers.insert("X-Server", "north".parse().unwrap());
            Ok(response)
        };
        let mut socket = tungstenite::accept_hdr(stream, look).unwrap();
        let message = socket.read().unwrap();
        socket.send(message).unwrap();
        assert!(socket.read().unwrap().is_close());
        let _ = socket.flush();
        asked.unwrap()
    });
    let mut client = builder(address)
        .with_header("host", "charging.example")
        .with_header("Authorization", "Bearer token")
        .with_subprotocol("ocpp2.0")
        .with_subprotocol("ocpp1.6")
        .connect()
        .unwrap();
    assert_eq!(client.subprotocol(), Some("ocpp1.6"));
    assert_eq!(client.header("x-server"), Some("north"));
    client.send(Message::new("hello")).unwrap();
    assert_eq!(client.receive().unwrap().text(), Some("hello"));
    client.close(CloseCode::NORMAL, "").unwrap();
    let asked = server.join().unwrap();
    let hosts: Vec<_> = asked.get_all("Host").iter().collect();
    assert_eq!(hosts, ["charging.example"]);
    assert_eq!(asked["Authorization"], "Bearer token");
    assert_eq!(asked["Sec-WebSocket-Protocol"], "ocpp2.0, ocpp1.6");
}

#[test]
fn interim_responses_and_early_frames_lose_nothing() {
    let (address, server) = serve_one(|mut stream| {
        let before = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        accept(&mut stream, before, b"\x81\x05early\x81\x01");
        stream.write_all(b"x").unwrap();
        drain(&mut stream);
    });
    let mut client = builder(address).connect().unwrap();
    for text in ["early", "x"] {
        assert_eq!(client.receive().unwrap().text(), Some(text));
    }
    drop(client);
    server.join().unwrap();
}

#[test]
fn refusal_has_status_reason_and_part_of_the_body() {
    let (address, server) = serve_one(|mut stream| {
        read_head(&mut stream);
        let body = "x".repeat(5_000);
        let answer = format!(
            "HTTP/1.1 403 Not Today\r\nX-Why: rules\r\nContent-Length: 5000\r\n\r\nno\n{body}"
        );
        stream.write_all(answer.as_bytes()).unwrap();
        drain(&mut stream);
    });
    let error = builder(address).connect().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server refused the handshake with status 403: no"
    );
    let ClientError::Handshake(HandshakeError::Refused(refusal)) = error else {
        panic!("{error}");
    };
    assert_eq!((refusal.status(), refusal.reason()), (403, "Not Today"));
    assert_eq!(refusal.header("x-why"), Some("rules"));
    assert_eq!(refusal.body().len(), 1024);
    server.join().unwrap();
}

#[test]
fn redirect_is_not_followed_and_its_target_is_named() {
    let (address, server) = serve_one(|mut stream| {
        read_head(&mut stream);
        let answer = b"HTTP/1.1 307 Moved\r\nLocation: ws://a/b\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).unwrap();
    });
    let error = builder(address).connect().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server refused the handshake with status 307: redirect to ws://a/b, which is not followed"
    );
    server.join().unwrap();
}

#[test]
fn refusal_with_an_endless_body_is_reported() {
    let (address, server) = serve_one(|mut stream| {
        read_head(&mut stream);
        let answer = b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\nfull\n";
        stream.write_all(answer).unwrap();
        // The rest of the body never arrives, and the connection stays open.
        drain(&mut stream);
    });
    let error = builder(address).connect().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server refused the handshake with status 503: full"
    );
    server.join().unwrap();
}

#[test]
fn trickled_response_does_not_extend_the_deadline() {
    let (address, server) = serve_one(|mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 101 x\r\nX: ");
        trickle(&mut stream, Duration::from_millis(5));
    });
    let begun = Instant::now();
    let client = builder(address).with_connect_timeout(Duration::from_millis(200));
    let error = client.connect().unwrap_err();
    assert!(matches!(error, ClientError::TimedOut), "{error}");
    assert!(begun.elapsed() < DEADLINE);
    server.join().unwrap();
}

#[test]
fn malformed_response_fails_the_connection() {
    for (answer, said) in [
        ("SSH-2.0-x\r\n", "not HTTP"),
        (
            "HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
            "no 'Upgrade: websocket'",
        ),
        (
            "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
            "does not match the key",
        ),
        ("", "closed the connection before"),
    ] {
        let (address, server) = serve_one(move |mut stream| {
            read_head(&mut stream);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let error = builder(address).connect().unwrap_err();
        assert!(matches!(error, ClientError::Handshake(_)), "{error}");
        assert!(error.to_string().contains(said), "{error}");
        server.join().unwrap();
    }
}

#[test]
fn wrong_settings_are_reported_before_connecting() {
    let nowhere = || Client::builder("ws://127.0.0.1:1/");
    let error = nowhere().with_header("Upgrade", "x").connect().unwrap_err();
    assert!(matches!(
        error,
        ClientError::Header(InvalidHeader::Reserved(_))
    ));
    let error = nowhere().with_subprotocol("a b").connect().unwrap_err();
    assert!(matches!(
        error,
        ClientError::Header(InvalidHeader::Subprotocol(_))
    ));
    let twice = nowhere().with_header("Host", "a").with_header("Host", "b");
    let error = twice.connect().unwrap_err();
    assert!(matches!(
        error,
        ClientError::Header(InvalidHeader::Repeated(_))
    ));
    #[cfg(not(feature = "client-tls"))]
    {
        let error = Client::connect("wss://a/").unwrap_err();
        assert!(error.to_string().contains("'client-tls'"), "{error}");
    }
    let error = Client::connect("localhost:8080").unwrap_err();
    assert!(matches!(error, ClientError::Url(_)), "{error}");
}

#[test]
fn read_timeout_loses_nothing_of_a_message() {
    let (address, server) = serve_one(|mut stream| {
        accept(&mut stream, "", b"\x81\x04ha");
        // The server continues when the client signals it.
        stream.read_exact(&mut [0; 6]).unwrap();
        stream.write_all(b"lf").unwrap();
        drain(&mut stream);
    });
    let client = builder(address).with_read_timeout(Some(Duration::from_millis(20)));
    let mut client = client.connect().unwrap();
    let error = client.receive().unwrap_err();
    assert!(matches!(error, ClientError::TimedOut), "{error}");
    client.send(Message::new("")).unwrap();
    let half = loop {
        match client.receive() {
            Ok(message) => break message,
            Err(ClientError::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(half.text(), Some("half"));
    drop(client);
    server.join().unwrap();
}

#[test]
fn server_close_is_reported_and_answered() {
    let (address, server) = serve_one(|mut stream| {
        accept(&mut stream, "", b"\x89\x01p\x81\x04last\x88\x05\x0f\xa1why");
        drain(&mut stream)
    });
    let mut client = builder(address).connect().unwrap();
    assert_eq!(client.receive().unwrap().text(), Some("last"));
    for _ in 0..2 {
        match client.receive() {
            Err(ClientError::Closed { code, reason }) => {
                assert_eq!(
                    (code.map(CloseCode::get), reason.as_str()),
                    (Some(4001), "why")
                );
            }
            other => panic!("{other:?}"),
        }
    }
    drop(client);
    let answers = server.join().unwrap();
    // A pong with one byte, and a close with a code, both masked.
    assert_eq!((answers[0], answers[1]), (0x8a, 0x81));
    assert_eq!((answers[7], answers[8], answers.len()), (0x88, 0x82, 15));
}

#[test]
fn violation_by_the_server_is_answered_with_its_code() {
    for (frame, code) in [
        // Masked.
        (&b"\x81\x82\x00\x00\x00\x00no"[..], 1002),
        (b"\x81\x01\xff", 1007),
        (b"\x82\x7e\x01\x01", 1009),
    ] {
        let (address, server) = serve_one(move |mut stream| {
            accept(&mut stream, "", frame);
            drain(&mut stream)
        });
        let client = builder(address).with_message_bytes_max(256);
        let mut client = client.connect().unwrap();
        match client.receive() {
            Err(ClientError::Protocol(error)) => assert_eq!(error.close_code().get(), code),
            other => panic!("{other:?}"),
        }
        assert!(matches!(client.receive(), Err(ClientError::Lost(_))));
        drop(client);
        let told = server.join().unwrap();
        let masked = u16::from_be_bytes([told[6], told[7]]);
        let key = u16::from_be_bytes([told[2], told[3]]);
        assert_eq!((told[0], masked ^ key), (0x88, code));
    }
}

#[test]
fn write_timeout_ends_a_send_to_a_nonreading_server() {
    let (address, server) = serve_one(|mut stream| {
        accept(&mut stream, "", b"");
        stream
    });
    let client = builder(address).with_write_timeout(Some(Duration::from_millis(50)));
    let mut client = client.connect().unwrap();
    let stream = server.join().unwrap();
    let message = Message::new_binary(vec![0; 1 << 20]);
    let begun = Instant::now();
    let error = loop {
        assert!(
            begun.elapsed() < DEADLINE,
            "the flood is received without end"
        );
        if let Err(error) = client.send(message.clone()) {
            break error;
        }
    };
    assert!(matches!(error, ClientError::TimedOut), "{error}");
    assert!(matches!(client.send(message), Err(ClientError::Lost(_))));
    drop(stream);
}

#[test]
fn connection_without_a_closing_handshake_is_lost() {
    let (address, server) = serve_one(|mut stream| accept(&mut stream, "", b"\x81\x05cut"));
    let mut client = builder(address).connect().unwrap();
    for _ in 0..2 {
        let error = client.receive().unwrap_err();
        assert!(matches!(error, ClientError::Lost(_)), "{error}");
    }
    server.join().unwrap();
}

#[test]
fn close_discards_messages_and_returns_at_its_deadline() {
    let (address, server) = serve_one(|mut stream| {
        accept(&mut stream, "", b"\x81\x01a\x81\x01b");
        let mut frame = [0; 8];
        stream.read_exact(&mut frame).unwrap();
        stream.write_all(b"\x81\x01c\x88\x02\x03\xe8").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        drain(&mut stream)
    });
    let mut client = builder(address).connect().unwrap();
    client.close(CloseCode::NORMAL, "").unwrap();
    drop(client);
    assert!(
        server.join().unwrap().is_empty(),
        "a close is answered once"
    );
}

#[test]
fn close_returns_at_its_deadline_during_a_trickle() {
    let (address, server) = serve_one(|mut stream| {
        // A message of 65,535 bytes, a byte at a time.
        accept(&mut stream, "", b"\x82\x7e\xff\xff");
        trickle(&mut stream, Duration::from_millis(50));
    });
    let mut client = builder(address).connect().unwrap();
    let begun = Instant::now();
    let error = client.close(CloseCode::NORMAL, "").unwrap_err();
    assert!(matches!(error, ClientError::TimedOut), "{error}");
    assert!(begun.elapsed() < DEADLINE / 2, "{:?}", begun.elapsed());
    drop(client);
    server.join().unwrap();
}

#[test]
fn messages_before_the_server_hangs_up_are_received() {
    let last_words = b"\x81\x04last\x88\x08\x03\xf0enough";
    let expect_last_words = |client: &mut Client| {
        assert_eq!(client.receive().unwrap().text(), Some("last"));
        for _ in 0..2 {
            match client.receive() {
                Err(ClientError::Closed { code, reason }) => {
                    assert_eq!(code, Some(CloseCode::POLICY_VIOLATION));
                    assert_eq!(reason, "enough");
                }
                other => panic!("{other:?}"),
            }
        }
        client.close(CloseCode::NORMAL, "").unwrap();
    };
    // The client can't answer the pings any more.
    let said = [b"\x89\x00".repeat(200), last_words.to_vec()].concat();
    let (address, server) = serve_one(move |mut stream| accept(&mut stream, "", &said));
    let mut client = builder(address).connect().unwrap();
    server.join().unwrap();
    expect_last_words(&mut client);
    // The client can't send messages either.
    let said = last_words.to_vec();
    let (address, server) = serve_one(move |mut stream| accept(&mut stream, "", &said));
    let mut client = builder(address).connect().unwrap();
    server.join().unwrap();
    let begun = Instant::now();
    while client.send(Message::new("more")).is_ok() {
        assert!(
            begun.elapsed() < DEADLINE,
            "the flood is received without end"
        );
    }
    assert!(matches!(
        client.send(Message::new("more")),
        Err(ClientError::Lost(_))
    ));
    expect_last_words(&mut client);
}

#[cfg(unix)]
#[test]
fn client_works_over_a_custom_transport() {
    use std::os::unix::net::UnixStream;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || {
        let mut socket = tungstenite::accept(theirs).unwrap();
        let message = socket.read().unwrap();
        socket.send(message).unwrap();
        assert!(socket.read().unwrap().is_close());
        let _ = socket.flush();
    });
    let mut client = Client::builder("ws://anything/")
        .connect_over(ours)
        .unwrap();
    client.send(Message::new("over another transport")).unwrap();
    assert_eq!(
        client.receive().unwrap().text(),
        Some("over another transport")
    );
    client.close(CloseCode::NORMAL, "").unwrap();
    server.join().unwrap();
}
