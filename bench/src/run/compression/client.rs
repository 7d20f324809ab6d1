//! The load client of the compression scenarios: one epoll loop that polls. It counts frames and bytes on the wire without
//! inflating them, so that its own work does not limit the server. A sample of the clients inflates all their messages and
//! compares them with what was sent.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::stream::{Frames, Inflater, Part, Totals};
use crate::args::Job;
use crate::load::connect::{self, ConnectionSpec};
use crate::wire;

const READ_BUFFER: usize = 256 * 1024;
const EVENTS: usize = 1024;
const MASK: [u8; 4] = [0x5a, 0xc3, 0x1e, 0x97];
/// If nothing arrives for this long although messages are expected, the server has stalled.
const STALLED: Duration = Duration::from_secs(10);
/// Clients that inflate and compare their messages, besides the first two.
const CHECKED: usize = 8;
/// Messages at once while a server is warmed up.
const WARM_UP_WINDOW: usize = 16;

/// What the clients of a server do.
#[derive(Clone)]
pub(super) struct Conversation {
    pub(super) job: Job,
    /// Number of connections. In a fan-out, the first one publishes and receives; in turns, it only publishes.
    pub(super) clients: usize,
    /// Rooms that are sent messages in turn.
    pub(super) rooms: usize,
    /// The first clients of a chat, which speak in turn.
    pub(super) speakers: usize,
    /// Messages that are sent at once, before all their deliveries are awaited; for each client in an echo.
    pub(super) window: usize,
    pub(super) messages: Arc<Vec<String>>,
    /// Whether the clients offer compression, which the server must then accept.
    pub(super) offers: bool,
}

impl Conversation {
    fn path(&self, client: usize) -> String {
        match self.job {
            Job::Fanout | Job::Turns if client == 0 => wire::PUBLISH.into(),
            Job::Turns => format!("/{}", (client - 1) % self.rooms),
            _ => "/".into(),
        }
    }

    /// The client that sends message `number`.
    fn sender(&self, number: u64) -> usize {
        match self.job {
            Job::Chat => (number % self.speakers as u64) as usize,
            Job::Echo => (number / self.window as u64 % self.clients as u64) as usize,
            _ => 0,
        }
    }

    /// Number of clients that receive a message.
    fn recipients(&self) -> u64 {
        (match self.job {
            Job::Echo => 1,
            Job::Chat => self.clients - 1,
            Job::Turns => (self.clients - 1) / self.rooms,
            _ => self.clients,
        }) as u64
    }

    /// Messages that are sent before their deliveries are awaited.
    fn batch(&self) -> u64 {
        (match self.job {
            Job::Echo => self.clients * self.window,
            _ => self.window,
        }) as u64
    }

    /// The number of the message that a client receives after `received` others.
    fn number(&self, client: usize, received: u64) -> u64 {
        let client = client as u64;
        match self.job {
            Job::Echo => {
                let window = self.window as u64;
                (received / window * self.clients as u64 + client) * window + received % window
            }
            Job::Chat if client < self.speakers as u64 => {
                // A speaker does not receive its own messages.
                let others = self.speakers as u64 - 1;
                let place = received % others;
                received / others * self.speakers as u64 + place + u64::from(place >= client)
            }
            Job::Turns => received * self.rooms as u64 + (client - 1) % self.rooms as u64,
            _ => received,
        }
    }

    fn text(&self, number: u64) -> &str {
        &self.messages[(number % self.messages.len() as u64) as usize]
    }

    fn is_checked(&self, client: usize) -> bool {
        client < 2 || client.is_multiple_of((self.clients / CHECKED).max(1))
    }

    /// Whether clients join rooms, so that the first message must wait until they have.
    fn joins(&self) -> bool {
        matches!(self.job, Job::Chat | Job::Turns)
    }
}

/// The clients of one server.
pub(super) struct Clients {
    talk: Conversation,
    epoll: OwnedFd,
    clients: Vec<Client>,
    events: Vec<epoll::Event>,
    input: Box<[u8]>,
    output: Vec<u8>,
    /// Messages sent so far.
    pub(super) sent: u64,
    pub(super) totals: Totals,
    expected: u64,
}

