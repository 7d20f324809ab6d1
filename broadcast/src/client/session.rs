//! A peer stays connected: what is done on a connection, and after its end.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use tungstenite::Message;

use super::dial::dial;
use super::handshake::Request;
use super::link::Link;
use super::options::{Connect, seconds};
use super::retry::Retry;
use super::target::Target;
use super::world::World;
use crate::say::say;

/// Messages that are read before something else has its turn.
const TURN_MESSAGES_MAX: usize = 256;

/// Messages that are read from a connection that can't be written any more: what a socket holds, mostly.
const LAST_MESSAGES_MAX: usize = 100_000;

/// Who talks on a connection.
pub(super) trait Peer {
    /// The subprotocols that it would like.
    const OFFERS: &'static [&'static str];

    /// Whether a server that closes with 1000 says that all is done.
    const SERVER_MAY_END: bool;

    /// How long the server may be silent once it has been told that this is the end.
    const CLOSE_WAIT: Duration;

    /// What it asks for.
    fn request_target(&self, target: &Target) -> String {
        target.request_target()
    }

    /// There is a connection.
    fn opened(&mut self, subprotocol: Option<&str>);

    /// A message has come.
    fn received(&mut self, link: &mut Link, message: Message) -> Result<(), End>;

    /// What has come, has been handed over: its turn. `is_over`: all is to end.
    fn turn(&mut self, link: &mut Link, is_over: bool) -> Result<Flow, End>;

    /// The connection is over.
    fn lost(&mut self, link: &Link, end: &End);

    /// Nothing remains to be done.
    fn is_done(&self) -> bool;
}

/// How to go on after a peer's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// With what comes.
    Wait,
    /// At once: it has more to do.
    Again,
    /// With a goodbye.
    Finish,
}

/// Why a connection is over, or could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The peer has said goodbye, and the server too.
    Done,
    /// All is to end.
    Stopped,
    /// The server has closed it.
    Closed { code: u16, reason: String },
    /// It has broken, or could not be made.
    Lost(String),
    /// The server has answered the handshake with another status.
    Refused {
        status: u16,
        says: String,
        retry_after: Duration,
    },
    /// Whoever has answered is no WebSocket server.
    Foreign(String),
}

/// How all of it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All is done.
    Done,
    /// A signal came, or nobody reads the output.
    Stopped,
    /// There is no connection, and there will be none. It has been said.
    Failed,
}

/// What follows an end.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Stop(Outcome),
    /// The end, if the server may say so.
    ServerEnds,
    /// Another attempt; `later` if the server has asked for time, and not before so long.
    Again {
        later: bool,
        at_least: Duration,
    },
}

impl End {
    fn next(&self) -> Next {
        let again = |later, at_least| Next::Again { later, at_least };
        match *self {
            Self::Done => Next::Stop(Outcome::Done),
            Self::Stopped => Next::Stop(Outcome::Stopped),
            Self::Closed { code: 1000, .. } => Next::ServerEnds,
            Self::Closed { code: 1008, .. } | Self::Foreign(_) => Next::Stop(Outcome::Failed),
            Self::Closed { code, .. } => again(code == 1013, Duration::ZERO),
            Self::Lost(_) => again(false, Duration::ZERO),
            Self::Refused {
                status,
                retry_after,
                ..
            } => match status {
                429 | 503 => again(true, retry_after),
                // Of a proxy whose server is not there, mostly.
                408 | 425 | 500 | 502 | 504 => again(false, retry_after),
                _ => Next::Stop(Outcome::Failed),
            },
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done | Self::Stopped => f.write_str("this is the end"),
            Self::Closed { code: 1005, .. } => {
                f.write_str("the server has closed the connection without a code")
            }
            Self::Closed { code, reason } => {
                write!(f, "the server has closed the connection with {code}")?;
                if reason.is_empty() {
                    return Ok(());
                }
                write!(f, " ({reason})")
            }
            Self::Lost(why) => f.write_str(why),
            Self::Refused { status, says, .. } if says.is_empty() => {
                write!(f, "the server answers {status}")
            }
            Self::Refused { status, says, .. } => write!(f, "the server answers {status}: {says}"),
            Self::Foreign(why) => write!(f, "this is no WebSocket server: {why}"),
        }
    }
}

