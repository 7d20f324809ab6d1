//! The parts of a running engine that any thread can reach: mailboxes of shards, handlers, counters.

pub(crate) mod admission;
#[cfg(feature = "deflate")]
mod compressors;
pub(crate) mod event_streams;
pub(crate) mod inspection;
pub(crate) mod job_port;
pub(crate) mod rooms;

#[cfg(unix)]
use std::net::SocketAddr;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::fence;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::atomic::AtomicU64;
#[cfg(feature = "deflate")]
use crate::compressors::Compressors;
use crate::cork::Corked;
use crate::engine::hub::admission::LoggedOnce;
use crate::engine::hub::job_port::JobPort;
use crate::engine::model::command::{
    Command, Control, Form, NewConnection, Publication, RenderedFrames,
};
use crate::engine::model::program::{Program, Subscriptions};
use crate::engine::model::request::Account;
use crate::engine::model::room::{HistoryForm, SharedRoom};
use crate::engine::model::session::{Session, Status};
use crate::engine::model::settings::Settings;
use crate::engine::model::verdict::CountConnections;
use crate::engine::parts::expiry::{Expiries, Expiry};
use crate::engine::parts::id::{ConflationKey, LocalId};
use crate::engine::parts::mailbox::{Mailbox, PushError, Wake, Weigh, When};
use crate::engine::parts::pace::WastedWaits;
use crate::engine::parts::peer_limits::PeerLimits;
use crate::engine::parts::sync::{AtomicBool, AtomicUsize};
use crate::engine::parts::users::Users;
use crate::message::Message;
use crate::metrics::{Counters, Metrics};
#[cfg(unix)]
use crate::proxies::unix_peer;

pub(crate) struct Hub {
    pub(crate) settings: Settings,
    pub(crate) shards: Box<[ShardHandle]>,
    pub(crate) jobs: JobPort,
    /// The counters of events outside of shards.
    pub(crate) common: Counters,
    /// The counts of each address, if they are bounded.
    pub(crate) peers: Option<Arc<PeerLimits>>,
    /// The connections of each user.
    pub(crate) users: Arc<Users>,
    pub(crate) logged: LoggedOnce,
    /// The events that the program has handlers for.
    pub(crate) subscriptions: Subscriptions,
    /// The number of connections that Unix sockets have ever accepted.
    #[cfg(unix)]
    unix_peers: AtomicU64,
    /// The number of channels that rooms have ever had.
    pub(crate) channels_ever: AtomicU64,
    /// The room of the event streams that receive broadcasts to everyone.
    pub(crate) everyone_streams: Arc<SharedRoom>,
    /// How long producers have waited for clients that were disconnected in the end.
    pub(crate) wasted_waits: Mutex<WastedWaits>,
    /// The bytes of requests that hosts have had authorised, and whose connections have yet to be handed over.
    pub(crate) authorizing_bytes: AtomicUsize,
    /// The bytes that responses of routes hold.
    pub(crate) responses_bytes: Arc<Account>,
    /// The number of connections of all kinds, on all shards.
    connections: AtomicUsize,
    /// Connections that have ended, and whose close handler has not returned yet.
    pub(crate) ended: AtomicUsize,
    /// Whether accepting has failed, and waits for a connection to close.
    accept_paused: AtomicBool,
    /// The number of shards that have not ended.
    shards_running: AtomicUsize,
    /// The compressors for long messages and for replies.
    #[cfg(feature = "deflate")]
    pub(crate) compressors: Compressors,
    /// Whether the engine has stopped or begun to stop.
    stopped: AtomicBool,
    /// Whether connections are being closed, since the engine will stop.
    draining: AtomicBool,
    /// The deadline for stopping.
    stop_by: Mutex<Option<Instant>>,
    started: Instant,
}

/// The maximum part of the time for stopping that is reserved for the last handlers.
const HANDLERS_WAIT_MAX: Duration = Duration::from_millis(500);

