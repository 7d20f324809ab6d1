//! Randomised tests of rooms: each client receives exactly the messages sent to its rooms while it is a member, in order, for
//! any interleaving of turns, sockets and handlers.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::wire::{Frame, UPGRADE, client_close, client_text};
use super::world::{Setup, Told, World, panic_quietly, send};
use crate::engine::hub::Destination;
use crate::engine::model::program::{HandshakeAccept, Subscriptions};
use crate::engine::model::replay::Replay;
use crate::engine::model::room::{HistoryForm, Presence, SharedRoom};
use crate::limits::Limits;
use crate::message::Message;
use crate::protocol::fuzz::dice::Dice;
use crate::protocol::procedures;

const ROOMS: usize = 5;
const PLAYERS_MAX: usize = 12;
const STEPS: usize = 300;

/// Runs the simulation that these bytes describe.
pub(crate) fn run(data: &[u8]) {
    RoomsGame::new(Dice::from_bytes(data)).play_to_the_end(STEPS);
}

/// Returns the bytes of a simulation with that many steps, a seed for fuzzers.
#[cfg(test)]
pub(crate) fn chances(seed: u64, steps: usize) -> Vec<u8> {
    RoomsGame::new(Dice::from_seed(seed)).play_to_the_end(steps)
}

struct RoomsPlayer {
    client: usize,
    /// The form in which the client receives messages of rooms.
    form: HistoryForm,
    /// The messages that the client must receive, in order.
    due: Vec<String>,
    /// The rooms of which the client is a member.
    rooms: BTreeSet<usize>,
    /// The membership changes that handlers must be told.
    changes: Vec<(usize, Presence)>,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    None,
    /// The program has closed the connection. Messages sent before the close arrive.
    Closed,
    /// The client has disconnected, at a time that only the shard knows.
    Gone,
}

struct RoomsGame {
    world: World,
    dice: Dice,
    rooms: Vec<Arc<SharedRoom>>,
    players: Vec<RoomsPlayer>,
    sent: usize,
    /// Whether payloads may be long and clients may receive ids and rendered messages.
    long: bool,
    /// Whether outboxes are small, so that clients may be disconnected at any time.
    narrow: bool,
}

impl RoomsGame {
    fn new(dice: Dice) -> Self {
        // No client counts as slow.
        let limits = Limits {
            outbox_bytes_max: 64 << 20,
            write_timeout: Duration::from_secs(1_000),
            ..Limits::default()
        };
        Self::with_limits(dice, limits)
    }

    /// Creates a simulation with small limits for each outbox and for all of them.
    #[cfg(test)]
    fn narrow(mut dice: Dice) -> Self {
        let limits = Limits {
            message_bytes_max: 1_000 + dice.below(2_000),
            outbox_bytes_max: 50 + dice.below(3_000),
            outboxes_bytes_max: 0,
            pending_bytes_max: dice.below(1_000),
            write_timeout: Duration::from_millis(200),
            close_timeout: Duration::from_millis(50),
            ..Limits::default()
        };
        Self {
            narrow: true,
            ..Self::with_limits(dice, limits)
        }
    }

    fn with_limits(mut dice: Dice, limits: Limits) -> Self {
        let long = dice.one_in(4);
        let world = World::new(Setup {
            limits,
            subscriptions: Subscriptions {
                subprotocol_with_ids: Some(procedures::V1),
                handshake: long,
                ..Setup::default().subscriptions
            },
            gate: Box::new(|request| {
                Ok(HandshakeAccept {
                    subprotocol: request.subprotocols().next().map(str::to_owned),
                    rendered: request.header(RENDERED).is_some(),
                    ..HandshakeAccept::default()
                })
            }),
            handler: Box::new(|hub, session, told| match told {
                Told::Message(payload) if payload.ends_with(b"panic") => panic_quietly(),
                Told::Message(payload) => send(hub, session, payload),
                _ => {}
            }),
            ..Setup::default()
        });
        let rooms = world.new_rooms(ROOMS);
        Self {
            world,
            dice,
            rooms,
            players: Vec::new(),
            sent: 0,
            long,
            narrow: false,
        }
    }

    /// Runs the simulation and returns the random choices it made.
    fn play_to_the_end(mut self, steps: usize) -> Vec<u8> {
        for _ in 0..steps {
            if self.dice.is_used_up() {
                break;
            }
            self.step();
        }
        self.finish();
        self.dice.taken()
    }

