//! Event streams: subscriptions of clients, and how their streams begin.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::history::History;
use super::keyed::{KeyedMessages, reserved_messages};
use super::keyed_events;
use super::publish::AppShared;
use super::renderer::Renderer;
use super::rendering::event;
use super::replay_cache::{ReplayBudget, ReplayForm};
use super::replay_frames::ReplayFrames;
use super::room_entry::{RoomEntry, RoomHistory};
use crate::engine::{self, Beginning, Hub, NotJoined, Session, replay_weight, snapshot_weight};
use crate::error::JoinErrorReason;
use crate::history_id::{HistoryGone, HistoryId};
use crate::message::Message;
use crate::protocol::event_stream::{self, JoinedIds, Position};
use crate::report::debug;
use crate::request::{Reject, RequestHead};

/// A function that accepts or rejects a request for an event stream.
///
/// It receives the request and the app's state, and returns a [`Subscription`] or a [`Reject`]. It may block: only this
/// client waits.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, Reject, RequestHead, Subscription};
/// use std::sync::Arc;
///
/// fn news(request: &RequestHead, password: Arc<String>) -> Result<Subscription, Reject> {
///     match request.query_param("password") {
///         Some(given) if given == *password => Ok(Subscription::room("news")),
///         _ => Err(Reject::new(403)),
///     }
/// }
///
/// let app = AsyncWebsocketApp::<String>::new().with_event_stream("/news", news);
/// ```
pub trait EventStreamHandler<S>:
    Fn(&RequestHead, Arc<S>) -> Result<Subscription, Reject> + Send + Sync + 'static
{
}

impl<T, S> EventStreamHandler<S> for T where
    T: Fn(&RequestHead, Arc<S>) -> Result<Subscription, Reject> + Send + Sync + 'static
{
}

/// Event streams by the pattern of their paths. The first pattern that matches is used.
pub(super) type EventStreams<S> = Vec<(Box<str>, Box<dyn EventStreamHandler<S>>)>;

