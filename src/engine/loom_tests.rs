//! Loom models of the engine's cross-thread code: they explore every interleaving of the threads, within the bounds below.
//!
//! Run them with `RUSTFLAGS="--cfg loom" cargo test --release --lib loom`. A model fails if an assertion does, or if all
//! its threads wait for each other, so a lost wake-up shows as a deadlock. Models have no timeouts, and no watchdog except
//! where the watchdog is what they check.
//!
//! Bounds: at most four threads, two or three items each, and as many involuntary switches between threads as
//! [`check`] is given (`None`: no limit). Loom models neither spurious wake-ups of a `Condvar` nor time.

mod adoption;
mod handover;
mod lease;
mod mailbox;
mod runner;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::engine::hub::Hub;
use crate::engine::model::job::MessageRun;
use crate::engine::model::program::{HandshakeAccept, Program, Subscriptions};
use crate::engine::model::request::{Request, Response};
use crate::engine::model::room::{Presence, SharedRoom};
use crate::engine::model::session::Session;
use crate::engine::model::settings::Settings;
use crate::engine::parts::mailbox::{Mailbox, Wake, Weigh};
use crate::engine::parts::sync::{Condvar, Mutex, lock, wait};
use crate::engine::reactor::Core;
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;
use crate::request::{Reject, RequestHead};
use crate::transport::{OneByOne, ShardTransport};

/// Explores a model with at most this many involuntary switches between threads.
fn check(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(model);
}

/// A model of a poll: a wake-up ends the current sleep, or the next one.
#[derive(Default)]
struct Alarm {
    rung: Mutex<bool>,
    /// The number of wake-ups.
    rings: AtomicUsize,
    bell: Condvar,
}

impl Alarm {
    fn sleep(&self) {
        let mut rung = lock(&self.rung);
        while !*rung {
            rung = wait(&self.bell, rung);
        }
        *rung = false;
    }
}

#[derive(Clone, Default)]
struct Waker(Arc<Alarm>);

impl Wake for Waker {
    fn wake(&self) {
        self.0.rings.fetch_add(1, Relaxed);
        *lock(&self.0.rung) = true;
        self.0.bell.notify_one();
    }
}

/// A message of one byte.
#[derive(Debug, PartialEq, Eq)]
struct Byte(u8);

impl Weigh for Byte {
    fn weight(&self) -> usize {
        1
    }
}

type Bytes = Mailbox<Byte, char, Waker>;

/// A shard, as its mailbox sees it.
struct ModelShard {
    mailbox: Arc<Bytes>,
    alarm: Arc<Alarm>,
    data: Vec<u8>,
    control: Vec<char>,
    pushed: u64,
}

impl ModelShard {
    fn new(bytes_max: usize) -> Self {
        let waker = Waker::default();
        Self {
            alarm: waker.0.clone(),
            mailbox: Arc::new(Mailbox::new(bytes_max, waker)),
            data: Vec::new(),
            control: Vec::new(),
            pushed: 0,
        }
    }

    fn take(&mut self, wants_data: bool) {
        let mut data = VecDeque::new();
        let mut control = Vec::new();
        self.pushed = self
            .mailbox
            .take(wants_data.then_some(&mut data), &mut control);
        self.data.extend(data.into_iter().map(|Byte(byte)| byte));
        self.control.extend(control);
    }

    /// Runs turns until this many data items and control messages have arrived. Sleeps whenever the mailbox allows it.
    fn run_until(&mut self, data: usize, control: usize) {
        loop {
            self.take(true);
            if self.data.len() >= data && self.control.len() >= control {
                return;
            }
            if self.mailbox.sleep(false) {
                self.alarm.sleep();
            }
        }
    }

    /// Runs turns until this many control messages have arrived. Paces its producers, so it takes control messages
    /// only.
    fn run_paced_until(&mut self, control: usize) {
        loop {
            self.take(false);
            if self.control.len() >= control {
                return;
            }
            if self.mailbox.sleep(true) {
                self.alarm.sleep();
            }
        }
    }
}

