//! Event streams: what a client of one gets, and how it comes to get it.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::history::History;
use super::publish::AppShared;
use super::rendering::event;
use super::room_entry::RoomEntry;
use crate::engine::{self, Beginning, Hub, NotJoined, Session};
use crate::error::JoinErrorReason;
use crate::history_id::HistoryId;
use crate::message::Message;
use crate::protocol::event_stream::{self, Position};
use crate::report::debug;
use crate::request::{Reject, RequestHead};

/// A function that decides about a request for an event stream.
///
/// It gets the request and the app's state, and returns what the client is to get, or what it is answered instead. It may
/// block: only this client waits for it.
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

/// Event streams by the pattern of their paths; the first that fits counts.
pub(super) type EventStreams<S> = Vec<(Box<str>, Box<dyn EventStreamHandler<S>>)>;

/// What a client of an event stream gets: the messages of rooms, broadcasts to everyone, or both. What an
/// [event stream's](crate::AsyncWebsocketApp::with_event_stream) function returns for a request.
///
/// A room that is in it does not get a member by it: [`Room::members`](crate::Room::members) and
/// [`Room::len`](crate::Room::len) are of WebSockets only, and no handler hears of the client.
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
    /// How long a client waits before it connects again, if the subscription does not say.
    pub const RETRY_DEFAULT: Duration = Duration::from_secs(2);
    /// How long a stream is silent at most, if the subscription does not say: proxies give up on a connection that is
    /// silent for a minute or even half of one.
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

    /// The messages of a room.
    pub fn room(name: impl Into<String>) -> Self {
        Self::nothing().and_room(name)
    }

    /// What is broadcast to everyone ([`AsyncSender::broadcast`](crate::AsyncSender::broadcast)).
    pub fn broadcasts() -> Self {
        Self::nothing().with_broadcasts()
    }

    /// Adds the messages of another room.
    pub fn and_room(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        if !self.rooms.contains(&name) {
            self.rooms.push(name);
        }
        self
    }

    /// Adds what is broadcast to everyone.
    pub fn with_broadcasts(mut self) -> Self {
        self.broadcasts = true;
        self
    }

    /// Has a client that comes for the first time begin with what the rooms have kept
    /// ([`with_history`](crate::AsyncWebsocketApp::with_history)). Otherwise it begins with what is new.
    ///
    /// A client that comes again, and names the last event that it has seen, always gets what it has missed since.
    pub fn with_history(mut self) -> Self {
        self.history = true;
        self
    }

    /// Sets how long a client is to wait before it connects again when the stream has ended, in whole milliseconds
    /// (default: 2 seconds).
    pub fn with_retry(mut self, retry: Duration) -> Self {
        self.retry = retry;
        self
    }

    /// Sets after how long a comment is sent where nothing else waits (default: every
    /// [15 seconds](Self::KEEP_ALIVE_DEFAULT); less than a second counts as one). It keeps proxies from cutting a silent connection, and
    /// finds broken connections. Set it to less than half of the shortest time-out of the proxies in front of the app.
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

    /// Says whom the event stream belongs to, as [`Accept::user`](crate::Accept::user) does for WebSockets: it counts among
    /// the user's connections, and ends with them.
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

    /// Has the event stream end at a given time, or within a second after it. Default: it does not expire.
    ///
    /// Browsers then ask for the stream again, and go on behind the last event that they have seen. Have the handler
    /// answer with 401 then, or with 204, if the client has no new credentials: both tell a browser to stop. The time is
    /// taken as by [`Accept::expires_at`](crate::Accept::expires_at); if it has passed already, the answer is 401.
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

/// What a client is sent before what is new.
#[derive(Default)]
struct Replay {
    /// It has missed what is not kept any more.
    reset: bool,
    /// Where it is, if no message of the replay says so.
    position: Option<HistoryId>,
    /// It would miss messages if it connected again and did not know where it was: it comes for the first time, and begins with
    /// what is new. Otherwise it names the same id again, or begins with what is kept again.
    needs_position: bool,
    messages: Vec<(HistoryId, Message)>,
}

impl Replay {
    /// What is to be replayed of rooms whose histories are locked all at once: to a client that has seen everything up to
    /// those events, or comes for the first time. An event is `None` if what the client has named is no id.
    fn plan(
        histories: &[MutexGuard<'_, History>],
        seen: &[Option<HistoryId>],
        from_start: bool,
    ) -> Self {
        let mut replay = Self::default();
        if histories.is_empty() {
            return replay;
        }
        let from = match seen {
            [] => from_start.then(|| vec![0; histories.len()]),
            seen => {
                let known = stamps_seen(histories, seen);
                replay.reset = known.is_none();
                known.or_else(|| Some(vec![0; histories.len()]))
            }
        };
        let begins_with_new = from.is_none();
        if let Some(stamps) = from {
            let mut messages: Vec<_> = histories
                .iter()
                .zip(stamps)
                .flat_map(|(history, stamp)| history.after_stamp(stamp))
                .collect();
            messages.sort_by_key(|&(_, _, stamp)| stamp);
            replay.messages = messages
                .into_iter()
                .map(|(id, message, _)| (id, message.clone()))
                .collect();
        }
        if replay.messages.is_empty() {
            let latest = histories.iter().max_by_key(|history| history.last_stamp());
            replay.position = latest.map(|history| history.position());
            replay.needs_position = begins_with_new;
        }
        replay
    }
}

/// Up to which stamp a client has seen each of the rooms; `None` if what it has missed is not kept as a whole.
///
/// An event says so for its own room. In the others the client has seen what was sent before the latest of them.
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

/// A request for an event stream that is granted: its session's attachment, until it is put into effect.
struct PendingSubscription {
    subscription: Subscription,
    /// The last events that the client has seen, as it says: one, or one of each of several rooms.
    last_events: Vec<String>,
    /// It asks to be told of which rooms the messages are.
    asks_for_rooms: bool,
    /// Of the answer.
    head: Vec<u8>,
}

type SubscriptionSlot = Mutex<Option<Box<PendingSubscription>>>;

impl AppShared {
    /// What is to be known of a request when its stream begins.
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

