//! A shard's threads: they poll, let the core turn, and run its handlers while these are quick. The first shard accepts
//! for all.
//!
//! There are two, of which one goes on with the shard where the other is held up by a handler (`lease`). So everything
//! that a shard has is in one value, which they hand to each other.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::core::Core;
use super::hub::{Hub, Newcomer, Word};
use super::lease::Lease;
use super::mailbox::When;
use super::pool::{Lend, Pool};
use super::token::{LISTENER, WAKER};
use crate::aside::as_shard;
use crate::report::{error, limited};
use crate::transport::suppress_sigpipe;

/// Readiness taken in at once.
const EVENTS_MAX: usize = 1024;
/// Connections accepted in one turn, so that a storm of them does not keep others waiting.
const ACCEPTS_PER_TURN: usize = 128;
/// How long accepting rests after it has failed, as when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Shard {
    core: Core<TcpStream>,
    poll: Poll,
    events: Events,
    listener: Option<Listener>,
    /// Dropped last, whether the shard ran to its end, panicked or never ran.
    ending: Ending,
}

/// Those of all shards.
pub(super) type Leases = Arc<[Arc<Lease<Box<Shard>>>]>;

/// Says that a shard has ended.
pub(super) struct Ending {
    hub: Arc<Hub>,
    lease: Arc<Lease<Box<Shard>>>,
}

impl Ending {
    pub(super) fn new(hub: Arc<Hub>, lease: Arc<Lease<Box<Shard>>>) -> Self {
        Self { hub, lease }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if thread::panicking() {
            error!("a shard has panicked: this is a defect of humphrey_ws");
        }
        if !self.hub.has_stopped() {
            // A shard that can't go on takes the others with it: an app that serves some of its clients only would
            // not be noticed.
            self.hub.stop(Duration::ZERO);
        }
        Pool::give_back_place(&self.hub, &self.lease);
        self.hub.shard_ended();
        self.lease.close();
    }
}

/// The app's own listener.
pub(super) struct Listener {
    socket: TcpListener,
    hub: Arc<Hub>,
    /// There may be more to accept.
    ready: bool,
    /// Accepting failed; until when it rests.
    paused: Option<Instant>,
}

impl Listener {
    pub(super) fn new(mut socket: TcpListener, hub: Arc<Hub>, poll: &Poll) -> io::Result<Self> {
        socket.register(poll.registry(), LISTENER, Interest::READABLE)?;
        Ok(Self {
            socket,
            hub,
            ready: true,
            paused: None,
        })
    }

    /// Accepts what is there, and hands it round. Its own shard's share is returned.
    fn accept(&mut self, now: Instant) -> Vec<Newcomer> {
        let mut own = Vec::new();
        if self.paused.is_some_and(|until| until > now) {
            return own;
        }
        self.paused = None;
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.ready {
                break;
            }
            match self.socket.accept() {
                Ok((mut stream, peer)) => {
                    self.resumed();
                    if suppress_sigpipe(&stream).is_err() {
                        // It has been reset already, and nobody waits for a word.
                        continue;
                    }
                    let place = match self.hub.admit_peer(peer, now) {
                        Ok(place) => place,
                        Err(turned_away) => {
                            self.hub.common.accepted.add(1);
                            turned_away.counter(&self.hub.common).add(1);
                            // Not worth a place among the others to wait in: it is told, if it can be at once.
                            let _ = stream.write(&turned_away.response(false));
                            continue;
                        }
                    };
                    // Without it the kernel may hold a reply back. A peer that has gone already shows soon enough.
                    let _ = stream.set_nodelay(true);
                    let newcomer = Newcomer {
                        stream,
                        peer,
                        place,
                        upgraded: None,
                    };
                    let shard = self.hub.least_loaded();
                    self.hub.shards[shard].load.fetch_add(1, Relaxed);
                    if shard == 0 {
                        own.push(newcomer);
                    } else {
                        self.hub
                            .word(shard as u16, Word::Newcomer(Box::new(newcomer)), When::Now);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.ready = false,
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) if self.hub.accept_failed() => {}
                Err(error) => {
                    self.pause(now, &error);
                    break;
                }
            }
        }
        own
    }

    fn pause(&mut self, now: Instant, error: &io::Error) {
        self.hub.common.accept_errors.add(1);
        limited!(
            self.hub.said.not_accepted,
            warning,
            "connections can't be accepted: {error}; going on when others have closed"
        );
        self.paused = Some(now + ACCEPT_PAUSE);
    }

    fn resumed(&mut self) {
        self.hub.accept_works();
    }

