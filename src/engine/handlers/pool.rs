//! The runner: handlers, never two at a time for one connection, on threads of their own or, while they are quick, on
//! the shard's.
//!
//! A shard hands over all jobs of a turn with one lock and at most one wake-up. A job is what one connection has to
//! handle; when it is done, word goes back to the shard, which may then hand over the next. Quick handlers are run one
//! after the other by one thread, and the shard is woken once for many of them. Slow ones bring up further threads:
//! a thread that takes a job calls the next while jobs have lately been slow, and the watch does so where a thread
//! does not come back.
//!
//! Both cost more than a quick handler itself. So a shard whose handlers are quick (`quickness`) runs them itself: it lends
//! itself out meanwhile (`lease`), so that it can go on without its thread where one takes long after all.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::aside::as_shard;
use crate::engine::hub::Hub;
use crate::engine::hub::job_port::{HANDLER_OF, Run, caught};

use crate::engine::model::command::Word;
use crate::engine::model::job::{Done, Event, Job, Work};
use crate::engine::model::program::{Events, Welcome};
use crate::engine::model::request::{Charge, Request, Response};
use crate::engine::model::room::Presence;
use crate::engine::model::verdict::{Granted, Verdict};
use crate::engine::parts::job_queue::Handover;
use crate::engine::parts::lease::{Lease, Next};
use crate::engine::parts::mailbox::When;
use crate::engine::reactor::Core;
use crate::metrics::Metrics;
use crate::report::limited;
use crate::request::{Reject, RequestHead};
use crate::transport::Transport;

/// Jobs that take longer than this on average are slow: each then gets a thread of its own as soon as there is one.
const SLOW_NANOS: u32 = 20_000;

/// What one job may count for in that average, so that one that was merely interrupted does not decide.
const NANOS_MAX: u32 = 500_000;

/// The average goes over about so many jobs.
const MEAN_JOBS: u32 = 16;

/// How long word of finished jobs may be held back while further quick jobs are run; also by a shard's own thread.
const HOLD_BACK: Duration = Duration::from_micros(50);

pub(crate) struct Pool {
    pub(crate) handover: Handover<Job>,
    /// The program, until the last shard has ended: it may hold senders, which hold the hub, which holds this.
    events: Mutex<Option<Arc<dyn Events>>>,
    /// A moving average of how long jobs take.
    nanos_mean: AtomicU32,
    runs: Mutex<Vec<Arc<Run>>>,
    /// Of the shards' own threads.
    runs_here: Mutex<Vec<Arc<Run>>>,
}

/// A shard that can be lent out.
pub(crate) trait Lend {
    type Transport: Transport;

    fn core(&mut self) -> &mut Core<Self::Transport>;
}

impl Pool {
    pub(crate) fn new(threads_max: usize, events: Arc<dyn Events>) -> Self {
        Self {
            handover: Handover::new(threads_max),
            events: Mutex::new(Some(events)),
            nanos_mean: AtomicU32::new(0),
            runs: Mutex::default(),
            runs_here: Mutex::default(),
        }
    }

    /// Starts the first thread, so that a machine that can't have one says so at once.
    pub(crate) fn start(hub: &Arc<Hub>) -> io::Result<()> {
        hub.pool.handover.starting_first();
        Self::spawn(hub)
    }

    fn spawn(hub: &Arc<Hub>) -> io::Result<()> {
        let run = Arc::<Run>::default();
        let events = hub
            .pool
            .events
            .lock()
            .ok()
            .and_then(|events| events.clone());
        let Some(events) = events else {
            // All shards have ended: the threads that there are see to the rest.
            hub.pool.handover.not_started();
            return Ok(());
        };
        let of_thread = (hub.clone(), run.clone());
        if cfg!(loom) {
            // A model starts its threads itself.
            hub.pool.handover.not_started();
            return Ok(());
        }
        std::thread::Builder::new()
            .name("humphrey_ws handler".into())
            .spawn(move || {
                let (hub, run) = of_thread;
                hub.pool.work(&hub, &run, &*events);
            })
            .inspect_err(|_| hub.pool.handover.not_started())?;
        if let Ok(mut runs) = hub.pool.runs.lock() {
            runs.push(run);
        }
        Ok(())
    }

    fn spawn_more(hub: &Arc<Hub>, n: usize) {
        for _ in 0..n {
            if let Err(error) = Self::spawn(hub) {
                limited!(
                    hub.said.no_thread,
                    warning,
                    "a handler thread could not be started ({error}); going on with fewer"
                );
            }
        }
    }

