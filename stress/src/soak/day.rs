//! The clients of a soak, what they do in a step, and the accounts at the end.

use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use super::Pair;
use super::connection::Doors;
use super::member::{Counts, Member, Pace, Position, Since};
use crate::certificates::Certificates;
use crate::check::{DEADLINE, During, Outcome, ensure, eventually};
use crate::client;
use crate::client::frames::{self, BINARY, FIN};
use crate::machine;
use crate::random::Random;
use crate::scenarios::mib;
use crate::server::program::ROOMS;
use crate::server::rooms::{FIRE, KEPT};
use crate::server::{Figures, Policy, Server, Setup, pair};
use crate::text;

const NAMES: Pair<&str> = ["plain", "TLS"];
/// Clients of each app that keep up, and slow readers.
const KEEP_UP: Pair<usize> = [150, 50];
const SLOW: Pair<usize> = [6, 2];
/// What a slow reader reads in a step: less than it is sent.
const SLOW_BYTES: (u64, u64) = (800, 2_500);
const SLOW_BUFFER: usize = 16 << 10;
const OUTBOX_BYTES_MAX: usize = 64 << 10;

/// Clients that end in a step, change a room, and get an echo.
const ENDS: usize = 4;
const CHANGES: u64 = 8;
const ECHOES: u64 = 10;
/// In the first steps most clients get one, so that handlers compress replies at the same time as often as they ever will.
const FIRST_ECHOES: u64 = 200;
const FIRST_STEPS: u64 = 900;
const ECHO_BYTES_MAX: usize = 4_000;
/// The names of rooms without a history change every minute, so that rooms come and go.
const STEPS_OF_NAMES: u64 = 240;
const PLAIN_ROOMS: u64 = 24;
const KEPT_ROOMS: u64 = 12;
/// One of so many clients joins the busiest room.
const IN_FIRE: u64 = 20;
/// How many positions are remembered for resumes. The oldest are too old for the history.
const POSITIONS: usize = 512;

/// How a client ends.
#[derive(Clone, Copy, Debug)]
enum Route {
    /// A complete closing handshake.
    Close,
    /// A close frame, without waiting for the reply.
    Slam,
    Fin,
    Reset,
    /// A half-closed stream, read until the server closes its side.
    HalfClose,
    MidFrame,
}

const ROUTES: [Route; 7] = [
    Route::Close,
    Route::Close,
    Route::Slam,
    Route::Fin,
    Route::Reset,
    Route::HalfClose,
    Route::MidFrame,
];

/// The end of a soak whose accounts are right.
pub(super) struct Ended {
    pub(super) resident: u64,
    pub(super) descriptors_before: u64,
    pub(super) descriptors_after: u64,
    pub(super) counts: String,
    /// CPU time in seconds.
    pub(super) server_cpu: f64,
    pub(super) own_cpu: f64,
}

pub(super) struct Day {
    server: Server,
    doors: Doors,
    seed: u64,
    random: Random,
    /// The server's descriptors without clients.
    descriptors: u64,
    steps: u64,
    /// The next round of broadcasts.
    round: u64,
    members: Vec<Member>,
    /// Connections made, and WebSockets opened.
    connected: Pair<u64>,
    opened: Pair<u64>,
    /// Connections that may or may not have completed the handshake.
    hasty: Pair<u64>,
    positions: Pair<VecDeque<Position>>,
    /// The counts of the clients that have ended.
    done: Pair<Counts>,
}

