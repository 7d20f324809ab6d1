//! Negotiates compression, and declines it for user agents with known faults.

use crate::compression::Compression;
use crate::protocol::deflate::negotiate::{self, Agreement};
use crate::protocol::http::Head;

/// User agents whose offers are declined, unless [`Compression::apple`](crate::Compression::apple) is set: those that
/// contain the first string and none of the others.
///
/// | user agent | known faults |
/// |---|---|
/// | WebKit other than Chromium's: Safari, and all browsers on iOS | some versions fail on fragmented messages, on final blocks, and on compressed messages mixed with plain ones |
/// | CFNetwork: programs that use Apple's `URLSessionWebSocketTask` | the same faults |
const DECLINED: [(&str, &[&str]); 2] = [
    ("AppleWebKit/", &["Chrome/", "Chromium/"]),
    ("CFNetwork/", &[]),
];

/// Negotiates compression with the client of a handshake. Returns `None` if the client makes no acceptable offer.
pub(crate) fn negotiate(compression: &Compression, request: &Head) -> Option<Agreement> {
    let user_agent = request.header("User-Agent").unwrap_or_default();
    if !compression.apple && is_declined(user_agent) {
        return None;
    }
    negotiate::accept(request.header_values("Sec-WebSocket-Extensions"))
}

fn is_declined(user_agent: &str) -> bool {
    DECLINED.iter().any(|(part, others)| {
        user_agent.contains(part) && !others.iter().any(|other| user_agent.contains(other))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_agents_with_known_faults_are_declined() {
        let safari = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Safari/605.1.15";
        let chrome_on_ios = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/130.0.6723.90 Mobile/15E148 Safari/604.1";
        let chrome = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36";
        let firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0";
        for (user_agent, declined) in [
            (safari, true),
            (chrome_on_ios, true),
            ("App/1 CFNetwork/1568.200.51 Darwin/24.1.0", true),
            (chrome, false),
            (firefox, false),
            ("Python/3.13 websockets/14.1", false),
            ("", false),
        ] {
            assert_eq!(is_declined(user_agent), declined, "{user_agent}");
        }
    }
}
