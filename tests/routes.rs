//! Humphrey's HTTP routes on the app's own port, over real sockets.

use crate::support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use humphrey::SubApp;
use humphrey::handlers::serve_dir;
use humphrey::http::cors::Cors as HumphreyCors;
use humphrey::http::headers::HeaderType;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::{AsyncWebsocketApp, Cors, Limits, Message, Reject, RunningApp};
use support::{Client, DEADLINE, eventually, get_request, read_head, start, tcp, upgrade_request};

/// The folder whose files the routes serve.
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

const STOP: Duration = Duration::from_millis(100);

fn routes() -> SubApp<AtomicUsize> {
    SubApp::new()
        .with_stateless_route("/hello", |_| Response::new(StatusCode::OK, "Hello"))
        .with_route("/count", |_, count: Arc<AtomicUsize>| {
            let count = count.fetch_add(1, Ordering::SeqCst) + 1;
            Response::new(StatusCode::OK, count.to_string())
        })
        .with_path_aware_route("/aware/*", |request: Request, _, route| {
            Response::new(
                StatusCode::OK,
                format!("{route} {} {}", request.uri, request.query),
            )
        })
        .with_stateless_route("/echo", |request: Request| {
            Response::new(StatusCode::OK, request.content.unwrap_or_default())
        })
        .with_stateless_route("/bye", |_| {
            Response::new(StatusCode::OK, "bye").with_header(HeaderType::Connection, "close")
        })
        .with_stateless_route("/panic", |_| panic!("a panic on purpose"))
        .with_path_aware_route("/files/*", serve_dir(EXAMPLES))
}

fn serve() -> (RunningApp, SocketAddr) {
    start(AsyncWebsocketApp::<AtomicUsize>::new().with_routes(routes()))
}

/// Reads one response on a persistent connection, whose body is text.
fn read_response(socket: &mut TcpStream) -> (String, String) {
    let (head, body) = support::read_response(socket);
    (head, String::from_utf8(body).unwrap())
}

fn ask(address: SocketAddr, request: &str) -> (String, String) {
    let mut socket = tcp(address);
    socket.write_all(request.as_bytes()).unwrap();
    read_response(&mut socket)
}

#[test]
fn routes_of_every_kind_are_served_beside_websockets() {
    let (running, address) = serve();
    assert_eq!(ask(address, &get_request("/hello")).1, "Hello");
    assert_eq!(ask(address, &get_request("/count")).1, "1");
    assert_eq!(ask(address, &get_request("/count")).1, "2");
    assert_eq!(
        ask(address, &get_request("/aware/of?this=too")).1,
        "/aware/* /aware/of this=too"
    );
    let (head, body) = ask(address, &get_request("/files/echo.rs"));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert_eq!(
        body,
        std::fs::read_to_string(format!("{EXAMPLES}/echo.rs")).unwrap()
    );
    assert!(
        ask(address, &get_request("/files/../Cargo.toml"))
            .0
            .starts_with("HTTP/1.1 400 ")
    );
    assert!(
        ask(address, &get_request("/nowhere"))
            .0
            .starts_with("HTTP/1.1 404 ")
    );
    // Every path can still be upgraded.
    Client::connect_to(address, "/hello").close();
    running.shutdown(STOP);
}

