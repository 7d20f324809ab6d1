//! The blocking client with TLS servers of rustls.

use crate::certificates::{Authority, Identity, VERSIONS, Validity, file};
use crate::support;
use crate::tls_servers as tls;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use humphrey_ws::websocket_client::{Client, ClientBuilder, ClientError, ClientTls, TlsError};
use humphrey_ws::{CloseCode, Message};
use rustls::{HandshakeKind, ServerConfig};
use support::{DEADLINE, serve_one, serve_one_at};
use tls::TlsServer;

/// Starts a TLS server, which runs a closure with its first client.
fn serve<T: Send + 'static>(
    config: Arc<ServerConfig>,
    act: impl FnOnce(TlsServer) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    serve_one(move |stream| act(tls::accept(config, stream).unwrap()))
}

/// Starts a TLS server whose client fails.
fn serve_in_vain(config: Arc<ServerConfig>) -> SocketAddr {
    let (address, _) = serve_one(move |stream| {
        let _ = tls::accept(config, stream).map(|mut stream| stream.read(&mut [0; 1]));
    });
    address
}

fn builder(host: &str, address: SocketAddr) -> ClientBuilder {
    Client::builder(&format!("wss://{host}:{}/", address.port()))
        .with_read_timeout(Some(DEADLINE))
        .with_connect_timeout(DEADLINE)
}

fn trusting(authority: &Authority) -> ClientTls {
    ClientTls::from_pem(authority.pem.as_bytes()).unwrap()
}

/// The error of a client that trusts `authority`.
fn refused(authority: &Authority, config: Arc<ServerConfig>) -> TlsError {
    let address = serve_in_vain(config);
    tls_error(builder("localhost", address).with_tls(trusting(authority)))
}

fn tls_error(builder: ClientBuilder) -> TlsError {
    match builder.connect() {
        Err(ClientError::Tls(error)) => error,
        other => panic!("{:?}", other.map(drop)),
    }
}

