use super::*;

/// Parses a whole head, and asserts that each proper prefix is incomplete.
fn parse(request: &str) -> Result<Head, HttpError> {
    parse_bytes(request.as_bytes())
}

fn parse_bytes(request: &[u8]) -> Result<Head, HttpError> {
    let whole = match parse_head(request, 64 * 1024)? {
        Parsed::Complete { head, head_bytes } => {
            assert_eq!(head_bytes, request.len());
            head
        }
        Parsed::Incomplete => panic!("incomplete: {}", String::from_utf8_lossy(request)),
    };
    for end in 0..request.len() {
        let cut = parse_head(&request[..end], 64 * 1024);
        assert!(matches!(cut, Ok(Parsed::Incomplete)), "{end} {cut:?}");
    }
    Ok(whole)
}

/// Parses the head of a GET request over HTTP/1.1 with these header lines.
fn with(lines: &str) -> Head {
    parse(&format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n")).unwrap()
}

/// Parses the head of an HTTP/1.0 request with these header lines.
fn with_old(lines: &str) -> Head {
    parse(&format!("GET / HTTP/1.0\r\n{lines}\r\n")).unwrap()
}

fn is_bad<T>(result: Result<T, HttpError>) -> bool {
    matches!(result, Err(HttpError::BadRequest(_)))
}

#[test]
fn head_is_parsed_into_its_parts() {
    let head =
        parse("POST /chat?room=1?2 HTTP/1.1\r\nHost: a:80\r\nX-A:  1 \t\r\nx-a: 2\r\nE:\r\n\r\n")
            .unwrap();
    assert_eq!((head.method.as_str(), head.minor_version), ("POST", 1));
    assert_eq!(head.target, "/chat?room=1?2");
    assert_eq!((head.path(), head.query()), ("/chat", "room=1?2"));
    assert_eq!(head.header("x-A"), Some("1"));
    assert_eq!(head.header_values("X-a").collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(head.header("E"), Some(""));
    assert_eq!(head.header("absent"), None);
    let pairs: Vec<_> = head.pairs().collect();
    assert_eq!(
        pairs,
        [("Host", "a:80"), ("X-A", "1"), ("x-a", "2"), ("E", "")]
    );
    let head = with("");
    assert_eq!((head.path(), head.query()), ("/", ""));
}

#[test]
fn bytes_after_the_head_are_not_counted() {
    let request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut buf = request.to_vec();
    buf.extend_from_slice(&[0xFF; 100]);
    let Ok(Parsed::Complete { head_bytes, .. }) = parse_head(&buf, request.len()) else {
        panic!()
    };
    assert_eq!(head_bytes, request.len());
}

#[test]
fn empty_lines_before_the_request_are_skipped() {
    // RFC 9112 §2.2
    assert_eq!(
        parse("\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n")
            .unwrap()
            .target,
        "/x"
    );
}

#[test]
fn oversized_head_is_refused_complete_or_not() {
    let request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let max = request.len();
    assert!(matches!(
        parse_head(request, max),
        Ok(Parsed::Complete { .. })
    ));
    assert_eq!(
        parse_head(request, max - 1).unwrap_err(),
        HttpError::HeadTooLarge
    );
    assert!(matches!(
        parse_head(&request[..10], 10),
        Ok(Parsed::Incomplete)
    ));
    assert_eq!(
        parse_head(&request[..11], 10).unwrap_err(),
        HttpError::HeadTooLarge
    );
    assert_eq!(
        parse_head(&b"\r\n".repeat(50), 64).unwrap_err(),
        HttpError::HeadTooLarge
    );
}

#[test]
fn more_than_a_hundred_headers_are_refused() {
    let lines = "a: b\r\n".repeat(HEADERS_MAX - 1);
    assert_eq!(with(&lines).headers.len(), HEADERS_MAX);
    let request = format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}c: d\r\n\r\n");
    assert_eq!(parse(&request).unwrap_err(), HttpError::HeadTooLarge);
}

#[test]
fn malformed_request_is_refused() {
    for request in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03"[..],
        b"GET /\r\nHost: h\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTPT/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/x.y\r\nHost: h\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/1.1\r\n: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n folded: line\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n",
    ] {
        assert!(
            is_bad(parse_bytes(request)),
            "{}",
            String::from_utf8_lossy(request)
        );
    }
}

