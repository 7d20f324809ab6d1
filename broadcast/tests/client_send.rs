//! `humphrey-broadcast send` with the program and with foreign servers.
#![cfg(unix)]

mod support;

use std::io::{Read, Write};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::shell::{Cable, Foreign, Shell};
use support::{Program, eventually, http_get, number_of, numbered};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

const NO_WELCOME: &str = "--no-welcome";

/// Keeps reconnect delays short.
const SOON: &str = "--max-delay=1";

fn url_of(program: &Program) -> String {
    format!("ws://{}/", program.address())
}

#[test]
fn hundred_thousand_lines_go_from_send_to_listen() {
    const LINES: u64 = 100_000;
    let program = Program::start(&[NO_WELCOME, "--on-message", "broadcast"]);
    let count = format!("--count={LINES}");
    let mut listener = Shell::listen(&url_of(&program), &["--room=a b", &count]);
    eventually("the client is connected", || {
        let answer = http_get(program.address(), "/clients/a%20b").2;
        answer.contains("\"room\": 1}")
    });
    let mut sender = Shell::send(&url_of(&program), &["--room=a b"]);
    sender.write(&numbered(0..LINES));
    sender.stdin = None;
    sender.expect_exit(0);
    assert!(sender.said.ends_with(": 100000 lines reached the server\n"));
    for n in 0..LINES {
        assert_eq!(listener.line(), n.to_string());
    }
    listener.expect_exit(0);
    listener.expect_end_of_output();
    sender.expect_end_of_output();
}

#[test]
fn messages_of_the_server_are_discarded_by_send() {
    let program = Program::start(&[NO_WELCOME, "--on-message", "echo"]);
    let mut sender = Shell::send(&url_of(&program), &["--quiet"]);
    let line = [&[b'x'; 10_000][..], b"\n"].concat();
    for _ in 0..2_000 {
        sender.write(&line);
    }
    sender.stdin = None;
    sender.expect_exit(0);
    assert_eq!(sender.said, "");
    sender.expect_end_of_output();
}

#[test]
fn send_maps_non_utf8_lines_to_binary_messages() {
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &[]);
    sender.write("one\n\ntwo\r\nGr\u{fc}ezi\n".as_bytes());
    sender.write(b"\xff\xfe\nthe end");
    sender.stdin = None;
    let guest = server.guest();
    assert!(guest.header("Sec-WebSocket-Protocol").is_none());
    assert_eq!(
        guest.expect_close(),
        [
            Message::text("one"),
            Message::text(""),
            Message::text("two"),
            Message::text("Gr\u{fc}ezi"),
            Message::binary(b"\xff\xfe".as_slice()),
            Message::text("the end"),
        ]
    );
    sender.expect_exit(0);
}

#[test]
fn line_is_sent_as_soon_as_it_is_read() {
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &[]);
    let mut guest = server.guest();
    for line in ["one", "two"] {
        sender.write(format!("{line}\n").as_bytes());
        assert_eq!(guest.message(), Message::text(line));
    }
}

#[test]
fn empty_input_connects_and_closes() {
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &[]);
    sender.stdin = None;
    assert_eq!(server.guest().expect_close(), []);
    sender.expect_exit(0);
}

#[test]
fn input_line_over_the_limit_is_skipped_and_reported() {
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &[]);
    let guest = thread::spawn(move || server.guest().expect_close());
    sender.write(b"one\n");
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..16 {
        sender.write(&piece);
    }
    sender.write(b"\n");
    for _ in 0..17 {
        sender.write(&piece);
    }
    sender.write(b"\ntwo\n");
    sender.stdin = None;
    sender.expect_line("line 3 is 17825792 bytes long and is skipped");
    sender.expect_exit(1);
    let lens: Vec<usize> = guest.join().unwrap().iter().map(Message::len).collect();
    assert_eq!(lens, [3, 16 << 20, 3]);
}

