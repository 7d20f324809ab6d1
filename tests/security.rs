//! Access control by origin, host, address and proxy, and the safety of log lines against input of clients.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, Once};
use std::thread::spawn;

use humphrey::http::{Request, Response, StatusCode};
use humphrey::{App, SubApp};
use humphrey_ws::{
    Accept, AllowedHosts, AsyncSender, AsyncWebsocketApp, Limits, Message, Origins, Reject,
    RunningApp, Subscription, TrustedProxies, async_websocket_handler,
};
use support::{
    Client, DEADLINE, client_frame, close_code, eventually, free_address, read_frame, read_head,
    start, tcp,
};

/// The log lines of the library in this process. Each test recognises its own lines by their text.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Recorder;

impl log::Log for Recorder {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // The clients of other tests log, too.
        metadata.target().starts_with("humphrey_ws")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            LOG.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn record_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Recorder).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
}

fn logged(what: &str) -> Vec<String> {
    let log = LOG.lock().unwrap();
    log.iter()
        .filter(|line| line.contains(what))
        .cloned()
        .collect()
}

/// Waits until all earlier log lines of a shard are written, which a separate thread does in order.
fn wait_for_log(address: SocketAddr) {
    let mut socket = tcp(address);
    let from = socket.local_addr().unwrap().to_string();
    socket.write_all(b"nonsense\r\n\r\n").unwrap();
    eventually("a later line is logged", || {
        !logged(&format!("{from} sent a request that can't be served")).is_empty()
    });
}

fn echo() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new().with_message_handler(|stream, message, _| stream.send(message))
}

/// Performs a handshake with these header lines from this local address. Returns the socket and the response.
fn shake_hands_from(ip: &str, to: SocketAddr, path: &str, headers: &str) -> (TcpStream, String) {
    let mut socket = match ip {
        "127.0.0.1" => tcp(to),
        ip => tcp_from(ip, to),
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {to}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    socket.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut socket);
    (socket, head)
}

