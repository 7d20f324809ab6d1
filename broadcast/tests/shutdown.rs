//! The end of the server: at the end of its input, and on signals.
#![cfg(unix)]

mod support;

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{Client, Program, eventually, http_get, numbered};
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

#[test]
fn exit_on_eof_delivers_all_then_closes_with_1001() {
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
fn exit_on_eof_delivers_all_to_a_late_reader() {
    let mut program = Program::start(&[
        "--no-welcome",
        "--exit-on-eof",
        "--slow-client",
        "drop-newest",
    ]);
    let mut client = program.connect();
    // More than a socket takes, less than an outbox holds in addition.
    let line = [b'x'; 999];
    for _ in 0..1_000 {
        program.write(&line);
        program.write(b"\n");
    }
    program.close_input();
    // The client reads only after the shutdown has begun, which shows in refused connections.
    program.expect_refusal();
    for _ in 0..1_000 {
        assert_eq!(client.text().len(), line.len());
    }
    client.expect_close(CloseCode::Away);
    program.expect_exit(0);
}

#[test]
fn exit_on_eof_exits_without_any_client() {
    let mut program = Program::start(&["--exit-on-eof"]);
    program.write(b"to nobody\nnor this\n");
    program.close_input();
    program.expect_line("2 lines, 0 clients, 0 messages sent");
    program.expect_exit(0);
}

#[test]
fn exit_on_eof_is_shortened_by_a_signal() {
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof"]);
    let client = program.connect();
    // The client does not answer the close frame.
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
fn second_ctrl_c_exits_at_once() {
    let mut program = Program::start(&["--no-welcome"]);
    let client = program.connect();
    program.signal(Signal::INT);
    // The client does not answer the close frame, so the server waits. Refused connections show that it has begun to.
    program.expect_refusal();
    let begun = Instant::now();
    // Signals right behind the first one count as duplicates of it.
    eventually("the program exits", || {
        program.signal(Signal::INT);
        !program.is_running()
    });
    program.expect_exit(130);
    assert!(begun.elapsed() < Duration::from_secs(2));
    drop(client);
}

#[test]
fn duplicate_signal_does_not_skip_the_closing_handshake() {
    // As `timeout` does: it signals its child, and its process group, which contains the child.
    for signal in [Signal::TERM, Signal::INT] {
        // While the first one is still pending, and right after its delivery.
        for is_delivered in [false, true] {
            let mut program = Program::start(&["--no-welcome"]);
            let client = program.connect();
            program.signal(signal);
            if is_delivered {
                eventually("the signal is delivered", || !program.has_pending_signals());
            }
            program.signal(signal);
            client.expect_close(CloseCode::Away);
            program.expect_exit(0);
        }
    }
}

#[test]
fn second_sighup_does_not_skip_the_closing_handshake() {
    use rustix::process::Signal;
    let mut program = Program::start(&["--no-welcome"]);
    let client = program.connect();
    // When a terminal closes, both the system and the shell send one.
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
    // A stopping server would refuse this connection.
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

#[test]
fn signal_ends_a_server_blocked_by_a_slow_client() {
    let mut program = Program::start(&["--no-welcome", "--slow-client=pace"]);
    let stalled = program.connect();
    let mut input = program.take_input();
    let (started, feeding) = std::sync::mpsc::channel();
    let feeder = thread::spawn(move || {
        let lines = numbered(0..10_000);
        let _ = started.send(());
        // Until the program exits.
        while input.write_all(&lines).is_ok() {}
    });
    feeding.recv().unwrap();
    program.signal(Signal::TERM);
    program.expect_exit(0);
    feeder.join().unwrap();
    drop(stalled);
}

#[test]
fn clients_stay_connected_while_the_server_is_suspended() {
    const CLIENTS: usize = 20;
    // Longer than the heartbeat of 1 s and the 10 s for the pong.
    const OVERDUE: Duration = Duration::from_secs(12);
    let program = Program::start(&["--no-welcome", "--heartbeat", "1"]);
    let is_stopped = AtomicBool::new(true);
    let last_ping = Mutex::new(Instant::now());
    thread::scope(|scope| {
        let reading: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let mut client = program.connect();
                let (is_stopped, last_ping) = (&is_stopped, &last_ping);
                scope.spawn(move || {
                    // A second ping follows only if the first was answered in time.
                    let mut pings = 0;
                    while pings < 2 {
                        match client.any() {
                            Message::Ping(_) if is_stopped.load(Ordering::Relaxed) => {
                                *last_ping.lock().unwrap() = Instant::now();
                            }
                            Message::Ping(_) => pings += 1,
                            other => panic!("{other:?}"),
                        }
                    }
                    client
                })
            })
            .collect();
        program.signal(Signal::STOP);
        eventually("all pings and pongs are overdue", || {
            last_ping.lock().unwrap().elapsed() > OVERDUE
        });
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
fn last_line_is_a_summary() {
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
    program.expect_line(" 2 clients, 4 messages sent");
    program.expect_exit(0);
}
