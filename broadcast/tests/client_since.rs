//! `humphrey-broadcast listen --since`, and messages that a server has skipped for a slow client.
#![cfg(unix)]

mod support;

use rustix::process::Signal;
use support::shell::{Cable, Foreign, Shell};
use support::{Program, eventually, http_get};
use tungstenite::Message;

const NO_WELCOME: &str = "--no-welcome";

/// Keeps reconnect delays short.
const SOON: &str = "--max-delay=1";

fn url_of(program: &Program) -> String {
    format!("ws://{}/", program.address())
}

/// A server with a history, and with these messages to the room `news` and to everyone.
fn server(history: &str, to_room: &[&str], to_everyone: &[&str]) -> Program {
    let arguments = [NO_WELCOME, "--history", history, "--on-message=broadcast"];
    let mut program = Program::start(&arguments);
    let mut peer = program.connect_to("/news");
    for text in to_room {
        peer.send(Message::text(*text));
        assert_eq!(peer.text(), *text);
    }
    for text in to_everyone {
        program.write(format!("{text}\n").as_bytes());
        assert_eq!(peer.text(), *text);
    }
    program
}

/// The id of a message that the server keeps.
#[track_caller]
fn id_of(program: &Program, text: &str) -> String {
    let mut shell = Shell::listen(&url_of(program), &["--room=news", "--json"]);
    loop {
        let line = shell.json();
        if line["text"] == text {
            return line["id"].as_str().unwrap().to_owned();
        }
    }
}

#[track_caller]
fn expect_lines(shell: &mut Shell, lines: &[&str]) {
    for line in lines {
        assert_eq!(shell.line(), *line, "{}", shell.said);
    }
}

/// Waits until the first client of a server has joined.
fn expect_joined(program: &Program) {
    eventually("the client is connected", || {
        let answer = http_get(program.address(), "/clients").2;
        answer.trim() == r#"{"clients": 1}"#
    });
}

#[test]
fn since_all_prints_the_history_whatever_the_url_says() {
    let program = server("9", &["r1"], &["e1", "e2"]);
    for arguments in [&["--since=all"][..], &["--since=all", "--room=news"]] {
        let url = format!("{}?since=now", url_of(&program));
        let mut shell = Shell::listen(&url, arguments);
        expect_lines(&mut shell, &["e1", "e2"]);
        if arguments.len() > 1 {
            expect_lines(&mut shell, &["r1"]);
        }
    }
}

#[test]
fn since_now_prints_new_messages_only() {
    let mut program = server("9", &["r1"], &["e1"]);
    let mut shell = Shell::listen(&url_of(&program), &["--since=now", "--room=news"]);
    // The position is that of the handshake.
    shell.expect_line("connected to");
    program.write(b"e2\n");
    expect_lines(&mut shell, &["e2"]);
    program.connect_to("/news").send(Message::text("r2"));
    expect_lines(&mut shell, &["r2"]);
    shell.signal(Signal::TERM);
    shell.expect_exit(0);
    assert!(!shell.said.contains("missing"), "{}", shell.said);
}

#[test]
fn since_id_without_room_prints_what_everyone_got_after_it() {
    let program = server("9", &[], &["e1", "e2", "e3"]);
    let id = id_of(&program, "e2");
    let mut shell = Shell::listen(&url_of(&program), &["--since", &id, "--count=1"]);
    expect_lines(&mut shell, &["e3"]);
    shell.expect_exit(0);
    assert!(!shell.said.contains("missing"), "{}", shell.said);
}

#[test]
fn since_id_with_room_applies_to_the_history_it_is_from() {
    let program = server("9", &["r1", "r2", "r3"], &["e1", "e2", "e3"]);
    let (room, everyone) = (id_of(&program, "r2"), id_of(&program, "e1"));
    for (since, expected) in [
        (room.clone(), &["e1", "e2", "e3", "r3"][..]),
        (everyone.clone(), &["e2", "e3", "r1", "r2", "r3"]),
        (format!("{room},{everyone}"), &["e2", "e3", "r3"]),
        (format!(",{everyone}"), &["e2", "e3", "r1", "r2", "r3"]),
    ] {
        let count = format!("--count={}", expected.len());
        let arguments = ["--room=news", "--since", &since, &count];
        let mut shell = Shell::listen(&url_of(&program), &arguments);
        expect_lines(&mut shell, expected);
        shell.expect_exit(0);
        shell.expect_end_of_output();
        assert!(!shell.said.contains("missing"), "{}", shell.said);
        // A room in the URL is a room, too.
        let url = format!("{}news", url_of(&program));
        let mut shell = Shell::listen(&url, &arguments[1..]);
        expect_lines(&mut shell, expected);
    }
}