/// A shard, as other threads see it.
pub(crate) struct ShardHandle {
    pub(crate) mailbox: Mailbox<Command, Control, Box<dyn Wake>>,
    /// The number of connections of all kinds that the shard has or is about to get.
    pub(crate) load: AtomicUsize,
    /// The number of connections that a broadcast to everyone reaches.
    pub(crate) members: AtomicUsize,
    pub(crate) expiries: Expiries,
    pub(crate) counters: Counters,
    /// The number of inspections that the shard has yet to answer.
    unanswered: Arc<AtomicUsize>,
}

impl ShardHandle {
    fn add_metrics(&self, sum: &mut Metrics) {
        self.counters.add_to(sum);
        let peak = self.mailbox.bytes_peak() as u64;
        sum.mailbox_bytes_peak = sum.mailbox_bytes_peak.max(peak);
    }
}

/// The recipients of a broadcast, and the encodings that some of them receive.
#[derive(Clone, Copy, Default)]
pub(crate) struct Destination<'a> {
    /// The room; `None`: every connection.
    pub(crate) room: Option<&'a Arc<SharedRoom>>,
    /// The key of the message, if the room is keyed.
    pub(crate) key: Option<ConflationKey>,
    /// A connection that must not receive the message.
    pub(crate) except: Option<LocalId>,
    /// The frame with room and id, for members that receive ids.
    pub(crate) with_ids: Option<&'a Bytes>,
    /// For members that receive rendered messages.
    pub(crate) rendered: Option<&'a Arc<RenderedFrames>>,
    /// Whether members that receive neither ids nor rendered messages are left out.
    pub(crate) omit_plain: bool,
    /// The event stream room that receives the message too, and the message as an event.
    pub(crate) event: Option<(&'a Arc<SharedRoom>, &'a Bytes)>,
    /// Whether the message must not be compressed.
    #[cfg_attr(not(feature = "deflate"), allow(dead_code))]
    pub(crate) uncompressed: bool,
    /// The form in which the message is sent ([`Hub::form`]), if the caller has chosen it.
    #[cfg_attr(not(feature = "deflate"), allow(dead_code))]
    pub(crate) form: Option<&'a Form>,
}

impl Destination<'_> {
    /// The command for one shard, or `None` if it has no recipients.
    fn command(
        self,
        shard: usize,
        handle: &ShardHandle,
        frame: &Bytes,
        form: &Form,
    ) -> Option<Command> {
        let has_members = match self.room {
            Some(room) => room.reaches(shard),
            None => handle.members.load(SeqCst) > 0,
        };
        let event = self.event.filter(|(streams, _)| streams.reaches(shard));
        if !has_members && event.is_none() {
            return None;
        }
        let except = self
            .except
            .filter(|id| usize::from(id.shard) == shard)
            .map(LocalId::key);
        Some(match (self.room, except, event) {
            (None, None, None) if form.is_any() => Command::Broadcast(frame.clone()),
            (room, except, event) => Command::Publish(Box::new(Publication {
                room: room.cloned(),
                frame: (has_members && !self.omit_plain).then(|| frame.clone()),
                form: form.clone(),
                key: self.key,
                with_ids: self.with_ids.filter(|_| has_members).cloned(),
                rendered: self.rendered.filter(|_| has_members).cloned(),
                except,
                event: event.map(|(streams, event)| (streams.clone(), event.clone())),
            })),
        })
    }
}

impl Corked for Hub {
    fn wake_shards(&self) {
        self.wake_deferred();
    }
}