/// Echoes messages to the end, and returns whether the client announced the end of its TLS stream.
fn echo(stream: TlsServer) -> bool {
    let mut socket = tungstenite::accept(stream).unwrap();
    loop {
        match socket.read() {
            Ok(message) if message.is_text() || message.is_binary() => {
                socket.send(message).unwrap()
            }
            Ok(_) => {}
            Err(tungstenite::Error::ConnectionClosed) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let stream = socket.get_mut();
    matches!(stream.read(&mut [0; 1]), Ok(0))
}

#[test]
fn messages_are_exchanged_over_both_versions_of_tls() {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    for version in VERSIONS {
        let (address, server) = serve(identity.server_of(&[version]), move |stream| {
            assert_eq!(stream.conn.protocol_version(), Some(version.version));
            assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
            assert_eq!(stream.conn.server_name(), Some("localhost"));
            echo(stream)
        });
        let builder = builder("localhost", address).with_root_certificates(authority.file());
        // TLS does not change the client's type.
        let mut client: Client<TcpStream> = builder.connect().unwrap();
        assert_eq!(client.get_ref().peer_addr().unwrap(), address);
        client.send("Gr\u{fc}ezi").unwrap();
        assert_eq!(client.receive().unwrap().text(), Some("Gr\u{fc}ezi"));
        let large: Vec<u8> = (0..5_000_000_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
        client.send(Message::new_binary(large.clone())).unwrap();
        assert!(client.receive().unwrap().bytes() == large);
        client.close(CloseCode::NORMAL, "").unwrap();
        assert!(server.join().unwrap(), "close_notify is sent");
    }
}

#[test]
fn certificate_for_an_address_is_accepted() {
    let authority = Authority::new();
    let identity = authority.issue(&["127.0.0.1", "::1"]);
    for host in ["127.0.0.1", "[::1]"] {
        let config = identity.server();
        let (address, server) = serve_one_at(&format!("{host}:0"), |stream| {
            let stream = tls::accept(config, stream).unwrap();
            assert_eq!(
                stream.conn.server_name(),
                None,
                "RFC 6066 allows names only"
            );
            echo(stream)
        });
        let builder = builder(host, address).with_tls(trusting(&authority));
        let mut client = builder.connect().unwrap();
        client.close(CloseCode::NORMAL, "").unwrap();
        assert!(server.join().unwrap());
    }
}

#[test]
fn name_with_a_trailing_dot_matches_without_it() {
    let authority = Authority::new();
    let (address, server) = serve(authority.issue(&["localhost"]).server(), |stream| {
        assert_eq!(stream.conn.server_name(), Some("localhost"));
        echo(stream)
    });
    // Not every resolver knows this name.
    let builder = builder("localhost.", address).with_tls(trusting(&authority));
    let stream = TcpStream::connect(address).unwrap();
    let mut client = builder.connect_over(stream).unwrap();
    client.close(CloseCode::NORMAL, "").unwrap();
    server.join().unwrap();
}

#[test]
fn expired_certificate_is_refused_with_its_age() {
    let authority = Authority::new();
    let identity = authority.issue_for(&["localhost"], Validity::Past);
    let error = refused(&authority, identity.server());
    let TlsError::Expired { ago: Some(ago) } = error else {
        panic!("{error:?}");
    };
    assert!(ago > Duration::from_secs(365 * 86_400), "{ago:?}");
    let said = error.to_string();
    assert!(
        said.contains("expired") && said.contains("days ago"),
        "{said}"
    );
    let identity = authority.issue_for(&["localhost"], Validity::Future);
    let error = refused(&authority, identity.server());
    assert!(
        matches!(error, TlsError::NotYetValid { in_future: Some(_) }),
        "{error:?}"
    );
    assert!(error.to_string().contains("clock"), "{error}");
}

#[test]
fn unknown_issuer_is_refused_and_the_remedy_is_named() {
    let server = Authority::new().issue(&["localhost"]).server();
    let error = refused(&Authority::new(), server.clone());
    assert_eq!(error, TlsError::UnknownIssuer);
    assert!(
        error.to_string().contains("with_root_certificates"),
        "{error}"
    );
    // No authority of the system has issued it, either.
    let error = tls_error(builder("localhost", serve_in_vain(server)));
    assert!(
        matches!(error, TlsError::UnknownIssuer | TlsError::Roots(_)),
        "{error:?}"
    );
}

#[test]
fn wrong_name_is_refused_and_the_right_ones_are_named() {
    let authority = Authority::new();
    let names = ["a.example", "*.b.example", "10.1.2.3", "2001:db8::1"];
    let error = refused(&authority, authority.issue(&names).server());
    let said = error.to_string();
    let TlsError::WrongName {
        expected,
        presented,
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(expected.as_deref(), Some("localhost"));
    assert_eq!(presented[..3], names[..3]);
    let begin = "the server's certificate is not valid for localhost, but for a.example, *.b.example, 10.1.2.3";
    assert!(said.starts_with(begin), "{said}");
    // A name is not an address, and the other way round.
    let identity = authority.issue(&["localhost"]);
    let address = serve_in_vain(identity.server());
    let error = tls_error(builder("127.0.0.1", address).with_tls(trusting(&authority)));
    assert!(
        error
            .to_string()
            .contains("not valid for 127.0.0.1, but for localhost"),
        "{error}"
    );
}

#[test]
fn long_list_of_names_is_shortened() {
    let authority = Authority::new();
    let names: Vec<String> = (0..100).map(|n| format!("{n}.example")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let said = refused(&authority, authority.issue(&names).server()).to_string();
    assert!(said.ends_with("7.example and 92 more"), "{said}");
}

#[test]
fn self_signed_certificate_is_trusted_if_it_is_no_authority() {
    let identity = Identity::self_signed(&["localhost"], false);
    let (address, server) = serve(identity.server(), echo);
    let pem = file(&identity.pem);
    let builder_of = |address| builder("localhost", address).with_root_certificates(&pem);
    let mut client = builder_of(address).connect().unwrap();
    client.close(CloseCode::NORMAL, "").unwrap();
    server.join().unwrap();
    // Its name is checked nevertheless.
    let identity = Identity::self_signed(&["a.example"], false);
    let pem = file(&identity.pem);
    let builder = builder("localhost", serve_in_vain(identity.server()));
    let error = tls_error(builder.with_root_certificates(&pem));
    assert!(matches!(error, TlsError::WrongName { .. }), "{error:?}");
}

#[test]
fn certificate_of_an_authority_is_no_servers() {
    let identity = Identity::self_signed(&["localhost"], true);
    let pem = file(&identity.pem);
    let builder = builder("localhost", serve_in_vain(identity.server()));
    let error = tls_error(builder.with_root_certificates(pem));
    assert!(
        matches!(error, TlsError::InvalidCertificate(_)),
        "{error:?}"
    );
    assert!(error.to_string().contains("CA:FALSE"), "{error}");
}

#[test]
fn unusable_root_certificates_are_reported() {
    let nowhere = || Client::builder("wss://localhost:9/");
    let missing = tls_error(nowhere().with_root_certificates("no/such/file.pem"));
    assert!(matches!(missing, TlsError::Roots(_)), "{missing:?}");
    assert!(
        missing.to_string().contains("no/such/file.pem: "),
        "{missing}"
    );
    let authority = Authority::new();
    let (head, _) = authority.pem.split_at(200);
    for (pem, said) in [
        (String::new(), "no certificate in PEM"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
            "certificate 1: ",
        ),
        (format!("{}{head}", authority.pem), "certificate 2: "),
        (
            authority.pem.replace("CERTIFICATE", "PRIVATE KEY"),
            "no certificate in PEM",
        ),
    ] {
        let error = ClientTls::from_pem(pem.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    // The error of the URL comes first.
    let error = Client::builder("localhost").with_root_certificates("no/such/file.pem");
    assert!(matches!(error.connect(), Err(ClientError::Url(_))));
}

#[test]
fn plain_server_is_recognised() {
    let authority = Authority::new();
    for answer in [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "SSH-2.0-x\r\n",
        "220 hello\r\n",
    ] {
        let (address, _) = serve_one(move |mut stream| {
            stream.write_all(answer.as_bytes()).unwrap();
            let _ = stream.read(&mut [0; 1024]);
        });
        let error = tls_error(builder("localhost", address).with_tls(trusting(&authority)));
        assert_eq!(error, TlsError::NotTls, "{answer}");
        assert!(error.to_string().contains("use ws://"), "{error}");
    }
    let (address, _) = serve_one(drop);
    let error = tls_error(builder("localhost", address).with_tls(trusting(&authority)));
    assert_eq!(error, TlsError::HungUp);
}

#[test]
fn version_without_overlap_is_reported() {
    let authority = Authority::new();
    // protocol_version, handshake_failure.
    for (alert, said) in [
        (70, "neither TLS 1.2 nor TLS 1.3"),
        (40, "HandshakeFailure"),
    ] {
        let (address, _) = serve_one(move |mut stream| {
            let _ = stream.read(&mut [0; 1024]);
            stream.write_all(&[21, 3, 1, 0, 2, 2, alert]).unwrap();
        });
        let error = tls_error(builder("localhost", address).with_tls(trusting(&authority)));
        assert!(error.to_string().contains(said), "{error}");
    }
    let identity = authority.issue(&["localhost"]);
    let config = authority.client_of(&[&rustls::version::TLS13]);
    let address = serve_in_vain(identity.server_of(&[&rustls::version::TLS12]));
    let error = tls_error(builder("localhost", address).with_tls(ClientTls::from_config(config)));
    assert!(matches!(error, TlsError::Incompatible(_)), "{error:?}");
}

#[test]
fn client_certificate_is_sent_if_the_settings_have_one() {
    let authority = Authority::new();
    let server = authority.issue(&["localhost"]);
    let own = authority.issue(&["client.example"]);
    for version in VERSIONS {
        let config = server.server_for(&authority, version);
        let error = refused(&authority, config.clone());
        assert!(matches!(error, TlsError::Refused(_)), "{error:?}");
        assert!(error.to_string().contains("CertificateRequired"), "{error}");
        let (address, server) = serve(config, |stream| {
            assert!(stream.conn.peer_certificates().is_some());
            echo(stream)
        });
        let tls = ClientTls::from_config(authority.client_with(&own, &VERSIONS));
        let mut client = builder("localhost", address)
            .with_tls(tls)
            .connect()
            .unwrap();
        client.close(CloseCode::NORMAL, "").unwrap();
        server.join().unwrap();
    }
}

#[test]
fn connect_timeout_covers_the_tls_handshake() {
    let authority = Authority::new();
    for trickles in [false, true] {
        let (address, server) = serve_one(move |mut stream| {
            // The head of a record, whose rest comes slowly or not at all.
            stream.write_all(&[22, 3, 3, 0x40, 0]).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_millis(5)))
                .unwrap();
            let begun = Instant::now();
            while begun.elapsed() < DEADLINE {
                if trickles && stream.write_all(b"x").is_err() {
                    return;
                }
                match stream.read(&mut [0; 1024]) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error)
                        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => return,
                }
            }
            panic!("the client does not give up");
        });
        let builder = builder("localhost", address).with_tls(trusting(&authority));
        let error = builder
            .with_connect_timeout(Duration::from_millis(300))
            .connect();
        assert!(
            matches!(error, Err(ClientError::TimedOut)),
            "{:?}",
            error.map(drop)
        );
        server.join().unwrap();
    }
}

#[test]
fn next_connection_resumes_the_tls_session() {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    for version in VERSIONS {
        let (config, tls) = (identity.server_of(&[version]), trusting(&authority));
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let (address, server) = serve(config.clone(), move |stream| {
                assert_eq!(stream.conn.handshake_kind(), Some(kind));
                echo(stream)
            });
            let builder = builder("localhost", address).with_tls(tls.clone());
            let mut client = builder.connect().unwrap();
            client.close(CloseCode::NORMAL, "").unwrap();
            server.join().unwrap();
        }
    }
}

#[test]
fn cut_connection_is_told_from_an_announced_end() {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    for is_announced in [false, true] {
        let (address, server) = serve(identity.server(), move |stream| {
            let mut socket = tungstenite::accept(stream).unwrap();
            socket.send("last words".into()).unwrap();
            if is_announced {
                tls::announce_end(socket.get_mut());
            }
        });
        let mut client = builder("localhost", address)
            .with_tls(trusting(&authority))
            .connect()
            .unwrap();
        server.join().unwrap();
        assert_eq!(client.receive().unwrap().text(), Some("last words"));
        let error = client.receive().unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, ClientError::Lost(_)), "{error:?}");
        assert_eq!(said.contains("it was cut"), !is_announced, "{said}");
        assert_eq!(
            said.contains("without a close frame"),
            is_announced,
            "{said}"
        );
        assert!(matches!(client.receive(), Err(ClientError::Lost(_))));
    }
}

