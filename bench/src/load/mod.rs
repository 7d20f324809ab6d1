//! The load client: one thread, one epoll loop, no task and no allocation per message.
//!
//! Every message is whole, binary and of one size; its first eight bytes are its number, the next
//! eight the time it was made, and eight more name a room where there are rooms. Every connection
//! must receive exactly the numbers it is owed, in order: a gap, a repetition or a stranger ends
//! the run with an error. Only visitors, who are in the room at times, may have gaps.

mod connect;
pub(crate) mod driven;
mod receiver;

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::args::{self, Job, Known, Options};
use crate::histogram::Histogram;
use crate::{machine, wire};
use receiver::{Receiver, Shape};

const READ_BUFFER: usize = 256 * 1024;
const EVENTS: usize = 1024;
/// So many join a room at once.
const GROUP: usize = 50;
/// Nothing for this long although something is owed: the server has stalled.
const STALLED: Duration = Duration::from_secs(10);

/// What is to be done to a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) job: Job,
    /// Connections; a fan-out has the publisher besides, who receives like all others, and rooms have one who does not.
    pub(crate) clients: usize,
    pub(crate) rooms: Rooms,
    /// Messages in flight: of the publisher, or of each client of an echo.
    pub(crate) window: usize,
    /// Bytes of payload, 24 at least.
    pub(crate) size: usize,
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

impl Plan {
    fn has_rooms(&self) -> bool {
        matches!(self.job, Job::Rooms | Job::Churn)
    }

