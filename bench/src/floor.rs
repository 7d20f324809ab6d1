//! The floor: a minimal WebSocket server, which is the baseline of all ratios.
//!
//! It has one thread (or two, for echoes), each with one edge-triggered epoll loop and `TCP_NODELAY`, and does no more than answer the
//! handshake, unmask, and write the same bytes to the same sockets:
//!
//! - echo: one send for all replies to one read;
//! - fan-out: one send per socket and per message; joined, one send per socket for all messages of one read;
//! - rooms: one send per member of a room and per message; members are in a plain array.
//!
//! With a ring, all sends of a fan-out, and all replies of a turn, take one system call.

#[path = "floor_ring.rs"]
mod ring;

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, getsockname,
    listen, recv, send, socket_with, sockopt,
};

use crate::args::{self, Job, OptionSpec};
use crate::poll;
use crate::wire::{self, Parsed};
use ring::Ring;

const LISTENER: u64 = u64::MAX;
const BACKLOG: i32 = 4096;
const READ_BUFFER: usize = 256 * 1024;
const EVENTS: usize = 1024;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::value("address"),
    args::value("cpu"),
    args::flag("joined"),
    args::flag("ring"),
    args::flag("two-threads"),
    args::flag("child"),
];

/// How the messages of a fan-out are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloorMode {
    /// One send per socket and per message.
    Single,
    /// One send per socket for all messages of one read.
    Joined,
    /// One send per socket and per message, submitted to an io_uring ring with one system call per turn.
    Ring,
    /// Two threads, which share nothing but the listener and take connections in turn. Only for echoes.
    TwoThreads,
}

/// Checks whether the kernel and the container allow io_uring.
pub(crate) fn check_ring() -> io::Result<()> {
    Ring::new().map(drop)
}

pub(crate) fn serve(job: Job, address: SocketAddrV4, mode: FloorMode) -> io::Result<()> {
    if matches!(job, Job::Lines | Job::Churn | Job::Chat | Job::RoundRobin) {
        return Err(io::Error::other("the floor does not support this job"));
    }
    let listener = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    bind(&listener, &address)?;
    listen(&listener, BACKLOG)?;
    crate::ready(SocketAddr::try_from(getsockname(&listener)?)?)?;
    if mode != FloorMode::TwoThreads {
        return serve_alone(job, mode, &listener, Turns::only());
    }
    if job != Job::Echo {
        return Err(io::Error::other("two threads only serve echoes"));
    }
    let accepted = AtomicUsize::new(0);
    let serve = |of| {
        serve_alone(
            job,
            mode,
            &listener,
            Turns {
                accepted: &accepted,
                of: Some(of),
            },
        )
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| serve(1));
        serve(0)?;
        other.join().unwrap_or(Ok(()))
    })
}

/// Which connections a thread accepts.
#[derive(Clone, Copy)]
struct Turns<'a> {
    accepted: &'a AtomicUsize,
    /// The number of this thread of two.
    of: Option<usize>,
}

impl Turns<'_> {
    fn only() -> Self {
        static ACCEPTED: AtomicUsize = AtomicUsize::new(0);
        Self {
            accepted: &ACCEPTED,
            of: None,
        }
    }

    fn is_mine(self) -> bool {
        self.of
            .is_none_or(|of| self.accepted.load(Relaxed) % 2 == of)
    }
}

/// Serves with the calling thread alone.
fn serve_alone(job: Job, mode: FloorMode, listener: &OwnedFd, turns: Turns<'_>) -> io::Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        listener,
        epoll::EventData::new_u64(LISTENER),
        epoll::EventFlags::IN,
    )?;

    let mut floor = Floor {
        job,
        mode,
        epoll,
        connections: Vec::new(),
        rooms: Vec::new(),
        free: Vec::new(),
        input: vec![0; READ_BUFFER],
        output: Vec::new(),
        ends: Vec::new(),
        ring: (mode == FloorMode::Ring).then(Ring::new).transpose()?,
        replies: Vec::new(),
    };
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        poll::wait(&floor.epoll, &mut events, None)?;
        for event in &events {
            let token = event.data.u64();
            if token == LISTENER {
                floor.accept(listener, turns)?;
            } else {
                floor.handle_event(token as usize, event.flags);
            }
        }
        floor.send_replies();
    }
}

struct Floor {
    job: Job,
    mode: FloorMode,
    epoll: OwnedFd,
    connections: Vec<Option<FloorConnection>>,
    /// The members of each room, by its number.
    rooms: Vec<Vec<u32>>,
    free: Vec<u32>,
    /// Input buffer: the leftover of the last read, then the data of this one.
    input: Vec<u8>,
    /// The frames to send, and where each of them ends.
    output: Vec<u8>,
    ends: Vec<OutputFrame>,
    ring: Option<Ring>,
    /// With a ring, the replies of this turn: connections and ranges of the output.
    replies: Vec<(u32, Range<usize>)>,
}

