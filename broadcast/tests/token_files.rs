//! The files with the token for reading: those of the server, of `listen` and of `send`; and the warnings of a server without
//! one.
#![cfg(unix)]

mod support;

use std::io::Write;

use support::shell::Shell;
use support::{Program, TempFile, run};

const TOKEN: &str = "s3cret-for-readers";

/// Starts a protected server. Returns it with the file of its token, whose name must be unique among all tests.
fn protected(name: &str, arguments: &[&str]) -> (Program, TempFile) {
    let token = TempFile::new(&format!("token-of-{name}"), TOKEN.as_bytes());
    let options = ["--no-welcome", "--read-token-file", token.path()];
    let server = Program::start(&[&options, arguments].concat());
    (server, token)
}

#[test]
fn listen_and_send_with_a_token_reach_a_protected_server() {
    let (mut server, token) = protected("clients", &["--on-message", "broadcast"]);
    // As a copied line.
    let file = TempFile::new("token-clients-token", format!("{TOKEN}\n").as_bytes());
    let url = format!("ws://{}/", server.address());
    let mut listener = Shell::listen(&url, &["--count", "2", "--token-file", file.path()]);
    listener.expect_line("connected to");
    server.write(b"from the server\n");
    assert_eq!(listener.line(), "from the server");
    let mut sender = Shell::send(&url, &["--token-file", token.path()]);
    sender.write(b"from a client\n");
    sender.stdin = None;
    sender.expect_exit(0);
    assert_eq!(listener.line(), "from a client");
    listener.expect_exit(0);
    for shell in [&listener, &sender] {
        assert!(!shell.said.contains(TOKEN), "{}", shell.said);
    }
}

#[test]
fn listen_and_send_without_the_token_fail_at_once() {
    let (server, _token) = protected("denied", &[]);
    let wrong = TempFile::new("token-denied-wrong", b"wr0ng");
    let url = format!("ws://{}/", server.address());
    for (arguments, advice) in [
        (&[][..], "name a file with the token: --token-file FILE"),
        (
            &["--token-file", wrong.path()],
            "the file of --token-file has another token",
        ),
        (
            &["--header", "Authorization: Bearer wr0ng"],
            "sign in at /login",
        ),
    ] {
        for mut shell in [Shell::listen(&url, arguments), Shell::send(&url, arguments)] {
            if let Some(mut stdin) = shell.stdin.take() {
                // `send` may have given up already.
                let _ = stdin.write_all(b"a line\n");
            }
            shell.expect_exit(1);
            let said = &shell.said;
            assert!(
                said.contains("status 401: ") && said.contains(advice),
                "{said}"
            );
            assert!(
                !said.contains("wr0ng") && !said.contains("reconnecting"),
                "{said}"
            );
        }
    }
}

#[test]
fn unusable_token_file_is_one_line_without_the_token() {
    let two_words = TempFile::new("token-two-words", b"two words\n");
    let empty = TempFile::new("token-empty", b" \n");
    for (path, said) in [
        ("/nonexistent/token", "No such file"),
        (two_words.path(), "spaces"),
        (empty.path(), "the token is empty"),
        ("/dev/zero", "longer than"),
    ] {
        let server = ["--listen", "127.0.0.1:0", "--read-token-file", path];
        let listen = ["listen", "ws://127.0.0.1:9/", "--token-file", path];
        for arguments in [&server, &listen] {
            let (code, out, err) = run(arguments);
            assert_eq!((code, out.as_str()), (2, ""), "{err}");
            assert_eq!(err.lines().count(), 1, "{err}");
            assert!(
                err.contains(said) && err.contains(path) && !err.contains("two words"),
                "{err}"
            );
            assert!(err.contains("token-file"), "{err}");
        }
    }
    let (code, _, err) = run(&[
        "listen",
        "ws://127.0.0.1:9/",
        "--header=Authorization: Bearer x",
        "--token-file",
        TempFile::new("token-twice", b"y").path(),
    ]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("Authorization is given twice"), "{err}");
}

/// The warnings that a server prints at its start. It stops at the end of its input, which is empty.
fn warnings_at_start(listen: &str, arguments: &[&str]) -> Vec<String> {
    let (code, _, err) = run(&[&["--listen", listen, "--exit-on-eof"], arguments].concat());
    assert_eq!(code, 0, "{err}");
    // Others are about the machine's limits.
    let warnings = err.lines().filter(|line| line.contains("every line"));
    warnings.map(str::to_owned).collect()
}

#[test]
fn start_without_tls_or_token_beyond_loopback_is_warned_about() {
    let token = TempFile::new("token-warnings", TOKEN.as_bytes());
    let protected = ["--read-token-file", token.path()];
    let all = "0.0.0.0:0";
    let warned = warnings_at_start(all, &[]);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(
        warned[0].contains("warning: every client that can reach 0.0.0.0:"),
        "{warned:?}"
    );
    assert!(
        warned[0].contains("can read every line, unencrypted: see --read-token-file and --t"),
        "{warned:?}"
    );
    let warned = warnings_at_start(all, &protected);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(
        warned[0].contains("unencrypted") && !warned[0].contains("--read-token-file"),
        "{warned:?}"
    );
    // A named proxy may speak TLS, and others may still bypass it.
    let proxy = ["--trusted-proxy", "192.0.2.1"];
    let warned = warnings_at_start(all, &proxy);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(!warned[0].contains("unencrypted"), "{warned:?}");
    for (listen, arguments) in [
        (all, &[protected, proxy].concat()[..]),
        (all, &["--quiet"]),
        ("127.0.0.1:0", &[]),
        ("[::1]:0", &[]),
    ] {
        let warned = warnings_at_start(listen, arguments);
        assert_eq!(warned, [""; 0], "{listen} {arguments:?}");
    }
}
