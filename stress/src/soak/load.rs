//! The load of a soak: its clients, what they do in a step, and the comparison of their counts with the server's at the end.

use std::collections::VecDeque;

use super::Pair;
use super::connection::Connector;
use super::member::{Counts, Member, Pace, Position, Since};
use super::series::WARM_UP_STEPS;
use crate::certificates::Certificates;
use crate::check::{DEADLINE, During, Outcome, ProgressDeadline, ensure};
use crate::client::{self, Ending, Peer};
use crate::machine;
use crate::random::Random;
use crate::scenarios::mib;
use crate::server::program::ROOMS;
use crate::server::rooms::{EVERYONE, FIRE, KEPT};
use crate::server::{Figures, Policy, Server, Setup, pair};
use crate::text;

const NAMES: Pair<&str> = ["plain", "TLS"];
/// Clients of each app that read all that they are sent.
const KEEP_UP: Pair<usize> = [150, 50];
/// Slow readers of each app.
const SLOW: Pair<usize> = [6, 2];
/// The fewest and the most bytes that a slow reader reads in a step. It is sent more.
const SLOW_BYTES: (u64, u64) = (800, 2_500);
const SLOW_BUFFER: usize = 16 << 10;
const OUTBOX_BYTES_MAX: usize = 64 << 10;

/// How many clients end in a step.
const ENDS: usize = 4;
/// How many clients leave a room and join another in a step.
const CHANGES: u64 = 8;
/// How many clients get an echo in a step.
const ECHOES: u64 = 10;
/// In a step of the warm-up most clients get one, so that the number of handlers that compress replies at the same time reaches its
/// maximum.
const WARM_UP_ECHOES: u64 = 200;
const ECHO_BYTES_MAX: usize = 4_000;
/// After so many steps, which take a minute, the rooms without a history get new names, so that the server creates rooms and removes
/// them.
const STEPS_OF_NAMES: u64 = 240;
const PLAIN_ROOMS: u64 = 24;
const KEPT_ROOMS: u64 = 12;
/// One in so many clients that keep up joins [`FIRE`], the room with the most messages.
const FIRE_EVERY: u64 = 20;
/// How many positions are kept for later clients to resume from. The oldest are too old for the histories.
const POSITIONS: usize = 512;
/// How many of the clients that wait in vain a failure names.
const LATE_NAMED: usize = 3;

/// How clients end their connections. All are equally likely, except that a complete closing handshake is twice as likely.
const ENDINGS: [Ending; 7] = [
    Ending::Close,
    Ending::Close,
    Ending::CloseWithoutReply,
    Ending::Fin,
    Ending::Reset,
    Ending::HalfClose,
    Ending::MidFrame,
];

/// What a soak whose counts are right reports at its end.
pub(super) struct Totals {
    pub(super) resident: u64,
    pub(super) descriptors_before: u64,
    pub(super) descriptors_after: u64,
    pub(super) counts: String,
    /// CPU time in seconds.
    pub(super) server_cpu: f64,
    pub(super) own_cpu: f64,
}

pub(super) struct Load {
    server: Server,
    connector: Connector,
    seed: u64,
    random: Random,
    /// The server's descriptors without clients.
    descriptors: u64,
    steps: u64,
    /// The number of the next round of broadcasts.
    round: u64,
    /// The number of the next message to each room and to everyone after the last round.
    next: Pair<Figures>,
    members: Vec<Member>,
    /// TCP connections that clients have made.
    connected: Pair<u64>,
    /// WebSocket connections that clients have opened.
    opened: Pair<u64>,
    /// Connections that ended before the client read the response. The server may or may not have opened them.
    hasty: Pair<u64>,
    positions: Pair<VecDeque<Position>>,
    /// The counts of the clients that have ended.
    done: Pair<Counts>,
}

impl Load {
    /// Starts the server and connects all clients.
    pub(super) fn begin(seed: u64) -> Outcome<Self> {
        let certificates = Certificates::new()?;
        let setup = Setup {
            handler_threads: 4,
            policy: Policy::DropOldest,
            outbox_bytes_max: OUTBOX_BYTES_MAX,
            compression: 1,
            handshake_timeout: 60_000,
            heartbeat_interval: 10_000,
            // A slow reader reads a ping after all earlier messages. On a busy machine, that takes minutes.
            heartbeat_timeout: 1_200_000,
            write_timeout: 600_000,
            ..Setup::new(seed)
        };
        let with_tls = Setup {
            tls: Some(certificates.directory()),
            ..setup.clone()
        };
        let (server, addresses) = pair::start(&[setup, with_tls])?;
        let mut load = Self {
            descriptors: machine::descriptors(server.pid())?,
            server,
            connector: Connector {
                addresses,
                resuming: certificates.clients()?,
                full: certificates.clients_without_resumption()?,
            },
            seed,
            random: Random::new(seed).fork("soak", 0),
            steps: 0,
            round: 0,
            next: Default::default(),
            members: Vec::new(),
            connected: [0; 2],
            opened: [0; 2],
            hasty: [0; 2],
            positions: Default::default(),
            done: Default::default(),
        };
        for app in 0..2 {
            for number in 0..KEEP_UP[app] + SLOW[app] {
                load.open(app, number >= KEEP_UP[app])?;
            }
        }
        Ok(load)
    }