#[test]
fn read_timeout_in_a_record_loses_nothing() {
    let authority = Authority::new();
    let (address, server) = serve(authority.issue(&["localhost"]).server(), |stream| {
        let mut socket = tungstenite::accept(stream).unwrap();
        let stream = socket.get_mut();
        stream.conn.writer().write_all(b"\x81\x04half").unwrap();
        let mut record = Vec::new();
        stream.conn.write_tls(&mut record).unwrap();
        let (begin, rest) = record.split_at(record.len() / 2);
        stream.sock.write_all(begin).unwrap();
        // The client has noticed.
        assert_eq!(socket.read().unwrap(), tungstenite::Message::text("go on"));
        socket.get_mut().sock.write_all(rest).unwrap();
        let _ = socket.read();
    });
    let mut client = builder("localhost", address)
        .with_tls(trusting(&authority))
        .with_read_timeout(Some(Duration::from_millis(50)))
        .connect()
        .unwrap();
    assert!(matches!(client.receive(), Err(ClientError::TimedOut)));
    client.send("go on").unwrap();
    let begun = Instant::now();
    let message = loop {
        match client.receive() {
            Err(ClientError::TimedOut) if begun.elapsed() < DEADLINE => {}
            received => break received.unwrap(),
        }
    };
    assert_eq!(message.text(), Some("half"));
    drop(client);
    server.join().unwrap();
}

