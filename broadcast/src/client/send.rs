//! `send`: standard input is sent, a line a message.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use humphrey_ws::Message;
use humphrey_ws::websocket_client::{Accepted, Event};

use super::end::{End, Outcome};
use super::failures::Failure;
use super::in_flight::{Dropped, Ending, InFlight};
use super::input::{Input, Next};
use super::link::Link;
use super::options::Send;
use super::session::{self, Flow, Peer};
use super::world::World;
use crate::on_message::{ON_MESSAGE_HEADER, OnMessage};
use crate::say::say;

/// What may wait for the socket: further lines stay where they are.
const UNWRITTEN_BYTES_MAX: usize = 64 << 10;

/// How often that is filled before something else has its turn.
const FILLS_MAX: usize = 16;

/// A line of so many bytes has a ping in front of it and one behind it, unless one about as long has arrived already, and the
/// lines after it wait for the answer: so it is known which line it is that a server does not take.
const LONG_BYTES: usize = 4 << 10;

/// How long they wait once it has left.
const HOLD_WAIT: Duration = Duration::from_secs(1);

pub(super) fn run(options: &Send) -> io::Result<ExitCode> {
    let mut world = World::new()?;
    if io::stdin().is_terminal() && !options.connect.quiet {
        say!("what you type here is sent, line by line; Ctrl-D ends");
    }
    let mut sender = Sender {
        input: Input::read(world.waker())?,
        again: VecDeque::new(),
        in_flight: InFlight::default(),
        asked: None,
        hold: Hold::No,
        doubtful: 0,
        dropped: 0,
        in_all: 0,
        requires_broadcast: options.require_broadcast,
        quiet: options.connect.quiet,
        has_warned: false,
        is_unfit: false,
    };
    let outcome = session::run(
        &options.connect,
        options.give_up_after,
        &mut world,
        &mut sender,
    )?;
    Ok(sender.verdict(outcome))
}

struct Sender {
    input: Arc<Input>,
    /// Messages that had not left whole when a connection ended.
    again: VecDeque<Message>,
    /// Messages on the connection that there is.
    in_flight: InFlight,
    /// A ping behind so many of them awaits its answer, which says that they have arrived.
    asked: Option<u64>,
    hold: Hold,
    /// Messages that had left on earlier connections, and may have reached the server or not.
    doubtful: u64,
    /// Messages that the server does not take.
    dropped: u64,
    /// Messages that have reached the server, on all connections.
    in_all: u64,
    /// The server must say that it hands messages on.
    requires_broadcast: bool,
    quiet: bool,
    /// It was said that the server does not hand messages on.
    has_warned: bool,
    /// The server is not the one that is required.
    is_unfit: bool,
}

/// Whether lines wait for the confirmation of a long one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    No,
    /// Until so many are confirmed, or until then, if all has left by then.
    Until(u64, Instant),
    /// Not on this connection: there was no confirmation in time.
    Never,
}

impl Sender {
    fn next(&mut self) -> Upcoming {
        if let Some(message) = self.again.pop_front() {
            return Upcoming::Message(message);
        }
        match self.input.next() {
            Next::Line(line) => Upcoming::Message(Message::new(line)),
            Next::Nothing => Upcoming::Nothing,
            Next::End => Upcoming::End,
        }
    }