struct Client {
    socket: OwnedFd,
    frames: Frames,
    received: u64,
    inflater: Option<Inflater>,
}

impl Clients {
    pub(super) fn connect(address: SocketAddrV4, talk: Conversation) -> io::Result<Self> {
        let spec = |at| ConnectionSpec {
            path: talk.path(at),
            small: false,
            offers: talk.offers,
        };
        let sockets = connect::open(address, 0, talk.clients, spec)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut clients = Vec::with_capacity(sockets.len());
        for (token, socket) in sockets.into_iter().enumerate() {
            epoll::add(
                &epoll,
                &socket,
                epoll::EventData::new_u64(token as u64),
                epoll::EventFlags::IN | epoll::EventFlags::ET,
            )?;
            clients.push(Client {
                socket,
                frames: Frames::default(),
                received: 0,
                inflater: talk.is_checked(token).then(Inflater::new),
            });
        }
        let mut all = Self {
            talk,
            epoll,
            clients,
            events: Vec::with_capacity(EVENTS),
            input: vec![0; READ_BUFFER].into_boxed_slice(),
            output: Vec::new(),
            sent: 0,
            totals: Totals::default(),
            expected: 0,
        };
        if all.talk.joins() {
            all.wait_for_joins()?;
        }
        Ok(all)
    }

    /// Every client says hello and receives an answer, which the server sends after the client has joined.
    fn wait_for_joins(&mut self) -> io::Result<()> {
        for at in 0..self.clients.len() {
            self.output.clear();
            put_frame(&mut self.output, wire::HELLO);
            self.write(at)?;
        }
        self.expected = self.clients.len() as u64;
        let offers = self.talk.offers;
        let talk = std::mem::replace(
            &mut self.talk,
            Conversation {
                job: Job::Fanout,
                clients: self.clients.len(),
                rooms: 0,
                speakers: 0,
                window: 1,
                messages: Arc::new(vec![wire::HELLO.into()]),
                offers,
            },
        );
        let outcome = self.until_received();
        self.talk = talk;
        (self.totals, self.expected) = (Totals::default(), 0);
        for client in &mut self.clients {
            client.received = 0;
        }
        outcome
    }

