use super::*;

const HEAD_MAX: usize = 1 << 12;
const BODY_MAX: usize = 16;

/// Parses a response that arrives in pieces of this size, and then ends the input.
fn read_in(text: &str, size: usize) -> Result<Option<HttpReply>, ReplyError> {
    let mut reader = ReplyReader::new(HEAD_MAX, BODY_MAX);
    let mut pieces = text.as_bytes().chunks(size);
    while let Some(piece) = pieces.next() {
        if let Some(mut reply) = reader.read(piece)? {
            if reply.head.status == 101 {
                pieces.for_each(|piece| reply.rest.extend_from_slice(piece));
            }
            return Ok(Some(reply));
        }
    }
    reader.finish()
}

/// Parses `text` whole and in pieces of each size below 200 bytes, and asserts that the results are equal.
fn read(text: &str) -> Result<Option<HttpReply>, ReplyError> {
    let whole = read_in(text, text.len().max(1));
    for size in 1..text.len().min(200) {
        assert_eq!(read_in(text, size), whole, "{size}: {text}");
    }
    whole
}

fn status_and_rest(text: &str) -> (u16, String) {
    let reply = read(text).unwrap().unwrap();
    (reply.head.status, String::from_utf8(reply.rest).unwrap())
}

#[test]
fn interim_responses_before_the_final_one_are_skipped() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 199\r\n\r\n";
    let text = format!("{interim}HTTP/1.1 101 x\r\nA: b\r\n\r\nframes");
    assert_eq!(status_and_rest(&text), (101, "frames".into()));
    let text = format!("{interim}HTTP/1.1 404 x\r\nContent-Length: 2\r\n\r\nno");
    assert_eq!(status_and_rest(&text), (404, "no".into()));
}

#[test]
fn too_many_interim_responses_are_refused() {
    let one = "HTTP/1.1 102 Processing\r\n\r\n";
    let last = "HTTP/1.1 101 x\r\n\r\n";
    let most = one.repeat(INTERIM_MAX as usize);
    assert_eq!(status_and_rest(&format!("{most}{last}")).0, 101);
    let text = format!("{most}{one}{last}");
    assert_eq!(read(&text), Err(ReplyError::TooManyInterim));
}

#[test]
fn repeated_header_is_one_list() {
    let text = "HTTP/1.1 101 x\r\nConnection: keep-alive, a\r\nUpgrade: x\r\ncONNECTION:\t,Upgrade , \r\n\r\n";
    let head = read(text).unwrap().unwrap().head;
    let tokens: Vec<&str> = head.tokens("Connection").collect();
    assert_eq!(tokens, ["keep-alive", "a", "Upgrade"]);
}

#[test]
fn folded_header_and_space_before_colon_are_accepted() {
    let text = "HTTP/1.1 101 x\r\nA: one,\r\n \t two\r\nB : three\r\nC: \r\n four\r\n\r\n";
    let head = read(text).unwrap().unwrap().head;
    let values = ["A", "B", "C"].map(|name| head.values(name).next().unwrap());
    assert_eq!(values, ["one, two", "three", "four"]);
}

#[test]
fn status_line_variants_are_accepted() {
    for (line, reason) in [
        ("HTTP/1.1 101 Switching Protocols", "Switching Protocols"),
        ("HTTP/1.1 101 ", ""),
        ("HTTP/1.1 101", ""),
        (
            "HTTP/1.0 101 Web Socket Protocol Handshake",
            "Web Socket Protocol Handshake",
        ),
    ] {
        let reply = read(&format!("{line}\r\n\r\n")).unwrap().unwrap();
        assert_eq!(
            (reply.head.status, reply.head.reason.as_str()),
            (101, reason)
        );
    }
    // RFC 9112 §2.2: a recipient may accept a bare line feed as a line end.
    assert_eq!(
        status_and_rest("HTTP/1.1 101 x\nA: b\n\nx"),
        (101, "x".into())
    );
}

