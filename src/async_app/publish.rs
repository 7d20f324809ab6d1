//! The one way out: everything that is sent goes through here.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use super::directory::Directory;
use super::rooms::{NAME_BYTES_MAX, Rooms};
use crate::engine::{self, ConnectionId, Hub, Mail, NotJoined, Refused, Session, Status};
use crate::error::{JoinError, JoinErrorReason, SendError, SendErrorReason};
use crate::message::Message;
use crate::metrics::{self, Counters, Metrics};
use crate::protocol::close::{CloseCode, reason_prefix};
use crate::report::warning;
use crate::stream::WebsocketStream;

/// What a linked Humphrey app hands its WebSocket connections over with.
pub(super) type Hook = Arc<Mutex<mpsc::Sender<WebsocketStream>>>;

/// What an app shares with its senders and streams, before, while and after it runs.
#[derive(Default)]
pub(super) struct Link {
    hub: OnceLock<Arc<Hub>>,
    pub(super) directory: Directory,
    pub(super) rooms: Rooms,
    /// Messages that never reached an engine.
    counters: Counters,
    hook: OnceLock<Hook>,
}

// A panic elsewhere leaves none of it half changed: what locks guard is replaced whole.
impl UnwindSafe for Link {}
impl RefUnwindSafe for Link {}

/// Who is to get a message.
pub(super) enum Audience<'a> {
    Session(&'a Session),
    Connection(ConnectionId),
    /// Nobody has that address.
    Nobody,
    Everyone {
        except: Option<ConnectionId>,
    },
    /// Those in the room of that name.
    Room {
        name: &'a str,
        except: Option<ConnectionId>,
    },
}

impl<'a> Audience<'a> {
    /// All but the one, if any. Everyone is the room without a name.
    pub(super) fn of_room(name: Option<&'a str>, except: Option<ConnectionId>) -> Self {
        match name {
            Some(name) => Self::Room { name, except },
            None => Self::Everyone { except },
        }
    }
}

/// Whether to wait while a mailbox is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Wait,
    Try,
}

impl Link {
    pub(super) fn set_hook(&self, hook: Hook) {
        // The app has made the link itself, for this hook.
        let _ = self.hook.set(hook);
    }

    /// The engine runs.
    pub(super) fn started(&self, hub: Arc<Hub>) {
        self.rooms.set_rooms_max(hub.rooms_max());
        // An app starts once: starting consumes it.
        let _ = self.hub.set(hub);
    }

    /// Sends a message. What is not sent is counted, and handed back.
    pub(super) fn publish(
        &self,
        to: Audience<'_>,
        message: Message,
        patience: Patience,
    ) -> Result<(), SendError> {
        let refuse = |message, reason| Err(SendError { message, reason });
        let Some(hub) = self.hub.get().filter(|hub| !hub.has_stopped()) else {
            self.counters.dropped_not_running.add(1);
            return refuse(message, SendErrorReason::Closed);
        };
        if message.bytes().len() > hub.message_bytes_max() {
            self.counters.dropped_too_large.add(1);
            return refuse(message, SendErrorReason::TooLarge);
        }
        let frame = message.frame();
        let id = match to {
            Audience::Everyone { except } => {
                let to = engine::Audience { room: None, except };
                return self
                    .broadcast(hub, to, frame, patience)
                    .or_else(|reason| refuse(message, reason));
            }
            Audience::Room { name, except } => {
                let Some(room) = self.rooms.find(name) else {
                    // Nobody listens: that is no error of the sender's.
                    self.counters.dropped_no_recipient.add(1);
                    return Ok(());
                };
                let to = engine::Audience {
                    room: Some(&room),
                    except,
                };
                return self
                    .broadcast(hub, to, frame, patience)
                    .or_else(|reason| refuse(message, reason));
            }
            Audience::Nobody => {
                self.counters.dropped_no_recipient.add(1);
                return refuse(message, SendErrorReason::Closed);
            }
            Audience::Connection(id) => id,
            Audience::Session(session) => {
                match (session.status(), patience) {
                    (Status::Closed, _) => {
                        self.counters.dropped_closed.add(1);
                        return refuse(message, SendErrorReason::Closed);
                    }
                    (Status::Full, Patience::Try) => return refuse(message, SendErrorReason::Full),
                    _ => {}
                }
                session.id
            }
        };
        let patient = patience == Patience::Wait;
        match hub.post(id, Mail::Send(id.key(), frame.clone()), patient) {
            Ok(()) => Ok(()),
            Err(refused) => refuse(message, self.refused(refused)),
        }
    }

