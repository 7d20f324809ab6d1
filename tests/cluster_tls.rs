//! Nodes that reach each other over a real Redis with TLS, and servers that they refuse.
//!
//! Without a `redis-server` on this machine, some of these tests say so and pass; `.ci/run` installs one.

use crate::brokers::NatsServer;
use crate::brokers::RedisServer;
use crate::certificates::{Authority, Identity, VERSIONS, Validity, file};
use crate::nodes::{Node, hear_each_other, joining, stop};
use crate::support::{DEADLINE, eventually};
use crate::tcp_proxy::TcpProxy;
use crate::tls_servers as tls;

use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
#[cfg(target_os = "linux")]
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use humphrey_ws::{AsyncWebsocketApp, Cluster, Message, SendErrorReason};
use rustls::ServerConfig;

/// Starts a Redis server with this certificate and further options.
fn redis_with(authority: &Authority, identity: &Identity, options: &[&str]) -> Option<RedisServer> {
    let (certificate, key) = (file(&identity.pem), file(&identity.key_pem));
    let authority = authority.file();
    let files = [
        ["--tls-cert-file", certificate.to_str().unwrap()],
        ["--tls-key-file", key.to_str().unwrap()],
        ["--tls-ca-cert-file", authority.to_str().unwrap()],
        ["--tls-auth-clients", "no"],
    ];
    let options = [files.as_flattened(), options].concat();
    RedisServer::start_tls(&options)
}

fn redis(authority: &Authority) -> Option<RedisServer> {
    redis_with(
        authority,
        &authority.issue(&["localhost", "127.0.0.1"]),
        &[],
    )
}

fn trusting(authority: &Authority, url: String) -> Cluster {
    Cluster::new(url).root_certificates(authority.file())
}

/// Lets a message pass from each node to a client of the other.
fn exchange(nodes: &[Node; 2]) {
    for (from, to) in [(0, 1), (1, 0)] {
        let mut client = nodes[to].join("a");
        nodes[from].sender.room("a").broadcast("over TLS");
        assert_eq!(client.receive_text(), "over TLS");
    }
}

#[test]
fn nodes_reach_each_other_over_nats_with_tls() {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let (certificate, key) = (file(&identity.pem), file(&identity.key_pem));
    let config = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}\nauthorization {{ token: t0ken }}",
        certificate, key
    );
    let Some(nats) = NatsServer::start(&config) else {
        return;
    };
    let url = |scheme: &str, host: &str| {
        let port = nats.address().port();
        format!("{scheme}://t0ken@{host}:{port}")
    };
    let cluster = || trusting(&authority, url("tls", "localhost"));
    let nodes = [0; 2].map(|_| Node::joining(cluster()));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    exchange(&nodes);
    let mut client = nodes[1].join("a");
    let long = vec![7; 900_000];
    nodes[0]
        .sender
        .room("a")
        .broadcast(Message::new_binary(long.clone()));
    assert!(client.receive().into_data()[..] == long);
    stop(nodes);
    // Another name, an authority that is not trusted, and no TLS.
    for (authority, scheme, host) in [
        (&authority, "tls", "127.0.0.1"),
        (&Authority::new(), "tls", "localhost"),
        (&authority, "nats", "localhost"),
    ] {
        let proxy = TcpProxy::start(nats.address());
        let url = format!("{scheme}://t0ken@{host}:{}", proxy.address().port());
        let cluster = match scheme {
            "tls" => trusting(authority, url),
            _ => Cluster::new(url),
        };
        let node = Node::start(joining().with_cluster(cluster));
        eventually("a connection has failed", || proxy.connections() > 1);
        let mut client = node.join("a");
        node.sender.room("a").broadcast("local");
        assert_eq!(client.receive_text(), "local");
        assert_eq!(node.metrics().connections, 0);
        node.stop();
    }
    // Servers that stand in for each other, of which the first one does not answer: the certificate is checked of each.
    let url = url("tls", "localhost").replace("t0ken@", "t0ken@localhost:1,");
    Node::joining(trusting(&authority, url)).stop();
}