    /// Lets the threads end once the queue is empty, and the program go.
    pub(crate) fn close(&self) {
        self.handover.close();
        let events = self.events.lock().ok().and_then(|mut events| events.take());
        // What it drops is user code.
        caught(|| drop(events));
    }

    pub(crate) fn add_metrics(&self, sum: &mut Metrics) {
        for runs in [&self.runs, &self.runs_here] {
            if let Ok(runs) = runs.lock() {
                for run in runs.iter() {
                    sum.handler_runs += run.count.load(Relaxed) / 2;
                    sum.handler_time += Duration::from_nanos(run.nanos.get());
                }
            }
        }
    }

    pub(crate) fn is_slow(&self) -> bool {
        self.nanos_mean.load(Relaxed) > SLOW_NANOS
    }

    /// Hands over the jobs of a turn.
    pub(crate) fn push(hub: &Arc<Hub>, jobs: &mut VecDeque<Job>, now: Instant) {
        if !jobs.is_empty() {
            let start = hub
                .pool
                .handover
                .push(jobs.drain(..), now, hub.pool.is_slow());
            Self::spawn_more(hub, start);
        }
    }

    /// Hands over work that no shard waits for. An error is the work, where there are no handlers any more.
    pub(crate) fn push_work(hub: &Arc<Hub>, work: Work) -> Result<(), Work> {
        let job = Job { to: None, work };
        let pushed = hub
            .pool
            .handover
            .try_push(job, Instant::now(), hub.pool.is_slow());
        let start = pushed.map_err(|job| job.work)?;
        Self::spawn_more(hub, start);
        Ok(())
    }

    /// Calls a thread for every job that waits.
    pub(crate) fn call_all(hub: &Arc<Hub>) {
        Self::spawn_more(hub, hub.pool.handover.call_all());
    }

    /// What a handler thread does.
    fn work(&self, hub: &Arc<Hub>, run: &Run, events: &dyn Events) {
        HANDLER_OF.set(Arc::as_ptr(hub).addr());
        self.handover.started();
        let mut held_back_since: Option<Instant> = None;
        let mut now = Instant::now();
        loop {
            let eager = self.is_slow();
            let taken = self.handover.take(now, eager).or_else(|| {
                if held_back_since.take().is_some() {
                    hub.wake_deferred();
                }
                let clock = || {
                    now = Instant::now();
                    now
                };
                self.handover.take_or_wait(clock, eager)
            });
            let Some((job, start)) = taken else {
                return;
            };
            Self::spawn_more(hub, start);

            run.count.fetch_add(1, Relaxed);
            Self::handle(hub, events, job);
            run.count.fetch_add(1, Relaxed);

            let started = std::mem::replace(&mut now, Instant::now());
            let took = now.saturating_duration_since(started);
            run.nanos.add_time(took);
            self.learn(took);
            let held_back = *held_back_since.get_or_insert(started);
            if now.saturating_duration_since(held_back) >= HOLD_BACK || self.is_slow() {
                held_back_since = None;
                hub.wake_deferred();
            }
        }
    }

    fn learn(&self, took: Duration) {
        let nanos = u32::try_from(took.as_nanos()).map_or(NANOS_MAX, |nanos| nanos.min(NANOS_MAX));
        let mean = self.nanos_mean.load(Relaxed);
        // Threads may overwrite each other's share; a mean can bear that.
        self.nanos_mean
            .store(mean - mean / MEAN_JOBS + nanos / MEAN_JOBS, Relaxed);
    }

    /// What the calling thread keeps count of its jobs with: one of a shard's.
    pub(crate) fn run_of_shard(&self) -> Arc<Run> {
        let run = Arc::<Run>::default();
        if let Ok(mut runs) = self.runs_here.lock() {
            runs.push(run.clone());
        }
        run
    }

