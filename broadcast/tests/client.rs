//! `humphrey-broadcast listen`, against the program and against servers that are not ours. For `send`: `client_send.rs`.
#![cfg(unix)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use rustix::process::Signal;
use support::shell::{Cable, Foreign, Shell};
use support::{Program, eventually, http_get, numbered};
use tungstenite::Message;

const NO_WELCOME: &str = "--no-welcome";

/// So that a test that comes back does not wait for long.
const SOON: &str = "--max-delay=1";

fn url_of(program: &Program) -> String {
    format!("ws://{}/", program.address())
}

/// `listen`, once it gets what is sent.
fn listen(program: &Program, room: &str, arguments: &[&str]) -> Shell {
    let url = format!("{}{room}", url_of(program));
    let mut shell = Shell::listen(&url, arguments);
    shell.expect_line("connected to ws://");
    let expected = match room {
        "" => "\"clients\": 1}".to_owned(),
        _ => "\"room\": 1}".to_owned(),
    };
    eventually("it is in", || {
        let answer = http_get(program.address(), &format!("/clients/{room}")).2;
        answer.trim().ends_with(&expected)
    });
    shell
}

#[test]
fn listen_prints_each_message_on_a_line() {
    for history in [&[][..], &["--history", "9"]] {
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
fn with_room_listen_gets_what_is_sent_to_that_room_and_to_everyone() {
    for history in [&[][..], &["--history", "9"]] {
        let name = "Z\u{fc}rich & more/100%";
        let arguments = [NO_WELCOME, "--room", name];
        let mut program = Program::start(&[&arguments, history].concat());
        let mut shell = Shell::listen(&url_of(&program), &["--room", name]);
        let mut elsewhere = Shell::listen(&url_of(&program), &["--room", "news"]);
        eventually("both are in", || {
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
fn listen_begins_with_what_is_kept_unless_the_url_says_from_now_on() {
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
fn as_json_each_line_says_room_id_and_time_where_they_are_known() {
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
fn as_json_a_server_that_is_not_ours_is_said_no_more_of_than_it_says() {
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
fn a_message_with_line_breaks_is_one_line() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &[]);
    let mut guest = server.guest();
    guest.send(Message::text("a\nb\r\nc"));
    guest.send(Message::text("next"));
    assert_eq!(shell.line(), "a b c");
    assert_eq!(shell.line(), "next");
}

#[test]
fn a_server_is_asked_for_path_room_and_headers_and_may_choose_no_subprotocol() {
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
fn a_name_is_looked_up() {
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
fn after_cuts_listen_comes_back_without_gap_or_duplicate() {
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
        // While it listens, while it does not, and while it comes back.
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
fn where_more_was_missed_than_is_kept_it_is_said_and_the_rest_comes() {
    let mut program = Program::start(&[NO_WELCOME, "--history", "3"]);
    let cable = Cable::to(program.address());
    let mut witness = program.connect();
    let mut shell = Shell::listen(&cable.url(), &[SOON]);
    program.write(b"0\n");
    assert_eq!((shell.line(), witness.text()), ("0".into(), "0".into()));
    // What it has seen is told behind what is kept.
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
fn listen_outlives_the_server_and_gets_from_the_next_all_that_it_keeps() {
    for history in [&[][..], &["--history", "9"]] {
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
        if history.is_empty() {
            shell.expect_line("connected");
            shell.expect_line("messages sent in the meantime may be missing");
            eventually("it is in", || program_has_client(&program));
            program.write(b"two\n");
        } else {
            program.write(b"two\n");
            shell.expect_line("the server was restarted");
        }
        assert_eq!(shell.line(), "two");
        // One that ends in good order is waited for, too.
        program.signal(Signal::TERM);
        program.expect_exit(0);
        shell.expect_line("with 1001");
        let mut program = Program::start_at(&address, &arguments);
        shell.expect_line("connected");
        eventually("it is in", || program_has_client(&program));
        program.write(b"three\n");
        assert_eq!(shell.line(), "three");
    }
}

fn program_has_client(program: &Program) -> bool {
    let answer = http_get(program.address(), "/clients").2;
    answer.trim() == r#"{"clients": 1}"#
}

#[test]
fn close_codes_1000_and_1008_end_it() {
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
fn after_other_close_codes_it_comes_back() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &[SOON]);
    for code in [1001, 1011, 1012, 1013, 4000] {
        server.guest().close(code, "");
        let line = shell.expect_line(&format!("with {code}; reconnecting in"));
        if code == 1013 {
            // Half of the longest delay, at least.
            let seconds = line.rsplit(" in ").next().unwrap();
            let seconds: f64 = seconds.trim_end_matches(" s").parse().unwrap();
            assert!((0.5..=1.0).contains(&seconds), "{line}");
        }
    }
    drop(server.guest());
    shell.expect_line("the connection is lost; reconnecting in");
    server.refuse("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    shell.expect_line("answers 503: Busy; reconnecting in");
    server.guest().close(1000, "");
    shell.expect_exit(0);
}

#[test]
fn with_no_reconnect_it_does_not() {
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
fn who_refuses_or_is_no_websocket_server_ends_it() {
    for (answer, said) in [
        (
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\n\r\nwho is it\n",
            "the server answers 401: who is it",
        ),
        (
            "HTTP/1.1 301 Moved\r\nLocation: wss://a/\r\n\r\n",
            "the server answers 301: see wss://a/",
        ),
        ("SSH-2.0-x\r\n", "this is no WebSocket server"),
    ] {
        let server = Foreign::new();
        let mut shell = Shell::listen(&server.url(), &[]);
        server.refuse(answer);
        shell.expect_exit(1);
        assert!(shell.said.contains(said), "{}", shell.said);
    }
}

#[test]
fn a_server_that_knows_no_offers_is_asked_without() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--count=1"]);
    server.refuse("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    let mut guest = server.guest();
    assert!(guest.header("Sec-WebSocket-Protocol").is_none());
    guest.send(Message::text("x"));
    assert_eq!(shell.line(), "x");
    // A room that can't be one remains so.
    let program = Program::start(&[]);
    let mut shell = Shell::listen(&format!("{}%2E", url_of(&program)), &[]);
    shell.expect_exit(1);
    assert!(
        shell
            .said
            .contains("answers 400: the path has a segment '.'"),
        "{}",
        shell.said
    );
}

#[test]
fn server_that_hangs_up_on_offers_is_asked_without_for_good() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--count=2", SOON]);
    // It hangs up, in good order and with a reset.
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
fn server_that_hangs_up_on_everybody_is_offered_the_same_again() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--count=1", SOON]);
    server.refuse("");
    server.refuse("");
    shell.expect_line("hung up in the handshake; reconnecting in");
    let mut guest = server.guest();
    assert!(guest.header("Sec-WebSocket-Protocol").is_some());
    guest.send(Message::text("x"));
    assert_eq!(shell.line(), "x");
}

#[test]
fn subprotocols_that_the_user_names_are_offered_alone() {
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
    // Whoever demands them is not asked without.
    let server = Foreign::new();
    let arguments = ["--subprotocol=a", "--no-reconnect"];
    let mut shell = Shell::listen(&server.url(), &arguments);
    server.refuse("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    shell.expect_exit(1);
}

#[test]
fn host_that_the_user_names_replaces_the_urls() {
    let server = Foreign::new();
    let _shell = Shell::listen(&server.url(), &["--header=host: tunnel.example"]);
    let guest = server.guest();
    let hosts: Vec<_> = guest.request.headers().get_all("Host").iter().collect();
    assert_eq!(hosts, ["tunnel.example"]);
}

#[test]
fn interim_answers_and_headers_in_several_lines_are_read() {
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
fn connections_that_open_and_die_at_once_do_not_count_as_good() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &[SOON, "--give-up-after=1"]);
    // It opens each time, and still it is given up.
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
fn refusal_whose_body_does_not_end_is_told_all_the_same() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &[]);
    let mut stream = server.tcp();
    stream
        .write_all(b"HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\nnot you\n")
        .unwrap();
    shell.expect_exit(1);
    assert!(
        shell.said.contains("answers 403: not you"),
        "{}",
        shell.said
    );
}

#[cfg(target_os = "linux")]
#[test]
fn non_blocking_output_is_waited_for() {
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
fn a_server_that_is_not_there_is_waited_for_or_given_up() {
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
fn a_server_that_answers_no_ping_is_left() {
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--heartbeat=1", SOON]);
    let silent = server.guest();
    shell.expect_line("does not answer pings; reconnecting in");
    // One that does is not.
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
fn where_nobody_reads_its_output_it_ends_quietly() {
    // With a message to be written, and without one.
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
fn a_signal_ends_it_with_a_goodbye() {
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
    // Where there is no connection, at once.
    let server = Foreign::new();
    let mut shell = Shell::listen(&server.url(), &["--max-delay=1000"]);
    server.refuse("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    shell.expect_line("reconnecting in");
    shell.signal(Signal::TERM);
    shell.expect_exit(0);
}

#[test]
fn a_reader_that_does_not_read_slows_the_server_and_memory_is_bounded() {
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
fn a_wrong_command_line_is_said_in_one_line_with_exit_code_2() {
    for (arguments, said) in [
        (&["listen"][..], "<URL>"),
        (&["listen", "wss://a/"], "stunnel"),
        (&["listen", "a:80"], "ws://"),
        (&["listen", "ws://a/", "--count=0"], "'0'"),
        (&["listen", "ws://a/", "--room="], "needs a name"),
        (&["send", "ws://a/", "--json"], "'--json'"),
        (&["send", "ws://a/", "--header=x"], "'Name: value'"),
        (
            &["send", "ws://a/", "--header=a b: x"],
            "not the name of a header",
        ),
        (
            &["send", "ws://a/", "--header=a: x\x07y"],
            "control character",
        ),
        (
            &["send", "ws://a/", "--header=Upgrade: x"],
            "handshake's own",
        ),
        (&["send", "ws://a/", "--header=Host: a/b"], "not a host"),
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
            "not the name of a subprotocol",
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
fn the_help_says_what_there_is() {
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
fn what_is_written_to_a_file_is_all_there_when_it_ends() {
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
fn an_output_that_can_not_be_written_is_an_error() {
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
