//! `send`: standard input is sent, a line a message.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tungstenite::{Bytes, Message};

use super::input::{Input, Next};
use super::link::Link;
use super::options::Send;
use super::session::{self, End, Flow, Outcome, Peer};
use super::world::World;
use crate::say::say;

/// What may wait for the socket: further lines stay where they are.
const UNWRITTEN_BYTES_MAX: usize = 64 << 10;

/// How often that is filled before something else has its turn.
const FILLS_MAX: usize = 16;

pub(super) fn run(options: &Send) -> io::Result<ExitCode> {
    let mut world = World::new()?;
    if io::stdin().is_terminal() && !options.connect.quiet {
        say!("what you type here is sent, line by line; Ctrl-D ends");
    }
    let mut sender = Sender {
        input: Input::read(world.waker())?,
        again: VecDeque::new(),
        leaving: VecDeque::new(),
        left: 0,
        arrived: 0,
        asked: None,
        doubtful: 0,
        in_all: 0,
    };
    let outcome = session::run(
        &options.connect,
        options.give_up_after,
        &mut world,
        &mut sender,
    )?;
    Ok(sender.verdict(outcome, options.connect.quiet))
}

struct Sender {
    input: Arc<Input>,
    /// Messages that had not left whole when a connection ended.
    again: VecDeque<Message>,
    /// Messages that are leaving: how many bytes will have left once they have.
    leaving: VecDeque<(u64, Message)>,
    /// Messages that have left on this connection.
    left: u64,
    /// Those that are known to have reached the server.
    arrived: u64,
    /// A ping behind so many of them awaits its answer, which says that they have arrived.
    asked: Option<u64>,
    /// Messages that had left on earlier connections, and may have reached the server or not.
    doubtful: u64,
    /// Messages that have reached the server, on all connections.
    in_all: u64,
}

impl Sender {
    fn next(&mut self) -> Upcoming {
        if let Some(message) = self.again.pop_front() {
            return Upcoming::Message(message);
        }
        match self.input.next() {
            Next::Line(line) => Upcoming::Message(message(line)),
            Next::Nothing => Upcoming::Nothing,
            Next::End => Upcoming::End,
        }
    }

    /// Has as many messages leave as the socket takes.
    fn send_some(&mut self, link: &mut Link) -> Result<Flow, End> {
        for _ in 0..FILLS_MAX {
            while link.unwritten_bytes() < UNWRITTEN_BYTES_MAX {
                match self.next() {
                    Upcoming::Message(message) => {
                        // A clone shares the payload.
                        let end = link.send(message.clone());
                        match end {
                            Ok(end) => self.leaving.push_back((end, message)),
                            Err(end) => {
                                self.again.push_front(message);
                                return Err(end);
                            }
                        }
                    }
                    Upcoming::Nothing => return Ok(Flow::Wait),
                    Upcoming::End => return Ok(Flow::Finish),
                }
            }
            link.write_out()?;
            if link.unwritten_bytes() > 0 {
                return Ok(Flow::Wait);
            }
        }
        Ok(Flow::Again)
    }

    fn count_left(&mut self, link: &Link) {
        while let Some((end, _)) = self.leaving.front()
            && *end <= link.written()
        {
            self.leaving.pop_front();
            self.left += 1;
        }
    }

    /// Says what has become of the lines.
    fn verdict(&self, outcome: Outcome, quiet: bool) -> ExitCode {
        let plural = |n: u64| if n == 1 { "" } else { "s" };
        let unsent = (self.again.len() + self.input.waiting()) as u64;
        let (doubtful, skipped) = (self.doubtful, self.input.skipped());
        if !quiet {
            let n = self.in_all;
            say!("{n} line{} reached the server", plural(n));
        }
        if doubtful > 0 {
            say!(
                "{doubtful} line{} may be lost: the connection ended before the server had confirmed them",
                plural(doubtful)
            );
        }
        if unsent > 0 {
            say!(
                "{unsent} line{} that had been read could not be sent",
                plural(unsent)
            );
        }
        if doubtful + unsent + skipped == 0 && outcome != Outcome::Failed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

enum Upcoming {
    Message(Message),
    Nothing,
    End,
}

fn message(line: Vec<u8>) -> Message {
    match String::from_utf8(line) {
        Ok(text) => Message::text(text),
        Err(error) => Message::binary(error.into_bytes()),
    }
}

impl Peer for Sender {
    const OFFERS: &'static [&'static str] = &[];

    const SERVER_MAY_END: bool = false;

    // The server may be busy with all that it was sent, and says goodbye behind that.
    const CLOSE_WAIT: Duration = Duration::from_secs(30);

    fn opened(&mut self, _: Option<&str>) {}

    fn received(&mut self, _: &mut Link, message: Message) -> Result<(), End> {
        if let Message::Pong(payload) = message
            && let Ok(number) = payload.as_ref().try_into()
            && let number = u64::from_be_bytes(number)
            && self.asked == Some(number)
        {
            self.arrived = number;
            self.asked = None;
        }
        Ok(())
    }

    fn turn(&mut self, link: &mut Link, is_over: bool) -> Result<Flow, End> {
        if is_over {
            self.input.end();
        }
        if link.is_closing() {
            return Ok(Flow::Wait);
        }
        let flow = self.send_some(link)?;
        self.count_left(link);
        let taken = self.left + self.leaving.len() as u64;
        if self.asked.is_none() && taken > self.arrived {
            let number = taken.to_be_bytes();
            link.send(Message::Ping(Bytes::copy_from_slice(&number)))?;
            self.asked = Some(taken);
        }
        Ok(flow)
    }

    fn lost(&mut self, link: &Link, end: &End) {
        self.count_left(link);
        if *end == End::Done {
            self.arrived = self.left;
        }
        self.doubtful += self.left - self.arrived;
        self.in_all += self.arrived;
        let unsent = self.leaving.drain(..).map(|(_, message)| message);
        for message in unsent.rev() {
            self.again.push_front(message);
        }
        (self.left, self.arrived, self.asked) = (0, 0, None);
    }

    fn is_done(&self) -> bool {
        self.again.is_empty() && self.leaving.is_empty() && self.input.has_ended()
    }
}
