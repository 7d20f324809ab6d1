//! WebSockets in an axum app: axum listens, hyper answers, and the engine serves.
//!
//! It is one long file, because each further test binary would link axum, hyper and tokio again.

mod support;

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::extract::{FromRef, FromRequestParts, State};
use axum::http::{Method, Request, StatusCode, Version};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use humphrey_ws::axum::{WebsocketUpgrade, upgrade};
use humphrey_ws::{
    Accept, AllowedHosts, AsyncSender, AsyncWebsocketApp, Limits, Message, Origins, Procedures,
    Reject, RunningApp, TrustedProxies,
};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use support::{
    Client, DEADLINE, client_frame, close_code, eventually, read_frame, read_head, tcp,
    upgrade_request,
};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime;
use tokio::sync::oneshot;
use tungstenite::protocol::frame::coding::CloseCode;

/// A router that is served on a runtime with one thread until this value is dropped.
struct Served {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Served {
    fn start(router: Router) -> Self {
        Self::with(async move |listener, stopped| {
            let service = router.into_make_service_with_connect_info::<SocketAddr>();
            let served = axum::serve(listener, service);
            served.with_graceful_shutdown(stopped).await.unwrap();
        })
    }

    /// Starts a server whose axum does not know the addresses of its clients.
    fn start_without_connect_info(router: Router) -> Self {
        Self::with(async move |listener, stopped| {
            let served = axum::serve(listener, router);
            served.with_graceful_shutdown(stopped).await.unwrap();
        })
    }

    fn with<F>(serve: F) -> Self
    where
        F: AsyncFnOnce(TcpListener, Stopped) + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let (told, address) = channel();
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                told.send(listener.local_addr().unwrap()).unwrap();
                let stopped: Stopped = Box::pin(async { drop(stopped.await) });
                serve(listener, stopped).await;
            });
        });
        Self {
            address: address.recv_timeout(DEADLINE).unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

type Stopped = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(
            ended.is_ok() || thread::panicking(),
            "the thread of axum panicked"
        );
    }
}

/// Creates a router that serves `/ws`.
fn serve<S, T>(app: AsyncWebsocketApp<S, T>) -> (RunningApp, Served)
where
    S: Send + Sync + 'static,
    T: Send + Sync + Default + 'static,
{
    serve_with(app, routes)
}

/// Serves an app with the routes of the test.
fn serve_with<S, T>(
    app: AsyncWebsocketApp<S, T>,
    routes: impl FnOnce(&RunningApp) -> Router,
) -> (RunningApp, Served)
where
    S: Send + Sync + 'static,
    T: Send + Sync + Default + 'static,
{
    let running = app.start().unwrap();
    let served = Served::start(routes(&running));
    (running, served)
}

fn routes(running: &RunningApp) -> Router {
    Router::new()
        .route("/ws", any(upgrade))
        .with_state(running.sender())
}

fn unlinked() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new_unlinked()
}

fn echo() -> AsyncWebsocketApp<()> {
    unlinked().with_message_handler(|stream, message, _| stream.send(message))
}

/// Sends a raw request that closes the connection, and returns the whole response.
fn ask(address: SocketAddr, request: &str) -> String {
    let mut socket = tcp(address);
    let request = request.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// Returns a handshake request with an additional header line.
fn handshake_with(line: &str) -> String {
    upgrade_request("/ws").replacen("\r\n\r\n", &format!("\r\n{line}\r\n\r\n"), 1)
}

/// Returns the response to a handshake that the library rejects.
fn rejected(address: SocketAddr, request: &str) -> String {
    let response = response_to(address, request);
    assert!(
        response
            .to_ascii_lowercase()
            .contains("\r\nsec-websocket-version: 13\r\n"),
        "{response}"
    );
    response
}

fn response_to(address: SocketAddr, request: &str) -> String {
    let mut socket = tcp(address);
    socket.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut socket);
    let length = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")?
                .parse()
                .ok()
        })
        .unwrap_or(0);
    let mut body = vec![0; length];
    socket.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

fn socket_to_websocket(address: SocketAddr, early: &[u8]) -> std::net::TcpStream {
    let mut socket = tcp(address);
    let mut bytes = upgrade_request("/ws").into_bytes();
    bytes.extend_from_slice(early);
    socket.write_all(&bytes).unwrap();
    let head = read_head(&mut socket);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    socket
}

#[test]
fn messages_are_echoed_in_order() {
    let (_running, served) = serve(echo());
    let mut client = Client::connect_to(served.address, "/ws");
    for n in 0..100 {
        client.send(&n.to_string());
    }
    client.send_binary([0xff; 70_000]);
    for n in 0..100 {
        assert_eq!(client.receive_text(), n.to_string());
    }
    assert_eq!(client.receive().into_data().len(), 70_000);
    client.close();
}

