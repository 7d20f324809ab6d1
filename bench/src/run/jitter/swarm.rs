//! All clients, in one thread and one epoll loop: cuts their connections on schedule, and lets them reconnect and resume.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::account::Totals;
use super::client::{Client, Join};
use super::publisher::published_in;
use crate::histogram::Histogram;
use crate::load::connect;
use crate::poll;

/// If no message arrives and no client joins for this long, those that are missing are lost.
const STALLED: Duration = Duration::from_secs(10);
/// How long surplus messages may arrive at the end.
const SURPLUS_WAIT: Duration = Duration::from_millis(300);
/// Maximum number of clients that connect at the same time at the beginning. The first join of a room may occupy one of a
/// node's 32 handler threads until the node is subscribed.
const CONNECTING_MAX: usize = 32;
/// Longest sleep, after which conditions are checked again.
const SLEEP_MAX: Duration = Duration::from_millis(50);
const EVENTS: usize = 1_024;
const READ_BUFFER: usize = 64 * 1024;

/// When connections are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct CutPlan {
    /// Time between two cuts of a client.
    pub(super) interval: Duration,
    /// Time between a cut and the reconnect.
    pub(super) offline: Duration,
}

impl CutPlan {
    /// Returns when the cut with this number is due. The clients are cut one after the other.
    fn due(self, cut: u64, clients: usize) -> Duration {
        self.interval.mul_f64((cut + 1) as f64 / clients as f64)
    }
}

/// Counts of a run.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Connections that were cut.
    pub(super) cuts: u64,
    /// Of these, connections that had not resumed yet.
    pub(super) early_cuts: u64,
    /// Connections that ended otherwise, and the first reason.
    pub(super) failures: u64,
    pub(super) first_failure: Option<String>,
    /// Clients that have resumed, and messages that were replayed to them.
    pub(super) resumed: u64,
    pub(super) replayed: u64,
    /// Of those that resumed, clients to which nothing was replayed.
    pub(super) nothing_missed: u64,
}

pub(super) struct Swarm {
    nodes: Vec<SocketAddrV4>,
    rooms: usize,
    clients: Vec<Client>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    buffer: Box<[u8]>,
    accept: String,
    plan: CutPlan,
    /// The offline clients, and when they reconnect.
    offline: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Messages and joins so far.
    steps: u64,
    /// Times of the replays in nanoseconds.
    pub(super) replays: Histogram,
    pub(super) counts: Counts,
}

