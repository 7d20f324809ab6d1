//! `humphrey-broadcast listen` with servers that refuse, close, hang up, or do not answer.
#![cfg(unix)]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::shell::{Foreign, Guest, Shell};
use support::{Program, eventually};
use tungstenite::Message;

const NO_WELCOME: &str = "--no-welcome";

/// Keeps reconnect delays short.
const SOON: &str = "--max-delay=1";

fn url_of(program: &Program) -> String {
    format!("ws://{}/", program.address())
}

#[test]
fn close_codes_1000_and_1008_end_listen() {
    for (code, exit) in [(1000, 0), (1008, 1)] {
        let server = Foreign::new();
        let mut shell = Shell::listen(&server.url(), &[SOON]);
        let mut guest = server.guest();
        guest.send(Message::text("last words"));
        guest.close(code, "enough\u{1b}");
        assert_eq!(shell.line(), "last words");
        shell.expect_exit(exit);
        let said = format!("closed the connection with {code} (enough\u{fffd})");
        assert!(shell.said.contains(&said), "{}", shell.said);
    }
}

#[test]
fn other_close_codes_make_listen_reconnect() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &[SOON]);
    for code in [1001, 1011, 1012, 1013, 4000] {
        server.guest().close(code, "");
        let line = shell.expect_line(&format!("with {code}; reconnecting in"));
        if code == 1013 {
            // At least half of --max-delay.
            let seconds = line.rsplit(" in ").next().unwrap();
            let seconds: f64 = seconds.trim_end_matches(" s").parse().unwrap();
            assert!((0.5..=1.0).contains(&seconds), "{line}");
        }
    }
    drop(server.guest());
    shell.expect_line("the connection is lost; reconnecting in");
    server.refuse("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    shell.expect_line("with status 503: Busy; reconnecting in");
    server.guest().close(1000, "");
    shell.expect_exit(0);
}

#[test]
fn no_reconnect_ends_listen_with_the_connection() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--no-reconnect", "--quiet"]);
    server.guest().close(1001, "");
    shell.expect_exit(1);
    assert_eq!(
        shell.said,
        "humphrey-broadcast: the server has closed the connection with 1001\n"
    );
}

#[test]
fn permanent_handshake_failure_ends_listen() {
    for (answer, said) in [
        (
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 13\r\n\r\ntoken missing\n",
            "the server refused the handshake with status 401: token missing",
        ),
        (
            "HTTP/1.1 301 Moved\r\nLocation: wss://a/\r\n\r\n",
            "the server refused the handshake with status 301: redirect to wss://a/, which is not followed",
        ),
        (
            "SSH-2.0-x\r\n",
            "the response is not a valid WebSocket handshake",
        ),
        (
            "\u{15}\u{3}\u{3}\0\u{2}\u{2}2",
            "the server speaks TLS on this port: use wss:// instead of ws://",
        ),
    ] {
        let server = Foreign::new();
        let mut shell = Shell::listen(&server.url(), &[]);
        server.refuse(answer);
        shell.expect_exit(1);
        assert!(shell.said.contains(said), "{}", shell.said);
    }
}

#[test]
fn server_refusing_subprotocols_with_400_gets_none() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--count=1"]);
    server.refuse("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    let mut guest = server.guest();
    assert!(guest.header("Sec-WebSocket-Protocol").is_none());
    guest.send(Message::text("x"));
    assert_eq!(shell.line(), "x");
    // An invalid room name is a permanent failure.
    let program = Program::start(&[]);
    let mut shell = Shell::listen(&format!("{}%2E", url_of(&program)), &[]);
    shell.expect_exit(1);
    assert!(
        shell
            .said
            .contains("status 400: the path has a segment '.'"),
        "{}",
        shell.said
    );
}

#[test]
fn server_hanging_up_on_subprotocols_gets_none_from_then_on() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--count=2", SOON]);
    // The server hangs up during the handshake.
    server.refuse("");
    for text in ["one", "two"] {
        let mut guest = server.guest();
        assert!(guest.header("Sec-WebSocket-Protocol").is_none(), "{text}");
        guest.send(Message::text(text));
        assert_eq!(shell.line(), text);
        if text == "one" {
            guest.close(1001, "");
        }
    }
    assert!(!shell.said.contains("hung up"), "{}", shell.said);
}

#[test]
fn server_hanging_up_always_is_offered_subprotocols_again() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--count=1", SOON]);
    server.refuse("");
    server.refuse("");
    shell.expect_line("before answering the handshake; reconnecting in");
    let mut guest = server.guest();
    assert!(guest.header("Sec-WebSocket-Protocol").is_some());
    guest.send(Message::text("x"));
    assert_eq!(shell.line(), "x");
}