impl Hub {
    pub(crate) fn new(
        settings: Settings,
        wakers: Vec<Box<dyn Wake>>,
        program: Arc<dyn Program>,
    ) -> Arc<Self> {
        let shards_len = wakers.len();
        let shards_running = AtomicUsize::new(shards_len);
        let shards = wakers
            .into_iter()
            .map(|waker| ShardHandle {
                mailbox: Mailbox::new(settings.limits.mailbox_bytes_max, waker),
                load: AtomicUsize::new(0),
                members: AtomicUsize::new(0),
                expiries: Expiries::default(),
                counters: Counters::default(),
                unanswered: Arc::new(AtomicUsize::new(0)),
            })
            .collect();
        Arc::new(Self {
            subscriptions: program.subscriptions(),
            jobs: JobPort::new(settings.handler_threads, program),
            peers: PeerLimits::new(&settings.limits),
            users: Users::new(settings.limits.user_connections_max),
            logged: LoggedOnce::default(),
            settings,
            shards,
            common: Counters::default(),
            #[cfg(unix)]
            unix_peers: AtomicU64::new(0),
            // After those of `everyone_streams`.
            channels_ever: AtomicU64::new(HistoryForm::COUNT),
            everyone_streams: Arc::new(SharedRoom::new(0, "".into(), true, shards_len)),
            wasted_waits: Mutex::default(),
            authorizing_bytes: AtomicUsize::new(0),
            responses_bytes: Arc::default(),
            connections: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            accept_paused: AtomicBool::new(false),
            shards_running,
            #[cfg(feature = "deflate")]
            compressors: Compressors::default(),
            stopped: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            stop_by: Mutex::new(None),
            started: Instant::now(),
        })
    }

    /// The time since the engine was created, in whole seconds.
    pub(crate) fn seconds_since_start(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.started).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    pub(crate) fn connection_rooms_max(&self) -> usize {
        self.settings.limits.connection_rooms_max
    }

    pub(crate) fn rooms_max(&self) -> usize {
        self.settings.limits.rooms_max
    }

    pub(crate) fn message_bytes_max(&self) -> usize {
        self.settings.limits.message_bytes_max
    }

    /// Pushes a command for a connection into the mailbox of its shard. If the mailbox is full, waits if `blocks` is
    /// set and the thread may block, and otherwise fails.
    pub(crate) fn post(
        &self,
        to: LocalId,
        command: Command,
        blocks: bool,
    ) -> Result<(), PushError> {
        self.push_command(to, command, blocks)
            .map_err(|(_, refused)| refused)
    }

    /// Pushes a command for a connection, as [`Hub::post`] does. Returns the command if it is refused.
    #[inline]
    fn push_command(
        &self,
        to: LocalId,
        command: Command,
        blocks: bool,
    ) -> Result<(), (Command, PushError)> {
        let Some(handle) = self.shards.get(usize::from(to.shard)) else {
            return Err((command, PushError::Closed));
        };
        let when = job_port::when(self);
        if blocks {
            handle.mailbox.push(command, when)
        } else {
            handle.mailbox.try_push(command, when)
        }
    }

    /// Whether the mailbox of a shard, or of all shards, has room for a short command. Other producers may fill it before
    /// the caller does.
    #[cfg(feature = "cluster")]
    pub(crate) fn has_room(&self, shard: Option<u16>) -> bool {
        /// More than a command that carries no message.
        const BYTES: usize = 1_024;
        let mut shards = (0..).zip(&self.shards);
        shards.all(|(number, handle)| {
            if shard.is_some_and(|shard| shard != number) {
                return true;
            }
            match handle.mailbox.try_reserve(BYTES) {
                Ok(()) => {
                    handle.mailbox.unreserve(BYTES);
                    true
                }
                // A stopping shard closes its connections anyway.
                Err(refused) => refused == PushError::Closed,
            }
        })
    }

    /// Pushes a frame for a connection. Returns the frame if it is refused.
    #[inline]
    pub(crate) fn send(
        &self,
        to: LocalId,
        frame: Bytes,
        blocks: bool,
    ) -> Result<(), (Bytes, PushError)> {
        let command = Command::Send(to.key(), frame);
        self.push_command(to, command, blocks)
            .map_err(|(command, refused)| {
                let Command::Send(_, frame) = command else {
                    unreachable!("a refused command is returned as it was");
                };
                (frame, refused)
            })
    }