    /// Runs jobs of a shard on its own thread, for as long as their outcome may be held back; those that can't be run
    /// here go to the other threads. `None`: one took long, and another thread goes on with the shard.
    pub(crate) fn run_lent<S: Lend>(
        hub: &Arc<Hub>,
        events: &dyn Events,
        lease: &Lease<S>,
        run: &Run,
        shard: S,
        mut clock: impl FnMut() -> Instant,
    ) -> Option<S> {
        let lent = lease.lend(shard, |shard| shard.core().next_job());
        let lent = lent.or_else(|shard| {
            // A place among the handlers is had once, and kept until others need it.
            if Self::give_back_place(hub, lease) || !hub.pool.handover.reserve() {
                return Err(shard);
            }
            lease.set_reserved();
            lease.lend(shard, |shard| shard.core().next_job())
        });
        let mut job = match lent {
            Ok(job) => job,
            Err(mut shard) => {
                Self::give_back_place(hub, lease);
                shard.core().hand_over_all();
                return Some(shard);
            }
        };
        hub.pool.handover.call_watch();
        HANDLER_OF.set(Arc::as_ptr(hub).addr());
        let mut started = clock();
        let mut spent = Duration::ZERO;
        loop {
            let to = job.to;
            let done = Self::outcome(hub, events, job.work);
            let now = clock();
            let took = now.saturating_duration_since(started);
            run.count.fetch_add(2, Relaxed);
            run.nanos.add_time(took);
            spent += took;
            let goes_on = spent < HOLD_BACK;
            let step = |shard: &mut S, done: Option<Done>| {
                let core = shard.core();
                as_shard(|| core.ran_here(to, done, took, now));
                if goes_on && core.runs_here() {
                    core.next_job()
                } else {
                    None
                }
            };
            match lease.next(done, step) {
                Next::Job(next) => {
                    job = next;
                    started = now;
                }
                Next::Back(mut shard) => {
                    HANDLER_OF.set(0);
                    hub.wake_deferred();
                    if !shard.core().runs_here() {
                        Self::give_back_place(hub, lease);
                    }
                    return Some(shard);
                }
                Next::Late(done) => {
                    HANDLER_OF.set(0);
                    if let (Some((shard, key)), Some(done)) = (to, done) {
                        hub.word(shard, Word::Done(key, done), When::Now);
                    }
                    hub.wake_deferred();
                    Self::spawn_more(hub, hub.pool.handover.unreserve());
                    lease.is_spare_again();
                    return None;
                }
            }
        }
    }

    /// A shard needs its place among the handlers no longer, or others need it more. Returns whether it had one that was
    /// not in use.
    pub(crate) fn give_back_place<S>(hub: &Arc<Hub>, lease: &Lease<S>) -> bool {
        let had_place = lease.take_reserved();
        if had_place {
            Self::spawn_more(hub, hub.pool.handover.unreserve());
        }
        had_place
    }

    /// Runs the handlers of a job, and leaves word of its end with the shard.
    pub(crate) fn handle(hub: &Arc<Hub>, events: &dyn Events, job: Job) {
        let done = Self::outcome(hub, events, job.work);
        if let (Some((shard, key)), Some(done)) = (job.to, done) {
            hub.word(shard, Word::Done(key, done), When::Deferred);
        }
    }

    /// Runs the handlers of a job. Returns what came of it, if a shard waits for that.
    fn outcome(hub: &Arc<Hub>, events: &dyn Events, work: Work) -> Option<Done> {
        let caught = |handler: &mut dyn FnMut()| {
            let outcome = caught(handler);
            if outcome.is_none() {
                hub.common.handler_panics.add(1);
            }
            outcome.is_some()
        };
        let done = match work {
            Work::Session(session, mut memory, bytes) => {
                let span = session.span.clone();
                let goes_on = memory
                    .last()
                    .is_some_and(|last| !matches!(last, Event::Close));
                let mut list = memory.drain(..);
                // One that panics ends the loop, and is not in the list any more.
                let handled = span.within(|| {
                    caught(&mut || {
                        for event in list.by_ref() {
                            match event {
                                Event::Message(message) => events.message(&session, message),
                                Event::Open(request) => events.open(&session, request.as_ref()),
                                Event::Room(change, room) => events.room(&session, &room, change),
                                Event::Nudge => events.nudged(&session),
                                Event::Close => events.close(&session),
                            }
                        }
                    })
                });
                let panicked = !handled;
                let mut unhandled = 0;
                for event in list {
                    match event {
                        Event::Message(_) => unhandled += 1,
                        // These are told whatever happened before.
                        Event::Room(change, room) => {
                            span.within(|| caught(&mut || events.room(&session, &room, change)));
                        }
                        Event::Close => {
                            span.within(|| caught(&mut || events.close(&session)));
                        }
                        Event::Open(_) | Event::Nudge => {}
                    }
                }
                // The shard has ended meanwhile, and nobody else will tell.
                if goes_on && session.batch_done() {
                    for room in session.rooms_left_behind() {
                        span.within(|| {
                            caught(&mut || events.room(&session, &room, Presence::Left))
                        });
                    }
                    if events.interests().close {
                        span.within(|| caught(&mut || events.close(&session)));
                    }
                }
                // With it may go what the program keeps for the stream, and dropping that is user code, too.
                let mut session = Some(session);
                caught(&mut || drop(session.take()));
                Done::Session {
                    panicked,
                    unhandled,
                    bytes,
                    memory,
                }
            }
            Work::Request(ticket) => Done::Request(ticket.take().map(|request| {
                let response = Self::respond(hub, events, *request);
                (response, ticket.bytes)
            })),
            Work::Handshake(request) => {
                Self::verdict(&request, |request| Self::ask(hub, events, request))
            }
            Work::EventStream(request) => Self::verdict(&request, |request| {
                let welcome = || {
                    Ok(Welcome {
                        attachment: Some(events.event_stream(request)?),
                        ..Welcome::default()
                    })
                };
                Self::granted(hub, request, welcome)
            }),
            Work::Guard(request) => Self::verdict(&request, |request| {
                let welcome = || events.guard(request).map(|()| Welcome::default());
                Self::granted(hub, request, welcome)
            }),
            Work::Ask(accepted, then) => {
                let mut asked = Some((accepted, then));
                caught(&mut || {
                    if let Some((mut accepted, then)) = asked.take() {
                        then.tell(match Self::ask(hub, events, accepted.request()) {
                            Ok(granted) => {
                                accepted.grant(granted);
                                Verdict::Accepted(accepted)
                            }
                            Err(reject) => {
                                hub.common.refused_handshake_handler.add(1);
                                Verdict::Rejected(reject)
                            }
                        });
                    }
                });
                return None;
            }
            Work::Drop(kept) => {
                drop(kept);
                return None;
            }
            Work::Release(session, counts) => {
                let mut session = Some(session);
                caught(&mut || drop(session.take()));
                hub.ended.fetch_sub(usize::from(counts), Relaxed);
                return None;
            }
        };
        Some(done)
    }