/// A frame of the output.
struct OutputFrame {
    /// Where its payload begins, and where it ends.
    payload: usize,
    end: usize,
}

struct FloorConnection {
    socket: OwnedFd,
    open: bool,
    publisher: bool,
    rest: Option<Box<Leftover>>,
}

/// Buffers that few connections need at a time: part of a message, or bytes that the socket did not accept.
#[derive(Default)]
struct Leftover {
    input: Vec<u8>,
    output: Vec<u8>,
}

/// The connection has ended.
struct Disconnected;

impl Floor {
    fn accept(&mut self, listener: &OwnedFd, turns: Turns<'_>) -> io::Result<()> {
        while turns.is_mine() {
            let socket = match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(error) => return Err(error.into()),
            };
            turns.accepted.fetch_add(1, Relaxed);
            sockopt::set_tcp_nodelay(&socket, true)?;
            let token = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                (self.connections.len() - 1) as u32
            });
            epoll::add(
                &self.epoll,
                &socket,
                epoll::EventData::new_u64(u64::from(token)),
                epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET,
            )?;
            self.connections[token as usize] = Some(FloorConnection {
                socket,
                open: false,
                publisher: false,
                rest: None,
            });
        }
        Ok(())
    }

    fn handle_event(&mut self, token: usize, flags: epoll::EventFlags) {
        let Some(Some(connection)) = self.connections.get_mut(token) else {
            return;
        };
        let mut outcome = Ok(());
        if flags.contains(epoll::EventFlags::OUT) && connection.rest.is_some() {
            outcome = connection.flush();
        }
        if outcome.is_ok()
            && flags
                .intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR)
        {
            outcome = self.read(token);
        }
        if outcome.is_err() {
            self.send_replies();
            self.drop_connection(token);
        }
    }

    fn drop_connection(&mut self, token: usize) {
        // With rooms, slots are not reused: the new connection would be taken for a member.
        if self.connections[token].take().is_some() && self.rooms.is_empty() {
            self.free.push(token as u32);
        }
    }

    /// Reads until the socket is empty, which a short read shows without another call.
    fn read(&mut self, token: usize) -> Result<(), Disconnected> {
        loop {
            let Some(connection) = &mut self.connections[token] else {
                return Ok(());
            };
            let carried = connection.rest.as_ref().map_or(0, |rest| rest.input.len());
            if carried * 2 > self.input.len() {
                self.input.resize(self.input.len() * 2, 0);
            }
            let room = self.input.len() - carried;
            let read = match recv(
                &connection.socket,
                &mut self.input[carried..],
                RecvFlags::empty(),
            ) {
                Ok((0, _)) => return Err(Disconnected),
                Ok((read, _)) => read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(_) => return Err(Disconnected),
            };
            if let Some(rest) = &mut connection.rest {
                self.input[..carried].copy_from_slice(&rest.input);
                rest.input.clear();
                connection.free_buffers();
            }
            self.process(token, carried + read)?;
            if read < room {
                return Ok(());
            }
        }
    }

    /// Handles the first `length` bytes of the input.
    fn process(&mut self, token: usize, length: usize) -> Result<(), Disconnected> {
        if self
            .replies
            .last()
            .is_some_and(|&(last, _)| last == token as u32)
        {
            self.send_replies();
        }
        if self.replies.is_empty() {
            self.output.clear();
        }
        let Some(connection) = &mut self.connections[token] else {
            return Ok(());
        };
        let input = &mut self.input[..length];
        self.ends.clear();
        let mut at = 0;
        if !connection.open {
            let (end, room) = connection.upgrade(input)?;
            at = end;
            if let Some(room) = room {
                if self.rooms.len() <= room {
                    self.rooms.resize_with(room + 1, Vec::new);
                }
                self.rooms[room].push(token as u32);
            }
        }
        // The input of a connection that is not open yet is an incomplete request.
        while at < length && connection.open {
            match wire::client_frame(&input[at..]) {
                Parsed::Frame(frame) => {
                    let payload = &mut input[at + frame.start..at + frame.end];
                    wire::mask(payload, frame.mask);
                    if self.job == Job::Blocked && wire::is_blocking(payload) {
                        std::thread::sleep(wire::BLOCK_TIME);
                    }
                    wire::put_server_head(&mut self.output, frame.opcode, payload.len());
                    let start = self.output.len();
                    self.output.extend_from_slice(payload);
                    self.ends.push(OutputFrame {
                        payload: start,
                        end: self.output.len(),
                    });
                    at += frame.end;
                }
                Parsed::Incomplete => break,
                Parsed::Invalid => return Err(Disconnected),
            }
        }
        if at < length {
            connection
                .rest
                .get_or_insert_default()
                .input
                .extend_from_slice(&input[at..]);
        }
        match self.job {
            Job::Echo if self.ring.is_some() => {
                self.queue_replies(token as u32);
                Ok(())
            }
            Job::Echo | Job::Blocked => connection.send(&self.output),
            Job::Fanout if connection.publisher => {
                self.fan_out();
                Ok(())
            }
            Job::Rooms | Job::Churn if connection.publisher => {
                self.fan_out_to_rooms();
                Ok(())
            }
            Job::Rooms | Job::Churn => connection.send(&self.output),
            Job::Fanout | Job::Lines | Job::Chat | Job::RoundRobin => Ok(()),
        }
    }

    /// Sends the frames to every connection, one by one or all at once.
    fn fan_out(&mut self) {
        if self.ring.is_some() {
            let ends = std::mem::take(&mut self.ends);
            let mut start = 0;
            for &OutputFrame { end, .. } in &ends {
                let recipients = self.recipients();
                self.send_all(recipients.into_iter().map(|token| (token, start..end)));
                start = end;
            }
            self.ends = ends;
            return;
        }
        let mut start = 0;
        let ends = match self.mode {
            FloorMode::Single | FloorMode::Ring | FloorMode::TwoThreads => &self.ends[..],
            FloorMode::Joined => &self.ends[self.ends.len().saturating_sub(1)..],
        };
        for &OutputFrame { end, .. } in ends {
            let frame = &self.output[start..end];
            start = end;
            for token in 0..self.connections.len() {
                let slot = &mut self.connections[token];
                let Some(connection) = slot.as_mut().filter(|c| c.open) else {
                    continue;
                };
                if connection.send(frame).is_err() {
                    *slot = None;
                    self.free.push(token as u32);
                }
            }
        }
    }

    /// Sends each frame to the members of its room, with one send per member.
    fn fan_out_to_rooms(&mut self) {
        let mut start = 0;
        let ends = std::mem::take(&mut self.ends);
        for &OutputFrame { payload, end } in &ends {
            let piece = start..end;
            let frame = &self.output[piece.clone()];
            start = end;
            let room = wire::room_of(&self.output[payload..end]).and_then(|name| name.parse().ok());
            let Some(members) = room.and_then(|room: usize| self.rooms.get(room)) else {
                continue;
            };
            if self.ring.is_some() {
                let members = members.clone();
                self.send_all(members.into_iter().map(|token| (token, piece.clone())));
                continue;
            }
            for &token in members {
                let slot = &mut self.connections[token as usize];
                if let Some(connection) = slot
                    && connection.send(frame).is_err()
                {
                    // The slot is not reused: the new connection would be taken for a member.
                    *slot = None;
                }
            }
        }
        self.ends = ends;
    }
}