    fn payload(&mut self) -> String {
        self.sent += 1;
        let len = match self.dice.below(20) {
            0 if self.long && !self.narrow => 20_000,
            _ => self.dice.below(30),
        };
        format!("{}:{}", self.sent, ".".repeat(len))
    }

    fn pick(&mut self) -> Option<usize> {
        let here: Vec<usize> = (0..self.players.len())
            .filter(|&player| self.players[player].end == End::None)
            .collect();
        (!here.is_empty()).then(|| here[self.dice.below(here.len())])
    }

    fn step(&mut self) {
        match self.dice.below(40) {
            0..2 if self.players.len() < PLAYERS_MAX => {
                let client = self.world.connect();
                let form = match self.long {
                    true => HistoryForm::ALL[self.players.len() % HistoryForm::ALL.len()],
                    false => HistoryForm::default(),
                };
                self.world.client_sends(client, upgrade(form));
                if self.long {
                    // A handler answers its handshake.
                    self.world.run_handlers();
                }
                self.players.push(RoomsPlayer {
                    client,
                    form,
                    due: Vec::new(),
                    rooms: BTreeSet::new(),
                    changes: Vec::new(),
                    end: End::None,
                });
                if self.dice.one_in(3) {
                    self.world.stall(client, self.dice.below(500));
                }
            }
            2..9 => self.join(),
            9..13 => self.leave(),
            13..24 => self.publish(),
            24..27 => {
                if let Some(player) = self.pick() {
                    let payload = self.payload();
                    let client = self.players[player].client;
                    self.world.sends(client, &payload);
                    self.players[player].due.push(payload);
                }
            }
            27..29 => {
                let ms = self.dice.below(20) as u64;
                self.world.advance_ms(ms);
            }
            29 => self.world.turn(),
            30 if !self.world.jobs.is_empty() => {
                let job = self.dice.below(self.world.jobs.len());
                self.world.run_job(job);
            }
            31..34 => {
                if let Some(player) = self.pick() {
                    let room = self.dice.below(3_000);
                    let client = self.players[player].client;
                    self.world.pipe(client).add_room(room);
                }
            }
            34 if self.dice.one_in(4) => self.end(),
            _ => {}
        }
        if self.dice.one_in(4) {
            self.world.settle();
        }
    }

    fn join(&mut self) {
        let Some(index) = self.pick() else { return };
        let room = self.dice.below(ROOMS);
        let replay: Vec<String> = (0..self.dice.below(3)).map(|_| self.payload()).collect();
        let session = self.world.session(self.players[index].client);
        let hub = &self.world.hub;
        let frames: Vec<_> = replay
            .iter()
            .map(|payload| Message::new(payload).frame().clone())
            .collect();
        let bytes = frames.iter().map(|frame| frame.len()).sum();
        let reserved = hub.reserve_join(&session, frames.len(), bytes);
        let joined = reserved.and_then(|reserved| {
            hub.join(
                reserved,
                &self.rooms[room],
                &session,
                frames.into_iter().collect(),
            )
        });
        let player = &mut self.players[index];
        if self.narrow && joined.is_err() {
            player.end = End::Gone;
            return;
        }
        let is_new = player.rooms.insert(room);
        assert!(matches!(joined, Ok(new) if new == is_new));
        if is_new {
            player.due.extend(replay);
            player.changes.push((room, Presence::Joined));
        }
        assert!(self.rooms[room].contains(session.id));
    }

    fn leave(&mut self) {
        let Some(index) = self.pick() else { return };
        let room = self.dice.below(ROOMS);
        let session = self.world.session(self.players[index].client);
        let left = self.world.hub.leave(&self.rooms[room], &session).unwrap();
        let player = &mut self.players[index];
        if self.narrow && left != player.rooms.contains(&room) {
            player.end = End::Gone;
            return;
        }
        assert_eq!(left, player.rooms.remove(&room));
        if left {
            player.changes.push((room, Presence::Left));
        }
        assert!(!self.rooms[room].contains(session.id));
    }