#[test]
fn write_timeout_leaves_received_messages_readable() {
    let authority = Authority::new();
    let (done, is_done) = channel();
    let (address, server) = serve(authority.issue(&["localhost"]).server(), move |stream| {
        let mut socket = tungstenite::accept(stream).unwrap();
        socket.send("I do not read".into()).unwrap();
        is_done.recv_timeout(DEADLINE).unwrap();
    });
    let mut client = builder("localhost", address)
        .with_tls(trusting(&authority))
        .with_write_timeout(Some(Duration::from_millis(200)))
        .connect()
        .unwrap();
    let error = client
        .send(Message::new_binary(vec![7; 64 << 20]))
        .unwrap_err();
    assert!(matches!(error, ClientError::TimedOut), "{error:?}");
    assert!(matches!(client.send("more"), Err(ClientError::Lost(_))));
    assert_eq!(client.receive().unwrap().text(), Some("I do not read"));
    done.send(()).unwrap();
    server.join().unwrap();
}

#[cfg(unix)]
#[test]
fn tls_runs_over_a_stream_of_the_program() {
    use std::os::unix::net::UnixStream;

    let authority = Authority::new();
    let config = authority.issue(&["localhost"]).server();
    let (own, other) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || {
        let connection = rustls::ServerConnection::new(config).unwrap();
        let mut socket = tungstenite::accept(rustls::StreamOwned::new(connection, other)).unwrap();
        let message = socket.read().unwrap();
        socket.send(message).unwrap();
        let _ = socket.read();
    });
    let mut client: Client<UnixStream> = Client::builder("wss://localhost/")
        .with_tls(trusting(&authority))
        .connect_over(own)
        .unwrap();
    client.send("over a Unix socket").unwrap();
    assert_eq!(client.receive().unwrap().text(), Some("over a Unix socket"));
    drop(client);
    server.join().unwrap();
}
