//! One client of a soak, which checks that it receives each message that is due to it once and in order.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use humphrey_ws::HistoryId;
use miniz_oxide::deflate::compress_to_vec;

use crate::check::{During, Failure, Outcome, ensure};
use crate::client::frames::{FIN, RSV1, TEXT};
use crate::client::{Peer, Transport};
use crate::server::Figures;
use crate::server::rooms::{EVERYONE, KEPT, bytes_max, messages_per_round};
use crate::text;

/// How much a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// It reads all that has arrived.
    KeepsUp,
    /// A slow reader, which reads about this many bytes in each step.
    BytesPerStep(usize),
}

/// A command that the client has sent, and that the server has not answered.
#[derive(Debug)]
enum Command {
    Join { room: String, since: Since },
    Leave(String),
    Echo(String),
}

/// The first message of a room that a client asks for when it joins.
#[derive(Clone, Debug)]
pub(super) enum Since {
    /// The next message.
    Now,
    /// The oldest message in the room's history.
    Oldest {
        /// The position of an earlier attempt to resume, after which the history no longer had all messages.
        gone: Option<u64>,
    },
    /// The one after a position.
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

/// Something that a client has not received, though it is due.
#[derive(Debug)]
enum Missing<'a> {
    Answer(&'a Command),
    /// Messages from a number up to another, which is not due.
    Messages {
        origin: &'a str,
        first: u64,
        end: u64,
    },
}

impl fmt::Display for Missing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(Command::Join { room, since }) => {
                write!(f, "the answer to its join of {room} since {since:?}")
            }
            Self::Answer(Command::Leave(room)) => {
                write!(f, "the answer to its leave of {room}")
            }
            Self::Answer(Command::Echo(text)) => write!(f, "an echo of {} bytes", text.len()),
            Self::Messages { origin, first, end } => {
                let origin = match *origin {
                    EVERYONE => "everyone",
                    room => room,
                };
                let last = end - 1;
                match last == *first {
                    true => write!(f, "message {first} to {origin}"),
                    false => write!(f, "messages {first} to {last} to {origin}"),
                }
            }
        }
    }
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
    /// Joins after a position.
    pub(super) resumes: u64,
    /// Resumes whose position was too old for the history.
    pub(super) gone: u64,
    /// Messages that the server may have sent to clients that ended without reading them.
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
    /// Its name in messages about failures.
    name: String,
    pub(super) app: usize,
    pub(super) pace: Pace,
    pub(super) peer: Peer<Box<dyn Transport>>,
    compresses: bool,
    record: Record,
}

/// What a client expects and has received.
#[derive(Debug)]
struct Record {
    seed: u64,
    is_lossy: bool,
    /// The number of the next message to everyone.
    round: u64,
    rooms: BTreeMap<String, RoomRun>,
    /// Commands without an answer, in their order.
    unanswered: VecDeque<Command>,
    /// The rooms and positions of resumes that came too late. The client joins these rooms again without a position.
    rejoins: Vec<(String, u64)>,
    counts: Counts,
}

impl Member {
    /// A client whose connection has just been opened, and whose first message to everyone is that of `round`.
    pub(super) fn new(
        name: String,
        app: usize,
        peer: Peer<Box<dyn Transport>>,
        pace: Pace,
        compresses: bool,
        (seed, round): (u64, u64),
    ) -> Self {
        Self {
            name,
            app,
            pace,
            peer,
            compresses,
            record: Record::new(seed, pace != Pace::KeepsUp, round),
        }
    }

    pub(super) fn rooms(&self) -> impl Iterator<Item = &String> {
        self.record.rooms.keys()
    }

