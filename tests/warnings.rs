//! Warnings where the program has set no logger: on standard error, each kind once.
//!
//! A logger is set for a whole process, so each case is a process of its own: this file, run again.

mod support;

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use humphrey_ws::{AsyncWebsocketApp, Limits};
use support::{Client, read_head, start, tcp, upgrade_request};

/// Runs one of the cases below, and returns what it has written to standard error.
fn stderr_of(case: &str) -> String {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", case, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    stderr
}

fn lines<'a>(stderr: &'a str, part: &str) -> Vec<&'a str> {
    stderr.lines().filter(|line| line.contains(part)).collect()
}

/// Has the library warn of two rooms that a client may not join.
fn warn(app: AsyncWebsocketApp<()>) {
    let app = app
        .with_limits(Limits::default().connection_rooms_max(1))
        .with_message_handler(|stream, message, _| {
            for room in ["a", "b", "c"] {
                stream.join(room);
            }
            stream.send(message);
        });
    let (running, address) = start(app);
    let mut client = Client::connect(address);
    client.send("join");
    client.receive();
    drop(client);
    running.shutdown(support::DEADLINE);
}

#[test]
#[ignore = "a case of warnings_without_a_logger_go_to_stderr_once"]
fn case_without_logger() {
    warn(AsyncWebsocketApp::new());
}

#[test]
fn warnings_without_a_logger_go_to_stderr_once() {
    let stderr = stderr_of("case_without_logger");
    let warnings = lines(&stderr, "humphrey_ws: warning: ");
    assert_eq!(warnings.len(), 1, "{stderr}");
    assert!(warnings[0].contains("with_warnings_on_stderr(false)"));
}

#[test]
#[ignore = "a case of warnings_that_are_turned_off_are_not_shown"]
fn case_turned_off() {
    warn(AsyncWebsocketApp::new().with_warnings_on_stderr(false));
}

#[test]
fn warnings_that_are_turned_off_are_not_shown() {
    let stderr = stderr_of("case_turned_off");
    assert!(lines(&stderr, "humphrey_ws: ").is_empty(), "{stderr}");
}

/// The program's logger: it has a prefix of its own, and a level that shows no warnings.
struct Logger {
    prefix: &'static str,
}

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let _ = writeln!(std::io::stderr(), "{}{}", self.prefix, record.args());
    }

    fn flush(&self) {}
}

static LOGGER: Logger = Logger { prefix: "logged: " };

#[test]
#[ignore = "a case of warnings_go_to_the_logger_alone_where_there_is_one"]
fn case_with_logger() {
    log::set_logger(&LOGGER).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    warn(AsyncWebsocketApp::new());
}

#[test]
fn warnings_go_to_the_logger_alone_where_there_is_one() {
    let stderr = stderr_of("case_with_logger");
    assert_eq!(lines(&stderr, "logged: ").len(), 1, "{stderr}");
    assert!(lines(&stderr, "humphrey_ws: ").is_empty(), "{stderr}");
}

#[test]
#[ignore = "a case of warnings_of_a_silenced_logger_are_not_shown"]
fn case_with_silenced_logger() {
    log::set_logger(&LOGGER).unwrap();
    log::set_max_level(log::LevelFilter::Off);
    warn(AsyncWebsocketApp::new());
}

#[test]
fn warnings_of_a_silenced_logger_are_not_shown() {
    let stderr = stderr_of("case_with_silenced_logger");
    for word in ["logged: ", "humphrey_ws: "] {
        assert!(lines(&stderr, word).is_empty(), "{stderr}");
    }
}

#[cfg(feature = "tracing")]
#[test]
#[ignore = "a case of warnings_go_to_the_subscriber_alone_where_there_is_one"]
fn case_with_subscriber() {
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    warn(AsyncWebsocketApp::new());
}

#[cfg(feature = "tracing")]
#[test]
fn warnings_go_to_the_subscriber_alone_where_there_is_one() {
    let stderr = stderr_of("case_with_subscriber");
    assert!(!lines(&stderr, "WARN").is_empty(), "{stderr}");
    assert!(
        lines(&stderr, "humphrey_ws: warning: ").is_empty(),
        "{stderr}"
    );
}

#[test]
#[ignore = "a case of foreign_page_is_shown_once_from_a_shard"]
fn case_foreign_page() {
    let (running, address) = start(AsyncWebsocketApp::<()>::new().with_shards(1));
    for _ in 0..2 {
        let mut page = tcp(address);
        let request =
            upgrade_request("/").replacen("\r\n\r\n", "\r\nOrigin: http://a.example\r\n\r\n", 1);
        page.write_all(request.as_bytes()).unwrap();
        assert!(read_head(&mut page).starts_with("HTTP/1.1 101 "));
    }
    // Another thread than the shard's writes the line. The parent says when it has it.
    let (told, parent) = mpsc::channel();
    thread::spawn(move || told.send(std::io::stdin().read_to_end(&mut Vec::new())));
    parent.recv_timeout(support::DEADLINE).unwrap().unwrap();
    running.shutdown(support::DEADLINE);
}

#[test]
fn foreign_page_is_shown_once_from_a_shard() {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "case_foreign_page", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let shown = stderr.find(|line| line.as_ref().unwrap().contains("humphrey_ws: warning: "));
    let shown = shown.unwrap().unwrap();
    assert!(
        shown.contains("http://a.example") && !shown.contains("once a minute"),
        "{shown}"
    );
    drop(child.stdin.take());
    let rest: Vec<String> = stderr.map(Result::unwrap).collect();
    assert!(child.wait().unwrap().success(), "{rest:?}");
    assert!(
        !rest.iter().any(|line| line.contains("humphrey_ws: ")),
        "{rest:?}"
    );
}
