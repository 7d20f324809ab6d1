//! `send`: sends the lines of standard input, each as one message.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use humphrey_ws::Message;
use humphrey_ws::websocket_client::{Accepted, Event};

use super::connection::ClientConnection;
use super::end::{End, Outcome};
use super::event_loop::EventLoop;
use super::failures::Failure;
use super::in_flight::{ATTEMPTS_MAX, ConnectionResult, DropReason, InFlight};
use super::line_queue::{LineQueue, NextLine};
use super::options::SendOptions;
use super::pacer::Pacer;
use super::session::{self, ConnectionHandler, Flow};
use crate::diagnostics::report;
use crate::on_message::{ON_MESSAGE_HEADER, OnMessage};
use crate::progress::{Progress, push_count};

/// High-water mark of the write buffer; further lines stay in the queue.
const UNWRITTEN_BYTES_MAX: usize = 64 << 10;

/// How often a turn fills the write buffer.
const FILLS_MAX: usize = 16;

/// Lines of at least this length are sent between two pings, and the following lines wait for the pong, unless a line
/// of about that length was confirmed before. So a server that rejects a line identifies it.
const LONG_BYTES: usize = 4 << 10;

/// How long the following lines wait after the long line was written.
const CONFIRMATION_WAIT: Duration = Duration::from_secs(1);

pub(super) fn run(options: &SendOptions) -> io::Result<ExitCode> {
    let mut event_loop = EventLoop::new()?;
    if io::stdin().is_terminal() && !options.connect.quiet {
        report!("type lines to send them to the server; Ctrl-D exits");
    }
    let mut sender = LineSender {
        input: LineQueue::spawn_reader(event_loop.waker(), options.rate)?,
        pacer: options.rate.map(Pacer::new),
        paced_until: None,
        resend_queue: VecDeque::new(),
        in_flight: InFlight::default(),
        awaited_pong: None,
        pause: Pause::No,
        unconfirmed: 0,
        dropped: 0,
        delivered: 0,
        requires_broadcast: options.require_broadcast,
        progress: progress(options),
        quiet: options.connect.quiet,
        has_warned: false,
        is_rejected: false,
    };
    let outcome = session::run(
        &options.connect,
        options.give_up_after,
        &mut event_loop,
        &mut sender,
    )?;
    Ok(sender.report_result(outcome))
}

/// The progress line; `None` on a terminal where lines are typed, with which it would be mixed.
fn progress(options: &SendOptions) -> Option<Progress> {
    if io::stdin().is_terminal() {
        return None;
    }
    Progress::on_stderr(options.connect.quiet)
}

struct LineSender {
    input: Arc<LineQueue>,
    /// `--rate`; `None` once the program is stopping.
    pacer: Option<Pacer>,
    /// When the next line may be sent, while one is waiting.
    paced_until: Option<Instant>,
    /// Messages to resend, which were not wholly written when a connection ended.
    resend_queue: VecDeque<Message>,
    /// Unconfirmed messages of the current connection.
    in_flight: InFlight,
    /// The number of messages that the pong for the pending ping will confirm.
    awaited_pong: Option<u64>,
    pause: Pause,
    /// Messages written on earlier connections that may not have reached the server.
    unconfirmed: u64,
    /// Messages that were dropped.
    dropped: u64,
    /// Messages that have reached the server, on all connections.
    delivered: u64,
    /// `--require-broadcast`.
    requires_broadcast: bool,
    /// Counts the lines that were sent, once for each.
    progress: Option<Progress>,
    quiet: bool,
    /// Whether the warning about `--on-message` was printed.
    has_warned: bool,
    /// Whether the server does not fulfil `--require-broadcast`.
    is_rejected: bool,
}

/// Whether lines wait for the confirmation of a long one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    No,
    /// Until that many lines are confirmed, or the time has passed and everything is written.
    Until(u64, Instant),
    /// No more on this connection: a confirmation did not arrive in time.
    Never,
}

impl LineSender {
    fn next_message(&mut self) -> NextMessage {
        if let Some(message) = self.resend_queue.pop_front() {
            return NextMessage::Message(message);
        }
        match self.input.pop() {
            NextLine::Line(line) => {
                if let Some(progress) = &self.progress {
                    progress.count(line.len());
                }
                NextMessage::Message(Message::new(line))
            }
            NextLine::Nothing => NextMessage::Nothing,
            NextLine::End => NextMessage::End,
        }
    }

