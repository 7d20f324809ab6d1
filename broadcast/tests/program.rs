//! The program, as its users meet it: started for real, spoken to through pipes, sockets and signals.
//!
//! Each wait is for something promised, with a deadline; nothing sleeps for a guess.
#![cfg(unix)]

mod support;

use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{Client, Program, http_get, number_of, numbered};
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

#[test]
fn each_new_client_is_announced_to_everyone() {
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
fn a_message_is_echoed_to_its_sender_alone() {
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
fn with_on_message_broadcast_a_message_goes_to_everyone() {
    let program = Program::start(&["--no-welcome", "--on-message", "broadcast"]);
    let (mut sender, mut other) = (program.connect(), program.connect());
    sender.send(Message::text("for all"));
    assert_eq!(sender.text(), "for all");
    assert_eq!(other.text(), "for all");
}

#[test]
fn with_on_message_ignore_nothing_comes_back() {
    let mut program = Program::start(&["--no-welcome", "--on-message", "ignore"]);
    let mut client = program.connect();
    client.send(Message::text("anyone?"));
    // A pong comes behind what the message would have caused.
    client.send(Message::Ping("1".into()));
    assert_eq!(client.any(), Message::Pong("1".into()));
    program.write(b"a line\n");
    assert_eq!(client.text(), "a line");
}

#[test]
fn with_no_welcome_nobody_is_announced() {
    let mut program = Program::start(&["--no-welcome"]);
    let mut client = program.connect();
    program.write(b"the first\n");
    assert_eq!(client.text(), "the first");
}

#[test]
fn each_line_goes_to_everyone_in_order() {
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
fn a_line_is_sent_as_soon_as_it_ends_however_it_was_cut() {
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
fn an_unterminated_last_line_is_sent_and_the_end_of_input_leaves_the_server_running() {
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
fn a_line_that_is_not_utf_8_goes_out_as_a_binary_message() {
    let mut program = Program::start(&["--no-welcome"]);
    let mut client = program.connect();
    program.write(b"text\n\xff\x00\xfe\r\n\xe2\x82\nB\xc3\xa4r\n");
    assert_eq!(client.message(), Message::text("text"));
    assert_eq!(client.message(), Message::binary(vec![0xff, 0, 0xfe]));
    assert_eq!(client.message(), Message::binary(vec![0xe2, 0x82]));
    assert_eq!(client.message(), Message::text("Bär"));
}

#[test]
fn a_line_over_the_limit_is_reported_and_skipped_without_being_stored() {
    const LIMIT: usize = 16 << 20;
    let mut program = Program::start(&["--no-welcome"]);
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
fn a_line_as_long_as_a_message_may_be_arrives() {
    const LIMIT: usize = 16 << 20;
    let mut program = Program::start(&["--no-welcome"]);
    let mut client = program.connect();
    let mut line = vec![b'x'; LIMIT];
    line.extend_from_slice(b"\r\nnext\n");
    program.write(&line);
    assert_eq!(client.text().len(), LIMIT);
    assert_eq!(client.text(), "next");
}

#[test]
fn with_exit_on_eof_everything_is_delivered_then_1001_then_exit_0() {
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof"]);
    let clients: Vec<Client> = (0..3).map(|_| program.connect()).collect();
    program.write(&numbered(0..50_000));
    program.write(b"unterminated");
    program.close_input();
    for mut client in clients {
        for n in 0..50_000 {
            assert_eq!(client.text(), n.to_string());
        }
        assert_eq!(client.text(), "unterminated");
        client.expect_close(CloseCode::Away);
    }
    program.expect_exit(0);
}

#[test]
fn with_exit_on_eof_a_client_that_reads_late_still_gets_everything() {
    let mut program = Program::start(&[
        "--no-welcome",
        "--exit-on-eof",
        "--slow-client",
        "drop-newest",
    ]);
    let mut client = program.connect();
    // More than a socket takes, less than an outbox holds beside it.
    let line = [b'x'; 999];
    for _ in 0..1_000 {
        program.write(&line);
        program.write(b"\n");
    }
    program.close_input();
    // It does not begin to read before the program has been told to end: nobody is accepted then.
    program.expect_refusal();
    for _ in 0..1_000 {
        assert_eq!(client.text().len(), line.len());
    }
    client.expect_close(CloseCode::Away);
    program.expect_exit(0);
}

#[test]
fn with_exit_on_eof_it_exits_even_if_nobody_ever_connected() {
    let mut program = Program::start(&["--exit-on-eof"]);
    program.write(b"to nobody\nnor this\n");
    program.close_input();
    let summary = program.expect_line("0 clients");
    assert!(summary.contains("2 for nobody"), "{summary}");
    program.expect_exit(0);
}

#[test]
fn with_exit_on_eof_a_signal_hastens_the_end() {
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof"]);
    let client = program.connect();
    // It answers nothing, not even the goodbye.
    program.close_input();
    program.expect_refusal();
    let begun = Instant::now();
    program.signal(Signal::TERM);
    program.expect_exit(0);
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(client);
}

#[test]
fn sigterm_sigint_and_sighup_close_everyone_and_exit_0() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut program = Program::start(&["--no-welcome"]);
        let mut clients: Vec<Client> = (0..3).map(|_| program.connect()).collect();
        program.write(b"a line\n");
        for client in &mut clients {
            assert_eq!(client.text(), "a line");
        }
        program.signal(signal);
        for client in clients {
            client.expect_close(CloseCode::Away);
        }
        program.expect_exit(0);
    }
}

#[test]
fn a_second_ctrl_c_exits_at_once() {
    let mut program = Program::start(&["--no-welcome"]);
    let client = program.connect();
    program.signal(Signal::INT);
    // The client does not answer the goodbye, so the program waits; that it has begun to shows in this.
    program.expect_refusal();
    let begun = Instant::now();
    // What comes right behind the first one is that one, sent twice.
    while program.is_running() {
        program.signal(Signal::INT);
        thread::sleep(Duration::from_millis(20));
    }
    program.expect_exit(130);
    assert!(begun.elapsed() < Duration::from_secs(2));
    drop(client);
}

#[test]
fn signal_that_is_sent_twice_does_not_cut_the_goodbye_short() {
    // As `timeout` does it: it signals its child, and its process group, in which the child is.
    for signal in [Signal::TERM, Signal::INT] {
        for pause in [Duration::ZERO, Duration::from_millis(2)] {
            let mut program = Program::start(&["--no-welcome"]);
            let client = program.connect();
            program.signal(signal);
            thread::sleep(pause);
            program.signal(signal);
            client.expect_close(CloseCode::Away);
            program.expect_exit(0);
        }
    }
}

#[test]
fn second_sighup_does_not_cut_the_goodbye_short() {
    use rustix::process::Signal;
    let mut program = Program::start(&["--no-welcome"]);
    let client = program.connect();
    // Where a terminal is closed, both the system and the shell send one.
    program.signal(Signal::HUP);
    program.expect_refusal();
    program.signal(Signal::HUP);
    client.expect_close(CloseCode::Away);
    program.expect_exit(0);
}

#[cfg(target_os = "linux")]
#[test]
fn ignored_sighup_stays_ignored_as_under_nohup() {
    use rustix::process::{Pid, Signal, kill_process};
    use std::process::{Command, Stdio};
    let binary = env!("CARGO_BIN_EXE_humphrey-broadcast");
    let mut child = Command::new("sh")
        .args([
            "-c",
            "trap '' HUP; exec \"$0\" --listen 127.0.0.1:0",
            binary,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stderr, &mut line).unwrap();
    let address = line
        .rsplit("ws://")
        .next()
        .unwrap()
        .trim_end()
        .trim_end_matches('/');
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::HUP).unwrap();
    // It would accept nobody any more.
    let mut client = Client::connect(address.parse().unwrap(), "/").unwrap();
    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"still here\n")
        .unwrap();
    while client.text() != "still here" {}
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Runs the server to its end with something as its input.
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
fn input_that_can_not_be_read_is_no_success() {
    let directory = std::fs::File::open("/").unwrap();
    let (code, said) = serve_input(directory, &["--exit-on-eof"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("standard input can't be read"), "{said}");
    // Where it serves on, its end says so.
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
fn skipped_line_is_no_success_at_the_end_of_the_input() {
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof"]);
    program.write(&vec![b'x'; (16 << 20) + 2]);
    program.close_input();
    program.expect_line("is skipped");
    program.expect_exit(1);
}

#[test]
fn non_blocking_standard_streams_are_waited_for() {
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
    // Each comes when the one before it has been read: the descriptor was empty.
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
fn a_signal_ends_it_while_the_input_waits_for_a_slow_client() {
    let mut program = Program::start(&["--no-welcome"]);
    let stalled = program.connect();
    let mut input = program.take_input();
    let (started, feeding) = std::sync::mpsc::channel();
    let feeder = thread::spawn(move || {
        let lines = numbered(0..10_000);
        let _ = started.send(());
        // Until the program ends.
        while input.write_all(&lines).is_ok() {}
    });
    feeding.recv().unwrap();
    program.signal(Signal::TERM);
    program.expect_exit(0);
    feeder.join().unwrap();
    drop(stalled);
}

#[test]
fn an_address_in_use_is_one_clear_line_and_no_success() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, out, err) = support::run(&["--listen", &address]);
    assert_eq!(code, 1);
    assert_eq!(out, "");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(
        err.starts_with("humphrey-broadcast: ") && err.contains(&address) && err.contains("in use"),
        "{err}"
    );
}

#[test]
fn bad_options_are_one_clear_line_and_no_success() {
    for (arguments, said) in [
        (&["--on-message", "shout"][..], "shout"),
        (&["--slow-client", "hurry"], "hurry"),
        (&["--listen", "nowhere"], "nowhere"),
        (&["--max-connections", "0"], "at least 1"),
        (&["--heartbeat", "often"], "often"),
        (&["--no-such-option"], "--no-such-option"),
        (&["file.log"], "file.log"),
    ] {
        let (code, out, err) = support::run(arguments);
        assert_eq!(code, 2, "{arguments:?}");
        assert_eq!(out, "", "{arguments:?}");
        assert_eq!(err.lines().count(), 1, "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {err}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let (code, out, err) = support::run(&["--help"]);
    assert_eq!((code, err.as_str()), (0, ""));
    for option in [
        "--listen",
        "--on-message",
        "--room",
        "--history",
        "256 KiB",
        "--max-rooms",
        "--publish-token",
        "--publish-token-file",
        "--no-welcome",
        "--exit-on-eof",
        "--slow-client",
        "--max-connections",
        "--heartbeat",
        "--quiet",
        "127.0.0.1:8080",
        "SECONDS",
    ] {
        assert!(out.contains(option), "{option}:\n{out}");
    }
    let (code, out, _) = support::run(&["--version"]);
    assert_eq!(code, 0);
    assert_eq!(
        out.trim(),
        concat!("humphrey-broadcast ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn the_options_of_the_readme_are_those_of_the_help() {
    let readme = include_str!("../../README.md");
    let section = readme.split("## The program").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let help: String = [&["--help"][..], &["listen", "--help"], &["send", "--help"]]
        .iter()
        .map(|arguments| support::run(arguments).1)
        .collect();
    let mut seen = 0;
    for (at, _) in section.match_indices("--") {
        let name = section[at..].trim_start_matches('-');
        let name = &name[..name
            .find(|c: char| c != '-' && !c.is_ascii_lowercase())
            .unwrap()];
        // Lines of a table have others.
        if !name.is_empty() {
            assert!(help.contains(&format!(" --{name}")), "--{name}");
            seen += 1;
        }
    }
    assert!(seen > 8, "only {seen}");
}

#[test]
fn one_connection_too_many_is_answered_with_503() {
    let program = Program::start(&["--no-welcome", "--max-connections", "2"]);
    let (mut first, second) = (program.connect(), program.connect());
    assert_eq!(program.try_connect().unwrap_err(), 503);
    first.send(Message::text("still served"));
    assert_eq!(first.text(), "still served");
    drop(second);
    // Its place is free once the program has seen it go.
    support::eventually("a place is free again", || program.try_connect().is_ok());
}

#[test]
fn silent_clients_are_pinged_and_kept_while_they_answer() {
    let mut program = Program::start(&["--no-welcome", "--heartbeat", "1"]);
    let mut client = program.connect();
    assert!(matches!(client.any(), Message::Ping(_)));
    // Its pong, which the client has answered with, keeps it: the next ping comes.
    assert!(matches!(client.any(), Message::Ping(_)));
    program.write(b"still there\n");
    assert_eq!(client.text(), "still there");
}

#[test]
fn clients_stay_connected_when_program_was_stopped() {
    const CLIENTS: usize = 20;
    // Longer than the second between pings, and the ten in which one is to be answered.
    const STOPPED: Duration = Duration::from_secs(13);
    let program = Program::start(&["--no-welcome", "--heartbeat", "1"]);
    let is_stopped = AtomicBool::new(true);
    thread::scope(|scope| {
        let reading: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let mut client = program.connect();
                let is_stopped = &is_stopped;
                scope.spawn(move || {
                    // The second ping comes only if the first was answered in time.
                    let mut pings = 0;
                    while pings < 2 {
                        match client.any() {
                            Message::Ping(_) if is_stopped.load(Ordering::Relaxed) => {}
                            Message::Ping(_) => pings += 1,
                            other => panic!("{other:?}"),
                        }
                    }
                    client
                })
            })
            .collect();
        program.signal(Signal::STOP);
        thread::sleep(STOPPED);
        is_stopped.store(false, Ordering::Relaxed);
        program.signal(Signal::CONT);
        let clients: Vec<_> = reading
            .into_iter()
            .map(|reading| reading.join().unwrap())
            .collect();
        let count = http_get(program.address(), "/clients").2;
        assert_eq!(count.trim(), format!(r#"{{"clients": {}}}"#, clients.len()));
    });
}

#[test]
fn the_page_is_served_with_a_strict_policy() {
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
fn the_clients_route_says_how_many_are_connected() {
    let program = Program::start(&["--no-welcome"]);
    let clients = || http_get(program.address(), "/clients").2.trim().to_owned();
    assert_eq!(clients(), r#"{"clients": 0}"#);
    let first = program.connect();
    let _second = program.connect();
    assert_eq!(clients(), r#"{"clients": 2}"#);
    drop(first);
    support::eventually("one is left", || clients() == r#"{"clients": 1}"#);
}

#[test]
fn an_unknown_path_is_not_found_but_can_be_upgraded() {
    let mut program = Program::start(&["--no-welcome"]);
    assert_eq!(http_get(program.address(), "/nothing").0, 404);
    let mut client = Client::connect(program.address(), "/any/path").unwrap();
    program.write(b"here too\n");
    assert_eq!(client.text(), "here too");
}

#[test]
fn quiet_says_nothing_at_all_when_nothing_is_wrong() {
    let mut program = Program::start_quiet(&["--quiet", "--no-welcome", "--exit-on-eof"]);
    let mut client = program.connect();
    program.write(b"a line\n");
    program.close_input();
    assert_eq!(client.text(), "a line");
    client.expect_close(CloseCode::Away);
    program.expect_exit(0);
    assert_eq!(program.rest_of_stderr(), "");
}

#[cfg(target_os = "linux")] // It limits the program's descriptors from outside.
#[test]
fn the_librarys_warnings_are_said_in_one_line_each() {
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
    // That was all: it goes on.
    let mut client = program.connect();
    program.write(b"still here\n");
    assert_eq!(client.text(), "still here");
}

#[test]
fn the_last_line_says_what_was_done() {
    let mut program = Program::start(&["--no-welcome"]);
    let (mut first, mut second) = (program.connect(), program.connect());
    program.write(b"one\ntwo\n");
    for client in [&mut first, &mut second] {
        assert_eq!(client.text(), "one");
        assert_eq!(client.text(), "two");
    }
    program.signal(Signal::TERM);
    for client in [first, second] {
        client.expect_close(CloseCode::Away);
    }
    program.expect_line("humphrey-broadcast: 2 clients, 4 messages sent");
    program.expect_exit(0);
}

#[test]
fn it_goes_on_where_nobody_reads_standard_error() {
    let mut program = Program::start(&["--no-welcome"]);
    program.close_stderr();
    let mut client = program.connect();
    let mut line = vec![b'x'; (16 << 20) + 1];
    line.extend_from_slice(b"\nnext\n");
    program.write(&line);
    assert_eq!(client.text(), "next");
    program.signal(Signal::TERM);
    client.expect_close(CloseCode::Away);
    program.expect_exit(0);
}

#[test]
fn a_million_lines_arrive_complete_and_in_order() {
    const LINES: u64 = 1_000_000;
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof"]);
    let reader = program.connect_raw();
    let mut input = program.take_input();
    let begun = Instant::now();
    let feeder = thread::spawn(move || input.write_all(&numbered(0..LINES)));
    let mut next = 0;
    reader.read_to_close(|payload| {
        assert_eq!(number_of(payload), next);
        next += 1;
    });
    assert_eq!(next, LINES);
    feeder.join().unwrap().unwrap();
    program.expect_line(&format!("1 client, {LINES} messages sent"));
    program.expect_exit(0);
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
}

/// Ten clients under `--slow-client pace`: nine that read at different steady rates, and one that never reads. The
/// input comes as fast as it is taken, for some seconds.
#[test]
fn under_pace_memory_is_bounded_the_stalled_are_cut_off_and_the_others_get_every_line() {
    const STREAM: Duration = Duration::from_secs(5);
    const RESIDENT_BYTES_MAX: u64 = 96 << 20;
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof", "--slow-client", "pace"]);
    let stalled = program.connect_raw();
    let readers: Vec<_> = (0..9)
        .map(|n| {
            let mut reader = program.connect_raw();
            thread::spawn(move || {
                // From 4 to 12 MB/s: the slowest sets the pace.
                reader.set_rate((4 + n) << 20);
                let mut next = 0;
                reader.read_to_close(|payload| {
                    assert_eq!(number_of(payload), next);
                    next += 1;
                });
                next
            })
        })
        .collect();
    let mut input = program.take_input();
    let feeder = thread::spawn(move || {
        let begun = Instant::now();
        let mut lines = 0;
        while begun.elapsed() < STREAM {
            input.write_all(&numbered(lines..lines + 1_000)).unwrap();
            lines += 1_000;
        }
        lines
    });
    let mut resident = Vec::new();
    while !feeder.is_finished() {
        resident.push(program.resident_bytes());
        thread::sleep(Duration::from_millis(20));
    }
    let lines = feeder.join().unwrap();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), lines);
    }
    // It was cut off long before the end: what it can still read is what the sockets and its outbox held.
    let mut got = 0;
    let close = stalled.read_to_end(|payload| {
        assert_eq!(number_of(payload), got);
        got += 1;
    });
    assert!(got < lines, "the stalled client has got everything");
    // The socket may have been closed before the goodbye found room in it.
    assert!(close.is_none_or(|code| code == 1013), "{close:?}");
    let summary = program.expect_line("10 clients");
    program.expect_exit(0);
    let peak = resident.into_iter().max().unwrap();
    assert!(peak < RESIDENT_BYTES_MAX, "{peak} bytes were resident");
    let [sent, dropped] = counts(&summary);
    assert!(sent >= 9 * lines && sent <= 9 * lines + got, "{summary}");
    assert!(dropped > 0, "{summary}");
}

/// Both figures of the summary: messages sent, and dropped for slow clients.
fn counts(summary: &str) -> [u64; 2] {
    ["messages sent", "dropped (slow clients)"].map(|what| {
        summary
            .split(", ")
            .find_map(|part| part.strip_suffix(what))
            .map_or(0, |number| number.trim().parse().unwrap())
    })
}

/// Feeds a client that reads and one that does not, until the latter's messages no longer fit; then that one reads
/// too. Returns the number of lines, what each client got, and the summary.
fn overflow(policy: &str) -> (u64, [Vec<u64>; 2], [Option<u16>; 2], String) {
    const LINES: u64 = 40_000;
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof", "--slow-client", policy]);
    let (reading, late) = (program.connect_raw(), program.connect_raw());
    let quick = thread::spawn(move || {
        let mut got = Vec::new();
        let close = reading.read_to_end(|payload| got.push(number_of(payload)));
        (got, close)
    });
    let padding = "x".repeat(1_000);
    for n in 0..LINES {
        program.write(format!("{n} {padding}\n").as_bytes());
    }
    program.close_input();
    let mut got = Vec::new();
    let close = late.read_to_end(|payload| got.push(number_of(payload)));
    let (quick_got, quick_close) = quick.join().unwrap();
    let summary = program.expect_line("2 clients");
    program.expect_exit(0);
    (LINES, [quick_got, got], [quick_close, close], summary)
}

#[test]
fn under_drop_newest_what_was_sent_and_what_was_dropped_add_up() {
    let (lines, got, close, summary) = overflow("drop-newest");
    check_sums(lines, &got, close, &summary);
    // The oldest were kept.
    assert_eq!(got[1][..1_000], (0..1_000).collect::<Vec<_>>());
}

#[test]
fn under_drop_oldest_what_was_sent_and_what_was_dropped_add_up() {
    let (lines, got, close, summary) = overflow("drop-oldest");
    check_sums(lines, &got, close, &summary);
    // The newest were kept.
    assert_eq!(got[1].last(), Some(&(lines - 1)));
}

#[track_caller]
fn check_sums(lines: u64, got: &[Vec<u64>; 2], close: [Option<u16>; 2], summary: &str) {
    let [sent, dropped] = counts(summary);
    let received = (got[0].len() + got[1].len()) as u64;
    assert_eq!(sent, received, "{summary}");
    assert_eq!(sent + dropped, 2 * lines, "{summary}");
    assert!(
        (got[1].len() as u64) < lines,
        "nothing was dropped: {summary}"
    );
    for got in got {
        assert!(got.is_sorted_by(|a, b| a < b), "not in order");
    }
    assert_eq!(close, [Some(1001); 2]);
}

#[test]
fn under_disconnect_the_slow_client_is_told_1013_and_what_was_sent_adds_up() {
    let (_, got, close, summary) = overflow("disconnect");
    let [sent, dropped] = counts(&summary);
    assert_eq!(close[1], Some(1013), "{summary}");
    assert_eq!(sent, (got[0].len() + got[1].len()) as u64, "{summary}");
    assert!(dropped > 0, "{summary}");
    // No hole: what it got is how it began.
    for got in got {
        let len = got.len() as u64;
        assert_eq!(got, (0..len).collect::<Vec<_>>());
    }
}