#[test]
fn send_waits_for_the_answer_to_its_close_frame() {
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &[]);
    sender.write(b"one\n");
    sender.stdin = None;
    let mut guest = server.guest();
    assert_eq!(guest.message(), Message::text("one"));
    assert!(guest.message().is_close());
    // The client does not hang up before the reply, which tungstenite sends during the next call.
    let stream = guest.socket.get_ref();
    let some_time = Some(Duration::from_millis(300));
    stream.set_read_timeout(some_time).unwrap();
    assert!(stream.peek(&mut [0]).is_err(), "the client has hung up");
    assert!(sender.is_running());
    stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
    guest.socket.flush().unwrap_err();
    sender.expect_exit(0);
}

#[test]
fn unconfirmed_lines_are_reported() {
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &[SOON]);
    sender.write(b"one\ntwo\n");
    // The server reads neither line, so it confirms neither.
    let guest = server.guest();
    let mut peeked = [0; 1];
    let stream = guest.socket.get_ref();
    eventually("the lines have arrived", || {
        stream.peek(&mut peeked).unwrap() > 0
    });
    drop(guest);
    sender.expect_line("reconnecting in");
    sender.write(b"three\n");
    sender.stdin = None;
    // Unwritten lines are sent; written lines are not sent twice.
    let rest = server.guest().expect_close();
    assert!(rest.ends_with(&[Message::text("three")]));
    sender.expect_exit(1);
    let doubtful = 3 - rest.len();
    assert!(sender.said.contains("may be lost"), "{}", sender.said);
    assert!(sender.said.contains(&format!("{doubtful} line")));
}

#[test]
fn confirmed_lines_are_not_reported_as_lost() {
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &[SOON]);
    sender.write(b"one\n");
    let mut guest = server.guest();
    assert_eq!(guest.message(), Message::text("one"));
    // tungstenite answers the ping with the next read, which is the last one.
    assert!(guest.socket.read().unwrap().is_ping());
    guest.socket.flush().unwrap();
    guest.close(1001, "");
    sender.expect_line("reconnecting in");
    sender.write(b"two\n");
    sender.stdin = None;
    assert_eq!(server.guest().expect_close(), [Message::text("two")]);
    sender.expect_exit(0);
    assert!(sender.said.ends_with(": 2 lines reached the server\n"));
}

#[test]
fn lines_after_cuts_arrive_once_or_count_as_unconfirmed() {
    const LINES: u64 = 20_000;
    let program = Program::start(&[NO_WELCOME, "--on-message", "broadcast"]);
    let mut witness = program.connect();
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        loop {
            match witness.text().as_str() {
                "end" => return got,
                text => got.push(number_of(text.as_bytes())),
            }
        }
    });
    let cable = Cable::to(program.address());
    let mut sender = Shell::send(&cable.url(), &[SOON]);
    for cut in 0..4 {
        sender.expect_line("connected");
        sender.write(&numbered(cut * LINES / 4..(cut + 1) * LINES / 4));
        cable.cut();
        cable.mend();
    }
    sender.write(b"end\n");
    sender.stdin = None;
    let code = sender.wait();
    let doubtful = sender.said.lines().find_map(|line| {
        let (_, line) = line.split_once(": ")?;
        let (n, _) = line.split_once(" line")?;
        line.contains("may be lost").then(|| n.parse().unwrap())
    });
    let doubtful: u64 = doubtful.unwrap_or(0);
    assert_eq!(code, i32::from(doubtful > 0), "{}", sender.said);
    if doubtful > 0 {
        // The last line may be among them.
        let mut last = program.connect();
        last.send(Message::text("end"));
    }
    let got = reader.join().unwrap();
    assert!(got.is_sorted_by(|a, b| a < b), "not in order, or twice");
    let lost = LINES - got.len() as u64;
    assert!(lost <= doubtful, "{lost} are lost: {}", sender.said);
}

