//! `/admin/connections` over real sockets: listing the connections, the slowest first, and closing one.
#![cfg(unix)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;
use support::events::Events;
use support::{DEADLINE, Program, TempFile, eventually, http, http_get, run};
use tungstenite::Message;

const LIST: &str = "/admin/connections";
const TOKEN: &str = "s3cret-of-admins";
const BEARER: &str = "Authorization: Bearer s3cret-of-admins\r\n";

/// Starts a server with a token for administration, in a file whose name must be unique among all tests.
fn start(name: &str, arguments: &[&str]) -> (Program, TempFile) {
    let token = TempFile::new(&format!("admin-{name}"), TOKEN.as_bytes());
    let options = ["--no-welcome", "--admin-token-file", token.path()];
    (Program::start(&[&options, arguments].concat()), token)
}

/// The address that `--metrics` has.
fn metrics_address(program: &mut Program) -> SocketAddr {
    let line = program.expect_line("metrics");
    let address = line.rsplit("http://").next().unwrap();
    address.strip_suffix("/metrics").unwrap().parse().unwrap()
}

/// The answer of `/admin/connections`.
fn list(address: SocketAddr, query: &str) -> Value {
    let path = format!("{LIST}{query}");
    let (status, head, body) = http(address, "GET", &path, BEARER, b"");
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("Content-Type: application/json"), "{head}");
    assert!(head.contains("Cache-Control: no-store"), "{head}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

/// The listed connection of a client.
fn connection_of(address: SocketAddr, client: SocketAddr) -> Option<Value> {
    let all = list(address, "?limit=10000");
    let mut connections = all["connections"].as_array().unwrap().iter();
    let client = client.to_string();
    connections
        .find(|connection| connection["peer_address"] == client)
        .cloned()
}

#[track_caller]
fn id_of(address: SocketAddr, client: SocketAddr) -> String {
    let mut id = None;
    eventually("the client is listed", || {
        let connection = connection_of(address, client);
        id = connection.map(|connection| connection["id"].as_str().unwrap().to_owned());
        id.is_some()
    });
    id.unwrap()
}

/// Closes a connection. Returns the status and the body.
fn close(address: SocketAddr, id: &str, headers: &str) -> (u16, String) {
    let path = format!("{LIST}/{id}/close");
    let (status, _, body) = http(address, "POST", &path, headers, b"");
    (status, body)
}

#[test]
fn connections_are_listed_with_the_slowest_first() {
    let (mut program, _token) = start("list", &["--room", "web", "--compress"]);
    let address = program.address();
    let other = program.connect_json("/other/r%C3%B6om?since=now");
    let slow = program.connect_to("/web");
    let stream = Events::open(&program, "/events/other", "");
    for client in [other.local_addr(), slow.local_addr(), stream.local_addr()] {
        id_of(address, client);
    }
    let line = [&[b'x'; 999][..], b"\n"].concat();
    let mut first = Value::Null;
    eventually("lines wait for the client that does not read", || {
        program.write(&line.repeat(100));
        let all = list(address, "?limit=1");
        assert_eq!(all["connections"].as_array().unwrap().len(), 1);
        assert_eq!(all["connections_total"], 3);
        first = all["connections"][0].clone();
        all["complete"] == true && first["waiting_bytes"].as_u64().unwrap() > 10_000
    });
    assert_eq!(first["peer_address"], slow.local_addr().to_string());
    assert_eq!(first["client_ip"], "127.0.0.1");
    assert_eq!(first["kind"], "websocket");
    assert_eq!(first["path"], "/web");
    assert_eq!(first["rooms"], serde_json::json!(["web"]));
    assert_eq!(first["user"], Value::Null);
    assert_eq!(first["subprotocol"], Value::Null);
    for flag in ["tls", "compressed", "closing"] {
        assert_eq!(first[flag], false, "{flag}");
    }
    assert!(first["connected_seconds"].as_u64().unwrap() < 3_600);
    eventually("the lag is shown", || {
        list(address, "")["connections"][0]["lag_seconds"].as_f64() > Some(0.0)
    });
    let has_joined = |client| {
        let rooms = connection_of(address, client).map(|connection| connection["rooms"].clone());
        rooms.is_some_and(|rooms| !rooms.as_array().unwrap().is_empty())
    };
    for client in [other.local_addr(), stream.local_addr()] {
        eventually("it is in its room", || has_joined(client));
    }
    let other = connection_of(address, other.local_addr()).unwrap();
    assert_eq!(other["rooms"], serde_json::json!(["other/röom"]));
    assert_eq!(other["path"], "/other/r%C3%B6om");
    assert_eq!(other["subprotocol"], "json.humphrey-broadcast");
    assert_eq!(
        (&other["waiting_bytes"], &other["lag_seconds"]),
        (&0.into(), &0.0.into())
    );
    let stream = connection_of(address, stream.local_addr()).unwrap();
    assert_eq!(stream["kind"], "event_stream");
    assert_eq!(stream["rooms"], serde_json::json!(["other"]));
}

#[test]
fn closed_client_gets_1008_and_is_not_listed_any_more() {
    let (program, _token) = start("close", &[]);
    let address = program.address();
    let (mut client, mut stays) = (program.connect(), program.connect());
    let stream = Events::open(&program, "/events", "");
    let id = id_of(address, client.local_addr());
    assert_eq!(
        close(address, &id, BEARER),
        (200, format!("{{\"closing\": \"{id}\"}}\n"))
    );
    match client.any() {
        Message::Close(Some(frame)) => {
            assert_eq!(u16::from(frame.code), 1008);
            assert_eq!(frame.reason.as_str(), "closed by an administrator");
        }
        other => panic!("no close frame: {other:?}"),
    }
    drop(client);
    let id_of_stream = id_of(address, stream.local_addr());
    assert_eq!(close(address, &id_of_stream, BEARER).0, 200);
    stream.expect_end();
    eventually("both have gone", || {
        list(address, "")["connections_total"] == 1
    });
    for (gone, status) in [
        (&*id, 404),
        (&*id_of_stream, 404),
        ("7-7-7", 404),
        ("x", 400),
    ] {
        let (answered, body) = close(address, gone, BEARER);
        assert_eq!(answered, status, "{gone}: {body}");
    }
    stays.send(Message::text("still there"));
    assert_eq!(stays.text(), "still there");
}

#[test]
fn requests_without_the_admin_token_are_401() {
    let read = TempFile::new("admin-other-read", b"s3cret-of-readers");
    let (program, _token) = start(
        "refused",
        &["--publish-token=p", "--read-token-file", read.path()],
    );
    let address = program.address();
    const NONE: &str = "WWW-Authenticate: Bearer realm=\"admin\"\r\n";
    const INVALID: &str = "WWW-Authenticate: Bearer realm=\"admin\", error=\"invalid_token\"\r\n";
    for (headers, challenge) in [
        ("", NONE),
        ("Cookie: humphrey-broadcast=s3cret-of-admins\r\n", NONE),
        ("Authorization: Bearer p\r\n", INVALID),
        ("Authorization: Bearer s3cret-of-readers\r\n", INVALID),
        ("Authorization: Bearer s3cret-of-admin\r\n", INVALID),
        ("Authorization: Basic s3cret-of-admins\r\n", INVALID),
    ] {
        for (method, path) in [
            ("GET", LIST),
            ("GET", "/admin/connections?limit=x"),
            ("POST", "/admin/connections/0-0-0/close"),
            ("POST", "/admin/connections/x"),
        ] {
            let (status, head, body) = http(address, method, path, headers, b"");
            assert_eq!(status, 401, "{method} {path} {headers}");
            let head = format!("{head}\r\n");
            assert!(
                head.to_lowercase().contains(&challenge.to_lowercase()),
                "{headers}: {head}"
            );
            assert!(
                !body.contains(TOKEN) && body.contains("--admin-token-file"),
                "{body}"
            );
        }
    }
    // The token of administrators does not read, nor publish.
    assert_eq!(http(address, "GET", "/clients", BEARER, b"").0, 401);
    assert_eq!(program.publish("", BEARER, b"no").0, 401);
    assert_eq!(list(address, "")["connections_total"], 0);
}

#[test]
fn body_without_the_admin_token_is_refused_unread() {
    let (mut program, _token) = start("body", &["--metrics=127.0.0.1:0"]);
    let (plain, _token) = start("body-plain", &[]);
    for address in [metrics_address(&mut program), plain.address()] {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(
            socket,
            "POST {LIST}/0-0-0/close HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1000000\r\n\r\n"
        )
        .unwrap();
        let mut status = [0; 12];
        socket.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 401");
    }
}

#[test]
fn guesses_of_the_admin_token_are_limited_with_the_others() {
    let (program, _token) = start("guesses", &["--publish-token=p"]);
    let address = program.address();
    for n in 0..10 {
        let headers = format!("Authorization: Bearer guess-{n}\r\n");
        let status = match n % 2 {
            0 => http(address, "GET", LIST, &headers, b"").0,
            _ => program.publish("", &headers, b"").0,
        };
        assert_eq!(status, 401, "{n}");
    }
    let (status, head, body) = http(address, "GET", LIST, BEARER, b"");
    assert_eq!(status, 429, "{body}");
    assert!(head.to_lowercase().contains("retry-after: "), "{head}");
}

#[test]
fn pages_of_other_sites_can_close_no_connection() {
    let (mut program, _token) = start("sites", &["--metrics=127.0.0.1:0"]);
    let (plain, _token) = start("sites-plain", &["--allow-origin=https://good.example"]);
    let mut client = plain.connect();
    let metrics = metrics_address(&mut program);
    for address in [metrics, plain.address()] {
        let id = match address == metrics {
            true => "0-0-0".to_owned(),
            false => id_of(address, client.local_addr()),
        };
        for page in [
            "Origin: https://evil.example\r\n",
            "Origin: null\r\n",
            "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n",
            "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n",
        ] {
            let headers = format!("{BEARER}{page}");
            assert_eq!(close(address, &id, &headers).0, 403, "{page}");
            let (status, _, body) = http(address, "GET", LIST, &headers, b"");
            assert_eq!(status, 403, "{page}: {body}");
            assert!(!body.contains("connections_total"), "{body}");
        }
        // Before a page may send the header, its browser asks (WHATWG Fetch §3.3.5).
        let preflight = "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n\
                         Access-Control-Request-Headers: authorization\r\n";
        let path = format!("{LIST}/{id}/close");
        let (_, head, _) = http(address, "OPTIONS", &path, preflight, b"");
        assert!(!head.contains("Access-Control-Allow"), "{head}");
    }
    client.send(Message::text("still there"));
    assert_eq!(client.text(), "still there");
}

#[test]
fn admin_routes_have_one_method_and_checked_limits() {
    let (program, _token) = start("methods", &[]);
    let address = program.address();
    let one = "/admin/connections/0-0-0/close";
    for (path, allowed) in [(LIST, "GET"), (one, "POST")] {
        for method in ["GET", "POST", "PUT", "DELETE"] {
            let (status, head, _) = http(address, method, path, BEARER, b"");
            assert_eq!(status == 405, method != allowed, "{method} {path}: {head}");
        }
    }
    for query in ["?limit=0", "?limit=10001", "?limit=many", "?limit="] {
        let (status, _, body) = http(address, "GET", &format!("{LIST}{query}"), BEARER, b"");
        assert_eq!(status, 400, "{query}");
        assert!(body.contains("from 1 to 10000"), "{body}");
    }
    for path in [
        "/admin",
        "/admin/",
        "/admin/connections/0-0-0/open",
        "/admin/connections/",
    ] {
        for method in ["GET", "POST"] {
            let (status, _, _) = http(address, method, path, BEARER, b"");
            assert!([404, 405].contains(&status), "{method} {path}: {status}");
        }
    }
}

#[test]
fn admin_routes_without_the_option_are_404() {
    let mut program = Program::start(&["--metrics=127.0.0.1:0"]);
    for address in [metrics_address(&mut program), program.address()] {
        assert_eq!(http(address, "GET", LIST, BEARER, b"").0, 404);
        assert_eq!(close(address, "0-0-0", BEARER).0, 404);
    }
}

#[test]
fn admin_routes_are_only_at_the_metrics_address_if_there_is_one() {
    let (mut program, _token) = start("metrics", &["--metrics=127.0.0.1:0", "--max-connections=1"]);
    let metrics = metrics_address(&mut program);
    let said = program.expect_line("administrators");
    assert!(said.ends_with(&format!("http://{metrics}{LIST}")), "{said}");
    // The connection of the request before may still count.
    eventually("the list is not here", || {
        http(program.address(), "GET", LIST, BEARER, b"").0 == 404
    });
    eventually("nothing is closed here", || {
        close(program.address(), "0-0-0", BEARER).0 == 404
    });
    // The server is full, so it would not answer there.
    let mut connected = None;
    eventually("the requests' connections have ended", || {
        connected = program.try_connect().ok();
        connected.is_some()
    });
    let mut client = connected.unwrap();
    assert_eq!(http_get(program.address(), LIST).0, 503);
    let id = id_of(metrics, client.local_addr());
    assert_eq!(http_get(metrics, LIST).0, 401);
    assert_eq!(close(metrics, &id, BEARER).0, 200);
    assert!(matches!(client.any(), Message::Close(Some(frame)) if u16::from(frame.code) == 1008));
}

#[test]
fn unusable_admin_token_file_is_one_line_without_the_token() {
    let two_words = TempFile::new("admin-two-words", b"two words\n");
    for (path, said) in [
        ("/nonexistent/token", "No such file"),
        (two_words.path(), "spaces"),
    ] {
        let (code, out, err) = run(&["--listen", "127.0.0.1:0", "--admin-token-file", path]);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(
            err.contains("--admin-token-file") && err.contains(said) && !err.contains("two words"),
            "{err}"
        );
    }
}

#[test]
fn admin_token_in_the_open_is_warned_about_at_the_start() {
    let token = TempFile::new("admin-warning", TOKEN.as_bytes());
    let warned = |arguments: &[&str]| {
        let options = ["--exit-on-eof", "--admin-token-file", token.path()];
        let (code, _, err) = run(&[&options, arguments].concat());
        assert_eq!(code, 0, "{err}");
        err.contains("warning: the token of --admin-token-file travels unencrypted")
    };
    assert!(!warned(&["--listen=127.0.0.1:0"]));
    assert!(warned(&["--listen=0.0.0.0:0"]));
    assert!(!warned(&["--listen=0.0.0.0:0", "--metrics=127.0.0.1:0"]));
    assert!(warned(&["--listen=127.0.0.1:0", "--metrics=0.0.0.0:0"]));
}