    fn open(&mut self, app: usize, is_slow: bool) -> Outcome {
        let random = &mut self.random;
        let buffer = is_slow.then_some(SLOW_BUFFER);
        let connection = self.connector.connect(app, buffer, random)?;
        let compresses = random.below(2) == 0;
        let peer = match compresses {
            true => Peer::upgrade_compressing(connection, ROOMS)?,
            false => Peer::upgrade(connection, ROOMS)?,
        };
        self.connected[app] += 1;
        self.opened[app] += 1;
        let (pace, kind) = match is_slow {
            true => {
                let bytes = random.between(SLOW_BYTES.0, SLOW_BYTES.1);
                (Pace::BytesPerStep(bytes as usize), "slow reader")
            }
            false => (Pace::KeepsUp, "client"),
        };
        let name = format!("{kind} {} of the {} app", self.opened[app], NAMES[app]);
        let expected = (self.seed, self.round);
        let mut member = Member::new(name, app, peer, pace, compresses, expected);
        if is_slow || random.below(FIRE_EVERY) == 0 {
            member.join(FIRE, Since::Now)?;
        }
        if !is_slow {
            member.join(&plain_room(self.steps, random), Since::Now)?;
            member.join(&plain_room(self.steps, random), Since::Now)?;
            let (room, since) = kept_room(&self.positions[app], random);
            member.join(&room, since)?;
        }
        self.members.push(member);
        Ok(())
    }

    /// How many steps have been made.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// Runs one step.
    pub(super) fn step(&mut self) -> Outcome {
        let non_reader = self.take_non_reader();
        self.send_commands()?;
        self.broadcast()?;
        self.receive()?;
        let mut ended = Vec::new();
        if let Some(member) = non_reader {
            // The other clients have received the round, so the server has sent it to this one, too.
            let app = member.app;
            ended.push((app, false));
            self.done[app].add(member.into_counts_without_round()?);
        }
        while ended.len() < ENDS {
            let at = self.random.below(self.members.len() as u64) as usize;
            let member = self.members.swap_remove(at);
            ended.push((member.app, member.pace != Pace::KeepsUp));
            self.finish(member)?;
        }
        self.abort_a_handshake()?;
        self.wait_for_server()?;
        for (app, is_slow) in ended {
            self.open(app, is_slow)?;
        }
        self.steps += 1;
        Ok(())
    }

    /// Takes a client that ends in this step without reading the round, in about every other step.
    fn take_non_reader(&mut self) -> Option<Member> {
        let at = self.random.below(2 * self.members.len() as u64) as usize;
        let member = self.members.get(at)?;
        let is_fit = member.is_idle() && member.pace == Pace::KeepsUp;
        is_fit.then(|| self.members.swap_remove(at))
    }

    /// Makes a round of broadcasts by both apps.
    fn broadcast(&mut self) -> Outcome {
        for (app, next) in self.next.iter_mut().enumerate() {
            *next = self.server.ask(&format!("round {app} {}", self.round))?;
        }
        self.round += 1;
        for next in &self.next {
            ensure!(
                next.get(EVERYONE) == self.round,
                "round {} was made instead of {}",
                next.get(EVERYONE),
                self.round
            );
        }
        Ok(())
    }

