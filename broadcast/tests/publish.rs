//! `POST /publish` over real sockets.
#![cfg(unix)]

mod support;

use support::{Program, TempFile, eventually, http};
use tungstenite::Message;

const TOKEN: &str = "s3cret";
const BEARER: &str = "Authorization: Bearer s3cret\r\n";

fn start(arguments: &[&str]) -> Program {
    Program::start(&[&["--no-welcome", "--publish-token", TOKEN], arguments].concat())
}

#[test]
fn publish_with_token_counts_the_members() {
    for history in [&["--history", "0"][..], &["--history", "9"]] {
        let program = start(history);
        let mut inside = program.connect_to("/Z%C3%BCrich/1");
        eventually("the client is in the room", || {
            support::http_get(program.address(), "/clients/Z%C3%BCrich%2F1")
                .2
                .contains("\"room\": 1")
        });
        let mut outside = program.connect();
        let members = |n: u32| (200, format!("{{\"members\": {n}}}\n"));
        assert_eq!(
            program.publish("/Z%C3%BCrich%2f1", BEARER, b"to the room"),
            members(1)
        );
        assert_eq!(program.publish("", BEARER, b"to everyone"), members(2));
        assert_eq!(
            program.publish("/", BEARER, b"to everyone again"),
            members(2)
        );
        assert_eq!(program.publish("/empty", BEARER, b"to nobody"), members(0));
        assert_eq!(inside.text(), "to the room");
        for client in [&mut inside, &mut outside] {
            assert_eq!(client.text(), "to everyone");
            assert_eq!(client.text(), "to everyone again");
        }
    }
}

#[test]
fn publish_content_type_selects_text_or_binary() {
    let program = start(&[]);
    let mut client = program.connect();
    let send = |content_type: &str, body: &[u8]| {
        let headers = format!("{BEARER}{content_type}");
        program.publish("", &headers, body).0
    };
    assert_eq!(send("", b"two\nlines\n"), 200);
    assert_eq!(client.message(), Message::text("two\nlines\n"));
    assert_eq!(send("Content-Type: application/json\r\n", b"{}"), 200);
    assert_eq!(client.message(), Message::text("{}"));
    for content_type in [
        "Content-Type: application/octet-stream\r\n",
        "content-type: Application/Octet-Stream; x=y\r\n",
    ] {
        assert_eq!(send(content_type, b"bytes"), 200);
        assert_eq!(client.message(), Message::binary(b"bytes".to_vec()));
    }
    assert_eq!(send("Content-Type: text/plain\r\n", b"\xff"), 400);
    assert_eq!(send("", b""), 200);
    assert_eq!(client.message(), Message::text(""));
}

#[test]
fn publish_without_the_token_is_401() {
    let program = start(&[]);
    let mut client = program.connect();
    const NONE: &str = "Bearer realm=\"publish\"";
    const INVALID: &str = "Bearer realm=\"publish\", error=\"invalid_token\"";
    for (headers, challenge) in [
        ("", NONE),
        ("Cookie: token=s3cret\r\n", NONE),
        ("Authorization: Bearer wrong\r\n", INVALID),
        ("Authorization: Bearer s3cre\r\n", INVALID),
        ("Authorization: Bearer\r\n", INVALID),
        ("Authorization: Basic s3cret\r\n", INVALID),
    ] {
        for path in ["/publish", "/publish/news", "/publish/%"] {
            let (status, head, body) = http(program.address(), "POST", path, headers, b"no");
            assert_eq!(status, 401, "{headers}");
            let answered = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("WWW-Authenticate")
                    .then_some(value)
            });
            assert_eq!(answered, Some(challenge), "{headers}");
            assert!(!body.contains(TOKEN), "{body}");
        }
    }
    assert_eq!(program.publish("", BEARER, b"the first").0, 200);
    assert_eq!(client.text(), "the first");
}

#[test]
fn publish_refuses_other_methods_and_long_bodies() {
    let program = start(&[]);
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        let (status, head, _) = http(program.address(), method, "/publish", BEARER, b"");
        assert_eq!(status, 405, "{method}");
        assert!(head.contains("Allow: POST"), "{head}");
    }
    let mut client = program.connect();
    let longest = vec![b'x'; 1 << 20];
    assert_eq!(program.publish("", BEARER, &longest).0, 200);
    assert_eq!(client.text().len(), longest.len());
    let longer = [&longest[..], b"x"].concat();
    assert_eq!(program.publish("", BEARER, &longer).0, 413);
}

#[test]
fn publish_to_an_invalid_room_is_400() {
    let program = start(&[]);
    for path in ["/%", "/%FF", &format!("/{}", "x".repeat(241))] {
        let (status, answer) = program.publish(path, BEARER, b"no");
        assert_eq!(status, 400, "{path}");
        assert!(answer.contains("room"), "{answer}");
    }
}

#[test]
fn publish_without_a_token_option_is_404() {
    let program = Program::start(&["--no-welcome"]);
    for path in ["", "/news"] {
        assert_eq!(program.publish(path, BEARER, b"no").0, 404, "{path}");
    }
}

#[test]
fn publish_token_is_read_from_a_file() {
    let file = TempFile::new("publish-token", b"s3cret\r\n");
    let program = Program::start(&["--no-welcome", "--publish-token-file", file.path()]);
    assert_eq!(program.publish("", BEARER, b"hi").0, 200);
    assert_eq!(program.publish("", "", b"hi").0, 401);
}

#[test]
fn invalid_publish_token_is_one_line_without_the_token() {
    let two_words = TempFile::new("publish-token-two-words", b"two words\n");
    let empty = TempFile::new("publish-token-empty", b"\n");
    let endless = "/dev/zero";
    for (option, value, said) in [
        ("--publish-token", "", "empty"),
        ("--publish-token", "two words", "spaces"),
        (
            "--publish-token-file",
            "/nonexistent/token",
            "/nonexistent/token",
        ),
        ("--publish-token-file", two_words.path(), "spaces"),
        ("--publish-token-file", empty.path(), "empty"),
        ("--publish-token-file", endless, "longer than"),
    ] {
        let (code, out, err) = support::run(&["--listen", "127.0.0.1:0", option, value]);
        // The message names the file, but not its content.
        assert_eq!((code, out.as_str()), (2, ""), "{option} {value}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(err.contains(said) && !err.contains("two words"), "{err}");
    }
}
