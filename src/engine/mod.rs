//! The engine: one reactor per core, which moves bytes between sockets and handlers.
//!
//! Depends on `protocol` and `transport`, and on the leaf types. It does not know the program's handlers and states
//! (it calls up through [`Program`]), where connections come from (hosts hand them over), or the names of rooms.
//!
//! The contract: shards share nothing but mailboxes; nothing polls, nothing is unbounded, and no shard ever waits for a
//! handler, a client or another shard.
//!
//! ```text
//! any thread ── Command, Control ──▶ mailbox ─▶ ┐
//! readiness, time ──────────────────────▶ ├ core: one turn ──▶ sockets
//!                                         └──▶ jobs ─┬▶ pool ── Control::Done ──▶ mailbox
//!                                                    └▶ the same thread, while the core is lent out
//! ```

mod handlers;
mod hub;
#[cfg(all(test, loom))]
mod loom_tests;
mod model;
mod parts;
mod reactor;
#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) mod sim_tests;
mod threads;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Poll, Waker};

use self::handlers::pool;
#[allow(unused_imports)] // Only hosts behind features use these.
pub(crate) use self::handlers::pre_admission::{adopt_accepted, attach, authorize};
pub(crate) use self::hub::event_streams::Beginning;
pub(crate) use self::hub::{Destination, Hub};
pub(crate) use self::model::command::{
    Command, KeyedSnapshot, NewConnection, Received, RenderedFrames, Upgraded, snapshot_weight,
};
pub(crate) use self::model::inspection::{Answers, ConnectionReport};
pub(crate) use self::model::job::MessageRun;
#[cfg(feature = "deflate")]
pub(crate) use self::model::negotiation::negotiate;
pub(crate) use self::model::program::{
    HandshakeAccept, MessageVerdict, PeerEnd, Program, Subscriptions,
};
pub(crate) use self::model::replay::{Replay, ReplayPiece, replay_weight};
pub(crate) use self::model::request::{BodyReader, BodySource, PIECE_BYTES, Request, Response};
pub use self::model::room::Presence;
pub(crate) use self::model::room::{HistoryForm, NotJoined, SharedRoom};
pub(crate) use self::model::session::{Session, Status};
pub(crate) use self::model::settings::Settings;
#[allow(unused_imports)] // Only hosts behind features use these.
pub(crate) use self::model::verdict::{AcceptedHandshake, Verdict};
pub(crate) use self::parts::clock::Clock;
pub(crate) use self::parts::encoding::Encoding;
pub(crate) use self::parts::expiry::Expiry;
pub(crate) use self::parts::id::{ConflationKey, LocalId};
use self::parts::lease::Lease;
pub(crate) use self::parts::mailbox::PushError;
use self::parts::mailbox::Wake;
use self::parts::token::WAKER;
use self::reactor::Core;
use self::threads::listener::Listeners;
use self::threads::shard::{Leases, Shard, ShardEndGuard};
use self::threads::watchdog;
use crate::listener::ListenerSocket;
/// The head of a [`Request`].
pub(crate) use crate::protocol::http::Head;
use crate::report::warning;
use crate::transport::{self, ShardSocket, ShardTransport};

/// Most shards an engine can have: the values that a [`LocalId`] has room for, without the one that names no
/// connection.
const SHARDS_MAX: usize = u16::MAX as usize;

/// An engine that is set up and does not run yet. The program gets its hub before any handler can run.
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
    /// Sets up the shards. A missing resource of the machine, such as file descriptors, is an error here or in `start`,
    /// never later.
    pub(crate) fn new(
        settings: Settings,
        listeners: Vec<ListenerSocket>,
        program: Arc<dyn Program>,
    ) -> io::Result<Self> {
        let count = settings.shards.clamp(1, SHARDS_MAX);
        let mut polls = Vec::with_capacity(count);
        let mut wakers: Vec<Box<dyn Wake>> = Vec::with_capacity(count);
        for _ in 0..count {
            let poll = Poll::new()?;
            wakers.push(Box::new(Waker::new(poll.registry(), WAKER)?));
            polls.push(poll);
        }
        let hub = Hub::new(settings, wakers, program.clone());
        let mut shards = Vec::with_capacity(count);
        let mut writers = writers(count, hub.settings.has_tls()).into_iter();
        let mut listeners = (!listeners.is_empty()).then_some(listeners);
        for (index, poll) in polls.into_iter().enumerate() {
            let registry = poll.registry().try_clone()?;
            // The first shard accepts the connections of all.
            let listeners = listeners.take();
            let listeners = listeners.map(|sockets| Listeners::new(sockets, hub.clone(), &poll));
            let now = Instant::now();
            let writer = writers.next().expect("`writers` makes one for each shard");
            let core = Core::new(
                index as u16,
                hub.clone(),
                program.clone(),
                registry,
                writer,
                now,
            );
            let lease = Arc::new(Lease::new(hub.settings.adaptive_handlers));
            let ending = ShardEndGuard::new(hub.clone(), lease);
            shards.push(Shard::new(core, poll, listeners.transpose()?, ending));
        }
        Ok(Self { hub, shards })
    }

    /// Starts the handler threads and the shards.
    pub(crate) fn start(self) -> io::Result<Engine> {
        let leases: Leases = self.shards.iter().map(|shard| shard.lease()).collect();
        let engine = Engine {
            hub: self.hub,
            leases,
        };
        let mut shards = self.shards.into_iter();
        let started = engine
            .start_handlers()
            .and_then(|()| shards.try_for_each(Shard::start));
        if let Err(error) = started {
            engine.hub.stop(Duration::ZERO);
            // Shards that have not started end when they are dropped.
            drop(shards);
            engine.join();
            return Err(error);
        }
        Ok(engine)
    }
}

/// Makes a writer for each shard.
fn writers(count: usize, has_tls: bool) -> Vec<<ShardSocket as ShardTransport>::Writer> {
    let (writers, made) = transport::writers(count, has_tls);
    if let Err(error) = made {
        warning!(
            "io_uring can't be used, as in most containers: writes are made without it ({error})"
        );
    }
    writers
}

impl Engine {
    fn start_handlers(&self) -> io::Result<()> {
        pool::start(&self.hub)?;
        let (hub, leases) = (self.hub.clone(), self.leases.clone());
        std::thread::Builder::new()
            .name("humphrey_ws watchdog".into())
            .spawn(move || watchdog::run(&hub, &leases))
            .map(drop)
    }

    /// Waits until the engine has stopped (`Hub::stop`) and its handlers have ended, at most until the deadline for
    /// stopping.
    pub(crate) fn join(self) {
        self.leases.iter().for_each(|lease| lease.join());
        let deadline = self.hub.stop_by();
        let have_ended = self.hub.jobs.queue.join(deadline);
        if !self.leases.iter().all(|lease| lease.join_late(deadline)) || !have_ended {
            warning!(
                "some handlers still run after the deadline for stopping: their threads are left behind"
            );
        }
    }
}
