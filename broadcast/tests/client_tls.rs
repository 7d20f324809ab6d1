//! `humphrey-broadcast listen` and `send` with `wss://` URLs, and TLS servers of rustls.
#![cfg(all(unix, feature = "tls"))]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::{HandshakeKind, ServerConfig, ServerConnection};
use support::certificates::{Authority, Identity, VERSIONS, Validity, file};
use support::shell::{Cable, Foreign, Guest, Shell};
use support::tls_servers::{self as tls, TlsServer};
use support::{DEADLINE, Program};
use tungstenite::Message;

/// Keeps reconnect delays short.
const SOON: &str = "--max-delay=1";

fn secure(url: &str) -> String {
    url.replace("ws://127.0.0.1", "wss://localhost")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns the file of a new authority's certificate, and the settings of a server whose certificate it has issued.
fn trusted_server() -> (PathBuf, Arc<ServerConfig>) {
    let authority = Authority::new();
    let config = authority.issue(&["localhost"]).server();
    (authority.file(), config)
}

/// Whether the client has announced the end of its stream.
fn is_end_announced(guest: &mut Guest<TlsServer>) -> bool {
    matches!(guest.socket.get_mut().read(&mut [0; 1]), Ok(0))
}

#[test]
fn listen_and_send_speak_both_versions_of_tls() {
    let authority = Authority::new();
    let ca = authority.file();
    for version in VERSIONS {
        let config = authority.issue(&["localhost"]).server_of(&[version]);
        let server = Foreign::new();
        let url = secure(&server.url());
        let mut listener = Shell::listen(&url, &["--ca", text(&ca), "--count=1"]);
        let mut guest = server.tls_guest(&config);
        let stream = guest.socket.get_ref();
        assert_eq!(stream.conn.protocol_version(), Some(version.version));
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(stream.conn.server_name(), Some("localhost"));
        guest.send(Message::text("Gr\u{fc}ezi"));
        assert_eq!(listener.line(), "Gr\u{fc}ezi");
        assert!(guest.message().is_close());
        let _ = guest.socket.flush();
        assert!(is_end_announced(&mut guest));
        listener.expect_exit(0);
        assert!(
            listener.said.contains(&format!("connected to {url}")),
            "{}",
            listener.said
        );

        let mut sender = Shell::send(&url, &["--ca", text(&ca)]);
        sender.write(b"one\ntwo\n");
        sender.stdin = None;
        let mut guest = server.tls_guest(&config);
        for line in ["one", "two"] {
            assert_eq!(guest.message(), Message::text(line));
        }
        assert!(guest.message().is_close());
        let _ = guest.socket.flush();
        assert!(is_end_announced(&mut guest));
        sender.expect_exit(0);
    }
}

#[test]
fn certificate_for_an_address_is_accepted() {
    let authority = Authority::new();
    let ca = authority.file();
    let config = authority.issue(&["127.0.0.1"]).server();
    let server = Foreign::new();
    let url = server.url().replace("ws://", "wss://");
    let mut listener = Shell::listen(&url, &["--ca", text(&ca)]);
    let mut guest = server.tls_guest(&config);
    guest.send(Message::text("x"));
    assert_eq!(listener.line(), "x");
    guest.close(1000, "");
    listener.expect_exit(0);
}

#[test]
fn authorities_of_the_platform_are_the_default() {
    let (ca, config) = trusted_server();
    let server = Foreign::new();
    let listen = |variable: &str, value: &Path| {
        let mut command = support::program();
        command.args(["listen", &secure(&server.url()), "--count=1"]);
        // No other authority is found.
        command
            .env("SSL_CERT_FILE", "/dev/null")
            .env("SSL_CERT_DIR", "/dev/null");
        command.env(variable, value);
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    let child = listen("SSL_CERT_FILE", &ca);
    let mut guest = server.tls_guest(&config);
    guest.send(Message::text("trusted"));
    assert!(guest.message().is_close());
    let _ = guest.socket.flush();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"trusted\n");
    assert_eq!(output.status.code(), Some(0));

    let other = Authority::new().file();
    for (file, said) in [
        (
            other.as_path(),
            "not issued by an authority that this machine trusts: if the server has an authority of its own, name its certificate with --ca FILE",
        ),
        (
            Path::new("/dev/null"),
            "the authorities that this machine trusts can't be loaded",
        ),
    ] {
        let child = listen("SSL_CERT_FILE", file);
        let _ = tls::accept(config.clone(), server.tcp());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(said), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn unacceptable_certificate_ends_the_first_attempt() {
    let authority = Authority::new();
    let self_signed = Identity::self_signed(&["localhost"], false);
    let ca_as_server = Identity::self_signed(&["localhost"], true);
    let pem = format!("{}{}", authority.pem, ca_as_server.pem);
    let ca = file(&pem);
    let unknown = format!("was not issued by an authority in {} (--ca)", ca.display());
    for (identity, said) in [
        (
            authority.issue_for(&["localhost"], Validity::Past),
            "certificate has expired",
        ),
        (
            authority.issue_for(&["localhost"], Validity::Future),
            "not valid yet",
        ),
        (self_signed, &unknown),
        (Authority::new().issue(&["localhost"]), &unknown),
        (
            authority.issue(&["a.example", "b.example"]),
            "not valid for localhost, but for a.example, b.example",
        ),
        (ca_as_server, "CA:FALSE"),
    ] {
        let server = Foreign::new();
        let url = secure(&server.url());
        let mut shells = [
            Shell::listen(&url, &["--ca", text(&ca)]),
            Shell::send(&url, &["--ca", text(&ca)]),
        ];
        for _ in &shells {
            assert!(
                tls::accept(identity.server(), server.tcp()).is_err(),
                "{said}"
            );
        }
        for shell in &mut shells {
            shell.expect_exit(1);
            assert!(shell.said.contains(said), "{said}: {}", shell.said);
            assert!(!shell.said.contains("reconnecting"), "{}", shell.said);
        }
    }
}

#[test]
fn server_that_refuses_or_lacks_tls_ends_the_first_attempt() {
    let ca = Authority::new().file();
    for (answer, said) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            "does not speak TLS",
        ),
        // protocol_version, access_denied.
        (&[21, 3, 1, 0, 2, 2, 70], "neither TLS 1.2 nor TLS 1.3"),
        (&[21, 3, 1, 0, 2, 2, 49], "AccessDenied"),
    ] {
        let server = Foreign::new();
        let mut listener = Shell::listen(&secure(&server.url()), &["--ca", text(&ca)]);
        let mut stream = server.tcp();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(answer).unwrap();
        listener.expect_exit(1);
        assert!(listener.said.contains(said), "{}", listener.said);
    }
}

#[test]
fn server_that_requires_a_client_certificate_ends_the_first_attempt() {
    let authority = Authority::new();
    let ca = authority.file();
    let identity = authority.issue(&["localhost"]);
    for version in VERSIONS {
        let server = Foreign::new();
        let mut listener = Shell::listen(&secure(&server.url()), &["--ca", text(&ca)]);
        let config = identity.server_for(&authority, version);
        assert!(tls::accept(config, server.tcp()).is_err());
        listener.expect_exit(1);
        let said = "the alert CertificateRequired: it accepts only clients with a certificate";
        assert!(listener.said.contains(said), "{}", listener.said);
    }
}

#[test]
fn server_that_hangs_up_in_the_tls_handshake_is_retried() {
    let authority = Authority::new();
    let ca = authority.file();
    let server = Foreign::new();
    let mut listener = Shell::listen(&secure(&server.url()), &["--ca", text(&ca), SOON]);
    let _ = server.tcp().read(&mut [0; 4096]).unwrap();
    listener.expect_line("it may not speak TLS on this port; reconnecting in");
    let mut guest = server.tls_guest(&authority.issue(&["localhost"]).server());
    // The subprotocols were not the reason.
    assert!(guest.header("Sec-WebSocket-Protocol").is_some());
    guest.send(Message::text("x"));
    assert_eq!(listener.line(), "x");
}

#[test]
fn unusable_ca_is_an_invalid_command_line() {
    let empty = file("");
    let valid = Authority::new().file();
    for (url, ca, said) in [
        ("wss://localhost/", text(&empty), "no certificate in PEM"),
        (
            "wss://localhost/",
            "no/such/file.pem",
            "--ca no/such/file.pem: ",
        ),
        (
            "ws://localhost/",
            text(&valid),
            "--ca needs a URL that begins with wss://",
        ),
    ] {
        for command in ["listen", "send"] {
            let (code, _, err) = support::run(&[command, url, "--ca", ca]);
            assert_eq!(code, 2, "{err}");
            assert!(err.contains(said), "{err}");
        }
    }
}

/// Decrypts the connections of clients, and passes them on to a plain server.
struct Terminator {
    address: SocketAddr,
    /// The settings of new connections.
    config: Arc<Mutex<Arc<ServerConfig>>>,
    /// How the handshakes so far were done.
    kinds: Arc<Mutex<Vec<HandshakeKind>>>,
}

impl Terminator {
    fn of(server: SocketAddr, config: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let terminator = Self {
            address: listener.local_addr().unwrap(),
            config: Arc::new(Mutex::new(config)),
            kinds: Arc::default(),
        };
        let (config, kinds) = (terminator.config.clone(), terminator.kinds.clone());
        // Ends with the test process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let config = config.lock().unwrap().clone();
                let Ok(stream) = tls::accept(config, client.unwrap()) else {
                    continue;
                };
                kinds
                    .lock()
                    .unwrap()
                    .push(stream.conn.handshake_kind().unwrap());
                pass_on(stream, TcpStream::connect(server).unwrap());
            }
        });
        terminator
    }

    fn set(&self, config: Arc<ServerConfig>) {
        *self.config.lock().unwrap() = config;
    }
}

