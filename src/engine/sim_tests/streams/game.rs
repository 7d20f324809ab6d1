//! A randomised test of event streams: each receives exactly the messages sent to its rooms since it began.

use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::{HEAD, PREAMBLE, event, parse};
use crate::engine::hub::Destination;
use crate::engine::hub::event_streams::Beginning;
use crate::engine::model::replay::Replay;
use crate::engine::model::room::SharedRoom;
use crate::engine::parts::id::Key;
use crate::engine::sim_tests::world::{Setup, World};
use crate::limits::Limits;
use crate::message::Message;
use crate::protocol::fuzz::dice::{Dice, for_seeds};

const ROOMS: usize = 4;
/// The index after the rooms, which stands for everyone.
const ALL: usize = ROOMS;

/// A simulation in which event streams of several rooms begin, read and end at random while messages are published.
struct StreamsGame {
    world: World,
    dice: Dice,
    rooms: Arc<OnceLock<Vec<Arc<SharedRoom>>>>,
    /// The number of messages published when each stream began.
    begun: Arc<Mutex<HashMap<Key, usize>>>,
    /// The room of each published message, in order.
    published: Arc<Mutex<Vec<usize>>>,
    /// The clients, with the rooms that each requested and the messages that it received.
    streams: Vec<(usize, Vec<usize>, Vec<u8>)>,
}

impl StreamsGame {
    fn new(seed: u64) -> Self {
        let rooms = Arc::new(OnceLock::<Vec<Arc<SharedRoom>>>::new());
        let begun = Arc::<Mutex<HashMap<Key, usize>>>::default();
        let published = Arc::<Mutex<Vec<usize>>>::default();
        let of_program = (rooms.clone(), begun.clone(), published.clone());
        let world = World::new(Setup {
            streamer: Box::new(move |hub, session| {
                let (rooms, begun, published) = &of_program;
                let wanted = wanted(session.target());
                let rooms = rooms.get().unwrap();
                let rooms: Vec<_> = rooms.iter().enumerate().collect();
                let of_stream: Vec<Arc<SharedRoom>> = rooms
                    .iter()
                    .filter(|(n, _)| wanted.contains(n))
                    .map(|(_, room)| hub.follow(room).unwrap())
                    .collect();
                let beginning = Beginning {
                    preface: [HEAD, PREAMBLE].concat(),
                    rooms: &of_stream,
                    keep_alive: Duration::from_secs(15),
                    replay: [Bytes::from(event("replay"))].into_iter().collect(),
                    snapshot: Vec::new(),
                    broadcasts: wanted.contains(&ALL),
                    joined_ids: None,
                };
                let reserved = hub.reserve_stream(session, 10_000).unwrap();
                match hub.begin_stream(reserved, session, beginning) {
                    Ok(()) => {
                        let now = published.lock().unwrap().len();
                        begun.lock().unwrap().insert(session.id.key(), now);
                    }
                    Err(_) => of_stream.iter().for_each(|room| drop(room.leave())),
                }
            }),
            limits: Limits {
                // No client counts as slow.
                outbox_bytes_max: 64 << 20,
                ..Limits::default()
            },
            ..Setup::default()
        });
        let made = (0..ROOMS).map(|n| world.hub.new_room(n.to_string().into(), true));
        let _ = rooms.set(made.collect());
        let mut world = world;
        // A WebSocket client, so that frames are sent, too.
        for (member, room) in world.joined(2).into_iter().zip(rooms.get().unwrap()) {
            let session = world.session(member);
            let reserved = world.hub.reserve_join(&session, 0, 0).unwrap();
            world
                .hub
                .join(reserved, room, &session, Replay::default())
                .unwrap();
        }
        world.run_handlers();
        Self {
            world,
            dice: Dice::from_seed(seed),
            rooms,
            begun,
            published,
            streams: Vec::new(),
        }
    }

    fn step(&mut self) {
        let streams = self.streams.len();
        match self.dice.below(20) {
            0..2 if streams < 8 => {
                let wanted: Vec<String> = (0..=ALL)
                    .filter(|_| self.dice.one_in(2))
                    .map(|n| n.to_string())
                    .collect();
                let client = self.world.connect();
                if self.dice.one_in(2) {
                    self.world.stall(client, self.dice.below(300));
                }
                let target = format!("/events?{}", wanted.join(","));
                let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
                self.world.client_sends(client, request);
                self.streams
                    .push((client, self::wanted(&target), Vec::new()));
            }
            2..10 => {
                for _ in 0..=self.dice.below(3) {
                    self.publish();
                }
            }
            10..12 if !self.world.jobs.is_empty() => {
                let job = self.dice.below(self.world.jobs.len());
                self.world.run_job(job);
                self.world.hub.wake_deferred();
            }
            12..15 if streams > 0 => {
                let (client, ..) = self.streams[self.dice.below(streams)];
                let room = self.dice.below(200);
                self.world.pipe(client).add_room(room);
            }
            15 if streams > 0 && self.dice.one_in(5) => {
                let gone = self.dice.below(streams);
                let (client, ..) = self.streams.remove(gone);
                self.world.client_resets(client);
            }
            16 => self.world.turn(),
            _ => {}
        }
        if self.dice.one_in(4) {
            self.world.settle();
        }
    }

    fn publish(&mut self) {
        let room = self.dice.below(ROOMS + 1);
        let mut published = self.published.lock().unwrap();
        let text = published.len().to_string();
        published.push(room);
        let of_events = event(&text).into();
        let room = self.rooms.get().unwrap().get(room);
        let hub = &self.world.hub;
        let streams = match room {
            Some(room) => room.streams(),
            None => hub.everyone_streams(),
        };
        let to = Destination {
            room,
            event: streams.map(|streams| (streams, &of_events)),
            ..Destination::default()
        };
        let message = Message::new(&text);
        hub.try_broadcast(message.frame(), to).unwrap();
    }

    fn finish(mut self) {
        self.world.run_handlers();
        for index in 0..self.streams.len() {
            self.world.unstall(self.streams[index].0);
        }
        let published = self.published.lock().unwrap().clone();
        for (client, wanted, mut output) in std::mem::take(&mut self.streams) {
            output.extend(self.world.output(client));
            let events = parse(output.strip_prefix(HEAD).unwrap());
            let begun = self.begun.lock().unwrap()[&self.world.key(client)];
            let due = published.iter().enumerate().skip(begun);
            let due = due.filter(|(_, room)| wanted.contains(room));
            let due: Vec<String> = std::iter::once("replay".to_owned())
                .chain(due.map(|(n, _)| n.to_string()))
                .collect();
            assert_eq!(events, due);
            self.world.client_ends(client);
        }
        self.world.run_handlers();
        for member in [0, 1] {
            self.world.client_ends(member);
        }
        self.world.assert_empty();
        for room in self.rooms.get().unwrap() {
            assert_eq!((room.len(), room.streams_len()), (0, 0));
            let streams = room.room_of_streams(|| self.world.hub.next_channel());
            assert!(
                !room.reaches(0) && !streams.reaches(0),
                "nothing goes there"
            );
        }
    }
}

/// Parses the rooms that a request target names.
fn wanted(target: &str) -> Vec<usize> {
    let (_, query) = target.split_once('?').unwrap();
    query.split(',').filter_map(|n| n.parse().ok()).collect()
}

#[test]
fn streams_receive_exactly_their_rooms_messages_in_order() {
    for_seeds(300, |seed| {
        let mut game = StreamsGame::new(seed);
        for _ in 0..300 {
            game.step();
        }
        game.finish();
    });
}
