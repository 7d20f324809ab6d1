//! The server as a process: messages, lines of standard input, limits, routes and diagnostics.
//!
//! Each wait is for a promised event, with a deadline.
#![cfg(unix)]

mod support;

use std::io::Write;

use rustix::process::Signal;
use support::{Client, Program, http_get};
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

#[test]
fn new_client_is_announced_to_everyone() {
    let program = Program::start(&[]);
    let mut first = program.connect();
    let own = format!("Welcome, {}!", first.local_addr());
    assert_eq!(first.text(), own);
    let mut second = program.connect();
    let others = format!("Welcome, {}!", second.local_addr());
    assert_eq!(first.text(), others);
    assert_eq!(second.text(), others);
}

#[test]
fn message_is_echoed_to_its_sender_alone() {
    let mut program = Program::start(&["--no-welcome"]);
    let (mut sender, mut other) = (program.connect(), program.connect());
    sender.send(Message::text("Grüezi"));
    assert_eq!(sender.text(), "Grüezi");
    sender.send(Message::binary(vec![0xff, 0]));
    assert_eq!(sender.message(), Message::binary(vec![0xff, 0]));
    program.write(b"for all\n");
    assert_eq!(other.text(), "for all");
    assert_eq!(sender.text(), "for all");
}

#[test]
fn on_message_broadcast_sends_to_everyone() {
    let program = Program::start(&["--no-welcome", "--on-message", "broadcast"]);
    let (mut sender, mut other) = (program.connect(), program.connect());
    sender.send(Message::text("for all"));
    assert_eq!(sender.text(), "for all");
    assert_eq!(other.text(), "for all");
}

#[test]
fn on_message_ignore_sends_nothing_back() {
    let mut program = Program::start(&["--no-welcome", "--on-message", "ignore"]);
    let mut client = program.connect();
    client.send(Message::text("anyone?"));
    // The pong follows any reply to the message.
    client.send(Message::Ping("1".into()));
    assert_eq!(client.any(), Message::Pong("1".into()));
    program.write(b"a line\n");
    assert_eq!(client.text(), "a line");
}

#[test]
fn no_welcome_announces_nobody() {
    let mut program = Program::start(&["--no-welcome"]);
    let mut client = program.connect();
    program.write(b"the first\n");
    assert_eq!(client.text(), "the first");
}

#[test]
fn lines_go_to_everyone_in_order() {
    let mut program = Program::start(&["--no-welcome"]);
    let mut clients: Vec<Client> = (0..5).map(|_| program.connect()).collect();
    for n in 0..100 {
        program.write(format!("line {n}\n").as_bytes());
    }
    for client in &mut clients {
        for n in 0..100 {
            assert_eq!(client.text(), format!("line {n}"));
        }
    }
}

#[test]
fn line_endings_are_stripped_and_empty_lines_are_sent() {
    let mut program = Program::start(&["--no-welcome"]);
    let mut client = program.connect();
    program.write(b"unix\ndos\r\n\n\r\na\rb\n");
    for line in ["unix", "dos", "", "", "a\rb"] {
        assert_eq!(client.text(), line);
    }
}

#[test]
fn line_written_in_parts_is_sent_once_complete() {
    let mut program = Program::start(&["--no-welcome"]);
    let mut client = program.connect();
    program.write(b"one\ntw");
    assert_eq!(client.text(), "one");
    program.write(b"o\r");
    program.write(b"\nthr");
    assert_eq!(client.text(), "two");
    program.write(b"ee\n");
    assert_eq!(client.text(), "three");
}

#[test]
fn end_of_input_leaves_the_server_running() {
    let mut program = Program::start(&["--no-welcome"]);
    let mut client = program.connect();
    program.write(b"one\ntwo");
    program.close_input();
    assert_eq!(client.text(), "one");
    assert_eq!(client.text(), "two");
    program.expect_line("end of input");
    client.send(Message::text("still there?"));
    assert_eq!(client.text(), "still there?");
    program.connect();
    assert!(program.is_running());
}

#[test]
fn non_utf8_line_is_sent_as_a_binary_message() {
    let mut program = Program::start(&["--no-welcome"]);
    let mut client = program.connect();
    program.write(b"text\n\xff\x00\xfe\r\n\xe2\x82\nB\xc3\xa4r\n");
    assert_eq!(client.message(), Message::text("text"));
    assert_eq!(client.message(), Message::binary(vec![0xff, 0, 0xfe]));
    assert_eq!(client.message(), Message::binary(vec![0xe2, 0x82]));
    assert_eq!(client.message(), Message::text("Bär"));
}