#[test]
fn unsupported_http_version_is_answered_with_505() {
    // RFC 9112 §2.3, RFC 9110 §15.6.6
    for version in ["2.0", "3.0", "1.2", "0.9"] {
        let request = format!("GET / HTTP/{version}\r\nHost: h\r\n\r\n");
        assert_eq!(
            parse(&request).unwrap_err(),
            HttpError::UnsupportedVersion,
            "{version}"
        );
    }
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    assert_eq!(
        parse_bytes(preface).unwrap_err(),
        HttpError::UnsupportedVersion
    );
}

#[test]
fn host_missing_repeated_or_invalid_is_refused() {
    // RFC 9112 §3.2
    let host = |lines: &str| parse(&format!("GET / HTTP/1.1\r\n{lines}\r\n"));
    for legal in ["h", "h:80", "[::1]:80", "127.0.0.1", ""] {
        assert!(host(&format!("host: {legal}\r\n")).is_ok(), "{legal}");
    }
    for illegal in ["a b", "user@h", "h/x", "h?x", "h#x", "ü"] {
        assert!(is_bad(host(&format!("Host: {illegal}\r\n"))), "{illegal}");
    }
    assert!(is_bad(host("")));
    assert!(is_bad(host("Host: h\r\nHost: h\r\n")));
    assert!(parse("GET / HTTP/1.0\r\n\r\n").is_ok());
    assert!(is_bad(parse(
        "GET / HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n"
    )));
}

#[test]
fn absolute_target_is_reduced_and_replaces_host() {
    // RFC 9112 §3.2.2
    for (target, expected) in [
        ("http://other:81/a/b?c=d", "/a/b?c=d"),
        ("HTTPS://other:81", "/"),
        ("ws://other:81?q=/x", "/?q=/x"),
        ("wss://other:81/", "/"),
    ] {
        let head = parse(&format!("GET {target} HTTP/1.1\r\nhost: h\r\n\r\n")).unwrap();
        assert_eq!(head.target, expected);
        assert_eq!(head.header("Host"), Some("other:81"));
    }
    for target in [
        "http://",
        "http:///x",
        "http://u@h/",
        "ftp://h/",
        "x",
        "?",
        "*",
        "h:80",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(is_bad(parse(&request)), "{target}");
    }
    for (method, target) in [("OPTIONS", "*"), ("CONNECT", "h:80"), ("GET", "/http://x")] {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(parse(&request).unwrap().target, target);
    }
}

#[test]
fn value_not_utf8_is_decoded_as_latin_1() {
    let head = parse_bytes(b"GET / HTTP/1.1\r\nHost: h\r\nA: gr\xFCn\r\nB: \xC3\xBC\r\n\r\n");
    let head = head.unwrap();
    assert_eq!(head.header("a"), Some("grün"));
    assert_eq!(head.header("b"), Some("ü"));
}

#[test]
fn keep_alive_is_default_in_1_1_and_optional_in_1_0() {
    // RFC 9112 §9.3
    for (lines, new, old) in [
        ("", true, false),
        ("Connection: keep-alive\r\n", true, true),
        ("connection: x, Keep-Alive\r\n", true, true),
        ("Connection: CLOSE\r\n", false, false),
        ("Connection: keep-alive, close\r\n", false, false),
        ("Connection: x\r\nConnection: ,close ,\r\n", false, false),
        ("Connection: closed\r\n", true, false),
    ] {
        assert_eq!(with(lines).keep_alive(), new, "{lines}");
        assert_eq!(with_old(lines).keep_alive(), old, "{lines}");
    }
}

#[test]
fn expectation_other_than_100_continue_is_refused() {
    // RFC 9110 §10.1.1
    assert_eq!(with("").expects_continue(), Ok(false));
    assert_eq!(
        with("Expect: 100-Continue\r\n").expects_continue(),
        Ok(true)
    );
    assert_eq!(
        with_old("Expect: 100-continue\r\n").expects_continue(),
        Ok(false)
    );
    for lines in [
        "Expect: x\r\n",
        "Expect: 100-continue, x\r\n",
        "Expect: 100-continue=1\r\n",
    ] {
        assert_eq!(
            with(lines).expects_continue(),
            Err(HttpError::ExpectationFailed),
            "{lines}"
        );
    }
}