    /// How long until there is something to accept that will not be reported.
    fn wait(&self, now: Instant) -> Option<Duration> {
        match self.paused {
            Some(until) => Some(until.saturating_duration_since(now)),
            None => self.ready.then_some(Duration::ZERO),
        }
    }
}

/// Errors that say something of the connection that was to be accepted, not of accepting.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

impl Lend for Box<Shard> {
    type Transport = TcpStream;

    fn core(&mut self) -> &mut Core<TcpStream> {
        &mut self.core
    }
}

impl Shard {
    pub(super) fn new(
        core: Core<TcpStream>,
        poll: Poll,
        listener: Option<Listener>,
        ending: Ending,
    ) -> Self {
        Self {
            core,
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            listener,
            ending,
        }
    }

    pub(super) fn lease(&self) -> Arc<Lease<Box<Self>>> {
        self.ending.lease.clone()
    }

    /// Starts its threads.
    pub(super) fn start(self) -> io::Result<()> {
        let hub = self.ending.hub.clone();
        let lease = self.lease();
        let name = || thread::Builder::new().name(format!("humphrey_ws shard {}", self.core.index));
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

    /// What a shard's thread does: turns the shard, and waits as the spare one when it is late.
    fn work(hub: &Arc<Hub>, lease: &Lease<Box<Self>>, mut next: Option<Box<Self>>) {
        let run = hub.pool.run_of_shard();
        while let Some(mut shard) = next {
            let events = shard.core.events.clone();
            loop {
                as_shard(|| shard.turn());
                if shard.core.has_jobs() && shard.core.runs_here() {
                    match Pool::run_lent(hub, &*events, lease, &run, shard, Instant::now) {
                        Some(back) => shard = back,
                        None => break,
                    }
                    as_shard(|| shard.turn());
                }
                if shard.core.is_finished() || !as_shard(|| shard.poll()) {
                    drop(events);
                    as_shard(|| shard.end());
                    return;
                }
            }
            drop(events);
            next = Self::handed_on(lease);
        }
    }

    /// Waits as the spare thread until the shard is handed to it. `None`: it has ended.
    fn handed_on(lease: &Lease<Box<Self>>) -> Option<Box<Self>> {
        let mut shard = lease.wait()?;
        shard.core.was_handed_on(Instant::now());
        Some(shard)
    }

    /// Waits for something to do. False if the shard can't go on.
    fn poll(&mut self) -> bool {
        let mut wait = self.wait();
        while let Err(error) = self.poll.poll(&mut self.events, wait) {
            if error.kind() != io::ErrorKind::Interrupted {
                error!("a shard can't poll and ends: {error}");
                return false;
            }
            // As after the process was stopped: what has come meanwhile is taken in before any deadline is looked at.
            wait = Some(Duration::ZERO);
        }
        for event in &self.events {
            match event.token() {
                WAKER => {}
                LISTENER => {
                    if let Some(listener) = &mut self.listener {
                        listener.ready = true;
                    }
                }
                Token(token) => self.core.ready(
                    token,
                    event.is_readable(),
                    event.is_read_closed() || event.is_error(),
                    event.is_writable(),
                ),
            }
        }
        true
    }

    fn turn(&mut self) {
        let now = Instant::now();
        // After readiness: a client that can take something again is not judged by what it could not take before.
        self.core.collect(now);
        self.take_in(now);
        self.core.turn();
    }

    /// The end.
    fn end(self: Box<Self>) {
        let Self {
            core,
            poll,
            listener,
            ending,
            ..
        } = *self;
        // Closed before the clients are, so that none of them comes back to a listener that does not answer.
        drop(listener);
        core.finish();
        drop(poll);
        drop(ending);
    }

    /// Connections that were accepted, here or on the first shard, or adopted.
    fn take_in(&mut self, now: Instant) {
        let mut newcomers = self.core.arrivals();
        if self.core.takes_accept_again()
            && let Some(listener) = &mut self.listener
        {
            listener.paused = None;
        }
        if self.core.is_stopping() {
            self.listener = None;
        }
        if let Some(listener) = &mut self.listener {
            newcomers.append(&mut listener.accept(now));
        }
        for newcomer in newcomers {
            self.core.insert(
                newcomer.stream,
                newcomer.peer,
                newcomer.place,
                newcomer.upgraded,
            );
        }
    }

    fn wait(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let listener = self
            .listener
            .as_ref()
            .and_then(|listener| listener.wait(now));
        match (self.core.wait(now), listener) {
            (Some(core), Some(listener)) => Some(core.min(listener)),
            (core, listener) => core.or(listener),
        }
    }
}