/// Passes bytes on in both directions, on two threads.
fn pass_on(stream: TlsServer, server: TcpStream) {
    let mut connection = stream.conn;
    connection.set_buffer_limit(None);
    let connection = Arc::new(Mutex::new(connection));
    let flush = |connection: &mut ServerConnection, mut client: &TcpStream| {
        while connection.wants_write() && connection.write_tls(&mut client).is_ok() {}
    };
    {
        let (connection, client) = (connection.clone(), stream.sock.try_clone().unwrap());
        let mut server = server.try_clone().unwrap();
        thread::spawn(move || {
            let mut part = [0; 16 << 10];
            while let Ok(n @ 1..) = server.read(&mut part) {
                let mut connection = connection.lock().unwrap();
                connection.writer().write_all(&part[..n]).unwrap();
                flush(&mut connection, &client);
            }
            let mut connection = connection.lock().unwrap();
            connection.send_close_notify();
            flush(&mut connection, &client);
            let _ = client.shutdown(Shutdown::Write);
        });
    }
    let (mut client, mut server) = (stream.sock, server);
    thread::spawn(move || {
        let mut part = [0; 16 << 10];
        // The handshake may have read some bytes already.
        let mut received = 0;
        loop {
            let mut connection = connection.lock().unwrap();
            let mut encrypted = &part[..received];
            let mut decrypted = Vec::new();
            let _ = connection.reader().read_to_end(&mut decrypted);
            while !encrypted.is_empty() {
                connection.read_tls(&mut encrypted).unwrap();
                connection.process_new_packets().unwrap();
                let _ = connection.reader().read_to_end(&mut decrypted);
            }
            flush(&mut connection, &client);
            drop(connection);
            if server.write_all(&decrypted).is_err() {
                break;
            }
            match client.read(&mut part) {
                Ok(n @ 1..) => received = n,
                _ => break,
            }
        }
        let _ = server.shutdown(Shutdown::Write);
    });
}

