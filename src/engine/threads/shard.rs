//! The threads of a shard: they poll, turn the core, and run its handlers while these are quick. The first shard also
//! accepts connections.
//!
//! Each shard has two threads: when a handler blocks one, the other goes on with the shard (`lease`). So all state of a
//! shard is in one value, which they hand to each other.

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use mio::{Events, Poll, Token};

use crate::engine::handlers::inline::{JobSource, run_inline};
use crate::engine::hub::Hub;
use crate::engine::parts::lease::Lease;
use crate::engine::parts::token::{WAKER, as_listener};
use crate::engine::reactor::{Core, Readiness};
use crate::engine::threads::listener::Listeners;
use crate::report::error;
use crate::transport::ShardSocket;
use crate::user_threads::while_nonblocking;

/// Readiness events taken from the poll at once.
const EVENTS_MAX: usize = 1024;

pub(crate) struct Shard {
    core: Core<ShardSocket>,
    poll: Poll,
    events: Events,
    listeners: Option<Listeners>,
    /// Dropped last, whether the shard ran to its end, panicked or never ran.
    ending: ShardEndGuard,
}

/// The leases of all shards.
pub(crate) type Leases = Arc<[Arc<Lease<Box<Shard>>>]>;

/// Records the end of a shard when it is dropped.
pub(crate) struct ShardEndGuard {
    hub: Arc<Hub>,
    lease: Arc<Lease<Box<Shard>>>,
}

impl ShardEndGuard {
    pub(crate) fn new(hub: Arc<Hub>, lease: Arc<Lease<Box<Shard>>>) -> Self {
        Self { hub, lease }
    }
}

impl Drop for ShardEndGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            error!("a shard has panicked, and the engine stops: this is a bug in humphrey_ws");
        }
        if !self.hub.has_stopped() {
            // A shard that panicked stops the whole engine: an app that serves only some of its clients would go
            // unnoticed.
            self.hub.stop(Duration::ZERO);
        }
        self.hub.shard_ended();
        self.lease.close();
    }
}

impl Shard {
    pub(crate) fn new(
        core: Core<ShardSocket>,
        poll: Poll,
        listeners: Option<Listeners>,
        ending: ShardEndGuard,
    ) -> Self {
        Self {
            core,
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            listeners,
            ending,
        }
    }

    pub(crate) fn lease(&self) -> Arc<Lease<Box<Self>>> {
        self.ending.lease.clone()
    }

    /// Starts the shard's threads.
    pub(crate) fn start(self) -> io::Result<()> {
        let hub = self.ending.hub.clone();
        let lease = self.lease();
        let name =
            || thread::Builder::new().name(format!("humphrey_ws shard {}", self.core.cx.index));
        let (first, spare) = (name(), name());
        if hub.settings.adaptive_handlers {
            let (hub, lease) = (hub.clone(), lease.clone());
            spare.spawn(move || {
                let shard = Self::handed_on(&lease);
                Self::work(&hub, &lease, shard);
            })?;
        }
        first
            .spawn(move || Self::work(&hub, &lease, Some(Box::new(self))))
            .map(drop)
    }

    /// The main loop of a shard's thread: turns the shard, and becomes the spare thread when a handler made it late.
    fn work(hub: &Arc<Hub>, lease: &Lease<Box<Self>>, mut next: Option<Box<Self>>) {
        let run = hub.jobs.add_shard_thread();
        while let Some(mut shard) = next {
            let program = shard.core.cx.program.clone();
            loop {
                while_nonblocking(|| shard.turn());
                if shard.core.has_jobs() && shard.core.runs_inline() {
                    match run_inline(
                        hub,
                        &*program,
                        lease,
                        &run,
                        shard,
                        |shard| &mut shard.core,
                        Instant::now,
                    ) {
                        Some(back) => shard = back,
                        None => break,
                    }
                    while_nonblocking(|| shard.turn());
                }
                if shard.core.is_finished() || !while_nonblocking(|| shard.poll()) {
                    drop(program);
                    while_nonblocking(|| shard.end());
                    return;
                }
            }
            drop(program);
            next = Self::handed_on(lease);
        }
    }

    /// Waits, as the spare thread, for the shard. `None`: the shard has ended.
    fn handed_on(lease: &Lease<Box<Self>>) -> Option<Box<Self>> {
        let mut shard = lease.wait()?;
        shard.core.was_handed_on(Instant::now());
        Some(shard)
    }

    /// Waits for events. Returns false if the shard can't go on.
    fn poll(&mut self) -> bool {
        let mut wait = self.wait();
        while let Err(error) = self.poll.poll(&mut self.events, wait) {
            if error.kind() != io::ErrorKind::Interrupted {
                error!("a shard can't poll its sockets, and the engine stops: {error}");
                return false;
            }
            // The process may have been stopped: what has arrived meanwhile is read before any deadline is checked.
            wait = Some(Duration::ZERO);
        }
        let mut yields = false;
        for event in &self.events {
            let token = event.token();
            if let Some(index) = as_listener(token) {
                if let Some(listeners) = &mut self.listeners {
                    listeners.ready(index);
                }
                continue;
            }
            match token {
                WAKER => yields = self.core.cx.bursts.woken(),
                Token(token) => self.core.ready(
                    token,
                    Readiness {
                        readable: event.is_readable(),
                        hangup: event.is_read_closed() || event.is_error(),
                        writable: event.is_writable(),
                    },
                ),
            }
        }
        if yields {
            let from = Instant::now();
            thread::yield_now();
            self.core.cx.bursts.yielded(from, Instant::now());
        }
        true
    }

    fn turn(&mut self) {
        let now = Instant::now();
        // After readiness events: a client whose socket has room again must not be judged by its state before.
        self.core.collect(now);
        self.take_in(now);
        self.core.turn();
    }

    /// Ends the shard.
    fn end(self: Box<Self>) {
        let Self {
            core,
            poll,
            listeners,
            ending,
            ..
        } = *self;
        // Closed before the clients are, so that none of them reconnects to a listener that does not answer.
        drop(listeners);
        core.finish();
        drop(poll);
        drop(ending);
    }

    /// Inserts the connections that were accepted here or on the first shard, and those that hosts have handed over.
    fn take_in(&mut self, now: Instant) {
        let mut new_connections = self.core.take_arrivals();
        if self.core.take_accept_again()
            && let Some(listeners) = &mut self.listeners
        {
            listeners.paused = None;
        }
        if self.core.is_stopping() {
            self.listeners = None;
        }
        if let Some(listeners) = &mut self.listeners {
            new_connections.append(&mut listeners.accept(now, self.core.accepts_left()));
        }
        for new_connection in new_connections {
            self.core.insert(
                new_connection.stream,
                new_connection.peer,
                new_connection.peer_slot,
                new_connection.upgraded,
            );
        }
    }

    fn wait(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let listeners = self.listeners.as_ref();
        let accept = listeners.and_then(|listeners| listeners.wait(now));
        match (self.core.wait(now), accept) {
            (Some(core), Some(accept)) => Some(core.min(accept)),
            (core, accept) => core.or(accept),
        }
    }
}
