//! The engine: one reactor per core, which moves bytes between sockets and handlers.
//!
//! Depends on `protocol` and `transport`, and on the leaf types. It knows neither the program's handlers and states
//! (it calls up through [`Events`]), nor where connections come from (they are handed to it), nor names of rooms.
//!
//! The contract: shards share nothing but mailboxes; nothing polls, nothing is unbounded, and no shard ever waits for a
//! handler, a client or another shard.
//!
//! ```text
//! any thread ── Mail, Word ──▶ mailbox ─▶ ┐
//! readiness, time ──────────────────────▶ ├ core: one turn ──▶ sockets
//!                                         └──▶ jobs ─┬▶ pool ── Word::Done ──▶ mailbox
//!                                                    └▶ here, while the core is lent out
//! ```

mod admission;
mod ask;
#[cfg(all(any(test, fuzzing), not(loom)))]
mod audit;
mod clock;
mod core;
mod delivery;
mod drain;
mod events;
mod form;
mod handover;
mod hub;
mod id;
mod intake;
mod lease;
mod lending;
#[cfg(all(test, loom))]
mod loom_tests;
mod mailbox;
mod members;
mod memberships;
mod outbox;
mod pace;
mod peers;
mod pool;
mod quickness;
mod request;
mod rooms;
mod runs;
mod shard;
#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) mod sim_tests;
mod slots;
mod slow_consumer;
mod streams;
mod sync;
mod timers;
mod token;
mod usage;
mod watch;
mod websocket;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Poll, Waker};

#[allow(unused_imports)] // As `ask` is.
pub(crate) use self::ask::{Accepted, Verdict};
pub(crate) use self::clock::Clock;
use self::core::Core;
pub(crate) use self::events::{
    Ending, Events, Interests, Receipt, Request, Response, Session, Status, Welcome,
};
pub(crate) use self::form::Form;
pub(crate) use self::hub::{Audience, Hub, Mail, Newcomer, Received, Settings, Upgraded};
pub use self::id::ConnectionId;
use self::lease::Lease;
pub(crate) use self::mailbox::Refused;
use self::mailbox::Wake;
pub use self::rooms::Presence;
pub(crate) use self::rooms::{NotJoined, Room};
use self::shard::{Ending as ShardEnding, Leases, Listener, Shard};
pub(crate) use self::streams::Beginning;
use self::token::WAKER;
/// What a [`Request`] has, too.
pub(crate) use crate::protocol::http::Head;
use crate::report::warning;
use crate::transport::{self, Transport};

/// Shards there can be: what a [`ConnectionId`] has room for, less the one that is nobody's.
const SHARDS_MAX: usize = u16::MAX as usize;

/// An engine that is set up and does not run yet: so that whoever its handlers send through can be told of it first.
pub(crate) struct Prepared {
    pub(crate) hub: Arc<Hub>,
    shards: Vec<Shard>,
}

/// A running engine.
pub(crate) struct Engine {
    pub(crate) hub: Arc<Hub>,
    leases: Leases,
}

impl Prepared {
    /// Sets up shards. Whatever the machine can't give is an error here or in `start`, not later.
    pub(crate) fn new(
        settings: Settings,
        listener: Option<std::net::TcpListener>,
        events: Arc<dyn Events>,
    ) -> io::Result<Self> {
        let count = settings.shards.clamp(1, SHARDS_MAX);
        let mut polls = Vec::with_capacity(count);
        let mut wakers: Vec<Box<dyn Wake>> = Vec::with_capacity(count);
        for _ in 0..count {
            let poll = Poll::new()?;
            wakers.push(Box::new(Waker::new(poll.registry(), WAKER)?));
            polls.push(poll);
        }
        let hub = Hub::new(settings, wakers, events.clone());
        let mut shards = Vec::with_capacity(count);
        let mut rings = rings(count).into_iter();
        let mut listener = listener;
        for (index, poll) in polls.into_iter().enumerate() {
            let registry = poll.registry().try_clone()?;
            let listener = match listener.take() {
                Some(listener) => {
                    listener.set_nonblocking(true)?;
                    let listener = TcpListener::from_std(listener);
                    Some(Listener::new(listener, hub.clone(), &poll)?)
                }
                None => None,
            };
            let now = Instant::now();
            let mut core = Core::new(index as u16, hub.clone(), events.clone(), registry, now);
            core.write_through(rings.next());
            let lease = Arc::new(Lease::new(hub.settings.adaptive_handlers));
            let ending = ShardEnding::new(hub.clone(), lease);
            shards.push(Shard::new(core, poll, listener, ending));
        }
        Ok(Self { hub, shards })
    }

    /// Starts handlers and shards.
    pub(crate) fn start(self) -> io::Result<Engine> {
        let leases: Leases = self.shards.iter().map(|shard| shard.lease()).collect();
        let engine = Engine {
            hub: self.hub,
            leases: leases.clone(),
        };
        let mut shards = self.shards.into_iter();
        let started = engine
            .hub
            .start_handlers(leases)
            .and_then(|()| shards.try_for_each(Shard::start));
        if let Err(error) = started {
            engine.hub.stop(Duration::ZERO);
            // Those that have not begun end here.
            drop(shards);
            engine.join();
            return Err(error);
        }
        Ok(engine)
    }
}

/// A ring for each shard, or none at all.
fn rings(count: usize) -> Vec<<TcpStream as Transport>::Ring> {
    let rings: Option<io::Result<_>> = (0..count).map(|_| transport::ring()).collect();
    rings
        .unwrap_or_else(|| Ok(Vec::new()))
        .unwrap_or_else(|error| {
            warning!(
                "io_uring can't be used here, as in many containers, and is done without: {error}"
            );
            Vec::new()
        })
}

impl Engine {
    /// Waits until the engine has stopped (`Hub::stop`) and its handlers have ended, as far as they end in time.
    pub(crate) fn join(self) {
        self.leases.iter().for_each(|lease| lease.join());
        self.hub.join_handlers(&self.leases);
    }
}
