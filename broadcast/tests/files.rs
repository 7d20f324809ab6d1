//! Files that the program follows.
#![cfg(unix)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Client, Program, http_get, run};

const NO_WELCOME: &str = "--no-welcome";

/// A directory that is removed when dropped.
struct Directory(PathBuf);

impl Directory {
    /// The name must be unique among all tests.
    fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Appends to a file, and makes it if there is none.
    fn append(&self, name: &str, text: &str) {
        let path = self.path(name);
        let file: std::io::Result<File> = OpenOptions::new().create(true).append(true).open(path);
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The room and the text of the next message. The replay may end before it: the first lines of a file may be sent when
/// clients are connected already.
fn line(client: &mut Client) -> (String, String) {
    let mut line = client.json();
    if line["kind"] == "live" {
        line = client.json();
    }
    assert_eq!(line["kind"], "message", "{line}");
    let of = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
    (of("room"), of("text"))
}

fn pair(room: &str, text: &str) -> (String, String) {
    (room.to_owned(), text.to_owned())
}

fn get(program: &Program, path: &str) -> Value {
    let (status, _, body) = http_get(program.address(), path);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn each_file_has_a_room_and_everyone_sees_all() {
    let directory = Directory::new("files_rooms");
    directory.append("a.log", "old a\n");
    directory.append("b.log", "old b\n");
    let paths = ["a.log", "b.log"].map(|name| directory.path(name));
    let mut program = Program::start(&[NO_WELCOME, &paths[0], "-", &paths[1]]);
    let mut all = program.connect_json("/?since=all");
    let mut kept = [line(&mut all), line(&mut all)];
    kept.sort();
    assert_eq!(kept, [pair("a.log", "old a"), pair("b.log", "old b")]);
    let mut in_a = program.connect_json("/a.log?since=all");
    assert_eq!(line(&mut in_a), pair("a.log", "old a"));
    let mut plain = program.connect();
    plain.send(tungstenite::Message::text("joined"));
    assert_eq!(plain.text(), "joined");
    directory.append("b.log", "GET /: 1\n");
    assert_eq!(line(&mut all), pair("b.log", "GET /: 1"));
    assert_eq!(plain.text(), "b.log: GET /: 1");
    directory.append("a.log", "new\n");
    assert_eq!(line(&mut all), pair("a.log", "new"));
    assert_eq!(line(&mut in_a), pair("a.log", "new"));
    assert_eq!(plain.text(), "a.log: new");
    program.write(b"typed\n");
    for client in [&mut all, &mut in_a] {
        assert_eq!(line(client), pair("", "typed"));
    }
    assert_eq!(plain.text(), "typed");
    let rooms = get(&program, "/rooms");
    let rooms = rooms["rooms"].as_array().unwrap();
    let names: Vec<_> = rooms.iter().map(|room| &room["name"]).collect();
    assert_eq!(names, [&json!("a.log"), &json!("b.log")]);
    program.signal(Signal::TERM);
    program.expect_line("5 lines");
    program.expect_exit(0);
}

#[test]
fn file_is_followed_across_rotation_truncation_and_absence() {
    let directory = Directory::new("files_rotation");
    let path = directory.path("access.log");
    let mut program = Program::start(&[NO_WELCOME, &path]);
    program.expect_line("access.log does not exist; waiting for it");
    let mut client = program.connect_json("/?since=all");
    // A single file needs no tag, and has a room all the same.
    let mut expect = |text: &str| assert_eq!(line(&mut client), pair("access.log", text));
    directory.append("access.log", "first\n");
    expect("first");
    program.expect_line("access.log can be read now");
    fs::rename(&path, directory.path("access.log.1")).unwrap();
    directory.append("access.log.1", "late\n");
    directory.append("access.log", "second\n");
    expect("late");
    expect("second");
    program.expect_line("access.log was replaced; following the new file");
    fs::write(&path, "3\n").unwrap();
    expect("3");
    program.expect_line("access.log was truncated; reading it from its beginning");
    program.signal(Signal::TERM);
    program.expect_line("4 lines");
    program.expect_exit(0);
}

#[test]
fn as_many_last_lines_as_asked_for_are_sent_at_the_start() {
    let directory = Directory::new("files_lines");
    let lines: String = (1..=1_500).map(|n| format!("{n}\n")).collect();
    directory.append("a.log", &lines);
    let path = directory.path("a.log");
    for (arguments, first) in [
        (&["-n", "3"][..], 1_498),
        (&["--history=9"], 1_492),
        (&[], 501),
    ] {
        let arguments = [arguments, &[NO_WELCOME, &path]].concat();
        let program = Program::start(&arguments);
        let mut client = program.connect_json("/?since=all");
        for expected in first..=1_500 {
            assert_eq!(line(&mut client), pair("a.log", &expected.to_string()));
        }
    }
    let mut program = Program::start(&[NO_WELCOME, "--history=0", &path]);
    let mut client = program.connect();
    client.send(tungstenite::Message::text("joined"));
    assert_eq!(client.text(), "joined");
    directory.append("a.log", "new\n");
    assert_eq!(client.text(), "new");
    program.signal(Signal::TERM);
    program.expect_line("1 line,");
}

#[test]
fn view_of_everyone_begins_with_lines_of_each_file() {
    let directory = Directory::new("files_share");
    let names = ["a.log", "b.log", "c.log"];
    for name in names {
        let lines: String = (1..=1_200).map(|n| format!("{n}\n")).collect();
        directory.append(name, &lines);
    }
    let paths = names.map(|name| directory.path(name));
    let program = Program::start(&[NO_WELCOME, &paths[0], &paths[1], &paths[2]]);
    let mut all = program.connect_json("/?since=all");
    let lines: Vec<_> = (0..1_000).map(|_| line(&mut all)).collect();
    for name in names {
        let of = lines.iter().filter(|(room, _)| room == name).count();
        assert!((332..=334).contains(&of), "{of} lines of {name}");
    }
}

#[test]
fn what_has_no_effect_on_files_is_said_at_the_start() {
    let directory = Directory::new("files_effect");
    directory.append("a.log", "one\n");
    let (path, there) = (directory.path("a.log"), directory.path(""));
    let mut program = Program::start(&[NO_WELCOME, &path, &there, "--room", "a"]);
    program.expect_line("--room has no effect");
    let mut client = program.connect_json("/?since=all");
    assert_eq!(line(&mut client), pair("a.log", "one"));
    let mut program = Program::start(&[NO_WELCOME, &path]);
    program.expect_line("standard input is not read; '-' among the files adds it");
}

#[test]
fn quiet_program_says_only_what_failed() {
    let directory = Directory::new("files_quiet");
    let missing = directory.path("missing.log");
    let mut program = Program::start_quiet(&[NO_WELCOME, "--quiet", &missing]);
    let mut client = program.connect_json("/?since=all");
    directory.append("missing.log", &format!("{}\nshort\n", "x".repeat(17 << 20)));
    assert_eq!(line(&mut client), pair("missing.log", "short"));
    program.signal(Signal::TERM);
    program.expect_exit(1);
    let said = program.rest_of_stderr();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("a line of ") && said.contains("is skipped"),
        "{said}"
    );
}

#[test]
fn arguments_that_cannot_be_followed_end_the_program_with_code_2() {
    let directory = Directory::new("files_refused");
    let there = directory.path("");
    for (arguments, said) in [
        (&["ws://127.0.0.1:1/"][..], "'listen ws://127.0.0.1:1/'"),
        (&["lisen"], "'listen'"),
        (&[&*there], "is a directory"),
        (&["a.log", "./a.log"], "twice"),
        (&["a.log", "--exit-on-eof"], "have no end"),
        (&["-", "a.log", "--exit-on-eof"], "have no end"),
        (
            &["a.log", "listen", "x"],
            "the command 'listen' takes no files",
        ),
    ] {
        let (code, _, err) = run(arguments);
        assert_eq!(code, 2, "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}
