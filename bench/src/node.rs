//! `bench node`: a node of a cluster, or a server on its own. Its clients join rooms, and it broadcasts what the commands on
//! its standard input request. `bench cluster`, `bench jitter` and `bench size` start it.

use std::io::{self, Write as _};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::{
    AsyncSender, AsyncStream, AsyncWebsocketApp, HistoryLimits, Limits, Message, Room,
};
use rustix::time::{ClockId, clock_gettime};

use crate::args::{self, OptionSpec, Options};
use crate::machine;
use crate::wire;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::value("address"),
    args::value("cpu"),
    args::value("cluster"),
    args::flag("history"),
    args::flag("child"),
];

/// The first message to a client whose path names rooms. It has joined them all.
pub(crate) const JOINED: &str = "joined";
/// Length of the messages of [`NodeCommand::Burst`] and [`NodeCommand::Publish`] in bytes.
pub(crate) const MESSAGE_BYTES: usize = 32;

/// Number of messages, and their bytes, that a room keeps with `--history`.
const KEPT_MESSAGES: usize = 1_000;
const KEPT_BYTES: usize = 256 * 1024;
/// Maximum of bytes that wait for one client. The load client shares the CPUs with several servers, and may read late.
const OUTBOX_BYTES_MAX: usize = 16 << 20;
/// Number of threads that open rooms, each of which waits for the broker.
const OPENING_THREADS: u64 = 16;
/// Maximum time to wait for the other nodes, and for confirmations.
const PATIENCE: Duration = Duration::from_secs(20);

/// A command on standard input, which is one line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodeCommand {
    /// Broadcasts the messages `first..first + count`; each to the room whose name is its number modulo `rooms`.
    Burst { first: u64, count: u64, rooms: u64 },
    /// Broadcasts `count` messages like `Burst`, and waits until the broker has confirmed all of them. Answers with the time
    /// in nanoseconds.
    Publish { count: u64, rooms: u64 },
    /// Broadcasts the message `number` to room 0. Answers with the time before the call, that of
    /// [`machine::monotonic_nanos`].
    Broadcast { number: u64 },
    /// Broadcasts a text to a room, whose name contains no space.
    Say { room: String, text: String },
    /// Waits until this node hears as many nodes, itself included. Answers with their number.
    Hear { nodes: u64 },
    /// Uses the rooms `0..rooms`, which keep a history, so that the node reads them. Answers with the number of reads so far.
    Open { rooms: u64 },
    /// Waits until the node has read so many histories. Answers with their number.
    Reads { count: u64 },
    /// Answers with the CPU time in nanoseconds that the broadcasts of `Burst` have used on the thread of the commands.
    Cpu,
}

impl NodeCommand {
    /// Returns the line, with its end.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Burst {
                first,
                count,
                rooms,
            } => format!("burst {first} {count} {rooms}\n"),
            Self::Publish { count, rooms } => format!("publish {count} {rooms}\n"),
            Self::Broadcast { number } => format!("broadcast {number}\n"),
            Self::Say { room, text } => format!("say {room} {text}\n"),
            Self::Hear { nodes } => format!("hear {nodes}\n"),
            Self::Open { rooms } => format!("open {rooms}\n"),
            Self::Reads { count } => format!("reads {count}\n"),
            Self::Cpu => "cpu\n".into(),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        if let Some(said) = line.strip_prefix("say ") {
            let (room, text) = said.split_once(' ')?;
            let (room, text) = (room.into(), text.into());
            return Some(Self::Say { room, text });
        }
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at)?.parse().ok();
        Some(match words[..] {
            ["burst", _, _, _] => Self::Burst {
                first: number(1)?,
                count: number(2)?,
                rooms: number(3)?,
            },
            ["publish", _, _] => Self::Publish {
                count: number(1)?,
                rooms: number(2)?,
            },
            ["broadcast", _] => Self::Broadcast { number: number(1)? },
            ["hear", _] => Self::Hear { nodes: number(1)? },
            ["open", _] => Self::Open { rooms: number(1)? },
            ["reads", _] => Self::Reads { count: number(1)? },
            ["cpu"] => Self::Cpu,
            _ => return None,
        })
    }
}