    /// Runs the handler of a route, unless what clients have still to read of others leaves no room for its answer.
    fn respond(hub: &Arc<Hub>, events: &dyn Events, request: Request) -> Response {
        hub.common.requests.add(1);
        let head_only = request.head.method == "HEAD";
        let bytes_max = hub.settings.limits.outboxes_bytes_max;
        if hub.responses_bytes.load(Relaxed) > bytes_max {
            hub.common.refused_unserved.add(1);
            return Response::busy(head_only);
        }
        let mut request = Some(request);
        let mut response = None;
        let run = &mut || response = request.take().map(|request| events.request(request));
        if caught(run).is_none() {
            hub.common.handler_panics.add(1);
        }
        let mut response = response.unwrap_or_else(|| Response::internal_error(head_only));
        let bytes = response.bytes();
        response.charge = Some(Charge::new(&hub.responses_bytes, bytes));
        response
    }

    /// What is decided about a request, if anybody still waits for that.
    fn verdict(
        request: &Weak<RequestHead>,
        decide: impl FnOnce(&RequestHead) -> Result<Granted, Reject>,
    ) -> Done {
        let verdict = match request.upgrade() {
            Some(request) => decide(&request),
            None => Err(Reject::internal_error()),
        };
        Done::Handshake(Box::new(verdict))
    }

    /// Runs the handshake handler.
    fn ask(hub: &Arc<Hub>, events: &dyn Events, request: &RequestHead) -> Result<Granted, Reject> {
        Self::granted(hub, request, || events.handshake(request))
    }

    fn granted(
        hub: &Arc<Hub>,
        request: &RequestHead,
        decide: impl FnOnce() -> Result<Welcome, Reject>,
    ) -> Result<Granted, Reject> {
        let answer = caught(decide).unwrap_or_else(|| {
            hub.common.handler_panics.add(1);
            Err(Reject::internal_error())
        });
        Granted::by(hub, request, answer)
    }

    /// Runs a job on this thread as a handler thread does: for tests, which hold a whole shard in one thread. With
    /// `here`, as a shard's thread does: what came of it is returned.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn run_here(hub: &Arc<Hub>, job: Job, here: bool) -> Option<Done> {
        let before = HANDLER_OF.replace(Arc::as_ptr(hub).addr());
        let events = hub
            .pool
            .events
            .lock()
            .ok()
            .and_then(|events| events.clone());
        let done = events.and_then(|events| {
            if here {
                Self::outcome(hub, &*events, job.work)
            } else {
                Self::handle(hub, &*events, job);
                None
            }
        });
        HANDLER_OF.set(before);
        done
    }

    /// Threads whose job is still the one that `seen` has from the last call.
    pub(crate) fn blocked(&self, seen: &mut Vec<u64>) -> usize {
        let Ok(runs) = self.runs.lock() else {
            return 0;
        };
        seen.resize(runs.len(), 0);
        let mut blocked = 0;
        for (run, seen) in runs.iter().zip(seen) {
            let now = run.count.load(Relaxed);
            blocked += usize::from(now % 2 == 1 && now == *seen);
            *seen = now;
        }
        blocked
    }
}