    /// Pushes a frame into the mailbox of each shard with recipients. Blocks while one of the mailboxes is full.
    /// Returns whether there were any recipients.
    pub(crate) fn broadcast(&self, frame: &Bytes, to: Destination<'_>) -> Result<bool, PushError> {
        let when = job_port::when(self);
        let mut anyone = false;
        for (handle, command) in self.commands_for(frame, to) {
            handle
                .mailbox
                .push(command, when)
                .map_err(|(_, refused)| refused)?;
            anyone = true;
        }
        Ok(anyone)
    }

    /// Pushes a frame into the mailbox of each shard with recipients. If one of the mailboxes is full, fails without
    /// sending it to anyone. Returns whether there were any recipients.
    pub(crate) fn try_broadcast(
        &self,
        frame: &Bytes,
        to: Destination<'_>,
    ) -> Result<bool, PushError> {
        self.try_broadcast_all([(frame, to)])
    }

    /// Pushes several frames, in order, as [`Hub::try_broadcast`] pushes one: all of them, or none.
    pub(crate) fn try_broadcast_all<const N: usize>(
        &self,
        messages: [(&Bytes, Destination<'_>); N],
    ) -> Result<bool, PushError> {
        let when = job_port::when(self);
        let mut reserved = Vec::with_capacity(N * self.shards.len());
        let commands = messages
            .into_iter()
            .flat_map(|(frame, to)| self.commands_for(frame, to));
        for (handle, command) in commands {
            if let Err(refused) = handle.mailbox.try_reserve(command.weight()) {
                for (handle, command) in reserved {
                    let (handle, command): (&ShardHandle, Command) = (handle, command);
                    handle.mailbox.unreserve(command.weight());
                }
                return Err(refused);
            }
            reserved.push((handle, command));
        }
        let mut outcome = Ok(!reserved.is_empty());
        for (handle, command) in reserved {
            if handle.mailbox.push_reserved(command, when).is_err() {
                outcome = Err(PushError::Closed);
            }
        }
        outcome
    }

    /// Blocks until the mailboxes would take a frame. Other producers may fill them again before the caller sends it.
    pub(crate) fn wait_for_room(
        &self,
        frame: &Bytes,
        to: Destination<'_>,
    ) -> Result<(), PushError> {
        for (handle, command) in self.commands_for(frame, to) {
            handle.mailbox.wait_for_room(command.weight())?;
        }
        Ok(())
    }

    /// Encodes a rendered message for the members that receive it without ids, if there are any, and adds the frame for
    /// those that receive ids.
    pub(crate) fn rendered_frames(
        &self,
        message: Option<&Message>,
        with_ids: Option<Bytes>,
    ) -> Arc<RenderedFrames> {
        let frame = message.map(|message| (message.frame().clone(), self.form(message)));
        Arc::new(RenderedFrames { frame, with_ids })
    }

    /// Chooses the form in which a message is sent, and compresses a long one.
    #[cfg_attr(not(feature = "deflate"), allow(clippy::unused_self))]
    pub(crate) fn form(&self, message: &Message) -> Form {
        #[cfg(feature = "deflate")]
        return self.form_of(message.frame(), message.is_uncompressed());
        #[cfg(not(feature = "deflate"))]
        {
            let _ = message;
            Form::Any
        }
    }

    /// The commands that deliver a frame, one for each shard with recipients.
    fn commands_for<'a>(
        &'a self,
        frame: &'a Bytes,
        to: Destination<'a>,
    ) -> impl Iterator<Item = (&'a ShardHandle, Command)> {
        #[cfg(feature = "deflate")]
        let form = match to.form {
            Some(form) => form.clone(),
            None => self.form_of(frame, to.uncompressed),
        };
        #[cfg(not(feature = "deflate"))]
        let form = Form::Any;
        let shards = self.shards.iter().enumerate();
        shards.filter_map(move |(shard, handle)| {
            Some((handle, to.command(shard, handle, frame, &form)?))
        })
    }

    /// Hands a connection over to the shard with the fewest connections. If the engine has stopped, the connection is
    /// closed.
    pub(crate) fn adopt(&self, new_connection: NewConnection) {
        let shard = self.least_loaded();
        self.shards[shard].load.fetch_add(1, Relaxed);
        self.send_control(
            shard as u16,
            Control::NewConnection(Box::new(new_connection)),
            When::Now,
        );
    }

    pub(crate) fn least_loaded(&self) -> usize {
        let load = |&shard: &usize| self.shards[shard].load.load(Relaxed);
        (0..self.shards.len()).min_by_key(load).unwrap_or(0)
    }

    pub(crate) fn send_control(&self, shard: u16, control: Control, when: When) {
        self.shards[usize::from(shard)]
            .mailbox
            .control(control, when);
    }

    /// Makes a connection's handlers call `Program::nudged`, in order with its other events. Has no effect if the
    /// connection has ended.
    pub(crate) fn nudge(&self, id: LocalId) {
        if usize::from(id.shard) < self.shards.len() {
            self.send_control(id.shard, Control::Nudge(id.key()), job_port::when(self));
        }
    }

    /// Sets when a session expires, or `None` for never. Notifies the shard if that is earlier than it knows.
    pub(crate) fn set_expiry(&self, session: &Session, expiry: Option<Expiry>) {
        let id = session.id;
        let expiries = &self.shards[usize::from(id.shard)].expiries;
        let must_notify = expiries.set(id.key(), expiry);
        // The shard first closes a session and then forgets its expiry. This thread first sets the expiry and then
        // reads the status. Both execute a fence in between, so at least one of them removes the expiry of a closed
        // session.
        fence(SeqCst);
        if session.status() == Status::Closed {
            expiries.forget(id.key());
        }
        if must_notify {
            // Notify at once, because a handler's batch may take long and other threads rely on the expiry.
            self.send_control(id.shard, Control::Expiry, When::Now);
        }
    }

    /// When a session expires, if it does.
    pub(crate) fn expiry_of(&self, session: &Session) -> Option<Expiry> {
        let id = session.id;
        self.shards[usize::from(id.shard)].expiries.of(id.key())
    }

    /// Wakes shards for what handlers and corked threads have put into their mailboxes.
    pub(crate) fn wake_deferred(&self) {
        for handle in &self.shards {
            handle.mailbox.wake_deferred();
        }
    }

    /// Counts a new connection. Returns the number of connections.
    pub(crate) fn connected(&self) -> usize {
        self.connections.fetch_add(1, Relaxed) + 1
    }

    pub(crate) fn disconnected(&self) {
        self.connections.fetch_sub(1, Relaxed);
        if self.accept_paused.load(Relaxed) {
            self.send_control(0, Control::Accept, When::Now);
        }
    }

    /// Records that accepting has failed: the next connection to close reports that accepting may work again. Returns
    /// whether to retry at once, since one may have closed a moment before.
    pub(crate) fn accept_failed(&self) -> bool {
        !self.accept_paused.swap(true, Relaxed)
    }

    pub(crate) fn accept_works(&self) {
        if self.accept_paused.load(Relaxed) {
            self.accept_paused.store(false, Relaxed);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        let max = self.settings.limits.connections_max;
        // While handlers are blocked, ended connections must not pile up in their queue.
        self.connections.load(Relaxed) > max || self.ended.load(Relaxed) > max
    }

    /// An address for a client of a Unix socket, which has none.
    #[cfg(unix)]
    pub(crate) fn next_unix_peer(&self) -> SocketAddr {
        unix_peer(self.unix_peers.fetch_add(1, Relaxed) + 1)
    }

    /// Begins to close all connections evenly over a time, with 1012. `Program::drained` is called in the end, at least once.
    /// Until then everything goes on, and connections are accepted.
    pub(crate) fn drain(&self, over: Duration, retry_after: Duration) {
        self.draining.store(true, Relaxed);
        let until = instant_after(Instant::now(), over);
        for handle in &self.shards {
            let drain = Control::Drain { until, retry_after };
            handle.mailbox.control(drain, When::Now);
        }
    }

    /// Whether the engine drains, stops or has stopped.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed) || self.has_stopped()
    }

    /// Whether each shard takes a turn within this time.
    pub(crate) fn responds_within(&self, wait: Duration) -> bool {
        let deadline = instant_after(Instant::now(), wait);
        let (answer, answers) = mpsc::channel();
        for handle in &self.shards {
            let probe = Control::Probe(answer.clone());
            handle.mailbox.control(probe, When::Now);
        }
        self.shards.iter().all(|_| {
            let left = deadline.saturating_duration_since(Instant::now());
            answers.recv_timeout(left).is_ok()
        })
    }

    /// Whether no connection of any kind is left.
    pub(crate) fn is_unused(&self) -> bool {
        self.connections.load(Relaxed) == 0
    }

    /// Begins to stop: takes no further connections or messages, delivers those it has, and closes all connections with
    /// 1001, at most until `wait` has passed.
    pub(crate) fn stop(&self, wait: Duration) {
        self.stopped.store(true, Relaxed);
        let now = Instant::now();
        let deadline = instant_after(now, wait);
        let stop_by = self.stop_by.lock().map_or(deadline, |mut stop_by| {
            // A second call can only shorten the time.
            let earliest = stop_by.map_or(deadline, |first| first.min(deadline));
            *stop_by.insert(earliest)
        });
        // Disconnect handlers need some of the time too.
        let left = stop_by.saturating_duration_since(now);
        let shards_by = stop_by - (left / 4).min(HANDLERS_WAIT_MAX);
        for handle in &self.shards {
            handle.mailbox.close();
            handle.mailbox.control(Control::Stop(shards_by), When::Now);
        }
    }

    /// Whether the engine has stopped or begun to.
    pub(crate) fn has_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    /// The number of open WebSocket connections.
    pub(crate) fn members(&self) -> usize {
        self.shards
            .iter()
            .map(|handle| handle.members.load(Relaxed))
            .sum()
    }

    /// Counts messages that were received on a connection which can't be served.
    pub(crate) fn count_unhandled(&self, messages: usize) {
        self.common.messages_in.add(messages as u64);
        self.common.dropped_unhandled.add(messages as u64);
    }

    /// Adds the counters that belong to no shard.
    pub(crate) fn add_common_metrics(&self, sum: &mut Metrics) {
        self.common.add_to(sum);
        self.jobs.add_metrics(sum);
        #[cfg(feature = "__tls")]
        if let Some(tls) = &self.settings.tls {
            sum.tls.reloads += tls.reloads();
        }
    }

    /// The metrics of each shard.
    pub(crate) fn shard_metrics(&self) -> Vec<Metrics> {
        let of = |handle: &ShardHandle| {
            let mut metrics = Metrics::default();
            handle.add_metrics(&mut metrics);
            metrics
        };
        self.shards.iter().map(of).collect()
    }

    /// Adds the metrics of all shards.
    pub(crate) fn add_shard_metrics(&self, sum: &mut Metrics) {
        self.shards
            .iter()
            .for_each(|handle| handle.add_metrics(sum));
    }

    /// Records that a shard has ended. After the last one, handlers get no further jobs.
    pub(crate) fn shard_ended(&self) {
        if self.shards_running.fetch_sub(1, SeqCst) == 1 {
            self.jobs.close();
        }
    }

    /// The deadline for stopping; now, if none is set.
    pub(crate) fn stop_by(&self) -> Instant {
        let deadline = self.stop_by.lock().ok().and_then(|stop_by| *stop_by);
        deadline.unwrap_or_else(Instant::now)
    }
}

/// An endless wait is replaced by a very long one.
fn instant_after(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait)
        .unwrap_or(now + Duration::from_secs(1 << 30))
}

impl CountConnections for Hub {
    fn release_permit(&self, bytes: usize, was_handed_over: bool) {
        self.authorizing_bytes.fetch_sub(bytes, Relaxed);
        if !was_handed_over {
            self.disconnected();
        }
    }
}