    fn send_commands(&mut self) -> Outcome {
        let echoes = match self.steps < WARM_UP_STEPS {
            true => WARM_UP_ECHOES,
            false => ECHOES,
        };
        let random = &mut self.random;
        for number in 0..CHANGES + echoes {
            let at = random.below(self.members.len() as u64) as usize;
            let member = &mut self.members[at];
            if !member.is_idle() || member.pace != Pace::KeepsUp {
                continue;
            }
            if number >= CHANGES {
                member.echo(text::numbered(
                    self.seed,
                    "echo",
                    random.next(),
                    ECHO_BYTES_MAX,
                ))?;
                continue;
            }
            let rooms: Vec<String> = member.rooms().cloned().collect();
            if !rooms.is_empty() {
                let left = &rooms[random.below(rooms.len() as u64) as usize];
                remember(&mut self.positions[member.app], member.positions());
                member.leave(left)?;
            }
            match random.below(2) {
                0 => member.join(&plain_room(self.steps, random), Since::Now)?,
                _ => {
                    let (room, since) = kept_room(&self.positions[member.app], random);
                    member.join(&room, since)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until all clients have received their answers, and all but the slow readers the messages of the rounds. Then the slow readers
    /// read a little.
    fn receive(&mut self) -> Outcome {
        receive_all(self.members.iter_mut().collect(), &self.next)?;
        for member in &mut self.members {
            member.read_step()?;
        }
        Ok(())
    }

    /// Ends a client in a random way after it has received all that is due to it.
    fn finish(&mut self, mut member: Member) -> Outcome {
        let app = member.app;
        if member.pace != Pace::KeepsUp {
            // The echo follows all messages that are due to the slow reader and were not dropped.
            member.echo("echo".to_owned())?;
            receive_all(vec![&mut member], &self.next)?;
        }
        remember(&mut self.positions[app], member.positions());
        self.done[app].add(member.take_counts(&self.next[app])?);
        let ending = self.random.pick(&ENDINGS);
        let outcome = ending.apply(member.peer, &mut self.random);
        outcome.during(format!("{ending:?}, {}", NAMES[app]))
    }

    /// Connects a client that ends within its handshake, or before the response.
    fn abort_a_handshake(&mut self) -> Outcome {
        let random = &mut self.random;
        let app = random.below(2) as usize;
        self.connected[app] += 1;
        let len = match random.below(3) {
            // The connection ends before the request, and on the app with TLS before the TLS handshake.
            0 => return self.connector.tcp(app, None, random).map(drop),
            1 => random.below(client::request(ROOMS).len() as u64) as usize,
            _ => {
                self.hasty[app] += 1;
                usize::MAX
            }
        };
        let connection = self.connector.connect(app, None, random)?;
        client::abort_handshake(connection, ROOMS, len, random)
    }

    /// Waits until the server has noticed all that clients have done. Its connections, memberships and descriptors are exactly
    /// those of the clients then.
    fn wait_for_server(&mut self) -> Outcome {
        for (app, name) in NAMES.into_iter().enumerate() {
            let of_app = || self.members.iter().filter(|member| member.app == app);
            let open = of_app().count() as u64;
            let memberships = of_app().flat_map(Member::rooms).count() as u64;
            let connected = self.connected[app];
            let what = format!(
                "the {name} app has {open} clients and {memberships} memberships, and accepted {connected}"
            );
            let command = format!("figures {app}");
            let figures = self.server.ask_until(&command, &what, |figures| {
                figures.get("accepted") == connected
                    && figures.get("connections") == open
                    && figures.get("opened") == figures.get("closed") + open
                    && figures.get("opened") == figures.get("connections_opened")
                    && figures.get("room_members") == memberships
            })?;
            let opened = self.opened[app];
            ensure!(
                (opened..=opened + self.hasty[app]).contains(&figures.get("opened")),
                "clients of the {name} app have opened {opened} connections, and perhaps {} more: {figures:?}",
                self.hasty[app]
            );
        }
        self.server.wait_for_descriptors(self.descriptors())
    }

    /// The server's descriptors that the clients account for.
    pub(super) fn descriptors(&self) -> u64 {
        self.descriptors + self.members.len() as u64
    }

    pub(super) fn resident(&self) -> Outcome<u64> {
        self.server.resident()
    }

    /// Describes the state of the server in a line.
    pub(super) fn describe(&mut self) -> Outcome<String> {
        let [mut opened, mut sent, mut rooms] = [0; 3];
        for app in 0..2 {
            let figures = self.server.ask(&format!("figures {app}"))?;
            opened += figures.get("opened");
            sent += figures.get("messages_out");
            rooms += figures.get("rooms");
        }
        Ok(format!(
            "resident {:.2} MiB, {} descriptors, {} connections of {opened} so far, {rooms} rooms, {sent} messages sent",
            mib(self.resident()?),
            machine::descriptors(self.server.pid())?,
            self.members.len(),
        ))
    }

    /// Ends all clients, and compares their counts with the server's.
    pub(super) fn end(mut self) -> Outcome<Totals> {
        self.receive()?;
        while let Some(member) = self.members.pop() {
            self.finish(member)?;
        }
        self.wait_for_server()?;
        let descriptors_after = machine::descriptors(self.server.pid())?;
        let resident = self.server.resident()?;
        let server_cpu = machine::cpu_seconds(self.server.pid())?;
        let counts = (0..2).map(|app| self.compare(app).during(NAMES[app]));
        let counts = counts.collect::<Outcome<Vec<_>>>()?.join("\n");
        Ok(Totals {
            resident,
            descriptors_before: self.descriptors,
            descriptors_after,
            counts,
            server_cpu,
            own_cpu: machine::cpu_seconds(std::process::id())?,
        })
    }

    /// Compares what an app has counted with what its clients have.
    fn compare(&mut self, app: usize) -> Outcome<String> {
        let figures = self.server.ask(&format!("figures {app}"))?;
        let done = self.done[app];
        let due = figures.get("due") + figures.get("sends") + figures.get("replayed");
        // A shard whose last member has just left a room may still receive the room's next message. It counts that message as dropped
        // without a recipient.
        let accounted = figures.accounted() - figures.get("dropped_no_recipient");
        ensure!(
            accounted == due,
            "{accounted} messages are delivered or dropped, and {due} were accepted: {figures:?}"
        );
        let out = figures.get("messages_out");
        ensure!(
            (done.received..=done.received + done.unread).contains(&out),
            "{out} messages are counted as sent; {done:?}"
        );
        figures.expect(&[
            ("messages_in", done.sent),
            ("dropped_slow_consumer", done.lost),
            ("replayed", done.replayed),
            ("closed", figures.get("connections_opened")),
            ("violations", 0),
            ("refused", 0),
            ("accept_errors", 0),
            ("slow_consumers", 0),
            ("heartbeat_timeouts", 0),
            ("protocol_errors", 0),
            ("handler_panics", 0),
            ("rooms", KEPT_ROOMS),
        ])?;
        ensure!(
            done.lost > 0
                && done.resumes > done.gone
                && done.gone > 0
                && figures.get("compressed_out") > 0,
            "the load did not contain lost messages, resumes, resumes that came too late and compressed messages, all of which \
             a soak needs: {done:?}; {figures:?}"
        );
        Ok(format!(
            "{}: {} connections opened and closed, of {} accepted; {} messages received and {} missed by slow readers; {due} \
             accepted, once for each recipient: {out} delivered, {} dropped; {} commands, of them {} echoes; {} joins, {} of \
             them resumes and {} of these too late, {} messages replayed; {} leaves; compressed to {:.0} %; {} TLS handshakes, \
             {} of them resumed",
            NAMES[app],
            figures.get("closed"),
            figures.get("accepted"),
            done.received,
            done.lost,
            due - out,
            done.sent,
            done.echoes,
            done.joins,
            done.resumes,
            done.gone,
            done.replayed,
            done.leaves,
            100.0 * figures.get("compressed_out") as f64 / figures.get("plain_out") as f64,
            figures.get("tls_handshakes"),
            figures.get("tls_resumed"),
        ))
    }
}

/// Waits until the clients have received all that is due to them. `next` has the number of the next message of each origin.
fn receive_all(clients: Vec<&mut Member>, next: &Pair<Figures>) -> Outcome {
    let is_late = |member: &&mut Member| !member.is_up_to_date(&next[member.app]);
    let mut late: Vec<_> = clients.into_iter().filter(is_late).collect();
    let mut deadline = ProgressDeadline::new(DEADLINE);
    // A client may already have messages that no socket announces: they arrived together with the response to its handshake.
    let mut is_ready = vec![true; late.len()];
    loop {
        let mut received = 0;
        for (member, _) in late.iter_mut().zip(is_ready).filter(|(_, ready)| *ready) {
            received += member.read()?;
        }
        // Bytes alone are no progress: a client that waits in vain receives pings.
        if received > 0 {
            deadline.restart();
        }
        late.retain(is_late);
        if late.is_empty() {
            return Ok(());
        }
        let remaining = deadline.remaining(|| Ok(describe_late(&late, next)))?;
        let sockets = late.iter().map(|member| member.peer.stream.socket());
        is_ready = client::wait_for_input(sockets, remaining)?;
    }
}

/// Names the clients that wait, and for what.
fn describe_late(late: &[&mut Member], next: &Pair<Figures>) -> String {
    let named = late.iter().take(LATE_NAMED);
    let named: Vec<_> = named.map(|m| m.describe(&next[m.app])).collect();
    let named = named.join("; ");
    match late.len().saturating_sub(LATE_NAMED) {
        0 => named,
        others => format!("{named}; {others} other clients wait, too"),
    }
}

/// Keeps the positions of a client, from which later clients can resume.
fn remember(positions: &mut VecDeque<Position>, new: impl Iterator<Item = Position>) {
    positions.extend(new);
    positions.drain(..positions.len().saturating_sub(POSITIONS));
}

fn plain_room(steps: u64, random: &mut Random) -> String {
    let names = steps / STEPS_OF_NAMES;
    format!("room/{names}-{}", random.below(PLAIN_ROOMS))
}

/// Chooses a room with a history, and the first message that a client asks for.
fn kept_room(positions: &VecDeque<Position>, random: &mut Random) -> (String, Since) {
    let at = random.below(positions.len() as u64) as usize;
    match positions.get(at) {
        Some(position) if random.below(4) > 0 => {
            (position.room.clone(), Since::After(position.clone()))
        }
        _ => {
            let room = format!("{KEPT}{}", random.below(KEPT_ROOMS));
            (room, Since::Oldest { gone: None })
        }
    }
}
