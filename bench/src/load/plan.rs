//! The job of a load client, and the role of each connection.

use std::io;

use crate::args::{self, Job};
use crate::wire;

/// The load on a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) job: Job,
    /// Number of clients. A fan-out has the publisher in addition, which receives like the others; rooms have one that does
    /// not.
    pub(crate) clients: usize,
    pub(crate) rooms: Rooms,
    /// Number of source ports that other clients of the same server use, as for [`super::connect::open`].
    pub(crate) earlier: usize,
    /// Messages in flight, of the publisher or of each echo client.
    pub(crate) window: usize,
    /// Payload size in bytes: at least 24, at least 32 for lines.
    pub(crate) size: usize,
    /// Number of additional connections that receive everything and read nothing.
    pub(crate) stalled: usize,
    /// Number of clients that send messages whose handlers block, one at a time, after `block`.
    pub(crate) blockers: usize,
    /// Whether to sleep while nothing arrives. Otherwise the client polls, so that waking it does not add to the cost of
    /// the server's sends.
    pub(crate) sleep: bool,
}

/// Rooms and their members.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rooms {
    /// Number of rooms. Messages are published to them in turn; in an echo, each connection joins another room with each
    /// message but the first.
    pub(crate) count: usize,
    /// The number of the first room: clients of one server that must not share rooms have different ones.
    pub(crate) first: usize,
    /// Members per room. Consecutive connections are in different rooms, or in none.
    pub(crate) members: usize,
    /// Whether consecutive connections are in the same room instead.
    pub(crate) together: bool,
    /// Number of additional connections that the server lets join and leave room 0.
    pub(crate) visitors: usize,
}

/// The role of a connection; connections are numbered in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Publisher,
    /// A client, numbered from 0.
    Client(usize),
    Visitor,
    Stalled,
}

impl Plan {
    pub(super) fn has_rooms(&self) -> bool {
        matches!(self.job, Job::Rooms | Job::Churn)
    }

    /// Whether the first connection publishes. Lines are published through a pipe instead.
    fn has_publisher(&self) -> bool {
        matches!(self.job, Job::Fanout | Job::Rooms | Job::Churn)
    }

    /// Total number of connections.
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

    /// Whether the handlers of a connection block.
    pub(super) fn blocks(&self, at: usize) -> bool {
        self.job == Job::Blocked && at >= self.clients - self.blockers
    }

    /// Number of recipients of a published message.
    pub(super) fn everyone(&self) -> usize {
        match self.job {
            Job::Echo | Job::Blocked | Job::Lines | Job::Chat | Job::RoundRobin => self.clients,
            Job::Fanout => self.clients + 1,
            Job::Rooms | Job::Churn => self.rooms.members,
        }
    }

    /// The room that a client is in.
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
                Some(room) => {
                    let name = wire::room_name(self.rooms.first + room);
                    format!("/{}", String::from_utf8_lossy(&name))
                }
                None => "/".into(),
            },
            Role::Client(_) | Role::Stalled => "/".into(),
        }
    }

    /// The first message number that a connection expects.
    pub(super) fn first_number(&self, at: usize) -> u64 {
        match self.part(at) {
            Role::Client(client) if self.has_rooms() => self
                .room_of_client(client)
                .map_or(u64::MAX, |room| room as u64),
            Role::Publisher if self.has_rooms() => u64::MAX,
            _ => 0,
        }
    }

    /// The room's name in a message, or the mark that makes its handler block.
    pub(super) fn mark(&self, connection: usize, number: u64) -> Option<wire::RoomName> {
        let count = self.rooms.count;
        match (self.job, number.checked_sub(1)) {
            (Job::Blocked, _) => self.blocks(connection).then_some(wire::BLOCK),
            _ if count == 0 => None,
            (Job::Echo, None) => Some(wire::NO_ROOM),
            (Job::Echo, Some(before)) => Some(wire::room_name(
                before as usize * count + connection % count,
            )),
            _ => {
                let room = (number % count as u64) as usize;
                Some(wire::room_name(self.rooms.first + room))
            }
        }
    }

    pub(super) fn check(&self) -> io::Result<()> {
        match () {
            () if matches!(self.job, Job::Chat | Job::RoundRobin) => Err(args::invalid(
                "only the command `compression` has clients for this job".into(),
            )),
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
            first: 0,
            members: 0,
            together: false,
            visitors: 2,
        },
        earlier: 0,
        window: 1,
        size: 32,
        stalled: 1,
        blockers: 0,
        sleep: true,
    };

    #[test]
    fn each_connection_has_one_role() {
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
    fn rooms_are_named_from_the_first_one() {
        let plan = Plan {
            job: Job::Rooms,
            rooms: Rooms {
                count: 2,
                first: 6,
                members: 5,
                ..PLAN.rooms
            },
            ..PLAN
        };
        assert_eq!(plan.path(1), "/00000006");
        assert_eq!(plan.path(2), "/00000007");
        assert_eq!(plan.mark(0, 0), Some(wire::room_name(6)));
        assert_eq!(plan.mark(0, 3), Some(wire::room_name(7)));
        assert_eq!(plan.first_number(2), 1);
    }

    #[test]
    fn only_blockers_mark_messages_as_blocking() {
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