#[test]
fn stream_has_address_and_request_in_nested_routers() {
    let app = unlinked().with_connect_handler(|stream, _| {
        let asked_for = format!(
            "{} {}?{}",
            stream.peer_addr(),
            stream.path(),
            stream.query()
        );
        stream.send(Message::new(asked_for));
    });
    let running = app.start().unwrap();
    for start in [Served::start, Served::start_without_connect_info] {
        let served = start(Router::new().nest("/api", routes(&running)));
        let mut client = Client::connect_to(served.address, "/api/ws?a=%20b");
        let expected = format!("{} /api/ws?a=%20b", client.address());
        assert_eq!(client.receive_text(), expected);
    }
}

#[test]
fn frames_sent_with_the_request_are_received() {
    let (_running, served) = serve(echo());
    let mut early = client_frame(0x81, b"one");
    early.extend(client_frame(0x82, b"two"));
    let begun = client_frame(0x81, b"three");
    early.extend(&begun[..4]);
    let mut socket = socket_to_websocket(served.address, &early);
    assert_eq!(read_frame(&mut socket).unwrap(), (0x81, b"one".to_vec()));
    assert_eq!(read_frame(&mut socket).unwrap(), (0x82, b"two".to_vec()));
    socket.write_all(&begun[4..]).unwrap();
    assert_eq!(read_frame(&mut socket).unwrap(), (0x81, b"three".to_vec()));
}

#[test]
fn frames_beyond_one_hyper_read_are_received() {
    let (_running, served) = serve(echo());
    let payload = [b'x'; 1000];
    let early: Vec<u8> = (0..300)
        .flat_map(|_| client_frame(0x81, &payload))
        .collect();
    let mut socket = tcp(served.address);
    let mut writer = socket.try_clone().unwrap();
    let writing = thread::spawn(move || {
        let mut bytes = upgrade_request("/ws").into_bytes();
        bytes.extend(early);
        writer.write_all(&bytes).unwrap();
    });
    let head = read_head(&mut socket);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for _ in 0..300 {
        assert_eq!(read_frame(&mut socket).unwrap(), (0x81, payload.to_vec()));
    }
    writing.join().unwrap();
}