    /// The last message that it has received of each of its rooms with a history.
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
            Since::Oldest { .. } => format!("since {room}"),
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
        self.execute(&command, Command::Join { room, since })
    }

    pub(super) fn leave(&mut self, room: &str) -> Outcome {
        self.record.counts.leaves += 1;
        self.execute(&format!("leave {room}"), Command::Leave(room.to_owned()))
    }

    pub(super) fn echo(&mut self, text: String) -> Outcome {
        self.record.counts.echoes += 1;
        self.execute(&text.clone(), Command::Echo(text))
    }

    fn execute(&mut self, text: &str, command: Command) -> Outcome {
        self.record.unanswered.push_back(command);
        self.send(text)
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
        self.record.unanswered.is_empty()
    }

    /// Whether it has received all that is due to it. `next` has the number of the next message of each origin.
    pub(super) fn is_up_to_date(&self, next: &Figures) -> bool {
        self.record.missing(next).next().is_none()
    }

    /// Describes the client and what it still waits for.
    pub(super) fn describe(&self, next: &Figures) -> String {
        let missing: Vec<_> = self.record.missing(next).map(|m| m.to_string()).collect();
        format!("{} waits for {}", self.name, missing.join(", "))
    }

    /// Reads all that has arrived. Returns the number of messages.
    pub(super) fn read(&mut self) -> Outcome<u64> {
        self.read_bytes(usize::MAX)
    }

    /// A slow reader reads what its pace permits in a step. Other clients have read everything.
    pub(super) fn read_step(&mut self) -> Outcome {
        match self.pace {
            Pace::BytesPerStep(bytes) => self.read_bytes(bytes).map(drop),
            Pace::KeepsUp => Ok(()),
        }
    }

    fn read_bytes(&mut self, bytes: usize) -> Outcome<u64> {
        let record = &mut self.record;
        let received = record.counts.received;
        let outcome = self.peer.pump(bytes, |message| record.take(message));
        outcome.during(&self.name)?;
        let received = record.counts.received - received;
        let end = (self.peer.closed, self.peer.ended);
        ensure!(
            end == (None, None),
            "the server has closed the connection of {}: {end:?}",
            self.name
        );
        for (room, position) in std::mem::take(&mut self.record.rejoins) {
            let gone = Some(position);
            self.join(&room, Since::Oldest { gone })?;
        }
        Ok(received)
    }

    /// Returns the counts of a client that ends without reading the messages of a round, all of which the server may have sent to it.
    pub(super) fn into_counts_without_round(self) -> Outcome<Counts> {
        let record = self.record;
        ensure!(
            record.unanswered.is_empty(),
            "{} ends before it has all answers: {record:?}",
            self.name
        );
        Ok(Counts {
            unread: record.counts.unread + record.messages_per_round(),
            ..record.counts
        })
    }

    /// Takes the counts of a client that ends after it has received all that is due to it. `next` has the number of the next message of
    /// each origin.
    pub(super) fn take_counts(&mut self, next: &Figures) -> Outcome<Counts> {
        let outcome = self.record.take_counts(next);
        outcome.during(format!("{} ends", self.name))
    }
}