#[test]
fn content_length_not_one_number_is_refused() {
    // RFC 9110 §8.6, RFC 9112 §6.3
    let framing = |lines: &str| with(lines).body_framing();
    assert_eq!(framing(""), Ok(BodyFraming::None));
    for (lines, length) in [
        ("Content-Length: 0\r\n", 0),
        ("content-length: 0042\r\n", 42),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", 5),
        ("Content-Length: 5, 5\r\n", 5),
        ("Content-Length: 18446744073709551615\r\n", u64::MAX),
    ] {
        assert_eq!(framing(lines), Ok(BodyFraming::Length(length)), "{lines}");
    }
    for value in [
        "", "x", "-1", "+1", "5 5", "0x5", "5,", ",5", "5;", "1.0", "5, 6", "٣",
    ] {
        assert!(
            is_bad(framing(&format!("Content-Length: {value}\r\n"))),
            "{value}"
        );
    }
    assert!(is_bad(framing(
        "Content-Length: 5\r\nContent-Length: 6\r\n"
    )));
    let huge = framing("Content-Length: 18446744073709551616\r\n");
    assert_eq!(huge, Err(HttpError::BodyTooLarge));
}

#[test]
fn transfer_coding_other_than_chunked_alone_is_refused() {
    // RFC 9112 §6.1, §6.3
    let framing = |lines: &str| with(lines).body_framing();
    assert_eq!(
        framing("Transfer-Encoding: Chunked\r\n"),
        Ok(BodyFraming::Chunked)
    );
    for value in [
        "gzip",
        "gzip, chunked",
        "chunked, chunked",
        "",
        "chunked;q=1",
        "xchunked",
    ] {
        let framing = framing(&format!("Transfer-Encoding: {value}\r\n"));
        assert_eq!(
            framing,
            Err(HttpError::UnsupportedTransferCoding),
            "{value}"
        );
    }
    let twice = "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n";
    assert_eq!(framing(twice), Err(HttpError::UnsupportedTransferCoding));
    assert!(is_bad(framing(
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    )));
    assert!(is_bad(framing(
        "Transfer-Encoding: x\r\nContent-Length: 0\r\n"
    )));
    assert!(is_bad(
        with_old("Transfer-Encoding: chunked\r\n").body_framing()
    ));
}

#[test]
fn response_has_status_headers_and_body() {
    let out = response(
        200,
        &[("Content-Type", "text/plain")],
        b"hi",
        Persistence::KeepAlive,
        BodyMode::Full,
    );
    let expected = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    let out = response(404, &[], b"no", Persistence::Close, BodyMode::HeadOnly);
    let expected = "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    assert_eq!(
        response(299, &[], b"", Persistence::KeepAlive, BodyMode::Full),
        b"HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n"
    );
}

#[test]
fn bodiless_status_has_no_content_length() {
    // RFC 9110 §8.6
    for status in [100, 101, 103, 204, 304] {
        let out = String::from_utf8(response(
            status,
            &[],
            b"body",
            Persistence::KeepAlive,
            BodyMode::Full,
        ))
        .unwrap();
        assert_eq!(
            out,
            format!("HTTP/1.1 {status} {}\r\n\r\n", reason_phrase(status))
        );
    }
}

#[test]
fn headers_that_break_the_framing_are_dropped() {
    let evil = [
        ("A", "b\r\nSet-Cookie: x"),
        ("A", "b\nc"),
        ("A", "b\rc"),
        ("A", "b\0c"),
        ("A\r\nB", "c"),
        ("A: b", "c"),
        ("A b", "c"),
        ("A\0", "c"),
        ("Ä", "c"),
        ("", "c"),
        ("content-length", "7"),
        ("Transfer-Encoding", "chunked"),
    ];
    for header in evil {
        let out = response(
            200,
            &[header, ("Good", "täglich")],
            b"",
            Persistence::KeepAlive,
            BodyMode::Full,
        );
        let out = String::from_utf8(out).unwrap();
        let expected = "HTTP/1.1 200 OK\r\nGood: täglich\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(out, expected, "{header:?}");
    }
}

