//! The clients of nodes: members of rooms that check what they receive. They sleep while nothing arrives, since they share
//! CPUs with the broker and with nodes.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use crate::frames::MessageReader;
use crate::load::connect::{self, ConnectionSpec};
use crate::machine;
use crate::node;
use crate::poll;

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
    /// The source address of all connections; by default the kernel chooses it.
    source: Option<Ipv4Addr>,
    /// Number of messages that each room has been sent so far, which later members do not receive.
    pub(super) sent_before: u64,
    members: Vec<Member>,
    /// How many of them have joined their rooms.
    joined: usize,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    buffer: Box<[u8]>,
    /// Messages that all members together have received.
    received: u64,
    receipts: Receipts,
}

/// When messages arrived, as times of [`machine::monotonic_nanos`]; 0 if none has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Receipts {
    pub(super) first: u64,
    pub(super) last: u64,
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
            source: None,
            sent_before: 0,
            members: Vec::new(),
            joined: 0,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
            buffer: vec![0; READ_BUFFER].into_boxed_slice(),
            received: 0,
            receipts: Receipts::default(),
        })
    }

    /// Connects the members from this address of the loopback network.
    pub(super) fn with_source(self, source: Ipv4Addr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    /// Number of rooms.
    pub(super) fn rooms(&self) -> u64 {
        self.rooms
    }

    /// Connects a member for each item, which lists the member's rooms, and waits until they have joined.
    pub(super) fn join(&mut self, address: SocketAddrV4, rooms: Vec<Vec<u64>>) -> io::Result<()> {
        for group in rooms.chunks(GROUP) {
            self.join_group(address, group)?;
            self.wait(|members| members.joined == members.members.len())?;
        }
        Ok(())
    }

    /// Waits until all members together have received this number of messages since they joined.
    pub(super) fn receive(&mut self, due: u64) -> io::Result<()> {
        self.wait(|members| members.received >= due)
    }

    /// Returns when the messages since the last call arrived.
    pub(super) fn take_receipts(&mut self) -> Receipts {
        std::mem::take(&mut self.receipts)
    }

    /// Fails if a message arrives within this time.
    pub(super) fn expect_nothing_more(&mut self, time: Duration) -> io::Result<()> {
        let (end, received) = (Instant::now() + time, self.received);
        while let left = end.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            self.read(left)?;
        }
        match self.received - received {
            0 => Ok(()),
            more => Err(io::Error::other(format!(
                "{more} messages arrived that nobody had sent"
            ))),
        }
    }

    fn join_group(&mut self, address: SocketAddrV4, rooms: &[Vec<u64>]) -> io::Result<()> {
        let earlier = self.sent_before * self.rooms;
        let (source, from) = (self.source, self.members.len());
        let spec = |at: usize| {
            let names: Vec<String> = rooms[at].iter().map(u64::to_string).collect();
            ConnectionSpec {
                path: format!("/{}", names.join("+")),
                source,
                ..ConnectionSpec::default()
            }
        };
        let opened = connect::open_with_messages(address, from, rooms.len(), spec)?;
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
                numbers: Numbers(rooms.iter().map(|room| room + earlier).collect()),
            };
            self.received += member.take(&bytes, self.rooms)?;
            self.joined += usize::from(member.has_joined);
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
        let (begun, before) = (machine::monotonic_nanos(), self.received);
        for event in &self.events {
            let at = event.data.u64() as usize;
            let member = &mut self.members[at];
            let had_joined = member.has_joined;
            while let Some(read) = connect::receive_once(&member.socket, &mut self.buffer)? {
                let received = member
                    .take(&self.buffer[..read], self.rooms)
                    .map_err(|e| io::Error::new(e.kind(), format!("member {at}: {e}")))?;
                self.received += received;
                if read < self.buffer.len() {
                    break;
                }
            }
            self.joined += usize::from(member.has_joined) - usize::from(had_joined);
        }
        if self.received > before {
            self.receipts.note(begun, machine::monotonic_nanos());
        }
        Ok(!self.events.is_empty())
    }
}

impl Receipts {
    /// Adds messages that arrived between two times. The clock is read once for many messages.
    fn note(&mut self, begun: u64, ended: u64) {
        if self.first == 0 {
            self.first = begun;
        }
        self.last = ended;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_keep_the_first_and_the_last_time() {
        let mut receipts = Receipts::default();
        receipts.note(5, 7);
        receipts.note(9, 12);
        assert_eq!(receipts, Receipts { first: 5, last: 12 });
    }

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
