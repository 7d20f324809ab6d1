//! Messages that nodes broadcast to members, with a limited number in flight.

use std::io;
use std::time::{Duration, Instant};

use crate::node::NodeCommand;
use crate::run::members::Members;
use crate::run::node_process::NodeProcess;

/// Messages that nodes broadcast to the members in bursts, with a limited number of bursts in flight.
pub(super) struct Traffic {
    pub(super) members: Members,
    /// Number of messages in a burst.
    burst: u64,
    /// Number of bursts that may be in flight.
    window: u64,
    /// Number of deliveries of a burst.
    deliveries: u64,
    /// Number of bursts sent so far.
    sent: u64,
}

impl Traffic {
    /// `deliveries` is the number of messages that the members receive of one burst.
    pub(super) fn new(members: Members, burst: u64, window: u64, deliveries: u64) -> Self {
        Self {
            members,
            burst,
            window,
            deliveries,
            sent: 0,
        }
    }

    /// Lets a node broadcast for this time, and waits until everything has arrived. Returns the number of messages.
    pub(super) fn run_for(&mut self, node: &mut NodeProcess, time: Duration) -> io::Result<u64> {
        let begun = Instant::now();
        self.run_while(node, |_| begun.elapsed() < time)
    }

    /// Lets a node broadcast at least this number of messages, and waits until everything has arrived. Returns the number
    /// of messages.
    pub(super) fn run_messages(
        &mut self,
        node: &mut NodeProcess,
        messages: u64,
    ) -> io::Result<u64> {
        let bursts = messages.div_ceil(self.burst);
        self.run_while(node, |sent| sent < bursts)
    }

    fn run_while(
        &mut self,
        node: &mut NodeProcess,
        goes_on: impl Fn(u64) -> bool,
    ) -> io::Result<u64> {
        let first = self.sent;
        while goes_on(self.sent - first) {
            let due = (self.sent + 1).saturating_sub(self.window) * self.deliveries;
            self.members.receive(due)?;
            node.command(&NodeCommand::Burst {
                first: self.sent * self.burst,
                count: self.burst,
                rooms: self.members.rooms(),
            })?;
            self.sent += 1;
        }
        let due = self.sent * self.deliveries;
        self.members.receive(due)?;
        Ok((self.sent - first) * self.burst)
    }
}