    /// Broadcasts to a room or to everyone, sometimes excluding one client.
    fn publish(&mut self) {
        let room = self.dice.below(ROOMS + 2);
        let except = self.dice.one_in(4).then(|| self.pick()).flatten();
        for _ in 0..=self.dice.below(4) {
            let payload = self.payload();
            let of = self.rooms.get(room);
            let numbered = of
                .filter(|room| room.has_members_with_ids())
                .map(|room| with_id(&room.name, &payload));
            let rendered = of.and_then(|room| {
                let text = rendered(&payload);
                let [plain, with_ids] = room.has_rendered_members();
                let with_id = with_ids.then(|| with_id(&room.name, &text));
                let message = plain.then(|| Message::new(&text));
                let frames = || self.world.hub.rendered_frames(message.as_ref(), with_id);
                (plain || with_ids).then(frames)
            });
            let to = Destination {
                room: of,
                except: except.map(|player| self.world.id(self.players[player].client)),
                with_ids: numbered.as_ref(),
                rendered: rendered.as_ref(),
                ..Destination::default()
            };
            self.world
                .hub
                .try_broadcast(Message::new(&payload).frame(), to)
                .unwrap();
            for (index, player) in self.players.iter_mut().enumerate() {
                let is_due = room >= ROOMS || player.rooms.contains(&room);
                if is_due && player.end != End::Closed && except != Some(index) {
                    let is_of_room = room < ROOMS;
                    let due = match player.form.rendered && is_of_room {
                        true => self::rendered(&payload),
                        false => payload.clone(),
                    };
                    player.due.push(match player.form.with_ids && is_of_room {
                        true => format!("{room}#{due}"),
                        false => due,
                    });
                }
            }
        }
    }

    fn end(&mut self) {
        let Some(index) = self.pick() else { return };
        let client = self.players[index].client;
        self.players[index].end = End::Gone;
        match self.dice.below(5) {
            0 => self.world.pipe(client).client_resets(),
            1 => self.world.pipe(client).client_ends(),
            2 => self.world.pipe(client).client_sends(&client_close(1000)),
            3 => self.world.pipe(client).client_sends(&client_text("panic")),
            _ => {
                self.world.closes(client, 4000, "");
                self.players[index].end = End::Closed;
                let rooms = std::mem::take(&mut self.players[index].rooms);
                let left = rooms.into_iter().map(|room| (room, Presence::Left));
                self.players[index].changes.extend(left);
            }
        }
    }

    /// Disconnects all clients, and checks that all membership changes were reported.
    #[cfg(test)]
    fn finish_narrow(mut self) {
        for player in &mut self.players {
            let client = player.client;
            if self.dice.one_in(2) {
                self.world.unstall(client);
            }
            self.world.pipe(client).client_resets();
        }
        self.world.run_handlers();
        for player in &self.players {
            let client = player.client;
            let told = room_changes(&mut self.world, client);
            assert_balanced(&told);
        }
        for room in &self.rooms {
            assert_eq!((room.len(), room.reaches(0)), (0, false));
        }
        assert_eq!(self.world.core().cx.fanout.rooms.memberships(), 0);
        assert_eq!(self.world.metrics().room_members, 0);
        self.world.assert_empty();
    }