impl Day {
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
            // A ping reaches a slow reader behind all that it has not read, which takes minutes if the machine is busy.
            heartbeat_timeout: 1_200_000,
            write_timeout: 600_000,
            ..Setup::new(seed)
        };
        let with_tls = Setup {
            tls: Some(certificates.directory()),
            ..setup.clone()
        };
        let (server, addresses) = pair::start(&[setup, with_tls])?;
        let mut day = Self {
            descriptors: machine::descriptors(server.pid())?,
            server,
            doors: Doors {
                addresses,
                resuming: certificates.clients()?,
                full: certificates.clients_without_resumption()?,
            },
            seed,
            random: Random::new(seed).fork("soak", 0),
            steps: 0,
            round: 0,
            members: Vec::new(),
            connected: [0; 2],
            opened: [0; 2],
            hasty: [0; 2],
            positions: Default::default(),
            done: Default::default(),
        };
        for app in 0..2 {
            for number in 0..KEEP_UP[app] + SLOW[app] {
                day.open(app, number >= KEEP_UP[app])?;
            }
        }
        Ok(day)
    }

    fn open(&mut self, app: usize, is_slow: bool) -> Outcome {
        let random = &mut self.random;
        let buffer = is_slow.then_some(SLOW_BUFFER);
        let connection = self.doors.connect(app, buffer, random)?;
        let compresses = random.below(2) == 0;
        let peer = Doors::upgrade(connection, ROOMS, compresses)?;
        self.connected[app] += 1;
        self.opened[app] += 1;
        let pace = match is_slow {
            true => Pace::BytesPerStep(random.between(SLOW_BYTES.0, SLOW_BYTES.1) as usize),
            false => Pace::KeepsUp,
        };
        let mut member = Member::new(app, peer, pace, compresses, (self.seed, self.round));
        if is_slow || random.below(IN_FIRE) == 0 {
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

    /// Whether it is among its first steps, which do more.
    pub(super) fn begins(&self) -> bool {
        self.steps < FIRST_STEPS
    }

    /// Runs one step.
    pub(super) fn step(&mut self) -> Outcome {
        let deaf = self.take_deaf();
        self.send_commands()?;
        self.server.ask(&format!("round {}", self.round))?;
        self.round += 1;
        self.read()?;
        let mut ended = Vec::new();
        if let Some(deaf) = deaf {
            // It has not read the round. The others have, so the server has sent it.
            ended.push((deaf.app, false));
            self.done[deaf.app].add(deaf.into_counts()?);
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

    /// In every other step, a client that is going to end without reading the round.
    fn take_deaf(&mut self) -> Option<Member> {
        let at = self.random.below(2 * self.members.len() as u64) as usize;
        let member = self.members.get(at)?;
        let is_fit = member.is_idle() && member.pace == Pace::KeepsUp;
        is_fit.then(|| self.members.swap_remove(at))
    }

    fn send_commands(&mut self) -> Outcome {
        let echoes = if self.begins() { FIRST_ECHOES } else { ECHOES };
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

    /// Reads until all answers have come, and to all clients but slow ones all broadcasts. Slow ones read a little then.
    fn read(&mut self) -> Outcome {
        let round = self.round;
        let (mut progress, mut waiting) = (Instant::now(), usize::MAX);
        loop {
            let late = |member: &&mut Member| !member.is_up_to_date(round);
            let mut late: Vec<_> = self.members.iter_mut().filter(late).collect();
            if late.is_empty() {
                break;
            }
            // Bytes alone are no progress: a client that waits in vain gets pings.
            if late.len() < waiting {
                (progress, waiting) = (Instant::now(), late.len());
            }
            let mut read = 0;
            for member in &mut late {
                read += member.read()?;
            }
            if read == 0 || progress.elapsed() >= DEADLINE {
                ensure!(
                    progress.elapsed() < DEADLINE,
                    "{} clients wait for messages since {DEADLINE:?}, such as {:?}",
                    late.len(),
                    late[0]
                );
                thread::sleep(Duration::from_millis(1));
            }
        }
        for member in &mut self.members {
            member.read_step()?;
        }
        Ok(())
    }

    /// Ends a client in a random way, after it has received all that is due to it.
    fn finish(&mut self, mut member: Member) -> Outcome {
        let app = member.app;
        if member.pace != Pace::KeepsUp {
            catch_up(&mut member)?;
        }
        remember(&mut self.positions[app], member.positions());
        let route = self.random.pick(&ROUTES);
        self.done[app].add(member.take_counts(self.round)?);
        self.leave(route, member)
            .during(format!("{route:?}, {}", NAMES[app]))
    }

    fn leave(&mut self, route: Route, member: Member) -> Outcome {
        let mut peer = member.peer;
        match route {
            Route::Close => peer.close()?,
            Route::Slam => peer.send_close(1001)?,
            Route::Reset => client::reset_on_drop(peer.stream.socket())?,
            Route::HalfClose => {
                peer.stream.socket().shutdown(Shutdown::Write)?;
                peer.read_to_end(|_| Ok(()))?;
            }
            Route::MidFrame => {
                let frame = frames::frame(FIN | BINARY, &[7; 300]);
                let len = self.random.between(1, frame.len() as u64 - 1) as usize;
                peer.stream.write_all(&frame[..len])?;
                if self.random.below(2) == 0 {
                    client::reset_on_drop(peer.stream.socket())?;
                }
            }
            Route::Fin => {}
        }
        Ok(())
    }

    /// Connects a client that ends within its handshake, or before the response.
    fn abort_a_handshake(&mut self) -> Outcome {
        let app = self.random.below(2) as usize;
        let random = &mut self.random;
        self.connected[app] += 1;
        let request = client::request(ROOMS);
        let len = match random.below(3) {
            // On the app with TLS this ends within the TLS handshake, elsewhere before the first byte.
            0 => {
                let source = client::source(random.next());
                let address = self.doors.addresses[app];
                drop(client::tcp(address, source).during("connecting")?);
                return Ok(());
            }
            1 => random.below(request.len() as u64) as usize,
            _ => {
                self.hasty[app] += 1;
                request.len()
            }
        };
        let mut connection = self.doors.connect(app, None, random)?;
        connection
            .write_all(&request.as_bytes()[..len])
            .during("sending a part of a request")?;
        if random.below(2) == 0 {
            client::reset_on_drop(connection.socket())?;
        }
        Ok(())
    }

    /// Waits until the server has noticed all that clients have done. Its connections, memberships and descriptors are exactly
    /// those of the clients then.
    fn wait_for_server(&mut self) -> Outcome {
        for (app, name) in NAMES.into_iter().enumerate() {
            let of_app = || self.members.iter().filter(|member| member.app == app);
            let open = of_app().count() as u64;
            let memberships = of_app().flat_map(Member::rooms).count() as u64;
            let connected = self.connected[app];
            let what = format!("{open} clients and {memberships} memberships are left, {name}");
            let server = &mut self.server;
            let mut last = Figures::default();
            let outcome = eventually(&what, || {
                last = server.ask(&format!("figures {app}"))?;
                Ok(last.get("accepted") == connected
                    && last.get("connections") == open
                    && last.get("opened") == last.get("closed") + open
                    && last.get("opened") == last.get("connections_opened")
                    && last.get("room_members") == memberships)
            });
            outcome.during(format!("{last:?}"))?;
            let opened = self.opened[app];
            ensure!(
                (opened..=opened + self.hasty[app]).contains(&last.get("opened")),
                "{opened} WebSockets were opened, and perhaps {} more: {last:?}",
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

    pub(super) fn progress(&mut self) -> Outcome<String> {
        let mut figures = Figures::default();
        let mut sum = [0; 3];
        for app in 0..2 {
            figures = self.server.ask(&format!("figures {app}"))?;
            let names = ["opened", "messages_out", "rooms"];
            for (sum, name) in sum.iter_mut().zip(names) {
                *sum += figures.get(name);
            }
        }
        let [opened, sent, rooms] = sum;
        drop(figures);
        Ok(format!(
            "resident {:.2} MiB, {} descriptors, {} connections of {opened} so far, {rooms} rooms, {sent} messages sent",
            mib(self.resident()?),
            machine::descriptors(self.server.pid())?,
            self.members.len(),
        ))
    }

    /// Ends all clients, and compares the accounts.
    pub(super) fn end(mut self) -> Outcome<Ended> {
        self.read()?;
        while let Some(member) = self.members.pop() {
            self.finish(member)?;
        }
        self.wait_for_server()?;
        let descriptors_after = machine::descriptors(self.server.pid())?;
        let resident = self.server.resident()?;
        let server_cpu = machine::cpu_seconds(self.server.pid())?;
        let counts = (0..2).map(|app| self.compare(app).during(NAMES[app]));
        let counts = counts.collect::<Outcome<Vec<_>>>()?.join("\n");
        Ok(Ended {
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
        // A shard that a member has just left may still get the room's next message, and counts it as one without a recipient.
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
            "the load was not what it should be: {done:?}; {figures:?}"
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

/// Reads all that a slow reader has not read yet.
fn catch_up(member: &mut Member) -> Outcome {
    member.echo("echo".to_owned())?;
    eventually("a slow reader has read everything", || {
        member.read()?;
        Ok(member.is_idle())
    })
}

fn remember(positions: &mut VecDeque<Position>, new: impl Iterator<Item = Position>) {
    positions.extend(new);
    positions.drain(..positions.len().saturating_sub(POSITIONS));
}

fn plain_room(steps: u64, random: &mut Random) -> String {
    let names = steps / STEPS_OF_NAMES;
    format!("room/{names}-{}", random.below(PLAIN_ROOMS))
}

/// A room with a history, and from when on its messages are wanted.
fn kept_room(positions: &VecDeque<Position>, random: &mut Random) -> (String, Since) {
    let at = random.below(positions.len() as u64) as usize;
    match positions.get(at) {
        Some(position) if random.below(4) > 0 => {
            (position.room.clone(), Since::After(position.clone()))
        }
        _ => {
            let room = format!("{KEPT}{}", random.below(KEPT_ROOMS));
            (room, Since::All { gone: None })
        }
    }
}