    /// Has an event stream begin, on a handler's thread.
    pub(super) fn subscribe(&self, session: &Session) {
        let attachment = session.attachment.get();
        let attachment = attachment.and_then(|any| any.downcast_ref::<SubscriptionSlot>());
        let pending = attachment.and_then(|pending| pending.lock().ok()?.take());
        // Whoever stops the engine answers.
        if let (Some(hub), Some(pending)) = (self.running(), pending)
            && let Err(refused) = self.try_subscribe(hub, session, &pending)
        {
            hub.refuse_stream(session, &refused);
        }
    }

    fn try_subscribe(
        &self,
        hub: &Hub,
        session: &Session,
        pending: &PendingSubscription,
    ) -> Result<(), Reject> {
        let rooms = self.follow(hub, &pending.subscription)?;
        if !self.begin(hub, session, pending, &rooms) {
            self.part(&rooms);
        }
        Ok(())
    }

    /// Returns whether the stream has begun. If not, its client has gone, or the engine stops.
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
            Replay::plan(histories, &seen, subscription.history)
        };
        let streams: Vec<_> = rooms.iter().map(|room| room.streams.clone()).collect();
        let names = match asks_for_rooms {
            true => event_stream::rooms(names_by_epoch(rooms)),
            false => Vec::new(),
        };
        // Rendered without a lock; what is published meanwhile is little.
        let mut rendered: HashMap<HistoryId, Bytes> = HashMap::new();
        // For the head, and for what is published meanwhile.
        let mut more_bytes = (16 << 10) + names.len();
        loop {
            for (id, message) in plan(&lock_all(rooms)).messages {
                rendered
                    .entry(id)
                    .or_insert_with(|| event(&message, Some(id)));
            }
            let bytes = rendered
                .values()
                .map(|bytes| bytes.len() + EVENT_BYTES_MORE);
            let Ok(reserved) = hub.reserve_stream(session, bytes.sum::<usize>() + more_bytes)
            else {
                return false;
            };
            let histories = lock_all(rooms);
            // What comes next is behind the replay, and is not in it.
            let replay = plan(&histories);
            let retry = u64::try_from(subscription.retry.as_millis()).unwrap_or(u64::MAX);
            let position = replay.position.map(|id| id.to_string());
            let here = position.as_deref();
            let mut preface = head.clone();
            let told = match here {
                // The event that says that messages are missing has the id.
                Some(_) if replay.reset => Position::Untold,
                // The event that names the rooms carries it, too.
                Some(id) if replay.needs_position && names.is_empty() => Position::AtOnce(id),
                Some(id) => Position::WithFirstEvent(id),
                None => Position::Untold,
            };
            preface.extend(event_stream::preamble(retry, told));
            preface.extend_from_slice(&names);
            if replay.reset {
                preface.extend(event_stream::reset(&last_events.join(" "), here));
            }
            let as_event = |(id, message): (HistoryId, Message)| match rendered.get(&id) {
                Some(bytes) => bytes.clone(),
                None => event(&message, Some(id)),
            };
            let beginning = Beginning {
                preface,
                rooms: &streams,
                keep_alive: subscription.keep_alive,
                replay: replay.messages.into_iter().map(as_event).collect(),
                broadcasts: subscription.broadcasts,
            };
            match hub.begin_stream(reserved, session, beginning) {
                Ok(()) => return true,
                // So that it comes to an end, however much is published meanwhile.
                Err(NotJoined::Full) => more_bytes *= 4,
                Err(_) => return false,
            }
        }
    }

    /// Follows the rooms of a subscription, so that none of them ends meanwhile; in an order that is the same for all who
    /// lock several.
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
                    self.part(&rooms);
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
            // Where it has ended at this moment, there will be another of its name.
            if let Some(streams) = hub.follow(&room.members) {
                return Ok(Followed { room, streams });
            }
        }
    }

    fn part(&self, rooms: &[Followed]) {
        for followed in rooms {
            if let Some(empty) = followed.streams.part() {
                self.rooms.emptied(&empty);
            }
        }
    }
}

/// A room that an event stream follows, or is about to.
struct Followed {
    room: RoomEntry,
    streams: Arc<engine::Room>,
}

/// The rooms that keep a history, which is the same one for as long as they are followed.
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

/// What an event takes in a mailbox beside its bytes.
const EVENT_BYTES_MORE: usize = size_of::<Bytes>();

fn lock_all(rooms: &[Followed]) -> Vec<MutexGuard<'_, History>> {
    let histories = rooms.iter().map(|followed| followed.room.history());
    histories.flatten().collect()
}
