//! A broker server in the process. It delays, breaks connections, freezes and restarts when it is told to.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;

use super::stored::{Deletion, Refusal, Restart, Stored};
use crate::cluster::broker::{Appended, Channel, Command, Event, Incarnation, Kind, Refused};

/// Far less than a real server's, so that reads are postponed.
const READ_SHARED_BYTES_MAX: usize = 200;
/// Stands for the node of a connection that was given up.
const ABANDONED: usize = usize::MAX;

/// One broker server.
pub(super) struct Server {
    incarnation: u64,
    frozen: bool,
    /// Refuses subscriptions, as a server that executes a long script does.
    pub(super) refuses: bool,
    /// Why it refuses appends and reads.
    pub(super) refusal: Option<Refusal>,
    pub(super) stored: Stored,
    /// By node.
    connections: HashMap<usize, Connection>,
    /// Connections that nodes have given up, and whose commands have arrived.
    abandoned: Vec<Connection>,
    /// Messages that were published, except heartbeats.
    pub(super) published: usize,
}

#[derive(Default)]
struct Connection {
    /// Commands that have not been executed.
    commands: VecDeque<Command>,
    subscriptions: HashSet<Channel>,
    /// Events that the node has not received.
    events: VecDeque<Event>,
}

impl Server {
    pub(super) fn new() -> Self {
        Self {
            incarnation: 1,
            frozen: false,
            refuses: false,
            refusal: None,
            stored: Stored::default(),
            connections: HashMap::new(),
            abandoned: Vec::new(),
            published: 0,
        }
    }

    pub(super) fn is_connected(&self, node: usize) -> bool {
        self.connections.contains_key(&node)
    }

    /// A frozen server accepts connections, and does nothing else.
    pub(super) fn connect(&mut self, node: usize) {
        let mut connection = Connection::default();
        let incarnation = Incarnation(self.incarnation.to_string().into());
        connection.events.push_back(Event::Ready(incarnation));
        self.connections.insert(node, connection);
    }

    pub(super) fn disconnect(&mut self, node: usize) {
        self.connections.remove(&node);
    }

    /// A node gives a connection up, whose commands are executed later all the same.
    pub(super) fn abandon(&mut self, node: usize) {
        self.abandoned.extend(self.connections.remove(&node));
    }

    /// Executes the appends, reads and subscriptions of the connections that were given up, unless they are refused now.
    /// Messages without a history would arrive out of their order.
    pub(super) fn execute_abandoned(&mut self) {
        if self.frozen || self.refuses || self.refusal.is_some() {
            return;
        }
        for mut connection in std::mem::take(&mut self.abandoned) {
            let has_history = |command: &Command| !matches!(command, Command::Publish { .. });
            connection.commands.retain(has_history);
            let before = self.connections.insert(ABANDONED, connection);
            debug_assert!(before.is_none());
            while self.execute(ABANDONED) {}
            self.connections.remove(&ABANDONED);
        }
    }

    pub(super) fn restart(&mut self, restart: Restart) {
        self.incarnation += 1;
        self.connections.clear();
        self.abandoned.clear();
        self.stored.restart(restart);
    }

    pub(super) fn delete(&mut self, room: &str, deletion: Deletion) {
        if deletion == Deletion::All {
            // Without the counters, they would be executed after later ones.
            self.abandoned.clear();
        }
        self.stored.delete(room, deletion);
    }