#[test]
fn close_frame_is_read_after_a_failed_write() {
    for _ in 0..20 {
        let server = Foreign::new();
        let mut sender = Shell::send(&server.url(), &["--quiet"]);
        let mut input = sender.stdin.take().unwrap();
        let writer = thread::spawn(move || {
            let lines = numbered(0..10_000);
            // Until the client has exited.
            while input.write_all(&lines).is_ok() {}
        });
        let mut guest = server.guest();
        guest.message();
        guest.send(Message::Close(Some(CloseFrame {
            code: CloseCode::Policy,
            reason: "".into(),
        })));
        // Closes without reading the rest or the answer.
        drop(guest);
        sender.expect_exit(1);
        assert!(sender.said.contains("with 1008"), "{}", sender.said);
        writer.join().unwrap();
    }
}

#[test]
fn server_that_closes_ends_send_and_unsent_is_reported() {
    for code in [1000, 1008] {
        let server = Foreign::new();
        let mut sender = Shell::send(&server.url(), &[]);
        server.guest().close(code, "");
        sender.expect_line(&format!("with {code}"));
        sender.expect_exit(1);
    }
}

#[test]
fn unreachable_server_makes_send_report_unsent_lines() {
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &["--no-reconnect"]);
    // More than a pipe holds: once it is written, some of it has been read.
    sender.write(&numbered(0..20_000));
    server.refuse("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
    sender.expect_exit(1);
    assert!(sender.said.contains("with status 502"), "{}", sender.said);
    assert!(sender.said.contains("could not be sent"), "{}", sender.said);
}

#[test]
fn signal_makes_send_deliver_read_lines_and_close() {
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &[]);
    sender.write(b"one\ntwo\n");
    let mut guest = server.guest();
    for line in ["one", "two"] {
        assert_eq!(guest.message(), Message::text(line));
    }
    sender.signal(Signal::TERM);
    assert_eq!(guest.expect_close(), []);
    sender.expect_exit(0);
}

#[test]
fn slow_server_is_not_taken_for_an_unresponsive_one() {
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &["--heartbeat=2", "--no-reconnect"]);
    let mut guest = server.guest();
    let mut stdin = sender.stdin.take().unwrap();
    let (written, progress) = channel();
    let typist = thread::spawn(move || {
        let line = [&[b'x'; 64 << 10][..], b"\n"].concat();
        while stdin.write_all(&line).is_ok() {
            let _ = written.send(());
        }
    });
    // Longer than the client waits for a pong. The server answers no ping, since all of them are queued behind unread
    // lines.
    let until = Instant::now() + Duration::from_secs(6);
    let mut bytes = vec![0; 256 << 10];
    while Instant::now() < until {
        // All buffers in between are full.
        while progress.recv_timeout(Duration::from_millis(20)).is_ok() {}
        guest.socket.get_mut().read_exact(&mut bytes).unwrap();
    }
    drop(guest);
    sender.expect_exit(1);
    assert!(!sender.said.contains("silent"), "{}", sender.said);
    typist.join().unwrap();
}

#[test]
fn server_that_does_not_read_causes_backpressure() {
    const LINE_BYTES: usize = 100 << 10;
    const LINES: usize = 1_000;
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &["--heartbeat=0"]);
    let guest = server.guest();
    let mut input = sender.stdin.take().unwrap();
    let (written, progress) = channel();
    let writer = thread::spawn(move || {
        let line = [&[b'x'; LINE_BYTES][..], b"\n"].concat();
        for _ in 0..LINES {
            input.write_all(&line).unwrap();
            let _ = written.send(());
        }
    });
    // Writing succeeds until all buffers in between are full.
    let mut lines = 0;
    while progress.recv_timeout(Duration::from_millis(500)).is_ok() {
        lines += 1;
    }
    assert!(lines < LINES, "the server has read every line");
    let peak = sender.peak_resident_bytes();
    let reader = thread::spawn(move || guest.expect_close().len());
    writer.join().unwrap();
    sender.expect_exit(0);
    assert_eq!(reader.join().unwrap(), LINES);
    assert!(peak < 32 << 20, "{peak}");
}

