use super::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Returns the headers of the request in RFC 6455 §1.3.
fn request() -> Vec<(&'static str, &'static str)> {
    vec![
        ("Host", "server.example.com"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", KEY),
        ("Origin", "http://example.com"),
        ("Sec-WebSocket-Protocol", "chat, superchat"),
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
        ("Sec-WebSocket-Version", "13"),
    ]
}

fn check_all(headers: &[(&str, &str)]) -> Result<ValidHandshake, HandshakeRefusal> {
    check("GET", 1, headers.iter().copied())
}

/// Checks the request of the RFC with other values for one header, each on its own line. No values remove the header.
fn with(name: &str, values: &[&str]) -> Result<ValidHandshake, HandshakeRefusal> {
    let sample = request();
    let mut headers: Vec<(&str, &str)> = sample
        .iter()
        .copied()
        .filter(|(known, _)| *known != name)
        .collect();
    headers.extend(values.iter().map(|value| (name, *value)));
    check_all(&headers)
}

#[test]
fn rfc_example_is_accepted() {
    // RFC 6455 §1.3
    let handshake = check_all(&request()).unwrap();
    assert_eq!(handshake.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    assert_eq!(String::from_utf8(response(&handshake)).unwrap(), expected);
}

#[test]
fn plain_is_selected_if_offered_and_no_other_is() {
    for (offered, expected) in [
        (&[][..], None),
        (&["chat, superchat"][..], None),
        (&["chat", PLAIN][..], Some(PLAIN)),
        (&["chat,, humphrey_ws.plain.v1 ,x"][..], Some(PLAIN)),
        (&["Humphrey_ws.plain.v1"][..], None),
        (&["humphrey_ws.plain.v10"][..], None),
    ] {
        let handshake = with("Sec-WebSocket-Protocol", offered).unwrap();
        let chosen = |headers: Vec<(&str, &str)>| -> Vec<String> {
            let lines = headers.into_iter();
            let chosen = lines.filter(|(name, _)| *name == "Sec-WebSocket-Protocol");
            chosen.map(|(_, value)| value.to_owned()).collect()
        };
        let expected: Vec<_> = expected.into_iter().collect();
        assert_eq!(chosen(handshake.headers(None)), expected, "{offered:?}");
        assert_eq!(chosen(handshake.headers(Some("chat"))), ["chat"]);
    }
}

#[test]
fn names_and_tokens_ignore_case() {
    let lower: Vec<(String, &str)> = request()
        .into_iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    assert!(
        check(
            "GET",
            1,
            lower.iter().map(|(name, value)| (name.as_str(), *value))
        )
        .is_ok()
    );
}

#[test]
fn upgrade_is_a_list_across_lines() {
    // RFC 9110 §7.8
    for values in [
        &["WebSocket"][..],
        &["websocket, h2c"],
        &["h2c ,\tWEBSOCKET"],
        &["h2c", "websocket"],
        &["websocket/13"],
        &[" websocket "],
    ] {
        assert!(with("Upgrade", values).is_ok(), "{values:?}");
    }
    for values in [
        &[][..],
        &[""],
        &["h2c"],
        &["websockets"],
        &["h2c/websocket"],
        &["web socket"],
    ] {
        assert_eq!(
            with("Upgrade", values),
            Err(HandshakeRefusal::UpgradeStripped),
            "{values:?}"
        );
    }
}

#[test]
fn connection_is_a_list_across_lines() {
    // RFC 6455 §4.2.1 item 4
    for values in [
        &["upgrade"][..],
        &["keep-alive, Upgrade"],
        &["keep-alive", "UPGRADE"],
    ] {
        assert!(with("Connection", values).is_ok(), "{values:?}");
    }
    for values in [&[][..], &["keep-alive"], &["upgraded"]] {
        assert_eq!(
            with("Connection", values),
            Err(HandshakeRefusal::Connection),
            "{values:?}"
        );
    }
}

#[test]
fn request_line_other_than_get_http_1_1_is_refused() {
    let headers = request();
    let line = |method, minor| check(method, minor, headers.iter().copied());
    for method in ["POST", "HEAD", "get", ""] {
        assert_eq!(line(method, 1), Err(HandshakeRefusal::Method), "{method}");
    }
    assert_eq!(line("GET", 0), Err(HandshakeRefusal::HttpVersion));
}

#[test]
fn request_without_upgrade_is_reported_as_ordinary() {
    assert_eq!(
        check("POST", 0, std::iter::empty()),
        Err(HandshakeRefusal::NotAnUpgrade)
    );
}

#[test]
fn missing_host_is_refused() {
    // RFC 6455 §4.2.1 item 2
    assert_eq!(with("Host", &[]), Err(HandshakeRefusal::HostMissing));
}

#[test]
fn key_not_sixteen_bytes_in_base64_is_refused() {
    // RFC 6455 §4.2.1 item 5, §11.3.1
    assert_eq!(
        with("Sec-WebSocket-Key", &[]),
        Err(HandshakeRefusal::KeyMissing)
    );
    assert_eq!(
        with("Sec-WebSocket-Key", &[KEY, KEY]),
        Err(HandshakeRefusal::KeyRepeated)
    );
    let trimmed = with("Sec-WebSocket-Key", &[" \tdGhlIHNhbXBsZSBub25jZQ== \t"]).unwrap();
    assert_eq!(trimmed, check_all(&request()).unwrap());
    for key in [
        "AAAAAAAAAAAAAAAAAAAAAA==",
        "+/+/+/+/+/+/+/+/+/+/+w==",
        "abcdefghijklmnopqrstuv==",
    ] {
        assert!(with("Sec-WebSocket-Key", &[key]).is_ok(), "{key}");
    }
    for key in [
        "",
        "short",
        "AAAAAAAAAAAAAAAAAAAAAA",
        "AAAAAAAAAAAAAAAAAAAAAAA=",
        "AAAAAAAAAAAAAAAAAAAAAAAA",
        "AAAAAAAAAAAAAAAAAAAAAAAA==",
        "AAAAAAAAAAAAAAAAAAAA====",
        "AAAAAAAAAA AAAAAAAAAAA==",
        "-_-_-_-_-_-_-_-_-_-_-w==",
        "ÄAAAAAAAAAAAAAAAAAAAA==",
    ] {
        assert_eq!(
            with("Sec-WebSocket-Key", &[key]),
            Err(HandshakeRefusal::KeyInvalid),
            "{key}"
        );
    }
}

#[test]
fn version_other_than_13_is_refused() {
    // RFC 6455 §4.2.1 item 6, §4.4
    let version = |values: &[&str]| with("Sec-WebSocket-Version", values);
    assert!(version(&[" 13 "]).is_ok());
    assert_eq!(version(&[]), Err(HandshakeRefusal::VersionMissing));
    assert_eq!(
        version(&["13", "13"]),
        Err(HandshakeRefusal::VersionRepeated)
    );
    for value in ["", "8", "12", "14", "013", "13, 8", "x"] {
        assert_eq!(
            version(&[value]),
            Err(HandshakeRefusal::VersionUnsupported),
            "{value}"
        );
    }
}

#[test]
fn nonempty_body_is_refused() {
    assert!(with("Content-Length", &["0"]).is_ok());
    for value in ["1", "0, 5", "x"] {
        assert_eq!(
            with("Content-Length", &[value]),
            Err(HandshakeRefusal::Body),
            "{value}"
        );
    }
    assert_eq!(
        with("Content-Length", &["0", "7"]),
        Err(HandshakeRefusal::Body)
    );
    assert_eq!(
        with("Transfer-Encoding", &["chunked"]),
        Err(HandshakeRefusal::Body)
    );
}

#[test]
fn every_refusal_has_a_message_and_required_headers() {
    let all = [
        HandshakeRefusal::NotAnUpgrade,
        HandshakeRefusal::UpgradeStripped,
        HandshakeRefusal::Method,
        HandshakeRefusal::HttpVersion,
        HandshakeRefusal::HostMissing,
        HandshakeRefusal::Connection,
        HandshakeRefusal::VersionMissing,
        HandshakeRefusal::VersionRepeated,
        HandshakeRefusal::VersionUnsupported,
        HandshakeRefusal::KeyMissing,
        HandshakeRefusal::KeyRepeated,
        HandshakeRefusal::KeyInvalid,
        HandshakeRefusal::Body,
    ];
    let mut sentences = std::collections::HashSet::new();
    for reason in all {
        let out = String::from_utf8(refusal(reason, BodyMode::Full)).unwrap();
        let (head, body) = out.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {} ", reason.status())),
            "{head}"
        );
        assert!(head.contains("\r\nConnection: close"), "{head}");
        assert!(
            head.contains(&format!("\r\nContent-Length: {}", body.len())),
            "{head}"
        );
        assert_eq!(body, format!("{reason}\n"));
        assert!(sentences.insert(reason.to_string()));
        // RFC 9110 §15.5.22, §15.5.6; RFC 6455 §4.2.2 item 4, §4.4
        let upgrade = matches!(
            reason,
            HandshakeRefusal::NotAnUpgrade
                | HandshakeRefusal::UpgradeStripped
                | HandshakeRefusal::Connection
                | HandshakeRefusal::VersionMissing
                | HandshakeRefusal::VersionUnsupported
        );
        let allow = reason == HandshakeRefusal::Method;
        assert_eq!(reason.status() == 426, upgrade, "{reason:?}");
        assert_eq!(
            head.contains("\r\nUpgrade: websocket\r\nConnection: Upgrade"),
            upgrade
        );
        assert!(head.contains("\r\nSec-WebSocket-Version: 13"), "{reason:?}");
        assert_eq!(head.contains("\r\nAllow: GET"), allow);
        assert_eq!(reason.status() == 405, allow);
    }
}

#[test]
fn key_without_upgrade_blames_the_proxy() {
    // RFC 9110 §7.6.1: an intermediary removes `Connection` and the headers that it names.
    for (method, minor) in [("GET", 1), ("GET", 0), ("POST", 1)] {
        for left in [&[][..], &[("Connection", "close")], &[("Upgrade", "h2c")]] {
            let headers = [("Host", "h"), ("Sec-WebSocket-Key", KEY)];
            let headers = headers.iter().chain(left).copied();
            let refused = check(method, minor, headers);
            assert_eq!(
                refused,
                Err(HandshakeRefusal::UpgradeStripped),
                "{method} {left:?}"
            );
        }
    }
    for refusal in [
        HandshakeRefusal::UpgradeStripped,
        HandshakeRefusal::Connection,
    ] {
        assert!(
            refusal.to_string().contains("a proxy in front"),
            "{refusal}"
        );
    }
}