/// A program whose handlers do nothing.
struct Silent;

impl Program for Silent {
    fn subscriptions(&self) -> Subscriptions {
        Subscriptions::default()
    }

    fn entered(&self, _: &Arc<Session>) {}
    fn left(&self, _: &Session) {}
    fn emptied(&self, _: &SharedRoom) {}
    fn room(&self, _: &Arc<Session>, _: &Arc<SharedRoom>, _: Presence) {}
    fn open(&self, _: &Arc<Session>, _: Option<&Arc<RequestHead>>) {}
    fn messages(&self, _: &Arc<Session>, _: &mut MessageRun<'_, '_>) {}
    fn close(&self, _: &Arc<Session>) {}

    fn handshake(&self, _: &RequestHead) -> Result<HandshakeAccept, Reject> {
        panic!("the model has no handshakes")
    }

    fn request(&self, _: Request) -> Response {
        panic!("the model has no routes")
    }
}

/// Makes a hub with shards that sleep on the model's polls, and a limit of handler threads, which the model starts.
fn hub(shards: usize, handlers: usize, events: Arc<dyn Program>) -> (Arc<Hub>, Vec<Arc<Alarm>>) {
    hub_with_handlers_max(shards, handlers, handlers, events)
}

/// Makes a hub whose limit of handlers running at a time is separate from its number of handler threads, as where
/// shards run some themselves.
fn hub_with_handlers_max(
    shards: usize,
    handlers_max: usize,
    handlers: usize,
    events: Arc<dyn Program>,
) -> (Arc<Hub>, Vec<Arc<Alarm>>) {
    let settings = Settings {
        limits: Limits::default(),
        slow_consumer: SlowConsumer::Disconnect,
        heartbeat: None,
        shards,
        handler_threads: handlers_max,
        adaptive_handlers: handlers_max > handlers,
        origins: None,
        hosts: None,
        guarded: None,
        option_names: crate::option_names::OptionNames::new(),
        proxies: None,
        proxy_protocol: None,
        #[cfg(feature = "deflate")]
        compression: None,
        #[cfg(feature = "__tls")]
        tls: None,
    };
    let wakers: Vec<Waker> = (0..shards).map(|_| Waker::default()).collect();
    let alarms = wakers.iter().map(|waker| waker.0.clone()).collect();
    let boxed = wakers
        .into_iter()
        .map(|waker| Box::new(waker) as Box<dyn Wake>)
        .collect();
    let hub = Hub::new(settings, boxed, events);
    for _ in 0..handlers {
        hub.jobs.queue.starting_first();
    }
    (hub, alarms)
}

/// A shard's thread around the real core, as in `ModelShard::work`, without a poll.
struct Reactor<T: ShardTransport> {
    core: Core<T>,
    alarm: Arc<Alarm>,
    /// Fixed, since a model must behave the same each time it is explored.
    now: Instant,
}

impl<T: ShardTransport<Writer = OneByOne>> Reactor<T> {
    fn new(
        index: usize,
        hub: &Arc<Hub>,
        events: Arc<dyn Program>,
        registry: T::Registry,
        alarms: &[Arc<Alarm>],
    ) -> Self {
        let now = Instant::now();
        Self {
            core: Core::new(index as u16, hub.clone(), events, registry, OneByOne, now),
            alarm: alarms[index].clone(),
            now,
        }
    }

    fn turn(&mut self, take_in: impl FnOnce(&mut Core<T>)) {
        self.core.collect(self.now);
        take_in(&mut self.core);
        self.core.turn();
    }

    /// Sleeps if the core would.
    fn sleep(&mut self) {
        if !self.core.is_finished() && self.core.wait(self.now) != Some(Duration::ZERO) {
            self.alarm.sleep();
        }
    }
}
