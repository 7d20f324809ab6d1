//! Admission of requests: by host name, by origin, by method and by message form.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use support::{DEADLINE, Program};

/// Sends a request with the header lines `lines` and returns the whole response.
fn ask(program: &Program, request_line: &str, lines: &str) -> String {
    let mut socket = TcpStream::connect(program.address()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!("{request_line} HTTP/1.1\r\n{lines}\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    read_answer(&mut socket, request_line.starts_with("HEAD"))
}

/// Reads to the end of the body that `Content-Length` announces, or of the head if the response is a stream.
fn read_answer(socket: &mut TcpStream, head_only: bool) -> String {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        if socket.read(&mut byte).unwrap() == 0 {
            break;
        }
        answer.push(byte[0]);
    }
    let head = String::from_utf8(answer).unwrap();
    let length = header(&head, "Content-Length").filter(|_| !head_only);
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    socket.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": "))
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

fn status(answer: &str) -> u16 {
    answer[9..12].parse().unwrap()
}

fn host(program: &Program) -> String {
    format!("Host: {}\r\n", program.address())
}

const HANDSHAKE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn every_route_refuses_a_foreign_host_with_advice() {
    let mut program = Program::start(&[
        "--allow-origin",
        "https://good.example",
        "--publish-token=x",
    ]);
    for (line, lines) in [
        ("GET /", ""),
        ("GET /client.js", ""),
        ("GET /clients", ""),
        ("GET /clients/room", ""),
        ("GET /health", ""),
        ("GET /ready", ""),
        ("GET /events", ""),
        ("GET /events/room", ""),
        ("HEAD /events", ""),
        ("OPTIONS /events", ""),
        ("GET /nothing", ""),
        (
            "POST /publish",
            "Authorization: Bearer x\r\nContent-Length: 0\r\n",
        ),
        ("POST /check", "Content-Length: 0\r\n"),
        ("GET /", HANDSHAKE),
        ("GET /room", HANDSHAKE),
        ("GET http://evil.example/", HANDSHAKE),
    ] {
        for page in [
            "",
            "Origin: http://evil.example\r\n",
            "Sec-Fetch-Site: same-origin\r\n",
        ] {
            let lines = format!("Host: evil.example\r\n{page}{lines}");
            let answer = ask(&program, line, &lines);
            assert_eq!(status(&answer), 403, "{line}: {answer}");
            if !line.starts_with("HEAD") {
                assert!(
                    answer.contains("--allow-host evil.example"),
                    "{line}: {answer}"
                );
            }
        }
    }
    let said = program.expect_line("--allow-host evil.example");
    assert!(said.contains("warning: "), "{said}");
    for name in [
        "localhost",
        "app.localhost.:80",
        "127.0.0.1",
        "[::1]:1",
        "192.0.2.1",
        "GOOD.example",
    ] {
        let answer = ask(&program, "GET /clients", &format!("Host: {name}\r\n"));
        assert_eq!(status(&answer), 200, "{name}: {answer}");
    }
    program.signal(rustix::process::Signal::INT);
    program.expect_exit(0);
    let rest = program.rest_of_stderr();
    assert!(!rest.contains("evil.example"), "said again: {rest}");
}

#[test]
fn allowed_hosts_are_answered() {
    let program = Program::start(&["--allow-host", "live.example", "--allow-host", "b.example"]);
    for (name, expected) in [
        ("live.example:443", 200),
        ("b.example", 200),
        ("c.example", 403),
    ] {
        let answer = ask(&program, "GET /clients", &format!("Host: {name}\r\n"));
        assert_eq!(status(&answer), expected, "{name}");
    }
    let (code, _, err) =
        support::run(&["--listen=127.0.0.1:0", "--allow-host", "https://a.example"]);
    assert_eq!(code, 2);
    assert!(
        err.contains("\"https://a.example\" is not a host name"),
        "{err}"
    );
}