    /// How many get each message that is published.
    fn everyone(&self) -> usize {
        match self.job {
            Job::Echo => self.clients,
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

    fn path(&self, at: usize) -> String {
        match at.checked_sub(1) {
            _ if self.job == Job::Echo => "/".into(),
            None => wire::PUBLISH.into(),
            Some(_) if self.job == Job::Fanout => "/".into(),
            Some(client) if client >= self.clients => wire::VISIT.into(),
            Some(client) => match self.room_of_client(client) {
                Some(room) => format!("/{}", String::from_utf8_lossy(&wire::room_name(room))),
                None => "/".into(),
            },
        }
    }

    /// The first number that a connection is owed.
    fn first_number(&self, at: usize) -> u64 {
        match at.checked_sub(1) {
            Some(client) if self.has_rooms() && client < self.clients => self
                .room_of_client(client)
                .map_or(u64::MAX, |room| room as u64),
            None if self.has_rooms() => u64::MAX,
            _ => 0,
        }
    }

    /// The room that a message names.
    fn room_of_message(&self, connection: usize, number: u64) -> Option<wire::RoomName> {
        let count = self.rooms.count;
        match (self.job, number.checked_sub(1)) {
            _ if count == 0 => None,
            (Job::Echo, None) => Some(wire::NO_ROOM),
            (Job::Echo, Some(before)) => Some(wire::room_name(
                before as usize * count + connection % count,
            )),
            _ => Some(wire::room_name((number % count as u64) as usize)),
        }
    }

    fn check(&self) -> io::Result<()> {
        match () {
            () if self.clients == 0 => Err(args::bad("clients", "0")),
            () if !(1..=1 << 16).contains(&self.window) => {
                Err(args::bad("window", &self.window.to_string()))
            }
            () if !(24..=16 << 20).contains(&self.size) => {
                Err(args::bad("size", &self.size.to_string()))
            }
            () if self.has_rooms() && self.rooms.count == 0 => Err(args::bad("rooms", "0")),
            () if self.has_rooms()
                && !(1..=self.clients / self.rooms.count).contains(&self.rooms.members) =>
            {
                Err(args::bad("members", &self.rooms.members.to_string()))
            }
            () => Ok(()),
        }
    }
}

/// Open connections, and the state of the work on them.
pub(crate) struct Load {
    plan: Plan,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    events: Vec<epoll::Event>,
    input: Box<[u8]>,
    output: Vec<u8>,
    frame: FrameTemplate,
    shape: Shape,
    tally: Tally,
}

struct Connection {
    socket: OwnedFd,
    receiver: Receiver,
    /// The number its next message must have, and how far apart these are.
    next: u64,
    stride: u64,
    /// It is in the room at times.
    visitor: bool,
    /// Echo: how many it has sent, and how many it may send in all.
    sent: u64,
    quota: u64,
    /// What its socket refused.
    unsent: Vec<u8>,
}

/// Counts and times.
struct Tally {
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
    /// Opens all connections; the first is a fan-out's publisher.
    pub(crate) fn connect(address: SocketAddrV4, plan: Plan) -> io::Result<Self> {
        plan.check()?;
        let publisher = usize::from(plan.job != Job::Echo);
        let count = publisher + plan.clients + plan.rooms.visitors;
        let descriptors = machine::raise_descriptor_limit()?;
        if count as u64 + 16 > descriptors {
            return Err(io::Error::other(format!(
                "{count} connections need more than {descriptors} descriptors"
            )));
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let sockets = connect::open(address, count, |at| plan.path(at))?;
        let mut connections = Vec::with_capacity(count);
        for (token, socket) in sockets.into_iter().enumerate() {
            epoll::add(
                &epoll,
                &socket,
                epoll::EventData::new_u64(token as u64),
                epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET,
            )?;
            let receiver = Receiver::default();
            connections.push(Connection {
                socket,
                receiver,
                next: plan.first_number(token),
                stride: match plan.has_rooms() {
                    true => plan.rooms.count as u64,
                    false => 1,
                },
                visitor: token >= publisher + plan.clients,
                sent: 0,
                quota: 0,
                unsent: Vec::new(),
            });
        }
        Ok(Self {
            epoll,
            connections,
            events: Vec::with_capacity(EVENTS),
            input: vec![0; READ_BUFFER].into_boxed_slice(),
            output: Vec::new(),
            frame: FrameTemplate::new(plan.size),
            shape: Shape::new(plan.size),
            tally: Tally {
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
            plan,
        })
    }

    /// Sends `messages` and returns when all that they cause has been received. An echo rounds
    /// up to the same number for each client.
    pub(crate) fn deliver(&mut self, messages: u64) -> io::Result<()> {
        match self.plan.job {
            Job::Echo => self.echo(messages.div_ceil(self.plan.clients as u64)),
            Job::Fanout | Job::Rooms | Job::Churn => self.fan_out(messages),
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
            self.tally.expected += each * (end - start) as u64;
            for token in start..end {
                let connection = &mut self.connections[token];
                connection.quota += each;
                let room = |number| self.plan.room_of_message(token, number);
                let now = self.tally.now();
                connection.send(&self.frame, &mut self.output, first, now, room)?;
            }
            self.until_received()?;
        }
        Ok(())
    }

    fn fan_out(&mut self, messages: u64) -> io::Result<()> {
        let last = self.tally.published + messages;
        self.tally.expected += messages * self.tally.everyone as u64;
        while self.tally.complete < last {
            let tally = &mut self.tally;
            let room = self.plan.window as u64 - (tally.published - tally.complete);
            let more = room.min(last - tally.published);
            if more > 0 {
                let publisher = &mut self.connections[0];
                tally.published += more;
                let room = |number| self.plan.room_of_message(0, number);
                publisher.send(&self.frame, &mut self.output, more, tally.now(), room)?;
            }
            self.turn(STALLED)?;
        }
        self.until_received()
    }

    fn until_received(&mut self) -> io::Result<()> {
        while self.tally.received < self.tally.expected {
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
                let Tally {
                    received, expected, ..
                } = self.tally;
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
        for event in &self.events {
            let (token, flags) = (event.data.u64() as usize, event.flags);
            let connection = &mut self.connections[token];
            if flags.contains(epoll::EventFlags::OUT) && !connection.unsent.is_empty() {
                connection.flush()?;
            }
            if flags
                .intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR)
            {
                let owed = match self.plan.job {
                    Job::Echo => connection.sent,
                    Job::Fanout | Job::Rooms | Job::Churn => self.tally.published,
                };
                let received = connection
                    .read(&mut self.input, &self.shape, &mut self.tally, owed)
                    .map_err(|e| io::Error::new(e.kind(), format!("connection {token}: {e}")))?;
                if self.plan.job == Job::Echo {
                    let more = received.min(connection.quota - connection.sent);
                    let room = |number| self.plan.room_of_message(token, number);
                    connection.send(&self.frame, &mut self.output, more, self.tally.now(), room)?;
                }
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
        match (self.tally.received, self.tally.expected) {
            (received, expected) if received == expected => Ok(()),
            (received, expected) => Err(io::Error::other(format!(
                "{received} deliveries received where {expected} were expected"
            ))),
        }
    }

    /// Deliveries: expected so far, and received.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.tally.expected, self.tally.received)
    }

    /// How often visitors have come again.
    pub(crate) fn visits(&self) -> u64 {
        self.tally.visits
    }

    pub(crate) fn latencies(&mut self) -> &mut Histogram {
        &mut self.tally.latencies
    }
}

impl Connection {
    /// Reads all there is, up to the `owed` messages it may have by now; returns how many came.
    fn read(
        &mut self,
        input: &mut [u8],
        shape: &Shape,
        tally: &mut Tally,
        owed: u64,
    ) -> io::Result<u64> {
        let mut count = 0;
        loop {
            let read = match recv(&self.socket, &mut *input, RecvFlags::empty()) {
                Ok((0, _)) => return Err(io::Error::other("the server closed it")),
                Ok((read, _)) => read,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let now = tally.now();
            let mut bytes = &input[..read];
            while let Some(message) = self.receiver.next(shape, &mut bytes)? {
                let missed = self.visitor && message.number > self.next;
                if message.number != self.next && !missed || message.number >= owed {
                    let (number, next) = (message.number, self.next);
                    return Err(io::Error::other(format!(
                        "message {number} where {next} of {owed} was due"
                    )));
                }
                self.next = message.number + self.stride;
                count += 1;
                if self.visitor {
                    tally.count_visitor(missed);
                } else {
                    tally.count(message.number, now.saturating_sub(message.stamp));
                }
            }
            if read < input.len() {
                break;
            }
        }
        Ok(count)
    }

    /// Sends `count` messages in one write.
    fn send(
        &mut self,
        frame: &FrameTemplate,
        output: &mut Vec<u8>,
        count: u64,
        stamp: u64,
        room: impl Fn(u64) -> Option<wire::RoomName>,
    ) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        output.clear();
        for _ in 0..count {
            frame.put(output, self.sent, stamp, room(self.sent));
            self.sent += 1;
        }
        let sent = if self.unsent.is_empty() {
            self.write(output)?
        } else {
            0
        };
        self.unsent.extend_from_slice(&output[sent..]);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = self.write(&self.unsent)?;
        self.unsent.drain(..sent);
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut sent = 0;
        while sent < bytes.len() {
            match send(&self.socket, &bytes[sent..], SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sent)
    }
}

impl Tally {
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

    /// What a visitor gets nobody could foresee.
    fn count_visitor(&mut self, missed: bool) {
        self.received += 1;
        self.expected += 1;
        self.visits += u64::from(missed);
    }
}

/// A client's frame, made once; number and time are filled in.
struct FrameTemplate {
    bytes: Vec<u8>,
    payload: usize,
}

const MASK: [u8; 4] = [0x5a, 0xc3, 0x1e, 0x97];

impl FrameTemplate {
    fn new(size: usize) -> Self {
        let mut bytes = Vec::new();
        wire::put_client_head(&mut bytes, wire::BINARY, size, MASK);
        let payload = bytes.len();
        bytes.extend((0..size).map(|at| at as u8));
        wire::mask(&mut bytes[payload..], MASK);
        Self { bytes, payload }
    }

    fn put(&self, output: &mut Vec<u8>, number: u64, stamp: u64, room: Option<wire::RoomName>) {
        let payload = output.len() + self.payload;
        output.extend_from_slice(&self.bytes);
        let mask = wire::wide_mask(MASK);
        output[payload..payload + 8].copy_from_slice(&(number ^ mask).to_ne_bytes());
        output[payload + 8..payload + 16].copy_from_slice(&(stamp ^ mask).to_ne_bytes());
        if let Some(room) = room {
            let room = u64::from_ne_bytes(room) ^ mask;
            output[payload + 16..payload + 24].copy_from_slice(&room.to_ne_bytes());
        }
    }
}

pub(crate) const OPTIONS: &[Known] = &[
    args::value("address"),
    args::value("clients"),
    args::value("size"),
    args::value("window"),
    args::value("rooms"),
    args::value("members"),
    args::value("visitors"),
    args::flag("together"),
    args::value("messages"),
    args::value("hold"),
    args::value("cpu"),
    args::flag("sleep"),
    args::flag("driven"),
];

/// `bench load`: one job against a server that runs already.
pub(crate) fn command(options: &Options) -> io::Result<()> {
    let idle = options.word() == Some("idle");
    let plan = Plan {
        job: if idle { Job::Echo } else { Job::of(options)? },
        clients: options.number("clients", if idle { 5_000 } else { 100 })?,
        rooms: Rooms {
            count: options.number("rooms", 0)?,
            members: options.number("members", 0)?,
            together: options.flag("together"),
            visitors: options.number("visitors", 0)?,
        },
        window: options.number("window", 1)?,
        size: options.number("size", 32)?,
        sleep: options.flag("sleep"),
    };
    let Some(address) = options.text("address") else {
        return Err(args::invalid("--address is needed".into()));
    };
    let address = address.parse().map_err(|_| args::bad("address", address))?;
    let messages = options.number("messages", if idle { 0 } else { 10_000 })?;
    if let Some(cpu) = options.text("cpu") {
        machine::pin(cpu.parse().map_err(|_| args::bad("cpu", cpu))?)?;
    }

    if options.flag("driven") {
        machine::die_with_parent()?;
        return driven::obey(Load::connect(address, plan)?);
    }
    let mut load = Load::connect(address, plan)?;
    if idle {
        let hold: u64 = options.number("hold", 60)?;
        println!("{} connections held for {hold} s", plan.clients);
        return load.expect_nothing_more(Duration::from_secs(hold));
    }
    let start = Instant::now();
    load.deliver(messages)?;
    let took = start.elapsed();
    load.expect_nothing_more(Duration::from_millis(50))?;
    let (expected, received) = load.counts();
    let summary = load.latencies().summary();
    println!(
        "{received} of {expected} deliveries in {took:.2?}: {:.3} µs each; latency p50 {:.1?}, p99 {:.1?}, max {:.1?}",
        took.as_secs_f64() * 1e6 / received.max(1) as f64,
        summary.p50,
        summary.p99,
        summary.max
    );
    Ok(())
}