    fn broadcast(
        &self,
        hub: &Hub,
        to: engine::Audience<'_>,
        frame: &Bytes,
        patience: Patience,
    ) -> Result<(), SendErrorReason> {
        let outcome = match patience {
            Patience::Wait => hub.broadcast(frame, to),
            Patience::Try => hub.try_broadcast(frame, to),
        };
        match outcome {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.counters.dropped_no_recipient.add(1);
                Ok(())
            }
            Err(refused) => Err(self.refused(refused)),
        }
    }

    /// Has a connection join a room; everyone is in the room without a name.
    pub(super) fn join(
        &self,
        name: Option<&str>,
        session: Option<&Session>,
    ) -> Result<(), JoinError> {
        let refuse = |reason| {
            let name = name.unwrap_or_default();
            let shown = name.floor_char_boundary(NAME_BYTES_MAX);
            Err(JoinError {
                room: name[..shown].to_owned(),
                reason,
            })
        };
        let hub = self.hub.get().filter(|hub| !hub.has_stopped());
        let (Some(hub), Some(session)) = (hub, session) else {
            return refuse(JoinErrorReason::Closed);
        };
        let Some(name) = name else {
            return Ok(());
        };
        loop {
            let room = match self.rooms.find_or_make(hub, name) {
                Ok(room) => room,
                Err(reason) => return refuse(reason),
            };
            let reason = match hub.join(&room, session, Vec::new()) {
                Ok(_) => return Ok(()),
                // The last one has left at this moment. There will be another of this name.
                Err(NotJoined::Retired) => continue,
                Err(NotJoined::Closed) => JoinErrorReason::Closed,
                Err(NotJoined::TooMany) => JoinErrorReason::ConnectionRooms,
            };
            if room.retire() {
                // It was made in vain.
                self.rooms.forget(&room);
            }
            return refuse(reason);
        }
    }

    /// Has a connection leave a room.
    pub(super) fn leave(&self, name: &str, session: &Session) {
        if let (Some(hub), Some(room)) = (self.hub.get(), self.rooms.find(name)) {
            hub.leave(&room, session);
            if room.is_retired() {
                self.rooms.forget(&room);
            }
        }
    }

    /// For those who do not ask whether it worked.
    pub(super) fn warn_of(&self, joined: Result<(), JoinError>) {
        // That a client has gone is no news.
        if let Err(error) = joined
            && error.reason != JoinErrorReason::Closed
        {
            warning!("{error}");
        }
    }

    /// A full mailbox is no loss: the message goes back.
    fn refused(&self, refused: Refused) -> SendErrorReason {
        match refused {
            Refused::Full => SendErrorReason::Full,
            Refused::Closed => {
                self.counters.dropped_not_running.add(1);
                SendErrorReason::Closed
            }
        }
    }

    /// Closes a connection, behind what was sent to it before.
    pub(super) fn close(&self, id: ConnectionId, code: CloseCode, reason: &str) {
        if let Some(hub) = self.hub.get() {
            let mail = Mail::Close(id.key(), code, reason_prefix(reason).into());
            // Refused only by an engine that stops, and closes everyone.
            let _ = hub.post(id, mail, true);
        }
    }

    pub(super) fn connections(&self) -> usize {
        self.hub.get().map_or(0, |hub| hub.members())
    }

    pub(super) fn metrics(&self) -> Metrics {
        let mut sum = self.common_metrics();
        if let Some(hub) = self.hub.get() {
            hub.add_shard_metrics(&mut sum);
        }
        sum
    }

    /// What belongs to no shard.
    fn common_metrics(&self) -> Metrics {
        let mut common = Metrics {
            rooms: self.rooms.len() as u64,
            ..Metrics::default()
        };
        self.counters.add_to(&mut common);
        if let Some(hub) = self.hub.get() {
            hub.add_common_metrics(&mut common);
        }
        common
    }

    pub(super) fn metrics_by_shard(&self) -> Vec<Metrics> {
        self.hub
            .get()
            .map_or_else(Vec::new, |hub| hub.shard_metrics())
    }

    pub(super) fn prometheus(&self) -> String {
        let shards = self.metrics_by_shard();
        let mut parts = vec![("none".to_owned(), self.common_metrics())];
        parts.extend((0..).map(|n: usize| n.to_string()).zip(shards));
        metrics::render(&parts)
    }

    pub(super) fn shutdown(&self, wait: Duration) {
        if let Some(hub) = self.hub.get() {
            hub.stop(wait);
        }
        // With its sender gone, the thread that adopts ends, and further hand-overs fail cleanly.
        if let Some(hook) = self.hook.get() {
            let mut hook = hook.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *hook = mpsc::channel().0;
        }
    }
}