#[test]
fn responses_have_the_required_headers_once() {
    let (running, address) = serve();
    let (head, _) = ask(address, &get_request("/hello"));
    for name in ["Content-Length: ", "Date: ", "Server: "] {
        assert_eq!(head.matches(name).count(), 1, "{name} in {head}");
    }
    assert!(!head.contains("Connection: "), "{head}");
    running.shutdown(STOP);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (running, address) = serve();
    let mut socket = tcp(address);
    let burst: String = (0..50).map(|_| get_request("/count")).collect();
    socket.write_all(burst.as_bytes()).unwrap();
    for n in 1..=50 {
        assert_eq!(read_response(&mut socket).1, n.to_string());
    }
    // The connection can still become a WebSocket.
    socket.write_all(upgrade_request("/").as_bytes()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 101 "));
    running.shutdown(STOP);
}

#[test]
fn connection_ends_when_either_side_asks() {
    let (running, address) = serve();
    let endings = [
        get_request("/bye"),
        get_request("/hello").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"),
        "GET /hello HTTP/1.0\r\n\r\n".to_owned(),
    ];
    for request in endings {
        let mut socket = tcp(address);
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    }
    let mut old = tcp(address);
    old.write_all(b"GET /count HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        .unwrap();
    let (head, _) = read_response(&mut old);
    assert!(head.contains("\r\nConnection: keep-alive\r\n"), "{head}");
    old.write_all(b"GET /count HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(read_response(&mut old).1, "2");
    running.shutdown(STOP);
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let (running, address) = serve();
    let mut socket = tcp(address);
    socket
        .write_all(get_request("/hello").replace("GET", "HEAD").as_bytes())
        .unwrap();
    let head = read_head(&mut socket);
    assert!(head.contains("\r\nContent-Length: 5\r\n"), "{head}");
    // The next bytes are the next response, not a body.
    socket.write_all(get_request("/count").as_bytes()).unwrap();
    assert_eq!(read_response(&mut socket).1, "1");
    running.shutdown(STOP);
}

#[test]
fn bodies_are_read_by_length_chunks_or_after_continue() {
    let (running, address) = serve();
    let post = "POST /echo HTTP/1.1\r\nHost: localhost\r\n";
    assert_eq!(
        ask(address, &format!("{post}Content-Length: 5\r\n\r\n12345")).1,
        "12345"
    );
    let chunked =
        format!("{post}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n");
    assert_eq!(ask(address, &chunked).1, "abcdefg");
    let mut socket = tcp(address);
    socket
        .write_all(format!("{post}Content-Length: 3\r\nExpect: 100-continue\r\n\r\n").as_bytes())
        .unwrap();
    assert_eq!(read_head(&mut socket), "HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"yes").unwrap();
    assert_eq!(read_response(&mut socket).1, "yes");
    running.shutdown(STOP);
}

#[test]
fn oversized_or_contradictory_request_has_its_status() {
    let limits = Limits::default().body_bytes_max(1000).head_bytes_max(2000);
    let (running, address) = start(
        AsyncWebsocketApp::<AtomicUsize>::new()
            .with_limits(limits)
            .with_routes(routes()),
    );
    let post = "POST /echo HTTP/1.1\r\nHost: localhost\r\n";
    let cases = [
        (format!("{post}Content-Length: 1001\r\n\r\n"), 413),
        (
            format!("{post}Content-Length: 1152921504606846976\r\n\r\n"),
            413,
        ),
        (
            format!("{post}Transfer-Encoding: chunked\r\n\r\n3e9\r\n"),
            413,
        ),
        (format!("{post}X: {}\r\n\r\n", "x".repeat(2000)), 431),
        (
            format!("{post}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            400,
        ),
        (
            format!("{post}Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            400,
        ),
        (format!("{post}Transfer-Encoding: gzip\r\n\r\n"), 501),
        (get_request("/hello").replace("GET", "PATCH"), 501),
        (get_request("/hello").replace("HTTP/1.1", "HTTP/2.0"), 505),
        (
            format!("{post}Expect: a miracle\r\nContent-Length: 1\r\n\r\n"),
            417,
        ),
    ];
    for (request, status) in cases {
        let (head, body) = ask(address, &request);
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {head}"
        );
        assert!(!body.is_empty(), "{request}: the body says why");
    }
    running.shutdown(STOP);
}

#[test]
fn panic_in_a_route_is_answered_with_500() {
    let (running, address) = serve();
    let (head, _) = ask(address, &get_request("/panic"));
    assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
    for header in [
        "Content-Type",
        "X-Content-Type-Options",
        "Content-Security-Policy",
    ] {
        assert!(head.contains(&format!("\r\n{header}: ")), "{head}");
    }
    assert_eq!(ask(address, &get_request("/hello")).1, "Hello");
    running.shutdown(STOP);
}

#[test]
fn blocked_route_delays_no_other_client() {
    let (unblock, blocked) = channel::<()>();
    let blocked = std::sync::Mutex::new(blocked);
    let routes = SubApp::new()
        .with_stateless_route("/slow", move |_| {
            blocked.lock().unwrap().recv().unwrap();
            Response::new(StatusCode::OK, "slow")
        })
        .with_stateless_route("/quick", |_| Response::new(StatusCode::OK, "quick"));
    let app = AsyncWebsocketApp::<()>::new_with_config((), 2, 1)
        .with_shards(1)
        .with_routes(routes);
    let (running, address) = start(app);
    let mut slow = tcp(address);
    slow.write_all(get_request("/slow").as_bytes()).unwrap();
    assert_eq!(ask(address, &get_request("/quick")).1, "quick");
    unblock.send(()).unwrap();
    assert_eq!(read_response(&mut slow).1, "slow");
    running.shutdown(STOP);
}

#[test]
fn route_notifies_everyone_through_a_sender() {
    let app = AsyncWebsocketApp::<()>::new();
    let sender = app.sender();
    let (running, address) = start(app.with_routes(SubApp::new().with_stateless_route(
        "/notify",
        move |_| {
            sender.broadcast(Message::new("news"));
            Response::new(StatusCode::OK, "told")
        },
    )));
    // The route also succeeds without recipients.
    assert_eq!(ask(address, &get_request("/notify")).1, "told");
    let mut client = Client::connect(address);
    eventually("the client is connected", || {
        running.sender().connections() == 1
    });
    assert_eq!(ask(address, &get_request("/notify")).1, "told");
    assert_eq!(client.receive_text(), "news");
    running.shutdown(STOP);
}

#[test]
fn rejection_is_a_response_with_any_status() {
    let reject = |status| {
        move |_| -> Response {
            let reject = Reject::new(status).with_header("Retry-After", "9");
            reject.with_body("wait\n").into()
        }
    };
    let routes = SubApp::new()
        .with_stateless_route("/404", reject(404))
        .with_stateless_route("/429", reject(429))
        .with_stateless_route("/invalid", reject(99));
    let (running, address) = start(AsyncWebsocketApp::<()>::new().with_routes(routes));
    for (path, expected) in [("/404", "404 Not Found"), ("/429", "429 Too Many Requests")] {
        let (head, body) = ask(address, &get_request(path));
        let headers = head.to_ascii_lowercase();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {expected}\r\n")),
            "{head}"
        );
        assert!(headers.contains("\r\nretry-after: 9\r\n"), "{head}");
        assert!(
            headers.contains("\r\nx-content-type-options: nosniff\r\n"),
            "{head}"
        );
        assert!(!headers.contains("x-humphrey-ws"), "{head}");
        assert_eq!(body, "wait\n");
    }
    let (head, _) = ask(address, &get_request("/invalid"));
    assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
    running.shutdown(STOP);
}

#[test]
fn sub_app_is_selected_by_host() {
    let named = |name: &'static str| {
        SubApp::<()>::new().with_stateless_route("/", move |_| Response::new(StatusCode::OK, name))
    };
    let mut admin = named("admin");
    admin.host = "admin.*".to_owned();
    let (running, address) = start(
        AsyncWebsocketApp::<()>::new()
            .with_routes(admin)
            .with_routes(named("everyone")),
    );
    assert_eq!(
        ask(
            address,
            &get_request("/").replace("localhost", "admin.localhost")
        )
        .1,
        "admin"
    );
    assert_eq!(ask(address, &get_request("/")).1, "everyone");
    running.shutdown(STOP);
}

#[test]
fn foreign_origins_are_allowed_as_configured() {
    let cors = Cors::origins(["https://a.example"]).with_headers(["Content-Type"]);
    let (running, address) = start(
        AsyncWebsocketApp::<AtomicUsize>::new()
            .with_cors(cors)
            .with_routes(routes()),
    );
    let from = |origin: &str, method: &str| {
        get_request("/hello")
            .replace("GET", method)
            .replace("\r\n\r\n", &format!("\r\nOrigin: {origin}\r\n\r\n"))
    };
    let (allowed, _) = ask(address, &from("https://a.example", "GET"));
    assert!(
        allowed.contains("\r\nAccess-Control-Allow-Origin: https://a.example\r\n"),
        "{allowed}"
    );
    assert!(allowed.contains("\r\nVary: Origin\r\n"), "{allowed}");
    let (refused, _) = ask(address, &from("https://b.example", "GET"));
    assert!(
        !refused.contains("Access-Control-Allow-Origin"),
        "{refused}"
    );
    let (preflight, _) = ask(address, &from("https://a.example", "OPTIONS"));
    assert!(preflight.starts_with("HTTP/1.1 204 "), "{preflight}");
    assert!(
        preflight.contains("\r\nAccess-Control-Allow-Headers: Content-Type\r\n"),
        "{preflight}"
    );
    assert!(
        preflight.contains("\r\nAccess-Control-Allow-Methods: GET, "),
        "{preflight}"
    );
    running.shutdown(STOP);
    let (running, address) = start(
        AsyncWebsocketApp::<AtomicUsize>::new()
            .with_cors(Cors::any())
            .with_routes(routes()),
    );
    assert!(
        ask(address, &get_request("/hello"))
            .0
            .contains("\r\nAccess-Control-Allow-Origin: *\r\n")
    );
    running.shutdown(STOP);
}

#[test]
fn unsupported_sub_app_is_refused_with_advice() {
    let app = || AsyncWebsocketApp::<AtomicUsize>::new().with_address("127.0.0.1:0");
    let with_cors = SubApp::new().with_cors(HumphreyCors::wildcard());
    let error = app().with_routes(with_cors).start().unwrap_err();
    assert!(error.to_string().contains("with_cors"), "{error}");
    let with_websocket =
        SubApp::new().with_websocket_route("/ws", |_: Request, _, _: Arc<AtomicUsize>| {});
    let error = app().with_routes(with_websocket).start().unwrap_err();
    assert!(error.to_string().contains("AsyncStream::path"), "{error}");
    let unlinked = AsyncWebsocketApp::<AtomicUsize>::new_unlinked().with_routes(routes());
    let error = unlinked.start().unwrap_err();
    assert!(error.to_string().contains("Humphrey app"), "{error}");
}

#[test]
fn request_without_routes_is_answered_with_426() {
    let (running, address) = start(AsyncWebsocketApp::<()>::new());
    let (head, body) = ask(address, &get_request("/"));
    assert!(head.starts_with("HTTP/1.1 426 "), "{head}");
    assert!(head.contains("\r\nUpgrade: websocket\r\n"), "{head}");
    assert!(!body.is_empty());
    running.shutdown(STOP);
}

#[test]
fn request_in_progress_is_answered_before_shutdown_ends() {
    let (unblock, blocked) = channel::<()>();
    let blocked = std::sync::Mutex::new(blocked);
    let (entered, inside) = channel();
    let routes = SubApp::new().with_stateless_route("/slow", move |_| {
        entered.send(()).unwrap();
        blocked.lock().unwrap().recv().unwrap();
        Response::new(StatusCode::OK, "done")
    });
    let (running, address) = start(AsyncWebsocketApp::<()>::new().with_routes(routes));
    let mut socket = tcp(address);
    socket.write_all(get_request("/slow").as_bytes()).unwrap();
    inside.recv_timeout(DEADLINE).unwrap();
    running.sender().shutdown(DEADLINE);
    unblock.send(()).unwrap();
    assert_eq!(read_response(&mut socket).1, "done");
    assert_eq!(
        socket.read(&mut [0]).unwrap(),
        0,
        "the connection stayed open"
    );
    drop(socket);
    running.join();
}

#[test]
fn dot_segments_never_reach_file_routes() {
    // Humphrey's own handler appends the path to its directory without checks.
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new().with_routes(
        SubApp::new().with_route("/*", humphrey::handlers::serve_as_file_path(EXAMPLES)),
    );
    let (running, address) = start(app);
    assert!(
        ask(address, &get_request("/echo.rs"))
            .0
            .starts_with("HTTP/1.1 200 ")
    );
    for path in [
        "/../Cargo.toml",
        "/chat/../../Cargo.toml",
        "/./echo.rs",
        "/%2e%2e/Cargo.toml",
        "/%2E%2E%2FCargo.toml",
        "/..%2fCargo.toml",
        "/..%5cCargo.toml",
        "/..\\Cargo.toml",
        "/echo.rs%00.html",
        "http://localhost/../Cargo.toml",
    ] {
        let (head, body) = ask(address, &get_request(path));
        assert!(head.starts_with("HTTP/1.1 400 "), "{path}: {head}");
        assert!(!body.contains("[package]"), "{path}");
    }
    running.shutdown(STOP);
}

/// Returns the response to a head whose body never arrives.
fn ask_without_body(address: SocketAddr, head: &str) -> String {
    let mut socket = tcp(address);
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.write_all(head.as_bytes()).unwrap();
    read_head(&mut socket)
}

#[test]
fn early_status_is_sent_before_the_body_is_read() {
    let app = AsyncWebsocketApp::<AtomicUsize>::new()
        .with_routes(routes())
        .with_body_guard(|request, _| match request.header("Authorization") {
            Some("Bearer secret") => Ok(()),
            _ => Err(Reject::new(401).with_header("WWW-Authenticate", "Bearer")),
        });
    let (running, address) = start(app);
    for expect in ["", "Expect: 100-continue\r\n"] {
        let head = |method: &str, path: &str, length: usize, header: &str| {
            format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\n{expect}{header}Content-Length: {length}\r\n\r\n"
            )
        };
        let secret = "Authorization: Bearer secret\r\n";
        for (request, status) in [
            (head("POST", "/echo", 100, ""), 401),
            (head("POST", "/nowhere", 100, secret), 404),
            (head("POST", "/echo", 10 << 20, secret), 413),
            (head("BREW", "/echo", 100, secret), 501),
        ] {
            let answer = ask_without_body(address, &request);
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
            assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        }
    }
    let asked = "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\
        Authorization: Bearer secret\r\nContent-Length: 4\r\n\r\n";
    let mut socket = tcp(address);
    socket.write_all(asked.as_bytes()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 100 "));
    socket.write_all(b"body").unwrap();
    assert_eq!(read_response(&mut socket).1, "body");
    running.shutdown(STOP);
}

#[test]
fn declared_methods_are_answered_and_others_refused_with_allow() {
    let (running, address) = start(
        AsyncWebsocketApp::<AtomicUsize>::new()
            .with_routes(routes())
            .with_route_methods("/count", ["GET"])
            .with_route_methods("/echo", ["POST", "PUT"]),
    );
    let asked = |method: &str, path: &str| {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let mut socket = tcp(address);
        socket.write_all(request.as_bytes()).unwrap();
        read_head(&mut socket)
    };
    for (path, allow) in [
        ("/count", "GET, HEAD, OPTIONS"),
        ("/echo", "POST, PUT, OPTIONS"),
        ("*", "GET, HEAD, POST, PUT, DELETE, OPTIONS"),
    ] {
        let head = asked("OPTIONS", path);
        assert!(head.starts_with("HTTP/1.1 204 "), "{path}: {head}");
        assert!(
            head.contains(&format!("Allow: {allow}\r\n")),
            "{path}: {head}"
        );
    }
    for (method, path, allow) in [
        ("POST", "/count", "GET, HEAD, OPTIONS"),
        ("PATCH", "/count", "GET, HEAD, OPTIONS"),
        ("GET", "/echo", "POST, PUT, OPTIONS"),
        ("HEAD", "/echo", "POST, PUT, OPTIONS"),
    ] {
        let head = asked(method, path);
        assert!(head.starts_with("HTTP/1.1 405 "), "{method} {path}: {head}");
        assert!(
            head.contains(&format!("Allow: {allow}\r\n")),
            "{method} {path}: {head}"
        );
    }
    assert!(asked("HEAD", "/count").starts_with("HTTP/1.1 200 "));
    assert!(asked("PUT", "/echo").starts_with("HTTP/1.1 200 "));
    assert!(
        asked("DELETE", "/hello").starts_with("HTTP/1.1 200 "),
        "undeclared: as ever"
    );
    assert!(asked("PATCH", "/hello").starts_with("HTTP/1.1 501 "));
    assert!(asked("POST", "/nowhere").starts_with("HTTP/1.1 404 "));
    running.shutdown(STOP);
}

#[test]
fn refusal_of_head_never_has_a_body() {
    let app = AsyncWebsocketApp::<AtomicUsize>::new()
        .with_limits(
            Limits::default()
                .body_bytes_max(10)
                .handshake_timeout(Duration::from_millis(200)),
        )
        .with_routes(routes())
        .with_route_methods("/count", ["GET"])
        .with_body_guard(|request, _| match request.query() {
            "" => Ok(()),
            _ => Err(Reject::new(401).with_body("a token is needed")),
        });
    let (running, address) = start(app);
    for (path, framing, status) in [
        ("/hello", "Content-Length: 11\r\n\r\n", 413),
        ("/hello", "Content-Length: 1, 2\r\n\r\n", 400),
        ("/hello", "Transfer-Encoding: gzip\r\n\r\n", 501),
        ("/hello", "Expect: tea\r\n\r\n", 417),
        ("/hello", "Transfer-Encoding: chunked\r\n\r\n?\r\n", 400),
        ("/hello", "Transfer-Encoding: chunked\r\n\r\nff\r\n", 413),
        ("/hello", "Content-Length: 5\r\n\r\nslow", 408),
        ("/hello?", "Content-Length: 5\r\n\r\n", 408),
        ("/hello?no", "Content-Length: 5\r\n\r\n", 401),
        ("/nowhere", "Content-Length: 5\r\n\r\n", 404),
        ("/count", "Sec-WebSocket-Key: x\r\n\r\n", 426),
    ] {
        let mut socket = tcp(address);
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n{framing}");
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answer}"
        );
        assert!(answer.ends_with("\r\n\r\n"), "{request}: {answer}");
        assert_eq!(answer.matches("\r\n\r\n").count(), 1, "{answer}");
    }
    running.shutdown(STOP);
}

#[test]
fn guard_and_declared_methods_answer_pages_of_allowed_origins() {
    let app = AsyncWebsocketApp::<AtomicUsize>::new()
        .with_routes(routes())
        .with_route_methods("/echo", ["POST", "OPTIONS", "POST"])
        .with_cors(Cors::origins(["https://example.com"]))
        .with_body_guard(|_, _| Err(Reject::new(401).with_header("vary", "Cookie")));
    let (running, address) = start(app);
    let asked = |line: &str, rest: &str| {
        let head =
            format!("{line} HTTP/1.1\r\nHost: x\r\nOrigin: https://example.com\r\n{rest}\r\n");
        ask_without_body(address, &head)
    };
    let allowed = "Access-Control-Allow-Origin: https://example.com\r\n";
    let guarded = asked("POST /echo", "Content-Length: 5\r\n");
    assert!(guarded.starts_with("HTTP/1.1 401 "), "{guarded}");
    assert!(guarded.contains(allowed), "{guarded}");
    assert_eq!(guarded.to_lowercase().matches("vary: ").count(), 1);
    let wrong = asked("PUT /echo", "Content-Length: 5\r\n");
    assert!(wrong.starts_with("HTTP/1.1 405 "), "{wrong}");
    assert!(wrong.contains(allowed) && wrong.contains("Allow: POST, OPTIONS\r\n"));
    let preflight = asked("OPTIONS /echo", "Access-Control-Request-Method: PUT\r\n");
    assert!(preflight.starts_with("HTTP/1.1 204 "), "{preflight}");
    assert!(preflight.contains("Access-Control-Allow-Methods: POST, OPTIONS\r\n"));
    running.shutdown(STOP);
}

#[test]
fn declared_method_impossible_for_routes_fails_the_start() {
    for method in ["PATCH", "get", ""] {
        let app = AsyncWebsocketApp::<AtomicUsize>::new()
            .with_address("127.0.0.1:0")
            .with_routes(routes())
            .with_route_methods("/echo", ["POST", method]);
        let error = app.start().map(drop).unwrap_err().to_string();
        assert!(error.contains("with_route_methods"), "{method}: {error}");
    }
}

#[test]
fn bodies_beyond_the_common_bound_get_503_while_handlers_block() {
    let (release, gate) = channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let app = AsyncWebsocketApp::<()>::new_with_config((), 1, 2)
        .with_routes(SubApp::new().with_stateless_route("/block", move |_| {
            let _ = gate.lock().unwrap().recv();
            Response::new(StatusCode::OK, "done")
        }))
        .with_shards(1)
        .with_limits(
            Limits::default()
                .body_bytes_max(64 << 10)
                .bodies_bytes_max(256 << 10),
        );
    let (running, address) = start(app);
    let body = "x".repeat(60 << 10);
    let request = format!(
        "POST /block HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut sockets: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut socket = tcp(address);
            socket.write_all(request.as_bytes()).unwrap();
            socket
        })
        .collect();
    eventually("the other requests are refused", || {
        running.sender().metrics().refused.unserved >= 15
    });
    drop(release);
    let heads: Vec<String> = sockets.iter_mut().map(read_head).collect();
    let with = |status: &str| heads.iter().filter(|head| head.contains(status)).count();
    assert_eq!(with(" 200 ") + with(" 503 "), 20);
    assert!(with(" 200 ") >= 3, "{heads:?}");
    running.shutdown(STOP);
}