fn tcp_from(ip: &str, to: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&fd, &SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
    connect(&fd, &to).unwrap();
    let socket = TcpStream::from(fd);
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn shake_hands(to: SocketAddr, headers: &str) -> (TcpStream, String) {
    shake_hands_from("127.0.0.1", to, "/", headers)
}

fn status(head: &str) -> u16 {
    head[9..12].parse().unwrap()
}

fn assert_echoes(socket: &mut TcpStream) {
    socket.write_all(&client_frame(0x81, b"hello")).unwrap();
    assert_eq!(read_frame(socket).unwrap(), (0x81, b"hello".to_vec()));
}

/// Starts an app that is linked to a Humphrey app. Returns the app and the address.
fn linked(app: AsyncWebsocketApp<()>) -> (RunningApp, SocketAddr) {
    let hook = app.connect_hook().unwrap();
    let running = app.start().unwrap();
    let address = free_address();
    let humphrey: App<()> =
        App::new_with_config(2, ()).with_websocket_route("/*", async_websocket_handler(hook));
    spawn(move || humphrey.run(address).unwrap());
    (running, address)
}

fn origins(sender: &AsyncSender) -> u64 {
    sender.metrics().refused.origin
}

#[test]
fn same_origin_accepts_the_own_page_and_refuses_others() {
    let app = echo().with_allowed_origins(Origins::Same);
    let sender = app.sender();
    let (_running, address) = start(app);
    let port = address.port();
    for foreign in [
        "Origin: http://evil.example\r\n".to_owned(),
        "Origin: null\r\n".to_owned(),
        "Origin: \r\n".to_owned(),
        format!("Origin: http://localhost:{port}\r\n"),
        format!("Origin: http://{address}, http://evil.example\r\n"),
    ] {
        let before = origins(&sender);
        let (mut socket, head) = shake_hands(address, &foreign);
        assert_eq!(status(&head), 403, "{foreign}");
        let mut body = String::new();
        socket.read_to_string(&mut body).unwrap();
        assert!(body.contains("origin"), "{body}");
        assert_eq!(origins(&sender), before + 1, "{foreign}");
    }
    for own in [format!("Origin: http://{address}\r\n"), String::new()] {
        let (mut socket, head) = shake_hands(address, &own);
        assert_eq!(status(&head), 101, "{own}");
        assert_echoes(&mut socket);
    }
}

#[test]
fn origin_list_accepts_only_listed_origins() {
    let (_running, address) =
        start(echo().with_allowed_origins(Origins::list(["https://example.com"])));
    let status_of = |origin: &str| {
        let (_, head) = shake_hands(address, &format!("Origin: {origin}\r\n"));
        status(&head)
    };
    assert_eq!(status_of("https://example.com"), 101);
    assert_eq!(status_of("http://example.com"), 403);
    assert_eq!(status_of(&format!("http://{address}")), 403);
}

#[test]
fn origins_are_checked_in_a_linked_app() {
    let app = AsyncWebsocketApp::<()>::new_unlinked()
        .with_message_handler(|stream, message, _| stream.send(message))
        .with_allowed_origins(Origins::Same);
    let sender = app.sender();
    let (_running, address) = linked(app);
    let (_, head) = shake_hands(address, "Origin: http://evil.example\r\n");
    assert_eq!(status(&head), 403);
    assert_eq!(origins(&sender), 1);
    let (mut socket, head) = shake_hands(address, &format!("Origin: http://{address}\r\n"));
    assert_eq!(status(&head), 101);
    assert_echoes(&mut socket);
    assert_eq!(sender.metrics().connections_opened, 1);
}

#[test]
fn unset_origins_accept_all_and_log_a_foreign_one_once() {
    record_log();
    let (_running, address) = start(echo());
    let (_, head) = shake_hands(address, &format!("Origin: http://{address}\r\n"));
    assert_eq!(status(&head), 101);
    // Lines are logged after the response, in order. They name the origin, because other tests of this process log too.
    let said = |origin: &str| {
        wait_for_log(address);
        let lines = logged("with_allowed_origins").into_iter();
        lines.filter(|line| line.contains(origin)).count()
    };
    let (first, second) = (
        "http://first-of-two.example",
        "http://second-of-two.example",
    );
    let (_, head) = shake_hands(address, &format!("Origin: {first}\r\n"));
    assert_eq!(status(&head), 101);
    assert_eq!(said(first), 1);
    let (_, head) = shake_hands(address, &format!("Origin: {second}\r\n"));
    assert_eq!(status(&head), 101);
    assert_eq!(said(second), 0);
}

#[test]
fn log_lines_contain_no_control_characters() {
    record_log();
    let (_running, address) = start(echo().with_allowed_origins(Origins::Same));
    // U+009B begins an escape sequence of terminals. U+202E reverses the text.
    let origin = "http://mark\u{9b}31m\u{202e}.example";
    let (mut socket, head) = shake_hands_from(
        "127.0.0.1",
        address,
        "/pa%9Bth",
        &format!("Origin: {origin}\r\n"),
    );
    assert_eq!(status(&head), 403);
    let mut body = Vec::new();
    socket.read_to_end(&mut body).unwrap();
    assert!(body.is_ascii());
    wait_for_log(address);
    let lines = logged("http://mark");
    assert_eq!(lines.len(), 1, "{lines:?}");
    // A close reason, whose text the client chooses.
    let (mut socket, _) = shake_hands(address, "");
    socket
        .write_all(&client_frame(0x88, b"\x03\xe8mark\x1b[31m"))
        .unwrap();
    assert_eq!(close_code(&read_frame(&mut socket).unwrap().1), 1000);
    wait_for_log(address);
    for line in LOG.lock().unwrap().iter() {
        assert!(
            !line.chars().any(|c| c.is_control() || c == '\u{202e}'),
            "{line:?}"
        );
    }
}

#[test]
fn connections_per_address_are_limited_independently() {
    let app = echo().with_limits(Limits::default().peer_connections_max(Some(3)));
    let sender = app.sender();
    let (_running, address) = start(app);
    // A connection that sends nothing counts too.
    let _silent = tcp(address);
    let mut held: Vec<_> = (0..2).map(|_| Client::connect(address)).collect();
    let mut fourth = tcp(address);
    let head = read_head(&mut fourth);
    assert_eq!(
        status(&head),
        429,
        "the connection is refused before its request"
    );
    assert!(head.contains("Retry-After"), "{head}");
    let metrics = sender.metrics();
    assert_eq!(
        (metrics.refused.peer_connections_max, metrics.accepted),
        (1, 4)
    );
    let (mut other, head) = shake_hands_from("127.0.0.2", address, "/", "");
    assert_eq!(status(&head), 101);
    assert_echoes(&mut other);
    held.pop().unwrap().close();
    eventually("the permit is released", || {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let asked = socket.write_all(support::upgrade_request("/").as_bytes());
        let mut answer = [0; 12];
        asked.is_ok() && socket.read_exact(&mut answer).is_ok() && answer.ends_with(b"101")
    });
}

#[test]
fn handshakes_over_the_address_rate_get_429() {
    let app = echo().with_limits(Limits::default().peer_handshakes_per_second_max(Some(1)));
    let sender = app.sender();
    let (_running, address) = start(app);
    let statuses: Vec<u16> = (0..5)
        .map(|_| status(&shake_hands(address, "").1))
        .collect();
    assert_eq!(statuses[0], 101);
    let refused = statuses.iter().filter(|&&status| status == 429).count();
    assert!(
        refused >= 1,
        "five at once, at one per second: {statuses:?}"
    );
    assert_eq!(
        sender.metrics().refused.peer_handshakes_per_second_max,
        refused as u64
    );
    let (_, head) = shake_hands_from("127.0.0.2", address, "/", "");
    assert_eq!(status(&head), 101);
    eventually("the rate allows a handshake again", || {
        status(&shake_hands(address, "").1) == 101
    });
}

#[test]
fn address_limits_hold_in_a_linked_app() {
    let app = AsyncWebsocketApp::<()>::new_unlinked()
        .with_limits(Limits::default().peer_connections_max(Some(1)));
    let sender = app.sender();
    let (_running, address) = linked(app);
    let (_first, head) = shake_hands(address, "");
    assert_eq!(status(&head), 101);
    let (_, head) = shake_hands(address, "");
    assert_eq!(status(&head), 429);
    assert_eq!(sender.metrics().refused.peer_connections_max, 1);
}

#[test]
fn connection_over_max_is_503_in_a_linked_app() {
    let app =
        AsyncWebsocketApp::<()>::new_unlinked().with_limits(Limits::default().connections_max(1));
    let sender = app.sender();
    let (_running, address) = linked(app);
    let (_first, head) = shake_hands(address, "");
    assert_eq!(status(&head), 101);
    let (_, head) = shake_hands(address, "");
    assert_eq!(status(&head), 503);
    assert_eq!(sender.metrics().refused.connections_max, 1);
}

/// Starts an app that returns the client's address, from its connect handler and from a route.
fn start_echoing_addresses(proxies: Option<TrustedProxies>) -> (RunningApp, SocketAddr) {
    let mut app = AsyncWebsocketApp::<()>::new()
        .with_limits(Limits::default().peer_connections_max(Some(2)))
        .with_connect_handler(|stream, _| stream.send(Message::new(stream.client_ip().to_string())))
        .with_routes(
            SubApp::new().with_stateless_route("/where", |request: Request| {
                Response::new(StatusCode::OK, request.address.origin_addr.to_string())
            }),
        );
    if let Some(proxies) = proxies {
        app = app.with_trusted_proxies(proxies);
    }
    start(app)
}

fn said_to(address: SocketAddr, headers: &str) -> (TcpStream, String) {
    let (mut socket, head) = shake_hands(address, headers);
    assert_eq!(status(&head), 101);
    let (_, payload) = read_frame(&mut socket).unwrap();
    (socket, String::from_utf8(payload).unwrap())
}

#[test]
fn forwarded_address_is_used_from_trusted_proxies_only() {
    let said = "X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\n";
    let (_running, open) = start_echoing_addresses(None);
    assert_eq!(said_to(open, said).1, "127.0.0.1");
    let (_running, others) =
        start_echoing_addresses(Some(TrustedProxies::x_forwarded_for(["10.0.0.0/8"])));
    assert_eq!(said_to(others, said).1, "127.0.0.1");
    let (_running, trusting) =
        start_echoing_addresses(Some(TrustedProxies::x_forwarded_for(["127.0.0.1"])));
    assert_eq!(said_to(trusting, said).1, "192.0.2.7");
    assert_eq!(
        said_to(trusting, "Forwarded: for=6.6.6.6\r\n").1,
        "127.0.0.1"
    );

    let mut socket = tcp(trusting);
    socket
        .write_all(
            format!("GET /where HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{said}\r\n").as_bytes(),
        )
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("\r\n\r\n192.0.2.7"), "{answer}");
}

