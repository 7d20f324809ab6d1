//! The load client of scenarios whose servers are loaded in turn. One thread serves all connections through epoll, and polls instead of
//! sleeping, so that the server does not pay for waking it. It counts frames and bytes without inflating messages, so that
//! its own work does not limit the server. Only a sample of the connections inflates every message and compares it with the
//! one that was sent.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustls::ClientConfig;

use super::input::Input;
use super::scenario::Receives;
use super::stream::{Inflater, Part, Totals};
use crate::args::Job;
use crate::load::connect::ConnectionSpec;
use crate::load::transport::Connection;
use crate::poll;
use crate::run::procedure_frames::SUBPROTOCOL;
use crate::wire;

const READ_BUFFER: usize = 256 * 1024;
const EVENTS: usize = 1024;
const MASK: [u8; 4] = [0x5a, 0xc3, 0x1e, 0x97];
/// If nothing arrives for this long although messages are expected, the server has stalled.
const STALLED: Duration = Duration::from_secs(10);
/// Number of clients that inflate and compare their messages, besides the first two.
const CHECKED: usize = 8;
/// Minimum number of messages in a batch during the warm-up of a fan-out.
const WARM_UP_WINDOW: usize = 16;

/// The messages that the clients of a server send, and the deliveries that they expect.
#[derive(Clone)]
pub(super) struct TrafficPlan {
    pub(super) job: Job,
    /// Number of connections. The first one publishes in a fan-out and in round-robin rooms; in a fan-out, it also receives.
    pub(super) clients: usize,
    /// Number of rooms in [`Job::RoundRobin`].
    pub(super) rooms: usize,
    /// Number of clients that send in [`Job::Chat`], one after the other.
    pub(super) speakers: usize,
    /// Number of messages in a batch; in an echo, for each client.
    pub(super) window: usize,
    pub(super) messages: Arc<Vec<String>>,
    pub(super) opcode: u8,
    /// Whether the clients offer compression. If they do, the server must accept it.
    pub(super) offers: bool,
    /// The clients' configuration of TLS, if they use it.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// Whether [`Job::Fanout`] publishes to a room, which the clients join.
    pub(super) has_room: bool,
    pub(super) receives: Receives,
}

impl TrafficPlan {
    fn path(&self, client: usize) -> String {
        match self.job {
            Job::Fanout | Job::RoundRobin if client == 0 => wire::PUBLISH.into(),
            Job::RoundRobin => format!("/{}", (client - 1) % self.rooms),
            _ if self.form(client) == Receives::Events => wire::EVENTS.into(),
            _ => "/".into(),
        }
    }

    /// Returns the form in which a client receives messages. The publisher has to send, so it can't use an event stream.
    fn form(&self, client: usize) -> Receives {
        match self.receives {
            Receives::Events if client == 0 => Receives::Messages,
            form => form,
        }
    }

    fn spec(&self, client: usize) -> ConnectionSpec {
        let form = self.form(client);
        ConnectionSpec {
            path: self.path(client),
            offers: self.offers,
            subprotocol: (form == Receives::MessagesWithIds).then_some(SUBPROTOCOL),
            event_stream: form == Receives::Events,
            ..ConnectionSpec::default()
        }
    }

    /// Returns the client that sends message `number`.
    fn sender(&self, number: u64) -> usize {
        match self.job {
            Job::Chat => (number % self.speakers as u64) as usize,
            Job::Echo => (number / self.window as u64 % self.clients as u64) as usize,
            _ => 0,
        }
    }

    /// Returns the number of clients that receive a message.
    fn recipients(&self) -> u64 {
        (match self.job {
            Job::Echo => 1,
            Job::Chat => self.clients - 1,
            Job::RoundRobin => (self.clients - 1) / self.rooms,
            _ => self.clients,
        }) as u64
    }

    /// Number of messages that are sent before the client waits for their deliveries.
    fn batch(&self) -> u64 {
        (match self.job {
            Job::Echo => self.clients * self.window,
            _ => self.window,
        }) as u64
    }

    /// Returns the number of the message that a client receives after `received` others.
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
            Job::RoundRobin => received * self.rooms as u64 + (client - 1) % self.rooms as u64,
            _ => received,
        }
    }

    fn text(&self, number: u64) -> &str {
        &self.messages[(number % self.messages.len() as u64) as usize]
    }

    fn is_checked(&self, client: usize) -> bool {
        client < 2 || client.is_multiple_of((self.clients / CHECKED).max(1))
    }

    /// Whether clients join rooms. The first message must wait until they are members.
    fn joins(&self) -> bool {
        self.has_room || matches!(self.job, Job::Chat | Job::RoundRobin)
    }
}

/// The clients of one server.
pub(super) struct Clients {
    plan: TrafficPlan,
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
    connection: Connection,
    input: Input,
    received: u64,
    inflater: Option<Inflater>,
}

impl Clients {
    pub(super) fn connect(address: SocketAddrV4, plan: TrafficPlan) -> io::Result<Self> {
        let spec = |at| plan.spec(at);
        let opened = Connection::open(address, plan.clients, spec, plan.tls.as_ref())?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut clients = Vec::with_capacity(opened.len());
        for (token, connection) in opened.into_iter().enumerate() {
            epoll::add(
                &epoll,
                connection.socket(),
                epoll::EventData::new_u64(token as u64),
                epoll::EventFlags::IN | epoll::EventFlags::ET,
            )?;
            clients.push(Client {
                connection,
                input: Input::new(plan.form(token), plan.opcode),
                received: 0,
                inflater: plan.is_checked(token).then(Inflater::new),
            });
        }
        let mut all = Self {
            plan,
            epoll,
            clients,
            events: Vec::with_capacity(EVENTS),
            input: vec![0; READ_BUFFER].into_boxed_slice(),
            output: Vec::new(),
            sent: 0,
            totals: Totals::default(),
            expected: 0,
        };
        if all.plan.joins() {
            all.wait_for_joins()?;
        }
        Ok(all)
    }

