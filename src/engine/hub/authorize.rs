//! Handshakes that somebody else has read and will answer, as a host with a runtime of its own does: asked about here before
//! their connection comes.

#![cfg_attr(not(feature = "axum"), allow(dead_code))] // Only features bring such a host.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use mio::net::TcpStream;

use crate::engine::handlers::pool::Pool;
use crate::engine::hub::Hub;
use crate::engine::hub::admission::TurnedAway;
use crate::engine::model::command::{Newcomer, Upgraded};
use crate::engine::model::job::Work;
use crate::engine::model::verdict::{
    Accepted, Granted, Seat, Then, Verdict, shutting_down, too_many,
};
use crate::protocol::handshake;
use crate::protocol::handshake::Refusal;
use crate::protocol::http::{Head, HttpError};
use crate::report::debug;
use crate::request::{Reject, RequestHead};

impl Hub {
    /// Asks about a handshake that somebody else has read, as of those that the engine reads: its form, limits, origins,
    /// and the program's handler, which may block. `then` is told on a handler thread, or at once where no handler is to be
    /// asked; with 503 if the engine has stopped or stops meanwhile.
    pub(crate) fn ask(
        self: &Arc<Self>,
        head: Head,
        peer: SocketAddr,
        then: Box<dyn FnOnce(Verdict) + Send>,
    ) {
        let then = Then(Some(then));
        match self.ask_admission(head, peer) {
            Err(reject) => then.tell(Verdict::Rejected(reject)),
            Ok(accepted) if !self.asks => then.tell(Verdict::Accepted(accepted)),
            Ok(accepted) => {
                // If there is no handler any more, `then` is dropped, and so told.
                let _ = Pool::push_work(self, Work::Ask(accepted, then));
            }
        }
    }

    /// Takes in a connection that was accepted (`Hub::ask`), and answered. `early` is what was read behind its request.
    pub(crate) fn adopt_accepted(
        &self,
        mut accepted: Box<Accepted>,
        stream: TcpStream,
        early: Vec<u8>,
    ) {
        let peer = accepted.request().peer_addr();
        let place = accepted.place.take();
        self.adopt(Newcomer {
            stream,
            peer,
            place,
            upgraded: Some(Upgraded {
                answered: true,
                early,
                accepted: Some(accepted),
                ..Upgraded::default()
            }),
        });
    }

    /// Longest request head, for a host that bounds what it asks about.
    pub(crate) fn head_bytes_max(&self) -> usize {
        self.settings.limits.head_bytes_max
    }

    /// Whether where a client comes from decides about it.
    pub(crate) fn needs_peers(&self) -> bool {
        self.peers.is_some() || self.settings.proxies.is_some()
    }

    /// Counts a request that its host has not asked about: it is no handshake.
    pub(crate) fn count_failure(&self, refusal: Refusal) {
        crate::engine::hub::admission::failure(refusal, &self.common).add(1);
    }

    /// The same, where it is no request that can be used.
    pub(crate) fn count_unreadable(&self, error: HttpError) {
        crate::engine::hub::admission::unreadable(error, &self.common).add(1);
    }

    /// Counts a connection that was accepted, and that nobody can serve.
    pub(crate) fn count_unserved(&self) {
        self.common.refused_unserved.add(1);
    }

    fn ask_admission(
        self: &Arc<Self>,
        head: Head,
        peer: SocketAddr,
    ) -> Result<Box<Accepted>, Reject> {
        let counters = &self.common;
        if self.has_stopped() {
            counters.refused_unserved.add(1);
            return Err(shutting_down());
        }
        self.connected();
        let mut seat = Seat {
            hub: Arc::downgrade(self),
            bytes: 0,
            is_given: false,
        };
        let turned_away = |turned_away: TurnedAway| {
            turned_away.counter(counters).add(1);
            debug!("{peer} was turned away: {}", turned_away.cause());
            turned_away.reject()
        };
        if self.is_full() {
            return Err(turned_away(TurnedAway::ConnectionsMax));
        }
        let handshake = handshake::check(&head.method, head.minor_version, head.pairs()).map_err(
            |refusal| {
                crate::engine::hub::admission::failure(refusal, counters).add(1);
                debug!("{peer} did not become a WebSocket: {refusal}");
                refused(refusal)
            },
        )?;
        let mut place = None;
        let client = self
            .admit(peer, Some(&head), &mut place, Instant::now())
            .map_err(turned_away)?;
        let request = RequestHead::received(head, peer, client);
        seat.bytes = request.bytes();
        let asked_bytes = self.asked_bytes.fetch_add(seat.bytes, Relaxed) + seat.bytes;
        let limits = &self.settings.limits;
        // As much as the shards have for those that they ask about; there is room for one in any case.
        if asked_bytes
            > (limits.received_bytes_max / 8).max(limits.head_bytes_max.saturating_mul(2))
        {
            counters.refused_handshakes_max.add(1);
            return Err(too_many());
        }
        Ok(Box::new(Accepted {
            handshake,
            granted: match self.asks {
                true => Granted::default(),
                false => Granted::choosing(&request, self.subprotocols),
            },
            request: Arc::new(request),
            place,
            seat: Some(seat),
        }))
    }
}

fn refused(refusal: Refusal) -> Reject {
    let reject = Reject::new(refusal.status()).with_body(format!("{refusal}\n"));
    let headers = refusal.headers().iter();
    // `Connection` is left to whoever writes the answer.
    headers
        .filter(|(name, _)| *name != "Connection")
        .fold(reject, |reject, (name, value)| {
            reject.with_header(*name, *value)
        })
}
