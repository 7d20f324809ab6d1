//! The clients of the nodes: members of rooms that check what they receive. They sleep while nothing arrives, since they share
//! a CPU with Redis and the sending node.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use crate::frames::MessageReader;
use crate::load::connect::{self, ConnectionSpec};
use crate::node::{self, NodeCommand};
use crate::poll;
use crate::run::node_process::NodeProcess;

/// If nothing arrives for this long while messages are missing, messages are lost.
const STALLED: Duration = Duration::from_secs(10);
/// Number of members that join at the same time. Each occupies a thread of the node until the node is subscribed.
const GROUP: usize = 16;
const EVENTS: usize = 256;
const READ_BUFFER: usize = 64 * 1024;

/// The members of rooms on one or several nodes.
pub(super) struct Members {
    /// Number of rooms. Message `n` is for room `n` modulo this number.
    rooms: u64,
    members: Vec<Member>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    buffer: Box<[u8]>,
    /// Messages that all members together have received.
    received: u64,
}

struct Member {
    socket: OwnedFd,
    reader: MessageReader,
    has_joined: bool,
    numbers: Numbers,
}

/// The numbers that a member receives next, in each of its rooms. It is in one room or in all.
struct Numbers(Vec<u64>);

impl Numbers {
    fn take(&mut self, number: u64, rooms: u64) -> io::Result<()> {
        let at = match self.0.len() {
            1 => 0,
            _ => (number % rooms) as usize,
        };
        let next = &mut self.0[at];
        if *next != number {
            let text = format!("message {number} arrived where {next} was due");
            return Err(io::Error::other(text));
        }
        *next += rooms;
        Ok(())
    }
}

impl Members {
    pub(super) fn new(rooms: u64) -> io::Result<Self> {
        Ok(Self {
            rooms,
            members: Vec::new(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
            buffer: vec![0; READ_BUFFER].into_boxed_slice(),
            received: 0,
        })
    }

    /// Connects a member for each item, which lists the member's rooms, and waits until they have joined.
    pub(super) fn join(&mut self, address: SocketAddrV4, rooms: Vec<Vec<u64>>) -> io::Result<()> {
        for group in rooms.chunks(GROUP) {
            self.join_group(address, group)?;
            self.wait(|members| members.members.iter().all(|member| member.has_joined))?;
        }
        Ok(())
    }

    fn join_group(&mut self, address: SocketAddrV4, rooms: &[Vec<u64>]) -> io::Result<()> {
        let spec = |at: usize| {
            let names: Vec<String> = rooms[at].iter().map(u64::to_string).collect();
            ConnectionSpec {
                path: format!("/{}", names.join("+")),
                ..ConnectionSpec::default()
            }
        };
        let opened = connect::open_with_messages(address, 0, rooms.len(), spec)?;
        for ((socket, bytes), rooms) in opened.into_iter().zip(rooms) {
            epoll::add(
                &self.epoll,
                &socket,
                epoll::EventData::new_u64(self.members.len() as u64),
                epoll::EventFlags::IN | epoll::EventFlags::ET,
            )?;
            let mut member = Member {
                socket,
                reader: MessageReader::default(),
                has_joined: false,
                numbers: Numbers(rooms.clone()),
            };
            self.received += member.take(&bytes, self.rooms)?;
            self.members.push(member);
        }
        Ok(())
    }

    /// Reads what arrives until something is so.
    fn wait(&mut self, is_so: impl Fn(&Self) -> bool) -> io::Result<()> {
        let mut since = Instant::now();
        while !is_so(self) {
            if self.read(Duration::from_millis(100))? {
                since = Instant::now();
            } else if since.elapsed() >= STALLED {
                let text = format!(
                    "nothing received for {STALLED:?}; {} messages had arrived",
                    self.received
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
        Ok(())
    }

    /// Waits for events and handles them. Returns whether there were any.
    fn read(&mut self, timeout: Duration) -> io::Result<bool> {
        poll::wait(&self.epoll, &mut self.events, Some(timeout))?;
        for event in &self.events {
            let at = event.data.u64() as usize;
            let member = &mut self.members[at];
            while let Some(read) = connect::receive_once(&member.socket, &mut self.buffer)? {
                let received = member
                    .take(&self.buffer[..read], self.rooms)
                    .map_err(|e| io::Error::new(e.kind(), format!("member {at}: {e}")))?;
                self.received += received;
                if read < self.buffer.len() {
                    break;
                }
            }
        }
        Ok(!self.events.is_empty())
    }
}

impl Member {
    /// Takes bytes that have arrived. Returns the number of messages that they complete.
    fn take(&mut self, bytes: &[u8], rooms: u64) -> io::Result<u64> {
        let mut received = 0;
        self.reader.read(bytes, |payload| {
            if !self.has_joined && payload == node::JOINED.as_bytes() {
                self.has_joined = true;
                return Ok(());
            }
            let number = node::number_of(payload)
                .ok_or_else(|| io::Error::other("a message has no number"))?;
            received += 1;
            self.numbers.take(number, rooms)
        })?;
        Ok(received)
    }
}

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
            self.members.wait(|members| members.received >= due)?;
            node.command(&NodeCommand::Burst {
                first: self.sent * self.burst,
                count: self.burst,
                rooms: self.members.rooms,
            })?;
            self.sent += 1;
        }
        let due = self.sent * self.deliveries;
        self.members.wait(|members| members.received >= due)?;
        Ok((self.sent - first) * self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_each_room_must_arrive_in_order() {
        let mut one = Numbers(vec![2]);
        assert!(one.take(2, 4).is_ok() && one.take(6, 4).is_ok());
        assert!(one.take(6, 4).is_err());
        let mut all = Numbers(vec![0, 1, 2]);
        for number in [1, 4, 0, 2, 3] {
            assert!(all.take(number, 3).is_ok(), "{number}");
        }
        assert!(all.take(8, 3).is_err());
    }
}