    /// Lets all clients read everything, and checks what they and the handlers received.
    fn finish(&mut self) {
        for player in 0..self.players.len() {
            let client = self.players[player].client;
            self.world.unstall(client);
        }
        self.world.run_handlers();
        let mut members = vec![0; ROOMS];
        let mut forms = [[false; 3]; ROOMS];
        for player in &self.players {
            let client = player.client;
            self.world.head(client);
            let output = match player.end {
                End::Gone => self.world.frames(client),
                _ => self.world.all_frames(client),
            };
            let got: Vec<String> = output
                .into_iter()
                .filter_map(|frame| match frame {
                    Frame::Text(payload) => Some(payload),
                    Frame::Binary(with_id) => Some(of_room(&with_id)),
                    _ => None,
                })
                .collect();
            let told = room_changes(&mut self.world, client);
            if player.end == End::Gone {
                assert!(player.due.starts_with(&got), "only what was due, in order");
                assert_balanced(&told);
                continue;
            }
            assert_eq!(got, player.due, "all that was due, in order");
            // A client that disconnects leaves its rooms in no particular order.
            let rest = player.changes.len().min(told.len());
            let certain = match player.end {
                End::None => rest,
                _ => rest.saturating_sub(ROOMS),
            };
            assert_eq!(told[..certain], player.changes[..certain]);
            let count = |changes: &[(usize, Presence)]| {
                let mut counts = HashMap::new();
                for change in changes {
                    *counts.entry(*change).or_insert(0) += 1;
                }
                counts
            };
            assert_eq!(count(&told), count(&player.changes));
            if player.end == End::None {
                for &room in &player.rooms {
                    members[room] += 1;
                    let HistoryForm { with_ids, rendered } = player.form;
                    forms[room][0] |= with_ids && !rendered;
                    forms[room][1] |= rendered && !with_ids;
                    forms[room][2] |= rendered && with_ids;
                    assert!(self.rooms[room].contains(self.world.id(client)));
                }
            }
        }
        for (room, members) in self.rooms.iter().zip(&members) {
            assert_eq!(room.len(), *members);
            assert_eq!(room.members().len(), *members);
            assert_eq!(room.reaches(0), *members > 0);
        }
        for (room, [numbered, rendered, both]) in self.rooms.iter().zip(forms) {
            assert_eq!(room.has_members_with_ids(), numbered);
            assert_eq!(room.has_rendered_members(), [rendered, both]);
        }
        let memberships = members.iter().sum::<usize>();
        assert_eq!(self.world.core().cx.fanout.rooms.memberships(), memberships);
        assert_eq!(self.world.metrics().room_members, memberships as u64);
        assert_eq!(self.world.metrics().slow_consumers, 0);
    }
}

/// The membership changes of a client that handlers were told.
fn room_changes(world: &mut World, client: usize) -> Vec<(usize, Presence)> {
    let told = world.told(client).into_iter();
    told.filter_map(|told| match told {
        Told::Room(room, change) => Some((room.parse().unwrap(), change)),
        _ => None,
    })
    .collect()
}

/// A header that asks for rendered messages.
const RENDERED: &str = "X-Rendered";

