//! `humphrey-broadcast listen`: its output, rooms, histories and options. For failures see `client_failures.rs`, for `send`
//! see `client_send.rs`.
#![cfg(unix)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::Command;
use std::thread;

use rustix::process::Signal;
use support::shell::{Cable, Foreign, Shell};
use support::{Program, eventually, http_get, numbered};
use tungstenite::Message;

const NO_WELCOME: &str = "--no-welcome";

/// Keeps reconnect delays short.
const SOON: &str = "--max-delay=1";

fn url_of(program: &Program) -> String {
    format!("ws://{}/", program.address())
}

/// Starts `listen` and waits until it has joined its room.
fn listen(program: &Program, room: &str, arguments: &[&str]) -> Shell {
    let url = format!("{}{room}", url_of(program));
    let mut shell = Shell::listen(&url, arguments);
    shell.expect_line("connected to ws://");
    let expected = match room {
        "" => "\"clients\": 1}".to_owned(),
        _ => "\"room\": 1}".to_owned(),
    };
    eventually("the client is in the room", || {
        let answer = http_get(program.address(), &format!("/clients/{room}")).2;
        answer.trim().ends_with(&expected)
    });
    shell
}

#[test]
fn listen_prints_each_message_on_a_line() {
    for history in [&["--history", "0"][..], &["--history", "9"]] {
        let mut program = Program::start(&[&[NO_WELCOME], history].concat());
        let mut shell = listen(&program, "", &[]);
        program.write("one\n\nGr\u{fc}ezi\n\u{0}\n".as_bytes());
        program.write(b"\xff\xfe\n");
        for line in ["one", "", "Gr\u{fc}ezi", "\0"] {
            assert_eq!(shell.line(), line);
        }
        assert_eq!(shell.bytes(), b"\xff\xfe");
        shell.signal(Signal::TERM);
        shell.expect_exit(0);
        shell.expect_end_of_output();
    }
}

#[test]
fn listen_prints_compressed_messages() {
    let mut program = Program::start(&[NO_WELCOME, "--compress", "--metrics", "127.0.0.1:0"]);
    let metrics = program.expect_line("metrics");
    let metrics = metrics.rsplit("http://").next().unwrap();
    let metrics = metrics.strip_suffix("/metrics").unwrap().parse().unwrap();
    let mut shell = listen(&program, "", &[]);
    let line = |n: usize| {
        format!(
            r#"{{"type":"tick","symbol":"EUR/USD","bid":1.{n:05},"ask":2.{n:05},"at":17{n:06}}}"#
        )
    };
    for n in 0..200 {
        program.write(format!("{}\n", line(n)).as_bytes());
        assert_eq!(shell.line(), line(n));
    }
    let text = http_get(metrics, "/metrics").2;
    let sum = |name: &str| -> u64 {
        let samples = text.lines().filter(|line| line.starts_with(name));
        samples
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    };
    let packed = sum("humphrey_ws_compression_sent_bytes_total{");
    let plain = sum("humphrey_ws_compression_plain_bytes_total{");
    assert!(packed > 0 && packed * 2 < plain, "{packed} of {plain}");
    shell.signal(Signal::TERM);
    shell.expect_exit(0);
}

#[test]
fn listen_with_room_gets_its_messages_only() {
    for history in [&["--history", "0"][..], &["--history", "9"]] {
        let name = "Z\u{fc}rich & more/100%";
        let arguments = [NO_WELCOME, "--room", name];
        let mut program = Program::start(&[&arguments, history].concat());
        let mut shell = Shell::listen(&url_of(&program), &["--room", name]);
        let mut elsewhere = Shell::listen(&url_of(&program), &["--room", "news"]);
        eventually("both clients are in the room", || {
            let path = "/clients/Z%C3%BCrich%20&%20more%2F100%25";
            let answer = http_get(program.address(), path).2;
            answer.trim() == r#"{"clients": 2, "room": 1}"#
        });
        program.write(b"to the room\n");
        assert_eq!(shell.line(), "to the room");
        elsewhere.signal(Signal::INT);
        elsewhere.expect_exit(0);
        elsewhere.expect_end_of_output();
    }
}

#[test]
fn listen_begins_with_the_history_unless_since_is_now() {
    let mut program = Program::start(&[NO_WELCOME, "--history", "9"]);
    let mut witness = program.connect();
    program.write(b"kept\n");
    assert_eq!(witness.text(), "kept");
    let mut all = Shell::listen(&url_of(&program), &[]);
    assert_eq!(all.line(), "kept");
    let url = format!("{}?since=now", url_of(&program));
    let mut new = Shell::listen(&url, &[]);
    new.expect_line("connected");
    program.write(b"live\n");
    for shell in [&mut all, &mut new] {
        assert_eq!(shell.line(), "live");
    }
}