#[test]
fn nodes_reach_each_other_over_tls() {
    let authority = Authority::new();
    let Some(redis) = redis(&authority) else {
        return;
    };
    for host in ["localhost", "127.0.0.1"] {
        let cluster = || trusting(&authority, redis.tls_url("", host));
        let nodes = [0; 2].map(|_| Node::joining(cluster()));
        hear_each_other(&[&nodes[0], &nodes[1]]);
        exchange(&nodes);
        let mut client = nodes[1].join("a");
        let room = nodes[0].sender.room("a");
        let long: Vec<u8> = (0..1_000_000_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
        room.broadcast(Message::new_binary(long.clone()));
        assert!(client.receive().into_data()[..] == long);
        for n in 0..5_000 {
            room.broadcast(n.to_string());
        }
        for n in 0..5_000 {
            assert_eq!(client.receive_text(), n.to_string());
        }
        stop(nodes);
    }
}

#[test]
fn both_versions_of_tls_are_spoken() {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    for version in ["TLSv1.2", "TLSv1.3"] {
        let options = ["--tls-protocols", version];
        let Some(redis) = redis_with(&authority, &identity, &options) else {
            return;
        };
        let cluster = || trusting(&authority, redis.tls_url("", "localhost"));
        let nodes = [0; 2].map(|_| Node::joining(cluster()));
        exchange(&nodes);
        stop(nodes);
    }
}

#[test]
fn self_signed_certificate_in_the_file_is_trusted() {
    let authority = Authority::new();
    let identity = Identity::self_signed(&["localhost"], false);
    let Some(redis) = redis_with(&authority, &identity, &[]) else {
        return;
    };
    let cluster = Cluster::new(redis.tls_url("", "localhost"));
    Node::joining(cluster.root_certificates(file(&identity.pem))).stop();
}

#[test]
fn password_and_acl_user_work_over_tls() {
    let authority = Authority::new();
    let Some(redis) = redis(&authority) else {
        return;
    };
    let documented = include_str!("../docs/cluster.md");
    let rights = documented
        .lines()
        .find_map(|line| line.trim().strip_prefix("`+hello "));
    let rights = format!("+hello {}", rights.expect("they are documented"));
    let rights = rights.split('`').next().unwrap().split(' ');
    let user = ["ACL", "SETUSER", "me", "on", ">p@ss", "&humphrey_ws:*"];
    let user: Vec<&str> = user.into_iter().chain(rights).collect();
    assert_eq!(redis.command(&user), "+OK\r\n");
    redis.command(&["CONFIG", "SET", "requirepass", "hunter2"]);
    let nodes = ["me:p%40ss@", ":hunter2@"].map(|credentials| {
        Node::joining(trusting(
            &authority,
            redis.tls_url(credentials, "localhost"),
        ))
    });
    exchange(&nodes);
    stop(nodes);
}

#[test]
fn nodes_reach_each_other_again_after_a_restart_over_tls() {
    let authority = Authority::new();
    let Some(mut redis) = redis(&authority) else {
        return;
    };
    let url = redis.tls_url("", "localhost");
    let nodes = [0; 2].map(|_| Node::joining(trusting(&authority, url.clone())));
    for _ in 0..3 {
        redis.kill();
        nodes.iter().for_each(Node::wait_until_disconnected);
        redis.restart();
        nodes.iter().for_each(Node::wait_until_connected);
        hear_each_other(&[&nodes[0], &nodes[1]]);
        exchange(&nodes);
    }
    stop(nodes);
}

#[test]
fn messages_to_a_frozen_server_are_sent_once_it_reads_again() {
    let authority = Authority::new();
    let Some(redis) = redis(&authority) else {
        return;
    };
    let url = redis.tls_url("", "localhost");
    let nodes = [0; 2].map(|_| Node::joining(trusting(&authority, url.clone())));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    redis.freeze();
    // More than the sockets' buffers and rustls take, so that parts of records wait.
    let message = Message::new("x".repeat(100_000));
    let mut queued = 0;
    let refused = loop {
        match nodes[0].sender.try_broadcast(message.clone()) {
            Ok(()) => queued += 1,
            Err(refused) => break refused,
        }
    };
    redis.thaw();
    assert_eq!(refused.reason, SendErrorReason::Full);
    assert!(queued > 80, "{queued}");
    eventually("all messages arrive", || {
        nodes[1].metrics().received == queued
    });
    assert_eq!(nodes[0].metrics().connections, 1);
    stop(nodes);
}

/// Starts a server that accepts this number of clients, each of which is expected to refuse it. Returns their errors.
fn start_refused(
    config: Arc<ServerConfig>,
    clients: usize,
) -> (SocketAddr, JoinHandle<Vec<io::Error>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let accept = |_| {
            let (socket, _) = listener.accept().unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            handshake_error(config.clone(), socket)
        };
        (0..clients).map(accept).collect()
    });
    (address, server)
}

