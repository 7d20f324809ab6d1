//! The guarantees of the handshake handler: its verdicts, its panics, and handshakes during which the handler blocks, the
//! client leaves or the app stops.

use crate::{handshakes, support};

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use handshakes::{WAYS, Way, connect, rejected, request, start_by};
use humphrey::http::{Response, StatusCode};
use humphrey::stream::Stream;
use humphrey_ws::{
    Accept, AsyncWebsocketApp, Message, Origins, Reject, WebsocketStream, async_websocket_handler,
};
use support::{
    Client, DEADLINE, close_code, eventually, read_frame, read_head, serve_route, start, tcp,
};
use tungstenite::protocol::frame::coding::CloseCode as Code;

/// Returns the whole response to a rejected handshake.
fn answer(address: SocketAddr, target: &str) -> (String, String) {
    let mut socket = tcp(address);
    socket
        .write_all(support::upgrade_request(target).as_bytes())
        .unwrap();
    let head = read_head(&mut socket);
    assert!(head.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{head}");
    let mut body = String::new();
    socket.read_to_string(&mut body).unwrap();
    (head, body)
}

#[test]
fn rejected_client_gets_status_headers_and_body() {
    for way in WAYS {
        let (running, address) = start_by(way, (), |app: AsyncWebsocketApp<(), ()>| {
            app.with_handshake_handler(|_, _| {
                Err(Reject::new(401)
                    .with_header("WWW-Authenticate", "Bearer realm=\"chat\"")
                    .with_header("Content-Type", "application/json")
                    .with_body("{\"error\":\"no token\"}"))
            })
            .with_connect_handler(|_, _| panic!("no handshake was accepted"))
        });
        let (head, body) = answer(address, "/");
        assert!(head.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{head}");
        assert!(
            head.contains("\r\nWWW-Authenticate: Bearer realm=\"chat\"\r\n"),
            "{head}"
        );
        assert!(
            head.contains("\r\nContent-Type: application/json\r\n"),
            "{head}"
        );
        assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
        assert_eq!(body, "{\"error\":\"no token\"}", "{way:?}");
        let metrics = running.sender().metrics();
        assert_eq!(metrics.refused.handshake_handler, 1);
        assert_eq!(metrics.connections_opened, 0);
        let text = running.sender().prometheus();
        assert!(text.contains("cause=\"handshake_handler\"} 1\n"), "{text}");
    }
}

#[test]
fn accepted_handshake_sends_the_handlers_headers() {
    for way in WAYS {
        let (_running, address) = start_by(way, (), |app: AsyncWebsocketApp<(), ()>| {
            app.with_handshake_handler(|_, _| {
                Ok(Accept::new()
                    .with_header("Set-Cookie", "seen=1; HttpOnly")
                    .with_header("Set-Cookie", "theme=dark"))
            })
        });
        let (_, response) = tungstenite::client(format!("ws://{address}/"), tcp(address))
            .expect("the handshake is accepted");
        let cookies: Vec<_> = response.headers().get_all("Set-Cookie").iter().collect();
        assert_eq!(cookies, ["seen=1; HttpOnly", "theme=dark"], "{way:?}");
    }
}

#[test]
fn panic_or_unsendable_response_is_answered_with_500() {
    for way in WAYS {
        let (running, address) = start_by(way, (), |app: AsyncWebsocketApp<(), ()>| {
            app.with_handshake_handler(|request, _| match request.path() {
                "/panic" => panic!("a handler's panic"),
                "/unoffered" => Ok(Accept::new().with_subprotocol("chat")),
                "/split" => Ok(Accept::new().with_header("X", "a\r\nSet-Cookie: b=c")),
                "/own" => Ok(Accept::new().with_header("Sec-WebSocket-Accept", "x")),
                "/switching" => Err(Reject::new(101)),
                "/split-rejection" => Err(Reject::new(302).with_header("Location", "/\r\nX: y")),
                _ => Ok(Accept::new()),
            })
            .with_message_handler(|stream, message, _| stream.send(message))
        });
        let paths = [
            "/panic",
            "/unoffered",
            "/split",
            "/own",
            "/switching",
            "/split-rejection",
        ];
        for path in paths {
            let (head, body) = answer(address, path);
            assert!(head.starts_with("HTTP/1.1 500 "), "{way:?} {path}: {head}");
            assert!(
                !head.contains("Set-Cookie") && !head.contains("X: y"),
                "{head}"
            );
            assert_eq!(body, "internal server error\n");
        }
        let metrics = running.sender().metrics();
        assert_eq!(metrics.refused.handshake_handler, paths.len() as u64);
        assert_eq!(metrics.handler_panics, 1);
        // Other clients are still served.
        let mut client = Client::connect(address);
        client.send("a");
        assert_eq!(client.receive_text(), "a");
    }
}

#[test]
fn stream_without_handshake_state_has_the_default() {
    let app: AsyncWebsocketApp<(), String> = AsyncWebsocketApp::new()
        .with_handshake_handler(|_, _| Ok(Accept::new()))
        .with_connect_handler(|stream, _| stream.send(Message::new(format!("[{}]", stream.state))));
    let (_running, address) = start(app);
    assert_eq!(Client::connect(address).receive_text(), "[]");
}

#[test]
fn blocked_handshake_handler_delays_its_client_only() {
    let together = Arc::new(Barrier::new(2));
    let waits = together.clone();
    let (_running, address) = start_by(Way::Own, (), |app: AsyncWebsocketApp<(), ()>| {
        app.with_handshake_handler(move |request, _| {
            if request.path() == "/wait" {
                waits.wait();
            }
            Ok(Accept::new())
        })
        .with_message_handler(|stream, message, _| stream.send(message))
    });
    let blocked = thread::spawn(move || Client::connect_to(address, "/wait"));
    let mut quick = Client::connect(address);
    quick.send("a");
    assert_eq!(quick.receive_text(), "a");
    together.wait();
    let mut blocked = blocked.join().unwrap();
    blocked.send("b");
    assert_eq!(blocked.receive_text(), "b");
}

#[test]
fn frames_sent_during_the_handshake_are_received_later() {
    let (asked, was_asked) = channel();
    let (go, may_go) = channel();
    let (asked, may_go) = (Mutex::new(asked), Mutex::new(may_go));
    let (_running, address) = start_by(Way::Own, (), |app: AsyncWebsocketApp<(), ()>| {
        app.with_handshake_handler(move |_, _| {
            asked.lock().unwrap().send(()).unwrap();
            may_go.lock().unwrap().recv_timeout(DEADLINE).unwrap();
            Ok(Accept::new())
        })
        .with_message_handler(|stream, message, _| stream.send(message))
    });
    let mut socket = tcp(address);
    let early = [
        support::upgrade_request("/").as_bytes(),
        &support::client_frame(0x81, b"early"),
    ]
    .concat();
    socket.write_all(&early).unwrap();
    was_asked.recv_timeout(DEADLINE).unwrap();
    socket
        .write_all(&support::client_frame(0x81, b"later"))
        .unwrap();
    go.send(()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 101 "));
    for expected in ["early", "later"] {
        let (first, payload) = read_frame(&mut socket).unwrap();
        assert_eq!((first, payload.as_slice()), (0x81, expected.as_bytes()));
    }
}

#[test]
fn shutdown_during_a_handshake_answers_the_client() {
    for way in WAYS {
        let (asked, was_asked) = channel();
        let (go, may_go) = channel::<()>();
        let (asked, may_go) = (Mutex::new(asked), Mutex::new(may_go));
        let (running, address) = start_by(way, (), |app: AsyncWebsocketApp<(), ()>| {
            app.with_handshake_handler(move |_, _| {
                asked.lock().unwrap().send(()).unwrap();
                let _ = may_go.lock().unwrap().recv_timeout(DEADLINE);
                Ok(Accept::new())
            })
            .with_connect_handler(|_, _| panic!("no handshake was accepted"))
        });
        let client = thread::spawn(move || answer(address, "/"));
        was_asked.recv_timeout(DEADLINE).unwrap();
        running.sender().shutdown(DEADLINE);
        let (head, body) = client.join().unwrap();
        assert!(head.starts_with("HTTP/1.1 503 "), "{way:?}: {head}");
        assert_eq!(body, "the server is shutting down\n");
        drop(go);
        running.join();
    }
}

#[test]
fn state_of_a_client_gone_during_handshake_is_dropped() {
    /// Counts its live instances.
    #[derive(Default)]
    struct Counted(Option<Arc<()>>);

    let count = Arc::new(());
    let kept = count.clone();
    let (asked, was_asked) = channel();
    let (go, may_go) = channel::<()>();
    let (asked, may_go) = (Mutex::new(asked), Mutex::new(may_go));
    let (running, address) = start_by(Way::Own, (), |app: AsyncWebsocketApp<(), Counted>| {
        app.with_handshake_handler(move |_, _| {
            asked.lock().unwrap().send(()).unwrap();
            may_go.lock().unwrap().recv_timeout(DEADLINE).unwrap();
            Ok(Accept::new().with_state(Counted(Some(kept.clone()))))
        })
        .with_message_handler(|stream, message, _| {
            assert!(stream.state.0.is_some());
            stream.send(message);
        })
    });
    let before = Arc::strong_count(&count);
    let mut socket = tcp(address);
    socket
        .write_all(support::upgrade_request("/").as_bytes())
        .unwrap();
    was_asked.recv_timeout(DEADLINE).unwrap();
    drop(socket);
    go.send(()).unwrap();
    let sender = running.sender();
    eventually("the client has connected and left", || {
        let metrics = sender.metrics();
        metrics.connections_opened == 1 && metrics.connections == 0
    });
    eventually("the state is dropped", || {
        Arc::strong_count(&count) == before
    });
}

#[test]
fn handshake_handler_is_not_called_for_refused_clients() {
    for way in WAYS {
        let (running, address) = start_by(way, (), |app: AsyncWebsocketApp<(), ()>| {
            app.with_allowed_origins(Origins::Same)
                .with_handshake_handler(|_, _| panic!("the handshake handler was called"))
        });
        let foreign = request(address, "/").with_header("Origin", "http://evil.example");
        assert_eq!(rejected(foreign, address), 403, "{way:?}");
        let metrics = running.sender().metrics();
        assert_eq!((metrics.refused.origin, metrics.handler_panics), (1, 0));
    }
}

#[test]
fn routes_do_not_call_the_handshake_handler() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_handshake_handler(|_, _| Err(Reject::new(403)))
        .with_routes(
            humphrey::SubApp::new()
                .with_stateless_route("/", |_| Response::new(StatusCode::OK, "for all")),
        );
    let (_running, address) = start(app);
    let mut socket = tcp(address);
    let get = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    socket.write_all(get.as_bytes()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 200 "));
    assert_eq!(rejected(request(address, "/"), address), 403);
}

#[test]
fn stream_accepted_outside_the_app_is_closed_with_1008() {
    let app: AsyncWebsocketApp<()> =
        AsyncWebsocketApp::new_unlinked().with_handshake_handler(|request, _| {
            match request.header("X-Token") {
                Some("4711") => Ok(Accept::new()),
                _ => Err(Reject::new(403).with_body("nobody knows you\n")),
            }
        });
    let app = app.with_message_handler(|stream, message, _| stream.send(message));
    let hook = app.connect_hook().unwrap();
    let running = app.start().unwrap();

    // First, a hook that the program has created itself. The route answers the handshake, and the app knows the
    // request.
    let (own, handed_over) = channel();
    let address = serve_route(async_websocket_handler(Arc::new(Mutex::new(own))));
    let forward = hook.clone();
    thread::spawn(move || {
        for stream in handed_over {
            forward.lock().unwrap().send(stream).unwrap();
        }
    });
    let mut known = connect(
        request(address, "/").with_header("X-Token", "4711"),
        address,
    );
    known.send("a");
    assert_eq!(known.receive_text(), "a");
    let mut stranger = connect(request(address, "/"), address);
    let (_, frame) = stranger.receive_to_close();
    let frame = frame.unwrap();
    assert_eq!(
        (frame.code, frame.reason.as_str()),
        (Code::Policy, "nobody knows you")
    );

    // Second, a stream that the program has created from a socket. The app does not know its request.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = tcp(listener.local_addr().unwrap());
    let stream = Stream::Tcp(listener.accept().unwrap().0);
    hook.lock()
        .unwrap()
        .send(WebsocketStream::new(stream))
        .unwrap();
    let (first, payload) = read_frame(&mut client).unwrap();
    assert_eq!((first, close_code(&payload)), (0x88, 1008));
    assert_eq!(running.sender().metrics().refused.handshake_handler, 2);
}

#[test]
fn request_is_readable_for_its_documented_time() {
    for way in WAYS {
        let (told, tells) = channel();
        let told = Mutex::new(told);
        let kept = Arc::new(Mutex::new(None));
        let keeps = kept.clone();
        let (_running, address) = start_by(way, (), |app: AsyncWebsocketApp<(), ()>| {
            app.with_connect_handler(move |stream, _| {
                let request = stream
                    .request()
                    .expect("the request is available in the connect handler");
                let agent = request.header("X-Agent").unwrap().to_owned();
                told.lock().unwrap().send(agent).unwrap();
                *keeps.lock().unwrap() = Some(stream);
            })
            .with_message_handler(|stream, _, _| {
                assert!(stream.request().is_none());
                stream.send(Message::new(format!(
                    "{} {}",
                    stream.path(),
                    stream.query()
                )));
            })
        });
        let with_agent = request(address, "/a?b=c&d?e").with_header("X-Agent", "test");
        let mut client = connect(with_agent, address);
        assert_eq!(tells.recv_timeout(DEADLINE).unwrap(), "test");
        client.send("?");
        assert_eq!(client.receive_text(), "/a b=c&d?e", "{way:?}");
        let stream = kept.lock().unwrap().take().unwrap();
        assert!(
            stream.request().is_none(),
            "{way:?}: the request is still kept"
        );
        assert_eq!(stream.query(), "b=c&d?e");
        assert_eq!(stream.subprotocol(), None);
    }
}
