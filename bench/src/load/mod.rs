//! The load client: one thread, one epoll loop, no task and no allocation per message.
//!
//! Every message is whole and of one size; its first eight bytes are its number, the next eight the time it was made, and
//! eight more name a room where there are rooms. Every connection must receive exactly the numbers it is owed, in order: a
//! gap, a repetition or a stranger ends the run with an error. Only visitors, who are in the room at times, may have gaps,
//! and those who are stalled read nothing.
//!
//! Closed loop ([`Load::deliver`]): a number of messages is in flight. Open loop ([`Load::pace`]): one is due at each of
//! many moments, whatever became of those before, and its time counts from the moment it was due.

mod command;
mod connect;
mod connection;
pub(crate) mod driven;
mod plan;
mod receiver;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::args::Job;
use crate::histogram::Histogram;
use crate::machine;
use connect::ConnectionSpec;
use connection::{ClientConnection, FrameTemplate};
use plan::Role;
use receiver::FrameShape;

pub(crate) use command::{OPTIONS, command};
pub(crate) use plan::{Plan, Rooms};

const READ_BUFFER: usize = 256 * 1024;
const EVENTS: usize = 1024;
/// So many join a room at once.
const GROUP: usize = 50;
/// Nothing for this long although something is owed: the server has stalled.
const STALLED: Duration = Duration::from_secs(10);

/// Open connections, and the state of the work on them.
pub(crate) struct Load {
    address: SocketAddrV4,
    plan: Plan,
    epoll: OwnedFd,
    connections: Vec<ClientConnection>,
    /// Held, and nothing else.
    held: Vec<OwnedFd>,
    /// Where lines are published.
    feed: Option<File>,
    events: Vec<epoll::Event>,
    input: Box<[u8]>,
    output: Vec<u8>,
    frame: FrameTemplate,
    shape: FrameShape,
    stats: DeliveryStats,
    /// Whether those with blocking handlers go on sending.
    blocking: bool,
}

/// Counts and times.
struct DeliveryStats {
    start: Instant,
    received: u64,
    expected: u64,
    latencies: Histogram,
    /// Fan-out: how many messages were published, how many of them everyone has, and how many
    /// connections have message `k`, at `k` modulo the window.
    published: u64,
    complete: u64,
    reached: Vec<usize>,
    everyone: usize,
    /// How often a visitor has missed something, and come again.
    visits: u64,
}