/// Returns the error of the handshake or, if the client refuses the server after the server has completed it, of the first
/// read.
fn handshake_error(config: Arc<ServerConfig>, socket: TcpStream) -> io::Error {
    let mut stream = match tls::accept(config, socket) {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    let mut received = [0; 100];
    match stream.read(&mut received) {
        Ok(len) => panic!(
            "received {:?}",
            String::from_utf8_lossy(&received[..len]).into_owned()
        ),
        Err(error) => error,
    }
}

#[test]
fn server_without_a_valid_certificate_receives_no_password() {
    let authority = Authority::new();
    let identities = [
        (
            "of another authority",
            Authority::new().issue(&["localhost"]),
        ),
        ("self-signed", Identity::self_signed(&["localhost"], false)),
        ("for another name", authority.issue(&["redis.internal"])),
        ("for an address", authority.issue(&["127.0.0.1"])),
        (
            "expired",
            authority.issue_for(&["localhost"], Validity::Past),
        ),
        (
            "not valid yet",
            authority.issue_for(&["localhost"], Validity::Future),
        ),
    ];
    for (what, identity) in identities {
        for version in VERSIONS {
            // The second attempt follows soon, and later ones after seconds.
            let (address, server) = start_refused(identity.server_of(&[version]), 2);
            let url = format!("rediss://me:hunter2@localhost:{}", address.port());
            let node = Node::start(joining().with_cluster(trusting(&authority, url)));
            for error in server.join().unwrap() {
                let error = error.to_string();
                assert!(error.contains("received fatal alert"), "{what}: {error}");
            }
            let metrics = node.metrics();
            assert_eq!(
                (metrics.connections, metrics.servers_connected),
                (0, 0),
                "{what}"
            );
            node.stop();
        }
    }
}

/// The environment variable that marks a child process.
#[cfg(target_os = "linux")]
const CHILD: &str = "HUMPHREY_WS_CLUSTER_TLS_CASE";

/// The file of the system's authorities is a variable of the environment, so this runs in a process of its own.
#[cfg(target_os = "linux")]
#[test]
fn system_authorities_are_trusted_and_a_refusal_is_logged() {
    if let Some(path) = std::env::var_os(CHILD) {
        let trusted = Authority::new();
        std::fs::write(path, &trusted.pem).unwrap();
        let (address, server) = crate::support::serve_one({
            let config = trusted.issue(&["127.0.0.1"]).server();
            move |socket| tls::accept(config, socket).map(drop)
        });
        let node = Node::start(joining().with_cluster(format!("rediss://{address}")));
        server.join().unwrap().expect("the node trusts the server");
        node.stop();
        let identity = Authority::new().issue(&["127.0.0.1"]);
        let (address, server) = start_refused(identity.server(), 2);
        let node = Node::start(joining().with_cluster(format!("rediss://me:hunter2@{address}")));
        server.join().unwrap();
        node.stop();
        return;
    }
    let path = file("");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("cluster_tls::system_authorities_are_trusted_and_a_refusal_is_logged")
        .env(CHILD, &path)
        .env("SSL_CERT_FILE", &path)
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stdout.contains("1 passed"), "{stdout}{stderr}");
    let said = stderr
        .lines()
        .filter(|line| line.contains("was not issued by a trusted authority"))
        .count();
    assert_eq!(said, 1, "{stderr}");
    assert!(!stderr.contains("hunter2"), "{stderr}");
}

#[test]
fn node_tries_again_seldom_until_the_certificate_is_valid() {
    let authority = Authority::new();
    let expired = authority.issue_for(&["localhost"], Validity::Past);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "rediss://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    let node = Node::start(joining().with_cluster(trusting(&authority, url)));
    let accept = || {
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    };
    for _ in 0..2 {
        handshake_error(expired.server(), accept());
    }
    let refused = Instant::now();
    let renewed = authority.issue(&["localhost"]);
    let mut stream = tls::accept(renewed.server(), accept()).unwrap();
    assert!(refused.elapsed() > Duration::from_secs(4));
    let mut received = [0; 1];
    stream.read_exact(&mut received).unwrap();
    // The first command, as an array.
    assert_eq!(received, *b"*");
    node.stop();
}

#[test]
fn handshake_without_an_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("rediss://{}", listener.local_addr().unwrap());
    let node = Node::start(joining().with_cluster(trusting(&Authority::new(), url)));
    let (mut first, _) = listener.accept().unwrap();
    first.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut received = Vec::new();
    first.read_to_end(&mut received).expect("the node hangs up");
    // A TLS record with a handshake message.
    assert_eq!(received[..2], [22, 3]);
    let _second = listener.accept().unwrap();
    node.stop();
}

#[test]
fn unusable_tls_settings_are_refused_at_the_start() {
    let error = |cluster: Cluster| {
        let app = AsyncWebsocketApp::<()>::new().with_address("127.0.0.1:0");
        match app.with_cluster(cluster).start() {
            Ok(_) => panic!("the app has started"),
            Err(error) => error.to_string(),
        }
    };
    let authority = Authority::new().file();
    let none = file("no certificate");
    let url = "rediss://:secret@localhost";
    for (cluster, says) in [
        (
            Cluster::new(url).root_certificates("/no/such/file.pem"),
            "/no/such/file.pem",
        ),
        (
            Cluster::new(url).root_certificates(&none),
            "no certificate in PEM",
        ),
        (
            Cluster::new("redis://localhost").root_certificates(&authority),
            "not encrypted",
        ),
        (
            Cluster::new("rediss://:secret@local..host").root_certificates(&authority),
            "neither a DNS name nor an IP address",
        ),
        (
            Cluster::new("redis://localhost,rediss://localhost").root_certificates(&authority),
            "same server",
        ),
    ] {
        let error = error(cluster);
        assert!(error.contains(says), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