#[test]
fn wrong_version_gives_the_same_error_at_every_cut() {
    for line in [
        "GET /chat HTTP/1Sec-WebSocket-Key: dGhl=\r\n",
        "GET / HTTP/2.0 and more\r\n",
        "GET / HTCPCP/1.0 HTTP/2\r\n",
        "GET / FTP HTTP/1.0\r\n",
    ] {
        let whole = parse(line).unwrap_err();
        for end in 1..line.len() {
            match parse_head(&line.as_bytes()[..end], 1_000) {
                Ok(parsed) => assert!(matches!(parsed, Parsed::Incomplete)),
                Err(error) => assert_eq!(error, whole, "{:?}", &line[..end]),
            }
        }
    }
}

#[test]
fn every_error_has_a_status_and_a_message() {
    let errors = [
        (HttpError::BadRequest("because"), 400),
        (HttpError::HeadTooLarge, 431),
        (HttpError::BodyTooLarge, 413),
        (HttpError::UnsupportedTransferCoding, 501),
        (HttpError::UnsupportedVersion, 505),
        (HttpError::ExpectationFailed, 417),
    ];
    for (error, status) in errors {
        assert_eq!(error.status(), status);
        assert!(!reason_phrase(status).is_empty());
        assert!(!error.to_string().is_empty());
    }
    assert_eq!(HttpError::BadRequest("because").to_string(), "because");
}

#[test]
fn reason_phrases_match_the_registry() {
    assert_eq!(reason_phrase(200), "OK");
    assert_eq!(reason_phrase(299), "");
    assert_eq!(reason_phrase(426), "Upgrade Required");
    assert!(CONTINUE.starts_with(b"HTTP/1.1 100 Continue\r\n"));
}

#[test]
fn garbage_never_panics_and_refusals_are_final() {
    let seed = b"GET http://h/a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: x\r\n\r\n";
    for at in 0..seed.len() {
        for byte in [
            0, b'\r', b'\n', b' ', b':', b',', b'/', b'9', 0x7F, 0x80, 0xFF,
        ] {
            let mut request = seed.to_vec();
            request[at] = byte;
            let whole = parse_head(&request, 100);
            if let Ok(Parsed::Complete { head, .. }) = &whole {
                let _ = (
                    head.keep_alive(),
                    head.expects_continue(),
                    head.body_framing(),
                );
            }
            for end in 0..request.len() {
                // A prefix may be undecided, but a refusal is final.
                if parse_head(&request[..end], 100).is_err() {
                    assert!(whole.is_err(), "{at} {byte} {end}");
                }
            }
        }
    }
}

#[test]
fn bare_line_end_is_refused_anywhere() {
    // RFC 9112 §2.2, §11.2
    for request in [
        "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "\r\n\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nA: b\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nA:\nB: c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n\n",
        "GET / HTTP/1.1\nHost: h\n\n",
        "GET / HTTP/1.1\r\nHost: h\r\nA: b\rB: c\r\n\r\n",
        "GET / HTTP/1.1\rHost: h\r\n\r\n",
        "\rGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\n\rHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n\r\r\n",
    ] {
        let parsed = parse_head(request.as_bytes(), 1024);
        assert!(is_bad(parsed), "{request:?}");
    }
    // The refusal comes as soon as the bare line end arrives, not only at the end of the head.
    let begun = b"GET / HTTP/1.1\r\nHost: h\r\nA: b\nC: d";
    assert!(is_bad(parse_head(begun, 1024)));
    assert!(matches!(parse_head(b"", 1024), Ok(Parsed::Incomplete)));
}