#[test]
fn since_ids_resume_the_lines_of_sources() {
    let mut program = Program::start(&[NO_WELCOME, "--prefix-room"]);
    let mut witness = program.connect();
    program.write(b"web: w1\napi: a1\ne1\nweb: w2\n");
    for _ in 0..4 {
        witness.text();
    }
    let ids = |text: &str| {
        let mut shell = Shell::listen(&url_of(&program), &["--json"]);
        loop {
            let line = shell.json();
            if line["text"] == text {
                return line["id"].as_str().unwrap().to_owned();
            }
        }
    };
    let (source, everyone) = (ids("a1"), ids("e1"));
    for (since, expected) in [
        (source.clone(), &["e1", "w2"][..]),
        (format!("{source},{everyone}"), &["w2"]),
    ] {
        let count = format!("--count={}", expected.len());
        let mut shell = Shell::listen(&url_of(&program), &["--json", "--since", &since, &count]);
        for text in expected {
            assert_eq!(shell.json()["text"], *text);
        }
        shell.expect_exit(0);
        assert!(!shell.said.contains("missing"), "{}", shell.said);
    }
}

#[test]
fn since_id_that_is_no_longer_kept_reports_missing_messages() {
    let mut program = server("3", &[], &["e1"]);
    let id = id_of(&program, "e1");
    let mut witness = program.connect_to("/?since=all");
    assert_eq!(witness.text(), "e1");
    for n in 2..9 {
        program.write(format!("e{n}\n").as_bytes());
        assert_eq!(witness.text(), format!("e{n}"));
    }
    let mut shell = Shell::listen(&url_of(&program), &["--since", &id]);
    expect_lines(&mut shell, &["e6", "e7", "e8"]);
    shell.expect_line("messages are missing: they are no longer in");
    // Missing messages to everyone are not the room's.
    program.connect_to("/news").send(Message::text("r1"));
    let room_id = id_of(&program, "r1");
    let mut shell = Shell::listen(&url_of(&program), &["--room=news", "--since", &room_id]);
    expect_lines(&mut shell, &["e6", "e7", "e8"]);
    program.write(b"e9\n");
    expect_lines(&mut shell, &["e9"]);
    shell.signal(Signal::TERM);
    shell.expect_exit(0);
    assert!(!shell.said.contains("missing"), "{}", shell.said);
}

#[test]
fn since_id_of_another_history_is_reported() {
    let program = server("9", &[], &["e1"]);
    let mut shell = Shell::listen(&url_of(&program), &["--since=5f3a-1"]);
    expect_lines(&mut shell, &["e1"]);
    shell.expect_line("the server does not know the id of --since");
}

#[test]
fn reconnect_resumes_from_what_was_received_not_from_since() {
    for since in ["all", "now", "id"] {
        let mut program = server("9", &[], &["e1", "e2"]);
        let since = match since {
            "id" => id_of(&program, "e2"),
            word => word.to_owned(),
        };
        let cable = Cable::to(program.address());
        let mut shell = Shell::listen(&cable.url(), &["--since", &since, SOON]);
        if since == "all" {
            expect_lines(&mut shell, &["e1", "e2"]);
        }
        shell.expect_line("connected to");
        program.write(b"e3\n");
        expect_lines(&mut shell, &["e3"]);
        let mut witness = program.connect_to("/?since=now");
        cable.cut();
        program.write(b"e4\n");
        assert_eq!(witness.text(), "e4");
        cable.mend();
        expect_lines(&mut shell, &["e4"]);
        shell.signal(Signal::TERM);
        shell.expect_exit(0);
        shell.expect_end_of_output();
        assert!(!shell.said.contains("missing"), "{}", shell.said);
    }
}

