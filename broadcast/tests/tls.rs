//! TLS in the server: certificates from files, made by the program, and reloaded.
#![cfg(all(unix, feature = "tls"))]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConnection, StreamOwned};
use support::certificates::{VERSIONS, client_builder, roots};
use support::{DEADLINE, Program, TempFile, http_get, run};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// An empty directory, which is removed when it is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let unique = format!("humphrey-broadcast-tls-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(unique);
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Connects as a client that trusts a certificate.
fn connect(address: SocketAddr, trusted: impl AsRef<Path>) -> std::io::Result<TlsStream> {
    let roots = roots(&CertificateDer::from_pem_file(trusted).unwrap());
    let config = client_builder(roots, &VERSIONS).with_no_client_auth();
    let name = address.ip().into();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

fn websocket(stream: TlsStream, path: &str) -> WebSocket<TlsStream> {
    let url = format!("wss://localhost{path}");
    tungstenite::client(url.as_str(), stream).unwrap().0
}

fn text(client: &mut WebSocket<TlsStream>) -> String {
    match client.read().unwrap() {
        Message::Text(text) => text.as_str().to_owned(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn page_events_and_lines_are_served_over_tls() {
    let directory = Directory::new("served");
    let mut program = Program::start(&[
        "--no-welcome",
        "--history",
        "10",
        "--tls-self-signed",
        directory.text(),
    ]);
    let certificate = directory.file("cert.pem");
    let open = || connect(program.address(), &certificate).unwrap();
    let mut client = websocket(open(), "/");

    let mut page = open();
    page.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut response = String::new();
    // The server announces the end of the stream: without that, this fails.
    page.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert!(response.contains("<!doctype html>"));

    let mut events = open();
    events
        .write_all(b"GET /events?since=all HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    program.write(b"a line\n");
    assert_eq!(text(&mut client), "a line");
    let mut received = String::new();
    let mut buffer = [0; 4096];
    while !received.contains("data: a line") {
        let n = events.read(&mut buffer).unwrap();
        assert!(n > 0, "{received}");
        received += std::str::from_utf8(&buffer[..n]).unwrap();
    }

    let (status, _, body) = http_get(program.address(), "/");
    assert_eq!(status, 400);
    assert!(body.contains("This port speaks TLS"), "{body}");
    program.signal(Signal::TERM);
    program.expect_exit(0);
}

#[test]
fn session_cookie_over_tls_is_secure_and_opens_websockets() {
    let directory = Directory::new("login");
    let token = TempFile::new("tls-login-token", b"s3cret-for-readers");
    let program = Program::start(&[
        "--no-welcome",
        "--tls-self-signed",
        directory.text(),
        "--read-token-file",
        token.path(),
    ]);
    let address = program.address();
    let ask = |head: &str, body: &str| {
        let mut stream = connect(address, directory.file("cert.pem")).unwrap();
        let length = body.len();
        write!(
            stream,
            "{head}Host: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    };
    let sign_in = |origin: &str| {
        let head = format!(
            "POST /login HTTP/1.1\r\nOrigin: {origin}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        );
        ask(&head, "token=s3cret-for-readers")
    };
    // A page without TLS is of another origin.
    let refused = sign_in(&format!("http://{address}"));
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    let signed_in = sign_in(&format!("https://{address}"));
    assert!(signed_in.starts_with("HTTP/1.1 303 "), "{signed_in}");
    let set = signed_in
        .lines()
        .find_map(|line| line.strip_prefix("Set-Cookie: "))
        .unwrap();
    let name = format!("__Host-humphrey-broadcast-{}=", address.port());
    assert!(set.starts_with(&name) && set.ends_with("; Secure"), "{set}");
    for part in ["; Path=/;", "; HttpOnly;", "; SameSite=Strict;"] {
        assert!(set.contains(part), "{set}");
    }
    let cookie = set.split(';').next().unwrap();
    let clients = |cookie: &str| {
        ask(
            &format!("GET /clients HTTP/1.1\r\nCookie: {cookie}\r\n"),
            "",
        )
    };
    assert!(clients(cookie).starts_with("HTTP/1.1 200 "));
    assert!(clients(&cookie.replace("__Host-", "")).starts_with("HTTP/1.1 401 "));

    let mut request = format!("wss://{address}/").into_client_request().unwrap();
    request
        .headers_mut()
        .insert("Cookie", cookie.parse().unwrap());
    let stream = connect(address, directory.file("cert.pem")).unwrap();
    let (mut client, _) = tungstenite::client(request, stream).unwrap();
    client.send(Message::text("echoed")).unwrap();
    assert_eq!(text(&mut client), "echoed");
}

#[test]
fn start_with_tls_is_warned_about_without_a_token_only() {
    let directory = Directory::new("warned");
    let token = TempFile::new("tls-warned-token", b"s3cret-for-readers");
    let warnings = |arguments: &[&str]| -> Vec<String> {
        let tls = ["--tls-self-signed", directory.text(), "--exit-on-eof"];
        let (code, _, err) = run(&[&["--listen", "0.0.0.0:0"], &tls[..], arguments].concat());
        assert_eq!(code, 0, "{err}");
        let lines = err.lines().filter(|line| line.contains("every line"));
        lines.map(str::to_owned).collect()
    };
    let warned = warnings(&[]);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(
        warned[0].ends_with("can read every line: see --read-token-file"),
        "{warned:?}"
    );
    assert_eq!(warnings(&["--read-token-file", token.path()]), [""; 0]);
}

#[test]
fn self_signed_certificate_is_used_again_after_a_restart() {
    let directory = Directory::new("restart");
    for _ in 0..2 {
        let mut program = Program::start(&["--tls-self-signed", directory.text()]);
        let first = directory.0.with_extension("first");
        if !first.exists() {
            std::fs::copy(directory.file("cert.pem"), &first).unwrap();
        }
        connect(program.address(), &first).unwrap();
        program.signal(Signal::TERM);
        program.expect_exit(0);
    }
    std::fs::remove_file(directory.0.with_extension("first")).unwrap();
}

#[test]
fn sighup_loads_a_renewed_certificate_and_closes_nothing() {
    let (used, renewed) = (Directory::new("used"), Directory::new("renewed"));
    // Two runs make two certificates.
    for directory in [&used, &renewed] {
        let mut program = Program::start(&["--tls-self-signed", directory.text()]);
        program.signal(Signal::TERM);
        program.expect_exit(0);
    }
    let before = used.file("before.pem");
    std::fs::copy(used.file("cert.pem"), &before).unwrap();
    let mut program = Program::start(&[
        "--no-welcome",
        "--tls-cert",
        &used.file("cert.pem"),
        "--tls-key",
        &used.file("key.pem"),
    ]);
    let mut client = websocket(connect(program.address(), &before).unwrap(), "/");

    std::fs::write(used.file("cert.pem"), "unusable").unwrap();
    program.signal(Signal::HUP);
    let line = program.expect_line("the previous certificate stays in use");
    assert!(line.contains("cert.pem"), "{line}");
    connect(program.address(), &before).unwrap();

    for name in ["cert.pem", "key.pem"] {
        std::fs::copy(renewed.file(name), used.file(name)).unwrap();
    }
    program.signal(Signal::HUP);
    program.expect_line("the certificate was reloaded");
    connect(program.address(), renewed.file("cert.pem")).unwrap();
    let refused = connect(program.address(), &before).unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");

    program.write(b"still here\n");
    assert_eq!(text(&mut client), "still here");
    program.signal(Signal::TERM);
    program.expect_exit(0);
}

#[test]
fn unusable_certificate_exits_with_2_and_names_the_file() {
    let directory = Directory::new("unusable");
    let missing = directory.file("missing.pem");
    let (code, _, stderr) = run(&["--tls-cert", &missing, "--tls-key", &missing]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("missing.pem"), "{stderr}");

    let (code, _, stderr) = run(&["--tls-cert", &missing]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("--tls-key"), "{stderr}");
}
