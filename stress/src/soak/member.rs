//! One client of a soak, which checks that it receives each message that is due to it once and in order.

use std::collections::{BTreeMap, VecDeque};

use humphrey_ws::HistoryId;
use miniz_oxide::deflate::compress_to_vec;

use super::connection::Connection;
use crate::check::{During, Failure, Outcome, ensure};
use crate::client::Peer;
use crate::client::frames::{FIN, RSV1, TEXT};
use crate::server::rooms::{EVERYONE, FIRE_MESSAGES, KEPT, bytes_max};
use crate::text;

/// How much a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// All that is there.
    KeepsUp,
    /// About this many bytes in each step.
    BytesPerStep(usize),
}

/// What the client has asked for, in order.
#[derive(Debug)]
enum Asked {
    Join { room: String, since: Since },
    Leave(String),
    Echo(String),
}

/// From when on a client wants the messages of a room.
#[derive(Clone, Debug)]
pub(super) enum Since {
    Now,
    /// All that the room keeps; instead of those after a number, if it no longer keeps these.
    All {
        gone: Option<u64>,
    },
    After(Position),
}

/// The last message of a room with a history that a client has received.
#[derive(Clone, Debug)]
pub(super) struct Position {
    pub(super) room: String,
    pub(super) id: HistoryId,
}

/// The messages of a room that a client has received as a member.
#[derive(Debug, Default)]
struct RoomRun {
    first: Option<u64>,
    next: u64,
    id: Option<HistoryId>,
}

/// Counts of what clients have sent and received.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) echoes: u64,
    /// Messages that slow readers have not received.
    pub(super) lost: u64,
    pub(super) joins: u64,
    pub(super) leaves: u64,
    pub(super) replayed: u64,
    /// Resumes, and how many of them came too late.
    pub(super) resumes: u64,
    pub(super) gone: u64,
    /// Messages that were sent to clients and may not have been read.
    pub(super) unread: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.echoes += other.echoes;
        self.lost += other.lost;
        self.joins += other.joins;
        self.leaves += other.leaves;
        self.replayed += other.replayed;
        self.resumes += other.resumes;
        self.gone += other.gone;
        self.unread += other.unread;
    }
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) app: usize,
    pub(super) pace: Pace,
    pub(super) peer: Peer<Connection>,
    compresses: bool,
    record: Record,
}

/// What a client expects and has received.
#[derive(Debug)]
struct Record {
    seed: u64,
    is_lossy: bool,
    /// The next message to everyone.
    round: u64,
    rooms: BTreeMap<String, RoomRun>,
    asked: VecDeque<Asked>,
    /// Resumes that came too late, and are to be repeated without a position.
    again: Vec<(String, u64)>,
    counts: Counts,
}

impl Member {
    /// A client that has just opened, and whose first message to everyone is that of `round`.
    pub(super) fn new(
        app: usize,
        peer: Peer<Connection>,
        pace: Pace,
        compresses: bool,
        (seed, round): (u64, u64),
    ) -> Self {
        Self {
            app,
            pace,
            peer,
            compresses,
            record: Record {
                seed,
                is_lossy: pace != Pace::KeepsUp,
                round,
                rooms: BTreeMap::new(),
                asked: VecDeque::new(),
                again: Vec::new(),
                counts: Counts::default(),
            },
        }
    }

    pub(super) fn rooms(&self) -> impl Iterator<Item = &String> {
        self.record.rooms.keys()
    }

    /// The last messages of rooms with a history that it has received.
    pub(super) fn positions(&self) -> impl Iterator<Item = Position> {
        let rooms = self.record.rooms.iter();
        rooms.filter_map(|(room, run)| {
            Some(Position {
                room: room.clone(),
                id: run.id?,
            })
        })
    }

    pub(super) fn join(&mut self, room: &str, since: Since) -> Outcome {
        if self.record.rooms.contains_key(room) {
            return Ok(());
        }
        let mut run = RoomRun::default();
        let command = match &since {
            Since::Now => format!("join {room}"),
            Since::All { .. } => format!("since {room}"),
            Since::After(position) => {
                self.record.counts.resumes += 1;
                run.first = Some(position.id.sequence() + 1);
                run.next = position.id.sequence() + 1;
                run.id = Some(position.id);
                format!("since {room} {}", position.id)
            }
        };
        self.record.counts.joins += 1;
        let room = room.to_owned();
        self.record.rooms.insert(room.clone(), run);
        self.ask(&command, Asked::Join { room, since })
    }

