//! The exit codes of the server, `listen` and `send`: alike errors have the same code. `docs/shell.md` lists them.
#![cfg(unix)]

mod support;

use std::net::TcpListener;

use support::run;
use support::shell::{Foreign, Shell};

/// The URL of a port on which nothing listens.
fn unreachable() -> String {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("ws://{}/", free.local_addr().unwrap())
}

#[track_caller]
fn expect_code(arguments: &[&str], code: i32, said: &str) {
    let (got, out, err) = run(arguments);
    assert_eq!((got, out.as_str()), (code, ""), "{arguments:?}: {err}");
    assert!(err.contains(said), "{arguments:?}: {err}");
}

#[test]
fn file_of_an_option_that_cannot_be_used_exits_with_2() {
    let missing = "/nonexistent/file.pem";
    let listen = "--listen=127.0.0.1:0";
    for option in ["--publish-token-file", "--read-token-file"] {
        expect_code(&[listen, option, missing], 2, missing);
    }
    for command in ["listen", "send"] {
        expect_code(&[command, "ws://a/", "--token-file", missing], 2, missing);
    }
    #[cfg(feature = "cluster")]
    expect_code(&[listen, "--cluster-url-file", missing], 2, missing);
    #[cfg(feature = "cluster-tls")]
    {
        let cluster = "--cluster=rediss://127.0.0.1:1";
        expect_code(&[listen, cluster, "--cluster-ca", missing], 2, missing);
    }
    #[cfg(feature = "tls")]
    {
        let tls = [listen, "--tls-cert", missing, "--tls-key", missing];
        expect_code(&tls, 2, missing);
        // A directory can't be made inside a file.
        let directory = "/dev/null/tls";
        expect_code(&[listen, "--tls-self-signed", directory], 2, directory);
        for command in ["listen", "send"] {
            expect_code(&[command, "wss://a/", "--ca", missing], 2, missing);
        }
    }
}

#[test]
fn invalid_option_exits_with_2() {
    for arguments in [
        &["--no-such-option"][..],
        &["listen"],
        &["listen", "ws://a/", "--no-such-option"],
        &["send", "a:80"],
        &["send", "ws://a/", "--first=x"],
    ] {
        expect_code(arguments, 2, "");
    }
}

#[test]
fn failure_to_reach_or_to_offer_an_address_exits_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    expect_code(&["--listen", &address], 1, "in use");
    let metrics = ["--listen=127.0.0.1:0", "--metrics", &address];
    expect_code(&metrics, 1, "in use");
    for command in ["listen", "send"] {
        let url = unreachable();
        let arguments = [command, &url, "--no-reconnect"];
        expect_code(&arguments, 1, "can't connect to");
        let arguments = [command, &url, "--give-up-after=1", "--max-delay=1"];
        expect_code(&arguments, 1, "giving up");
    }
}

#[test]
fn empty_input_to_a_refusing_server_exits_with_1() {
    // The end of the input may be read before the answer, or after it.
    for ends_first in [true, false] {
        let server = Foreign::new();
        let mut sender = Shell::send(&server.url(), &[]);
        if ends_first {
            sender.stdin = None;
        }
        server.refuse("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
        sender.expect_exit(1);
        assert!(sender.said.contains("with status 401"), "{}", sender.said);
    }
}