impl Load {
    /// Opens all connections; the first is a fan-out's publisher. Lines are published through the pipe `feed`.
    pub(crate) fn connect(
        address: SocketAddrV4,
        plan: Plan,
        feed: Option<File>,
    ) -> io::Result<Self> {
        plan.check()?;
        let count = plan.connections();
        let descriptors = machine::raise_descriptor_limit()?;
        if count as u64 + 16 > descriptors {
            return Err(io::Error::other(format!(
                "{count} connections need more than {descriptors} descriptors"
            )));
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let spec = |at| ConnectionSpec {
            path: plan.path(at),
            small: plan.part(at) == Role::Stalled,
        };
        let sockets = connect::open(address, 0, count, spec)?;
        let mut connections = Vec::with_capacity(count);
        let mut held = Vec::new();
        for (token, socket) in sockets.into_iter().enumerate() {
            if plan.part(token) == Role::Stalled {
                held.push(socket);
                continue;
            }
            epoll::add(
                &epoll,
                &socket,
                epoll::EventData::new_u64(token as u64),
                epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET,
            )?;
            connections.push(ClientConnection::new(socket, &plan, token));
        }
        Ok(Self {
            address,
            epoll,
            connections,
            held,
            feed,
            events: Vec::with_capacity(EVENTS),
            input: vec![0; READ_BUFFER].into_boxed_slice(),
            output: Vec::new(),
            frame: FrameTemplate::new(&plan),
            shape: FrameShape::new(plan.size, plan.job == Job::Lines),
            stats: DeliveryStats {
                start: Instant::now(),
                received: 0,
                expected: 0,
                latencies: Histogram::new(),
                published: 0,
                complete: 0,
                reached: vec![0; plan.window],
                everyone: plan.everyone(),
                visits: 0,
            },
            blocking: false,
            plan,
        })
    }

    /// Opens further connections, and holds them.
    pub(crate) fn hold(&mut self, count: usize) -> io::Result<()> {
        let from = self.connections.len() + self.held.len();
        let spec = |_| ConnectionSpec {
            path: "/".into(),
            small: false,
        };
        let sockets = connect::open(self.address, from, count, spec)?;
        self.held.extend(sockets);
        Ok(())
    }

    /// Sends `messages` and returns when all that they cause has been received. An echo rounds
    /// up to the same number for each client.
    pub(crate) fn deliver(&mut self, messages: u64) -> io::Result<()> {
        match self.plan.job.is_echo() {
            true => self.echo(messages.div_ceil(self.plan.clients as u64)),
            false => self.fan_out(messages),
        }
    }

    fn echo(&mut self, each: u64) -> io::Result<()> {
        let first = each.min(self.plan.window as u64);
        let count = self.connections.len();
        // Joining comes in small groups, so that what is in flight is no part of what a membership takes.
        let group = if self.plan.rooms.count > 0 {
            GROUP
        } else {
            count
        };
        for start in (0..count).step_by(group) {
            let end = count.min(start + group);
            for token in start..end {
                if !self.connections[token].blocks {
                    self.owe_echoes(token, each);
                    self.send_echoes(token, first, self.stats.now())?;
                }
            }
            self.until_received()?;
        }
        Ok(())
    }

    fn owe_echoes(&mut self, token: usize, count: u64) {
        self.stats.expected += count;
        self.connections[token].quota += count;
    }

    fn send_echoes(&mut self, token: usize, count: u64, stamp: u64) -> io::Result<()> {
        let mark = |number| self.plan.mark(token, number);
        self.connections[token].send(&self.frame, &mut self.output, count, stamp, mark)
    }

    fn fan_out(&mut self, messages: u64) -> io::Result<()> {
        let last = self.stats.published + messages;
        while self.stats.complete < last {
            let more = self.window_left().min(last - self.stats.published);
            if more > 0 {
                self.publish(more, self.stats.now())?;
            }
            self.turn(STALLED)?;
        }
        self.until_received()
    }

    /// How many more messages may be in flight.
    fn window_left(&self) -> u64 {
        self.plan.window as u64 - (self.stats.published - self.stats.complete)
    }

    fn publish(&mut self, count: u64, stamp: u64) -> io::Result<()> {
        let first = self.stats.published;
        self.stats.published += count;
        self.stats.expected += count * self.stats.everyone as u64;
        if self.plan.job != Job::Lines {
            return self.send_echoes(0, count, stamp);
        }
        let Some(feed) = &mut self.feed else {
            return Err(io::Error::other(
                "lines need a pipe to be published through",
            ));
        };
        self.output.clear();
        for number in first..first + count {
            self.frame.put(&mut self.output, number, stamp, None);
        }
        feed.write_all(&self.output)
    }

    /// Sends `messages`, `per_second` of them, and returns when all that they cause has been received.
    pub(crate) fn pace(&mut self, messages: u64, per_second: f64) -> io::Result<()> {
        let clients = (self.plan.clients - self.plan.blockers) as u64;
        let start = self.stats.now();
        self.start_blockers()?;
        for message in 0..messages {
            let due = start + (message as f64 * 1e9 / per_second) as u64;
            loop {
                let left = Duration::from_nanos(due.saturating_sub(self.stats.now()));
                if left.is_zero() && (self.plan.job.is_echo() || self.window_left() > 0) {
                    break;
                }
                self.look(match self.plan.sleep {
                    true => left.max(Duration::from_micros(50)),
                    false => Duration::ZERO,
                })?;
            }
            if self.plan.job.is_echo() {
                let token = (message % clients) as usize;
                self.owe_echoes(token, 1);
                self.send_echoes(token, 1, due)?;
            } else {
                self.publish(1, due)?;
            }
        }
        let blocking = std::mem::take(&mut self.blocking);
        self.until_received()?;
        self.blocking = blocking;
        Ok(())
    }

    /// From now on, while others are paced, those with blocking handlers send one message after the other.
    pub(crate) fn block(&mut self) {
        self.blocking = true;
    }

    fn start_blockers(&mut self) -> io::Result<()> {
        let first = self.plan.clients - self.plan.blockers;
        for token in first..self.plan.clients * usize::from(self.blocking) {
            self.owe_echoes(token, 1);
            self.send_echoes(token, 1, 0)?;
        }
        Ok(())
    }

    fn until_received(&mut self) -> io::Result<()> {
        while self.stats.received < self.stats.expected {
            self.turn(STALLED)?;
        }
        Ok(())
    }

    /// Waits for something, but not longer than `patience`, and takes in all that is there.
    fn turn(&mut self, patience: Duration) -> io::Result<()> {
        let mut since = None;
        while self.look(if self.plan.sleep {
            patience
        } else {
            Duration::ZERO
        })? == 0
        {
            if since.get_or_insert_with(Instant::now).elapsed() >= patience {
                let DeliveryStats {
                    received, expected, ..
                } = self.stats;
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "nothing for {patience:?}: {received} of {expected} deliveries received"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// One look at the sockets; returns how many had something.
    fn look(&mut self, wait: Duration) -> io::Result<usize> {
        let wait = Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            Some(&wait),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_echo = self.plan.job.is_echo();
        for event in &self.events {
            let (token, flags) = (event.data.u64() as usize, event.flags);
            let connection = &mut self.connections[token];
            if flags.contains(epoll::EventFlags::OUT) && connection.has_unsent() {
                connection.flush()?;
            }
            if flags
                .intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR)
            {
                let owed = match is_echo {
                    true => connection.sent,
                    false => self.stats.published,
                };
                let received = connection
                    .read(&mut self.input, &self.shape, &mut self.stats, owed)
                    .map_err(|e| io::Error::new(e.kind(), format!("connection {token}: {e}")))?;
                if !is_echo {
                    continue;
                }
                if connection.blocks && self.blocking {
                    self.stats.expected += received;
                    connection.quota += received;
                }
                let more = received.min(connection.quota - connection.sent);
                let mark = |number| self.plan.mark(token, number);
                connection.send(&self.frame, &mut self.output, more, self.stats.now(), mark)?;
            }
        }
        Ok(self.events.len())
    }

    /// Fails if anything comes that nobody is owed.
    pub(crate) fn expect_nothing_more(&mut self, wait: Duration) -> io::Result<()> {
        let end = Instant::now() + wait;
        while let left = end.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            self.look(left)?;
        }
        match (self.stats.received, self.stats.expected) {
            (received, expected) if received == expected => Ok(()),
            (received, expected) => Err(io::Error::other(format!(
                "{received} deliveries received where {expected} were expected"
            ))),
        }
    }

    /// Deliveries: expected so far, and received.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.stats.expected, self.stats.received)
    }

    /// How often visitors have come again.
    pub(crate) fn visits(&self) -> u64 {
        self.stats.visits
    }

    pub(crate) fn latencies(&mut self) -> &mut Histogram {
        &mut self.stats.latencies
    }
}

impl DeliveryStats {
    /// Nanoseconds since the client started.
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// A connection has received its next message.
    fn count(&mut self, number: u64, latency: u64) {
        self.received += 1;
        self.latencies.record(latency);
        if self.published > 0 {
            // Those to different rooms become complete in any order; counted they are in theirs.
            let window = self.reached.len() as u64;
            self.reached[(number % window) as usize] += 1;
            while let reached = &mut self.reached[(self.complete % window) as usize]
                && *reached == self.everyone
            {
                *reached = 0;
                self.complete += 1;
            }
        }
    }

    /// How long a handler took that was told to take long says nothing.
    fn count_blocker(&mut self) {
        self.received += 1;
    }

    /// What a visitor gets nobody could foresee.
    fn count_visitor(&mut self, missed: bool) {
        self.received += 1;
        self.expected += 1;
        self.visits += u64::from(missed);
    }
}