/// Stays connected until the peer is done, or there is no use in going on.
pub(super) fn run<P: Peer>(
    connect: &Connect,
    give_up_after: u32,
    world: &mut World,
    peer: &mut P,
) -> io::Result<Outcome> {
    let target = connect.target();
    let mut retry = Retry::new(Duration::from_secs(connect.max_delay.get().into()));
    let give_up_after = seconds(give_up_after);
    let mut offers = P::OFFERS;
    let mut alone_since = Instant::now();
    loop {
        let asked = peer.request_target(&target);
        let request = Request::new(&target.authority, &asked, offers, &connect.header);
        let end = match dial(world, &target, &request) {
            Ok(opened) => {
                if !connect.quiet {
                    say!("connected to {target}");
                }
                let begun = Instant::now();
                peer.opened(opened.subprotocol);
                let mut link = Link::new(opened, seconds(connect.heartbeat));
                let end = talk(world, &mut link, peer);
                peer.lost(&link, &end);
                alone_since = Instant::now();
                retry.had(begun.elapsed());
                end
            }
            // Some servers take no handshake that offers what they do not know.
            Err(End::Refused { status: 400, .. }) if !offers.is_empty() => {
                offers = &[];
                continue;
            }
            Err(end) => end,
        };
        if peer.is_done() {
            return Ok(Outcome::Done);
        }
        if world.is_over() {
            return Ok(Outcome::Stopped);
        }
        let (later, at_least) = match end.next() {
            Next::ServerEnds if P::SERVER_MAY_END => {
                if !connect.quiet {
                    say!("{end}");
                }
                return Ok(Outcome::Done);
            }
            Next::ServerEnds | Next::Stop(Outcome::Failed) => {
                say!("{end}");
                return Ok(Outcome::Failed);
            }
            Next::Stop(outcome) => return Ok(outcome),
            Next::Again { .. } if connect.no_reconnect => {
                say!("{end}");
                return Ok(Outcome::Failed);
            }
            Next::Again { later, at_least } => (later, at_least),
        };
        let mut delay = retry.delay(later).max(at_least);
        if let Some(after) = give_up_after {
            let left = after.saturating_sub(alone_since.elapsed());
            if left.is_zero() {
                say!("{end}; given up");
                return Ok(Outcome::Failed);
            }
            delay = delay.min(left);
        }
        if !connect.quiet {
            say!("{end}; again in {:.1} s", delay.as_secs_f64());
        }
        let until = Instant::now() + delay;
        while Instant::now() < until {
            if world.is_over() {
                return Ok(Outcome::Stopped);
            }
            world.wait(Some(until))?;
        }
    }
}

/// Talks on a connection to its end.
fn talk<P: Peer>(world: &mut World, link: &mut Link, peer: &mut P) -> End {
    loop {
        match turn(world, link, peer) {
            Ok(until) => {
                if let Err(error) = world.wait(until) {
                    return End::Lost(error.to_string());
                }
            }
            Err(end) => return end,
        }
        if world.is_late() {
            return End::Stopped;
        }
    }
}

/// Reads what has come, and does what there is to do. Returns until when to wait for more.
fn turn<P: Peer>(world: &World, link: &mut Link, peer: &mut P) -> Result<Option<Instant>, End> {
    let mut has_more = true;
    for _ in 0..TURN_MESSAGES_MAX {
        match link.read()? {
            Some(message) => peer.received(link, message)?,
            None => {
                has_more = false;
                break;
            }
        }
    }
    match act(world, link, peer) {
        Ok(again) => has_more |= again,
        Err(end) => return Err(last_words(link, peer).unwrap_or(end)),
    }
    // What has come is read before the server is judged by its silence.
    if has_more {
        return Ok(Some(Instant::now()));
    }
    link.deadline(P::CLOSE_WAIT)
}

/// What the peer and the link have to send. Returns whether there is more.
fn act<P: Peer>(world: &World, link: &mut Link, peer: &mut P) -> Result<bool, End> {
    let flow = peer.turn(link, world.is_over())?;
    if flow == Flow::Finish && !link.is_closing() {
        link.close()?;
    }
    link.write_out()?;
    Ok(flow == Flow::Again)
}

/// Where nothing can be written any more, the server may still have said why it has gone, and what it has got.
fn last_words<P: Peer>(link: &mut Link, peer: &mut P) -> Option<End> {
    for _ in 0..LAST_MESSAGES_MAX {
        match link.read() {
            Ok(Some(message)) => peer.received(link, message).ok()?,
            Ok(None) => return None,
            Err(end @ (End::Closed { .. } | End::Done)) => return Some(end),
            Err(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(code: u16) -> Next {
        let reason = String::new();
        End::Closed { code, reason }.next()
    }

    fn refused(status: u16) -> Next {
        let end = End::Refused {
            status,
            says: String::new(),
            retry_after: Duration::from_secs(3),
        };
        end.next()
    }

    #[test]
    fn close_codes_say_whether_to_come_back() {
        let again = |later| Next::Again {
            later,
            at_least: Duration::ZERO,
        };
        assert_eq!(closed(1000), Next::ServerEnds);
        assert_eq!(closed(1008), Next::Stop(Outcome::Failed));
        assert_eq!(closed(1013), again(true));
        for code in [1001, 1005, 1009, 1011, 1012, 4000] {
            assert_eq!(closed(code), again(false), "{code}");
        }
    }

    #[test]
    fn a_refusal_that_may_pass_is_met_with_another_attempt() {
        let again = |later| Next::Again {
            later,
            at_least: Duration::from_secs(3),
        };
        for status in [429, 503] {
            assert_eq!(refused(status), again(true), "{status}");
        }
        assert_eq!(refused(502), again(false));
        for status in [200, 301, 400, 401, 403, 404, 426] {
            assert_eq!(refused(status), Next::Stop(Outcome::Failed), "{status}");
        }
    }

    #[test]
    fn an_end_is_said_in_a_few_words() {
        let closed = |code, reason: &str| {
            let reason = reason.to_owned();
            End::Closed { code, reason }.to_string()
        };
        assert!(closed(1001, "").ends_with("with 1001"));
        assert!(closed(1008, "no").ends_with("with 1008 (no)"));
        assert!(closed(1005, "").ends_with("without a code"));
    }
}