impl Record {
    fn new(seed: u64, is_lossy: bool, round: u64) -> Self {
        Self {
            seed,
            is_lossy,
            round,
            rooms: BTreeMap::new(),
            unanswered: VecDeque::new(),
            rejoins: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// The origins of its messages, each with the number of the next message that it expects. A room that it has asked to join has no
    /// number before the answer or the first message.
    fn origins(&self) -> impl Iterator<Item = (&str, u64)> {
        let rooms = self.rooms.iter();
        let rooms = rooms.filter_map(|(room, run)| run.first.map(|_| (room.as_str(), run.next)));
        rooms.chain([(EVERYONE, self.round)])
    }

    /// What is due to the client and has not arrived: answers, and messages unless it reads slowly.
    fn missing<'a>(&'a self, next: &'a Figures) -> impl Iterator<Item = Missing<'a>> {
        let messages = self.origins().filter_map(|(origin, first)| {
            // A room that has been created since the last round has sent no message.
            let end = next.find(origin)?;
            let is_due = first < end && !self.is_lossy;
            is_due.then_some(Missing::Messages { origin, first, end })
        });
        self.unanswered.iter().map(Missing::Answer).chain(messages)
    }

    /// The number of messages that a round sends to the client.
    fn messages_per_round(&self) -> u64 {
        let origins = self.origins();
        origins.map(|(origin, _)| messages_per_round(origin)).sum()
    }

    fn take_counts(&mut self, next: &Figures) -> Outcome<Counts> {
        let unanswered = &self.unanswered;
        ensure!(unanswered.is_empty(), "no answers to {unanswered:?}");
        let origins = self.origins();
        let origins: Vec<_> = origins.map(|(o, next)| (o.to_owned(), next)).collect();
        for (origin, expected) in origins {
            if let Some(next) = next.find(&origin) {
                self.count_missed(&origin, expected, next)?;
            }
        }
        Ok(std::mem::take(&mut self.counts))
    }

    /// Counts the messages before `number` that have not arrived. Only a slow reader may miss any.
    fn count_missed(&mut self, origin: &str, expected: u64, number: u64) -> Outcome {
        ensure!(
            number == expected || self.is_lossy && number > expected,
            "{origin}: the next message is {number} instead of {expected}"
        );
        self.counts.lost += number - expected;
        Ok(())
    }

    fn take(&mut self, message: &[u8]) -> Outcome {
        self.counts.received += 1;
        let text = std::str::from_utf8(message).during("a text message")?;
        let mut words = text.split(' ');
        match words.next().unwrap_or_default() {
            "joined" | "left" | "gone" | "echo" => self.take_answer(text),
            EVERYONE => {
                let number = self.verify(EVERYONE, text)?;
                self.count_missed(EVERYONE, self.round, number)?;
                self.round = number + 1;
                Ok(())
            }
            room if self.rooms.contains_key(room) => self.take_room_message(room, text),
            id => {
                let (_, rest) = text.split_once(' ').unwrap_or_default();
                let (room, _) = rest.split_once(' ').unwrap_or_default();
                ensure!(
                    room.starts_with(KEPT) && self.rooms.contains_key(room),
                    "a message to a client that is not in the room: {text}"
                );
                let id: HistoryId = id.parse().during(format!("the id of {text:?}"))?;
                let number = self.take_room_message_with_id(room, rest, id)?;
                ensure!(
                    id.sequence() == number,
                    "message {number} of {room} has the id {id}"
                );
                Ok(())
            }
        }
    }

    fn take_room_message(&mut self, room: &str, text: &str) -> Outcome {
        let number = self.verify(room, text)?;
        self.count_room_message(room, number)
    }

    fn take_room_message_with_id(&mut self, room: &str, text: &str, id: HistoryId) -> Outcome<u64> {
        let number = self.verify(room, text)?;
        self.count_room_message(room, number)?;
        if let Some(run) = self.rooms.get_mut(room) {
            run.id = Some(id);
        }
        Ok(number)
    }

    fn count_room_message(&mut self, room: &str, number: u64) -> Outcome {
        let run = self.rooms.get_mut(room);
        let run = run.ok_or_else(|| {
            Failure::new(format!("a message to {room}, which the client has left"))
        })?;
        let expected = match run.first {
            Some(_) => run.next,
            None => number,
        };
        run.first.get_or_insert(number);
        run.next = number + 1;
        self.count_missed(room, expected, number)
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

    /// Takes the answer to the oldest command without one.
    fn take_answer(&mut self, text: &str) -> Outcome {
        let command = self.unanswered.pop_front();
        let command =
            command.ok_or_else(|| Failure::new(format!("an answer without a command: {text}")))?;
        let mut words = text.split(' ');
        let verb = words.next().unwrap_or_default();
        let answered_room = words.next().unwrap_or_default();
        let mut number = || -> Outcome<u64> {
            let word = words.next().unwrap_or_default();
            word.parse().during(format!("a number of {text:?}"))
        };
        match (command, verb) {
            (Command::Echo(sent), _) if sent == text => Ok(()),
            (Command::Leave(room), "left") if room == answered_room => {
                let run = self.rooms.remove(&room).unwrap_or_default();
                self.count_missed(&room, run.next, number()?)
            }
            (Command::Join { room, since }, "joined") if room == answered_room => {
                let (next, replayed) = (number()?, number()?);
                self.joined(&room, &since, next, replayed)
            }
            (Command::Join { room, since }, "gone") if room == answered_room => match since {
                Since::After(position) => {
                    self.counts.gone += 1;
                    // The second attempt counts as another join.
                    self.rooms.remove(&room);
                    self.rejoins.push((room, position.id.sequence()));
                    Ok(())
                }
                _ => Err(Failure::new(format!("{since:?} was answered with {text}"))),
            },
            (command, _) => Err(Failure::new(format!(
                "{command:?} was answered with {text}"
            ))),
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
        let replays_due = next.saturating_sub(first);
        let was_gone = match since {
            // The resume was refused rightly only if the history no longer has the message after the position.
            Since::Oldest {
                gone: Some(position),
            } => first > position + 1,
            _ => true,
        };
        ensure!(
            replays_due == replayed && run.next >= next && was_gone,
            "the join of {room} since {since:?} replayed {replayed} messages before message {next}, instead of those from {first} on: {run:?}"
        );
        // A message may overtake the answer, but it must be the first one after the join.
        self.count_missed(room, next, first.max(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::rooms::FIRE;

    /// A client that expects message 5 to everyone and message 7 to a room.
    fn member_of(room: &str, is_lossy: bool) -> Record {
        let mut record = Record::new(1, is_lossy, 5);
        let run = RoomRun {
            first: Some(7),
            next: 7,
            id: None,
        };
        record.rooms.insert(room.to_owned(), run);
        record
    }

    fn missing(record: &Record, next: &str) -> Vec<String> {
        let next = Figures::parse(next).unwrap();
        record.missing(&next).map(|m| m.to_string()).collect()
    }

    #[test]
    fn messages_to_rooms_and_to_everyone_are_missing_until_they_arrive() {
        let mut record = member_of("a", false);
        let next = "*=6 a=9 b=4";
        let [to_a, to_everyone] = ["messages 7 to 8 to a", "message 5 to everyone"];
        assert_eq!(missing(&record, next), [to_a, to_everyone]);
        for (origin, number) in [(EVERYONE, 5), ("a", 7), ("a", 8)] {
            assert!(!missing(&record, next).is_empty());
            let text = text::numbered(1, origin, number, bytes_max(origin));
            record.take(text.as_bytes()).unwrap();
        }
        assert!(missing(&record, next).is_empty());
    }

    #[test]
    fn room_without_messages_since_its_creation_is_up_to_date() {
        assert!(missing(&member_of("a", false), "*=5 b=4").is_empty());
    }

    #[test]
    fn slow_reader_waits_for_answers_but_not_for_messages() {
        let mut record = member_of("a", true);
        assert!(missing(&record, "*=6 a=9").is_empty());
        let leave = Command::Leave("a".to_owned());
        record.unanswered.push_back(leave);
        let answer = "the answer to its leave of a";
        assert_eq!(missing(&record, "*=6 a=9"), [answer]);
    }

    #[test]
    fn messages_of_rooms_that_never_arrive_are_lost_or_a_failure() {
        let next = Figures::parse("*=5 a=9").unwrap();
        let counts = member_of("a", true).take_counts(&next).unwrap();
        assert_eq!(counts.lost, 2);
        let failure = member_of("a", false).take_counts(&next).unwrap_err();
        let expected = "a: the next message is 9 instead of 7";
        assert_eq!(failure.to_string(), expected);
    }

    #[test]
    fn only_members_of_fire_are_sent_more_than_one_message_per_round() {
        assert_eq!(member_of("a", false).messages_per_round(), 2);
        assert_eq!(member_of(FIRE, false).messages_per_round(), 5);
    }
}
