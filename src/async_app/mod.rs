//! The asynchronous app: handlers for connections, messages and disconnections, and senders for any thread.
//!
//! Depends on `engine`, which calls its handlers, and on `host`, which supplies connections. This module knows names
//! and addresses; the engine knows numbers. Everything that is sent goes through `publish`.

mod app;
#[cfg(feature = "cluster")]
mod cluster;
mod connection_id;
mod directory;
mod event_stream;
mod handler;
mod history;
mod id_turns;
mod inspection;
mod keyed;
mod keyed_broadcast;
mod keyed_events;
mod prepared_message;
mod presence;
pub(crate) mod procedures;
mod program;
mod publish;
mod recipients;
mod renderer;
mod rendering;
mod replay_blocks;
mod replay_cache;
mod replay_frames;
mod room;
mod room_broadcast;
mod room_entry;
mod room_join;
mod room_names;
mod rooms;
mod running;
mod sender;
mod session_expiry;
#[cfg(feature = "cluster")]
mod shared_history;
mod stream;
mod stream_link;

pub use self::app::{AsyncWebsocketApp, HumphreyLink};
pub use self::connection_id::{ConnectionId, InvalidConnectionId};
pub use self::event_stream::{EventStreamHandler, Subscription};
pub use self::handler::{
    BodyGuard, EventHandler, HandshakeHandler, MessageHandler, MessageHandlerRef, RoomHandler,
};
pub use self::inspection::{ConnectionInfo, ConnectionKind, Inspect, Inspection};
pub use self::presence::{PresenceRooms, PresentMember, RoomPresence};
pub use self::procedures::{JoinHandler, RefreshHandler};
#[cfg(feature = "cluster")]
pub use self::renderer::HistoryGap;
pub use self::renderer::KeptMessage;
#[cfg(feature = "cluster")]
pub use self::room::Everywhere;
pub use self::room::Room;
pub use self::running::RunningApp;
pub use self::sender::AsyncSender;
pub use self::stream::{AsyncStream, OutgoingMessage, StatefulWebsocketStream};
