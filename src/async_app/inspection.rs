//! Inspecting an app: its connections, the slowest first.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::connection_id::ConnectionId;
use super::publish::AppShared;
use crate::cork;
use crate::engine::{Answers, ConnectionReport, Encoding};
use crate::user_threads::must_not_block;

/// How long a caller waits for the shards.
const ANSWERS_WAIT_MAX: Duration = Duration::from_millis(500);

/// The connections that [`AsyncSender::inspect`](crate::AsyncSender::inspect) returns.
///
/// ```
/// use humphrey_ws::Inspect;
///
/// let top = Inspect::slowest(20);
/// assert_ne!(top, Inspect::all());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspect(Selected);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Selected {
    Slowest(usize),
    One(ConnectionId),
}

impl Inspect {
    /// Selects the `limit` slowest connections: those with the greatest [`lag`](ConnectionInfo::lag), and among connections
    /// with the same lag those with the most [`waiting_bytes`](ConnectionInfo::waiting_bytes). The memory for the answer
    /// depends on `limit` and not on the number of connections: some 300 bytes for each, its path, and the names of its
    /// rooms.
    pub fn slowest(limit: usize) -> Self {
        Self(Selected::Slowest(limit))
    }

    /// Selects all connections.
    pub fn all() -> Self {
        Self::slowest(usize::MAX)
    }

    /// Selects one connection, if it is connected to this node.
    pub fn connection(id: ConnectionId) -> Self {
        Self(Selected::One(id))
    }
}

/// The connections of this node, as [`AsyncSender::inspect`](crate::AsyncSender::inspect) has found them.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Inspection {
    /// The selected connections, the slowest first: by [`lag`](ConnectionInfo::lag), then by
    /// [`waiting_bytes`](ConnectionInfo::waiting_bytes), then by id.
    pub connections: Vec<ConnectionInfo>,
    /// How many connections there are, selected or not, on the shards that have answered. For [`Inspect::connection`]: 1 or
    /// 0.
    pub total: usize,
    /// Whether all shards have answered in time. If not, the connections of the others are missing.
    pub is_complete: bool,
}

/// A WebSocket connection or event stream, at the moment when its shard has looked at it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Identifies the connection, for [`AsyncSender::close`](crate::AsyncSender::close).
    pub id: ConnectionId,
    /// Whether it is a WebSocket or an event stream.
    pub kind: ConnectionKind,
    /// The address of the peer: the client, or a proxy.
    pub peer: SocketAddr,
    /// The address of the client, as [`AsyncStream::client_ip`](crate::AsyncStream::client_ip) returns it.
    pub client_ip: IpAddr,
    /// The path of the request that opened it, without the query and not decoded.
    pub path: String,
    /// The user, if the handshake handler or the subscription has named one ([`Accept::user`](crate::Accept::user)).
    pub user: Option<String>,
    /// The names of the rooms that it has joined, or that the event stream follows, sorted.
    pub rooms: Vec<String>,
    /// The subprotocol, if one was agreed.
    pub subprotocol: Option<String>,
    /// The bytes that the library holds for the client because its socket has not accepted them, with the headers of frames
    /// and with replays of rooms. With TLS, those that are sealed and not sent count, too. What the kernel has accepted, and
    /// the client has not, is not known: up to several megabytes, or on Linux 128 KiB where new messages displace old ones ([`SlowConsumer`](crate::SlowConsumer)),
    /// and 16 KiB for a member of a keyed room.
    pub waiting_bytes: usize,
    /// How long the oldest message that the library still holds for the client, or holds a part of, has waited in the
    /// client's outbox; zero if none waits. So it is how far behind the client is, without what the kernel has accepted.
    ///
    /// It is exact to about 10 ms, except that messages of up to 4 KiB that were joined have the time of the oldest. Time in
    /// which the process could not run does not count, nor does the time that messages spend in a mailbox, where they wait
    /// for a slow client under [`SlowConsumer::Pace`](crate::SlowConsumer::Pace). Messages that a policy has dropped don't
    /// count any more.
    pub lag: Duration,
    /// How long it has been open, to within a second.
    pub connected_for: Duration,
    /// Whether it is being closed: the client gets the waiting bytes, and nothing after them.
    pub is_closing: bool,
    /// Whether the client, or the proxy in front of it, speaks TLS to this app.
    pub is_tls: bool,
    /// Whether compression (RFC 7692) was agreed.
    pub is_compressed: bool,
}

/// The kind of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionKind {
    /// A WebSocket (RFC 6455).
    WebSocket,
    /// A stream of server-sent events ([`with_event_stream`](crate::AsyncWebsocketApp::with_event_stream)).
    EventStream,
}

impl AppShared {
    /// Asks the shards for connections, and waits for their answers.
    pub(super) fn inspect(&self, inspect: Inspect) -> Inspection {
        let nothing = |is_complete| Inspection {
            is_complete,
            ..Inspection::default()
        };
        let Some(hub) = self.engine().filter(|hub| !hub.has_ended()) else {
            return nothing(true);
        };
        if must_not_block() {
            // The shard that has to answer may be the one that runs this.
            return nothing(false);
        }
        cork::before_waiting();
        let (pending, limit) = match inspect.0 {
            Selected::Slowest(limit) => (hub.inspect(limit), limit),
            Selected::One(id) => match self.local_id(id) {
                Some(id) => (hub.inspect_one(id), 1),
                None => return nothing(true),
            },
        };
        let Answers {
            mut reports,
            connections,
            is_complete,
        } = pending.wait(Instant::now() + ANSWERS_WAIT_MAX);
        reports.sort_unstable_by_key(|report| {
            (
                Reverse(report.lag),
                Reverse(report.waiting_bytes),
                report.id,
            )
        });
        reports.truncate(limit);
        let connections_found = reports.into_iter().map(|report| self.info_of(report));
        Inspection {
            connections: connections_found.collect(),
            total: connections,
            is_complete,
        }
    }

    fn info_of(&self, report: ConnectionReport) -> ConnectionInfo {
        let mut rooms: Vec<String> = report.rooms.iter().map(|name| name.to_string()).collect();
        rooms.sort_unstable();
        ConnectionInfo {
            id: self.id_of(report.id),
            kind: match report.encoding {
                Encoding::Frames => ConnectionKind::WebSocket,
                Encoding::Events => ConnectionKind::EventStream,
            },
            peer: report.peer,
            client_ip: report.client_ip,
            path: report.path.into(),
            user: report.user.map(|user| user.to_string()),
            rooms,
            subprotocol: report.subprotocol.map(Into::into),
            waiting_bytes: report.waiting_bytes,
            lag: report.lag,
            connected_for: report.connected_for,
            is_closing: report.is_closing,
            is_tls: report.is_tls,
            is_compressed: report.is_compressed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::async_app::AsyncWebsocketApp;
    use crate::user_threads::while_nonblocking;

    #[test]
    fn inspection_where_nothing_may_block_is_incomplete_at_once() {
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_with_config((), 1, 1);
        let running = app
            .with_address("127.0.0.1:0")
            .with_shards(1)
            .start()
            .unwrap();
        let sender = running.sender();
        let inspection = while_nonblocking(|| sender.inspect(Inspect::all()));
        assert!(!inspection.is_complete && inspection.connections.is_empty());
        running.shutdown(Duration::ZERO);
    }
}