/// The subscription of an event stream's client: the messages of rooms, broadcasts to every client, or both. An [event
/// stream's handler](crate::AsyncWebsocketApp::with_event_stream) returns it.
///
/// The client does not become a member of its rooms: [`Room::members`](crate::Room::members) and
/// [`Room::len`](crate::Room::len) include WebSockets only, and connection handlers do not run for it.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, Reject, Subscription};
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_event_stream("/events", |request, _| {
///         let room = request.query_param("room").ok_or(Reject::new(400))?;
///         Ok(Subscription::room(room).with_broadcasts())
///     });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub(super) rooms: Vec<String>,
    pub(super) broadcasts: bool,
    pub(super) history: bool,
    pub(super) retry: Duration,
    pub(super) keep_alive: Duration,
    pub(super) user: Option<String>,
    pub(super) expires_at: Option<SystemTime>,
}

impl Subscription {
    /// Default reconnection time: how long a client waits before it reconnects.
    pub const RETRY_DEFAULT: Duration = Duration::from_secs(2);
    /// Default keep-alive interval. Some proxies cut a connection that has been silent for a minute, or even for half a
    /// minute.
    pub const KEEP_ALIVE_DEFAULT: Duration = Duration::from_secs(15);

    fn nothing() -> Self {
        Self {
            rooms: Vec::new(),
            broadcasts: false,
            history: false,
            retry: Self::RETRY_DEFAULT,
            keep_alive: Self::KEEP_ALIVE_DEFAULT,
            user: None,
            expires_at: None,
        }
    }

    /// Subscribes to the messages of a room.
    pub fn room(name: impl Into<String>) -> Self {
        Self::nothing().and_room(name)
    }

    /// Subscribes to the broadcasts to every client ([`AsyncSender::broadcast`](crate::AsyncSender::broadcast)).
    pub fn broadcasts() -> Self {
        Self::nothing().with_broadcasts()
    }

    /// Subscribes to the messages of another room as well.
    pub fn and_room(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        if !self.rooms.contains(&name) {
            self.rooms.push(name);
        }
        self
    }

    /// Subscribes to the broadcasts to every client as well.
    pub fn with_broadcasts(mut self) -> Self {
        self.broadcasts = true;
        self
    }

    /// Replays the kept messages of the rooms ([`with_history`](crate::AsyncWebsocketApp::with_history)) to a client
    /// that connects for the first time. Without this, such a client receives new messages only.
    ///
    /// A keyed room ([`with_keyed_rooms`](crate::AsyncWebsocketApp::with_keyed_rooms)) sends the newest message of each key to every
    /// client that connects, with or without this.
    ///
    /// A reconnecting client that sends the id of the last event that it has seen always receives the messages it has
    /// missed.
    pub fn with_history(mut self) -> Self {
        self.history = true;
        self
    }

    /// Sets how long a client waits before it reconnects after the stream has ended, in whole milliseconds. Default: [2
    /// seconds](Self::RETRY_DEFAULT).
    pub fn with_retry(mut self, retry: Duration) -> Self {
        self.retry = retry;
        self
    }

    /// Sets after how much silence a keep-alive comment is sent. Default: [15 seconds](Self::KEEP_ALIVE_DEFAULT); less
    /// than a second counts as one second. Keep-alives prevent proxies from cutting a silent connection, and detect
    /// broken connections. Set the interval to less than half of the shortest timeout of the proxies in front of the
    /// app.
    ///
    /// The comment is a line of its own (`:`), which no client reports as an event.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, Subscription};
    /// use std::time::Duration;
    ///
    /// // Behind a proxy that cuts connections that have been silent for ten seconds.
    /// let app = AsyncWebsocketApp::<()>::new().with_event_stream("/events", |_, _| {
    ///     Ok(Subscription::broadcasts().with_keep_alive(Duration::from_secs(4)))
    /// });
    /// ```
    pub fn with_keep_alive(mut self, keep_alive: Duration) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// Sets the user that the event stream belongs to, as [`Accept::user`](crate::Accept::user) does for WebSockets.
    /// The stream counts towards the user's connections, and ends when
    /// [`AsyncSender::close_user`](crate::AsyncSender::close_user) closes them. If the key has more than 255 bytes, an
    /// error is logged, and the client gets 500.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, Reject, Subscription};
    ///
    /// # fn user_of(_: &str) -> Option<String> { None }
    /// let app = AsyncWebsocketApp::<()>::new().with_event_stream("/events", |request, _| {
    ///     let user = request.cookie("session").and_then(user_of).ok_or(Reject::new(401))?;
    ///     Ok(Subscription::room(format!("user:{user}")).user(user))
    /// });
    /// ```
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Ends the event stream at a given time, or within a second after it. By default it does not expire.
    ///
    /// Browsers then reconnect and resume after the last event that they have seen. If the client has no new
    /// credentials, the handler should answer with 401 or 204, which both stop a browser from reconnecting. The time is
    /// handled as by [`Accept::expires_at`](crate::Accept::expires_at). If it has passed already, the client gets 401.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, Subscription};
    /// use std::time::{Duration, SystemTime};
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_event_stream("/events", |_, _| {
    ///     Ok(Subscription::broadcasts().expires_at(SystemTime::now() + Duration::from_secs(3_600)))
    /// });
    /// ```
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.expires_at = Some(time);
        self
    }
}

/// How a stream begins, before new messages.
#[derive(Default)]
struct ReplayPlan {
    /// The client has missed messages that are no longer kept.
    reset: bool,
    /// The client's position, if no message of the replay carries it.
    position: Option<HistoryId>,
    /// The client must be sent its position, since it would otherwise lose messages when it reconnects. This is so for
    /// a client that connects for the first time and starts with new messages. Any other client sends its old id again,
    /// or has the kept messages replayed again.
    needs_position: bool,
    /// The stamps after which messages are replayed, for each room; `None` if the stream begins with new messages.
    after: Option<Vec<u64>>,
    /// The client's position in each room before the replay.
    starts: Vec<HistoryId>,
}

impl ReplayPlan {
    /// Plans the replay of several rooms whose histories are all locked, after the last events that the client has
    /// seen; these are empty if it connects for the first time. An event is `None` if the client sent something that is
    /// not an id.
    fn new(
        histories: &[MutexGuard<'_, History>],
        seen: &[Option<HistoryId>],
        from_start: bool,
    ) -> Self {
        let mut plan = Self::default();
        if histories.is_empty() {
            return plan;
        }
        plan.after = match seen {
            [] => from_start.then(|| vec![0; histories.len()]),
            seen => {
                let known = stamps_seen(histories, seen);
                plan.reset = known.is_none();
                known.or_else(|| Some(vec![0; histories.len()]))
            }
        };
        plan.starts = histories.iter().map(|history| history.position()).collect();
        let mut is_empty = true;
        if let Some(stamps) = &plan.after {
            for ((start, history), stamp) in plan.starts.iter_mut().zip(histories).zip(stamps) {
                if let Some((first, ..)) = history.after_stamp(*stamp).next() {
                    *start = HistoryId::new(first.epoch(), first.sequence() - 1);
                    is_empty = false;
                }
            }
        }
        if is_empty {
            let latest = histories.iter().max_by_key(|history| history.last_stamp());
            plan.position = latest.map(|history| history.position());
            plan.needs_position = plan.after.is_none();
        }
        plan
    }

    /// The messages of the replay, in the order in which they were sent.
    fn messages(&self, histories: &[MutexGuard<'_, History>]) -> Vec<(HistoryId, Message)> {
        let stamps = self.after.iter().flatten();
        let mut messages: Vec<_> = histories
            .iter()
            .zip(stamps)
            .flat_map(|(history, &stamp)| history.after_stamp(stamp))
            .collect();
        messages.sort_by_key(|&(_, _, stamp)| stamp);
        let messages = messages.into_iter();
        messages
            .map(|(id, message, _)| (id, message.clone()))
            .collect()
    }
}

/// The messages of a stream's rooms as events, rendered without holding a lock.
enum ReplayEvents<'a> {
    /// One room has a history, whose events all streams share.
    Shared(&'a RoomHistory, ReplayFrames<'a>),
    /// Several rooms have a history, and their messages are replayed in the order in which they were sent.
    Merged(HashMap<HistoryId, Bytes>),
}

impl<'a> ReplayEvents<'a> {
    fn new(rooms: &'a [Followed], via: (Renderer<'a>, ReplayBudget<'a>)) -> Self {
        let kept = |followed: &'a Followed| Some((&followed.room, followed.room.kept.as_deref()?));
        let mut kept = rooms.iter().filter_map(kept);
        match (kept.next(), kept.next()) {
            (Some((room, kept)), None) => {
                let of = (&*room.members.name, kept);
                let events = ReplayFrames::new(of, None, ReplayForm::Events, via);
                Self::Shared(kept, events)
            }
            _ => Self::Merged(HashMap::new()),
        }
    }

    /// Renders the events of all messages that the histories contain now. Returns what they take in a mailbox, each with `more`
    /// bytes.
    fn render(
        &mut self,
        rooms: &[Followed],
        plan: impl Fn(&[MutexGuard<'_, History>]) -> ReplayPlan,
        more: usize,
    ) -> usize {
        match self {
            Self::Shared(kept, events) => loop {
                let histories = [kept.history()];
                begin(events, &plan(&histories), &histories[0]);
                drop(histories);
                // It fails if the history no longer contains the next message: the plan is another one then, at most to
                // begin with the oldest message.
                if events.render(kept).is_ok()
                    && let Ok((pieces, bytes)) = events.measure(&kept.history())
                {
                    break replay_weight(pieces, bytes);
                }
            },
            Self::Merged(rendered) => {
                let histories = lock_all(rooms);
                let messages = plan(&histories).messages(&histories);
                drop(histories);
                for (id, message) in messages {
                    let event = || event(&message, Some(id));
                    rendered.entry(id).or_insert_with(event);
                }
                let bytes = rendered.values().map(Bytes::len).sum::<usize>();
                replay_weight(rendered.len(), bytes + rendered.len() * more)
            }
        }
    }

    /// The replay of the histories, which are locked.
    fn replay(
        &mut self,
        plan: &ReplayPlan,
        histories: &[MutexGuard<'_, History>],
    ) -> Result<engine::Replay, HistoryGone> {
        match self {
            Self::Shared(_, events) => {
                begin(events, plan, &histories[0]);
                // The program renders no events, so there is always a replay.
                Ok(events.frames(&histories[0])?.unwrap_or_default())
            }
            Self::Merged(rendered) => {
                let messages = plan.messages(histories).into_iter();
                let events = messages.map(|(id, message)| match rendered.get(&id) {
                    Some(bytes) => bytes.clone(),
                    None => event(&message, Some(id)),
                });
                Ok(events.collect())
            }
        }
    }
}

/// Begins a replay of one history where it is planned. One that begins with the oldest message does so whichever that is in the
/// end: otherwise, it would never be ready while others are published, if each of them displaces one.
fn begin(events: &mut ReplayFrames<'_>, plan: &ReplayPlan, history: &History) {
    let start = plan.starts[0];
    let is_whole = start.sequence() < history.oldest_kept();
    events.begin_after((!is_whole).then_some(start));
}

/// Returns the stamp up to which a client has seen each room, or `None` if some of the messages it has missed are no
/// longer kept.
///
/// An event is exact for its own room. In the other rooms the client has seen what was sent before the latest of its
/// events.
fn stamps_seen(
    histories: &[MutexGuard<'_, History>],
    seen: &[Option<HistoryId>],
) -> Option<Vec<u64>> {
    let own = |history: &History| {
        let ids = seen.iter().flatten().filter(|id| history.is_of(**id));
        ids.max_by_key(|id| id.sequence()).copied()
    };
    let stamps: Vec<_> = histories
        .iter()
        .map(|history| own(history).map(|id| history.stamp_of(id)))
        .collect();
    let latest = stamps.iter().flatten().flatten().max().copied()?;
    histories
        .iter()
        .zip(stamps)
        .map(|(history, own)| match own {
            Some(stamp) => stamp,
            None => history.reaches_stamp(latest).then_some(latest),
        })
        .collect()
}

/// A granted request for an event stream: its session's attachment until the stream begins.
struct PendingSubscription {
    subscription: Subscription,
    /// The `Last-Event-ID` of the client: the ids of one room, or of several.
    last_events: Vec<String>,
    /// The client has asked for the room's name with each message.
    asks_for_rooms: bool,
    /// The response head.
    head: Vec<u8>,
}

type SubscriptionSlot = Mutex<Option<Box<PendingSubscription>>>;

impl AppShared {
    /// Stores the parts of the request that the stream needs.
    pub(super) fn pending_subscription(
        &self,
        request: &RequestHead,
        subscription: Subscription,
    ) -> Arc<dyn Any + Send + Sync> {
        let head = request.head();
        let hub = self.running();
        Arc::new(SubscriptionSlot::new(hub.map(|hub| {
            Box::new(PendingSubscription {
                subscription,
                last_events: event_stream::last_event_ids(head),
                asks_for_rooms: event_stream::asks_for_rooms(head),
                head: hub.stream_head(head),
            })
        })))
    }

    /// Begins an event stream, on a handler thread.
    pub(super) fn subscribe(&self, session: &Arc<Session>) {
        let attachment = session.attachment.get();
        let attachment = attachment.and_then(|any| any.downcast_ref::<SubscriptionSlot>());
        let pending = attachment.and_then(|pending| pending.lock().ok()?.take());
        // If the engine stops, the shutdown answers the request.
        if let (Some(hub), Some(pending)) = (self.running(), pending)
            && let Err(refused) = self.try_subscribe(hub, session, &pending)
        {
            hub.refuse_stream(session, &refused);
        }
    }

    fn try_subscribe(
        &self,
        hub: &Hub,
        session: &Arc<Session>,
        pending: &PendingSubscription,
    ) -> Result<(), Reject> {
        let rooms = self.follow(hub, &pending.subscription)?;
        if !self.begin(hub, session, pending, &rooms) {
            self.unfollow(&rooms);
        } else if let Some(presence) = self.rooms.presence() {
            let names = rooms.iter().map(|followed| &followed.room.members.name);
            presence.stream_began(session, names);
        }
        Ok(())
    }

    /// Returns whether the stream has begun. If not, the client has gone or the engine is stopping.
    fn begin(
        &self,
        hub: &Hub,
        session: &Session,
        pending: &PendingSubscription,
        rooms: &[Followed],
    ) -> bool {
        let PendingSubscription {
            subscription,
            last_events,
            asks_for_rooms,
            head,
        } = pending;
        let seen: Vec<_> = last_events.iter().map(|id| id.parse().ok()).collect();
        let plan = |histories: &[MutexGuard<'_, History>]| {
            ReplayPlan::new(histories, &seen, subscription.history)
        };
        let kept = rooms.iter().filter(|followed| followed.room.kept.is_some());
        // A client that asks for the rooms remembers an id for each.
        let joins_ids =
            self.is_clustered() && !asks_for_rooms && (2..=JOINED_IDS_MAX).contains(&kept.count());
        let streams: Vec<_> = rooms.iter().map(|room| room.streams.clone()).collect();
        let names = match asks_for_rooms {
            true => event_stream::rooms(names_by_epoch(rooms)),
            false => Vec::new(),
        };
        // Render without holding a lock. Few messages are published during that time.
        let via = (self.renderer(hub), self.replay_budget(hub));
        let mut events = ReplayEvents::new(rooms, via);
        let keyed_rooms = rooms
            .iter()
            .filter_map(|followed| followed.room.keyed.as_ref());
        keyed_rooms.for_each(|room| keyed_events::render_events(room));
        // The bytes for the response head, and for messages that are published during rendering.
        let mut more_bytes = (16 << 10) + names.len();
        loop {
            let more = match joins_ids {
                true => JOINED_IDS_MAX * HISTORY_ID_BYTES_MAX,
                false => 0,
            };
            let bytes = events.render(rooms, plan, more);
            let keyed = lock_keyed(rooms).iter().map(|room| room.len()).sum();
            let bytes = bytes + snapshot_weight(reserved_messages(keyed));
            let Ok(reserved) = hub.reserve_stream(session, bytes + more_bytes) else {
                return false;
            };
            let histories = lock_all(rooms);
            let keyed = lock_keyed(rooms);
            // Planned under the lock, so that the next message follows the replay and is not in it.
            let replay = plan(&histories);
            let Ok(messages) = events.replay(&replay, &histories) else {
                continue;
            };
            let retry = u64::try_from(subscription.retry.as_millis()).unwrap_or(u64::MAX);
            let starts = replay.starts.iter().map(HistoryId::to_string);
            let joined_ids = joins_ids.then(|| JoinedIds::new(starts.collect()));
            let position = replay.position.map(|id| match &joined_ids {
                Some(ids) => ids.id(),
                None => id.to_string(),
            });
            let here = position.as_deref();
            let mut preface = head.clone();
            let told = match here {
                // The `reset` event carries the id.
                Some(_) if replay.reset => Position::Untold,
                // The event that names the rooms carries the id.
                Some(id) if replay.needs_position && names.is_empty() => Position::AtOnce(id),
                Some(id) => Position::WithFirstEvent(id),
                None => Position::Untold,
            };
            preface.extend(event_stream::preamble(retry, told));
            preface.extend_from_slice(&names);
            if replay.reset {
                preface.extend(event_stream::reset(&last_events.join(" "), here));
            }
            let beginning = Beginning {
                preface,
                rooms: &streams,
                keep_alive: subscription.keep_alive,
                replay: messages,
                // Taken under the lock, so that what follows the snapshot is newer.
                snapshot: keyed_events::snapshot(&keyed),
                broadcasts: subscription.broadcasts,
                joined_ids,
            };
            match hub.begin_stream(reserved, session, beginning) {
                Ok(()) => return true,
                // Quadruple the space, so that the loop terminates at any rate of publishing.
                Err(NotJoined::Full) => more_bytes *= 4,
                Err(_) => return false,
            }
        }
    }

    /// Follows the rooms of a subscription, so that none of them ends before the stream begins. Sorts them, because all
    /// threads that lock several rooms must do so in the same order.
    fn follow(&self, hub: &Hub, subscription: &Subscription) -> Result<Vec<Followed>, Reject> {
        let names = &subscription.rooms;
        if names.len() > hub.connection_rooms_max() {
            return Err(too_many("of a client"));
        }
        let mut rooms = Vec::with_capacity(names.len());
        for name in names {
            match self.follow_one(hub, name) {
                Ok(followed) => rooms.push(followed),
                Err(refused) => {
                    self.unfollow(&rooms);
                    return Err(refused);
                }
            }
        }
        rooms.sort_by_key(|followed| Arc::as_ptr(&followed.room.members).addr());
        Ok(rooms)
    }

    fn follow_one(&self, hub: &Hub, name: &str) -> Result<Followed, Reject> {
        loop {
            let room = match self.rooms.find_or_make(hub, name) {
                Ok(room) => room,
                Err(JoinErrorReason::NameTooLong) => {
                    return Err(Reject::new(400).with_body("the name of the room is too long\n"));
                }
                Err(_) => return Err(too_many("in all")),
            };
            #[cfg(feature = "cluster")]
            if !self.wait_for_messages(&room) {
                return Err(Reject::new(503).with_header("Retry-After", "1").with_body(
                    "the broker of the cluster can't be reached, so the history can't be read\n",
                ));
            }
            // If the room has ended just now, retry: the next look-up creates another of the same name.
            if let Some(streams) = hub.follow(&room.members) {
                return Ok(Followed { room, streams });
            }
        }
    }

    fn unfollow(&self, rooms: &[Followed]) {
        for followed in rooms {
            if let Some(empty) = followed.streams.leave() {
                self.rooms.emptied(&empty);
            }
        }
    }
}

/// A room that an event stream follows or is about to follow.
struct Followed {
    room: RoomEntry,
    streams: Arc<engine::SharedRoom>,
}

/// The names of the rooms that keep a history, by epoch. The epochs do not change while the rooms are followed.
fn names_by_epoch(rooms: &[Followed]) -> impl Iterator<Item = (u64, &str)> {
    rooms.iter().filter_map(|Followed { room, .. }| {
        let epoch = room.history()?.position().epoch();
        Some((epoch, &*room.members.name))
    })
}

fn too_many(of: &str) -> Reject {
    debug!("an event stream is refused: there are too many rooms {of}");
    Reject::new(503)
        .with_header("Retry-After", "5")
        .with_body("there are too many rooms\n")
}

/// The most rooms that the id of one event names. Clients of more rooms with a history can resume only on the node that they
/// were connected to.
const JOINED_IDS_MAX: usize = 8;

/// The longest id of a message, and a comma.
const HISTORY_ID_BYTES_MAX: usize = 16 + 1 + 20 + 1;

fn lock_all(rooms: &[Followed]) -> Vec<MutexGuard<'_, History>> {
    let histories = rooms.iter().map(|followed| followed.room.history());
    histories.flatten().collect()
}

/// Locks the messages of all keyed rooms, after the histories. The rooms are sorted, so that threads don't wait for each other.
fn lock_keyed(rooms: &[Followed]) -> Vec<MutexGuard<'_, KeyedMessages>> {
    let keyed = rooms.iter().map(|followed| followed.room.keyed_messages());
    keyed.flatten().collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::OnceLock;

    use super::super::replay_cache::ReplayMemory;
    use super::*;
    use crate::metrics::Counters;

    /// Plans the replay of a stream, publishes while it is being rendered, and returns whether it is ready then.
    fn is_ready(messages_max: usize, seen: Option<u64>, published_meanwhile: u64) -> bool {
        let kept = RoomHistory::new(History::new(messages_max, 1 << 20));
        let push = |count| {
            for _ in 0..count {
                let mut history = kept.history();
                let stamp = history.last_stamp() + 1;
                history.push(Message::new(format!("rain {stamp}")), stamp);
            }
        };
        push(10);
        let (renderers, counters) = (OnceLock::new(), Counters::default());
        let memory = Arc::<ReplayMemory>::default();
        let budget = ReplayBudget {
            memory: &memory,
            bytes_max: 1 << 20,
        };
        let via = (Renderer::new(&renderers, &counters, 1_000), budget);
        let mut events = ReplayFrames::new(("news", &kept), None, ReplayForm::Events, via);
        let histories = [kept.history()];
        let seen = seen.map(|sequence| HistoryId::new(histories[0].epoch(), sequence));
        let seen: Vec<_> = seen.map(Some).into_iter().collect();
        let plan = ReplayPlan::new(&histories, &seen, true);
        begin(&mut events, &plan, &histories[0]);
        drop(histories);
        push(published_meanwhile);
        events.render(&kept).is_ok()
    }

    #[test]
    fn replay_from_the_oldest_message_is_ready_whatever_is_displaced() {
        for published in [0, 1, 5, 100] {
            assert!(is_ready(5, None, published));
            assert!(
                is_ready(5, Some(2), published),
                "the client has missed some"
            );
        }
    }

    #[test]
    fn replay_after_a_message_is_planned_again_once_the_next_one_is_displaced() {
        assert!(is_ready(5, Some(7), 2));
        assert!(!is_ready(5, Some(7), 3));
    }
}