#[test]
fn subprotocols_of_the_user_replace_the_own_ones() {
    for arguments in [
        &["--subprotocol=ocpp2.0", "--subprotocol=ocpp1.6"][..],
        &["--header=Sec-WebSocket-Protocol: ocpp2.0,ocpp1.6"],
    ] {
        let server = Foreign::new();
        let mut shell = Shell::listen(&server.url(), &[arguments, &["--count=1"]].concat());
        let mut guest = server.guest_as(Some("ocpp1.6"));
        assert_eq!(
            guest.header("Sec-WebSocket-Protocol"),
            Some("ocpp2.0, ocpp1.6")
        );
        guest.send(Message::text("x"));
        assert_eq!(shell.line(), "x");
    }
    // Subprotocols of the user are never withheld.
    let server = Foreign::new();
    let arguments = ["--subprotocol=a", "--no-reconnect"];
    let mut shell = Shell::listen(&server.url(), &arguments);
    server.refuse("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    shell.expect_exit(1);
}

#[test]
fn host_header_of_the_user_replaces_the_host_of_the_url() {
    let server = Foreign::new();
    let _shell = Shell::listen(&server.url(), &["--header=host: tunnel.example"]);
    let guest = server.guest();
    let hosts: Vec<_> = guest.request.headers().get_all("Host").iter().collect();
    assert_eq!(hosts, ["tunnel.example"]);
}

#[test]
fn interim_responses_and_repeated_headers_are_accepted() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--count=1", "--no-reconnect"]);
    let mut stream = server.tcp();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
    let accept = tungstenite::handshake::derive_accept_key(key.unwrap().as_bytes());
    let answer = format!(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 101 x\r\nConnection: keep-alive\r\n\
         Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n\u{81}"
    );
    let mut answer: Vec<u8> = answer.chars().map(|c| c as u8).collect();
    answer.extend_from_slice(b"\x05hello\x88\x00");
    stream.write_all(&answer).unwrap();
    assert_eq!(shell.line(), "hello");
    shell.expect_exit(0);
}

#[test]
fn connections_that_fail_at_once_do_not_reset_give_up() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &[SOON, "--give-up-after=1"]);
    // Each connection opens and fails at once, so the time without a stable connection grows.
    let hang_up = thread::spawn(move || {
        while !server.is_left_alone() {
            drop(server.guest());
        }
    });
    shell.expect_exit(1);
    assert!(shell.said.contains("giving up"), "{}", shell.said);
    assert!(shell.said.contains("connected to"), "{}", shell.said);
    hang_up.join().unwrap();
}

#[test]
fn refusal_with_an_incomplete_body_is_reported() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &[]);
    let mut stream = server.tcp();
    stream
        .write_all(b"HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\nnot you\n")
        .unwrap();
    shell.expect_exit(1);
    assert!(
        shell.said.contains("with status 403: not you"),
        "{}",
        shell.said
    );
}

#[test]
fn unreachable_server_is_retried_until_give_up() {
    let address = {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    };
    let url = format!("ws://{address}/");
    let mut shell = Shell::listen(&url, &["--no-reconnect"]);
    shell.expect_exit(1);
    assert_eq!(shell.said.lines().count(), 1, "{}", shell.said);
    let mut shell = Shell::listen(&url, &[SOON, "--give-up-after=1"]);
    shell.expect_exit(1);
    assert!(shell.said.contains("giving up"), "{}", shell.said);
    let mut shell = Shell::listen(&url, &[SOON]);
    shell.expect_line("reconnecting in");
    let mut program = Program::start_at(&address, &[NO_WELCOME, "--history", "1"]);
    program.write(b"at last\n");
    assert_eq!(shell.line(), "at last");
}

#[test]
fn server_that_answers_no_ping_is_disconnected() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--heartbeat=1", SOON]);
    let silent = server.guest();
    shell.expect_line("does not answer pings; reconnecting in");
    // A server that answers pings stays connected.
    let mut guest = server.guest();
    for _ in 0..3 {
        loop {
            if guest.socket.read().unwrap().is_ping() {
                guest.socket.flush().unwrap();
                break;
            }
        }
    }
    guest.send(Message::text("here"));
    assert_eq!(shell.line(), "here");
    drop(silent);
}

#[test]
fn unanswered_ping_is_repeated_after_a_standstill() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--heartbeat=1", SOON]);
    let mut guest = server.guest();
    guest.send(Message::text("one"));
    assert_eq!(shell.line(), "one");
    assert!(guest.socket.read().unwrap().is_ping());
    // The pong is queued, and not sent until the next call.
    shell.signal(Signal::STOP);
    let begun = Instant::now();
    eventually("the pong is overdue", || {
        begun.elapsed() > Duration::from_secs(3)
    });
    shell.signal(Signal::CONT);
    let next = wait_for_frame(&guest);
    assert_eq!(next & 0x0F, 0x9, "another ping, not a close frame");
    guest.send(Message::text("two"));
    assert_eq!(shell.line(), "two");
}

/// Returns the first byte of the next frame, and leaves it in the socket.
fn wait_for_frame(guest: &Guest) -> u8 {
    let mut first = [0];
    assert_eq!(guest.socket.get_ref().peek(&mut first).unwrap(), 1);
    first[0]
}

#[test]
fn signal_ends_listen_with_a_close_frame() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let server = Foreign::new();
        let mut shell = Shell::listen(&server.url(), &[]);
        let mut guest = server.guest();
        guest.send(Message::text("one"));
        assert_eq!(shell.line(), "one");
        shell.signal(signal);
        assert_eq!(guest.expect_close(), []);
        shell.expect_exit(0);
    }
    // Without a connection, it exits at once.
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--max-delay=1000"]);
    server.refuse("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    shell.expect_line("reconnecting in");
    shell.signal(Signal::TERM);
    shell.expect_exit(0);
}