    /// Sends batches and waits for their deliveries, for that long.
    pub(super) fn run(&mut self, time: Duration) -> io::Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.send_batch()?;
            self.until_received()?;
        }
        Ok(())
    }

    /// As [`run`](Self::run), with many messages at once where one client sends them all.
    pub(super) fn run_in_batches(&mut self, time: Duration) -> io::Result<()> {
        let window = self.talk.window;
        if self.talk.job == Job::Fanout {
            self.talk.window = window.max(WARM_UP_WINDOW);
        }
        let outcome = self.run(time);
        self.talk.window = window;
        outcome
    }

    fn send_batch(&mut self) -> io::Result<()> {
        let end = self.sent + self.talk.batch();
        self.expected += self.talk.batch() * self.talk.recipients();
        while self.sent < end {
            let sender = self.talk.sender(self.sent);
            self.output.clear();
            while self.sent < end && self.talk.sender(self.sent) == sender {
                put_frame(&mut self.output, self.talk.text(self.sent));
                self.sent += 1;
            }
            self.write(sender)?;
        }
        Ok(())
    }

    fn write(&mut self, client: usize) -> io::Result<()> {
        let mut rest = &self.output[..];
        let since = Instant::now();
        while !rest.is_empty() {
            match send(&self.clients[client].socket, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                // The server reads meanwhile: a batch is smaller than what it may buffer.
                Err(Errno::AGAIN) if since.elapsed() < STALLED => std::thread::yield_now(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn until_received(&mut self) -> io::Result<()> {
        let mut since = Instant::now();
        while self.totals.frames < self.expected {
            if self.poll()? > 0 {
                since = Instant::now();
            } else if since.elapsed() >= STALLED {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "nothing received for {STALLED:?}: {} of {} deliveries arrived",
                        self.totals.frames, self.expected
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Polls the sockets once, and reads what has arrived; returns the number of events.
    fn poll(&mut self) -> io::Result<usize> {
        self.events.clear();
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            Some(&wait),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &self.events {
            let at = event.data.u64() as usize;
            self.clients[at]
                .read(at, &self.talk, &mut self.input, &mut self.totals)
                .map_err(|e| io::Error::new(e.kind(), format!("connection {at}: {e}")))?;
        }
        Ok(self.events.len())
    }

    /// Checks that each client has received exactly what it should, and that nothing more arrives. Returns how many messages
    /// were inflated or read, and compared.
    pub(super) fn finish(&mut self) -> io::Result<u64> {
        let end = Instant::now() + Duration::from_millis(50);
        while Instant::now() < end {
            self.poll()?;
        }
        if self.totals.frames != self.expected {
            return Err(io::Error::other(format!(
                "{} deliveries received where {} were expected",
                self.totals.frames, self.expected
            )));
        }
        for (at, client) in self.clients.iter().enumerate() {
            let is_silent = self.talk.job == Job::Turns && at == 0;
            if !is_silent && self.talk.number(at, client.received) < self.sent {
                return Err(io::Error::other(format!(
                    "connection {at} received {} messages of {}",
                    client.received, self.sent
                )));
            }
        }
        let checked = self.clients.iter().filter(|c| c.inflater.is_some());
        Ok(checked.map(|client| client.received).sum())
    }
}

impl Client {
    fn read(
        &mut self,
        at: usize,
        talk: &Conversation,
        input: &mut [u8],
        totals: &mut Totals,
    ) -> io::Result<()> {
        loop {
            let read = match recv(&self.socket, &mut *input, RecvFlags::empty()) {
                Ok((0, _)) => return Err(io::Error::other("the server closed the connection")),
                Ok((read, _)) => read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut bytes = &input[..read];
            while let Part::Payload(payload, ends) =
                self.frames.next(&mut bytes, totals, talk.offers)?
            {
                if let Some(inflater) = &mut self.inflater {
                    inflater.push(payload);
                    if ends {
                        let number = talk.number(at, self.received);
                        let text = inflater.finish(self.frames.is_compressed())?;
                        if text != talk.text(number).as_bytes() {
                            return Err(io::Error::other(format!(
                                "message {number} is {:?}, not {:?}",
                                String::from_utf8_lossy(text),
                                talk.text(number)
                            )));
                        }
                    }
                }
                self.received += u64::from(ends);
            }
            if read < input.len() {
                return Ok(());
            }
        }
    }
}

fn put_frame(output: &mut Vec<u8>, text: &str) {
    wire::put_client_head(output, wire::TEXT, text.len(), MASK);
    let payload = output.len();
    output.extend_from_slice(text.as_bytes());
    wire::mask(&mut output[payload..], MASK);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(job: Job, clients: usize, speakers: usize) -> Conversation {
        Conversation {
            job,
            clients,
            rooms: 4,
            speakers,
            window: if job == Job::Echo { 3 } else { 1 },
            messages: Arc::default(),
            offers: false,
        }
    }

    #[test]
    fn client_receives_the_numbers_that_others_send_it() {
        for talk in [
            talk(Job::Fanout, 5, 0),
            talk(Job::Chat, 5, 3),
            talk(Job::Chat, 5, 5),
            talk(Job::Echo, 5, 0),
            talk(Job::Turns, 9, 0),
        ] {
            for client in 1..talk.clients {
                let is_recipient = |&number: &u64| match talk.job {
                    Job::Fanout => true,
                    Job::Chat => talk.sender(number) != client,
                    Job::Echo => talk.sender(number) == client,
                    _ => number % 4 == (client as u64 - 1) % 4,
                };
                let expected: Vec<u64> = (0..120).filter(is_recipient).collect();
                let numbers: Vec<u64> = (0..expected.len() as u64)
                    .map(|received| talk.number(client, received))
                    .collect();
                assert_eq!(numbers, expected, "{:?}, client {client}", talk.job);
            }
        }
    }
}