    /// Whether lines have to wait, so that the rate is kept. The end of the input does not wait.
    fn is_paced(&mut self) -> bool {
        let pacer = self.pacer.as_ref();
        let Some(at) = pacer.and_then(|pacer| pacer.wait_until(Instant::now())) else {
            return false;
        };
        if self.resend_queue.is_empty() {
            if self.input.is_drained() {
                return false;
            }
            // The reader wakes the event loop with the next line.
            if self.input.len() == 0 {
                return true;
            }
        }
        self.paced_until = Some(at);
        true
    }

    /// Sends messages until the socket is full, or as many as the rate allows.
    fn send_some(&mut self, connection: &mut ClientConnection) -> Result<Flow, End> {
        // While the write buffer is full, the next line waits for the socket instead.
        self.paced_until = None;
        for _ in 0..FILLS_MAX {
            while connection.unwritten_bytes() < UNWRITTEN_BYTES_MAX {
                if self.is_paused(connection)? || self.is_paced() {
                    return Ok(Flow::Wait);
                }
                match self.next_message() {
                    NextMessage::Message(message) => {
                        self.send(connection, message)?;
                        if let Some(pacer) = &mut self.pacer {
                            pacer.on_sent(Instant::now());
                        }
                    }
                    NextMessage::Nothing => return Ok(Flow::Wait),
                    NextMessage::End => return Ok(Flow::Close),
                }
            }
            connection.write_out()?;
            if connection.unwritten_bytes() > 0 {
                return Ok(Flow::Wait);
            }
        }
        Ok(Flow::Continue)
    }

    fn send(&mut self, connection: &mut ClientConnection, message: Message) -> Result<(), End> {
        let len = message.bytes().len();
        let needs_confirmation =
            self.pause == Pause::No && len >= LONG_BYTES && !self.in_flight.is_known_to_fit(len);
        let pinged = if needs_confirmation {
            self.ping_for_confirmation(connection)
        } else {
            Ok(())
        };
        let begin = connection.bytes_queued();
        // A clone shares the payload.
        match pinged.and_then(|()| connection.send(&message)) {
            Ok(end) => {
                self.in_flight
                    .push(message, begin, end, connection.bytes_written());
                if needs_confirmation {
                    let by = Instant::now() + CONFIRMATION_WAIT;
                    self.pause = Pause::Until(self.in_flight.sent_count(), by);
                    self.ping_for_confirmation(connection)?;
                }
                Ok(())
            }
            Err(end) => {
                self.resend_queue.push_front(message);
                Err(end)
            }
        }
    }

    /// Whether lines have to wait for the confirmation of a long one.
    fn is_paused(&mut self, connection: &mut ClientConnection) -> Result<bool, End> {
        let Pause::Until(number, by) = self.pause else {
            return Ok(false);
        };
        connection.write_out()?;
        let now = Instant::now();
        if self.in_flight.confirmed_count() >= number {
            self.pause = Pause::No;
        } else if now >= by {
            self.pause = match connection.unwritten_bytes() {
                0 => Pause::Never,
                _ => Pause::Until(number, now + CONFIRMATION_WAIT),
            };
        }
        Ok(matches!(self.pause, Pause::Until(..)))
    }

    /// Sends a ping that confirms all lines so far, unless one is pending.
    fn ping_for_confirmation(&mut self, connection: &mut ClientConnection) -> Result<(), End> {
        let sent = self.in_flight.sent_count();
        if self.in_flight.has_unconfirmed() && self.awaited_pong != Some(sent) {
            connection.ping(&sent.to_be_bytes())?;
            self.awaited_pong = Some(sent);
        }
        Ok(())
    }

    /// The number of lines that were read, and that the server has not confirmed. Lines that wait for their time are not
    /// waiting for the server.
    fn waiting(&self) -> u64 {
        let in_flight = self.in_flight.sent_count() - self.in_flight.confirmed_count();
        let unsent = match self.pacer {
            Some(_) => 0,
            None => self.input.len(),
        };
        in_flight + (self.resend_queue.len() + unsent) as u64
    }

