//! Access control of the program: origins, limits per address, and metrics.
#![cfg(unix)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use support::{DEADLINE, Program, http_get};
use tungstenite::Message;

/// Returns the status of a handshake with these header lines.
fn handshake(program: &Program, headers: &str) -> u16 {
    let address = program.address();
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    socket.write_all(request.as_bytes()).unwrap();
    let mut status = [0; 12];
    socket.read_exact(&mut status).unwrap();
    std::str::from_utf8(&status[9..]).unwrap().parse().unwrap()
}

#[test]
fn foreign_origin_connects_only_if_allowed() {
    let mut program = Program::start(&[]);
    let own = format!("Origin: http://{}\r\n", program.address());
    assert_eq!(handshake(&program, &own), 101);
    assert_eq!(handshake(&program, ""), 101);
    assert_eq!(handshake(&program, "Origin: null\r\n"), 403);
    assert_eq!(handshake(&program, "Origin: https://evil.example\r\n"), 403);
    let said = program.expect_line("may not connect");
    assert!(
        said.contains("warning: ") && said.contains("\"null\""),
        "{said}"
    );

    let program = Program::start(&["--allow-origin", "https://good.example"]);
    let own = format!("Origin: http://{}\r\n", program.address());
    assert_eq!(handshake(&program, &own), 101);
    assert_eq!(handshake(&program, "Origin: https://good.example\r\n"), 101);
    assert_eq!(handshake(&program, "Origin: https://evil.example\r\n"), 403);

    let program = Program::start(&["--allow-origin", "*"]);
    assert_eq!(handshake(&program, "Origin: https://evil.example\r\n"), 101);
}

#[test]
fn invalid_origin_or_network_is_one_line_and_an_error() {
    for arguments in [
        ["--allow-origin", "good.example"],
        ["--trusted-proxy", "proxy.local"],
    ] {
        let (code, out, err) =
            support::run(&["--listen", "127.0.0.1:0", arguments[0], arguments[1]]);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(err.contains(arguments[1]), "{err}");
    }
}

#[test]
fn address_limit_counts_clients_behind_a_trusted_proxy() {
    let arguments = ["--max-connections-per-address", "1"];
    let program = Program::start(&arguments);
    let _held = program.connect();
    assert_eq!(program.try_connect().unwrap_err(), 429);

    let proxied = [
        "--trusted-proxy",
        "127.0.0.0/8",
        "--max-handshakes-per-address",
        "1",
    ];
    let program = Program::start(&proxied);
    let from = |n: u8| format!("X-Forwarded-For: 6.6.6.6, 192.0.2.{n}\r\n");
    let statuses: Vec<u16> = (0..4).map(|_| handshake(&program, &from(1))).collect();
    assert!(
        statuses.contains(&101) && statuses.contains(&429),
        "{statuses:?}"
    );
    assert_eq!(handshake(&program, &from(2)), 101);
}

#[test]
fn client_over_its_message_rate_is_delayed() {
    let program = Program::start(&[
        "--no-welcome",
        "--on-message=broadcast",
        "--max-messages-per-second=20",
        "--max-bytes-per-second=1000000",
    ]);
    let mut reader = program.connect();
    let mut sender = program.connect();
    let begun = Instant::now();
    for n in 0..40 {
        sender.send(Message::text(n.to_string()));
    }
    for n in 0..40 {
        assert_eq!(reader.text(), n.to_string());
        let allowed = 20.0 * (1.0 + begun.elapsed().as_secs_f64());
        assert!(
            f64::from(n) < allowed,
            "message {n} after {:?}",
            begun.elapsed()
        );
    }
}

#[test]
fn metrics_are_served_on_their_own_port_only() {
    let mut program = Program::start(&["--no-welcome", "--metrics", "127.0.0.1:0"]);
    let line = program.expect_line("metrics");
    let address = line.rsplit("http://").next().unwrap();
    let address = address.strip_suffix("/metrics").unwrap().parse().unwrap();
    let mut client = program.connect();
    program.write(b"counted\n");
    assert_eq!(client.text(), "counted");
    let total = |name: &str| -> u64 {
        let (status, headers, body) = http_get(address, "/metrics");
        assert_eq!(status, 200);
        assert!(headers.contains("text/plain; version=0.0.4"), "{headers}");
        body.lines()
            .filter(|line| line.starts_with(&format!("{name}{{")))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    };
    assert_eq!(total("humphrey_ws_connections"), 1);
    // A message is counted after its write, so a reader may receive it earlier.
    support::eventually("the message is counted", || {
        total("humphrey_ws_messages_sent_total") == 1
    });
    assert_eq!(http_get(program.address(), "/metrics").0, 404);
    support::Client::connect(address, "/")
        .unwrap()
        .expect_close(tungstenite::protocol::frame::coding::CloseCode::Policy);
    program.signal(rustix::process::Signal::INT);
    program.expect_exit(0);
    let rest = program.rest_of_stderr();
    assert!(!rest.contains("warning"), "{rest}");
}