#[test]
fn listen_resumes_while_the_server_restarts_with_new_certificates() {
    let authority = Authority::new();
    let ca = authority.file();
    let mut program = Program::start(&["--history", "100", "--no-welcome"]);
    let first = authority.issue(&["localhost"]).server();
    let terminator = Terminator::of(program.address(), first);
    let cable = Cable::to(terminator.address);
    let mut listener = Shell::listen(&secure(&cable.url()), &["--ca", text(&ca), SOON]);
    program.write(b"one\n");
    assert_eq!(listener.line(), "one");

    // The connection breaks.
    cable.cut();
    program.write(b"two\n");
    listener.expect_line("reconnecting in");
    cable.mend();
    assert_eq!(listener.line(), "two");

    // The server is restarted with a renewed certificate, and other keys for its tickets.
    cable.cut();
    program.write(b"three\n");
    listener.expect_line("reconnecting in");
    terminator.set(authority.issue(&["localhost"]).server());
    cable.mend();
    assert_eq!(listener.line(), "three");
    let kinds = terminator.kinds.lock().unwrap().clone();
    assert_eq!(
        kinds,
        [
            HandshakeKind::Full,
            HandshakeKind::Resumed,
            HandshakeKind::Full
        ]
    );

    // It is restarted with a certificate of another authority, and the client learns of that authority later.
    cable.cut();
    program.write(b"four\n");
    listener.expect_line("reconnecting in");
    let other = Authority::new();
    terminator.set(other.issue(&["localhost"]).server());
    cable.mend();
    listener.expect_line("(--ca); reconnecting in");
    fs::write(&ca, &other.pem).unwrap();
    assert_eq!(listener.line(), "four");
    assert!(!listener.said.contains("missing"), "{}", listener.said);
}

