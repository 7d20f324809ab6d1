//! The progress line of the server, and of `listen` and `send`, on a pseudo-terminal.
#![cfg(unix)]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Action, Winsize, tcflow, tcsetwinsize};
use support::shell::Foreign;
use support::{DEADLINE, Program, eventually, program, wait_for_exit};
use tungstenite::Message;

/// Keeps reconnect delays short.
const SOON: &str = "--max-delay=1";

/// Longer than the delay of the first progress line.
const A_WHILE: Duration = Duration::from_millis(600);

/// Where a standard stream of the program goes.
enum Stream {
    Terminal,
    Pipe,
    File,
}

/// The program with its standard error on a terminal. Dropping it kills the process.
struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    /// The terminal as the program has it.
    terminal: Option<File>,
    /// What the program has written to the terminal.
    written: Vec<u8>,
    reader: Receiver<Vec<u8>>,
}

impl Session {
    /// Starts a command. Its standard input is a pipe.
    fn start(arguments: &[&str], stdout: &Stream) -> Self {
        Self::start_with(arguments, stdout, "xterm", 80)
    }

    fn start_with(arguments: &[&str], stdout: &Stream, term: &str, columns: u16) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let size = Winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&terminal, size).unwrap();
        let path = ptsname(&terminal, Vec::new()).unwrap();
        let path = PathBuf::from(path.to_str().unwrap());
        let no_tty = i32::try_from(OFlags::NOCTTY.bits()).unwrap();
        let program_side = File::options()
            .read(true)
            .write(true)
            .custom_flags(no_tty)
            .open(path)
            .unwrap();
        let mut child = program()
            .args(arguments)
            .env("TERM", term)
            .stdin(Stdio::piped())
            .stdout(match stdout {
                Stream::Terminal => program_side.try_clone().unwrap().into(),
                Stream::Pipe => Stdio::piped(),
                Stream::File => Stdio::from(File::options().write(true).open("/dev/null").unwrap()),
            })
            .stderr(program_side.try_clone().unwrap())
            .spawn()
            .unwrap();
        let (sender, reader) = channel();
        let mut terminal = File::from(terminal);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error is the end: no process has the terminal open.
            while let Ok(n @ 1..) = terminal.read(&mut buffer) {
                let _ = sender.send(buffer[..n].to_vec());
            }
        });
        Self {
            stdin: child.stdin.take(),
            child,
            terminal: Some(program_side),
            written: Vec::new(),
            reader,
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// The lines on the screen, of which the last one is where the cursor is.
    fn screen(&mut self) -> Vec<String> {
        self.written.extend(self.reader.try_iter().flatten());
        render(&self.written)
    }

    /// Waits until the last line of the screen contains this.
    #[track_caller]
    fn expect_last_line(&mut self, part: &str) -> String {
        let by = Instant::now() + DEADLINE;
        loop {
            let last = self.screen().pop().unwrap();
            if last.contains(part) {
                return last;
            }
            let left = by.saturating_duration_since(Instant::now());
            match self.reader.recv_timeout(left) {
                Ok(bytes) => self.written.extend(bytes),
                Err(_) => panic!("no {part:?}, only {:#?}", self.screen()),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the exit. Returns its code.
    #[track_caller]
    fn wait(&mut self) -> i32 {
        self.stdin = None;
        wait_for_exit(&mut self.child).code().unwrap()
    }

    /// Waits for the exit and the end of the terminal. Returns the screen without its last line, which has to be empty.
    #[track_caller]
    fn expect_exit(&mut self, code: i32) -> Vec<String> {
        let exit = self.wait();
        self.terminal = None;
        loop {
            match self.reader.recv_timeout(DEADLINE) {
                Ok(bytes) => self.written.extend(bytes),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the terminal stays open"),
            }
        }
        let mut screen = self.screen();
        assert_eq!(exit, code, "{screen:#?}");
        assert_eq!(screen.pop().as_deref(), Some(""), "{screen:#?}");
        screen
    }

    /// Ends the input, and expects success with these diagnostics on the screen.
    #[track_caller]
    fn expect_success(&mut self, parts: &[&str]) {
        let screen = self.expect_exit(0);
        expect_diagnostics(&screen, parts);
    }

    /// Whether a progress line was ever written.
    fn has_shown_progress(&self) -> bool {
        let written = String::from_utf8_lossy(&self.written);
        assert_eq!(written.contains('\x1b'), written.contains("/s"));
        written.contains("/s")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a very wide terminal shows after these bytes.
fn render(bytes: &[u8]) -> Vec<String> {
    let mut rows = vec![Vec::new()];
    let mut column = 0;
    let text = String::from_utf8_lossy(bytes);
    let mut rest = text.as_ref();
    while let Some(c) = rest.chars().next() {
        let row = rows.last_mut().unwrap();
        if let Some(after) = rest.strip_prefix("\x1b[K") {
            row.truncate(column);
            rest = after;
            continue;
        }
        match c {
            '\r' => column = 0,
            '\n' => rows.push(Vec::new()),
            '\x1b' => assert_eq!(rest, "\x1b", "an unknown control sequence"),
            _ => {
                row.resize(row.len().max(column + 1), ' ');
                row[column] = c;
                column += 1;
            }
        }
        rest = &rest[c.len_utf8()..];
    }
    rows.iter().map(|row| row.iter().collect()).collect()
}

/// Expects that each line is a whole diagnostic.
#[track_caller]
fn expect_diagnostics(screen: &[String], parts: &[&str]) {
    assert_eq!(screen.len(), parts.len(), "{screen:#?}");
    for (line, part) in screen.iter().zip(parts) {
        let text = line.strip_prefix("humphrey-broadcast: ");
        assert!(
            text.is_some_and(|text| text.contains(part) && !text.contains("humphrey-broadcast:")),
            "{part:?}: {screen:#?}"
        );
    }
}

#[test]
fn progress_of_send_appears_and_vanishes_at_the_end() {
    let server = Foreign::new();
    let mut session = Session::start(&["send", &server.url()], &Stream::Pipe);
    let guest = server.guest();
    session.write(b"one\nseven b\n");
    let guest = thread::spawn(move || guest.expect_close());
    let line = session.expect_last_line("2 lines, 10 B, ");
    assert!(
        line.starts_with("2 lines, 10 B, ") && line.contains("/s"),
        "{line}"
    );
    session.stdin = None;
    let screen = session.expect_exit(0);
    expect_diagnostics(&screen, &["connected to", "2 lines reached the server"]);
    assert_eq!(guest.join().unwrap().len(), 2);
}

#[test]
fn diagnostics_stand_above_the_progress_line() {
    let server = Foreign::new();
    let mut session = Session::start(&["send", &server.url(), SOON], &Stream::Pipe);
    for n in 1..=3 {
        let mut guest = server.guest();
        session.write(b"line\n");
        assert_eq!(guest.message(), Message::text("line"));
        session.expect_last_line(&format!("{n} line"));
        guest.close(1001, "");
    }
    let guest = server.guest();
    // Twice per connection, and the progress line below.
    let parts = [["connected", "with 1001; reconnecting in"]; 3].concat();
    let mut screen = Vec::new();
    eventually("the progress is shown again", || {
        screen = session.screen();
        screen.len() == 8 && screen[7].starts_with("3 lines, ")
    });
    expect_diagnostics(&screen[..6], &parts);
    expect_diagnostics(&screen[6..7], &["connected"]);
    // The lines of the connections that were closed may not be confirmed.
    drop(guest);
    session.signal(Signal::TERM);
    let code = session.wait();
    let screen = session.expect_exit(code);
    assert!(
        screen
            .iter()
            .all(|line| line.starts_with("humphrey-broadcast: ")),
        "{screen:#?}"
    );
}

#[test]
fn lines_that_wait_for_the_server_are_shown() {
    let server = Foreign::new();
    let mut session = Session::start(&["send", &server.url()], &Stream::Pipe);
    session.write(b"1\n2\n3\n");
    // The server reads no line, so it confirms none.
    let guest = server.guest();
    session.expect_last_line("/s, 3 waiting for the server");
    let guest = thread::spawn(move || guest.expect_close());
    session.expect_success(&["connected", "3 lines reached"]);
    assert_eq!(guest.join().unwrap().len(), 3);
}

#[test]
fn progress_of_listen_appears_and_vanishes_at_the_end() {
    for (arguments, stdout) in [
        (&[][..], Stream::File),
        (&["--json"], Stream::File),
        (&["--progress"], Stream::Pipe),
    ] {
        let server = Foreign::new();
        let url = server.url();
        let arguments = [&["listen", &url], arguments].concat();
        let mut session = Session::start(&arguments, &stdout);
        let mut guest = server.guest();
        guest.send(Message::text("one"));
        guest.send(Message::binary(vec![0; 2_000]));
        session.expect_last_line("2 lines, 2.0 kB, ");
        session.signal(Signal::TERM);
        assert_eq!(guest.expect_close(), []);
        let screen = session.expect_exit(0);
        expect_diagnostics(&screen, &["connected to"]);
    }
}

#[test]
fn progress_is_not_mixed_with_the_output_of_listen() {
    for stdout in [Stream::Terminal, Stream::Pipe] {
        let server = Foreign::new();
        let arguments = ["listen", &server.url(), "--progress"];
        let arguments = match stdout {
            // Nothing shows progress on the same terminal as the output.
            Stream::Terminal => &arguments[..],
            _ => &arguments[..2],
        };
        let mut session = Session::start(arguments, &stdout);
        let mut guest = server.guest();
        let begun = Instant::now();
        guest.send(Message::text("one"));
        eventually("a while has passed", || begun.elapsed() > A_WHILE);
        guest.send(Message::text("two"));
        guest.close(1000, "");
        let screen = session.expect_exit(0);
        assert!(!session.has_shown_progress(), "{screen:#?}");
        let expected: &[&str] = match stdout {
            Stream::Terminal => &["one", "two"],
            _ => &[],
        };
        assert_eq!(screen[1..screen.len() - 1], *expected);
    }
}

#[test]
fn progress_is_not_shown_if_quiet_or_on_a_dumb_terminal() {
    for (quiet, term) in [
        (&["--quiet"][..], "xterm"),
        (&["-q"], "xterm"),
        (&[], "dumb"),
        (&[], ""),
    ] {
        let server = Foreign::new();
        let url = server.url();
        // Lasts for at least 600 ms.
        let arguments = [&["send", &url, "--rate=5"], quiet].concat();
        let mut session = Session::start_with(&arguments, &Stream::Pipe, term, 80);
        session.write(b"1\n2\n3\n4\n");
        session.stdin = None;
        assert_eq!(server.guest().expect_close().len(), 4);
        let screen = session.expect_exit(0);
        assert!(!session.has_shown_progress(), "{screen:#?}");
        assert_eq!(screen.is_empty(), !quiet.is_empty());
    }
}

#[test]
fn progress_is_no_wider_than_the_terminal() {
    for (columns, expected) in [(12, "1 line, 4 B"), (5, "1 li"), (0, "1 line, 4 B, ")] {
        let server = Foreign::new();
        let arguments = ["send", &server.url()];
        let mut session = Session::start_with(&arguments, &Stream::Pipe, "xterm", columns);
        session.write(b"line\n");
        let guest = server.guest();
        let guest = thread::spawn(move || guest.expect_close());
        let line = session.expect_last_line(expected);
        match columns {
            0 => assert!(line.len() > 12, "{line}"),
            _ => assert!(line.len() < columns.into(), "{line}"),
        }
        session.expect_success(&["connected", "1 line reached"]);
        assert_eq!(guest.join().unwrap().len(), 1);
    }
}

#[test]
fn paused_terminal_does_not_block_send() {
    let server = Foreign::new();
    let mut session = Session::start(&["send", &server.url()], &Stream::Pipe);
    let mut guest = server.guest();
    session.write(b"0\n");
    assert_eq!(guest.message(), Message::text("0"));
    session.expect_last_line("1 line, ");
    // As Ctrl-S does.
    tcflow(session.terminal.as_ref().unwrap(), Action::OOff).unwrap();
    for n in 1..4 {
        let begun = Instant::now();
        eventually("an update is due", || begun.elapsed() > A_WHILE);
        session.write(format!("{n}\n").as_bytes());
        assert_eq!(guest.message(), Message::text(n.to_string()));
    }
    assert!(session.screen().pop().unwrap().starts_with("1 line, "));
    tcflow(session.terminal.as_ref().unwrap(), Action::OOn).unwrap();
    session.expect_last_line("4 lines, ");
    let guest = thread::spawn(move || guest.expect_close());
    session.expect_success(&["connected", "4 lines reached"]);
    guest.join().unwrap();
}

#[test]
fn signal_erases_the_progress_line_at_once() {
    // The server does not answer the close frame, so the program waits for it.
    let server = Foreign::new();
    let mut session = Session::start(&["send", &server.url()], &Stream::Pipe);
    session.write(b"line\n");
    let guest = server.guest();
    session.expect_last_line("1 line, ");
    session.signal(Signal::TERM);
    eventually("the line is erased", || {
        session.screen().pop().unwrap().is_empty()
    });
    drop(guest);
    session.expect_exit(1);
}

#[test]
fn progress_of_the_program_with_itself_counts_every_line() {
    let server = Program::start(&["--no-welcome", "--on-message=broadcast"]);
    let url = format!("ws://{}/", server.address());
    let mut session = Session::start(&["send", &url], &Stream::Pipe);
    session.write(&support::numbered(0..12_345));
    session.expect_last_line("12,345 lines, ");
    session.expect_success(&["connected", "12345 lines reached the server"]);
}

#[test]
fn progress_of_the_server_counts_lines_and_clients_and_vanishes_at_the_end() {
    let mut server = Session::start(&["--listen=127.0.0.1:0", "--no-welcome"], &Stream::File);
    server.expect_last_line("0 clients");
    server.write(b"one\ntwo\n");
    let last = server.expect_last_line("2 lines");
    assert!(last.contains(" 8 B, ") || last.contains(" 6 B, "), "{last}");
    let url = server
        .screen()
        .iter()
        .find_map(|line| Some(line.split("ws://").nth(1)?.split('/').next()?.to_owned()))
        .unwrap();
    let _client = support::Client::connect(url.parse().unwrap(), "/").unwrap();
    server.expect_last_line("1 client");
    server.signal(Signal::TERM);
    let screen = server.expect_exit(0);
    assert!(
        screen.last().unwrap().contains("2 lines, 1 client"),
        "{screen:#?}"
    );
    assert!(server.has_shown_progress());
    let mut quiet = Session::start(
        &["--listen=127.0.0.1:0", "--quiet", "--exit-on-eof"],
        &Stream::File,
    );
    quiet.write(b"one\n");
    quiet.expect_exit(0);
    assert!(!quiet.has_shown_progress());
}