#[test]
fn foreign_sites_cannot_embed_streams_counts_or_upgrades() {
    let program = Program::start(&[
        "--allow-origin",
        "https://good.example",
        "--publish-token=x",
    ]);
    let own = host(&program);
    let paths = [
        "GET /events",
        "GET /events/room",
        "HEAD /events",
        "GET /clients",
        "GET /clients/room",
        "GET /health",
        "GET /ready",
        "GET /client.js",
        "POST /check",
        "POST /publish",
        "GET /",
    ];
    for site in ["cross-site", "same-site"] {
        for mode in ["no-cors", "cors", "websocket", "navigate"] {
            for line in paths {
                let dest = if mode == "navigate" {
                    "iframe"
                } else {
                    "image"
                };
                let fetch = format!(
                    "Sec-Fetch-Site: {site}\r\nSec-Fetch-Mode: {mode}\r\nSec-Fetch-Dest: {dest}\r\n"
                );
                let answer = ask(
                    &program,
                    line,
                    &format!("{own}{fetch}Content-Length: 0\r\n"),
                );
                assert_eq!(status(&answer), 403, "{line} {fetch}: {answer}");
            }
            let fetch = format!("Sec-Fetch-Site: {site}\r\nSec-Fetch-Mode: {mode}\r\n");
            let answer = ask(&program, "GET /room", &format!("{own}{fetch}{HANDSHAKE}"));
            assert_eq!(status(&answer), 403, "{fetch}: {answer}");
            let listed = format!("{own}{fetch}Referer: https://good.example/a\r\n");
            assert_eq!(status(&ask(&program, "GET /clients", &listed)), 200);
            let listed = format!("{own}{fetch}Origin: https://good.example\r\n");
            assert_eq!(status(&ask(&program, "GET /events", &listed)), 200);
        }
        // Links to the page are allowed, and nothing else.
        let link = format!(
            "{own}Sec-Fetch-Site: {site}\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\nSec-Fetch-User: ?1\r\n"
        );
        for (line, expected) in [
            ("GET /", 200),
            ("HEAD /", 200),
            ("GET /clients", 403),
            ("GET /events", 403),
        ] {
            assert_eq!(status(&ask(&program, line, &link)), expected, "{line}");
        }
    }
    for site in ["same-origin", "none"] {
        for (line, expected) in [
            ("GET /", 200),
            ("GET /clients", 200),
            ("GET /events", 200),
            ("POST /check", 200),
        ] {
            let lines = format!("{own}Sec-Fetch-Site: {site}\r\nContent-Length: 0\r\n");
            assert_eq!(
                status(&ask(&program, line, &lines)),
                expected,
                "{line} {site}"
            );
        }
    }
}