    pub(super) fn leave(&mut self, room: &str) -> Outcome {
        self.record.counts.leaves += 1;
        self.ask(&format!("leave {room}"), Asked::Leave(room.to_owned()))
    }

    pub(super) fn echo(&mut self, text: String) -> Outcome {
        self.record.counts.echoes += 1;
        self.ask(&text.clone(), Asked::Echo(text))
    }

    fn ask(&mut self, command: &str, asked: Asked) -> Outcome {
        self.record.asked.push_back(asked);
        self.send(command)
    }

    fn send(&mut self, text: &str) -> Outcome {
        self.record.counts.sent += 1;
        let sent = match self.compresses {
            true => {
                let payload = compress_to_vec(text.as_bytes(), 1);
                self.peer.send(FIN | RSV1 | TEXT, &payload)
            }
            false => self.peer.send(FIN | TEXT, text.as_bytes()),
        };
        sent.during("sending a command")
    }

    /// Whether it has received all answers.
    pub(super) fn is_idle(&self) -> bool {
        self.record.asked.is_empty()
    }

    /// Whether it has received all answers, and, if it keeps up, all messages to everyone before `round`.
    pub(super) fn is_up_to_date(&self, round: u64) -> bool {
        self.is_idle() && (self.record.is_lossy || self.record.round >= round)
    }

    /// Reads what is there. Returns the number of bytes.
    pub(super) fn read(&mut self) -> Outcome<usize> {
        let record = &mut self.record;
        let read = self.peer.pump(usize::MAX, |message| record.take(message));
        let read = read?;
        self.go_on()?;
        Ok(read)
    }

    /// Reads what its pace permits in a step.
    pub(super) fn read_step(&mut self) -> Outcome {
        if let Pace::BytesPerStep(bytes) = self.pace {
            let record = &mut self.record;
            self.peer.pump(bytes, |message| record.take(message))?;
        }
        self.go_on()
    }

    fn go_on(&mut self) -> Outcome {
        let end = (self.peer.closed, self.peer.ended);
        ensure!(
            end == (None, None),
            "the server has closed a connection: {end:?}"
        );
        for (room, after) in std::mem::take(&mut self.record.again) {
            self.join(&room, Since::All { gone: Some(after) })?;
        }
        Ok(())
    }

    /// Returns the counts of a client that ends without reading a round: at most one message of each audience, and more of the
    /// busiest.
    pub(super) fn into_counts(mut self) -> Outcome<Counts> {
        let unread = self.record.rooms.len() as u64 + FIRE_MESSAGES;
        let mut counts = self.take_counts(self.record.round)?;
        counts.unread += unread;
        Ok(counts)
    }

    /// Takes the counts of a client that ends before `round`.
    pub(super) fn take_counts(&mut self, round: u64) -> Outcome<Counts> {
        let record = &mut self.record;
        ensure!(record.asked.is_empty(), "answers are missing: {record:?}");
        record.miss(EVERYONE, record.round, round)?;
        record.round = round;
        Ok(std::mem::take(&mut record.counts))
    }
}

impl Record {
    /// Takes a message for the messages before `number`, which only a slow reader may miss.
    fn miss(&mut self, room: &str, expected: u64, number: u64) -> Outcome {
        ensure!(
            number == expected || self.is_lossy && number > expected,
            "{room}: message {number} came instead of {expected}"
        );
        self.counts.lost += number - expected;
        Ok(())
    }