/// Serves until standard input ends. Prints `READY`, the address and the number of the thread that runs the commands. A
/// child whose app does not start prints `REFUSED` and the reason instead.
pub(crate) fn serve(options: &Options, address: SocketAddrV4) -> io::Result<()> {
    let mut app = AsyncWebsocketApp::<()>::new()
        .with_address(address)
        .with_shards(1)
        .with_limits(Limits::default().outbox_bytes_max(OUTBOX_BYTES_MAX))
        .with_connect_handler(join_rooms_of_path)
        .with_join_handler(|_, _| true);
    if options.flag("history") {
        let limits = HistoryLimits::messages(KEPT_MESSAGES).bytes(KEPT_BYTES);
        app = app.with_history("*", limits);
    }
    if let Some(url) = options.text("cluster") {
        app = with_cluster(app, url)?;
    }
    let running = match app.start() {
        Ok(running) => running,
        Err(error) if options.flag("child") => {
            println!("REFUSED {error}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let Some(bound) = running.local_addr() else {
        return Err(io::Error::other("the node has no address"));
    };
    let thread = rustix::thread::gettid().as_raw_nonzero();
    answer(format_args!("READY {bound} {thread}"))?;
    let mut commands = CommandLoop {
        sender: running.sender(),
        rooms: Vec::new(),
        broadcasting: Duration::ZERO,
    };
    for line in io::stdin().lines() {
        let line = line?;
        let command = NodeCommand::parse(&line)
            .ok_or_else(|| args::invalid(format!("unknown command {line:?}")))?;
        commands.run(command)?;
    }
    Ok(())
}

#[cfg(feature = "cluster")]
fn with_cluster(app: AsyncWebsocketApp<()>, url: &str) -> io::Result<AsyncWebsocketApp<()>> {
    Ok(app.with_cluster(url))
}

#[cfg(not(feature = "cluster"))]
fn with_cluster(_: AsyncWebsocketApp<()>, _: &str) -> io::Result<AsyncWebsocketApp<()>> {
    let text = "--cluster needs a build with --features cluster";
    Err(args::invalid(text.into()))
}

/// Joins the rooms that the path names, as in `/a+b`, and tells the client.
fn join_rooms_of_path(stream: AsyncStream, _: Arc<()>) {
    let rooms = stream.path().trim_start_matches('/');
    if !rooms.is_empty() {
        rooms.split('+').for_each(|room| stream.join(room));
        stream.send(JOINED);
    }
}

/// Prints a line for the process that sends the commands.
pub(crate) fn answer(line: std::fmt::Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Runs the commands.
struct CommandLoop {
    sender: AsyncSender,
    /// Handles of the rooms 0, 1 and so on that were used so far.
    rooms: Vec<Room>,
    broadcasting: Duration,
}

impl CommandLoop {
    fn run(&mut self, command: NodeCommand) -> io::Result<()> {
        match command {
            NodeCommand::Burst {
                first,
                count,
                rooms,
            } => {
                let begun = thread_cpu_time();
                self.broadcast(first, count, rooms);
                self.broadcasting += thread_cpu_time().saturating_sub(begun);
                Ok(())
            }
            NodeCommand::Publish { count, rooms } => {
                let confirmed = self.sender.metrics().cluster.confirmed;
                let begun = Instant::now();
                self.broadcast(0, count, rooms);
                self.wait_for("confirmations", || {
                    self.sender.metrics().cluster.confirmed >= confirmed + count
                })?;
                answer(format_args!("{}", begun.elapsed().as_nanos()))
            }
            NodeCommand::Broadcast { number } => {
                let begun = machine::monotonic_nanos();
                self.broadcast(number, 1, 1);
                answer(format_args!("{begun}"))
            }
            NodeCommand::Say { room, text } => {
                self.sender.room(&room).broadcast(text);
                Ok(())
            }
            NodeCommand::Hear { nodes } => {
                self.wait_for("other nodes", || {
                    self.sender.metrics().cluster.nodes >= nodes
                })?;
                answer(format_args!("{nodes}"))
            }
            NodeCommand::Open { rooms } => {
                self.open(rooms);
                answer(format_args!("{}", self.history_reads()))
            }
            NodeCommand::Reads { count } => {
                self.wait_for("reads of histories", || self.history_reads() >= count)?;
                answer(format_args!("{}", self.history_reads()))
            }
            NodeCommand::Cpu => answer(format_args!("{}", self.broadcasting.as_nanos())),
        }
    }

    fn history_reads(&self) -> u64 {
        self.sender.metrics().cluster.history_reads
    }

    fn open(&self, rooms: u64) {
        thread::scope(|scope| {
            for thread in 0..OPENING_THREADS {
                scope.spawn(move || {
                    for room in (thread..rooms).step_by(OPENING_THREADS as usize) {
                        self.sender.room(&room.to_string()).last_id();
                    }
                });
            }
        });
    }

    fn broadcast(&mut self, first: u64, count: u64, rooms: u64) {
        for room in self.rooms.len() as u64..rooms {
            self.rooms.push(self.sender.room(&room.to_string()));
        }
        for number in first..first + count {
            let room = &self.rooms[(number % rooms) as usize];
            room.broadcast(Message::new_text(text_of(number)));
        }
    }

    /// Waits until something is so, and returns an error after [`PATIENCE`].
    fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) -> io::Result<()> {
        let begun = Instant::now();
        while !is_so() {
            if begun.elapsed() >= PATIENCE {
                let metrics = self.sender.metrics().cluster;
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the node waited {PATIENCE:?} for {what}: {metrics:?}"),
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Returns the text of a message: its number, in hexadecimal digits, and dots up to [`MESSAGE_BYTES`].
fn text_of(number: u64) -> String {
    let digits = wire::hex(number);
    let mut text = String::with_capacity(MESSAGE_BYTES);
    text.push_str(&String::from_utf8_lossy(&digits));
    text.push_str("................");
    text
}

/// Returns the number in a text of [`text_of`].
pub(crate) fn number_of(text: &[u8]) -> Option<u64> {
    let digits = text.get(..16).filter(|_| text.len() == MESSAGE_BYTES)?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// CPU time that the calling thread has used.
fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_survives_its_line() {
        let commands = [
            NodeCommand::Burst {
                first: 1,
                count: 20,
                rooms: 3,
            },
            NodeCommand::Publish { count: 7, rooms: 8 },
            NodeCommand::Broadcast { number: 9 },
            NodeCommand::Say {
                room: "news".into(),
                text: "it rains".into(),
            },
            NodeCommand::Hear { nodes: 2 },
            NodeCommand::Open { rooms: 4 },
            NodeCommand::Reads { count: 5 },
            NodeCommand::Cpu,
        ];
        for command in commands {
            let line = command.line();
            let line = line.strip_suffix('\n').unwrap();
            assert_eq!(NodeCommand::parse(line), Some(command));
        }
        for line in ["", "burst 1 2", "say news", "hear all", "cpu 1"] {
            assert_eq!(NodeCommand::parse(line), None, "{line}");
        }
    }

    #[test]
    fn message_text_contains_its_number() {
        for number in [0, 15, 123_456_789, u64::MAX] {
            let text = text_of(number);
            assert_eq!(text.len(), MESSAGE_BYTES);
            assert_eq!(number_of(text.as_bytes()), Some(number));
        }
        assert_eq!(number_of(JOINED.as_bytes()), None);
    }
}
