//! Apps that listen on several sockets: TCP and Unix.

use crate::support;

use std::net::{IpAddr, Ipv6Addr, TcpListener};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(unix)]
use std::path::PathBuf;
use std::time::Duration;

use humphrey_ws::{AsyncWebsocketApp, Limits, Listener};
#[cfg(unix)]
use humphrey_ws::{Message, TrustedProxies};
#[cfg(unix)]
use support::eventually;
use support::{Client, DEADLINE};

fn echo() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new().with_message_handler(|stream, message, _| stream.send(message))
}

#[test]
fn app_with_several_listeners_serves_clients_of_each() {
    let sockets: Vec<_> = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let addresses: Vec<_> = sockets.iter().map(|s| s.local_addr().unwrap()).collect();
    let mut app = echo().with_shards(2);
    for socket in sockets {
        app = app.with_listener(socket);
    }
    let running = app.start().unwrap();
    assert_eq!(running.local_addr(), Some(addresses[0]));
    let mut clients: Vec<_> = addresses.iter().copied().map(Client::connect).collect();
    for client in &mut clients {
        client.send("echo");
        assert_eq!(client.receive_text(), "echo");
    }
    running.sender().broadcast("to all");
    for client in &mut clients {
        assert_eq!(client.receive_text(), "to all");
    }
    drop(clients);
    running.shutdown(DEADLINE);
    for address in addresses {
        assert!(
            TcpListener::bind(address).is_ok(),
            "{address} is free again"
        );
    }
}

#[test]
fn own_address_is_bound_beside_listeners_only_if_it_is_set() {
    let listener = || Listener::tcp("127.0.0.1:0").unwrap();
    let other = listener();
    let expected = other.local_addr();
    // The default address needs privileges, which this would show.
    let running = echo().with_listener(other).start().unwrap();
    assert_eq!(running.local_addr(), expected);
    running.shutdown(Duration::ZERO);
    let other = listener();
    let expected = other.local_addr();
    let running = echo()
        .with_listener(other)
        .with_address("127.0.0.1:0")
        .start()
        .unwrap();
    assert_ne!(running.local_addr(), expected);
    let mut clients =
        [running.local_addr(), expected].map(|address| Client::connect(address.unwrap()));
    for client in &mut clients {
        client.send("both");
        assert_eq!(client.receive_text(), "both");
    }
    drop(clients);
    running.shutdown(DEADLINE);
}

#[test]
fn proxy_names_its_client_before_the_request() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_proxy_protocol(["127.0.0.1"])
        .with_connect_handler(|stream, _| {
            stream.send(format!("{} {}", stream.peer_addr(), stream.client_ip()));
        });
    let (running, address) = support::start(app);
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC0\0\x02\x07\x0A\0\0\x01\x12\x67\x01\xBB";
    for (header, named) in [
        (
            &b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n"[..],
            Some("192.0.2.7"),
        ),
        (v2, Some("192.0.2.7")),
        (b"PROXY UNKNOWN\r\n", None),
    ] {
        use std::io::Write;
        let mut socket = support::tcp(address);
        let own = socket.local_addr().unwrap();
        socket.write_all(header).unwrap();
        let (mut client, _) = tungstenite::client(format!("ws://{address}/"), socket).unwrap();
        let expected = match named {
            Some(ip) => format!("{ip}:4711 {ip}"),
            None => format!("{own} {}", own.ip()),
        };
        assert_eq!(client.read().unwrap().into_text().unwrap(), expected);
    }
    running.shutdown(Duration::ZERO);
    let app = AsyncWebsocketApp::<()>::new().with_address("127.0.0.1:0");
    let refused = app.with_proxy_protocol(["nonsense"]).start().map(drop);
    assert!(refused.unwrap_err().to_string().contains("\"nonsense\""));
}

#[test]
fn app_with_too_many_listeners_does_not_start() {
    let mut app = echo();
    for _ in 0..63 {
        app = app.with_listener(TcpListener::bind("127.0.0.1:0").unwrap());
    }
    let error = app.start().map(drop).unwrap_err();
    assert!(error.to_string().contains("at most 62"), "{error}");
}