#[test]
fn clients_of_a_trusted_proxy_count_separately() {
    let (_running, address) =
        start_echoing_addresses(Some(TrustedProxies::forwarded(["127.0.0.1"])));
    let from = |n: u8| format!("Forwarded: for=192.0.2.{n}\r\n");
    let mut held = Vec::new();
    for n in [1, 1, 2, 2, 3] {
        held.push(said_to(address, &from(n)));
    }
    let (_, head) = shake_hands(address, &from(1));
    assert_eq!(status(&head), 429);
    let (_, head) = shake_hands(address, &from(3));
    assert_eq!(status(&head), 101);
}

#[test]
fn invalid_origin_or_network_fails_the_start() {
    let app = echo().with_allowed_origins(Origins::list(["example.com"]));
    let error = app
        .with_address("127.0.0.1:0")
        .start()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("\"example.com\"") && error.contains("https://"),
        "{error}"
    );
    let app = echo().with_trusted_proxies(TrustedProxies::forwarded(["proxy.local"]));
    let error = app
        .with_address("127.0.0.1:0")
        .start()
        .unwrap_err()
        .to_string();
    assert!(error.contains("\"proxy.local\""), "{error}");
}

#[test]
fn prometheus_text_counts_refusals_and_shards() {
    let app = echo().with_allowed_origins(Origins::Same).with_shards(2);
    let sender = app.sender();
    let before = sender.prometheus();
    assert!(
        before.contains("humphrey_ws_connections{shard=\"none\"} 0\n"),
        "{before}"
    );
    let (_running, address) = start(app);
    let (_, head) = shake_hands(address, "Origin: null\r\n");
    assert_eq!(status(&head), 403);
    let _held: Vec<_> = (0..4).map(|_| Client::connect(address)).collect();
    let text = sender.prometheus();
    let sum = |name: &str| -> u64 {
        text.lines()
            .filter(|line| line.starts_with(name))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    };
    assert_eq!(sum("humphrey_ws_connections{"), 4);
    let refused: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("cause=\"origin\""))
        .collect();
    assert_eq!(refused.len(), 3, "{text}");
    assert_eq!(sender.metrics_by_shard().len(), 2);
    let by_shard: u64 = sender
        .metrics_by_shard()
        .iter()
        .map(|shard| shard.connections)
        .sum();
    assert_eq!(by_shard, 4);
}