#[test]
fn target_with_non_uri_character_is_refused() {
    // RFC 9112 §3.2, RFC 3986 §3.3, §3.4
    let parsed = |target: &str| parse(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
    for bad in [
        "/#room",
        "/#",
        "/a?b#c",
        "http://h#x",
        "http://h/#x",
        "/\"",
        "/<a>",
        "/a\\b",
        "/{a}",
        "/`",
        "/ü",
        "/a?<b>",
        "/a?\"b\"",
        "/a?ü",
        "/a\x7f",
        "\\",
        "#",
    ] {
        assert!(is_bad(parsed(bad)), "{bad}");
    }
    for good in [
        "/-._~!$&'()*+,;=:@",
        "/%C3%BC",
        "/100%",
        "/a|b^c[d]",
        "/a?b={c}&d=`e`|\\^[f]/?",
        "//",
        "/a//b",
    ] {
        assert_eq!(parsed(good).unwrap().target, good);
    }
}

#[test]
fn dot_segment_or_nul_is_refused_in_any_encoding() {
    let parsed = |target: &str| parse(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
    for bad in [
        "/..",
        "/.",
        "/../",
        "/./a",
        "/a/../b",
        "/a/..",
        "/a/.?b",
        "/..?b",
        "/%2e%2e",
        "/%2E.",
        "/.%2e/a",
        "/%2e",
        "/a/..%2fb",
        "/a%2f..%2fb",
        "/a%2F..",
        "/..%5cb",
        "/a%5C..%5cb",
        "/a%5c.",
        "/%00",
        "/a%00.html",
        "http://h/../a",
        "http://h/%2e%2e/a",
    ] {
        assert!(is_bad(parsed(bad)), "{bad}");
    }
    for good in [
        "/...",
        "/..a",
        "/a..",
        "/.a",
        "/a.",
        "/%2e%2e%2e",
        "/a%2fb",
        "/a%5Cb",
        "/a?../b",
        "/a?x=%00",
        "/%252e%252e",
        "/%",
        "/%2",
        "/.%",
        "/..%2",
        "/.hidden/..a",
    ] {
        assert!(parsed(good).is_ok(), "{good}");
    }
}

#[test]
fn target_form_must_match_the_method() {
    // RFC 9112 §3.2.1 to §3.2.4
    let parsed = |method: &str, target: &str, host: &str| {
        parse(&format!(
            "{method} {target} HTTP/1.{}\r\n{host}\r\n",
            u8::from(!host.is_empty())
        ))
    };
    let host = "Host: h\r\n";
    for (method, target) in [
        ("CONNECT", "/"),
        ("CONNECT", "/h:80"),
        ("CONNECT", "h"),
        ("CONNECT", "h:"),
        ("CONNECT", "h:x"),
        ("CONNECT", "http://h:80/"),
        ("CONNECT", "*"),
        ("CONNECT", "u@h:80"),
        ("GET", "*"),
        ("GET", "h:80"),
        ("OPTIONS", "**"),
        ("POST", "*"),
    ] {
        assert!(is_bad(parsed(method, target, host)), "{method} {target}");
    }
    assert_eq!(
        parsed("CONNECT", "[::1]:80", host).unwrap().target,
        "[::1]:80"
    );
    assert_eq!(parsed("OPTIONS", "http://h", host).unwrap().target, "*");
    assert_eq!(parsed("OPTIONS", "http://h/", host).unwrap().target, "/");
    // This HTTP/1.0 request has no `Host`, so the target's host is used.
    let head = parsed("GET", "http://other:81/a", "").unwrap();
    assert_eq!(
        (head.target.as_str(), head.header("Host")),
        ("/a", Some("other:81"))
    );
}

#[test]
fn repeated_singleton_header_is_refused() {
    let repeated = |name: &str| {
        let name = name.to_ascii_lowercase();
        parse(&format!(
            "GET / HTTP/1.1\r\nHost: h\r\n{name}: a\r\nX: y\r\n{name}: a\r\n\r\n"
        ))
    };
    for name in [
        "Host",
        "Authorization",
        "Proxy-Authorization",
        "Origin",
        "Referer",
        "Sec-Fetch-Site",
        "Sec-Fetch-Mode",
        "Sec-Fetch-Dest",
        "Content-Type",
        "Last-Event-ID",
        "Range",
        "If-Modified-Since",
        "If-Unmodified-Since",
    ] {
        assert!(is_bad(repeated(name)), "{name}");
    }
    for name in [
        "Cookie",
        "Accept",
        "X-Forwarded-For",
        "Sec-WebSocket-Protocol",
        "Connection",
    ] {
        assert!(repeated(name).is_ok(), "{name}");
    }
}

#[test]
fn malformed_host_is_refused() {
    let host = |host: &str| parse(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    for good in [
        "h:",
        "a_b.example",
        "[fe80::1%25eth0]:80",
        "127.0.0.1:80",
        "xn--bcher-kva.example.",
    ] {
        assert!(host(good).is_ok(), "{good}");
    }
    for bad in [
        "h:x", "h:80:81", "::1", "[::1", "[]", "[::1]x", "h|i", "[::1]:+1", "a{b}", "`",
    ] {
        assert!(is_bad(host(bad)), "{bad}");
    }
}