#[test]
fn line_over_the_limit_is_skipped_without_being_stored() {
    const LIMIT: usize = 16 << 20;
    // Otherwise the next line, which does not fit behind this one, would be skipped.
    let mut program = Program::start(&["--no-welcome", "--slow-client=pace"]);
    let mut client = program.connect();
    program.write(b"before\n");
    assert_eq!(client.text(), "before");
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..256 {
        program.write(&piece);
    }
    program.write(b"\nafter\n");
    assert_eq!(client.text(), "after");
    let report = program.expect_line("skipped");
    assert!(report.contains("line 2 is 268435456 bytes"), "{report}");
    assert!(report.contains(&LIMIT.to_string()), "{report}");
    let peak = program.peak_resident_bytes();
    assert!(peak < 64 << 20, "{peak} bytes were resident");
}

#[test]
fn line_of_the_maximum_length_is_sent() {
    const LIMIT: usize = 16 << 20;
    // Otherwise the next line, which does not fit behind this one, would be skipped.
    let mut program = Program::start(&["--no-welcome", "--slow-client=pace"]);
    let mut client = program.connect();
    let mut line = vec![b'x'; LIMIT];
    line.extend_from_slice(b"\r\nnext\n");
    program.write(&line);
    assert_eq!(client.text().len(), LIMIT);
    assert_eq!(client.text(), "next");
}

