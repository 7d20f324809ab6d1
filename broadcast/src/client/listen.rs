//! `listen`: what comes is printed.

use std::io::{self, ErrorKind, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use humphrey_ws::websocket_client::{Accepted, Event};

use super::end::{End, Outcome};
use super::link::Link;
use super::options::Listen;
use super::output::{Output, Style};
use super::resume::{Content, Gap, OFFERS, Received, Resume};
use super::session::{self, Flow, Peer};
use super::target::Target;
use super::world::World;
use crate::say::say;
use crate::stdio;

pub(super) fn run(options: &Listen) -> io::Result<ExitCode> {
    let mut world = World::new()?;
    world.watch_output();
    let style = match options.json {
        true => Style::Json,
        false if io::stdout().is_terminal() => Style::Terminal,
        false => Style::Lines,
    };
    let mut listener = Listener {
        output: Output::new(stdio::Output, style),
        left: options.count.map(u64::from),
        resume: Resume::default(),
        quiet: options.connect.quiet,
        output_is_closed: false,
        failure: None,
    };
    let outcome = session::run(
        &options.connect,
        options.give_up_after,
        &mut world,
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
    output: Output<stdio::Output>,
    /// Messages that are wanted yet; `None`: all.
    left: Option<u64>,
    resume: Resume,
    quiet: bool,
    /// Nobody reads it any more.
    output_is_closed: bool,
    /// Standard output can't be written.
    failure: Option<io::Error>,
}

impl Listener {
    fn print(&mut self, received: &Received) {
        if self.is_done() {
            return;
        }
        match self.output.print(received) {
            Ok(true) => {
                self.left = self.left.map(|n| n - 1);
            }
            Ok(false) => {
                if let Content::Omitted { bytes } = received.content {
                    say!("a message of {bytes} bytes is left out by the server: it is too long");
                }
            }
            Err(error) => self.failed(error),
        }
    }

    fn flush(&mut self) {
        if !self.output_is_closed
            && self.failure.is_none()
            && let Err(error) = self.output.flush()
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

    fn say_gap(&self, gap: Gap) {
        if self.quiet {
            return;
        }
        match gap {
            Gap::Restarted => {
                say!("the server was started anew: what it had sent last may be missing");
            }
            Gap::TooLong => say!("messages are missing: the server keeps them no longer"),
            Gap::Plain => say!("what was sent meanwhile may be missing"),
        }
    }
}

impl Peer for Listener {
    const OFFERS: &'static [&'static str] = OFFERS;

    const SERVER_MAY_END: bool = true;

    const CLOSE_WAIT: Duration = Duration::from_secs(2);
    // Nothing is to be had of it any more.
    const CLOSE_WAIT_MAX: Duration = Self::CLOSE_WAIT;

    fn target(&self, target: &Target) -> Target {
        self.resume.target(target)
    }

    fn opened(&mut self, accepted: &Accepted) -> Result<(), End> {
        if let Some(gap) = self.resume.opened(accepted.subprotocol()) {
            self.say_gap(gap);
        }
        Ok(())
    }

    fn received(&mut self, _: &mut Link, event: Event) -> Result<(), End> {
        let Event::Message(message) = event else {
            return Ok(());
        };
        let received = match message.text() {
            Some(text) => match self.resume.read(text.to_owned()) {
                Ok(Some(received)) => received,
                Ok(None) => return Ok(()),
                Err(gap) => {
                    self.say_gap(gap);
                    return Ok(());
                }
            },
            None => Received::plain(Content::Binary(message.bytes().to_vec())),
        };
        self.print(&received);
        Ok(())
    }

    fn turn(&mut self, _: &mut Link, is_over: bool) -> Result<Flow, End> {
        self.flush();
        Ok(if is_over || self.is_done() {
            Flow::Finish
        } else {
            Flow::Wait
        })
    }

    fn lost(&mut self, _: &Link, _: &End) {
        self.flush();
        self.resume.lost();
    }

    fn is_done(&self) -> bool {
        self.left == Some(0) || self.output_is_closed || self.failure.is_some()
    }
}