#[test]
fn every_response_forbids_framing_embedding_and_sniffing() {
    let program = Program::start(&["--publish-token=x", "--history", "5"]);
    let own = host(&program);
    let post = format!("{own}Authorization: Bearer x\r\nContent-Length: 2\r\n");
    for (line, lines, expected) in [
        ("GET /", &own[..], 200),
        ("HEAD /", &own, 200),
        ("GET /client.js", &own, 200),
        ("GET /clients", &own, 200),
        ("GET /clients/a%ff", &own, 400),
        ("GET /health", &own, 200),
        ("HEAD /ready", &own, 200),
        ("GET /events", &own, 200),
        ("HEAD /events/room", &own, 200),
        ("OPTIONS /events", &own, 204),
        ("POST /events", &own, 405),
        ("GET /events/%ff", &own, 400),
        ("GET /nothing", &own, 404),
        ("BREW /", &own, 405),
        ("OPTIONS /", &own, 204),
        ("OPTIONS *", &own, 204),
        ("POST /", &own, 405),
        ("DELETE /clients", &own, 405),
        ("POST /publish", &own, 401),
        ("GET /publish", &own, 405),
        ("GET /", "", 400),
        ("GET /#room", &own, 400),
        ("GET /", "Host: evil.example\r\n", 403),
        (
            "GET /",
            &format!("{own}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
            426,
        ),
        (
            "GET /room",
            &format!("{own}Upgrade: websocket\r\nConnection: Upgrade\r\n"),
            426,
        ),
        (
            "POST /check",
            &format!("{own}Content-Length: 2000000\r\n"),
            413,
        ),
        ("GET /", &format!("{own}X: {}\r\n", "x".repeat(20_000)), 431),
        ("GET /room?since=x", &format!("{own}{HANDSHAKE}"), 400),
        ("POST /publish/a%ff", &format!("{post}\r\nhi"), 400),
    ] {
        let answer = ask(&program, line, lines);
        assert_eq!(status(&answer), expected, "{line}: {answer}");
        assert_eq!(
            header(&answer, "X-Content-Type-Options"),
            Some("nosniff"),
            "{line}: {answer}"
        );
        assert_eq!(
            header(&answer, "Cross-Origin-Resource-Policy"),
            Some("same-origin"),
            "{line}: {answer}"
        );
        let policy = header(&answer, "Content-Security-Policy").unwrap_or_default();
        assert!(
            policy.contains("frame-ancestors 'none'"),
            "{line}: {answer}"
        );
    }
}

#[test]
fn other_methods_are_refused_with_an_allow_header() {
    let program = Program::start(&["--publish-token=x"]);
    let own = host(&program);
    let (get, post) = ("GET, HEAD, OPTIONS", "POST, OPTIONS");
    for (path, allow) in [
        ("/", get),
        ("/client.js", get),
        ("/clients", get),
        ("/clients/room", get),
        ("/health", get),
        ("/ready", get),
        ("/events", get),
        ("/events/room", get),
        ("/check", post),
        ("/publish", post),
        ("/publish/room", post),
    ] {
        for method in [
            "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get",
        ] {
            let answer = ask(
                &program,
                &format!("{method} {path}"),
                &format!("{own}Content-Length: 0\r\n"),
            );
            let is_there = allow.split(", ").any(|known| known == method);
            assert_eq!(
                status(&answer) == 405,
                !is_there,
                "{method} {path}: {answer}"
            );
            if !is_there || method == "OPTIONS" {
                assert_eq!(
                    header(&answer, "Allow"),
                    Some(allow),
                    "{method} {path}: {answer}"
                );
            }
            if method == "HEAD" {
                assert!(answer.ends_with("\r\n\r\n"), "{path}: {answer}");
            }
        }
    }
    let mut socket = TcpStream::connect(program.address()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
        .write_all(
            format!("HEAD / HTTP/1.1\r\n{own}\r\nGET /clients HTTP/1.1\r\n{own}\r\n").as_bytes(),
        )
        .unwrap();
    let mut both = [0; 4096];
    let mut len = 0;
    while !both[..len].ends_with(b"}\n") {
        let n = socket.read(&mut both[len..]).unwrap();
        assert!(n > 0);
        len += n;
    }
    let both = String::from_utf8_lossy(&both[..len]);
    assert_eq!(
        both.matches("HTTP/1.1 200 OK").count(),
        2,
        "the answer to HEAD has no body: {both}"
    );
    assert!(!both.contains("<!doctype"), "{both}");
}

#[test]
fn missing_upgrade_names_the_proxy_as_a_cause() {
    let program = Program::start(&[]);
    for path in ["/", "/room", "/events", "/clients", "/ready"] {
        // How nginx forwards a handshake when it is not configured for WebSocket.
        for version in ["1.0", "1.1"] {
            let mut socket = TcpStream::connect(program.address()).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            let request = format!(
                "GET {path} HTTP/{version}\r\nHost: {}\r\nConnection: close\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                program.address()
            );
            socket.write_all(request.as_bytes()).unwrap();
            let answer = read_answer(&mut socket, false);
            assert_eq!(status(&answer), 426, "{path}: {answer}");
            assert_eq!(header(&answer, "Upgrade"), Some("websocket"), "{answer}");
            assert_eq!(
                header(&answer, "Sec-WebSocket-Version"),
                Some("13"),
                "{answer}"
            );
            assert!(
                answer.contains("a proxy in front of this server"),
                "{answer}"
            );
        }
    }
}

#[test]
fn refused_origin_names_both_options() {
    let program = Program::start(&[]);
    // A proxy that sets Host to the name of its backend.
    let lines = format!("{}Origin: https://live.example\r\n", host(&program));
    let handshake = ask(&program, "GET /", &format!("{lines}{HANDSHAKE}"));
    let check = ask(
        &program,
        "POST /check",
        &format!("{lines}Sec-Fetch-Site: same-origin\r\nContent-Length: 0\r\n"),
    );
    let words = |answer: &str| answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    for answer in [&handshake, &check] {
        assert_eq!(status(answer), 403, "{answer}");
        let words = words(answer);
        assert!(words.contains("the Host header"), "{words}");
        assert!(
            words.contains("--allow-origin https://live.example"),
            "{words}"
        );
    }
    assert_eq!(words(&handshake), words(&check));
}

#[test]
fn listed_file_and_opaque_origins_are_accepted() {
    let origins = [
        "file://",
        "null",
        "https://a.example/path",
        "http://LOCALHOST:1/",
    ];
    for (listed, let_in) in [
        ("file://", "file://"),
        ("null", "null"),
        ("https://a.example", "https://a.example/path"),
    ] {
        let program = Program::start(&["--allow-origin", listed]);
        for origin in origins {
            let lines = format!("{}Origin: {origin}\r\n{HANDSHAKE}", host(&program));
            let expected = if origin == let_in { 101 } else { 403 };
            assert_eq!(
                status(&ask(&program, "GET /", &lines)),
                expected,
                "{listed}: {origin}"
            );
        }
    }
}

#[test]
fn ambiguous_heads_and_paths_are_refused() {
    let program = Program::start(&["--publish-token=x"]);
    let own = host(&program);
    let token = "Authorization: Bearer x\r\n";
    for (line, lines) in [
        ("GET /#room", own.clone()),
        ("GET /../etc/passwd", own.clone()),
        ("GET /clients/%2e%2e%2fpasswd", own.clone()),
        ("GET /clients/a%00", own.clone()),
        ("GET /clients\\x", own.clone()),
        (
            "POST /publish",
            format!("{own}{token}{token}Content-Length: 0\r\n"),
        ),
        (
            "POST /publish",
            format!("{own}Authorization: Bearer y\r\n{token}Content-Length: 0\r\n"),
        ),
        ("GET /", format!("{own}Origin: null\r\nOrigin: null\r\n")),
        ("GET /", format!("{own}X: a\nY: b\r\n")),
        ("GET /", format!("{own}X: a\rY: b\r\n")),
        ("GET /", format!("{own} X: folded\r\n")),
        ("GET /", format!("{own}X : b\r\n")),
    ] {
        let answer = ask(&program, line, &lines);
        assert_eq!(status(&answer), 400, "{line} {lines:?}: {answer}");
        let answer = ask(&program, line, &format!("{lines}{HANDSHAKE}"));
        assert_eq!(status(&answer), 400, "{line} {lines:?}: {answer}");
    }
}

#[test]
fn max_connections_over_descriptors_is_lowered_at_start() {
    let mut program = Program::start(&["--max-connections", "999999999"]);
    let said = program.expect_line("--max-connections");
    assert!(
        said.contains("999999999") && said.contains("open files"),
        "{said}"
    );
}

#[test]
fn refusal_suggests_only_options_of_the_program() {
    let mut program = Program::start(&["--metrics", "127.0.0.1:0"]);
    let line = program.expect_line("metrics");
    let metrics = line.rsplit("http://").next().unwrap();
    let metrics = metrics.strip_suffix("/metrics").unwrap().to_owned();
    for address in [program.address().to_string(), metrics] {
        for (host, origin, advice) in [
            (
                "localhost",
                "http://a.example/page?q",
                "--allow-origin http://a.example\n",
            ),
            ("localhost", "file:///page.html", "--allow-origin file://\n"),
            ("localhost", "null", "--allow-origin null\n"),
            ("a.example:80", "null", "--allow-host a.example\n"),
            ("[::1", "null", "not a host"),
            ("", "null", "is not a host name"),
            ("a,b", "null", "is not a host name"),
            ("localhost:99999", "null", "is not a host name"),
            ("localhost", "", "is not an origin"),
            ("localhost", "a.example", "is not an origin"),
            (
                "localhost",
                "http://a.example, http://b.example",
                "is not an origin",
            ),
        ] {
            let mut socket = TcpStream::connect(&address).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            let request =
                format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n\r\n");
            socket.write_all(request.as_bytes()).unwrap();
            let answer = read_answer(&mut socket, false);
            assert!([400, 403].contains(&status(&answer)), "{answer}");
            assert!(answer.contains(advice), "{host} {origin}: {answer}");
            if let Some((_, option)) = answer.trim_end().split_once(": --") {
                let arguments = format!("--{option}");
                let arguments = arguments.split(' ').chain(["--listen=192.0.2.1:0"]);
                let (code, _, said) = support::run(&arguments.collect::<Vec<_>>());
                assert_eq!(code, 1, "{option}: {said}");
                assert!(said.contains("listen"), "{option}: {said}");
            }
        }
    }
}

#[test]
fn invalid_option_value_exits_with_2() {
    for arguments in [
        ["--allow-origin", "a.example"],
        ["--allow-host", "https://a.example"],
        ["--trusted-proxy", "a.example"],
        ["--publish-token", "two words"],
        ["--metrics", "localhost"],
    ] {
        let arguments = [arguments[0], arguments[1], "--listen=127.0.0.1:0"];
        let (code, out, said) = support::run(&arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    }
}