#[test]
fn json_output_has_room_id_and_time() {
    let arguments = [NO_WELCOME, "--history", "9", "--on-message", "broadcast"];
    let mut program = Program::start(&arguments);
    let mut shell = listen(&program, "news", &["--json"]);
    program.write(b"\"to\" all\t\x1b\n\xff\xfe\x00\n");
    let line = shell.json();
    assert!(line["room"].is_null() && line["id"].as_str().unwrap().ends_with("-1"));
    assert!(line["at"].as_u64().unwrap() > 1_700_000_000_000);
    assert_eq!(line["text"], "\"to\" all\t\u{1b}");
    assert_eq!(shell.json()["base64"], "//4A");
    let mut sender = program.connect_to("/news");
    sender.send(Message::text("two\nlines"));
    let line = shell.json();
    assert_eq!(
        (line["room"].as_str(), line["text"].as_str()),
        (Some("news"), Some("two\nlines"))
    );
}

#[test]
fn json_from_a_foreign_server_has_only_the_content() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--json", "--count=3"]);
    let mut guest = server.guest();
    guest.send(Message::text(r#"{"kind":"message","text":"x"}"#));
    guest.send(Message::binary(vec![0xff]));
    guest.send(Message::text("a\u{9b}"));
    guest.send(Message::text("too many"));
    assert_eq!(guest.expect_close(), []);
    assert_eq!(
        shell.line(),
        r#"{"text":"{\"kind\":\"message\",\"text\":\"x\"}"}"#
    );
    assert_eq!(shell.line(), r#"{"base64":"/w=="}"#);
    assert_eq!(shell.line(), r#"{"text":"a\u009b"}"#);
    shell.expect_exit(0);
    shell.expect_end_of_output();
}

#[test]
fn message_with_line_breaks_is_printed_as_one_line() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &[]);
    let mut guest = server.guest();
    guest.send(Message::text("a\nb\r\nc"));
    guest.send(Message::text("next"));
    assert_eq!(shell.line(), "a b c");
    assert_eq!(shell.line(), "next");
}

#[test]
fn handshake_names_path_room_and_headers() {
    let server = Foreign::new();
    let url = format!("{}live/?x=1", server.url());
    let header = "--header=Authorization: Bearer a:b";
    let _shell = Shell::listen(&url, &["--room", "a b", header]);
    let guest = server.guest();
    assert_eq!(guest.request.uri().to_string(), "/live/a%20b?x=1");
    assert_eq!(guest.header("Authorization"), Some("Bearer a:b"));
    assert!(guest.header("Origin").is_none());
    let host = guest.header("Host").unwrap();
    assert_eq!(format!("ws://{host}/"), server.url());
}

#[test]
fn first_lines_precede_everything_on_each_connection() {
    let server = Foreign::new();
    let subscribe = r#"{"op":"subscribe","channel":"news"}"#;
    let first = ["--first", subscribe, "--first=two"];
    let mut shell = Shell::listen(&server.url(), &[&first[..], &[SOON]].concat());
    for n in 1..=3 {
        let mut guest = server.guest();
        // Whatever the server sends, its subscribers' lines come first.
        guest.send(Message::Ping(b"x".as_slice().into()));
        for line in [subscribe, "two"] {
            assert_eq!(guest.socket.read().unwrap(), Message::text(line));
        }
        assert!(guest.socket.read().unwrap().is_pong());
        guest.send(Message::text(n.to_string()));
        assert_eq!(shell.line(), n.to_string());
        guest.close(1001, "");
    }
}

#[test]
fn first_line_is_an_ordinary_message_of_the_program() {
    let program = Program::start(&[NO_WELCOME, "--history=9", "--on-message=broadcast"]);
    let mut witness = program.connect_to("/news");
    let mut shell = Shell::listen(&url_of(&program), &["--room=news", "--first=hello"]);
    assert_eq!(witness.text(), "hello");
    assert_eq!(shell.line(), "hello");
}

#[test]
fn host_name_is_resolved() {
    let server = Foreign::new();
    let url = server.url().replace("127.0.0.1", "localhost");
    let mut shell = Shell::listen(&url, &["--count=1"]);
    let mut guest = server.guest();
    guest.send(Message::text("x"));
    assert_eq!(shell.line(), "x");
    assert_eq!(guest.expect_close(), []);
    shell.expect_exit(0);
}

#[test]
fn listen_after_cuts_resumes_without_gap_or_duplicate() {
    const CUTS: u64 = 5;
    const LINES_EACH: u64 = 2_000;
    let arguments = [
        NO_WELCOME,
        "--history",
        "10000",
        "--on-message",
        "broadcast",
    ];
    let mut program = Program::start(&arguments);
    let cable = Cable::to(program.address());
    let mut shell = Shell::listen(&cable.url(), &["--json", "--room=news", SOON]);
    shell.expect_line("connected");
    let mut sender = program.connect_to("/news");
    let mut next = [0, 0];
    for cut in 0..CUTS {
        let numbers = cut * LINES_EACH..(cut + 1) * LINES_EACH;
        // Sent before the cut, while disconnected, and while reconnecting.
        for (n, number) in numbers.clone().enumerate() {
            program.write(format!("{number}\n").as_bytes());
            sender.send(Message::text(number.to_string()));
            match n {
                600 => cable.cut(),
                1_200 => cable.mend(),
                _ => {}
            }
        }
        while next != [numbers.end; 2] {
            let line = shell.json();
            let of = &mut next[usize::from(line["room"] == "news")];
            assert_eq!(line["text"], of.to_string(), "{line}");
            *of += 1;
        }
    }
    shell.signal(Signal::TERM);
    shell.expect_exit(0);
    shell.expect_end_of_output();
    assert!(!shell.said.contains("missing"), "{}", shell.said);
    assert!(shell.said.matches("connected to").count() > CUTS as usize);
}

#[test]
fn reconnect_beyond_the_history_reports_missing_messages() {
    let mut program = Program::start(&[NO_WELCOME, "--history", "3"]);
    let cable = Cable::to(program.address());
    let mut witness = program.connect();
    let mut shell = Shell::listen(&cable.url(), &[SOON]);
    program.write(b"0\n");
    assert_eq!((shell.line(), witness.text()), ("0".into(), "0".into()));
    // The id of the last message is announced after the replay.
    program.write(b"1\n");
    assert_eq!((shell.line(), witness.text()), ("1".into(), "1".into()));
    cable.cut();
    program.write(&numbered(2..9));
    for n in 2..9 {
        assert_eq!(witness.text(), n.to_string());
    }
    cable.mend();
    for n in 6..9 {
        assert_eq!(shell.line(), n.to_string());
    }
    shell.expect_line("messages are missing: they are no longer in");
}

#[test]
fn listen_reconnects_to_a_restarted_server() {
    for history in [&["--history", "0"][..], &["--history", "9"]] {
        let arguments = [&[NO_WELCOME], history].concat();
        let mut program = Program::start(&arguments);
        let address = program.address().to_string();
        let mut shell = listen(&program, "", &[SOON]);
        program.write(b"one\n");
        assert_eq!(shell.line(), "one");
        program.signal(Signal::KILL);
        shell.expect_line("reconnecting in");
        drop(program);
        let mut program = Program::start_at(&address, &arguments);
        if history[1] == "0" {
            shell.expect_line("connected");
            shell.expect_line("messages sent in the meantime may be missing");
            eventually("the client is in the room", || program_has_client(&program));
            program.write(b"two\n");
        } else {
            program.write(b"two\n");
            shell.expect_line("the server was restarted");
        }
        assert_eq!(shell.line(), "two");
        // It also reconnects after a graceful shutdown.
        program.signal(Signal::TERM);
        program.expect_exit(0);
        shell.expect_line("with 1001");
        let mut program = Program::start_at(&address, &arguments);
        shell.expect_line("connected");
        eventually("the client is in the room", || program_has_client(&program));
        program.write(b"three\n");
        assert_eq!(shell.line(), "three");
    }
}

fn program_has_client(program: &Program) -> bool {
    let answer = http_get(program.address(), "/clients").2;
    answer.trim() == r#"{"clients": 1}"#
}

#[cfg(target_os = "linux")]
#[test]
fn listen_waits_for_a_non_blocking_output() {
    let server = Foreign::new();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_humphrey-broadcast"))
        .args(["listen", &server.url(), "--count=300", "--quiet"])
        .stdout(std::os::fd::OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let mut guest = server.guest();
    let writer = thread::spawn(move || {
        for _ in 0..300 {
            guest.send(Message::text("x".repeat(10_000)));
        }
        guest.expect_close()
    });
    let lines: Vec<String> = BufReader::new(ours).lines().map(Result::unwrap).collect();
    assert_eq!(lines.len(), 300);
    assert!(lines.iter().all(|line| line.len() == 10_000));
    assert_eq!(writer.join().unwrap(), []);
    assert!(child.wait().unwrap().success());
}

#[test]
fn listen_with_closed_output_exits_quietly() {
    // With a pending message, and without one.
    for messages in [1, 0] {
        let server = Foreign::new();
        let (mut shell, stdout) = Shell::start(&["listen", &server.url(), "--quiet"]);
        let mut guest = server.guest();
        guest.send(Message::text("one"));
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "one\n");
        drop(stdout);
        for _ in 0..messages {
            guest.send(Message::text("two"));
        }
        assert_eq!(guest.expect_close(), []);
        shell.expect_exit(0);
        assert_eq!(shell.said, "");
    }
}

#[test]
fn slow_reader_of_output_causes_backpressure() {
    const MESSAGES: usize = 300;
    const MESSAGE_BYTES: usize = 256 << 10;
    let server = Foreign::new();
    let (mut shell, mut stdout) = Shell::start(&["listen", &server.url(), "--count=300"]);
    let mut guest = server.guest();
    let writer = thread::spawn(move || {
        for _ in 0..MESSAGES {
            guest.send(Message::text("x".repeat(MESSAGE_BYTES)));
        }
        guest
    });
    let mut first = [0];
    stdout.read_exact(&mut first).unwrap();
    let mut read = 1;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stdout.read(&mut buffer).unwrap() {
            0 => break,
            n => read += n,
        }
        if read < 2 * MESSAGE_BYTES {
            thread::yield_now();
        }
    }
    assert_eq!(read, MESSAGES * (MESSAGE_BYTES + 1));
    assert!(writer.join().unwrap().expect_close().is_empty());
    let peak = shell.peak_resident_bytes();
    assert!(peak < 32 << 20, "{peak}");
    shell.expect_exit(0);
}

