//! `/health` and `/ready`, as load balancers and orchestrators ask for them.
#![cfg(unix)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use support::{DEADLINE, Program, eventually, http, http_get};

const STOPPING: &str = "not ready: the server is stopping\n";

/// The address that `--metrics` has.
fn metrics_address(program: &mut Program) -> SocketAddr {
    let line = program.expect_line("metrics");
    let address = line.rsplit("http://").next().unwrap();
    address.strip_suffix("/metrics").unwrap().parse().unwrap()
}

/// The status and body of a probe on a new connection.
fn probe(address: SocketAddr, path: &str) -> (u16, String) {
    let (status, _, body) = http_get(address, path);
    (status, body)
}

#[test]
fn probes_are_200_while_the_server_runs() {
    let mut program = Program::start(&["--metrics", "127.0.0.1:0"]);
    for address in [metrics_address(&mut program), program.address()] {
        for (path, expected) in [("/health", "ok\n"), ("/ready", "ready\n")] {
            let (status, head, body) = http_get(address, path);
            assert_eq!((status, body.as_str()), (200, expected));
            assert!(head.contains("Cache-Control: no-store"), "{head}");
            let (status, head, body) = http(address, "HEAD", path, "", b"");
            assert_eq!((status, body.as_str()), (200, ""), "{path}: {head}");
            assert_eq!(http(address, "POST", path, "", b"").0, 405, "{path}");
            assert_eq!(probe(address, &format!("{path}/")).0, 404, "{path}/");
        }
    }
}

/// As `option httpchk GET /ready` of HAProxy does.
#[test]
fn probe_over_http_1_0_without_a_host_is_answered() {
    let program = Program::start(&[]);
    let mut socket = TcpStream::connect(program.address()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.write_all(b"GET /ready HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nready\n"), "{answer}");
}

#[test]
fn rooms_may_have_the_names_of_the_probes() {
    let program = Program::start(&["--no-welcome", "--publish-token=x"]);
    let token = "Authorization: Bearer x\r\n";
    for name in ["/health", "/ready"] {
        let mut client = program.connect_to(name);
        eventually("the client is in the room", || {
            let path = format!("/clients{name}");
            http_get(program.address(), &path).2.contains("\"room\": 1")
        });
        let (status, answer) = program.publish(name, token, name.as_bytes());
        assert_eq!((status, answer.trim()), (200, r#"{"members": 1}"#));
        assert_eq!(client.text(), name);
    }
}

#[test]
fn full_server_answers_probes_on_the_metrics_address_only() {
    let mut program = Program::start(&["--metrics=127.0.0.1:0", "--max-connections=1"]);
    let metrics = metrics_address(&mut program);
    let _only = program.connect();
    for (path, expected) in [("/health", "ok\n"), ("/ready", "ready\n")] {
        assert_eq!(probe(metrics, path), (200, expected.to_owned()));
        let (status, body) = probe(program.address(), path);
        assert_eq!(
            (status, body.as_str()),
            (503, "too many connections\n"),
            "{path}"
        );
    }
}

#[test]
fn stopping_server_is_not_ready_but_alive_on_the_metrics_address() {
    for input_ends in [false, true] {
        let arguments = ["--no-welcome", "--metrics=127.0.0.1:0", "--exit-on-eof"];
        let mut program = Program::start(&arguments);
        let metrics = metrics_address(&mut program);
        // It does not answer the close frame, so the server waits for it.
        let client = program.connect();
        assert_eq!(probe(metrics, "/ready"), (200, "ready\n".to_owned()));
        match input_ends {
            true => program.close_input(),
            false => program.signal(rustix::process::Signal::TERM),
        }
        program.expect_refusal();
        assert_eq!(probe(metrics, "/ready"), (503, STOPPING.to_owned()));
        assert_eq!(probe(metrics, "/health"), (200, "ok\n".to_owned()));
        drop(client);
        program.expect_exit(0);
    }
}

/// Asks for `/ready` on a connection that stays open. Returns the status and the body, or `None` if the server has closed
/// the connection.
fn ready_on(connection: &mut TcpStream) -> Option<(u16, String)> {
    let request = b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n";
    connection.write_all(request).ok()?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    connection.read_exact(&mut body).unwrap();
    let status = head[9..12].parse().unwrap();
    Some((status, String::from_utf8(body).unwrap()))
}

#[test]
fn ready_is_503_on_an_open_connection_while_lines_are_delivered() {
    // More than sockets, outbox and mailbox hold together, so that the input ends only once the client has read a part.
    const LINES: usize = 16_000;
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof", "--slow-client=pace"]);
    let is_stopping = Arc::new(AtomicBool::new(false));
    let reader = {
        let client = program.connect_raw();
        let is_stopping = is_stopping.clone();
        // Ends when the program is killed.
        thread::spawn(move || {
            client.read_to_end(|_| {
                let per_line = match is_stopping.load(Ordering::SeqCst) {
                    false => Duration::from_micros(200),
                    // 4 MiB in the mailbox last for more than a minute.
                    true => Duration::from_millis(20),
                };
                thread::sleep(per_line);
            })
        })
    };
    // At least one on the client's shard: the other shards have nothing to deliver, and close their connections at once.
    let count = 2 * thread::available_parallelism().map_or(1, usize::from);
    let connect = |_| {
        let connection = TcpStream::connect(program.address()).unwrap();
        connection.set_read_timeout(Some(DEADLINE)).unwrap();
        connection
    };
    let mut connections: Vec<TcpStream> = (0..count).map(connect).collect();
    let mut ready = || -> Vec<_> { connections.iter_mut().map(ready_on).collect() };
    let is_ready = Some((200, "ready\n".to_owned()));
    assert_eq!(ready(), vec![is_ready.clone(); count]);
    let mut line = vec![b'x'; 1_000];
    line[999] = b'\n';
    for _ in 0..LINES {
        program.write(&line);
    }
    assert_eq!(ready(), vec![is_ready; count]);
    program.close_input();
    program.expect_refusal();
    is_stopping.store(true, Ordering::SeqCst);
    let answers: Vec<_> = ready().into_iter().flatten().collect();
    assert!(!answers.is_empty(), "all connections were closed");
    assert_eq!(answers, vec![(503, STOPPING.to_owned()); answers.len()]);
    drop(program);
    // The client reads what its socket holds.
    is_stopping.store(false, Ordering::SeqCst);
    reader.join().unwrap();
}
