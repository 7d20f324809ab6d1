//! Checks responses to a client's handshake that arrive in arbitrary pieces: how they are parsed, and which ones are
//! accepted as a WebSocket.
//!
//! A case consists of the limits, the cuts, and the bytes of the server.

use super::{byte, cuts, pieces};
use crate::protocol::handshake::client::{self, Agreed, ExpectedAnswer, Extensions};
use crate::protocol::http::{HEADERS_MAX, HttpReply, ReplyReader};

/// The key of the example in RFC 6455 §1.3, and the matching `Sec-WebSocket-Accept`, which seeds can contain.
const KEY: [u8; 16] = *b"the sample nonce";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const OFFERED: [&str; 2] = ["chat", "superchat"];

const HEAD_LIMITS: [usize; 4] = [0, 40, 300, 4096];
const BODY_LIMITS: [usize; 3] = [0, 5, 1024];

pub(crate) fn run(mut data: &[u8]) {
    let head_max = HEAD_LIMITS[usize::from(byte(&mut data)) % HEAD_LIMITS.len()];
    let body_max = BODY_LIMITS[usize::from(byte(&mut data)) % BODY_LIMITS.len()];
    let cuts = cuts(&mut data);
    let whole = read(&[data], head_max, body_max);
    let pieces = pieces(data, cuts);
    assert_eq!(read(&pieces, head_max, body_max), whole, "{pieces:?}");
    if let Ok(Some(reply)) = whole {
        check(&reply, data, body_max);
    }
}

/// Parses these pieces, after which the connection ends. Returns the response, or the text of the error.
fn read(pieces: &[&[u8]], head_max: usize, body_max: usize) -> Result<Option<HttpReply>, String> {
    let mut reader = ReplyReader::new(head_max, body_max);
    let mut pieces = pieces.iter();
    while let Some(piece) = pieces.next() {
        match reader.read(piece) {
            Ok(None) => {}
            Ok(Some(mut reply)) => {
                if reply.head.status == 101 {
                    // All further bytes belong to the new protocol.
                    pieces.for_each(|piece| reply.rest.extend_from_slice(piece));
                }
                return Ok(Some(reply));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    reader.finish().map_err(|error| error.to_string())
}

fn check(reply: &HttpReply, data: &[u8], body_max: usize) {
    let head = &reply.head;
    // RFC 9110 §15: interim statuses are skipped. The caller checks whether the final one is valid.
    assert!(head.status == 101 || !(100..200).contains(&head.status));
    assert!(head.headers.len() <= HEADERS_MAX);
    for (name, value) in &head.headers {
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()));
        assert!(!value.contains(['\r', '\n', '\0']), "{value:?}");
    }
    if head.status == 101 {
        assert!(
            data.ends_with(&reply.rest),
            "bytes after the response were lost"
        );
    } else {
        assert!(reply.rest.len() <= body_max);
    }
    // This must not panic.
    let _ = head.retry_after();
    let offered = OFFERED.map(str::to_owned);
    let (_, asked) = client::request("/", "example", KEY, &offered, Extensions::None, &[]);
    check_verdict(reply, data, &asked);
}

/// Asserts that an accepted response meets all requirements of RFC 6455 §4.1, with an independent check of the headers.
fn check_verdict(reply: &HttpReply, data: &[u8], asked: &ExpectedAnswer) {
    let values = |name: &str| -> Vec<String> {
        let of_name = reply.head.headers.iter();
        of_name
            .filter(|(known, _)| known.to_lowercase() == name)
            .flat_map(|(_, value)| value.split(','))
            .map(|value| value.trim_matches([' ', '\t']).to_lowercase())
            .filter(|value| !value.is_empty())
            .collect()
    };
    let chosen = values("sec-websocket-protocol");
    let upgrade = values("upgrade");
    let is_good = !upgrade.is_empty()
        && upgrade.iter().all(|value| value == "websocket")
        && values("connection").contains(&"upgrade".to_owned())
        && values("sec-websocket-accept") == [ACCEPT.to_lowercase()]
        && values("sec-websocket-extensions").is_empty()
        && chosen.len() <= 1;
    match client::judge(asked, &reply.head) {
        Ok(Agreed { subprotocol, .. }) => {
            assert!(is_good, "{reply:?}");
            assert_eq!(subprotocol.is_some(), chosen.len() == 1);
            assert!(subprotocol.is_none_or(|name| OFFERED.contains(&name)));
            let accept = ACCEPT.as_bytes();
            assert!(data.windows(accept.len()).any(|bytes| bytes == accept));
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            // These values are case-sensitive, which the check above ignores.
            let is_case_difference = [
                client::BadAnswer::AcceptWrong,
                client::BadAnswer::AcceptRepeated,
            ]
            .contains(&error)
                || matches!(error, client::BadAnswer::Subprotocol(_));
            assert!(!is_good || is_case_difference, "{error}: {reply:?}");
        }
    }
}
