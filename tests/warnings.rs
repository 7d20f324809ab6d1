//! Warnings without a logger go to standard error, once for each kind.
//!
//! A logger is set for the whole process, so each case runs in a process of its own, which is this test binary.

mod support;

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use humphrey_ws::{AsyncWebsocketApp, Limits};
use support::{Client, read_head, start, tcp, upgrade_request};

/// The environment variable that marks a child process.
const CHILD: &str = "HUMPHREY_WS_WARNINGS_CASE";

/// Returns a command that runs one test alone in a child process.
fn child(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command.env(CHILD, "yes");
    command
}

/// Runs `case` in a child process, which is `test` again, and returns its standard error. Returns `None` in the child.
fn stderr_of(test: &str, case: impl FnOnce()) -> Option<String> {
    if env::var_os(CHILD).is_some() {
        case();
        return None;
    }
    let output = child(test).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8(output.stderr).unwrap();
    let has_run = output.status.success() && stdout.contains("1 passed");
    assert!(has_run, "{stdout}{stderr}");
    Some(stderr)
}

fn lines<'a>(stderr: &'a str, part: &str) -> Vec<&'a str> {
    stderr.lines().filter(|line| line.contains(part)).collect()
}

/// Makes the library warn of two rooms that a client may not join.
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
fn warnings_without_a_logger_go_to_stderr_once() {
    let case = || {
        warn(AsyncWebsocketApp::new());
    };
    let Some(stderr) = stderr_of("warnings_without_a_logger_go_to_stderr_once", case) else {
        return;
    };
    let warnings = lines(&stderr, "humphrey_ws: warning: ");
    assert_eq!(warnings.len(), 1, "{stderr}");
    assert!(warnings[0].contains("with_warnings_on_stderr(false)"));
}

#[test]
fn warnings_turned_off_are_not_shown() {
    let case = || {
        warn(AsyncWebsocketApp::new().with_warnings_on_stderr(false));
    };
    let Some(stderr) = stderr_of("warnings_turned_off_are_not_shown", case) else {
        return;
    };
    assert!(lines(&stderr, "humphrey_ws: ").is_empty(), "{stderr}");
}

/// A logger with its own prefix, and with a level that hides warnings.
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
fn warnings_with_a_logger_go_only_to_it() {
    let case = || {
        log::set_logger(&LOGGER).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
        warn(AsyncWebsocketApp::new());
    };
    let Some(stderr) = stderr_of("warnings_with_a_logger_go_only_to_it", case) else {
        return;
    };
    assert_eq!(lines(&stderr, "logged: ").len(), 1, "{stderr}");
    assert!(lines(&stderr, "humphrey_ws: ").is_empty(), "{stderr}");
}

#[test]
fn warnings_of_a_silenced_logger_are_not_shown() {
    let case = || {
        log::set_logger(&LOGGER).unwrap();
        log::set_max_level(log::LevelFilter::Off);
        warn(AsyncWebsocketApp::new());
    };
    let Some(stderr) = stderr_of("warnings_of_a_silenced_logger_are_not_shown", case) else {
        return;
    };
    for word in ["logged: ", "humphrey_ws: "] {
        assert!(lines(&stderr, word).is_empty(), "{stderr}");
    }
}

#[cfg(feature = "tracing")]
#[test]
fn warnings_with_a_subscriber_go_only_to_it() {
    let case = || {
        let subscriber = tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        warn(AsyncWebsocketApp::new());
    };
    let Some(stderr) = stderr_of("warnings_with_a_subscriber_go_only_to_it", case) else {
        return;
    };
    assert!(!lines(&stderr, "WARN").is_empty(), "{stderr}");
    assert!(
        lines(&stderr, "humphrey_ws: warning: ").is_empty(),
        "{stderr}"
    );
}

fn warn_of_foreign_pages() {
    let (running, address) = start(AsyncWebsocketApp::<()>::new().with_shards(1));
    for _ in 0..2 {
        let mut page = tcp(address);
        let request =
            upgrade_request("/").replacen("\r\n\r\n", "\r\nOrigin: http://a.example\r\n\r\n", 1);
        page.write_all(request.as_bytes()).unwrap();
        assert!(read_head(&mut page).starts_with("HTTP/1.1 101 "));
    }
    // The line is written later, by another thread. The parent closes standard input once it has read the line.
    let (closed, parent_closed) = mpsc::channel();
    thread::spawn(move || closed.send(std::io::stdin().read_to_end(&mut Vec::new())));
    parent_closed
        .recv_timeout(support::DEADLINE)
        .unwrap()
        .unwrap();
    running.shutdown(support::DEADLINE);
}

#[test]
fn foreign_origin_is_warned_of_once() {
    if env::var_os(CHILD).is_some() {
        warn_of_foreign_pages();
        return;
    }
    let mut child = child("foreign_origin_is_warned_of_once")
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
