//! Certificates: of clients, by server name, and their renewal while connections are open.

use crate::certificates::{
    Authority, Identity, VERSIONS, client_builder, provider, roots, server_builder,
};
use crate::support;
use crate::tls_clients;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use humphrey_ws::tls::Tls;
use humphrey_ws::{Accept, AsyncWebsocketApp, Message, RunningApp};
use rcgen::{KeyPair, PKCS_ED25519};
use rustls::pki_types::CertificateDer;
use rustls::server::ResolvesServerCertUsingSni;
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, HandshakeKind};
use support::{
    DEADLINE, client_frame, eventually, raise_descriptors, read_frame, read_head, start,
    upgrade_request,
};
use tls_clients::{TlsStream, connect, connect_as, directory, raw_websocket};

const STOP: Duration = Duration::from_millis(100);

fn echo() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_message_handler(|stream, message: Message, _| stream.send(message))
}

fn echoes(client: &mut TlsStream, text: &str) {
    client
        .write_all(&client_frame(0x81, text.as_bytes()))
        .unwrap();
    assert_eq!(
        read_frame(client).unwrap(),
        (0x81, text.as_bytes().to_vec())
    );
}

/// Returns the certificate that the server shows to a new client.
fn shown(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> CertificateDer<'static> {
    let mut client = connect_as(address, config, name);
    while client.conn.is_handshaking() {
        client
            .conn
            .complete_io(&mut client.sock)
            .expect("the certificate is accepted");
    }
    client.conn.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

#[test]
fn client_certificate_is_passed_to_handlers() {
    let authority = Authority::new();
    let clients = Authority::new();
    let (seen, saw) = channel();
    let seen = Mutex::new(seen);
    let tls = Tls::from_config(
        authority
            .issue(&["localhost"])
            .server_config_for(&clients, &VERSIONS),
    )
    .unwrap();
    let (running, address) = start(echo().with_tls(tls).with_handshake_handler(
        move |request, _| {
            let certificates = request.client_certificates().to_vec();
            seen.lock().unwrap().send(certificates).unwrap();
            Ok(Accept::new())
        },
    ));
    for version in VERSIONS {
        let alice = clients.issue(&["alice"]);
        let config = authority.client_with(&alice, &[version]);
        // The second session is resumed, and has the certificate, too.
        for _ in 0..2 {
            let mut client = raw_websocket(address, &config);
            assert_eq!(saw.recv_timeout(DEADLINE).unwrap(), alice.chain());
            echoes(&mut client, "hello");
        }
    }
    assert_eq!(running.sender().metrics().tls.resumed, 2);
    running.shutdown(STOP);
}

/// Connects, and returns why that or the first request fails.
fn refused(address: SocketAddr, config: &Arc<ClientConfig>) -> String {
    let mut client = connect(address, config);
    let outcome = client
        .write_all(upgrade_request("/").as_bytes())
        .and_then(|()| client.read(&mut [0]));
    match outcome {
        Ok(n) => panic!("the client was accepted: {n}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn client_without_an_accepted_certificate_is_refused() {
    let authority = Authority::new();
    let clients = Authority::new();
    let tls = Tls::from_config(
        authority
            .issue(&["localhost"])
            .server_config_for(&clients, &VERSIONS),
    )
    .unwrap();
    let (running, address) = start(echo().with_tls(tls));
    let sender = running.sender();
    let mut refusals = 0;
    for version in VERSIONS {
        let stranger = Authority::new().issue(&["mallory"]);
        for config in [
            authority.client_of(&[version]),
            authority.client_with(&stranger, &[version]),
        ] {
            let error = refused(address, &config);
            assert!(error.contains("fatal alert"), "{error}");
            refusals += 1;
            eventually("the refusal is counted", || {
                sender.metrics().tls.client_certificates == refusals
            });
        }
    }
    assert_eq!(sender.metrics().tls.handshakes, 0);
    running.shutdown(STOP);
}

#[test]
fn client_of_a_withdrawn_authority_fails_with_its_old_ticket() {
    let authority = Authority::new();
    let (old, new) = (Authority::new(), Authority::new());
    let server = authority.issue(&["localhost"]);
    let tls = Tls::from_config(server.server_config_for(&old, &VERSIONS)).unwrap();
    let (running, address) = start(echo().with_tls(tls.clone()));
    let configs = VERSIONS.map(|version| authority.client_with(&old.issue(&["alice"]), &[version]));
    let mut open = Vec::new();
    for config in &configs {
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut client = raw_websocket(address, config);
            echoes(&mut client, "accepted");
            assert_eq!(client.conn.handshake_kind(), Some(kind));
            open.push(client);
        }
    }
    tls.set(server.server_config_for(&new, &VERSIONS)).unwrap();
    for config in &configs {
        let error = refused(address, config);
        assert!(error.contains("fatal alert"), "{error}");
    }
    // Open connections continue.
    for client in &mut open {
        echoes(client, "still here");
    }
    running.shutdown(STOP);
}

#[test]
fn server_name_selects_the_certificate() {
    let authority = Authority::new();
    let mut by_name = ResolvesServerCertUsingSni::new();
    let identities = ["one.example", "two.example"].map(|name| (name, authority.issue(&[name])));
    for (name, identity) in &identities {
        let key = provider()
            .key_provider
            .load_private_key(identity.key())
            .unwrap();
        by_name
            .add(name, CertifiedKey::new(identity.chain(), key))
            .unwrap();
    }
    let config = server_builder(&VERSIONS)
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(by_name));
    let (running, address) = start(echo().with_tls(Tls::from_config(config).unwrap()));
    for version in VERSIONS {
        let client = authority.client_of(&[version]);
        for (name, identity) in &identities {
            assert_eq!(shown(address, &client, name), identity.certificate);
        }
        let mut stranger = connect_as(address, &client, "three.example");
        assert!(stranger.write_all(b"x").is_err());
    }
    running.shutdown(STOP);
}

/// Starts an app with a certificate in files, and returns their names.
fn start_with_files(
    authority: &Authority,
    directory: &Path,
) -> (RunningApp, SocketAddr, Tls, Identity) {
    let identity = authority.issue(&["localhost"]);
    let (certificates, key) = identity.write(directory);
    let tls = Tls::from_pem_files(certificates, key).unwrap();
    let (running, address) = start(echo().with_tls(tls.clone()));
    (running, address, tls, identity)
}

#[test]
fn open_connections_survive_reloads() {
    const CONNECTIONS: usize = 200;
    const RELOADS: u64 = 20;
    raise_descriptors(1_024);
    let authority = Authority::new();
    let files = directory("tls reloads");
    let (running, address, tls, identity) = start_with_files(&authority, &files);
    let config = authority.client();
    assert_eq!(shown(address, &config, "localhost"), identity.certificate);
    let mut open: Vec<_> = (0..CONNECTIONS)
        .map(|_| raw_websocket(address, &config))
        .collect();
    for n in 0..RELOADS {
        let identity = authority.issue(&["localhost"]);
        identity.write(&files);
        tls.reload().unwrap();
        // A client that comes with a ticket of before gets a full handshake.
        let mut newcomer = raw_websocket(address, &config);
        assert_eq!(newcomer.conn.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(
            newcomer.conn.peer_certificates().unwrap()[0],
            identity.certificate
        );
        echoes(&mut newcomer, "new");
        let some = open.iter_mut().skip(n as usize).step_by(7);
        for client in some {
            echoes(client, "open");
        }
    }
    for client in &mut open {
        echoes(client, "open");
    }
    let sender = running.sender();
    assert_eq!(sender.metrics().tls.reloads, RELOADS);
    eventually("the first client and the newcomers have left", || {
        sender.connections() == CONNECTIONS && sender.metrics().tls.truncated == RELOADS + 1
    });
    running.shutdown(STOP);
}

#[test]
fn new_certificates_are_noticed() {
    let authority = Authority::new();
    let files = directory("tls watch");
    let (running, address, tls, _) = start_with_files(&authority, &files);
    let _watched = tls.watch(Duration::from_millis(5)).unwrap();
    let sender = running.sender();
    let config = authority.client();
    for _ in 0..5 {
        let identity = authority.issue(&["localhost"]);
        identity.write(&files);
        eventually("the new certificate is shown", || {
            shown(address, &config, "localhost") == identity.certificate
        });
    }
    // The certificate of before stays while the files can't be used.
    let identity = authority.issue(&["localhost"]);
    let before = shown(address, &config, "localhost");
    let reloads = sender.metrics().tls.reloads;
    fs::write(files.join("cert.pem"), "damaged").unwrap();
    fs::remove_file(files.join("key.pem")).unwrap();
    assert_eq!(shown(address, &config, "localhost"), before);
    assert_eq!(sender.metrics().tls.reloads, reloads);
    identity.write(&files);
    eventually("the new certificate is shown", || {
        shown(address, &config, "localhost") == identity.certificate
    });
    running.shutdown(STOP);
}

#[test]
fn unusable_files_keep_the_certificate_and_are_named() {
    let authority = Authority::new();
    let files = directory("tls unusable");
    let (running, address, tls, identity) = start_with_files(&authority, &files);
    let config = authority.client();
    let other = authority.issue(&["localhost"]);
    let (certificates, key) = (files.join("cert.pem"), files.join("key.pem"));
    let damaged = other.pem.replace('M', "!");
    let encrypted = other
        .key_pem
        .replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let cut = &other.key_pem[..80];
    for (file, content, named) in [
        (&certificates, None, &certificates),
        (&certificates, Some(""), &certificates),
        (&certificates, Some("no certificate"), &certificates),
        (&certificates, Some(&*damaged), &certificates),
        (&certificates, Some(&*other.key_pem), &certificates),
        // The certificate of another key.
        (&certificates, Some(&*other.pem), &key),
        (&key, None, &key),
        (&key, Some(""), &key),
        (&key, Some(&*other.pem), &key),
        (&key, Some(&*encrypted), &key),
        (&key, Some(cut), &key),
        (&key, Some(&*other.key_pem), &certificates),
    ] {
        identity.write(&files);
        match content {
            Some(content) => fs::write(file, content).unwrap(),
            None => fs::remove_file(file).unwrap(),
        }
        let error = tls.reload().expect_err("the files can't be used");
        let text = error.to_string();
        assert!(text.contains(named.to_str().unwrap()), "{text}");
        assert!(Tls::from_pem_files(&certificates, &key).is_err());
        assert_eq!(shown(address, &config, "localhost"), identity.certificate);
    }
    assert_eq!(running.sender().metrics().tls.reloads, 0);
    running.shutdown(STOP);
}

#[test]
fn both_may_be_in_one_file_in_any_order() {
    let authority = Authority::new();
    let files = directory("tls one file");
    let identity = authority.issue(&["localhost"]);
    let (file, config) = (files.join("both.pem"), authority.client());
    for parts in [
        [&identity.pem, &identity.key_pem],
        [&identity.key_pem, &identity.pem],
    ] {
        fs::write(&file, parts.map(|part| &**part).concat()).unwrap();
        let (running, address) = start(echo().with_tls(Tls::from_pem_files(&file, &file).unwrap()));
        assert_eq!(shown(address, &config, "localhost"), identity.certificate);
        running.shutdown(STOP);
    }
}

#[test]
fn ed25519_certificate_can_be_used() {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let identity = Identity::self_signed_with(&key, &["localhost"], false);
    let (certificates, key) = identity.write(&directory("tls ed25519"));
    let tls = Tls::from_pem_files(certificates, key).unwrap();
    let (running, address) = start(echo().with_tls(tls));
    let config = client_builder(roots(&identity.certificate), &VERSIONS).with_no_client_auth();
    echoes(&mut raw_websocket(address, &Arc::new(config)), "hello");
    running.shutdown(STOP);
}

#[test]
fn handle_of_a_configuration_has_no_files() {
    let tls = Authority::new().app_tls();
    assert!(tls.reload().unwrap_err().to_string().contains("`set`"));
    assert!(
        tls.watch(STOP)
            .unwrap_err()
            .to_string()
            .contains("no files")
    );
}

#[test]
fn resumed_sessions_are_counted() {
    let authority = Authority::new();
    let (running, address) = start(echo().with_tls(authority.app_tls()));
    let mut resumed = 0;
    for version in VERSIONS {
        let config = authority.client_of(&[version]);
        for n in 0..4 {
            let mut client = raw_websocket(address, &config);
            echoes(&mut client, "hello");
            let kind = match n {
                0 => HandshakeKind::Full,
                _ => HandshakeKind::Resumed,
            };
            assert_eq!(client.conn.handshake_kind(), Some(kind));
            resumed += u64::from(n > 0);
        }
    }
    let tls = running.sender().metrics().tls;
    assert_eq!((tls.handshakes, tls.resumed), (8, resumed));
    running.shutdown(STOP);
}

#[test]
fn early_data_is_not_accepted() {
    let authority = Authority::new();
    let mut config = authority.issue(&["localhost"]).server_config(&VERSIONS);
    config.max_early_data_size = 16_384;
    let (running, address) = start(echo().with_tls(Tls::from_config(config).unwrap()));
    let mut config = Arc::unwrap_or_clone(authority.client_of(&[&TLS13]));
    config.enable_early_data = true;
    let config = Arc::new(config);
    echoes(&mut raw_websocket(address, &config), "first");
    let mut client = connect(address, &config);
    assert!(
        client.conn.early_data().is_none(),
        "the ticket allows early data"
    );
    client.write_all(upgrade_request("/").as_bytes()).unwrap();
    assert!(read_head(&mut client).starts_with("HTTP/1.1 101 "));
    running.shutdown(STOP);
}
