//! A broker server in the process. It delays, breaks connections, freezes and restarts when it is told to.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::cluster::broker::{Channel, Command, Event, Incarnation, Kind, Refused};

/// One broker server.
pub(super) struct Server {
    incarnation: u64,
    frozen: bool,
    /// Refuses subscriptions, as a server that executes a long script does.
    pub(super) refuses: bool,
    /// By node.
    connections: HashMap<usize, Connection>,
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
            connections: HashMap::new(),
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

    pub(super) fn restart(&mut self) {
        self.incarnation += 1;
        self.connections.clear();
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
                let refused = Refused {
                    command: Kind::Subscribe,
                    error: "BUSY".into(),
                    passes: true,
                };
                connection.events.push_back(Event::Refused(refused));
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
                let mut receivers = 0;
                for connection in self.connections.values_mut() {
                    if connection.subscriptions.contains(&channel) {
                        receivers += 1;
                        connection.events.push_back(Event::Message {
                            channel: channel.clone(),
                            id: None,
                            envelope: envelope.clone(),
                        });
                    }
                }
                if let Some(connection) = self.connections.get_mut(&node) {
                    connection.events.push_back(Event::Published { receivers });
                }
            }
            Command::Append(_) | Command::Read(_) => unreachable!("a node without histories"),
        }
        true
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
