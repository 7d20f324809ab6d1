//! A peer stays connected: what is done on a connection, and after its end.

use std::io;
use std::time::{Duration, Instant};

use humphrey_ws::websocket_client::{Accepted, Event};

use super::dial::dial;
use super::end::{End, NextStep, Outcome};
use super::failures::{Failure, Then};
use super::link::Link;
use super::options::{Connect, seconds};
use super::retry::Retry;
use super::target::Target;
use super::world::World;
use crate::on_message::ON_MESSAGE_HEADER;
use crate::say::say;

/// Turns in which a connection is read that can't be written any more: what a socket holds, mostly.
const LAST_TURNS_MAX: usize = 400;

/// Who talks on a connection.
pub(super) trait Peer {
    /// The subprotocols that it would like, unless the user names others.
    const OFFERS: &'static [&'static str];

    /// Whether a server that closes with 1000 says that all is done.
    const SERVER_MAY_END: bool;

    /// How long the server may be silent once it has been told that this is the end.
    const CLOSE_WAIT: Duration;

    /// How long it may take to answer that, since all has left, if it is not silent but says other things.
    const CLOSE_WAIT_MAX: Duration;

    /// What it asks for.
    fn target(&self, target: &Target) -> Target {
        target.clone()
    }

    /// There is a connection. An error ends it: it is not what is wanted.
    fn opened(&mut self, accepted: &Accepted) -> Result<(), End>;

    /// A message or a pong has come.
    fn received(&mut self, link: &mut Link, event: Event) -> Result<(), End>;

    /// What has come, has been handed over: its turn. `is_over`: all is to end.
    fn turn(&mut self, link: &mut Link, is_over: bool) -> Result<Flow, End>;

    /// When it wants its next turn, if nothing happens before.
    fn deadline(&self) -> Option<Instant> {
        None
    }

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

/// Which of a peer's own subprotocols are offered. Some servers refuse a handshake that offers what they do not know, with 400,
/// or hang up: they are asked again without offers, and always so once that has helped.
#[derive(Debug)]
struct Offers {
    wanted: &'static [&'static str],
    state: Offering,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offering {
    With,
    /// Once without, as the last attempt has failed in a way that may be due to them.
    OnceWithout,
    /// The server is known to take no offers.
    Without,
}