    /// Has as many messages leave as the socket takes.
    fn send_some(&mut self, link: &mut Link) -> Result<Flow, End> {
        for _ in 0..FILLS_MAX {
            while link.unwritten_bytes() < UNWRITTEN_BYTES_MAX {
                if self.holds(link)? {
                    return Ok(Flow::Wait);
                }
                match self.next() {
                    Upcoming::Message(message) => self.send(link, message)?,
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

    fn send(&mut self, link: &mut Link, message: Message) -> Result<(), End> {
        let len = message.bytes().len();
        let is_trial =
            self.hold == Hold::No && len >= LONG_BYTES && !self.in_flight.is_known_to_fit(len);
        let asked = if is_trial { self.ask(link) } else { Ok(()) };
        let begin = link.given();
        // A clone shares the payload.
        match asked.and_then(|()| link.send(&message)) {
            Ok(end) => {
                self.in_flight.push(message, begin, end, link.written());
                if is_trial {
                    let by = Instant::now() + HOLD_WAIT;
                    self.hold = Hold::Until(self.in_flight.given(), by);
                    self.ask(link)?;
                }
                Ok(())
            }
            Err(end) => {
                self.again.push_front(message);
                Err(end)
            }
        }
    }

    /// Whether a long line has to be confirmed first.
    fn holds(&mut self, link: &mut Link) -> Result<bool, End> {
        let Hold::Until(number, by) = self.hold else {
            return Ok(false);
        };
        link.write_out()?;
        let now = Instant::now();
        if self.in_flight.confirmed() >= number {
            self.hold = Hold::No;
        } else if now >= by {
            self.hold = match link.unwritten_bytes() {
                0 => Hold::Never,
                _ => Hold::Until(number, now + HOLD_WAIT),
            };
        }
        Ok(matches!(self.hold, Hold::Until(..)))
    }

    /// Sends a ping behind what was sent, unless one is on its way.
    fn ask(&mut self, link: &mut Link) -> Result<(), End> {
        let given = self.in_flight.given();
        if self.in_flight.has_unconfirmed() && self.asked != Some(given) {
            link.ping(&given.to_be_bytes())?;
            self.asked = Some(given);
        }
        Ok(())
    }

    /// Says what has become of the lines.
    fn verdict(&self, outcome: Outcome) -> ExitCode {
        let plural = |n: u64| if n == 1 { "" } else { "s" };
        let unsent = (self.again.len() + self.input.waiting()) as u64;
        let (doubtful, dropped, skipped) = (self.doubtful, self.dropped, self.input.skipped());
        if !self.quiet {
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
        let is_complete = doubtful + unsent + dropped + skipped == 0 && !self.is_unfit;
        if is_complete && outcome != Outcome::Failed {
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

impl Peer for Sender {
    const OFFERS: &'static [&'static str] = &[];

    const SERVER_MAY_END: bool = false;

    // The server may be busy with all that it was sent, and says goodbye behind that.
    const CLOSE_WAIT: Duration = Duration::from_secs(30);
    const CLOSE_WAIT_MAX: Duration = Duration::from_secs(300);

    fn opened(&mut self, accepted: &Accepted) -> Result<(), End> {
        // Servers that are not ours say nothing of it.
        let mode = accepted.header(ON_MESSAGE_HEADER);
        if mode == Some(OnMessage::Broadcast.name()) {
            return Ok(());
        }
        let what = match mode {
            Some("ignore") => "ignores what it is sent",
            Some("echo") => "sends lines back to this program only",
            Some(_) => "does not hand lines on",
            None => "does not say that it hands lines on",
        };
        if self.requires_broadcast {
            self.is_unfit = true;
            let why = format!(
                "the server {what}; start humphrey-broadcast with --on-message broadcast, or leave --require-broadcast out"
            );
            return Err(End::failed(Failure::NotHandedOn, why));
        }
        if mode.is_some() && !self.has_warned && !self.quiet {
            self.has_warned = true;
            say!(
                "warning: the server {what}, so nobody gets them: start it with --on-message broadcast (see also --require-broadcast)"
            );
        }
        Ok(())
    }

    fn received(&mut self, _: &mut Link, event: Event) -> Result<(), End> {
        if let Event::Pong(payload) = event
            && let Ok(number) = payload.try_into()
        {
            let number = u64::from_be_bytes(number);
            // It may be of the ping before the latest.
            if self.asked.is_some_and(|asked| number <= asked) {
                self.in_flight.confirm(number);
                self.asked.take_if(|asked| *asked == number);
            }
        }
        Ok(())
    }

    fn turn(&mut self, link: &mut Link, is_over: bool) -> Result<Flow, End> {
        if is_over {
            self.input.end();
            self.hold = Hold::Never;
        }
        if link.is_closing() {
            return Ok(Flow::Wait);
        }
        let flow = self.send_some(link)?;
        if self.asked.is_none() {
            self.ask(link)?;
        }
        Ok(flow)
    }

    fn deadline(&self) -> Option<Instant> {
        match self.hold {
            Hold::Until(_, by) => Some(by),
            Hold::No | Hold::Never => None,
        }
    }

    fn lost(&mut self, link: &Link, end: &End) {
        let ending = match (end, end.failure()) {
            (End::Done, _) => Ending::Goodbye,
            (_, Some(Failure::Closed(1009))) => Ending::TooLong,
            _ => Ending::Other,
        };
        let remains = self.in_flight.end(ending, link.written());
        self.in_all += remains.arrived;
        self.doubtful += remains.doubtful;
        if let Some((bytes, why)) = remains.dropped {
            self.dropped += 1;
            match why {
                Dropped::TooLong => say!(
                    "a line of {bytes} bytes is dropped: the server takes none that is so long (it closed with 1009)"
                ),
                Dropped::Stuck => say!(
                    "a line of {bytes} bytes is dropped: one connection after the other has broken while it was being sent"
                ),
            }
        }
        for message in remains.again.into_iter().rev() {
            self.again.push_front(message);
        }
        (self.asked, self.hold) = (None, Hold::No);
    }

    fn is_done(&self) -> bool {
        !self.is_unfit
            && self.again.is_empty()
            && self.in_flight.is_empty()
            && self.input.has_ended()
    }
}