    /// Waits until the server has answered the hello of every client, which it does after the client has joined its room.
    fn wait_for_joins(&mut self) -> io::Result<()> {
        for at in 0..self.clients.len() {
            self.output.clear();
            put_frame(&mut self.output, self.plan.opcode, wire::HELLO);
            self.clients[at].connection.send(&self.output)?;
        }
        self.expected = self.clients.len() as u64;
        // Each client receives one hello, as in a fan-out.
        let hello = TrafficPlan {
            job: Job::Fanout,
            messages: Arc::new(vec![wire::HELLO.into()]),
            ..self.plan.clone()
        };
        let plan = std::mem::replace(&mut self.plan, hello);
        let outcome = self.until_received();
        self.plan = plan;
        (self.totals, self.expected) = (Totals::default(), 0);
        for client in &mut self.clients {
            client.received = 0;
            client.input.has_joined();
        }
        outcome
    }

    /// Sends batches, each after the deliveries of the one before, until `time` has passed.
    pub(super) fn run(&mut self, time: Duration) -> io::Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.send_batch()?;
            self.until_received()?;
        }
        Ok(())
    }

    /// Sends batches like [`run`](Self::run), but of at least [`WARM_UP_WINDOW`] messages if one client sends all of them.
    pub(super) fn run_in_large_batches(&mut self, time: Duration) -> io::Result<()> {
        let window = self.plan.window;
        if self.plan.job == Job::Fanout {
            self.plan.window = window.max(WARM_UP_WINDOW);
        }
        let outcome = self.run(time);
        self.plan.window = window;
        outcome
    }

    fn send_batch(&mut self) -> io::Result<()> {
        let end = self.sent + self.plan.batch();
        self.expected += self.plan.batch() * self.plan.recipients();
        while self.sent < end {
            let sender = self.plan.sender(self.sent);
            self.output.clear();
            while self.sent < end && self.plan.sender(self.sent) == sender {
                put_frame(
                    &mut self.output,
                    self.plan.opcode,
                    self.plan.text(self.sent),
                );
                self.sent += 1;
            }
            self.clients[sender].connection.send(&self.output)?;
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

    /// Polls the sockets once and reads those that are ready. Returns the number of events.
    fn poll(&mut self) -> io::Result<usize> {
        poll::wait(&self.epoll, &mut self.events, Some(Duration::ZERO))?;
        for event in &self.events {
            let at = event.data.u64() as usize;
            self.clients[at]
                .read(at, &self.plan, &mut self.input, &mut self.totals)
                .map_err(|e| io::Error::new(e.kind(), format!("connection {at}: {e}")))?;
        }
        Ok(self.events.len())
    }

    /// Checks that each client has received exactly the expected messages, and that none follows. Returns the number of
    /// messages that were compared with those sent.
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
            let is_silent = self.plan.job == Job::RoundRobin && at == 0;
            if !is_silent && self.plan.number(at, client.received) < self.sent {
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
        plan: &TrafficPlan,
        input: &mut [u8],
        totals: &mut Totals,
    ) -> io::Result<()> {
        let Self {
            connection,
            input: form,
            received,
            inflater,
        } = self;
        let socket_bytes = connection.read(input, |mut bytes| {
            while let Part::Payload(payload, ends) = form.next(&mut bytes, totals, plan.offers)? {
                if let Some(inflater) = inflater {
                    inflater.push(payload);
                    if ends {
                        let number = plan.number(at, *received);
                        let text = form.text(inflater.finish(form.is_compressed())?)?;
                        if text != plan.text(number).as_bytes() {
                            return Err(io::Error::other(format!(
                                "message {number} is {:?}, not {:?}",
                                String::from_utf8_lossy(text),
                                plan.text(number)
                            )));
                        }
                    }
                }
                *received += u64::from(ends);
            }
            Ok(())
        })?;
        totals.wire += socket_bytes;
        Ok(())
    }
}

/// Appends a client's frame.
pub(super) fn put_frame(output: &mut Vec<u8>, opcode: u8, text: &str) {
    wire::put_client_head(output, opcode, text.len(), MASK);
    let payload = output.len();
    output.extend_from_slice(text.as_bytes());
    wire::mask(&mut output[payload..], MASK);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(job: Job, clients: usize, speakers: usize) -> TrafficPlan {
        TrafficPlan {
            job,
            clients,
            rooms: 4,
            speakers,
            window: if job == Job::Echo { 3 } else { 1 },
            messages: Arc::default(),
            opcode: wire::TEXT,
            offers: false,
            tls: None,
            has_room: false,
            receives: Receives::Messages,
        }
    }

    #[test]
    fn clients_receive_numbers_of_their_senders() {
        for plan in [
            plan(Job::Fanout, 5, 0),
            plan(Job::Chat, 5, 3),
            plan(Job::Chat, 5, 5),
            plan(Job::Echo, 5, 0),
            plan(Job::RoundRobin, 9, 0),
        ] {
            for client in 1..plan.clients {
                let is_recipient = |&number: &u64| match plan.job {
                    Job::Fanout => true,
                    Job::Chat => plan.sender(number) != client,
                    Job::Echo => plan.sender(number) == client,
                    _ => number % 4 == (client as u64 - 1) % 4,
                };
                let expected: Vec<u64> = (0..120).filter(is_recipient).collect();
                let numbers: Vec<u64> = (0..expected.len() as u64)
                    .map(|received| plan.number(client, received))
                    .collect();
                assert_eq!(numbers, expected, "{:?}, client {client}", plan.job);
            }
        }
    }
}
