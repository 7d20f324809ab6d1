use super::accept::check;
use super::*;
use crate::protocol::http;

fn decoded(query: &str, name: &str) -> Option<String> {
    RequestHead::new(format!("/?{query}")).query_param(name)
}

#[test]
fn parameter_is_decoded_as_browsers_encode_it() {
    assert_eq!(decoded("a=b", "a").as_deref(), Some("b"));
    assert_eq!(
        decoded("x=1&n%C3%A4me=a+b%2Bc%26d", "näme").as_deref(),
        Some("a b+c&d")
    );
    assert_eq!(
        decoded("a=1&a=2", "a").as_deref(),
        Some("1"),
        "the first counts"
    );
    assert_eq!(decoded("a&b=", "a").as_deref(), Some(""));
    assert_eq!(decoded("a&b=", "b").as_deref(), Some(""));
    assert_eq!(decoded("a=b=c", "a").as_deref(), Some("b=c"));
    assert_eq!(decoded("ab=1", "a"), None);
    assert_eq!(RequestHead::new("/").query_param("a"), None);
}

#[test]
fn malformed_escape_is_kept_and_invalid_utf8_is_replaced() {
    assert_eq!(decoded("a=100%", "a").as_deref(), Some("100%"));
    assert_eq!(decoded("a=%4", "a").as_deref(), Some("%4"));
    assert_eq!(decoded("a=%zz%41", "a").as_deref(), Some("%zzA"));
    assert_eq!(decoded("a=%+1", "a").as_deref(), Some("% 1"));
    assert_eq!(decoded("a=%ff!", "a").as_deref(), Some("\u{fffd}!"));
}

#[test]
fn cookie_is_found_among_others_and_unquoted() {
    let request = RequestHead::new("/")
        .with_header("cookie", "a=1;b = 2 ; ab=\"x=y\"; c")
        .with_header("Cookie", "a=3; d=4");
    assert_eq!(request.cookie("a"), Some("1"));
    assert_eq!(request.cookie("b"), Some("2"));
    assert_eq!(request.cookie("ab"), Some("x=y"));
    assert_eq!(request.cookie("d"), Some("4"));
    assert_eq!(request.cookie("c"), None);
    assert_eq!(request.cookie("A"), None, "names are case-sensitive");
}

#[test]
fn subprotocols_of_all_header_lines_are_listed_in_order() {
    let request = RequestHead::new("/")
        .with_header("Sec-WebSocket-Protocol", "b, a,,")
        .with_header("sec-websocket-protocol", "c");
    let offered: Vec<_> = request.subprotocols().collect();
    assert_eq!(offered, ["b", "a", "c"]);
}

#[test]
fn subprotocol_not_offered_cannot_be_chosen() {
    let request = RequestHead::new("/").with_header("Sec-WebSocket-Protocol", "chat, a@b");
    assert!(check(&request, Some("chat"), &[], None).is_ok());
    for wrong in ["Chat", "other", "", "a@b"] {
        assert!(check(&request, Some(wrong), &[], None).is_err(), "{wrong}");
    }
}

#[test]
fn header_with_line_end_or_of_the_handshake_is_refused() {
    let request = RequestHead::new("/");
    let one = |name: &str, value: &str| {
        check(&request, None, &[(name.to_owned(), value.to_owned())], None).is_ok()
    };
    assert!(one("Set-Cookie", "a=b; Path=/"));
    assert!(one("X-Name", "Jörg"));
    for (name, value) in [
        ("X", "a\r\nSet-Cookie: b"),
        ("X", "a\nb"),
        ("X", "a\0"),
        ("X\r\nY", "a"),
        ("X Y", "a"),
        ("", "a"),
        ("connection", "close"),
        ("Upgrade", "h2c"),
        ("SEC-WebSocket-Extensions", "permessage-deflate"),
        ("Sec-WebSocket-Protocol", "chat"),
        ("Transfer-Encoding", "chunked"),
    ] {
        assert!(!one(name, value), "{name}: {value}");
    }
}

#[test]
fn unsendable_rejection_becomes_an_internal_error() {
    assert_eq!(Reject::new(403).checked().status(), 403);
    assert_eq!(Reject::new(204).checked().status(), 204);
    for wrong in [
        Reject::new(101),
        Reject::new(99),
        Reject::new(1000),
        Reject::new(403).with_header("Location", "/\r\nX: y"),
        Reject::new(403).with_header("content-length", "0"),
    ] {
        assert_eq!(wrong.clone().checked().status(), 500, "{wrong:?}");
    }
}

#[test]
fn rejection_has_its_status_headers_and_body() {
    let reject = Reject::new(401)
        .with_header("WWW-Authenticate", "Bearer")
        .with_body("no token\nat all\n");
    let text = String::from_utf8(reject.response(http::BodyMode::Full)).unwrap();
    assert_eq!(
        text,
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Type: text/plain; charset=utf-8\r\n\
         X-Content-Type-Options: nosniff\r\nCross-Origin-Resource-Policy: same-origin\r\n\
         Content-Security-Policy: frame-ancestors 'none'\r\nContent-Length: 16\r\nConnection: close\r\n\r\nno token\nat all\n"
    );
    assert_eq!(reject.to_string(), "401 no token");
    assert_eq!(Reject::new(403).to_string(), "403 Forbidden");
    let json = Reject::new(400)
        .with_header("content-type", "application/json")
        .with_body("{}");
    assert_eq!(json.all_headers()[0], ("content-type", "application/json"));
    assert_eq!(json.all_headers()[1..], http::SAFE_HEADERS);
    let own = Reject::new(403).with_header("content-security-policy", "default-src 'none'");
    assert_eq!(own.all_headers().len(), http::SAFE_HEADERS.len());
}

#[test]
fn rejected_handshake_names_the_version_once() {
    let versions = |reject: Reject| -> Vec<String> {
        let reject = reject.for_handshake();
        let headers = reject.headers();
        let versions =
            headers.filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-version"));
        versions.map(|(_, value)| value.to_owned()).collect()
    };
    assert_eq!(versions(Reject::new(403)), ["13"]);
    let own = Reject::new(426).with_header("sec-websocket-version", "13, 8");
    assert_eq!(versions(own), ["13, 8"]);
}

#[test]
fn debug_output_of_a_request_hides_secrets() {
    let request = RequestHead::new("/a?token=secret").with_header("Cookie", "session=secret");
    assert!(!format!("{request:?}").contains("secret"));
}
