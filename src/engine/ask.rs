//! Handshakes that somebody else has read and will answer, as a host with a runtime of its own does: asked about here before
//! their connection comes.

#![cfg_attr(not(feature = "axum"), allow(dead_code))] // Only features bring such a host.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Instant;

use mio::net::TcpStream;

use super::admission::{Granted, TurnedAway, shutting_down, too_many};
use super::hub::{Hub, Newcomer, Upgraded};
use super::peers::Place;
use super::pool::{Pool, Work};
use crate::protocol::handshake::{self, Handshake, Refusal};
use crate::protocol::http::{Head, HttpError};
use crate::report::debug;
use crate::request::{Reject, RequestHead};

/// What becomes of a handshake that somebody else has read.
pub(crate) enum Verdict {
    /// It is to be answered with 101 and `Accepted::headers`; then the connection is brought to `Hub::adopt_accepted`.
    Accepted(Box<Accepted>),
    /// It is to be answered with this.
    Rejected(Reject),
}

/// A handshake that is accepted, and whose connection is still to come. It counts as one.
pub(crate) struct Accepted {
    pub(super) request: Arc<RequestHead>,
    handshake: Handshake,
    pub(super) granted: Granted,
    pub(super) place: Option<Box<Place>>,
    /// None once the connection has come.
    seat: Option<Seat>,
}

impl Accepted {
    /// All headers of the 101 response.
    pub(crate) fn headers(&self) -> Vec<(&str, &str)> {
        self.granted.headers(&self.handshake)
    }

    /// The connection has come, and counts from here on itself. Returns whether it has counted already.
    pub(super) fn give_seat(&mut self) -> bool {
        self.seat.take().is_some_and(|mut seat| {
            seat.is_given = true;
            true
        })
    }

    pub(super) fn grant(&mut self, granted: Granted) {
        self.granted = granted;
    }

    pub(super) fn into_parts(self) -> (Arc<RequestHead>, Granted) {
        (self.request, self.granted)
    }

    /// Its host did not know where it comes from before it came.
    pub(crate) fn found_at(&mut self, peer: SocketAddr) {
        // Nobody else has it: the handler has returned, and the connection has not begun.
        if let Some(request) = Arc::get_mut(&mut self.request) {
            request.found_at(peer);
        }
    }

    /// Who asks.
    pub(crate) fn request(&self) -> &RequestHead {
        &self.request
    }
}

/// Counts as a connection that is still to come, and for what its request takes.
struct Seat {
    hub: Weak<Hub>,
    bytes: usize,
    /// The connection counts instead.
    is_given: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.asked_bytes.fetch_sub(self.bytes, Relaxed);
            if !self.is_given {
                hub.disconnected();
            }
        }
    }
}

/// Who waits for a verdict; told in any case.
pub(crate) struct Then(Option<Box<dyn FnOnce(Verdict) + Send>>);

impl Then {
    pub(super) fn tell(mut self, verdict: Verdict) {
        if let Some(then) = self.0.take() {
            then(verdict);
        }
    }
}

impl Drop for Then {
    fn drop(&mut self) {
        if let Some(then) = self.0.take() {
            then(Verdict::Rejected(shutting_down()));
        }
    }
}

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
        super::request::failure(refusal, &self.common).add(1);
    }

    /// The same, where it is no request that can be used.
    pub(crate) fn count_unreadable(&self, error: HttpError) {
        super::request::unreadable(error, &self.common).add(1);
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
                super::request::failure(refusal, counters).add(1);
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