impl FloorConnection {
    /// Answers the handshake once it is complete. Returns its length in the input, and the room that it names.
    fn upgrade(&mut self, input: &[u8]) -> Result<(usize, Option<usize>), Disconnected> {
        let Some(end) = wire::head_end(input) else {
            return Ok((0, None));
        };
        let head = std::str::from_utf8(&input[..end]).map_err(|_| Disconnected)?;
        let key = wire::header(head, "sec-websocket-key").ok_or(Disconnected)?;
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            wire::accept_key(key)
        );
        self.open = true;
        let path = head.split(' ').nth(1).unwrap_or_default();
        self.publisher = path == wire::PUBLISH;
        self.send(answer.as_bytes())?;
        Ok((end, path.trim_start_matches('/').parse().ok()))
    }

    /// Writes as much as the socket accepts, and buffers the rest.
    fn send(&mut self, bytes: &[u8]) -> Result<(), Disconnected> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut sent = 0;
        if !self.has_output() {
            sent = self.write(bytes)?;
        }
        if sent < bytes.len() {
            self.rest
                .get_or_insert_default()
                .output
                .extend_from_slice(&bytes[sent..]);
        }
        Ok(())
    }

    /// Writes buffered output.
    fn flush(&mut self) -> Result<(), Disconnected> {
        let Some(mut rest) = self.rest.take() else {
            return Ok(());
        };
        let sent = self.write(&rest.output);
        rest.output.drain(..*sent.as_ref().unwrap_or(&0));
        self.rest = Some(rest);
        self.free_buffers();
        sent.map(drop)
    }

    /// Whether output is buffered, which must be written first.
    fn has_output(&self) -> bool {
        self.rest
            .as_ref()
            .is_some_and(|rest| !rest.output.is_empty())
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, Disconnected> {
        let mut sent = 0;
        while sent < bytes.len() {
            match send(&self.socket, &bytes[sent..], SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Err(Disconnected),
            }
        }
        Ok(sent)
    }

    /// Frees empty buffers, so that an idle connection holds none.
    fn free_buffers(&mut self) {
        if self
            .rest
            .as_ref()
            .is_some_and(|rest| rest.input.is_empty() && rest.output.is_empty())
        {
            self.rest = None;
        }
    }
}