    /// Prints how many lines were delivered, and returns the exit code.
    fn report_result(&self, outcome: Outcome) -> ExitCode {
        let plural = |n: u64| if n == 1 { "" } else { "s" };
        let unsent = (self.resend_queue.len() + self.input.len()) as u64;
        let (unconfirmed, dropped, skipped) =
            (self.unconfirmed, self.dropped, self.input.skipped());
        if !self.quiet {
            let n = self.delivered;
            report!("{n} line{} reached the server", plural(n));
        }
        if unconfirmed > 0 {
            report!(
                "{unconfirmed} line{} may be lost: the connection ended before the server confirmed them",
                plural(unconfirmed)
            );
        }
        if unsent > 0 {
            report!("{unsent} line{} could not be sent", plural(unsent));
        }
        let is_complete = unconfirmed + unsent + dropped + skipped == 0 && !self.is_rejected;
        if is_complete && outcome != Outcome::Failed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

enum NextMessage {
    Message(Message),
    Nothing,
    End,
}

impl ConnectionHandler for LineSender {
    const OFFERS: &'static [&'static str] = &[];

    const SERVER_MAY_END: bool = false;

    // The server may still be processing lines; its close frame comes after them.
    const CLOSE_WAIT: Duration = Duration::from_secs(30);
    const CLOSE_WAIT_MAX: Duration = Duration::from_secs(300);

    fn on_open(&mut self, accepted: &Accepted) -> Result<(), End> {
        // Other servers do not send this header.
        let mode = accepted.header(ON_MESSAGE_HEADER);
        if mode == Some(OnMessage::Broadcast.name()) {
            return Ok(());
        }
        let what = match mode {
            Some("ignore") => "ignores messages from clients",
            Some("echo") => "sends lines back only to this program",
            Some(_) => "does not broadcast lines",
            None => "does not say that it broadcasts lines",
        };
        if self.requires_broadcast {
            self.is_rejected = true;
            let why = format!(
                "the server {what}; start humphrey-broadcast with --on-message broadcast, or omit --require-broadcast"
            );
            return Err(End::failed(Failure::NotBroadcasting, why));
        }
        if mode.is_some() && !self.has_warned && !self.quiet {
            self.has_warned = true;
            report!(
                "warning: the server {what}, so other clients do not receive them: start it with --on-message broadcast (--require-broadcast makes this an error)"
            );
        }
        Ok(())
    }

    fn on_event(&mut self, _: &mut ClientConnection, event: Event) -> Result<(), End> {
        if let Event::Pong(payload) = event
            && let Ok(number) = payload.try_into()
        {
            let number = u64::from_be_bytes(number);
            // The pong may answer the previous ping.
            if self.awaited_pong.is_some_and(|asked| number <= asked) {
                self.in_flight.confirm(number);
                self.awaited_pong.take_if(|asked| *asked == number);
            }
        }
        Ok(())
    }

    fn on_turn(
        &mut self,
        connection: &mut ClientConnection,
        is_stopping: bool,
    ) -> Result<Flow, End> {
        if is_stopping {
            self.input.end();
            self.pause = Pause::Never;
            self.pacer = None;
        }
        if connection.is_closing() {
            return Ok(Flow::Wait);
        }
        let flow = self.send_some(connection)?;
        if self.awaited_pong.is_none() {
            self.ping_for_confirmation(connection)?;
        }
        Ok(flow)
    }

    fn deadline(&self) -> Option<Instant> {
        match self.pause {
            Pause::Until(_, by) => Some(by),
            Pause::No | Pause::Never => self.paced_until,
        }
    }

    fn update_progress(&self) -> Option<Instant> {
        self.progress.as_ref()?.update(Instant::now(), |text| {
            let waiting = self.waiting();
            if waiting > 0 {
                text.push_str(", ");
                push_count(text, waiting);
                text.push_str(" waiting for the server");
            }
        })
    }

    fn on_end(&mut self, connection: &ClientConnection, end: &End) {
        let result = match (end, end.failure()) {
            (End::Done, _) => ConnectionResult::Clean,
            (_, Some(Failure::Closed(1009))) => ConnectionResult::TooLong,
            _ => ConnectionResult::Other,
        };
        let report = self.in_flight.end(result, connection.bytes_written());
        self.delivered += report.delivered;
        self.unconfirmed += report.unconfirmed;
        if let Some((bytes, why)) = report.dropped {
            self.dropped += 1;
            match why {
                DropReason::TooLong => report!(
                    "a line of {bytes} bytes is dropped: it is too long for the server (close code 1009)"
                ),
                DropReason::RepeatedlyCut => report!(
                    "a line of {bytes} bytes is dropped: {ATTEMPTS_MAX} connections in a row ended while it was being sent"
                ),
            }
        }
        for message in report.to_resend.into_iter().rev() {
            self.resend_queue.push_front(message);
        }
        (self.awaited_pong, self.pause, self.paced_until) = (None, Pause::No, None);
    }

    fn is_done(&self) -> bool {
        !self.is_rejected
            && self.resend_queue.is_empty()
            && self.in_flight.is_empty()
            && self.input.is_drained()
    }
}
