//! The load client: one thread, one epoll loop, no task and no allocation per message. All messages have the same size.
//! Their first eight bytes are a number, the next eight a timestamp, and, in jobs with rooms, the next eight a room's name.
//! Every connection must receive exactly the expected numbers in order: a gap, a repetition or an unexpected number ends
//! the run with an error. Only visitors, which are in a room temporarily, may have gaps, and stalled connections read
//! nothing. Closed loop ([`Load::deliver`]): a fixed number of messages is in flight. Open loop ([`Load::pace`]): messages
//! are due at fixed times, regardless of earlier ones, and latency counts from the due time.

mod command;
pub(crate) mod connect;
mod connection;
pub(crate) mod driven;
mod plan;
mod receiver;
#[cfg(test)]
mod tests;
pub(crate) mod tls;
pub(crate) mod transport;

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use crate::args::Job;
use crate::histogram::Histogram;
use crate::machine;
use crate::poll;
use connect::ConnectionSpec;
use connection::{ClientConnection, FrameTemplate};
use plan::Role;
use receiver::FrameShape;

pub(crate) use command::{OPTIONS, command};
pub(crate) use plan::{Plan, Rooms};

const READ_BUFFER: usize = 256 * 1024;
const EVENTS: usize = 1024;
/// Connections that join a room at once.
const GROUP: usize = 50;
/// If nothing arrives for this long although messages are expected, the server has stalled.
const STALLED: Duration = Duration::from_secs(10);

/// Open connections, and the state of the job.
pub(crate) struct Load {
    address: SocketAddrV4,
    plan: Plan,
    epoll: OwnedFd,
    connections: Vec<ClientConnection>,
    /// Connections that are only held open.
    held: Vec<OwnedFd>,
    /// The pipe that lines are published through.
    feed: Option<File>,
    events: Vec<epoll::Event>,
    input: Box<[u8]>,
    output: Vec<u8>,
    frame: FrameTemplate,
    shape: FrameShape,
    stats: DeliveryStats,
    /// Whether clients with blocking handlers keep sending.
    blocking: bool,
}

/// Counters and latencies.
struct DeliveryStats {
    start: Instant,
    received: u64,
    expected: u64,
    latencies: Histogram,
    /// Fan-out: messages published, messages that all recipients have received, and how many connections have received
    /// message `k`, at index `k` modulo the window.
    published: u64,
    complete: u64,
    reached: Vec<usize>,
    everyone: usize,
    /// How often a visitor missed messages and rejoined.
    visits: u64,
}

impl Load {
    /// Opens all connections; the first is the publisher of a fan-out. Lines are published through the pipe `feed`.
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
            ..ConnectionSpec::default()
        };
        let sockets = connect::open(address, plan.earlier, count, spec)?;
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

    /// Opens further connections that stay idle.
    pub(crate) fn hold(&mut self, count: usize) -> io::Result<()> {
        let from = self.plan.earlier + self.connections.len() + self.held.len();
        let spec = |_| ConnectionSpec::default();
        let sockets = connect::open(self.address, from, count, spec)?;
        self.held.extend(sockets);
        Ok(())
    }

    /// Sends `messages` in a closed loop, and returns when all deliveries have arrived. An echo rounds up to the same
    /// number for each client.
    pub(crate) fn deliver(&mut self, messages: u64) -> io::Result<()> {
        match self.plan.job.is_echo() {
            true => self.echo(messages.div_ceil(self.plan.clients as u64)),
            false => self.fan_out(messages),
        }
    }

    fn echo(&mut self, each: u64) -> io::Result<()> {
        let first = each.min(self.plan.window as u64);
        let count = self.connections.len();
        // Clients join in small groups, so that messages in flight do not add to the memory of memberships.
        let group = if self.plan.rooms.count > 0 {
            GROUP
        } else {
            count
        };
        for start in (0..count).step_by(group) {
            let end = count.min(start + group);
            for token in start..end {
                if !self.connections[token].blocks {
                    self.expect_echoes(token, each);
                    self.send_echoes(token, first, self.stats.now())?;
                }
            }
            self.until_received()?;
        }
        Ok(())
    }

    fn expect_echoes(&mut self, token: usize, count: u64) {
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
            self.wait(STALLED)?;
        }
        self.until_received()
    }

    /// How many more messages may be sent now.
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
                "lines can be published only through a pipe",
            ));
        };
        self.output.clear();
        for number in first..first + count {
            self.frame.put(&mut self.output, number, stamp, None);
        }
        feed.write_all(&self.output)
    }

    /// Sends `messages` at a rate of `per_second`, and returns when all deliveries have arrived.
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
                self.poll(match self.plan.sleep {
                    true => left.max(Duration::from_micros(50)),
                    false => Duration::ZERO,
                })?;
            }
            if self.plan.job.is_echo() {
                let token = (message % clients) as usize;
                self.expect_echoes(token, 1);
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

    /// Lets clients with blocking handlers send one message after the other while the others are paced.
    pub(crate) fn block(&mut self) {
        self.blocking = true;
    }

    fn start_blockers(&mut self) -> io::Result<()> {
        let first = self.plan.clients - self.plan.blockers;
        for token in first..self.plan.clients * usize::from(self.blocking) {
            self.expect_echoes(token, 1);
            self.send_echoes(token, 1, 0)?;
        }
        Ok(())
    }

    fn until_received(&mut self) -> io::Result<()> {
        while self.stats.received < self.stats.expected {
            self.wait(STALLED)?;
        }
        Ok(())
    }

    /// Waits for events, `patience` at most, and handles them.
    fn wait(&mut self, patience: Duration) -> io::Result<()> {
        let mut since = None;
        while self.poll(if self.plan.sleep {
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
                        "nothing received for {patience:?}: {received} of {expected} deliveries arrived"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Polls the sockets once and handles their events; returns the number of events.
    fn poll(&mut self, wait: Duration) -> io::Result<usize> {
        poll::wait(&self.epoll, &mut self.events, Some(wait))?;
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

    /// Fails if unexpected messages arrive.
    pub(crate) fn expect_nothing_more(&mut self, wait: Duration) -> io::Result<()> {
        let end = Instant::now() + wait;
        while let left = end.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            self.poll(left)?;
        }
        match (self.stats.received, self.stats.expected) {
            (received, expected) if received == expected => Ok(()),
            (received, expected) => Err(io::Error::other(format!(
                "{received} deliveries received where {expected} were expected"
            ))),
        }
    }

    /// Deliveries expected so far, and deliveries received.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.stats.expected, self.stats.received)
    }

    /// How often visitors have rejoined.
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

    /// Counts the next message of a connection.
    fn count(&mut self, number: u64, latency: u64) {
        self.received += 1;
        self.latencies.record(latency);
        if self.published > 0 {
            // Messages to different rooms complete in any order, but are counted in the order of their numbers.
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

    /// Counts a message of a blocker, whose latency is meaningless.
    fn count_blocker(&mut self) {
        self.received += 1;
    }

    /// Counts a message of a visitor, which cannot be expected in advance.
    fn count_visitor(&mut self, missed: bool) {
        self.received += 1;
        self.expected += 1;
        self.visits += u64::from(missed);
    }
}
