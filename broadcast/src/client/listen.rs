//! `listen`: prints the messages of the server.

use std::io::{self, ErrorKind, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use humphrey_ws::Message;
use humphrey_ws::websocket_client::{Accepted, Event};

use super::connection::ClientConnection;
use super::end::{End, Outcome};
use super::event_loop::EventLoop;
use super::options::ListenOptions;
use super::printer::{OutputFormat, Printer};
use super::resume::{Content, Gap, OFFERS, ReceivedMessage, ResumeState};
use super::session::{self, ConnectionHandler, Flow};
use super::since::Since;
use super::skips::SkipReport;
use super::target::Target;
use crate::diagnostics::report;
use crate::on_message::ON_MESSAGE_HEADER;
use crate::progress::Progress;
use crate::stdio;

pub(super) fn run(options: &ListenOptions) -> io::Result<ExitCode> {
    let mut event_loop = EventLoop::new()?;
    event_loop.watch_output();
    let style = match options.json {
        true => OutputFormat::Json,
        false if io::stdout().is_terminal() => OutputFormat::Terminal,
        false => OutputFormat::Lines,
    };
    let mut listener = Listener {
        printer: Printer::new(stdio::StandardOutput, style),
        left: options.count.map(u64::from),
        first_lines: options.first.iter().map(Message::new_text).collect(),
        since: options.since,
        resume: ResumeState::new(options.since),
        skips: SkipReport::default(),
        progress: progress(options),
        quiet: options.connect.quiet,
        output_is_closed: false,
        failure: None,
    };
    let outcome = session::run(
        &options.connect,
        options.give_up_after,
        &mut event_loop,
        &mut listener,
    )?;
    if let Some(error) = listener.failure {
        return Err(error);
    }
    Ok(match outcome {
        Outcome::Done | Outcome::Stopped => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::FAILURE,
    })
}

/// The progress line, unless it would be mixed with the output: on a terminal, or in a pipe, whose reader may print to the same
/// terminal.
fn progress(options: &ListenOptions) -> Option<Progress> {
    if io::stdout().is_terminal() || (stdio::is_output_piped() && !options.progress) {
        return None;
    }
    Progress::on_stderr(options.connect.quiet)
}

struct Listener {
    printer: Printer<stdio::StandardOutput>,
    /// Messages still to print; `None`: no limit.
    left: Option<u64>,
    /// The lines that are sent on each connection (`--first`).
    first_lines: Vec<Message>,
    /// `--since`, until the first connection.
    since: Option<Since>,
    resume: ResumeState,
    skips: SkipReport,
    progress: Option<Progress>,
    quiet: bool,
    /// The reader of standard output has closed it.
    output_is_closed: bool,
    /// Standard output cannot be written.
    failure: Option<io::Error>,
}

impl Listener {
    fn print(&mut self, received: &ReceivedMessage) {
        if self.is_done() {
            return;
        }
        match self.printer.print(received) {
            Ok(true) => {
                self.left = self.left.map(|n| n - 1);
                if let Some(progress) = &self.progress {
                    progress.count(received.content.len());
                }
            }
            Ok(false) => {
                if let Content::Omitted { bytes } = received.content {
                    report!(
                        "the server omitted a message of {bytes} bytes: it is too long for the JSON form, which --history uses"
                    );
                }
            }
            Err(error) => self.failed(error),
        }
    }

    fn flush(&mut self) {
        if !self.output_is_closed
            && self.failure.is_none()
            && let Err(error) = self.printer.flush()
        {
            self.failed(error);
        }
    }

    fn failed(&mut self, error: io::Error) {
        if error.kind() == ErrorKind::BrokenPipe {
            self.output_is_closed = true;
        } else {
            let why = format!("standard output can't be written: {error}");
            self.failure = Some(io::Error::new(error.kind(), why));
        }
    }

    fn report_gap(&self, gap: Gap) {
        if self.quiet {
            return;
        }
        match gap {
            Gap::Restarted => {
                report!(
                    "the server was restarted: messages sent before the restart may be missing"
                );
            }
            Gap::HistoryExceeded => {
                report!(
                    "messages are missing: they are no longer in the server's history (a larger --history keeps more)"
                )
            }
            Gap::Unknown => report!(
                "messages sent in the meantime may be missing: the server keeps no history (see its --history)"
            ),
            Gap::NoPosition => report!(
                "messages sent in the meantime may be missing: the connection ended before the server named its last message"
            ),
            Gap::UnknownId => report!(
                "messages are missing: the server does not know the id of --since, since it was restarted, or the id is from another room"
            ),
        }
    }

    /// Reports that the server does not support `--since`.
    fn report_unsupported(&self, since: Since, is_humphrey_broadcast: bool) {
        match since {
            _ if self.quiet => {}
            _ if !is_humphrey_broadcast => report!(
                "--since has no effect: the server is not a humphrey-broadcast, whose messages have ids"
            ),
            // Without a history, all messages are new ones.
            Since::Now => {}
            Since::All => {
                report!(
                    "only new messages are printed: the server keeps no history (see its --history)"
                )
            }
            Since::After(_) | Since::AfterEach { .. } => self.report_gap(Gap::Unknown),
        }
    }

    fn report_skipped(&self, skipped: Option<u64>) {
        match skipped {
            Some(1) if !self.quiet => {
                report!("1 message was skipped: this client reads too slowly");
            }
            Some(n) if !self.quiet => {
                report!("{n} messages were skipped: this client reads too slowly");
            }
            _ => {}
        }
    }
}

impl ConnectionHandler for Listener {
    const OFFERS: &'static [&'static str] = OFFERS;

    const SERVER_MAY_END: bool = true;

    const CLOSE_WAIT: Duration = Duration::from_secs(2);
    // Messages after the close frame are not printed, so there is nothing to wait for.
    const CLOSE_WAIT_MAX: Duration = Self::CLOSE_WAIT;

    fn target(&self, target: &Target) -> Target {
        self.resume.target(target)
    }

    fn on_open(&mut self, accepted: &Accepted) -> Result<(), End> {
        if let Some(gap) = self.resume.on_open(accepted.subprotocol()) {
            self.report_gap(gap);
        }
        if let Some(since) = self.since.take()
            && !self.resume.is_resumable()
        {
            let is_humphrey_broadcast = accepted.header(ON_MESSAGE_HEADER).is_some();
            self.report_unsupported(since, is_humphrey_broadcast);
        }
        Ok(())
    }

    fn begin(&mut self, connection: &mut ClientConnection) -> Result<(), End> {
        for line in &self.first_lines {
            connection.send(line)?;
        }
        Ok(())
    }

    fn on_event(&mut self, _: &mut ClientConnection, event: Event) -> Result<(), End> {
        let Event::Message(message) = event else {
            return Ok(());
        };
        let received = match message.text() {
            Some(text) => match self.resume.read(text.to_owned()) {
                Ok(Some(received)) => received,
                Ok(None) => return Ok(()),
                Err(gap) => {
                    self.report_gap(gap);
                    return Ok(());
                }
            },
            None => ReceivedMessage::plain(Content::Binary(message.bytes().to_vec())),
        };
        self.print(&received);
        Ok(())
    }

    fn on_turn(&mut self, _: &mut ClientConnection, is_stopping: bool) -> Result<Flow, End> {
        self.flush();
        let skipped = self.resume.take_skipped();
        if skipped > 0 || self.skips.due().is_some() {
            let now = Instant::now();
            self.skips.add(skipped, now);
            let due = self.skips.take_due(now);
            self.report_skipped(due);
        }
        Ok(if is_stopping || self.is_done() {
            Flow::Close
        } else {
            Flow::Wait
        })
    }

    fn deadline(&self) -> Option<Instant> {
        self.skips.due()
    }

    fn on_end(&mut self, _: &ClientConnection, _: &End) {
        self.flush();
        self.skips.add(self.resume.take_skipped(), Instant::now());
        let skipped = self.skips.take();
        self.report_skipped(skipped);
        self.resume.on_end();
    }

    fn update_progress(&self) -> Option<Instant> {
        self.progress.as_ref()?.update(Instant::now(), |_| {})
    }

    fn is_done(&self) -> bool {
        self.left == Some(0) || self.output_is_closed || self.failure.is_some()
    }
}