#[test]
fn since_without_history_is_reported_once() {
    for (since, said) in [
        (
            "all",
            Some("only new messages are printed: the server keeps no history"),
        ),
        (
            "5f3a-1",
            Some("sent in the meantime may be missing: the server keeps no history"),
        ),
        ("now", None),
    ] {
        let mut program = Program::start(&[NO_WELCOME, "--history=0"]);
        let mut shell = Shell::listen(&url_of(&program), &["--since", since]);
        expect_joined(&program);
        program.write(b"one\n");
        expect_lines(&mut shell, &["one"]);
        if let Some(said) = said {
            shell.expect_line(said);
        }
        shell.signal(Signal::TERM);
        shell.expect_exit(0);
        assert_eq!(shell.said.matches("history").count(), said.map_or(0, |_| 2));
    }
}

#[test]
fn since_has_no_effect_on_a_foreign_server() {
    for since in ["all", "now", "5f3a-1"] {
        let server = Foreign::new();
        let mut shell = Shell::listen(&server.url(), &["--since", since, SOON]);
        let mut guest = server.guest();
        guest.send(Message::text("one"));
        expect_lines(&mut shell, &["one"]);
        shell.expect_line("--since has no effect: the server is not a humphrey-broadcast");
        // The reconnect reports what every reconnect does.
        guest.close(1001, "");
        let guest = server.guest();
        shell.expect_line("messages sent in the meantime may be missing");
        guest.close(1000, "");
        shell.expect_exit(0);
        assert_eq!(shell.said.matches("has no effect").count(), 1);
        let mut quiet = Shell::listen(&server.url(), &["--since", since, "-q"]);
        let guest = server.guest();
        guest.close(1000, "");
        quiet.expect_exit(0);
        assert_eq!(quiet.said, "");
    }
}

#[test]
fn wrong_since_is_one_line_and_exit_code_2() {
    for (arguments, said) in [
        (&["--since=yesterday"][..], "5f3a9c0b12d4e678-42"),
        (&["--since="], "use all, now, or an id"),
        (&["--since=now", "--subprotocol=x"], "--subprotocol"),
        (
            &["--since=now", "--header=Sec-WebSocket-Protocol: x"],
            "--subprotocol",
        ),
        (&["--progress", "--quiet"], "--quiet"),
    ] {
        let arguments = [&["listen", "ws://a/"], arguments].concat();
        let (code, out, err) = support::run(&arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(
            err.contains(said) && err.lines().count() == 1,
            "{arguments:?}: {err}"
        );
    }
}

#[test]
fn skipped_messages_are_reported_and_no_error() {
    for policy in ["drop-oldest", "skip-ahead"] {
        expect_report_of_skipped(&format!("--slow-client={policy}"));
    }
}

#[track_caller]
fn expect_report_of_skipped(policy: &str) {
    const LINES: u64 = 3_000;
    const LINE_BYTES: usize = 10_000;
    let arguments = [NO_WELCOME, "--history=10", policy, "--heartbeat=0"];
    let mut program = Program::start(&arguments);
    let (mut shell, stdout) = Shell::start(&["listen", &url_of(&program), "--json"]);
    expect_joined(&program);
    // The client's output is not read, so the client reads slowly. More than all buffers in between hold.
    let filling = "x".repeat(LINE_BYTES);
    for n in 0..LINES {
        program.write(format!("{n} {filling}\n").as_bytes());
    }
    program.write(b"end\n");
    shell.read_output(stdout);
    let mut received = Vec::new();
    loop {
        let line = shell.json();
        let (_, sequence) = line["id"].as_str().unwrap().split_once('-').unwrap();
        received.push(sequence.parse::<u64>().unwrap());
        if line["text"] == "end" {
            break;
        }
    }
    let numbers = received[received.len() - 1] - received[0] + 1;
    let skipped = numbers - received.len() as u64;
    assert!(skipped > 0, "nothing was skipped");
    shell.signal(Signal::TERM);
    shell.expect_exit(0);
    let reports: Vec<u64> = shell
        .said
        .lines()
        .filter(|line| line.ends_with("skipped: this client reads too slowly"))
        .map(|line| line.split(' ').nth(1).unwrap().parse().unwrap())
        .collect();
    assert_eq!(reports.iter().sum::<u64>(), skipped, "{}", shell.said);
}