fn upgrade(form: HistoryForm) -> Vec<u8> {
    let mut request = UPGRADE[..UPGRADE.len() - 2].to_vec();
    if form.with_ids {
        let offer = format!("Sec-WebSocket-Protocol: {}\r\n", procedures::V1);
        request.extend_from_slice(offer.as_bytes());
    }
    if form.rendered {
        request.extend_from_slice(format!("{RENDERED}: yes\r\n").as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request
}

fn rendered(payload: &str) -> String {
    format!("rendered {payload}")
}

fn with_id(room: &str, payload: &str) -> Bytes {
    let kind = procedures::MessageKind::Text;
    let with_id = procedures::of_room(room, "1-1", kind, payload.as_bytes());
    Message::new_binary(with_id).into_frame().0
}

/// Decodes the room and the payload of a message with an id.
fn of_room(with_id: &[u8]) -> String {
    let mut rest = with_id.strip_prefix(&[7]).unwrap();
    let room = procedures::take_name(&mut rest).unwrap();
    assert_eq!(procedures::take_name(&mut rest), Ok("1-1"));
    let text = rest.strip_prefix(&[1]).unwrap();
    format!("{room}#{}", std::str::from_utf8(text).unwrap())
}

/// Asserts that each joined room is left exactly once, after it was joined.
fn assert_balanced(told: &[(usize, Presence)]) {
    let mut inside = BTreeSet::new();
    for (room, change) in told {
        match change {
            Presence::Joined => assert!(inside.insert(*room), "joined twice"),
            Presence::Left => assert!(inside.remove(room), "left twice"),
        }
    }
    assert!(inside.is_empty(), "never left");
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::engine::model::room::NotJoined;
    use crate::engine::sim_tests::wire::text;
    use crate::protocol::fuzz::dice::for_seeds;

    #[test]
    fn random_broadcasts_reach_exactly_the_members() {
        for_seeds(200, |seed| {
            RoomsGame::new(Dice::from_seed(seed)).play_to_the_end(STEPS);
        });
    }

    #[test]
    fn random_evictions_leave_no_stale_member() {
        for_seeds(200, |seed| {
            let mut game = RoomsGame::narrow(Dice::from_seed(seed));
            for _ in 0..STEPS {
                game.step();
            }
            game.finish_narrow();
        });
    }

    /// Creates a room with a client as its member.
    fn with_room(world: &mut World) -> (Arc<SharedRoom>, usize) {
        let room = world.hub.new_room("r".into(), false);
        let client = world.join();
        join(world, &room, client).unwrap();
        world.run_handlers();
        (room, client)
    }

    fn join(world: &World, room: &Arc<SharedRoom>, client: usize) -> Result<bool, NotJoined> {
        let session = world.session(client);
        let reserved = world.hub.reserve_join(&session, 0, 0)?;
        world.hub.join(reserved, room, &session, Replay::default())
    }

    fn to_room(world: &World, room: &Arc<SharedRoom>, payload: &str) {
        let to = Destination {
            room: Some(room),
            except: None,
            ..Destination::default()
        };
        world
            .hub
            .try_broadcast(Message::new(payload).frame(), to)
            .unwrap();
    }

    #[test]
    fn room_closed_by_its_last_member_admits_nobody() {
        let mut world = World::new(Setup::default());
        let (room, client) = with_room(&mut world);
        assert!(!room.is_retired());
        world.hub.leave(&room, &world.session(client)).unwrap();
        assert!(room.is_retired());
        assert!(matches!(
            join(&world, &room, client),
            Err(NotJoined::Retired)
        ));
        to_room(&world, &room, "late");
        world.run_handlers();
        assert_eq!(world.frames(client), []);
    }

    /// What any thread sees of a room's members may decide what it sends, so it must not be ahead of the mailboxes.
    #[test]
    fn members_are_seen_after_their_join_and_until_their_leave_is_queued() {
        let mut world = World::new(Setup::default());
        let (room, first) = with_room(&mut world);
        let client = world.join();
        let (first, id) = (world.session(first).id, world.session(client).id);
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let (on_wake, of) = (seen.clone(), (room.clone(), world.hub.clone()));
        let look = move || {
            let (room, hub) = &of;
            let members = hub.common.room_members.get();
            (room.len(), room.members(), room.contains(id), members)
        };
        let looks = look.clone();
        world.when_woken(move || on_wake.lock().unwrap().push(looks()));
        let (alone, both) = ((1, vec![first], false, 1), (2, vec![first, id], true, 2));
        let assert_changes = |before, after| {
            assert_eq!(*seen.lock().unwrap(), [before]);
            assert_eq!(look(), after);
            seen.lock().unwrap().clear();
        };
        join(&world, &room, client).unwrap();
        assert_changes(alone.clone(), both.clone());
        world.run_handlers();
        seen.lock().unwrap().clear();
        world.hub.leave(&room, &world.session(client)).unwrap();
        assert_changes(both, alone);
    }

    #[test]
    fn room_broadcasts_are_one_write_per_member() {
        let mut world = World::new(Setup::default());
        let (room, client) = with_room(&mut world);
        let other = world.join();
        join(&world, &room, other).unwrap();
        world.run_handlers();
        let before = [client, other].map(|client| world.pipe(client).writes);
        for n in 0..20 {
            to_room(&world, &room, &n.to_string());
        }
        world.settle();
        let expected: Vec<Frame> = (0..20).map(|n| text(n.to_string())).collect();
        for (client, before) in [client, other].into_iter().zip(before) {
            assert_eq!(world.frames(client), expected);
            assert_eq!(world.pipe(client).writes - before, 1);
        }
    }

    #[test]
    fn handler_outlasting_the_shard_reports_its_rooms_at_its_end() {
        let mut world = World::new(Setup::default());
        let (room, client) = with_room(&mut world);
        let other = world.hub.new_room("other".into(), false);
        world.client_says(client, "work");
        // The handler is already running when the client joins, and nothing notifies it.
        join(&world, &other, client).unwrap();
        world.settle();
        world.stop(Duration::ZERO);
        world.finish();
        let told = world.told(client);
        let changes: Vec<&Told> = told
            .iter()
            .filter(|told| matches!(told, Told::Room(..)))
            .collect();
        let change = |change| Told::Room("r".into(), change);
        let expected = [change(Presence::Joined), change(Presence::Left)];
        assert_eq!(changes, expected.iter().collect::<Vec<_>>());
        assert_eq!(told.last(), Some(&Told::Close));
        assert_eq!((room.len(), other.len()), (0, 0));
    }
}