#[test]
fn malformed_response_is_refused() {
    for (text, expected) in [
        ("SSH-2.0-OpenSSH_9.2\r\n", ReplyError::NotHttp),
        ("\x16\x03\x01\x02", ReplyError::NotHttp),
        ("HTTP/2.0 101 x\r\n\r\n", ReplyError::NotHttp),
        ("HTTP/1.1 1O1 x\r\n\r\n", ReplyError::NotHttp),
        ("HTTP/1.1 101 x\r\nA b\r\n\r\n", ReplyError::Header),
        (
            "HTTP/1.1 101 Switching Protocols\r\nAccess-Control-Allow-Origin: example\r\nA b",
            ReplyError::Header,
        ),
        ("HTTP/1.1 101 x\r\nA: b\0c\r\n\r\n", ReplyError::Header),
    ] {
        assert_eq!(read(text), Err(expected), "{text:?}");
    }
    let long = format!("HTTP/1.1 101 x\r\nA: {}\r\n\r\n", "x".repeat(HEAD_MAX));
    assert_eq!(read(&long), Err(ReplyError::TooLarge));
    let many = format!(
        "HTTP/1.1 101 x\r\n{}\r\n",
        "A: b\r\n".repeat(HEADERS_MAX + 1)
    );
    assert_eq!(read(&many), Err(ReplyError::TooLarge));
}

#[test]
fn incomplete_head_gives_no_response() {
    for text in ["", "HTT", "HTTP/1.1 200 OK\r\nA: b\r\n"] {
        assert_eq!(read(text), Ok(None), "{text:?}");
    }
}

#[test]
fn body_is_read_up_to_the_wanted_length() {
    let long = "x".repeat(100);
    for (rest, expected) in [
        ("Content-Length: 3\r\n\r\nabcd", "abc"),
        (
            "Content-Length: 3, 3\r\nContent-Length: 3\r\n\r\nabc",
            "abc",
        ),
        ("Content-Length: 9\r\n\r\ncut", "cut"),
        ("\r\nto the end", "to the end"),
        ("Content-Length: 1, 2\r\n\r\nunclear", "unclear"),
        ("Content-Length: +3\r\n\r\nunclear", "unclear"),
        (
            "Transfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n2\r\nde\r\n0\r\n\r\nmore",
            "abcde",
        ),
        (
            "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nmalformed",
            "abc",
        ),
        ("Transfer-Encoding: gzip, chunked\r\n\r\nraw", "raw"),
        (
            &format!("Content-Length: 100\r\n\r\n{long}"),
            &long[..BODY_MAX],
        ),
        (
            &format!("Content-Length: 99999999999999999999\r\n\r\n{long}"),
            &long[..BODY_MAX],
        ),
        (
            &format!("Transfer-Encoding: chunked\r\n\r\n64\r\n{long}"),
            &long[..BODY_MAX],
        ),
        (&format!("\r\n{long}"), &long[..BODY_MAX]),
    ] {
        let text = format!("HTTP/1.1 404 x\r\n{rest}");
        assert_eq!(status_and_rest(&text), (404, expected.into()), "{text}");
    }
    for status in ["204", "304"] {
        let text = format!("HTTP/1.1 {status} x\r\nContent-Length: 3\r\n\r\nabc");
        assert_eq!(status_and_rest(&text).1, "");
    }
}

#[test]
fn has_head_is_true_while_the_body_is_missing() {
    let mut reader = ReplyReader::new(HEAD_MAX, BODY_MAX);
    assert_eq!(
        reader.read(b"HTTP/1.1 503 x\r\nContent-Length: 9\r\n"),
        Ok(None)
    );
    assert!(!reader.has_head());
    assert_eq!(reader.read(b"\r\nbusy"), Ok(None));
    assert!(reader.has_head());
    let reply = reader.finish().unwrap().unwrap();
    assert_eq!(
        (reply.head.status, reply.rest.as_slice()),
        (503, &b"busy"[..])
    );
    assert_eq!(reader.finish(), Ok(None));
}

#[test]
fn retry_after_is_seconds_or_a_date_difference() {
    let of = |headers: &str| {
        let reply = read(&format!(
            "HTTP/1.1 503 x\r\n{headers}Content-Length: 0\r\n\r\n"
        ));
        reply.unwrap().unwrap().head.retry_after()
    };
    let seconds = |n| Some(Duration::from_secs(n));
    assert_eq!(of(""), None);
    assert_eq!(of("Retry-After: 120\r\n"), seconds(120));
    assert_eq!(
        of("Retry-After: 99999999999999999999999\r\n"),
        seconds(u64::MAX)
    );
    assert_eq!(of("Retry-After: -1\r\n"), None);
    let date = "Retry-After: Sun, 06 Nov 1994 08:50:37 GMT\r\n";
    assert_eq!(of(date), None);
    let now = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    assert_eq!(of(&format!("{date}{now}")), seconds(60));
    let past = "Retry-After: Sun, 06 Nov 1994 08:40:37 GMT\r\n";
    assert_eq!(of(&format!("{past}{now}")), seconds(0));
}