impl Swarm {
    pub(super) fn new(
        nodes: Vec<SocketAddrV4>,
        clients: usize,
        rooms: usize,
        plan: CutPlan,
    ) -> io::Result<Self> {
        Ok(Self {
            nodes,
            rooms,
            clients: (0..clients).map(|at| Client::new(at % rooms)).collect(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
            buffer: vec![0; READ_BUFFER].into_boxed_slice(),
            accept: connect::accept(),
            plan,
            offline: BinaryHeap::new(),
            steps: 0,
            replays: Histogram::new(),
            counts: Counts::default(),
        })
    }

    /// Connects all clients, which join their rooms for the first time.
    pub(super) fn join(&mut self) -> io::Result<()> {
        let (mut next, count) = (0, self.clients.len());
        let mut watch = StallWatch::new();
        let mut joined = 0;
        while joined < count {
            while next < count && next - joined < CONNECTING_MAX {
                self.connect(next)?;
                next += 1;
            }
            self.poll(SLEEP_MAX)?;
            if let Some(reason) = self.counts.first_failure.take() {
                return Err(io::Error::other(format!("the first join: {reason}")));
            }
            // Those that connect first join first, but for a few.
            while joined < next && self.clients[joined].has_joined() {
                joined += 1;
            }
            if watch.has_stalled(self.steps) {
                let text = format!("only {joined} of {count} clients could join");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
        // First joins replay nothing.
        self.replays.clear();
        self.counts = Counts::default();
        Ok(())
    }

    /// Cuts the connections on schedule for this time.
    pub(super) fn run(&mut self, time: Duration) -> io::Result<()> {
        let begun = Instant::now();
        let mut cuts = 0;
        loop {
            let now = begun.elapsed();
            if now >= time {
                return Ok(());
            }
            while self.plan.due(cuts, self.clients.len()) <= now {
                let at = (cuts % self.clients.len() as u64) as usize;
                self.cut(at);
                cuts += 1;
            }
            self.reconnect()?;
            let next = self.plan.due(cuts, self.clients.len()).min(time);
            self.poll(next.saturating_sub(begun.elapsed()))?;
        }
    }

    /// Waits until all clients have resumed and received everything, if `published` messages were published. Gives up once
    /// nothing arrives any more. Returns the account.
    pub(super) fn finish(&mut self, published: u64) -> io::Result<Totals> {
        let mut watch = StallWatch::new();
        let mut complete = 0;
        while complete < self.clients.len() && !watch.has_stalled(self.steps) {
            self.reconnect()?;
            self.poll(SLEEP_MAX)?;
            // Clients that are complete stay so.
            while let Some(client) = self.clients.get(complete)
                && client.has_joined()
                && client.account.is_complete(self.due(client, published))
            {
                complete += 1;
            }
        }
        let end = Instant::now() + SURPLUS_WAIT;
        while Instant::now() < end {
            self.poll(SLEEP_MAX)?;
        }
        let mut sum = Totals::default();
        for client in &self.clients {
            sum += client.account.totals(self.due(client, published));
        }
        Ok(sum)
    }

    /// Number of clients that are not in their room.
    pub(super) fn absent(&self) -> usize {
        let clients = self.clients.iter();
        clients.filter(|client| !client.has_joined()).count()
    }

    fn due(&self, client: &Client, published: u64) -> u64 {
        published_in(client.room, self.rooms, published)
    }

    /// How often clients were told that messages are missing.
    pub(super) fn gaps(&self) -> u64 {
        self.clients.iter().map(|client| client.gaps).sum()
    }

    /// Cuts the connection of a client that has one.
    fn cut(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let has_joined = client.has_joined();
        if let Some(connection) = client.connection.take() {
            self.counts.cuts += 1;
            if !has_joined {
                self.counts.early_cuts += 1;
                // It would have taken at least so long.
                self.replays
                    .record(connection.begun.elapsed().as_nanos() as u64);
            }
            self.schedule(at);
        }
    }

    fn schedule(&mut self, at: usize) {
        let due = Instant::now() + self.plan.offline;
        self.offline.push(Reverse((due, at)));
    }

    /// Connects the clients that have been offline for long enough.
    fn reconnect(&mut self) -> io::Result<()> {
        while let Some(&Reverse((due, at))) = self.offline.peek()
            && due <= Instant::now()
        {
            self.offline.pop();
            self.connect(at)?;
        }
        Ok(())
    }

    /// Connects a client to another node than before.
    fn connect(&mut self, at: usize) -> io::Result<()> {
        let client = &mut self.clients[at];
        let node = self.nodes[(at + client.connects) % self.nodes.len()];
        let token = token(at, client.connects + 1);
        let connection = client.connect(node)?;
        Ok(epoll::add(
            &self.epoll,
            &connection.socket,
            epoll::EventData::new_u64(token),
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET,
        )?)
    }

    /// Waits for events until the next reconnect, `timeout` at most, and handles them.
    fn poll(&mut self, timeout: Duration) -> io::Result<()> {
        let reconnect = self.offline.peek().map_or(SLEEP_MAX, |Reverse((due, _))| {
            due.saturating_duration_since(Instant::now())
        });
        let timeout = timeout.min(SLEEP_MAX).min(reconnect);
        poll::wait(&self.epoll, &mut self.events, Some(timeout))?;
        let events = std::mem::take(&mut self.events);
        for event in &events {
            let (at, connects) = parts(event.data.u64());
            let is_current = self.clients[at].connects as u64 & CONNECTS_MASK == connects;
            if is_current && let Err(error) = self.handle(at, event.flags) {
                // The server closed the connection, or sent nonsense.
                self.clients[at].connection = None;
                self.counts.failures += 1;
                let text = || format!("client {at}: {error}");
                self.counts.first_failure.get_or_insert_with(text);
                self.schedule(at);
            }
        }
        self.events = events;
        Ok(())
    }

    fn handle(&mut self, at: usize, flags: epoll::EventFlags) -> io::Result<()> {
        let client = &mut self.clients[at];
        if flags.contains(epoll::EventFlags::OUT) {
            let node = self.nodes[(at + client.connects - 1) % self.nodes.len()];
            client.writable(node)?;
        }
        while let Some(connection) = &client.connection {
            let Some(read) = connect::receive_once(&connection.socket, &mut self.buffer)? else {
                break;
            };
            let progress = client.receive(&self.buffer[..read], &self.accept)?;
            self.steps += progress.messages;
            if let Some(Join { replayed, time }) = progress.join {
                self.steps += 1;
                self.replays.record(time.as_nanos() as u64);
                self.counts.resumed += 1;
                self.counts.replayed += replayed;
                self.counts.nothing_missed += u64::from(replayed == 0);
            }
            if read < self.buffer.len() {
                break;
            }
        }
        Ok(())
    }
}

/// Notices that nothing happens any more.
struct StallWatch {
    steps: u64,
    since: Instant,
}

impl StallWatch {
    fn new() -> Self {
        Self {
            steps: 0,
            since: Instant::now(),
        }
    }

    fn has_stalled(&mut self, steps: u64) -> bool {
        if steps != self.steps {
            (self.steps, self.since) = (steps, Instant::now());
        }
        self.since.elapsed() >= STALLED
    }
}

/// The bits of a token that tell the connections of a client apart. A cut connection may have had an event that is not
/// handled yet.
const CONNECTS_MASK: u64 = 0xFFFF_FFFF;

fn token(at: usize, connects: usize) -> u64 {
    (at as u64) << 32 | (connects as u64 & CONNECTS_MASK)
}

/// Returns the client and the number of the connection of a token.
fn parts(token: u64) -> (usize, u64) {
    ((token >> 32) as usize, token & CONNECTS_MASK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_spread_evenly_over_the_interval() {
        let plan = CutPlan {
            interval: Duration::from_secs(15),
            offline: Duration::ZERO,
        };
        assert_eq!(plan.due(0, 5), Duration::from_secs(3));
        // The same client one interval later.
        assert_eq!(plan.due(5, 5), Duration::from_secs(18));
    }

    #[test]
    fn token_names_client_and_connection() {
        assert_eq!(parts(token(9_999, 17)), (9_999, 17));
    }
}