impl Offers {
    const fn new(wanted: &'static [&'static str]) -> Self {
        Self {
            wanted,
            state: Offering::With,
        }
    }

    const fn now(&self) -> &'static [&'static str] {
        match self.state {
            Offering::With => self.wanted,
            Offering::OnceWithout | Offering::Without => &[],
        }
    }

    /// A handshake was accepted; whether by a humphrey-broadcast, which knows the offers: something else was wrong with it then.
    fn accepted(&mut self, is_humphrey_broadcast: bool) {
        if self.state == Offering::OnceWithout {
            self.state = if is_humphrey_broadcast {
                Offering::With
            } else {
                Offering::Without
            };
        }
    }

    /// A handshake has failed. Returns whether to try again at once, without offers.
    fn failed(&mut self, failure: Option<Failure>) -> bool {
        let is_due_to_them = matches!(failure, Some(Failure::Status(400) | Failure::HungUp));
        match self.state {
            Offering::With if is_due_to_them && !self.wanted.is_empty() => {
                self.state = Offering::OnceWithout;
                true
            }
            Offering::OnceWithout => {
                self.state = Offering::With;
                false
            }
            Offering::With | Offering::Without => false,
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
    let names_own = !connect.subprotocols().is_empty();
    let mut offers = Offers::new(if names_own { &[] } else { P::OFFERS });
    let mut alone_since = Instant::now();
    loop {
        let request = connect
            .request(&peer.target(&target), offers.now())
            .map_err(io::Error::other)?;
        let end = match dial(world, &request) {
            Ok(opened) => {
                if !connect.quiet {
                    say!("connected to {target}");
                }
                offers.accepted(opened.accepted.header(ON_MESSAGE_HEADER).is_some());
                let begun = Instant::now();
                let wanted = peer.opened(&opened.accepted);
                let mut link = Link::new(opened, seconds(connect.heartbeat));
                let end = match wanted {
                    Ok(()) => talk(world, &mut link, peer),
                    Err(end) => leave(&mut link, end),
                };
                peer.lost(&link, &end);
                if retry.had(begun.elapsed(), link.has_received()) {
                    alone_since = Instant::now();
                }
                end
            }
            Err(end) if offers.failed(end.failure()) => continue,
            Err(end) => end,
        };
        if peer.is_done() {
            return Ok(Outcome::Done);
        }
        if world.is_over() {
            return Ok(Outcome::Stopped);
        }
        let (later, at_least) = match next::<P>(&end, connect) {
            NextStep::Again { later, at_least } => (later, at_least),
            NextStep::Stop(outcome) => return Ok(outcome),
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

/// Goes by the table of failures, and says why it stops.
fn next<P: Peer>(end: &End, connect: &Connect) -> NextStep {
    let (failure, at_least) = match end {
        End::Done => return NextStep::Stop(Outcome::Done),
        End::Stopped => return NextStep::Stop(Outcome::Stopped),
        End::Failed {
            failure,
            retry_after,
            ..
        } => (failure, *retry_after),
    };
    let then = failure.row().then;
    match then {
        Then::Ends if P::SERVER_MAY_END => {
            if !connect.quiet {
                say!("{end}");
            }
            NextStep::Stop(Outcome::Done)
        }
        Then::Again | Then::Later if !connect.no_reconnect => NextStep::Again {
            later: then == Then::Later,
            at_least,
        },
        Then::Again | Then::Later | Then::Ends | Then::Never => {
            say!("{end}");
            NextStep::Stop(Outcome::Failed)
        }
    }
}

/// Says goodbye to a server that is not the one that is wanted, without waiting for its answer.
fn leave(link: &mut Link, end: End) -> End {
    let _ = link.close();
    let _ = link.write_out();
    end
}

/// Talks on a connection to its end.
fn talk<P: Peer>(world: &mut World, link: &mut Link, peer: &mut P) -> End {
    loop {
        match turn(world, link, peer) {
            Ok(until) => {
                if let Err(error) = world.wait(until) {
                    return End::failed(Failure::System, error);
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
    link.begin_turn();
    while let Some(event) = link.read()? {
        peer.received(link, event)?;
    }
    let mut has_more = link.has_had_its_turn();
    match act(world, link, peer) {
        Ok(again) => has_more |= again,
        Err(end) => return Err(last_words(link, peer).unwrap_or(end)),
    }
    link.check_goodbye(P::CLOSE_WAIT_MAX)?;
    // What has come is read before the server is judged by its silence.
    if has_more {
        return Ok(Some(Instant::now()));
    }
    let deadlines = [link.deadline(P::CLOSE_WAIT)?, peer.deadline()];
    Ok(deadlines.into_iter().flatten().min())
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
    for _ in 0..LAST_TURNS_MAX {
        link.begin_turn();
        loop {
            match link.read() {
                Ok(Some(event)) => peer.received(link, event).ok()?,
                Ok(None) if link.has_had_its_turn() => break,
                Ok(None) => return None,
                Err(end) => {
                    let says_so = matches!(end.failure(), None | Some(Failure::Closed(_)));
                    return says_so.then_some(end);
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &[&str] = &["json.x", "plain.x"];

    #[test]
    fn offers_are_left_out_once_that_has_helped() {
        for failure in [Failure::Status(400), Failure::HungUp] {
            let mut offers = Offers::new(WANTED);
            assert_eq!(offers.now(), WANTED);
            assert!(offers.failed(Some(failure)));
            assert_eq!(offers.now(), [""; 0]);
            offers.accepted(false);
            assert_eq!(offers.now(), [""; 0]);
            assert!(!offers.failed(Some(failure)), "no further attempt at once");
            assert_eq!(offers.now(), [""; 0], "for good");
        }
    }

    #[test]
    fn offers_are_made_again_if_it_was_not_due_to_them() {
        let mut offers = Offers::new(WANTED);
        // It fails without them, too.
        assert!(offers.failed(Some(Failure::HungUp)));
        assert!(!offers.failed(Some(Failure::HungUp)));
        assert_eq!(offers.now(), WANTED);
        // A server that knows them was only not ready.
        assert!(offers.failed(Some(Failure::HungUp)));
        offers.accepted(true);
        assert_eq!(offers.now(), WANTED);
    }

    #[test]
    fn other_failures_are_not_put_down_to_the_offers() {
        let mut offers = Offers::new(WANTED);
        for failure in [Failure::Status(403), Failure::NoAnswer, Failure::NotReached] {
            assert!(!offers.failed(Some(failure)));
            assert_eq!(offers.now(), WANTED);
        }
        assert!(!Offers::new(&[]).failed(Some(Failure::HungUp)));
    }
}