#[test]
fn large_messages_are_received() {
    let (ca, config) = trusted_server();
    let server = Foreign::new();
    let mut listener = Shell::listen(&secure(&server.url()), &["--ca", text(&ca), "--count=2"]);
    let mut guest = server.tls_guest(&config);
    let large: String = (0..4_000_000)
        .map(|n| char::from(b'a' + (n % 23) as u8))
        .collect();
    guest.send(Message::text(large.clone()));
    guest.send(Message::text("small"));
    assert!(listener.line() == large);
    assert_eq!(listener.line(), "small");
    assert_eq!(guest.expect_close(), []);
    listener.expect_exit(0);
}

#[test]
fn lines_beyond_the_socket_buffers_reach_the_server() {
    const LINES: usize = 20;
    let (ca, config) = trusted_server();
    let server = Foreign::new();
    let mut sender = Shell::send(&secure(&server.url()), &["--ca", text(&ca)]);
    let line = |n: usize| char::from(b'a' + n as u8).to_string().repeat(1_500_000 + n);
    let mut guest = server.tls_guest(&config);
    thread::scope(|scope| {
        scope.spawn(|| {
            // This blocks while the client can't write, which is most of the time.
            for n in 0..LINES {
                sender.write(format!("{}\n", line(n)).as_bytes());
            }
            sender.stdin = None;
        });
        for n in 0..LINES {
            assert!(guest.message() == Message::text(line(n)), "line {n}");
        }
    });
    assert_eq!(guest.expect_close(), []);
    sender.expect_exit(0);
    assert!(
        sender.said.contains("20 lines reached the server"),
        "{}",
        sender.said
    );
}

#[test]
fn unannounced_end_is_reported_as_a_cut() {
    let (ca, config) = trusted_server();
    let server = Foreign::new();
    let mut listener = Shell::listen(&secure(&server.url()), &["--ca", text(&ca), SOON]);
    for (is_announced, said) in [
        (
            false,
            "the connection is lost: it was cut, without TLS's announcement of its end (close_notify); reconnecting",
        ),
        (true, "the connection is lost; reconnecting"),
    ] {
        let mut guest = server.tls_guest(&config);
        guest.send(Message::text("x"));
        assert_eq!(listener.line(), "x");
        if is_announced {
            tls::announce_end(guest.socket.get_mut());
        }
        let socket = &guest.socket.get_ref().sock;
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        listener.expect_line(said);
    }
}