#[cfg(unix)]
struct SocketPath(PathBuf);

#[cfg(unix)]
impl SocketPath {
    fn new(name: &str) -> Self {
        let name = format!("humphrey_ws-test-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn connect(&self, headers: &str) -> tungstenite::WebSocket<UnixStream> {
        use std::io::Write;
        let mut socket = UnixStream::connect(&self.0).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = support::upgrade_request("/").replacen("\r\n", &format!("\r\n{headers}"), 1);
        socket.write_all(request.as_bytes()).unwrap();
        let head = support::read_head(&mut socket);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        tungstenite::WebSocket::from_raw_socket(socket, tungstenite::protocol::Role::Client, None)
    }
}

#[cfg(unix)]
fn text(client: &mut tungstenite::WebSocket<UnixStream>) -> String {
    client.read().unwrap().into_text().unwrap().to_string()
}

#[cfg(unix)]
#[test]
fn clients_of_a_unix_socket_have_addresses_of_their_own() {
    let path = SocketPath::new("addresses");
    let app = AsyncWebsocketApp::<()>::new()
        .with_listener(Listener::unix(&path.0).unwrap())
        .with_limits(Limits::default().peer_connections_max(Some(1)))
        .with_message_handler(|stream, message, _| {
            let address = stream.peer_addr();
            assert_eq!(address.ip(), IpAddr::V6(Ipv6Addr::UNSPECIFIED));
            stream.send(message);
            stream.send(format!("{address:?}"));
        });
    let running = app.start().unwrap();
    assert_eq!(running.local_addr(), None);
    let mut clients: Vec<_> = (0..3).map(|_| path.connect("")).collect();
    let large = "x".repeat(1 << 20);
    let mut addresses = Vec::new();
    for client in &mut clients {
        client.send(tungstenite::Message::text(&large)).unwrap();
        assert!(text(client) == large);
        addresses.push(text(client));
    }
    addresses.dedup();
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    let sender = running.sender();
    sender.broadcast(Message::new("to all"));
    for client in &mut clients {
        assert_eq!(text(client), "to all");
    }
    drop(clients);
    running.shutdown(DEADLINE);
    assert!(!path.0.exists(), "the socket's file is removed");
}

#[cfg(unix)]
#[test]
fn proxy_at_a_unix_socket_names_clients_if_it_is_trusted() {
    for is_trusted in [false, true] {
        let path = SocketPath::new("proxy");
        let mut app = AsyncWebsocketApp::<()>::new()
            .with_listener(Listener::unix(&path.0).unwrap())
            .with_limits(Limits::default().peer_connections_max(Some(1)))
            .with_connect_handler(|stream, _| stream.send(stream.client_ip().to_string()));
        if is_trusted {
            app = app.with_trusted_proxies(TrustedProxies::x_forwarded_for(["unix"]));
        }
        let running = app.start().unwrap();
        let header = "X-Forwarded-For: 192.0.2.7\r\n";
        let mut client = path.connect(header);
        let expected = if is_trusted { "192.0.2.7" } else { "::" };
        assert_eq!(text(&mut client), expected);
        if is_trusted {
            // The limit for each address applies to the named one.
            use std::io::Write;
            let mut socket = UnixStream::connect(&path.0).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            let request =
                support::upgrade_request("/").replacen("\r\n", &format!("\r\n{header}"), 1);
            socket.write_all(request.as_bytes()).unwrap();
            assert!(support::read_head(&mut socket).starts_with("HTTP/1.1 429 "));
        }
        drop(client);
        running.shutdown(DEADLINE);
    }
}

#[cfg(unix)]
#[test]
fn app_started_again_takes_the_unix_socket_over() {
    let path = SocketPath::new("again");
    let app = || echo().with_listener(Listener::unix(&path.0).unwrap());
    for _ in 0..2 {
        let running = app().start().unwrap();
        let mut client = path.connect("");
        client.send(tungstenite::Message::text("here")).unwrap();
        assert_eq!(text(&mut client), "here");
        let sender = running.sender();
        drop(client);
        eventually("the client has gone", || sender.connections() == 0);
        running.shutdown(DEADLINE);
    }
}
