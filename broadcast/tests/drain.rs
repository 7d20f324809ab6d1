//! A signal with `--drain`: connections are closed one after the other, and everything else goes on until then.
#![cfg(unix)]

mod support;

use rustix::process::Signal;
use support::shell::Shell;
use support::{Client, Program, eventually, http_get};
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

#[test]
fn drain_serves_clients_until_they_have_gone() {
    let mut program = Program::start(&["--no-welcome", "--drain", "600"]);
    let mut clients: Vec<Client> = (0..2).map(|_| program.connect()).collect();
    assert_eq!(http_get(program.address(), "/ready").0, 200);
    program.signal(Signal::TERM);
    program.expect_line("closing the connections (2) over 600 s");
    eventually("the server is not ready", || {
        http_get(program.address(), "/ready").0 == 503
    });
    assert_eq!(http_get(program.address(), "/health").0, 200);
    // A load balancer may not have asked yet.
    clients.push(program.connect());
    program.write(b"a line\n");
    for client in &mut clients {
        assert_eq!(client.text(), "a line");
    }
    drop(clients);
    program.expect_exit(0);
}

#[test]
fn end_of_input_during_a_drain_does_not_end_it() {
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof", "--drain", "600"]);
    let mut client = program.connect();
    program.signal(Signal::TERM);
    program.expect_line("closing the connections (1)");
    program.write(b"a line\n");
    program.close_input();
    assert_eq!(client.text(), "a line");
    // It is still served, in both directions.
    client.send(Message::text("echo"));
    assert_eq!(client.text(), "echo");
    drop(client);
    program.expect_exit(0);
}

#[test]
fn drain_without_clients_ends_at_once() {
    let mut program = Program::start(&["--drain", "600"]);
    program.signal(Signal::INT);
    program.expect_exit(0);
}

#[test]
fn drained_clients_are_told_to_wait_longer_than_the_drain() {
    for (arguments, wait) in [
        (&["--drain", "0.4"][..], "retry-after=1.400"),
        (
            &["--drain", "0.4", "--drain-wait", "0"],
            "retry-after=0.000",
        ),
    ] {
        let mut program = Program::start(&[&["--no-welcome"], arguments].concat());
        let clients: Vec<Client> = (0..4).map(|_| program.connect()).collect();
        program.signal(Signal::TERM);
        for mut client in clients {
            match client.any() {
                Message::Close(Some(frame)) => {
                    assert_eq!(frame.code, CloseCode::Restart);
                    assert!(frame.reason.ends_with(wait), "{}", frame.reason);
                }
                other => panic!("no close frame: {other:?}"),
            }
        }
        program.expect_exit(0);
    }
}

#[test]
fn second_signal_during_a_drain_ends_at_once() {
    let mut program = Program::start(&["--no-welcome", "--drain", "600"]);
    let client = program.connect();
    program.signal(Signal::TERM);
    program.expect_line("closing the connections (1)");
    // Signals right behind the first one count as duplicates of it.
    eventually("the program exits", || {
        program.signal(Signal::TERM);
        !program.is_running()
    });
    program.expect_exit(143);
    drop(client);
}

#[test]
fn listen_waits_for_exactly_the_time_that_a_drained_server_names() {
    let mut program = Program::start(&["--drain", "0.2", "--drain-wait", "3.5"]);
    let mut listen = Shell::listen(&format!("ws://{}/", program.address()), &[]);
    listen.expect_line("connected");
    program.signal(Signal::TERM);
    listen.expect_line("reconnecting in 3.5 s");
    program.expect_exit(0);
}