/// A server that closes with 1009 at a message of more than 1000 bytes. Returns the messages of each of `connections`
/// connections.
fn narrow_server(server: Foreign, connections: usize) -> thread::JoinHandle<Vec<Vec<usize>>> {
    thread::spawn(move || {
        let mut got = Vec::new();
        for _ in 0..connections {
            let mut guest = server.guest();
            guest
                .socket
                .set_config(|config| config.max_message_size = Some(1_000));
            let mut lens = Vec::new();
            loop {
                match guest.socket.read() {
                    Ok(Message::Text(text)) => lens.push(text.len()),
                    Ok(Message::Close(_)) => break,
                    Ok(_) => {}
                    Err(tungstenite::Error::Capacity(_)) => {
                        let frame = CloseFrame {
                            code: CloseCode::Size,
                            reason: "too long".into(),
                        };
                        let _ = guest.socket.close(Some(frame));
                        // Reads on without parsing.
                        let stream = guest.socket.get_mut();
                        let _ = stream.shutdown(std::net::Shutdown::Write);
                        let _ = std::io::copy(stream, &mut std::io::sink());
                        break;
                    }
                    Err(_) => break,
                }
            }
            // The reply to the close frame.
            let _ = guest.socket.flush();
            got.push(lens);
        }
        got
    })
}

#[test]
fn line_too_long_for_the_server_is_dropped_alone() {
    // The line is written whole, with following lines, or in part.
    for long in [40_000, 12 << 20] {
        let server = Foreign::new();
        let url = server.url();
        let server = narrow_server(server, 2);
        let mut sender = Shell::send(&url, &[SOON]);
        let line = "z".repeat(long);
        sender.write(format!("first\nsecond line\n{line}\nafter\nlast line\n").as_bytes());
        sender.stdin = None;
        sender.expect_exit(1);
        assert_eq!(server.join().unwrap(), [vec![5, 11], vec![5, 9]]);
        let said = &sender.said;
        assert!(
            said.contains(&format!("a line of {long} bytes is dropped")),
            "{said}"
        );
        assert!(said.ends_with(": 4 lines reached the server\n"), "{said}");
    }
}

#[test]
fn several_too_long_lines_are_dropped_one_by_one() {
    let server = Foreign::new();
    let url = server.url();
    let server = narrow_server(server, 4);
    let mut sender = Shell::send(&url, &[SOON]);
    let long = ["x".repeat(50_000), "y".repeat(60_000), "z".repeat(50_000)];
    sender.write(format!("a\n{}\nbb\n{}\n{}\nccc\n", long[0], long[1], long[2]).as_bytes());
    sender.stdin = None;
    sender.expect_exit(1);
    assert_eq!(server.join().unwrap().concat(), [1, 2, 3]);
    assert_eq!(
        sender.said.matches("is dropped").count(),
        3,
        "{}",
        sender.said
    );
    assert!(
        sender.said.ends_with(": 3 lines reached the server\n"),
        "{}",
        sender.said
    );
}

#[test]
fn line_that_breaks_five_connections_is_dropped() {
    let server = Foreign::new();
    let url = server.url();
    let breaker = thread::spawn(move || {
        for _ in 0..5 {
            let mut guest = server.guest();
            // Cut after the header of the long line has arrived.
            guest.socket.get_mut().read_exact(&mut [0; 20]).unwrap();
        }
        server.guest().expect_close()
    });
    let mut sender = Shell::send(&url, &[SOON]);
    sender.write(&[&[b'x'; 15 << 20][..], b"\nshort\n"].concat());
    sender.stdin = None;
    sender.expect_exit(1);
    assert_eq!(breaker.join().unwrap(), [Message::text("short")]);
    assert!(
        sender.said.contains("5 connections in a row"),
        "{}",
        sender.said
    );
}