#[test]
fn invalid_handshake_is_counted_and_refused_with_cause() {
    let (running, served) = serve(echo());
    let plain = rejected(
        served.address,
        "GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    assert!(plain.starts_with("HTTP/1.1 426 "), "{plain}");
    assert!(plain.contains("upgrade: websocket\r\n"), "{plain}");
    assert!(plain.contains("connection: Upgrade\r\n"), "{plain}");
    assert!(
        plain.contains("the request needs 'Upgrade: websocket'"),
        "{plain}"
    );

    let no_connection = upgrade_request("/ws").replacen("Connection: Upgrade\r\n", "", 1);
    let answer = rejected(served.address, &no_connection);
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    assert!(
        answer.contains("without 'Connection: Upgrade': a proxy"),
        "{answer}"
    );

    let old = upgrade_request("/ws").replacen("Version: 13", "Version: 8", 1);
    let answer = rejected(served.address, &old);
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    assert!(answer.contains("sec-websocket-version: 13\r\n"), "{answer}");

    let post = upgrade_request("/ws").replacen("GET", "POST", 1);
    assert!(rejected(served.address, &post).starts_with("HTTP/1.1 405 "));

    let two_hosts = handshake_with("Host: other");
    assert!(rejected(served.address, &two_hosts).starts_with("HTTP/1.1 400 "));

    let long = handshake_with(&format!("Cookie: {}", "x".repeat(16 << 10)));
    assert!(rejected(served.address, &long).starts_with("HTTP/1.1 431 "));

    let failures = running.sender().metrics().handshake_failures;
    assert_eq!(failures.not_an_upgrade, 1);
    assert_eq!(failures.version, 1);
    assert_eq!(failures.requirements, 2);
    assert_eq!(failures.malformed, 1);
    assert_eq!(failures.too_large, 1);
}

#[test]
fn foreign_origin_is_refused_with_403() {
    let (running, served) = serve(echo().with_allowed_origins(Origins::Same));
    let answer = rejected(
        served.address,
        &handshake_with("Origin: https://evil.example"),
    );
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(
        answer.contains("Pages of the origin \"https://evil.example\" may not connect"),
        "{answer}"
    );
    assert_eq!(running.sender().metrics().refused.origin, 1);

    let own = handshake_with("Origin: http://localhost");
    let mut socket = tcp(served.address);
    socket.write_all(own.as_bytes()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 101 "));
}

#[test]
fn disallowed_host_is_refused_with_403() {
    let (running, served) = serve(echo().with_allowed_hosts(AllowedHosts::loopback()));
    let evil = upgrade_request("/ws").replacen("Host: localhost", "Host: evil.example", 1);
    let answer = rejected(served.address, &evil);
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(
        answer.contains("the host name \"evil.example\""),
        "{answer}"
    );
    assert!(
        answer.contains("x-content-type-options: nosniff\r\n"),
        "{answer}"
    );
    assert_eq!(running.sender().metrics().refused.host, 1);
    let stripped = upgrade_request("/ws").replacen("Upgrade: websocket\r\n", "", 1);
    let answer = rejected(served.address, &stripped);
    assert!(
        answer.starts_with("HTTP/1.1 426 ") && answer.contains("a proxy in front"),
        "{answer}"
    );
    let twice = handshake_with("Authorization: a\r\nAuthorization: b");
    assert!(rejected(served.address, &twice).starts_with("HTTP/1.1 400 "));
    let mut socket = tcp(served.address);
    socket.write_all(upgrade_request("/ws").as_bytes()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 101 "));
}

#[test]
fn handshake_handler_sets_subprotocol_headers_and_state() {
    let app: AsyncWebsocketApp<(), String> = AsyncWebsocketApp::new_unlinked()
        .with_handshake_handler(|request, _| {
            let name = request.query_param("name").ok_or(Reject::new(401))?;
            let accept = Accept::new().with_subprotocol("chat.v2");
            Ok(accept.with_header("Set-Cookie", "seen=1").with_state(name))
        })
        .with_connect_handler(|stream, _| {
            let subprotocol = stream.subprotocol().unwrap_or("none");
            stream.send(Message::new(format!("{} {subprotocol}", stream.state)));
        });
    let (_running, served) = serve(app);
    let request = handshake_with("Sec-WebSocket-Protocol: chat.v1, chat.v2");
    let request = request.replacen("GET /ws", "GET /ws?name=J%C3%B6rg", 1);
    let mut socket = tcp(served.address);
    socket.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut socket);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for line in [
        "upgrade: websocket",
        "connection: Upgrade",
        "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        "sec-websocket-protocol: chat.v2",
        "set-cookie: seen=1",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
    }
    let greeting = "Jörg chat.v2".as_bytes().to_vec();
    assert_eq!(read_frame(&mut socket).unwrap(), (0x81, greeting));
}

/// The client's name, as determined by a middleware.
#[derive(Clone, Default)]
struct User(String);

/// Takes the client's name from a header, like a middleware that authenticates clients.
async fn authenticate(mut request: axum::extract::Request, next: Next) -> Response {
    let name = request.headers().get("x-user");
    let name = name.and_then(|name| name.to_str().ok()).unwrap_or("nobody");
    let user = User(name.to_owned());
    request.extensions_mut().insert(user);
    next.run(request).await
}

#[test]
fn middleware_state_reaches_the_stream() {
    async fn live(Extension(user): Extension<User>, upgrade: WebsocketUpgrade) -> WebsocketUpgrade {
        upgrade.with_state(user)
    }
    let (_running, served) = serve_with(
        AsyncWebsocketApp::<(), User>::new_unlinked()
            .with_handshake_handler(|_, _| Ok(Accept::new().with_state(User("overruled".into()))))
            .with_connect_handler(|stream, _| stream.send(&stream.state.0)),
        |running| {
            Router::new()
                .route("/ws", any(live))
                .layer(middleware::from_fn(authenticate))
                .with_state(running.sender())
        },
    );
    for name in ["Ada", "Grace"] {
        let mut socket = tcp(served.address);
        let request = handshake_with(&format!("X-User: {name}"));
        socket.write_all(request.as_bytes()).unwrap();
        assert!(read_head(&mut socket).starts_with("HTTP/1.1 101 "));
        let greeting = (0x81, name.as_bytes().to_vec());
        assert_eq!(read_frame(&mut socket).unwrap(), greeting);
    }
}

#[test]
fn state_of_another_type_panics_and_names_both_types() {
    async fn live(upgrade: WebsocketUpgrade) -> Response {
        let given = AssertUnwindSafe(|| upgrade.with_state(7_u8));
        let panic = catch_unwind(given).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap().clone();
        (StatusCode::IM_A_TEAPOT, text).into_response()
    }
    let (_running, served) = serve_with(AsyncWebsocketApp::<(), User>::new_unlinked(), |running| {
        Router::new()
            .route("/ws", any(live))
            .with_state(running.sender())
    });
    let answer = response_to(served.address, &upgrade_request("/ws"));
    assert!(
        answer.contains("axum::User") && answer.contains("u8"),
        "{answer}"
    );
}

#[test]
fn axum_clients_can_call_procedures() {
    let procedures = || Procedures::new().on_call("echo", |call| Ok(call.data().clone()));
    let plain = AsyncWebsocketApp::<()>::new_unlinked().with_procedures(procedures());
    let asked = AsyncWebsocketApp::<()>::new_unlinked()
        .with_procedures(procedures())
        .with_handshake_handler(|_, _| Ok(Accept::new()));
    for app in [plain, asked] {
        let (_running, served) = serve(app);
        let request = "Sec-WebSocket-Protocol: other, humphrey_ws.procedures.v1";
        let mut socket = tcp(served.address);
        socket
            .write_all(handshake_with(request).as_bytes())
            .unwrap();
        let head = read_head(&mut socket);
        let chosen = "\r\nsec-websocket-protocol: humphrey_ws.procedures.v1\r\n";
        assert!(head.contains(chosen), "{head}");
        let call = b"\x02\0\0\0\x01\x04echo!";
        socket.write_all(&client_frame(0x82, call)).unwrap();
        let answer = b"\x04\0\0\0\x01!".to_vec();
        assert_eq!(read_frame(&mut socket).unwrap(), (0x82, answer));
    }
}

#[test]
fn axum_app_without_procedures_chooses_plain() {
    let accepting = || Ok(Accept::new().without_subprotocol());
    for app in [
        echo(),
        echo().with_handshake_handler(move |_, _| accepting()),
    ] {
        let (_running, served) = serve(app);
        let offer = "Sec-WebSocket-Protocol: humphrey_ws.procedures.v1, humphrey_ws.plain.v1";
        let mut socket = tcp(served.address);
        socket.write_all(handshake_with(offer).as_bytes()).unwrap();
        let head = read_head(&mut socket);
        let chosen = "\r\nsec-websocket-protocol: humphrey_ws.plain.v1\r\n";
        assert!(head.contains(chosen), "{head}");
    }
}

#[test]
fn handshake_handler_rejects_with_headers_and_body() {
    let app = echo().with_handshake_handler(|_, _| {
        Err(Reject::new(401)
            .with_header("WWW-Authenticate", "Bearer")
            .with_body("a token is needed\n"))
    });
    let (running, served) = serve(app);
    let answer = rejected(served.address, &upgrade_request("/ws"));
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(
        answer.contains("\r\nwww-authenticate: Bearer\r\n"),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\na token is needed\n"), "{answer}");
    let metrics = running.sender().metrics();
    assert_eq!(metrics.refused.handshake_handler, 1);
    assert_eq!(metrics.connections_opened, 0);
}

#[test]
fn panicking_handshake_handler_is_answered_with_500() {
    let (_running, served) = serve(echo().with_handshake_handler(|_, _| panic!("on purpose")));
    let answer = rejected(served.address, &upgrade_request("/ws"));
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
}

#[test]
fn blocked_handshake_handler_blocks_no_axum_thread() {
    let (go_on, gate) = channel::<()>();
    let gate = Mutex::new(gate);
    let app = echo().with_handshake_handler(move |_, _| {
        gate.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        Ok(Accept::new())
    });
    let running = app.start().unwrap();
    // There is only one handler thread.
    let served = Served::start(routes(&running).route("/", get(async || "alive")));
    let mut waiting = tcp(served.address);
    waiting
        .write_all(upgrade_request("/ws").as_bytes())
        .unwrap();
    eventually("the handler runs", || {
        running.sender().metrics().handlers_blocked == 1
    });
    let page = ask(served.address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(page.ends_with("alive"), "{page}");
    go_on.send(()).unwrap();
    assert!(read_head(&mut waiting).starts_with("HTTP/1.1 101 "));
}

/// Sends the name of the thread on which it is dropped.
struct Tells(std::sync::mpsc::Sender<String>);

impl Drop for Tells {
    fn drop(&mut self) {
        let thread = thread::current();
        let _ = self.0.send(thread.name().unwrap_or("nobody").to_owned());
    }
}

#[test]
fn client_gone_during_the_handshake_leaves_nothing() {
    let (go_on, gate) = channel::<()>();
    let gate = Mutex::new(gate);
    let (tells, told) = channel();
    let tells = Mutex::new(tells);
    let app: AsyncWebsocketApp<(), Option<Tells>> = AsyncWebsocketApp::new_unlinked()
        .with_limits(
            Limits::default()
                .connections_max(1)
                .peer_connections_max(Some(1)),
        )
        .with_handshake_handler(move |_, _| {
            gate.lock().unwrap().recv_timeout(DEADLINE).unwrap();
            let tells = Tells(tells.lock().unwrap().clone());
            Ok(Accept::new().with_state(Some(tells)))
        });
    let (running, served) = serve(app);
    let mut going = tcp(served.address);
    going.write_all(upgrade_request("/ws").as_bytes()).unwrap();
    eventually("the handler runs", || {
        running.sender().metrics().handlers_blocked == 1
    });
    // The handshake that waits for its handler occupies the only permit.
    let answer = rejected(served.address, &upgrade_request("/ws"));
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(going);
    go_on.send(()).unwrap();
    let thread = told.recv_timeout(DEADLINE).unwrap();
    assert!(thread.starts_with("humphrey_ws "), "{thread}");
    eventually("its permit is released", || {
        go_on.send(()).unwrap();
        let mut socket = tcp(served.address);
        socket.write_all(upgrade_request("/ws").as_bytes()).unwrap();
        read_head(&mut socket).starts_with("HTTP/1.1 101 ")
    });
}

#[test]
fn requests_waiting_for_the_handshake_share_a_bound() {
    let (go_on, gate) = channel::<()>();
    let gate = Mutex::new(gate);
    let app = echo()
        .with_limits(Limits::default().received_bytes_max(0))
        .with_handshake_handler(move |_, _| {
            let _ = gate.lock().unwrap().recv_timeout(DEADLINE);
            Ok(Accept::new())
        });
    let (running, served) = serve(app);
    // The budget holds two of the longest requests, so all further ones are refused.
    let long = handshake_with(&format!("Cookie: {}", "x".repeat(15 << 10)));
    let mut waiting: Vec<_> = (0..2)
        .map(|_| {
            let mut socket = tcp(served.address);
            socket.write_all(long.as_bytes()).unwrap();
            socket
        })
        .collect();
    eventually("both wait for the handshake handler", || {
        running.sender().metrics().handlers_blocked == 2
    });
    let answer = rejected(served.address, &long);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("too many handshakes wait"), "{answer}");
    assert_eq!(running.sender().metrics().refused.handshakes_max, 1);

    drop(go_on);
    for socket in &mut waiting {
        assert!(read_head(socket).starts_with("HTTP/1.1 101 "));
    }
    // The budget has room again.
    eventually("both clients are served", || {
        running.sender().connections() == 2
    });
    let mut socket = tcp(served.address);
    socket.write_all(long.as_bytes()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 101 "));
}

#[test]
fn connecting_and_leaving_clients_are_counted_once() {
    const CLIENTS: usize = 200;
    let app = echo().with_limits(
        Limits::default()
            .connections_max(CLIENTS)
            .peer_connections_max(Some(CLIENTS)),
    );
    let (running, served) = serve(app);
    for round in 1..=3 {
        let mut clients: Vec<Client> = (0..CLIENTS)
            .map(|_| Client::connect_to(served.address, "/ws"))
            .collect();
        for client in &mut clients {
            client.send("here");
        }
        for client in &mut clients {
            assert_eq!(client.receive_text(), "here");
        }
        let metrics = running.sender().metrics();
        assert_eq!(metrics.connections, CLIENTS as u64);
        assert_eq!(metrics.accepted, (round * CLIENTS) as u64);
        assert_eq!(metrics.refused.total(), 0);
        clients.into_iter().for_each(Client::close);
        eventually("all clients have left", || {
            running.sender().metrics().connections == 0
        });
    }
}

/// Connects as soon as a permit is free. A closed connection may hold its permit for a moment longer.
fn connect_when_free(address: SocketAddr) -> Client {
    let mut client = None;
    eventually("its permit is released", || {
        let connected = tungstenite::client(format!("ws://{address}/ws"), tcp(address));
        client = connected.ok().map(|(client, _)| Client(client));
        client.is_some()
    });
    client.expect("the client connects")
}

#[test]
fn connection_over_max_is_503_and_each_counts_once() {
    let app = echo().with_limits(Limits::default().connections_max(2));
    let (running, served) = serve(app);
    let first = Client::connect_to(served.address, "/ws");
    let _second = Client::connect_to(served.address, "/ws");
    let answer = rejected(served.address, &upgrade_request("/ws"));
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("too many connections"), "{answer}");
    assert_eq!(running.sender().metrics().refused.connections_max, 1);

    first.close();
    connect_when_free(served.address);
}

#[test]
fn message_rate_holds() {
    const PER_SECOND: u32 = 50;
    let limits = Limits::default().messages_per_second_max(Some(PER_SECOND));
    let (running, served) = serve(echo().with_limits(limits));
    let mut socket = socket_to_websocket(served.address, &[]);
    let begun = Instant::now();
    let frame = |n: i32| client_frame(0x81, n.to_string().as_bytes());
    let frames: Vec<u8> = (0..80).flat_map(frame).collect();
    // All at once: what is sent one by one may take longer than the rate does.
    socket.write_all(&frames).unwrap();
    for n in 0..80 {
        let echo = (0x81, n.to_string().into_bytes());
        assert_eq!(read_frame(&mut socket).unwrap(), echo);
        let allowed = f64::from(PER_SECOND) * (1.0 + begun.elapsed().as_secs_f64());
        assert!(f64::from(n) < allowed, "message {n}");
    }
    assert!(running.sender().metrics().reads_delayed > 0);
}

#[test]
fn address_limit_holds_and_connections_count_once() {
    let app = echo().with_limits(Limits::default().peer_connections_max(Some(2)));
    let (running, served) = serve(app);
    let mut first = Client::connect_to(served.address, "/ws");
    let _second = Client::connect_to(served.address, "/ws");
    first.send("served");
    assert_eq!(first.receive_text(), "served");
    let answer = rejected(served.address, &upgrade_request("/ws"));
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(
        answer.contains("too many connections from your address"),
        "{answer}"
    );
    assert_eq!(running.sender().metrics().refused.peer_connections_max, 1);

    first.close();
    connect_when_free(served.address);
}

#[test]
fn user_limit_holds_and_sessions_expire() {
    let app = echo()
        .with_limits(Limits::default().user_connections_max(Some(1)))
        .with_handshake_handler(|request, _| {
            let accept = Accept::new().user("ada");
            Ok(match request.query() {
                "brief" => accept.expires_at(std::time::SystemTime::now()),
                _ => accept,
            })
        });
    let (running, served) = serve(app);
    let mut brief = Client::connect_to(served.address, "/ws?brief");
    let (_, frame) = brief.receive_to_close();
    assert_eq!(u16::from(frame.unwrap().code), 3000);
    let first = connect_when_free(served.address);
    eventually("the client is registered", || {
        running.sender().connections_of("ada").len() == 1
    });
    let answer = rejected(served.address, &upgrade_request("/ws"));
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(
        answer.contains("too many connections of this user"),
        "{answer}"
    );
    first.close();
    connect_when_free(served.address);
}

#[test]
fn address_limit_without_client_addresses_is_reported() {
    let app = echo().with_limits(Limits::default().peer_connections_max(Some(2)));
    let running = app.start().unwrap();
    let served = Served::start_without_connect_info(routes(&running));
    let answer = rejected(served.address, &upgrade_request("/ws"));
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(
        answer.contains("into_make_service_with_connect_info"),
        "{answer}"
    );
}

#[test]
fn server_without_upgrade_support_is_reported() {
    let running = echo()
        .with_limits(Limits::default().connections_max(1))
        .start()
        .unwrap();
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    for _ in 0..2 {
        let request = Request::builder()
            .uri("/ws")
            .header("Host", "localhost")
            .header("Upgrade", "websocket")
            .header("Connection", "Upgrade")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .unwrap();
        let (mut parts, ()) = request.into_parts();
        let sender = running.sender();
        let extracted = WebsocketUpgrade::from_request_parts(&mut parts, &sender);
        let reject = runtime.block_on(extracted).unwrap_err();
        // Each attempt releases its permit.
        assert_eq!(reject.status(), 500);
        let words = String::from_utf8_lossy(reject.body());
        assert!(words.contains("use axum::serve"), "{words}");
    }
}

#[test]
fn trusted_proxy_sets_the_client_address() {
    let app = unlinked()
        .with_trusted_proxies(TrustedProxies::x_forwarded_for(["127.0.0.1"]))
        .with_connect_handler(|stream, _| {
            stream.send(Message::new(stream.client_ip().to_string()));
        });
    let (_running, served) = serve(app);
    let mut socket = tcp(served.address);
    let request = handshake_with("X-Forwarded-For: 192.0.2.7");
    socket.write_all(request.as_bytes()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 101 "));
    assert_eq!(
        read_frame(&mut socket).unwrap(),
        (0x81, b"192.0.2.7".to_vec())
    );
}

#[test]
fn http_2_websocket_is_refused_asking_for_http_1_1() {
    let (running, served) = serve(echo());
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answers = runtime.block_on(async {
        let socket = tokio::net::TcpStream::connect(served.address)
            .await
            .unwrap();
        let (mut requests, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        let mut answers = Vec::new();
        for method in [Method::GET, Method::CONNECT] {
            requests = requests.ready().await.unwrap();
            let mut request = Request::builder()
                .version(Version::HTTP_2)
                .method(&method)
                .uri(format!("http://{}/ws", served.address))
                .header("sec-websocket-version", "13")
                .body(())
                .unwrap();
            if method == Method::CONNECT {
                // RFC 8441: the first response contained the setting that permits extended CONNECT.
                assert!(requests.is_extended_connect_protocol_enabled());
                let protocol = h2::ext::Protocol::from_static("websocket");
                request.extensions_mut().insert(protocol);
            }
            let (answer, _) = requests.send_request(request, false).unwrap();
            let (head, mut body) = answer.await.unwrap().into_parts();
            let mut words = Vec::new();
            while let Some(part) = body.data().await {
                words.extend_from_slice(&part.unwrap());
            }
            answers.push((head.status, String::from_utf8(words).unwrap()));
        }
        answers
    });
    for (status, words) in answers {
        assert_eq!(status, StatusCode::HTTP_VERSION_NOT_SUPPORTED, "{words}");
        assert!(words.contains("HTTP/1.1 only"), "{words}");
    }
    assert_eq!(
        running.sender().metrics().handshake_failures.requirements,
        2
    );
}

#[test]
fn unix_socket_of_axum_is_handed_over() {
    let directory = env::temp_dir().join(format!("humphrey_ws_axum_{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join("socket");
    let running = unlinked()
        .with_message_handler(|stream, message, _| {
            stream.send(message);
            stream.send(stream.peer_addr().to_string());
        })
        .start()
        .unwrap();
    let router = routes(&running);
    let bound = path.clone();
    let _served = Served::with(async move |_, stopped| {
        let listener = UnixListener::bind(bound).unwrap();
        let served = axum::serve(listener, router);
        served.with_graceful_shutdown(stopped).await.unwrap();
    });
    eventually("the server listens", || UnixStream::connect(&path).is_ok());
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let socket = UnixStream::connect(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let (mut client, _) = tungstenite::client("ws://localhost/ws", socket).unwrap();
        client.send("echo".into()).unwrap();
        assert_eq!(client.read().unwrap(), "echo".into());
        addresses.push(client.read().unwrap());
    }
    assert_ne!(addresses[0], addresses[1]);
    assert_eq!(running.sender().metrics().refused.unserved, 0);
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn socket_with_a_layer_is_closed_with_1011() {
    let running = echo()
        .with_limits(Limits::default().connections_max(1))
        .start()
        .unwrap();
    let router = routes(&running);
    let served = Served::with(async move |listener, _| {
        for _ in 0..2 {
            let (socket, _) = listener.accept().await.unwrap();
            let (reading, writing) = socket.into_split();
            let socket = TokioIo::new(tokio::io::join(reading, writing));
            let service = TowerToHyperService::new(router.clone());
            let served = http1::Builder::new().serve_connection(socket, service);
            served.with_upgrades().await.unwrap();
            // The task that hands the socket over runs.
            tokio::task::yield_now().await;
        }
    });
    for _ in 0..2 {
        let (mut client, _) =
            tungstenite::client(format!("ws://{}/ws", served.address), tcp(served.address))
                .unwrap();
        let tungstenite::Message::Close(Some(frame)) = client.read().unwrap() else {
            panic!("no close frame");
        };
        assert_eq!(frame.code, CloseCode::Error);
        let reason = "plain connections only";
        assert!(frame.reason.contains(reason), "{}", frame.reason);
        // The connection no longer counts.
    }
    assert_eq!(running.sender().metrics().refused.unserved, 2);
}

#[test]
fn post_handler_notifies_any_number_of_subscribers() {
    async fn notify(State(sender): State<AsyncSender>, text: String) -> StatusCode {
        match sender.try_broadcast(Message::new(text)) {
            Ok(()) => StatusCode::ACCEPTED,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
    let running = unlinked()
        .with_connect_handler(|stream, _| stream.send(Message::new("subscribed")))
        .start()
        .unwrap();
    let router = Router::new()
        .route("/ws", any(upgrade))
        .route("/notify", post(notify))
        .with_state(running.sender());
    let served = Served::start(router);
    let notify = |text: &str| {
        let len = text.len();
        let head =
            format!("POST /notify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len}\r\n\r\n");
        let answer = ask(served.address, &(head + text));
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    };
    notify("nobody hears this");
    let mut subscribers: Vec<Client> = (0..3)
        .map(|_| Client::connect_to(served.address, "/ws"))
        .collect();
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.receive_text(), "subscribed");
    }
    notify("first");
    notify("second");
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.receive_text(), "first");
        assert_eq!(subscriber.receive_text(), "second");
    }
}

#[test]
fn stopped_app_closes_with_1001_and_answers_with_503() {
    let (running, served) = serve(echo());
    let mut client = Client::connect_to(served.address, "/ws");
    client.send("served");
    assert_eq!(client.receive_text(), "served");
    let sender = running.sender();
    let stopping = thread::spawn(move || running.shutdown(DEADLINE));
    let (_, frame) = client.receive_to_close();
    assert_eq!(frame.unwrap().code, CloseCode::Away);
    stopping.join().unwrap();
    let answer = rejected(served.address, &upgrade_request("/ws"));
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(sender.metrics().refused.unserved, 1);
}

#[test]
fn shutdown_during_a_handshake_answers_every_client() {
    let (go_on, gate) = channel::<()>();
    let gate = Mutex::new(gate);
    let app = echo().with_handshake_handler(move |_, _| {
        let _ = gate.lock().unwrap().recv_timeout(DEADLINE);
        Err(Reject::new(418))
    });
    let (running, served) = serve(app);
    let mut waiting = tcp(served.address);
    waiting
        .write_all(upgrade_request("/ws").as_bytes())
        .unwrap();
    let sender = running.sender();
    eventually("the handler runs", || {
        sender.metrics().handlers_blocked == 1
    });
    running.shutdown(Duration::from_millis(100));
    let answer = rejected(served.address, &upgrade_request("/ws"));
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    // The handshake whose handler outlives the app still gets a response.
    go_on.send(()).unwrap();
    let head = read_head(&mut waiting);
    assert!(head.starts_with("HTTP/1.1 418 "), "{head}");
}

#[test]
fn shutdown_after_the_extractor_answers_with_503() {
    let running = echo().start().unwrap();
    let sender = running.sender();
    let stopping = Arc::new(Mutex::new(Some(running)));
    let router: Router = Router::new()
        .route(
            "/ws",
            any(async move |upgrade: WebsocketUpgrade| {
                let running = stopping.lock().unwrap().take().unwrap();
                running.shutdown(DEADLINE);
                upgrade
            }),
        )
        .with_state(sender.clone());
    let served = Served::start(router);
    let answer = rejected(served.address, &upgrade_request("/ws"));
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(sender.metrics().refused.unserved, 1);
}

#[test]
fn custom_hyper_http1_server_hands_connections_over() {
    let running = echo().start().unwrap();
    let router = routes(&running);
    let served = Served::with(async move |listener, _| {
        let (socket, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(router);
        http1::Builder::new()
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades()
            .await
            .unwrap();
        // The runtime ends here, before the task that hands the socket over has run.
        tokio::task::yield_now().await;
    });
    let mut early = upgrade_request("/ws").into_bytes();
    early.extend(client_frame(0x81, b"early"));
    let mut socket = tcp(served.address);
    socket.write_all(&early).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 101 "));
    assert_eq!(read_frame(&mut socket).unwrap(), (0x81, b"early".to_vec()));
}

#[test]
fn client_before_the_app_runs_is_answered_with_503() {
    let app = echo();
    let router: Router = Router::new()
        .route("/ws", any(upgrade))
        .with_state(app.sender());
    let served = Served::start(router);
    let answer = rejected(served.address, &upgrade_request("/ws"));
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("is not running"), "{answer}");
    let _running = app.start().unwrap();
    let mut client = Client::connect_to(served.address, "/ws");
    client.send("now it does");
    assert_eq!(client.receive_text(), "now it does");
}

#[test]
fn app_serves_its_clients_after_axum_has_stopped() {
    let (_running, served) = serve(echo());
    let mut client = Client::connect_to(served.address, "/ws");
    // Waits until axum has no connection left.
    drop(served);
    client.send("still here");
    assert_eq!(client.receive_text(), "still here");
}

#[test]
fn handlers_run_on_app_threads_without_a_runtime() {
    let app = unlinked().with_message_handler(|stream, _, _| {
        let thread = thread::current().name().unwrap_or("nobody").to_owned();
        let has_runtime = runtime::Handle::try_current().is_ok();
        stream.send(Message::new(format!("{thread} {has_runtime}")));
    });
    let (_running, served) = serve(app);
    let mut client = Client::connect_to(served.address, "/ws");
    client.send("who?");
    let answer = client.receive_text();
    assert!(answer.starts_with("humphrey_ws "), "{answer}");
    assert!(answer.ends_with(" false"), "{answer}");
}

#[test]
fn axum_handler_can_inspect_and_refuse_a_client() {
    #[derive(Clone)]
    struct Site {
        live: AsyncSender,
        doors: Arc<HashMap<&'static str, bool>>,
    }
    impl FromRef<Site> for AsyncSender {
        fn from_ref(site: &Site) -> Self {
            site.live.clone()
        }
    }
    async fn door(
        State(site): State<Site>,
        uri: axum::http::Uri,
        upgrade: Result<WebsocketUpgrade, Reject>,
    ) -> Response {
        match (site.doors.get(uri.path()), upgrade) {
            (Some(true), Ok(upgrade)) => upgrade.into_response(),
            (_, Ok(_)) => (StatusCode::GONE, "closed").into_response(),
            (_, Err(reject)) => (StatusCode::IM_A_TEAPOT, reject.to_string()).into_response(),
        }
    }
    let running = echo()
        .with_limits(Limits::default().connections_max(1))
        .start()
        .unwrap();
    let site = Site {
        live: running.sender(),
        doors: Arc::new([("/open", true), ("/closed", false)].into()),
    };
    let served = Served::start(Router::new().fallback(door).with_state(site));
    for _ in 0..3 {
        let answer = response_to(served.address, &upgrade_request("/closed"));
        assert!(answer.starts_with("HTTP/1.1 410 "), "{answer}");
    }
    let plain = ask(
        served.address,
        "GET /open HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    assert!(plain.starts_with("HTTP/1.1 418 "), "{plain}");
    let mut client = Client::connect_to(served.address, "/open");
    client.send("in");
    assert_eq!(client.receive_text(), "in");
}

#[test]
fn violation_sent_with_the_request_closes_with_its_code() {
    let (_running, served) = serve(echo());
    let unmasked = [0x81, 0x01, b'x'];
    let mut socket = socket_to_websocket(served.address, &unmasked);
    let (first, payload) = read_frame(&mut socket).unwrap();
    assert_eq!((first, close_code(&payload)), (0x88, 1002));
}

#[test]
fn build_without_the_feature_depends_on_no_axum() {
    let tree = |features: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--package",
                "humphrey_ws",
                "--edges",
                "normal",
                "--prefix",
                "none",
            ])
            .args(["--offline", "--locked"])
            .args(features)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let has = |tree: &str, name: &str| {
        tree.lines()
            .any(|line| line.split(' ').next() == Some(name))
    };
    let with = tree(&["--features", "axum"]);
    let without = tree(&[]);
    for name in ["axum", "hyper", "hyper-util", "tokio", "http", "tower"] {
        assert!(has(&with, name), "{name}");
        assert!(!has(&without, name), "{name}");
    }
}
