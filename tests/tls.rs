//! TLS in the app's own listener, as clients of other authors see it: messages, requests, ends and failures.

use crate::certificates::{Authority, VERSIONS};
use crate::support;
use crate::tls_clients;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use humphrey::SubApp;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::files::serve_dir;
use humphrey_ws::ping::Heartbeat;
use humphrey_ws::tls::Tls;
use humphrey_ws::{
    AsyncWebsocketApp, CloseCode, Limits, Message, Origins, RunningApp, Subscription,
};
use rustls::ClientConfig;
use rustls::version::{TLS12, TLS13};
use support::{
    DEADLINE, client_frame, close_code, eventually, get_request, read_frame, read_head,
    read_response, start, tcp, upgrade_request,
};
use tls_clients::{ask, connect, directory, raw_websocket, secure, start_tls, websocket};

const STOP: Duration = Duration::from_millis(100);

fn echo() -> AsyncWebsocketApp<()> {
    let limits = Limits::default().message_bytes_max(8 << 20);
    AsyncWebsocketApp::new()
        .with_limits(limits)
        .with_message_handler(|stream, message: Message, _| stream.send(message))
}

fn echo_that_reports_disconnects() -> (AsyncWebsocketApp<()>, Receiver<()>) {
    let (closed, is_closed) = channel();
    let closed = std::sync::Mutex::new(closed);
    let app = echo().with_disconnect_handler(move |_, _| closed.lock().unwrap().send(()).unwrap());
    (app, is_closed)
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// Starts an app, with a configuration of clients of each version.
fn start_both(
    app: AsyncWebsocketApp<()>,
) -> (RunningApp, std::net::SocketAddr, [Arc<ClientConfig>; 2]) {
    let authority = Authority::new();
    let (running, address) = start(app.with_tls(authority.app_tls()));
    let clients = VERSIONS.map(|version| authority.client_of(&[version]));
    (running, address, clients)
}

#[test]
fn messages_of_all_sizes_are_echoed() {
    let (running, address, clients) = start_both(echo());
    for config in clients {
        let mut client = websocket(address, &config);
        for len in [
            0,
            1,
            125,
            126,
            16_381,
            16_384,
            16_385,
            32_768,
            65_536,
            200_000,
            1 << 20,
            5 << 20,
        ] {
            let sent = bytes(len);
            client
                .send(tungstenite::Message::binary(sent.clone()))
                .unwrap();
            let received = client.read().unwrap().into_data();
            assert!(
                received == sent,
                "{len} bytes arrived as {}",
                received.len()
            );
        }
    }
    let tls = running.sender().metrics().tls;
    assert_eq!((tls.handshakes, tls.resumed), (2, 0));
    running.shutdown(STOP);
}

#[test]
fn burst_of_messages_is_echoed_in_order() {
    let (running, address, clients) = start_both(echo());
    for config in clients {
        let mut client = raw_websocket(address, &config);
        let mut burst = Vec::new();
        for n in 0..3_000_u32 {
            burst.extend(client_frame(0x82, &n.to_be_bytes()));
        }
        client.write_all(&burst).unwrap();
        for n in 0..3_000_u32 {
            assert_eq!(
                read_frame(&mut client).unwrap(),
                (0x82, n.to_be_bytes().to_vec())
            );
        }
    }
    running.shutdown(STOP);
}

fn routes() -> SubApp<()> {
    SubApp::new()
        .with_stateless_route("/hello", |_| Response::new(StatusCode::OK, "Hello"))
        .with_stateless_route("/echo", |request: Request| {
            Response::new(StatusCode::OK, request.content.unwrap_or_default())
        })
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (running, address, clients) = start_both(echo().with_routes(routes()));
    for config in clients {
        let mut stream = connect(address, &config);
        let post = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: ";
        for turn in 0..3 {
            let mut requests = String::new();
            for n in 0..50 {
                requests += &get_request("/hello");
                requests += &format!("{post}{}\r\n\r\n{turn}{n}", format!("{turn}{n}").len());
            }
            stream.write_all(requests.as_bytes()).unwrap();
            for n in 0..50 {
                assert_eq!(read_response(&mut stream).1, b"Hello");
                assert_eq!(
                    read_response(&mut stream).1,
                    format!("{turn}{n}").into_bytes()
                );
            }
        }
    }
    running.shutdown(STOP);
}

#[test]
fn bodies_of_requests_arrive_whole() {
    let limits = Limits::default().body_bytes_max(4 << 20);
    let app = AsyncWebsocketApp::new()
        .with_limits(limits)
        .with_routes(routes());
    let (running, address, clients) = start_both(app);
    for config in clients {
        let mut stream = connect(address, &config);
        for len in [0, 1, 16_384, 100_000, 3 << 20] {
            let body = bytes(len);
            let head =
                format!("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len}\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
            let (head, answer) = read_response(&mut stream);
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert!(answer == body, "{len} bytes arrived as {}", answer.len());
        }
    }
    running.shutdown(STOP);
}

#[test]
fn large_file_is_downloaded_by_fast_and_slow_clients() {
    const BYTES: usize = 20 << 20;
    let files = directory("tls download");
    fs::write(files.join("data.bin"), bytes(BYTES)).unwrap();
    let app = AsyncWebsocketApp::new().with_routes(
        SubApp::new().with_path_aware_route("/files/*", serve_dir(files.to_str().unwrap())),
    );
    let (running, address, clients) = start_both(app);
    let downloads: Vec<_> = clients
        .into_iter()
        .flat_map(|config| [(config.clone(), 4 << 10), (config, 1 << 20)])
        .map(|(config, read_bytes)| {
            std::thread::spawn(move || {
                let mut stream = connect(address, &config);
                stream
                    .write_all(get_request("/files/data.bin").as_bytes())
                    .unwrap();
                let head = read_head(&mut stream);
                assert!(
                    head.contains(&format!("Content-Length: {BYTES}\r\n")),
                    "{head}"
                );
                let mut body = vec![0; BYTES];
                for part in body.chunks_mut(read_bytes) {
                    stream.read_exact(part).unwrap();
                }
                assert!(body == bytes(BYTES), "the file has changed");
                // The connection can be used for the next request.
                stream.write_all(get_request("/none").as_bytes()).unwrap();
                assert!(read_head(&mut stream).starts_with("HTTP/1.1 404 "));
            })
        })
        .collect();
    for download in downloads {
        download.join().unwrap();
    }
    running.shutdown(STOP);
}

#[test]
fn event_stream_carries_messages_and_ends_with_close_notify() {
    let app = AsyncWebsocketApp::new()
        .with_event_stream("/events", |_, _| Ok(Subscription::room("news")));
    let (running, address, clients) = start_both(app);
    let mut streams = clients.map(|config| {
        let mut stream = connect(address, &config);
        stream.write_all(get_request("/events").as_bytes()).unwrap();
        assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 "));
        stream
    });
    let news = running.sender().room("news");
    for n in 0..1_000 {
        news.broadcast(Message::new(format!("message {n} {}", "-".repeat(n))));
    }
    let readers = streams.each_mut().map(|stream| {
        let mut text = String::new();
        while !text.contains("data: message 999 ") || !text.ends_with("\n\n") {
            let mut part = [0; 4096];
            let n = stream.read(&mut part).unwrap();
            text += std::str::from_utf8(&part[..n]).unwrap();
        }
        text
    });
    for text in readers {
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let expected = (0..1_000).map(|n| format!("message {n} {}", "-".repeat(n)));
        assert!(data.eq(expected));
    }
    running.shutdown(STOP);
    for mut stream in streams {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("a close_notify");
    }
}

#[test]
fn request_without_tls_gets_400_in_words() {
    let (running, address, _) = start_tls(echo());
    // Request bytes that the server leaves unread must not make the system discard its response.
    let large = format!("{}{}", get_request("/"), "x".repeat(1 << 20));
    for request in [get_request("/"), upgrade_request("/"), large] {
        let mut socket = tcp(address);
        socket.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        socket.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
        assert!(response.contains("https:// or wss://"), "{response}");
    }
    let metrics = running.sender().metrics();
    assert_eq!((metrics.tls.plain_http, metrics.tls.malformed), (3, 0));
    running.shutdown(STOP);
}

#[test]
fn same_origin_means_https() {
    let (running, address, config) = start_tls(echo().with_allowed_origins(Origins::Same));
    let status = |origin: &str| {
        let mut stream = connect(address, &config);
        let request = upgrade_request("/");
        let head = request.strip_suffix("\r\n").unwrap();
        let request = format!("{head}Origin: {origin}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        read_head(&mut stream)[..12].to_owned()
    };
    assert_eq!(status("https://localhost"), "HTTP/1.1 101");
    assert_eq!(status("https://localhost:443"), "HTTP/1.1 101");
    assert_eq!(status("http://localhost"), "HTTP/1.1 403");
    assert_eq!(status("http://localhost:443"), "HTTP/1.1 403");
    assert_eq!(status("https://elsewhere"), "HTTP/1.1 403");
    running.shutdown(STOP);
}

#[test]
fn request_says_whether_it_came_over_tls() {
    fn app(seen: std::sync::mpsc::Sender<(bool, usize)>) -> AsyncWebsocketApp<()> {
        let seen = std::sync::Mutex::new(seen);
        echo().with_handshake_handler(move |request, _| {
            let certificates = request.client_certificates().len();
            seen.lock()
                .unwrap()
                .send((request.is_tls(), certificates))
                .unwrap();
            Ok(humphrey_ws::Accept::new())
        })
    }
    let (seen, saw) = channel();
    let (running, address, config) = start_tls(app(seen.clone()));
    drop(raw_websocket(address, &config));
    assert_eq!(saw.recv_timeout(DEADLINE), Ok((true, 0)));
    running.shutdown(STOP);
    let (running, address) = start(app(seen));
    drop(support::raw_websocket(address));
    assert_eq!(saw.recv_timeout(DEADLINE), Ok((false, 0)));
    running.shutdown(STOP);
}

#[test]
fn closed_websocket_ends_with_close_notify_on_both_sides() {
    let app = AsyncWebsocketApp::new()
        .with_message_handler(|stream, _: Message, _| stream.close(CloseCode::NORMAL, ""));
    let (running, address, clients) = start_both(app);
    let sender = running.sender();
    for config in clients {
        for server_begins in [false, true] {
            let mut client = raw_websocket(address, &config);
            if server_begins {
                client.write_all(&client_frame(0x81, b"close")).unwrap();
                assert_eq!(read_frame(&mut client).unwrap().0, 0x88);
            }
            client
                .write_all(&client_frame(0x88, &1000_u16.to_be_bytes()))
                .unwrap();
            if !server_begins {
                assert_eq!(read_frame(&mut client).unwrap().0, 0x88);
            }
            assert_eq!(client.read(&mut [0]).expect("a close_notify"), 0);
            client.conn.send_close_notify();
            let _ = client.flush();
            eventually("the connection has ended", || sender.connections() == 0);
        }
    }
    assert_eq!(sender.metrics().tls.truncated, 0);
    running.shutdown(STOP);
}

#[test]
fn client_that_says_goodbye_is_not_truncated() {
    let (app, is_closed) = echo_that_reports_disconnects();
    let (running, address, clients) = start_both(app);
    for config in clients {
        let mut client = raw_websocket(address, &config);
        client.write_all(&client_frame(0x82, b"last")).unwrap();
        client.conn.send_close_notify();
        client.flush().unwrap();
        client.sock.shutdown(Shutdown::Write).unwrap();
        // It is still answered.
        assert_eq!(read_frame(&mut client).unwrap(), (0x82, b"last".to_vec()));
        is_closed.recv_timeout(DEADLINE).unwrap();
    }
    assert_eq!(running.sender().metrics().tls.truncated, 0);
    running.shutdown(STOP);
}

#[test]
fn connection_cut_off_is_counted_as_truncated() {
    let (app, is_closed) = echo_that_reports_disconnects();
    let (running, address, clients) = start_both(app);
    let sender = running.sender();
    for (n, config) in clients.into_iter().enumerate() {
        let client = raw_websocket(address, &config);
        client.sock.shutdown(Shutdown::Both).unwrap();
        is_closed.recv_timeout(DEADLINE).unwrap();
        eventually("the end is counted", || {
            sender.metrics().tls.truncated == n as u64 + 1
        });
    }
    assert_eq!(sender.connections(), 0);
    running.shutdown(STOP);
}

#[test]
fn half_closed_request_is_answered() {
    let (running, address, clients) = start_both(echo().with_routes(routes()));
    for config in clients {
        let mut stream = connect(address, &config);
        // The end of the handshake, the request and the end of the stream leave together.
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        let request = "GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.conn.writer().write_all(request.as_bytes()).unwrap();
        stream.conn.send_close_notify();
        let response = ask(&mut stream, "");
        assert!(response.ends_with("\r\n\r\nHello"), "{response}");
    }
    running.shutdown(STOP);
}

#[test]
fn handshake_that_never_ends_is_cut_off() {
    let limits = Limits::default().handshake_timeout(Duration::from_millis(300));
    let (running, address, config) = start_tls(echo().with_limits(limits));
    let sender = running.sender();
    let mut client = connect(address, &config);
    let mut hello = Vec::new();
    client.conn.write_tls(&mut hello).unwrap();
    drop(client);
    for (n, part) in [&[][..], &hello[..1], &hello[..hello.len() / 2], &hello]
        .into_iter()
        .enumerate()
    {
        let mut socket = tcp(address);
        socket.write_all(part).unwrap();
        // The server's flight may come before the end.
        let _ = socket.read_to_end(&mut Vec::new());
        eventually(&format!("the timeout after part {n} is counted"), || {
            sender.metrics().handshake_failures.timeout == n as u64 + 1
        });
    }
    assert_eq!(sender.metrics().tls.handshakes, 0);
    running.shutdown(STOP);
}

#[test]
fn timeout_of_a_connection_ends_it_with_close_notify() {
    const SHORT: Duration = Duration::from_millis(100);
    let limits = Limits::default()
        .handshake_timeout(Duration::from_secs(2))
        .keep_alive_timeout(SHORT)
        .close_timeout(SHORT);
    let app = AsyncWebsocketApp::new()
        .with_limits(limits)
        .with_heartbeat(Heartbeat::new(Duration::from_millis(300), 2 * SHORT))
        .with_routes(routes())
        .with_message_handler(|stream, _: Message, _| stream.close(CloseCode::NORMAL, ""));
    let (running, address, clients) = start_both(app);
    for config in clients {
        // No request, and no further request.
        assert_eq!(ask(&mut connect(address, &config), ""), "");
        let response = ask(&mut connect(address, &config), &get_request("/hello"));
        assert!(response.ends_with("\r\n\r\nHello"), "{response}");
        // No answer to a close frame, and none to a ping.
        for (message, code) in [(&b"close"[..], 1000), (&[], 1011)] {
            let mut client = raw_websocket(address, &config);
            if !message.is_empty() {
                client.write_all(&client_frame(0x81, message)).unwrap();
            }
            let payload = loop {
                match read_frame(&mut client).unwrap() {
                    (0x88, payload) => break payload,
                    (opcode, _) => assert_eq!(opcode, 0x89, "neither a ping nor a close frame"),
                }
            };
            assert_eq!(close_code(&payload), code);
            assert_eq!(client.read(&mut [0]).expect("a close_notify"), 0);
        }
    }
    running.shutdown(STOP);
}

#[test]
fn tls_begins_behind_the_header_of_a_proxy() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_proxy_protocol(["127.0.0.1"])
        .with_message_handler(|stream, message, _| {
            stream.send(stream.peer_addr().to_string());
            stream.send(message);
        });
    let (running, address, clients) = start_both(app);
    let header = b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n";
    for config in &clients {
        // The header alone, and in one segment with the beginning of TLS.
        for is_together in [false, true] {
            let mut socket = tcp(address);
            let mut client = if is_together {
                let mut hello = Vec::new();
                let name = "localhost".try_into().unwrap();
                let mut client = rustls::ClientConnection::new(config.clone(), name).unwrap();
                client.write_tls(&mut hello).unwrap();
                socket.write_all(&[&header[..], &hello].concat()).unwrap();
                rustls::StreamOwned::new(client, socket)
            } else {
                socket.write_all(header).unwrap();
                secure(socket, config, "localhost")
            };
            client.write_all(upgrade_request("/").as_bytes()).unwrap();
            let head = read_head(&mut client);
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            client.write_all(&client_frame(0x81, b"hello")).unwrap();
            for expected in ["192.0.2.7:4711", "hello"] {
                let (opcode, payload) = read_frame(&mut client).unwrap();
                assert_eq!((opcode, &payload[..]), (0x81, expected.as_bytes()));
            }
        }
    }
    // TLS without a header, and with too much behind it.
    let mut client = connect(address, &clients[0]);
    assert!(
        client
            .write_all(b"GET")
            .and_then(|()| client.read(&mut [0]).map(drop))
            .is_err()
    );
    let mut socket = tcp(address);
    let flood = [&header[..], &[0x16; 64 << 10]].concat();
    let _ = socket.write_all(&flood);
    assert!(matches!(socket.read(&mut [0]), Ok(0) | Err(_)));
    running.shutdown(STOP);
}

#[test]
fn shutdown_says_1001_and_close_notify() {
    let (running, address, clients) = start_both(echo());
    let mut clients = [0, 1, 0, 1].map(|n: usize| raw_websocket(address, &clients[n]));
    let stopping = std::thread::spawn(move || running.shutdown(DEADLINE));
    for client in &mut clients {
        let (opcode, payload) = read_frame(client).unwrap();
        assert_eq!((opcode, close_code(&payload)), (0x88, 1001));
        client.write_all(&client_frame(0x88, &payload)).unwrap();
        assert_eq!(client.read(&mut [0]).expect("a close_notify"), 0);
    }
    stopping.join().unwrap();
}

#[test]
fn failed_handshakes_are_counted_by_their_cause() {
    let authority = Authority::new();
    let config = authority.issue(&["localhost"]).server_config(&[&TLS13]);
    let (running, address) = start(echo().with_tls(Tls::from_config(config).unwrap()));
    let sender = running.sender();
    let fails = |config: Arc<ClientConfig>| {
        let mut stream = connect(address, &config);
        stream
            .write_all(b"x")
            .map_or_else(Some, |()| stream.read(&mut [0]).err())
            .unwrap()
    };

    let error = fails(authority.client_of(&[&TLS12]));
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    let mut h2 = Arc::unwrap_or_clone(authority.client());
    h2.alpn_protocols = vec![b"h2".to_vec()];
    let error = fails(Arc::new(h2));
    assert!(
        error.to_string().contains("NoApplicationProtocol"),
        "{error}"
    );
    eventually("both are counted", || {
        sender.metrics().tls.incompatible == 2
    });

    let error = fails(Authority::new().client());
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    eventually("it is counted", || sender.metrics().tls.untrusted == 1);

    tcp(address).write_all(&[0xFF; 100]).unwrap();
    eventually("it is counted", || sender.metrics().tls.malformed == 1);

    drop(tcp(address));
    let mut socket = tcp(address);
    socket.write_all(&[22, 3, 1, 1]).unwrap();
    drop(socket);
    eventually("both are counted", || sender.metrics().tls.aborted == 2);

    let tls = sender.metrics().tls;
    assert_eq!(
        (tls.handshakes, tls.alerts, tls.client_certificates),
        (0, 0, 0)
    );
    running.shutdown(STOP);
}

#[test]
fn application_protocol_is_http_1_1() {
    let (running, address, config) = start_tls(echo().with_routes(routes()));
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut stream = connect(address, &Arc::new(config));
    stream.write_all(get_request("/hello").as_bytes()).unwrap();
    assert_eq!(read_response(&mut stream).1, b"Hello");
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    running.shutdown(STOP);
}

#[test]
fn rude_handshakes_leave_others_alone() {
    let (running, address, config) = start_tls(echo());
    let mut witness = websocket(address, &config);
    let mut client = connect(address, &config);
    let mut hello = Vec::new();
    client.conn.write_tls(&mut hello).unwrap();
    let record = |typ: u8, payload: &[u8]| {
        let len = (payload.len() as u16).to_be_bytes();
        [&[typ, 3, 1], &len[..], payload].concat()
    };
    let cut = record(22, &hello[5..30]);
    let rude = [
        // Another record within a hello; messages before one; a hello without an end; lengths that are too long.
        [cut.clone(), record(23, b"x")].concat(),
        [cut.clone(), record(21, &[1, 0])].concat(),
        record(22, &[0; 10]),
        [
            record(22, &[1, 0, 0xEA, 0x60]),
            record(22, &[0; 16_000]).repeat(4),
        ]
        .concat(),
        record(22, &[1, 0xFF, 0xFF, 0xFF]),
        vec![22, 3, 1, 0xFF, 0xFF],
        [hello.clone(), hello.clone()].concat(),
        [hello.clone(), record(22, &[20, 0]), record(23, b"x")].concat(),
        [hello, record(20, &[1]).repeat(100)].concat(),
    ];
    for bytes in rude {
        let mut socket = tcp(address);
        socket.write_all(&bytes).unwrap();
        // The server ends the connection.
        match socket.read_to_end(&mut Vec::new()) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        witness
            .send(tungstenite::Message::text("still there?"))
            .unwrap();
        assert_eq!(witness.read().unwrap().into_text().unwrap(), "still there?");
    }
    assert_eq!(running.sender().connections(), 1);
    running.shutdown(STOP);
}