/// Returns the response to a handshake with this `Host`.
fn handshake_for(to: SocketAddr, host: &str, headers: &str) -> (String, String) {
    let mut socket = tcp(to);
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    socket.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut socket);
    let mut body = String::new();
    if status(&head) != 101 {
        socket.read_to_string(&mut body).unwrap();
    }
    (head, body)
}

#[test]
fn allowed_hosts_hold_for_the_own_listener_and_a_linked_app() {
    let hosts = || AllowedHosts::loopback().with_names(["live.example"]);
    let own = echo().with_allowed_hosts(hosts());
    let own_sender = own.sender();
    let (_own, own_address) = start(own);
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_unlinked().with_allowed_hosts(hosts());
    let linked_sender = app.sender();
    let (_linked, linked_address) = linked(app);
    for (address, sender) in [(own_address, own_sender), (linked_address, linked_sender)] {
        for host in [
            "localhost",
            "live.example:443",
            "LIVE.example.",
            "127.0.0.1:1",
            "[::1]",
        ] {
            let (head, body) = handshake_for(address, host, "");
            assert_eq!(status(&head), 101, "{host}: {head} {body}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "live.example.evil.example",
            "",
        ] {
            let (head, body) = handshake_for(address, host, "Origin: http://evil.example\r\n");
            assert_eq!(status(&head), 403, "{host}: {head}");
            // An option allows a name, but no malformed host.
            let advice = match host {
                "" => "is not a host name",
                _ => "with_allowed_hosts",
            };
            assert!(body.contains(advice), "{body}");
        }
        assert_eq!(sender.metrics().refused.host, 4);
        assert_eq!(sender.metrics().refused.total(), 4);
    }
}

#[test]
fn allowed_hosts_hold_for_streams_routes_and_404s() {
    let routes = SubApp::new().with_stateless_route("/hello", |_: Request| {
        Response::new(StatusCode::OK, "Hello")
    });
    let app = echo()
        .with_allowed_hosts(AllowedHosts::list(["a.example"]))
        .with_event_stream("/events", |_, _| Ok(Subscription::broadcasts()))
        .with_routes(routes);
    let (_running, address) = start(app);
    let ask = |line: &str, host: &str| {
        let mut socket = tcp(address);
        socket
            .write_all(format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
            .unwrap();
        status(&read_head(&mut socket))
    };
    for (line, there) in [
        ("GET /hello", 200),
        ("POST /hello", 200),
        ("OPTIONS /hello", 204),
        ("GET /events", 200),
        ("HEAD /events", 200),
        ("OPTIONS /events", 204),
        ("GET /nothing", 404),
    ] {
        assert_eq!(ask(line, "a.example"), there, "{line}");
        assert_eq!(ask(line, "b.example"), 403, "{line}");
        assert_eq!(ask(line, "localhost"), 403, "{line}");
    }
}

#[test]
fn invalid_allowed_host_fails_the_start() {
    let app = echo().with_allowed_hosts(AllowedHosts::list(["https://example.com"]));
    let error = app
        .with_address("127.0.0.1:0")
        .start()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("\"https://example.com\" is not a host name"),
        "{error}"
    );
}

#[test]
fn cross_site_embeds_are_refused_by_streams_and_guards() {
    let routes = || {
        SubApp::new()
            .with_stateless_route("/*", |_: Request| Response::new(StatusCode::OK, "Hello"))
    };
    let app = |guarded: bool| {
        let app = echo()
            .with_allowed_origins(Origins::same_or_list(["https://good.example"]))
            .with_event_stream("/events", |_, _| Ok(Subscription::broadcasts()))
            .with_routes(routes());
        if guarded {
            app.with_guarded_routes(["/page"])
        } else {
            app
        }
    };
    for guarded in [false, true] {
        let (_running, address) = start(app(guarded));
        let ask = |path: &str, headers: &str| {
            let mut socket = tcp(address);
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
            socket.write_all(request.as_bytes()).unwrap();
            status(&read_head(&mut socket))
        };
        let route = if guarded { 403 } else { 200 };
        for foreign in [
            "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n",
            "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: no-cors\r\n",
            "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n",
            "Origin: https://evil.example\r\n",
        ] {
            assert_eq!(ask("/events", foreign), 403, "{foreign}");
            assert_eq!(ask("/other", foreign), route, "{foreign}");
            assert_eq!(ask("/page", foreign), route, "{foreign}");
        }
        // Behind a proxy that changes Host, the own page has another origin, but its requests are same-origin.
        let proxied = "Sec-Fetch-Site: same-origin\r\nOrigin: https://proxied.example\r\n";
        assert_eq!(
            (ask("/other", proxied), ask("/events", proxied)),
            (200, 403)
        );
        let link = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
        assert_eq!(ask("/page", link), 200);
        assert_eq!((ask("/other", link), ask("/events", link)), (route, 403));
        for good in [
            "",
            "Sec-Fetch-Site: same-origin\r\n",
            "Sec-Fetch-Site: none\r\n",
            "Sec-Fetch-Site: cross-site\r\nOrigin: https://good.example\r\n",
            "Sec-Fetch-Site: cross-site\r\nReferer: https://good.example/page\r\n",
        ] {
            assert_eq!(
                (ask("/events", good), ask("/other", good)),
                (200, 200),
                "{good}"
            );
        }
    }
}

#[test]
fn lines_caused_by_clients_are_logged_once_a_minute() {
    record_log();
    let app = echo()
        .with_allowed_hosts(AllowedHosts::list(["flood.example"]))
        .with_allowed_origins(Origins::list(["https://flood-good.example"]))
        .with_handshake_handler(|_, _| {
            Err::<Accept, _>(Reject::new(400).with_header("X-Flood-Header", "a\r\nb"))
        });
    let (_running, address) = start(app);
    for n in 0..20 {
        let evil = format!("Origin: https://flood-evil-{n}.example\r\n");
        assert_eq!(
            status(&handshake_for(address, "flood.example", &evil).0),
            403
        );
        let host = format!("flood-{n}.example");
        assert_eq!(status(&handshake_for(address, &host, "").0), 403);
        assert_eq!(status(&handshake_for(address, "flood.example", "").0), 500);
    }
    wait_for_log(address);
    for part in ["flood-evil-", "host name \"flood-", "X-Flood-Header"] {
        assert_eq!(logged(part).len(), 1, "{part}: {:?}", logged(part));
    }
    // Violations by twenty clients are limited to as many lines as those of one.
    let (_running, address) = start(echo());
    for _ in 0..20 {
        let (mut socket, _) = shake_hands(address, "");
        socket.write_all(&client_frame(0x83, b"flood")).unwrap();
        assert_eq!(close_code(&read_frame(&mut socket).unwrap().1), 1002);
    }
    wait_for_log(address);
    let broken = logged("broke the protocol");
    assert!(
        broken.len() <= 2,
        "more than one line for each app: {broken:?}"
    );
}