    fn take(&mut self, message: &[u8]) -> Outcome {
        self.counts.received += 1;
        let text = std::str::from_utf8(message).during("a text message")?;
        let mut words = text.split(' ');
        match words.next().unwrap_or_default() {
            "joined" | "left" | "gone" | "echo" => self.answered(text),
            EVERYONE => {
                let number = self.verify(EVERYONE, text)?;
                self.miss(EVERYONE, self.round, number)?;
                self.round = number + 1;
                Ok(())
            }
            room if self.rooms.contains_key(room) => self.of_room(room, text),
            id => {
                let (_, rest) = text.split_once(' ').unwrap_or_default();
                let (room, _) = rest.split_once(' ').unwrap_or_default();
                ensure!(
                    room.starts_with(KEPT) && self.rooms.contains_key(room),
                    "a message to a client that is not in the room: {text}"
                );
                let id: HistoryId = id.parse().during(format!("the id of {text:?}"))?;
                let number = self.of_kept_room(room, rest, id)?;
                ensure!(
                    id.sequence() == number,
                    "message {number} of {room} has the id {id}"
                );
                Ok(())
            }
        }
    }

    fn of_room(&mut self, room: &str, text: &str) -> Outcome {
        let number = self.verify(room, text)?;
        self.record(room, number)
    }

    fn of_kept_room(&mut self, room: &str, text: &str, id: HistoryId) -> Outcome<u64> {
        let number = self.verify(room, text)?;
        self.record(room, number)?;
        if let Some(run) = self.rooms.get_mut(room) {
            run.id = Some(id);
        }
        Ok(number)
    }

    fn record(&mut self, room: &str, number: u64) -> Outcome {
        let run = self.rooms.get_mut(room);
        let run = run.ok_or_else(|| Failure::new(format!("{room} was left")))?;
        let expected = match run.first {
            Some(_) => run.next,
            None => number,
        };
        run.first.get_or_insert(number);
        run.next = number + 1;
        self.miss(room, expected, number)
    }

    /// Compares a message with what the server should have sent. Returns its number.
    fn verify(&self, origin: &str, text: &str) -> Outcome<u64> {
        let number = text.split(' ').nth(1).unwrap_or_default();
        let number = number.parse().during(format!("the number of {text:?}"))?;
        ensure!(
            text == text::numbered(self.seed, origin, number, bytes_max(origin)),
            "message {number} of {origin} was changed on the way: {text:?}"
        );
        Ok(number)
    }

    fn answered(&mut self, text: &str) -> Outcome {
        let asked = self.asked.pop_front();
        let asked = asked.ok_or_else(|| Failure::new(format!("an answer to nothing: {text}")))?;
        let mut words = text.split(' ');
        let verb = words.next().unwrap_or_default();
        let of_room = words.next().unwrap_or_default();
        let mut number = || -> Outcome<u64> {
            let word = words.next().unwrap_or_default();
            word.parse().during(format!("a number of {text:?}"))
        };
        match (asked, verb) {
            (Asked::Echo(sent), _) if sent == text => Ok(()),
            (Asked::Leave(room), "left") if room == of_room => {
                let run = self.rooms.remove(&room).unwrap_or_default();
                self.miss(&room, run.next, number()?)
            }
            (Asked::Join { room, since }, "joined") if room == of_room => {
                let (next, replayed) = (number()?, number()?);
                self.joined(&room, &since, next, replayed)
            }
            (Asked::Join { room, since }, "gone") if room == of_room => match since {
                Since::After(position) => {
                    self.counts.gone += 1;
                    // The repetition counts as another join.
                    self.rooms.remove(&room);
                    self.again.push((room, position.id.sequence()));
                    Ok(())
                }
                _ => Err(Failure::new(format!("{since:?} was answered with {text}"))),
            },
            (asked, _) => Err(Failure::new(format!("{asked:?} was answered with {text}"))),
        }
    }

    /// Checks the answer to a join: `next` is the first number that was not replayed.
    fn joined(&mut self, room: &str, since: &Since, next: u64, replayed: u64) -> Outcome {
        self.counts.replayed += replayed;
        let run = self.rooms.entry(room.to_owned()).or_default();
        if run.first.is_none() && replayed == 0 {
            run.first = Some(next);
            run.next = next;
        }
        let first = run.first.unwrap_or_default();
        let due = next.saturating_sub(first);
        let missed = match since {
            // The history must indeed no longer keep what came directly after the position.
            Since::All { gone: Some(after) } => first > after + 1,
            _ => true,
        };
        ensure!(
            due == replayed && run.next >= next && missed,
            "{room}, joined with {since:?}: {replayed} messages before {next} were replayed; {run:?}"
        );
        // The first message may have come before the answer.
        self.miss(room, next, first.max(next))
    }
}