#[test]
fn server_without_broadcast_causes_one_warning() {
    for (mode, what) in [("echo", "sends lines back"), ("ignore", "ignores")] {
        let program = Program::start(&[NO_WELCOME, "--on-message", mode]);
        let mut sender = Shell::send(&url_of(&program), &[]);
        sender.stdin = None;
        sender.expect_exit(0);
        assert_eq!(
            sender.said.matches("warning: ").count(),
            1,
            "{}",
            sender.said
        );
        assert!(sender.said.contains(what), "{}", sender.said);
        let mut quiet = Shell::send(&url_of(&program), &["--quiet"]);
        quiet.stdin = None;
        quiet.expect_exit(0);
        assert_eq!(quiet.said, "");
        let mut strict = Shell::send(&url_of(&program), &["--require-broadcast"]);
        strict.write(b"line\n");
        strict.expect_exit(1);
        assert!(strict.said.contains(what), "{}", strict.said);
        assert!(
            strict.said.contains(": 0 lines reached the server"),
            "{}",
            strict.said
        );
    }
}

#[test]
fn server_with_broadcast_causes_no_warning() {
    let program = Program::start(&[NO_WELCOME, "--on-message", "broadcast"]);
    let mut witness = program.connect();
    let mut sender = Shell::send(&url_of(&program), &["--require-broadcast"]);
    sender.write(b"line\n");
    sender.stdin = None;
    sender.expect_exit(0);
    assert_eq!(witness.text(), "line");
    assert!(!sender.said.contains("warning"), "{}", sender.said);
}

#[test]
fn foreign_server_fails_require_broadcast_without_warning() {
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &[]);
    sender.stdin = None;
    assert_eq!(server.guest().expect_close(), []);
    sender.expect_exit(0);
    assert!(!sender.said.contains("warning"), "{}", sender.said);
    let mut strict = Shell::send(&server.url(), &["--require-broadcast"]);
    strict.stdin = None;
    let _guest = server.guest();
    strict.expect_exit(1);
    assert!(strict.said.contains("does not say"), "{}", strict.said);
}

#[test]
fn unreadable_input_of_send_exits_with_1() {
    let program = Program::start(&[NO_WELCOME, "--on-message", "broadcast"]);
    let directory = std::fs::File::open("/").unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_humphrey-broadcast"))
        .args(["send", &url_of(&program)])
        .stdin(directory)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("standard input can't be read"), "{said}");
}

#[test]
fn rate_spaces_the_lines() {
    let server = Foreign::new();
    let begun = Instant::now();
    let mut sender = Shell::send(&server.url(), &["--rate=50"]);
    sender.write(&numbered(0..10));
    sender.stdin = None;
    let got = server.guest().expect_close();
    // Nine intervals of 20 ms, of which one may be caught up.
    let elapsed = begun.elapsed();
    assert!(elapsed >= Duration::from_millis(150), "{elapsed:?}");
    let expected: Vec<Message> = (0..10).map(|n| Message::text(n.to_string())).collect();
    assert_eq!(got, expected);
    sender.expect_exit(0);
}

#[test]
fn rate_higher_than_possible_sends_all_lines() {
    const LINES: u64 = 50_000;
    let program = Program::start(&[NO_WELCOME, "--on-message=ignore"]);
    for rate in ["--rate=1000000/s", "--rate=1e15"] {
        let mut sender = Shell::send(&url_of(&program), &[rate]);
        sender.write(&numbered(0..LINES));
        sender.stdin = None;
        sender.expect_exit(0);
        assert!(sender.said.ends_with(": 50000 lines reached the server\n"));
    }
}