/// Runs the server with this standard input to its end.
fn serve_input(input: impl Into<std::process::Stdio>, arguments: &[&str]) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_humphrey-broadcast"))
        .args(["--listen", "127.0.0.1:0"])
        .args(arguments)
        .stdin(input)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn unreadable_input_exits_with_1() {
    let directory = std::fs::File::open("/").unwrap();
    let (code, said) = serve_input(directory, &["--exit-on-eof"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("standard input can't be read"), "{said}");
    // Without --exit-on-eof, the exit code says so at the end.
    let directory = std::fs::File::open("/").unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_humphrey-broadcast"))
        .args(["--listen", "127.0.0.1:0"])
        .stdin(directory)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut lines = std::io::BufRead::lines(stderr).map(Result::unwrap);
    assert!(lines.any(|line| line.contains("standard input can't be read")));
    assert!(lines.any(|line| line.contains("end of input")));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn skipped_line_exits_with_1_at_the_end_of_input() {
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof"]);
    program.write(&vec![b'x'; (16 << 20) + 2]);
    program.close_input();
    program.expect_line("is skipped");
    program.expect_exit(1);
}

#[test]
fn skipped_line_exits_with_1_on_a_signal() {
    for is_read_on in [false, true] {
        let mut program = Program::start(&["--no-welcome"]);
        program.write(&vec![b'x'; (16 << 20) + 2]);
        program.write(b"\n");
        program.expect_line("is skipped");
        program.signal(Signal::TERM);
        if is_read_on {
            program.close_input();
        }
        program.expect_exit(1);
    }
}

#[test]
fn nonblocking_standard_streams_are_waited_for() {
    use std::io::BufRead as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    let (mut input, theirs) = UnixStream::pair().unwrap();
    let (stderr, their_stderr) = UnixStream::pair().unwrap();
    for stream in [&theirs, &their_stderr] {
        stream.set_nonblocking(true).unwrap();
    }
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_humphrey-broadcast"))
        .args(["--listen", "127.0.0.1:0", "--no-welcome", "--exit-on-eof"])
        .stdin(OwnedFd::from(theirs))
        .stderr(OwnedFd::from(their_stderr))
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(stderr).lines().map(Result::unwrap);
    let line = lines.next().unwrap();
    let address = line.rsplit("ws://").next().unwrap().trim_end_matches('/');
    let mut client = Client::connect(address.parse().unwrap(), "/").unwrap();
    // Each line is written after the previous one was read: the descriptor was empty.
    for text in ["one", "two"] {
        input.write_all(format!("{text}\n").as_bytes()).unwrap();
        assert_eq!(client.text(), text);
    }
    drop(input);
    client.expect_close(CloseCode::Away);
    assert!(lines.any(|line| line.contains("2 messages sent")));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn connection_over_the_limit_is_answered_with_503() {
    let program = Program::start(&["--no-welcome", "--max-connections", "2"]);
    let (mut first, second) = (program.connect(), program.connect());
    assert_eq!(program.try_connect().unwrap_err(), 503);
    first.send(Message::text("still served"));
    assert_eq!(first.text(), "still served");
    drop(second);
    // The permit is released once the server has seen the disconnect.
    support::eventually("the permit is released", || program.try_connect().is_ok());
}

#[test]
fn silent_client_that_answers_pings_stays_connected() {
    let mut program = Program::start(&["--no-welcome", "--heartbeat", "1"]);
    let mut client = program.connect();
    assert!(matches!(client.any(), Message::Ping(_)));
    // The pong of the client, which tungstenite sends, keeps the connection: the next ping arrives.
    assert!(matches!(client.any(), Message::Ping(_)));
    program.write(b"still there\n");
    assert_eq!(client.text(), "still there");
}

#[test]
fn page_is_served_with_a_strict_policy() {
    let program = Program::start(&[]);
    let (status, headers, body) = http_get(program.address(), "/");
    assert_eq!(status, 200);
    assert!(body.starts_with("<!doctype html>"), "{body}");
    let headers = headers.to_lowercase();
    assert!(
        headers.contains("content-type: text/html; charset=utf-8"),
        "{headers}"
    );
    let policy = headers
        .lines()
        .find_map(|line| line.strip_prefix("content-security-policy: "))
        .unwrap();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
}

#[test]
fn clients_route_counts_connections() {
    let program = Program::start(&["--no-welcome"]);
    let clients = || http_get(program.address(), "/clients").2.trim().to_owned();
    assert_eq!(clients(), r#"{"clients": 0}"#);
    let first = program.connect();
    let _second = program.connect();
    support::eventually("both have joined", || clients() == r#"{"clients": 2}"#);
    drop(first);
    support::eventually("one client is left", || clients() == r#"{"clients": 1}"#);
}

#[test]
fn unknown_path_is_not_found_but_can_be_upgraded() {
    let mut program = Program::start(&["--no-welcome"]);
    assert_eq!(http_get(program.address(), "/nothing").0, 404);
    let mut client = Client::connect(program.address(), "/any/path").unwrap();
    program.write(b"here too\n");
    assert_eq!(client.text(), "here too");
}

#[test]
fn quiet_prints_nothing_without_errors() {
    let mut program = Program::start_quiet(&["--quiet", "--no-welcome", "--exit-on-eof"]);
    let mut client = program.connect();
    // The echo shows that the client has joined.
    client.send(Message::text("in?"));
    assert_eq!(client.text(), "in?");
    program.write(b"a line\n");
    program.close_input();
    assert_eq!(client.text(), "a line");
    client.expect_close(CloseCode::Away);
    program.expect_exit(0);
    assert_eq!(program.rest_of_stderr(), "");
}

#[cfg(target_os = "linux")] // It limits the program's descriptors from outside.
#[test]
fn library_warnings_are_printed_as_single_lines() {
    let mut program = Program::start(&["--no-welcome"]);
    program.limit_descriptors(24);
    let clients: Vec<std::net::TcpStream> = (0..32)
        .map(|_| std::net::TcpStream::connect(program.address()).unwrap())
        .collect();
    let warning = program.expect_line("can't be accepted");
    assert!(
        warning.starts_with("humphrey-broadcast: warning: "),
        "{warning}"
    );
    drop(clients);
    // Nothing else happens: the server goes on.
    let mut client = program.connect();
    program.write(b"still here\n");
    assert_eq!(client.text(), "still here");
}

#[cfg(target_os = "linux")] // It limits the program's descriptors from outside.
#[test]
fn clients_without_descriptors_cause_one_warning() {
    let mut program = Program::start(&["--no-welcome", "--metrics", "127.0.0.1:0"]);
    let metrics = program.expect_line("metrics for Prometheus at");
    let metrics = metrics.rsplit("http://").next().unwrap();
    let metrics = metrics.strip_suffix("/metrics").unwrap().parse().unwrap();
    program.limit_descriptors(24);
    for _ in 0..20 {
        let clients: Vec<std::net::TcpStream> = (0..32)
            .map(|_| std::net::TcpStream::connect(program.address()).unwrap())
            .collect();
        drop(clients);
        // All before it were accepted.
        program.connect();
    }
    program.expect_line("can't be accepted");
    // The metrics have a listener of their own, with warnings of its own. It may need a descriptor before the last clients' are free.
    program.limit_descriptors(1_000);
    let metrics = support::http(metrics, "GET", "/metrics", "", b"").2;
    let lines = metrics.lines();
    let errors: u64 = lines
        .filter(|line| line.starts_with("humphrey_ws_accept_errors_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(errors >= 20, "only {errors} attempts failed");
    program.signal(Signal::TERM);
    let rest = program.rest_of_stderr();
    assert!(!rest.contains("can't be accepted"), "{rest}");
}

#[test]
fn server_continues_with_closed_standard_error() {
    let mut program = Program::start(&["--no-welcome"]);
    program.close_stderr();
    let mut client = program.connect();
    let mut line = vec![b'x'; (16 << 20) + 1];
    line.extend_from_slice(b"\nnext\n");
    program.write(&line);
    assert_eq!(client.text(), "next");
    program.signal(Signal::TERM);
    client.expect_close(CloseCode::Away);
    // For the skipped line.
    program.expect_exit(1);
}