#[test]
fn wrong_client_options_are_one_line_and_exit_code_2() {
    for (arguments, said) in [
        (&["listen"][..], "<URL>"),
        #[cfg(not(feature = "tls"))]
        (&["listen", "wss://a/"], "feature 'tls'"),
        #[cfg(feature = "tls")]
        (&["listen", "wss://-a/"], "no valid host"),
        (&["listen", "a:80"], "ws://"),
        (&["listen", "ws://a/", "--count=0"], "'0'"),
        (&["listen", "ws://a/", "--room="], "needs a name"),
        (&["send", "ws://a/", "--json"], "'--json'"),
        (&["send", "ws://a/", "--header=x"], "'Name: value'"),
        (
            &["send", "ws://a/", "--header=a b: x"],
            "not a valid header name",
        ),
        (
            &["send", "ws://a/", "--header=a: x\x07y"],
            "control character",
        ),
        (
            &["send", "ws://a/", "--header=Upgrade: x"],
            "reserved for the handshake",
        ),
        (
            &["send", "ws://a/", "--header=Host: a/b"],
            "not a valid Host",
        ),
        (
            &["send", "ws://a/", "--header=Host: a", "--header=host: b"],
            "given twice",
        ),
        (
            &[
                "send",
                "ws://a/",
                "--header=Cookie: a=b",
                "--header=Cookie: c=d",
            ],
            "given twice",
        ),
        (
            &["listen", "ws://a/", "--subprotocol=a b"],
            "not a valid subprotocol name",
        ),
        (
            &["listen", "ws://a/", "--subprotocol=a", "--subprotocol=a"],
            "given twice",
        ),
        (
            &[
                "listen",
                "ws://a/",
                "--subprotocol=a",
                "--header=Sec-WebSocket-Protocol: b, a",
            ],
            "given twice",
        ),
        (&["listen", "ws://me:secret@a/"], "--header"),
        (&["listen", "ws://a/#b"], "--room"),
        (&["send", "ws://a/", "--max-delay=0"], "'0'"),
        (&["--quiet", "listen", "ws://a/"], "'listen'"),
        (&["hear", "ws://a/"], "'hear'"),
    ] {
        let (code, out, err) = support::run(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(
            err.contains(said) && err.lines().count() == 1,
            "{arguments:?}: {err}"
        );
    }
}

#[test]
fn help_names_commands_and_options() {
    for (arguments, said) in [
        (&["--help"][..], "listen"),
        (&["listen", "--help"], "--give-up-after"),
        (&["send", "--help"], "Exit codes"),
    ] {
        let (code, out, err) = support::run(arguments);
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(out.contains(said), "{out}");
    }
}

#[test]
fn output_file_is_complete_at_exit() {
    let mut program = Program::start(&[NO_WELCOME, "--history", "9"]);
    program.write(b"one\ntwo\n");
    let path = std::env::temp_dir().join(format!("humphrey-broadcast-{}", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_humphrey-broadcast"))
        .args(["listen", &url_of(&program), "--count=2", "--quiet"])
        .stdout(file)
        .status()
        .unwrap();
    assert!(status.success());
    let printed = std::fs::read_to_string(&path);
    let _ = std::fs::remove_file(&path);
    assert_eq!(printed.unwrap(), "one\ntwo\n");
}

#[test]
#[cfg(target_os = "linux")]
fn output_that_cannot_be_written_is_an_error() {
    let mut program = Program::start(&[NO_WELCOME, "--history", "9"]);
    program.write(b"one\n");
    let full = std::fs::File::options().write(true).open("/dev/full");
    let output = Command::new(env!("CARGO_BIN_EXE_humphrey-broadcast"))
        .args(["listen", &url_of(&program), "--quiet"])
        .stdout(full.unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("standard output can't be written"), "{said}");
}
