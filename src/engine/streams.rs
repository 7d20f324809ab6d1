//! Event streams: connections that are sent a room's messages, or everyone's, as server-sent events.
//!
//! A stream is in rooms of its own, beside those of WebSockets: what is published is rendered once for each form, and
//! nobody gets the other's. Its request is decided by the program on a handler thread (`Entry::EventStream`). Then it is
//! open, and another handler joins its rooms: the head of the answer, what the client has missed and what is new leave in
//! that order, since they come by the same mailbox.

use std::time::Duration;

use super::hub::Hub;
use super::timers::Tick;
use crate::protocol::event_stream;
use crate::protocol::http::{self, Head};

/// What an event stream has that a WebSocket has not.
pub(super) struct Stream {
    pub(super) keep_alive: Duration,
    /// When the next comment is due.
    pub(super) comment_at: Tick,
}

impl Hub {
    /// The head of the answer to a request for an event stream.
    pub(super) fn stream_head(&self, request: &Head) -> Vec<u8> {
        event_stream::response_head(&self.cors(request))
    }

    /// Which pages may read the answer: those that may connect. Where any may, it is not to be read with its visitor's
    /// cookies: nobody has said so.
    fn cors<'a>(&self, request: &'a Head) -> Vec<(&'static str, &'a str)> {
        let Some(origins) = &self.settings.origins else {
            return vec![("Access-Control-Allow-Origin", "*")];
        };
        // The answer depends on it, so caches must tell them apart.
        let mut headers = vec![("Vary", "Origin")];
        let origin = request.header("Origin");
        if let Some(origin) = origin
            && origins.allows(Some(origin), request.header("Host"))
        {
            headers.push(("Access-Control-Allow-Origin", origin));
            headers.push(("Access-Control-Allow-Credentials", "true"));
        }
        headers
    }

    /// The answer to a method that is neither GET nor HEAD. Pages ask by OPTIONS whether they may send certain headers
    /// (WHATWG Fetch §3.3.5).
    pub(super) fn other_method(&self, request: &Head) -> Vec<u8> {
        if request.method != "OPTIONS" {
            // RFC 9110 §15.5.6: 405 must name the methods allowed.
            let headers = [
                ("Content-Type", "text/plain; charset=utf-8"),
                ("Allow", METHODS),
            ];
            let body = b"This is an event stream: it is asked for by GET.\n";
            return http::response(405, &headers, body, true, false);
        }
        let mut headers = self.cors(request);
        headers.push(("Allow", METHODS));
        headers.push(("Access-Control-Allow-Methods", METHODS));
        if let Some(wanted) = request.header("Access-Control-Request-Headers") {
            headers.push(("Access-Control-Allow-Headers", wanted));
        }
        http::response(204, &headers, b"", true, false)
    }
}

const METHODS: &str = "GET, HEAD, OPTIONS";
