//! `listen`: prints the messages of the server.

use std::io::{self, ErrorKind, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use humphrey_ws::websocket_client::{Accepted, Event};

use super::connection::ClientConnection;
use super::end::{End, Outcome};
use super::event_loop::EventLoop;
use super::options::ListenOptions;
use super::printer::{OutputFormat, Printer};
use super::resume::{Content, Gap, OFFERS, ReceivedMessage, ResumeState};
use super::session::{self, ConnectionHandler, Flow};
use super::target::Target;
use crate::diagnostics::report;
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
        resume: ResumeState::default(),
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

struct Listener {
    printer: Printer<stdio::StandardOutput>,
    /// Messages still to print; `None`: no limit.
    left: Option<u64>,
    resume: ResumeState,
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
        Ok(if is_stopping || self.is_done() {
            Flow::Close
        } else {
            Flow::Wait
        })
    }

    fn on_end(&mut self, _: &ClientConnection, _: &End) {
        self.flush();
        self.resume.on_end();
    }

    fn is_done(&self) -> bool {
        self.left == Some(0) || self.output_is_closed || self.failure.is_some()
    }
}
