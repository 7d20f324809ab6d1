//! Answers to a client's handshake, cut by the network in any way: what is understood, and what is taken for a WebSocket.
//!
//! A case is: limits, cuts, and what the server sends.

use super::{byte, cuts, pieces};
use crate::protocol::handshake::client::{self, Agreed, ExpectedAnswer, Extensions};
use crate::protocol::http::{HEADERS_MAX, HttpReply, ReplyReader};

/// The key of RFC 6455 §1.3, and its answer: seeds can have it.
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

/// What comes of these pieces, behind which the connection ends; an error as it is said.
fn read(pieces: &[&[u8]], head_max: usize, body_max: usize) -> Result<Option<HttpReply>, String> {
    let mut reader = ReplyReader::new(head_max, body_max);
    let mut pieces = pieces.iter();
    while let Some(piece) = pieces.next() {
        match reader.read(piece) {
            Ok(None) => {}
            Ok(Some(mut reply)) => {
                if reply.head.status == 101 {
                    // All that follows belongs to the other protocol.
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
    // RFC 9110 §15: an invalid status is the caller's to judge; an interim one is never final.
    assert!(head.status == 101 || !(100..200).contains(&head.status));
    assert!(head.headers.len() <= HEADERS_MAX);
    for (name, value) in &head.headers {
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()));
        assert!(!value.contains(['\r', '\n', '\0']), "{value:?}");
    }
    if head.status == 101 {
        assert!(
            data.ends_with(&reply.rest),
            "nothing of what follows is lost"
        );
    } else {
        assert!(reply.rest.len() <= body_max);
    }
    // It is asked for so that nothing of it panics.
    let _ = head.retry_after();
    let offered = OFFERED.map(str::to_owned);
    let (_, asked) = client::request("/", "example", KEY, &offered, Extensions::None, &[]);
    check_verdict(reply, data, &asked);
}

/// What is taken for an answer to the handshake has all that RFC 6455 §4.1 wants, by another look at the bytes.
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
            // What is compared letter by letter: the lower-case look above is blind to it.
            let is_letter_case = [
                client::BadAnswer::AcceptWrong,
                client::BadAnswer::AcceptRepeated,
            ]
            .contains(&error)
                || matches!(error, client::BadAnswer::Subprotocol(_));
            assert!(!is_good || is_letter_case, "{error}: {reply:?}");
        }
    }
}