    pub(super) fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen;
    }

    pub(super) fn command(&mut self, node: usize, command: Command) {
        if let Some(connection) = self.connections.get_mut(&node) {
            connection.commands.push_back(command);
        }
    }

    /// Executes the next command of a node. Returns whether there was one.
    pub(super) fn execute(&mut self, node: usize) -> bool {
        if self.frozen {
            return false;
        }
        let Some(connection) = self.connections.get_mut(&node) else {
            return false;
        };
        let Some(command) = connection.commands.pop_front() else {
            return false;
        };
        match command {
            Command::Subscribe(_) if self.refuses => {
                connection.events.push_back(refused(Kind::Subscribe));
            }
            Command::Subscribe(channels) => {
                for channel in channels {
                    connection.subscriptions.insert(channel.clone());
                    connection.events.push_back(Event::Subscribed(channel));
                }
            }
            Command::Unsubscribe(channels) => {
                for channel in channels {
                    connection.subscriptions.remove(&channel);
                }
            }
            Command::Publish { channel, envelope } => {
                if channel != Channel::Nodes {
                    self.published += 1;
                }
                self.stored.done.has_published(&envelope);
                let receivers = self.send(&Event::Message {
                    channel,
                    id: None,
                    envelope,
                });
                self.answer(node, Event::Published { receivers });
            }
            Command::Append(append) => {
                let (refusal, incarnation) = (self.refusal, self.incarnation);
                let appended = self.stored.append(&append, incarnation, refusal);
                if let Some(Appended::Id(id)) = appended {
                    self.send(&Event::Message {
                        channel: Channel::Room(append.room),
                        id: Some(id),
                        envelope: append.envelope,
                    });
                }
                let answer = appended.map_or_else(|| refused(Kind::Append), Event::Appended);
                self.answer(node, answer);
            }
            Command::Read(reads) => {
                let (refusal, incarnation) = (self.refusal, self.incarnation);
                let histories = reads.iter();
                let histories = histories.map(|read| self.stored.read(read, incarnation, refusal));
                let histories: Option<Vec<_>> = histories.collect();
                match histories {
                    Some(histories) => {
                        let mut bytes = 0;
                        for (at, history) in histories.into_iter().enumerate() {
                            let sum =
                                bytes + history.messages.iter().map(Bytes::len).sum::<usize>();
                            if at > 0 && sum > READ_SHARED_BYTES_MAX {
                                self.answer(node, Event::ReadPostponed);
                            } else {
                                bytes = sum;
                                self.answer(node, Event::History(history));
                            }
                        }
                    }
                    None => reads
                        .iter()
                        .for_each(|_| self.answer(node, refused(Kind::Read))),
                }
            }
        }
        true
    }

    /// Sends a message to the subscribers of its channel. Returns their number.
    fn send(&mut self, event: &Event) -> u64 {
        let Event::Message { channel, .. } = event else {
            return 0;
        };
        let mut receivers = 0;
        for connection in self.connections.values_mut() {
            if connection.subscriptions.contains(channel) {
                receivers += 1;
                connection.events.push_back(event.clone());
            }
        }
        receivers
    }

    fn answer(&mut self, node: usize, answer: Event) {
        if let Some(connection) = self.connections.get_mut(&node) {
            connection.events.push_back(answer);
        }
    }

    /// Loses the first message of a history that is on its way to a node.
    pub(super) fn lose_message(&mut self, node: usize) {
        if let Some(connection) = self.connections.get_mut(&node) {
            let is_of_history = |event: &Event| matches!(event, Event::Message { id: Some(_), .. });
            if let Some(at) = connection.events.iter().position(is_of_history) {
                connection.events.remove(at);
            }
        }
    }

    /// Takes the next event for a node.
    pub(super) fn event(&mut self, node: usize) -> Option<Event> {
        if self.frozen {
            return None;
        }
        self.connections.get_mut(&node)?.events.pop_front()
    }

    /// The number of subscriptions to rooms.
    pub(super) fn subscriptions(&self) -> usize {
        let connections = self.connections.values();
        let channels = connections.flat_map(|connection| &connection.subscriptions);
        channels
            .filter(|channel| matches!(channel, Channel::Room(_)))
            .count()
    }

    pub(super) fn subscribers(&self, channel: &Channel) -> usize {
        let connections = self.connections.values();
        connections
            .filter(|connection| connection.subscriptions.contains(channel))
            .count()
    }
}

fn refused(command: Kind) -> Event {
    Event::Refused(Refused {
        command,
        error: "BUSY".into(),
        passes: true,
    })
}
