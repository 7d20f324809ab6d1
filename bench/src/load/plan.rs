//! What a load client is to do, and who of its connections does what.

use std::io;

use crate::args::{self, Job};
use crate::wire;

/// What is to be done to a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) job: Job,
    /// Connections; a fan-out has the publisher besides, who receives like all others, and rooms have one who does not.
    pub(crate) clients: usize,
    pub(crate) rooms: Rooms,
    /// Messages in flight: of the publisher, or of each client of an echo.
    pub(crate) window: usize,
    /// Bytes of payload, 24 at least; lines have 32.
    pub(crate) size: usize,
    /// Connections besides that get what everyone gets, and read nothing.
    pub(crate) stalled: usize,
    /// So many of the clients send messages whose handlers block, one after the other, when they are told to.
    pub(crate) blockers: usize,
    /// Whether to sleep while nothing has arrived. Otherwise the client looks again at once, so
    /// that waking it never adds to what the server's sends cost.
    pub(crate) sleep: bool,
}

/// Who is in which room.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rooms {
    /// How many there are. One message is published to each in turn; in an echo, each connection joins one more with each
    /// of its messages but the first.
    pub(crate) count: usize,
    /// Who is in each. Those who have come one after the other are in different rooms, or in none.
    pub(crate) members: usize,
    /// Unless they are together: then they are in the same.
    pub(crate) together: bool,
    /// Connections besides that the server lets in and out of room 0.
    pub(crate) visitors: usize,
}

/// What a connection is for; they come in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Publisher,
    /// The number of a client, from 0.
    Client(usize),
    Visitor,
    Stalled,
}

impl Plan {
    pub(super) fn has_rooms(&self) -> bool {
        matches!(self.job, Job::Rooms | Job::Churn)
    }

    /// Whether the first connection publishes. Lines come from a pipe.
    fn has_publisher(&self) -> bool {
        matches!(self.job, Job::Fanout | Job::Rooms | Job::Churn)
    }

    /// How many connections there are in all.
    pub(super) fn connections(&self) -> usize {
        usize::from(self.has_publisher()) + self.clients + self.rooms.visitors + self.stalled
    }

    pub(super) fn part(&self, at: usize) -> Role {
        let Some(client) = at.checked_sub(usize::from(self.has_publisher())) else {
            return Role::Publisher;
        };
        match client.checked_sub(self.clients) {
            None => Role::Client(client),
            Some(further) if further < self.rooms.visitors => Role::Visitor,
            Some(_) => Role::Stalled,
        }
    }

    /// Whether a connection is one whose handlers block.
    pub(super) fn blocks(&self, at: usize) -> bool {
        self.job == Job::Blocked && at >= self.clients - self.blockers
    }

    /// How many get each message that is published.
    pub(super) fn everyone(&self) -> usize {
        match self.job {
            Job::Echo | Job::Blocked | Job::Lines => self.clients,
            Job::Fanout => self.clients + 1,
            Job::Rooms | Job::Churn => self.rooms.members,
        }
    }

    /// The room of a client, if it is in one.
    fn room_of_client(&self, client: usize) -> Option<usize> {
        let Rooms {
            members, together, ..
        } = self.rooms;
        let room = match together {
            true => client / members,
            false => client % (self.clients / members),
        };
        (room < self.rooms.count).then_some(room)
    }

    pub(super) fn path(&self, at: usize) -> String {
        match self.part(at) {
            Role::Publisher => wire::PUBLISH.into(),
            Role::Visitor => wire::VISIT.into(),
            Role::Client(client) if self.has_rooms() => match self.room_of_client(client) {
                Some(room) => format!("/{}", String::from_utf8_lossy(&wire::room_name(room))),
                None => "/".into(),
            },
            Role::Client(_) | Role::Stalled => "/".into(),
        }
    }

    /// The first number that a connection is owed.
    pub(super) fn first_number(&self, at: usize) -> u64 {
        match self.part(at) {
            Role::Client(client) if self.has_rooms() => self
                .room_of_client(client)
                .map_or(u64::MAX, |room| room as u64),
            Role::Publisher if self.has_rooms() => u64::MAX,
            _ => 0,
        }
    }

    /// The room that a message names, or that its handler is to block.
    pub(super) fn mark(&self, connection: usize, number: u64) -> Option<wire::RoomName> {
        let count = self.rooms.count;
        match (self.job, number.checked_sub(1)) {
            (Job::Blocked, _) => self.blocks(connection).then_some(wire::BLOCK),
            _ if count == 0 => None,
            (Job::Echo, None) => Some(wire::NO_ROOM),
            (Job::Echo, Some(before)) => Some(wire::room_name(
                before as usize * count + connection % count,
            )),
            _ => Some(wire::room_name((number % count as u64) as usize)),
        }
    }

    pub(super) fn check(&self) -> io::Result<()> {
        match () {
            () if self.clients == 0 => Err(args::bad("clients", "0")),
            () if !(1..=1 << 16).contains(&self.window) => {
                Err(args::bad("window", &self.window.to_string()))
            }
            () if !(24..=16 << 20).contains(&self.size)
                || self.job == Job::Lines && self.size < 32 =>
            {
                Err(args::bad("size", &self.size.to_string()))
            }
            () if self.has_rooms() && self.rooms.count == 0 => Err(args::bad("rooms", "0")),
            () if self.has_rooms()
                && !(1..=self.clients / self.rooms.count).contains(&self.rooms.members) =>
            {
                Err(args::bad("members", &self.rooms.members.to_string()))
            }
            () if self.blockers >= self.clients => {
                Err(args::bad("blockers", &self.blockers.to_string()))
            }
            () => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        job: Job::Fanout,
        clients: 10,
        rooms: Rooms {
            count: 0,
            members: 0,
            together: false,
            visitors: 2,
        },
        window: 1,
        size: 32,
        stalled: 1,
        blockers: 0,
        sleep: true,
    };

    #[test]
    fn everyone_has_a_part() {
        let parts: Vec<Role> = (0..PLAN.connections()).map(|at| PLAN.part(at)).collect();
        assert_eq!(parts.len(), 1 + 10 + 2 + 1);
        assert_eq!(parts[0], Role::Publisher);
        assert_eq!(parts[1], Role::Client(0));
        assert_eq!(parts[10], Role::Client(9));
        assert_eq!(parts[11..], [Role::Visitor, Role::Visitor, Role::Stalled]);
        let lines = Plan {
            job: Job::Lines,
            ..PLAN
        };
        assert_eq!(lines.part(0), Role::Client(0));
    }

    #[test]
    fn only_blockers_ask_for_a_handler_that_blocks() {
        let plan = Plan {
            job: Job::Blocked,
            blockers: 2,
            ..PLAN
        };
        let marks: Vec<bool> = (0..10).map(|at| plan.mark(at, 7).is_some()).collect();
        assert_eq!(marks.iter().filter(|mark| **mark).count(), 2);
        assert_eq!(plan.mark(9, 0), Some(wire::BLOCK));
    }
}