#[test]
fn rate_applies_after_a_reconnect() {
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &["--rate=20", SOON]);
    sender.write(b"one\n");
    let mut guest = server.guest();
    assert_eq!(guest.message(), Message::text("one"));
    guest.close(1001, "");
    sender.expect_line("reconnecting in");
    // These lines wait for the connection, and are then sent as slowly as others.
    sender.write(&numbered(0..10));
    sender.stdin = None;
    let begun = Instant::now();
    let got = server.guest().expect_close();
    let elapsed = begun.elapsed();
    assert_eq!(got.len(), 10);
    assert!(elapsed >= Duration::from_millis(400), "{elapsed:?}");
}

#[test]
fn rate_does_not_delay_the_end() {
    // The second line would be due after a quarter of an hour.
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &["--rate=0.001"]);
    sender.write(b"one\n");
    let mut guest = server.guest();
    assert_eq!(guest.message(), Message::text("one"));
    sender.stdin = None;
    assert_eq!(guest.expect_close(), []);
    sender.expect_exit(0);
    let mut sender = Shell::send(&server.url(), &["--rate=0.001"]);
    sender.write(b"one\ntwo\n");
    let mut guest = server.guest();
    assert_eq!(guest.message(), Message::text("one"));
    sender.signal(Signal::TERM);
    // A line that was read is sent at once.
    let rest = guest.expect_close();
    assert!(
        rest.is_empty() || rest == [Message::text("two")],
        "{rest:?}"
    );
    sender.expect_exit(0);
}

#[test]
fn rate_causes_backpressure() {
    const LINE_BYTES: usize = 100;
    const BYTES_MAX: usize = 512 << 10;
    let server = Foreign::new();
    let mut sender = Shell::send(&server.url(), &["--rate=0.01"]);
    let mut guest = server.guest();
    let mut input = sender.stdin.take().unwrap();
    let (written, progress) = channel();
    let writer = thread::spawn(move || {
        let line = [&[b'x'; LINE_BYTES - 1][..], b"\n"].concat();
        while input.write_all(&line).is_ok() {
            let _ = written.send(());
        }
    });
    guest.message();
    // Writing succeeds until all buffers in between are full.
    let mut bytes = 0;
    while progress.recv_timeout(Duration::from_millis(500)).is_ok() {
        bytes += LINE_BYTES;
        assert!(bytes < BYTES_MAX, "input is read ahead without a limit");
    }
    sender.signal(Signal::TERM);
    assert!(guest.expect_close().len() <= 2);
    sender.expect_exit(0);
    writer.join().unwrap();
}

/// The CPU time of a process, in clock ticks of 10 ms.
#[cfg(target_os = "linux")]
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let times = fields.split(' ').skip(11).take(2);
    times.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[cfg(target_os = "linux")]
#[test]
fn paced_send_to_a_stalled_server_uses_no_cpu_time() {
    let server = Foreign::new();
    let mut sender = support::program()
        .args(["send", &server.url(), "--rate=2000", "--heartbeat=0", "-q"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let guest = server.guest();
    let mut input = sender.stdin.take().unwrap();
    let (written, progress) = channel();
    let writer = thread::spawn(move || {
        let line = [&[b'x'; 50_000][..], b"\n"].concat();
        while input.write_all(&line).is_ok() {
            let _ = written.send(());
        }
    });
    // Until all buffers in between are full.
    while progress.recv_timeout(Duration::from_secs(1)).is_ok() {}
    let before = cpu_ticks(sender.id());
    let begun = Instant::now();
    eventually("a while has passed", || {
        begun.elapsed() > Duration::from_secs(1)
    });
    let ticks = cpu_ticks(sender.id()) - before;
    sender.kill().unwrap();
    sender.wait().unwrap();
    drop(guest);
    writer.join().unwrap();
    assert!(ticks < 20, "{ticks} ticks");
}

#[test]
fn wrong_rate_is_one_line_and_exit_code_2() {
    for rate in ["--rate=0", "--rate=fast", "--rate=-1"] {
        let (code, out, err) = support::run(&["send", "ws://a/", rate]);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(
            err.contains("lines per second") && err.lines().count() == 1,
            "{err}"
        );
    }
}
