//! The session: opens connections, runs a handler on them, and reconnects after failures.

use std::io;
use std::time::{Duration, Instant};

use humphrey_ws::websocket_client::{Accepted, Event};

use super::backoff::Backoff;
use super::connection::ClientConnection;
use super::dial::dial;
use super::end::{End, NextStep, Outcome, Wait};
use super::event_loop::EventLoop;
use super::failures::{Failure, RetryDecision};
use super::options::{ConnectOptions, seconds};
use super::target::Target;
use crate::diagnostics::report;
use crate::on_message::ON_MESSAGE_HEADER;

/// Bound on the turns that read a connection whose writing side has failed: about the content of a socket buffer.
const DRAIN_TURNS_MAX: usize = 400;

/// What a command does on its connections.
pub(super) trait ConnectionHandler {
    /// Subprotocols to offer, unless the user names others.
    const OFFERS: &'static [&'static str];

    /// Whether close code 1000 of the server ends the command successfully.
    const SERVER_MAY_END: bool;

    /// How long the server may be silent after the close frame.
    const CLOSE_WAIT: Duration;

    /// How long the server may take to answer the close frame after the last write, whatever else it sends.
    const CLOSE_WAIT_MAX: Duration;

    /// The URL to connect to.
    fn target(&self, target: &Target) -> Target {
        target.clone()
    }

    /// Called after the handshake. An error closes the connection: the server is not acceptable.
    fn on_open(&mut self, accepted: &Accepted) -> Result<(), End>;

    /// Called before the first turn of a connection: what it sends precedes everything else.
    fn begin(&mut self, _: &mut ClientConnection) -> Result<(), End> {
        Ok(())
    }

    /// Called with each message and pong.
    fn on_event(&mut self, connection: &mut ClientConnection, event: Event) -> Result<(), End>;

    /// Called after the received events of each turn. `is_stopping`: finish.
    fn on_turn(
        &mut self,
        connection: &mut ClientConnection,
        is_stopping: bool,
    ) -> Result<Flow, End>;

    /// When the next turn is due if nothing happens before.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Updates the progress line, if there is one. Returns when the next update is due if nothing happens before.
    fn update_progress(&self) -> Option<Instant>;

    /// Called at the end of a connection.
    fn on_end(&mut self, connection: &ClientConnection, end: &End);

    /// Whether everything is done, so that no further connection is needed.
    fn is_done(&self) -> bool;
}

/// How the connection goes on after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// Wait for an event.
    Wait,
    /// Run another turn at once: there is more to do.
    Continue,
    /// Close the connection.
    Close,
}

/// Decides whether to offer the handler's own subprotocols. Some servers refuse a handshake with unknown subprotocols
/// with 400, or hang up: the handshake is then repeated once without them, and they stay withheld if that succeeds.
#[derive(Debug)]
struct SubprotocolOffers {
    wanted: &'static [&'static str],
    state: OfferState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OfferState {
    Offered,
    /// Withheld for one attempt, since the last one may have failed because of the offers.
    WithheldOnce,
    /// The server does not accept offers.
    Withheld,
}

impl SubprotocolOffers {
    const fn new(wanted: &'static [&'static str]) -> Self {
        Self {
            wanted,
            state: OfferState::Offered,
        }
    }

    const fn current(&self) -> &'static [&'static str] {
        match self.state {
            OfferState::Offered => self.wanted,
            OfferState::WithheldOnce | OfferState::Withheld => &[],
        }
    }

    /// Records an accepted handshake. A humphrey-broadcast knows the offers, so they were not the cause of the failure.
    fn accepted(&mut self, is_humphrey_broadcast: bool) {
        if self.state == OfferState::WithheldOnce {
            self.state = if is_humphrey_broadcast {
                OfferState::Offered
            } else {
                OfferState::Withheld
            };
        }
    }

    /// Records a failed handshake. Returns whether to retry at once without offers.
    fn failed(&mut self, failure: Option<Failure>) -> bool {
        let may_be_due_to_offers = matches!(
            failure,
            Some(Failure::Status(400) | Failure::HandshakeAborted)
        );
        match self.state {
            OfferState::Offered if may_be_due_to_offers && !self.wanted.is_empty() => {
                self.state = OfferState::WithheldOnce;
                true
            }
            OfferState::WithheldOnce => {
                self.state = OfferState::Offered;
                false
            }
            OfferState::Offered | OfferState::Withheld => false,
        }
    }
}

/// Runs the session until the handler is done, or a failure is permanent.
pub(super) fn run<P: ConnectionHandler>(
    connect: &ConnectOptions,
    give_up_after: u32,
    event_loop: &mut EventLoop,
    handler: &mut P,
) -> io::Result<Outcome> {
    let target = connect.target();
    let mut backoff = Backoff::new(Duration::from_secs(connect.max_delay.get().into()));
    let give_up_after = seconds(give_up_after);
    let user_names_subprotocols = !connect.subprotocols().is_empty();
    let mut offers = SubprotocolOffers::new(if user_names_subprotocols {
        &[]
    } else {
        P::OFFERS
    });
    let mut trust = connect.trust();
    let mut has_connected = false;
    let mut disconnected_since = Instant::now();
    loop {
        let request = connect
            .request(&handler.target(&target), offers.current())
            .map_err(io::Error::other)?;
        let end = match dial(event_loop, &request, connect.unix_socket(), &mut trust) {
            Ok(opened) => {
                has_connected = true;
                if !connect.quiet {
                    report!("connected to {target}");
                }
                offers.accepted(opened.accepted.header(ON_MESSAGE_HEADER).is_some());
                let opened_at = Instant::now();
                let wanted = handler.on_open(&opened.accepted);
                let mut connection = ClientConnection::new(opened, seconds(connect.heartbeat));
                let end = match wanted {
                    Ok(()) => match handler.begin(&mut connection) {
                        Ok(()) => exchange_messages(event_loop, &mut connection, handler),
                        Err(end) => end,
                    },
                    Err(end) => close_unwanted(&mut connection, end),
                };
                handler.on_end(&connection, &end);
                connection.announce_end();
                if backoff.connection_lasted(opened_at.elapsed(), connection.has_received()) {
                    disconnected_since = Instant::now();
                }
                end
            }
            Err(end) if offers.failed(end.failure()) => continue,
            Err(end) => connect.with_advice(end),
        };
        // Without a connection, an empty input is no success: the server may be refusing the client.
        if has_connected && handler.is_done() {
            return Ok(Outcome::Done);
        }
        if event_loop.is_stopping() {
            return Ok(Outcome::Stopped);
        }
        let wait = match next_step::<P>(&end, connect, has_connected) {
            NextStep::Reconnect(wait) => wait,
            NextStep::Stop(outcome) => return Ok(outcome),
        };
        let mut delay = match wait {
            Wait::Backoff { later, at_least } => backoff.delay(later).max(at_least),
            Wait::Exactly(delay) => delay,
        };
        if let Some(after) = give_up_after {
            let left = after.saturating_sub(disconnected_since.elapsed());
            if left.is_zero() {
                report!(
                    "{end}; giving up after {} s without a connection (see --give-up-after)",
                    after.as_secs()
                );
                return Ok(Outcome::Failed);
            }
            delay = delay.min(left);
        }
        if !connect.quiet {
            report!("{end}; reconnecting in {:.1} s", delay.as_secs_f64());
        }
        let until = Instant::now() + delay;
        while Instant::now() < until {
            if event_loop.is_stopping() {
                return Ok(Outcome::Stopped);
            }
            let next = handler.update_progress().map_or(until, |at| at.min(until));
            event_loop.wait(Some(next))?;
        }
    }
}

/// Decides by the table of failures, and prints why the session ends.
fn next_step<P: ConnectionHandler>(
    end: &End,
    connect: &ConnectOptions,
    has_connected: bool,
) -> NextStep {
    let (failure, retry_after) = match end {
        End::Done => return NextStep::Stop(Outcome::Done),
        End::Stopped => return NextStep::Stop(Outcome::Stopped),
        End::Failed {
            failure,
            retry_after,
            ..
        } => (failure, *retry_after),
    };
    let decision = match failure.row().decision {
        RetryDecision::RetryIfConnected if has_connected => RetryDecision::Retry,
        RetryDecision::RetryIfConnected => RetryDecision::GiveUp,
        decision => decision,
    };
    match decision {
        RetryDecision::Done if P::SERVER_MAY_END => {
            if !connect.quiet {
                report!("{end}");
            }
            NextStep::Stop(Outcome::Done)
        }
        RetryDecision::Retry | RetryDecision::RetryLater | RetryDecision::RetryAsTold
            if !connect.no_reconnect =>
        {
            NextStep::Reconnect(match retry_after {
                Some(wait) if decision == RetryDecision::RetryAsTold => Wait::Exactly(wait),
                wait => Wait::Backoff {
                    later: decision == RetryDecision::RetryLater,
                    at_least: wait.unwrap_or_default(),
                },
            })
        }
        RetryDecision::Retry
        | RetryDecision::RetryLater
        | RetryDecision::RetryAsTold
        | RetryDecision::RetryIfConnected
        | RetryDecision::Done
        | RetryDecision::GiveUp => {
            report!("{end}");
            NextStep::Stop(Outcome::Failed)
        }
    }
}

/// Closes the connection to a server that the handler has rejected, without waiting for its close frame.
fn close_unwanted(connection: &mut ClientConnection, end: End) -> End {
    let _ = connection.close();
    let _ = connection.write_out();
    end
}

/// Runs turns until the connection ends.
fn exchange_messages<P: ConnectionHandler>(
    event_loop: &mut EventLoop,
    connection: &mut ClientConnection,
    handler: &mut P,
) -> End {
    loop {
        match run_turn(event_loop, connection, handler) {
            Ok(mut until) => {
                // While the program is stopping, a second signal may end it at once, without erasing the line.
                if !event_loop.is_stopping() {
                    until = [until, handler.update_progress()]
                        .into_iter()
                        .flatten()
                        .min();
                }
                if let Err(error) = event_loop.wait(until) {
                    return End::failed(Failure::LocalError, error);
                }
            }
            Err(end) => return end,
        }
        if event_loop.is_past_stop_deadline() {
            return End::Stopped;
        }
    }
}

/// Handles one turn of the event loop: reads events and sends pending frames. Returns when the next turn is due.
fn run_turn<P: ConnectionHandler>(
    event_loop: &EventLoop,
    connection: &mut ClientConnection,
    handler: &mut P,
) -> Result<Option<Instant>, End> {
    connection.begin_turn();
    while let Some(event) = connection.read()? {
        handler.on_event(connection, event)?;
    }
    let mut has_more = connection.is_turn_used_up();
    match send_pending(event_loop, connection, handler) {
        Ok(again) => has_more |= again,
        Err(end) => return Err(read_close_reason(connection, handler).unwrap_or(end)),
    }
    connection.check_close_timeout(P::CLOSE_WAIT_MAX)?;
    // Read everything that has arrived before checking deadlines.
    if has_more {
        return Ok(Some(Instant::now()));
    }
    let deadlines = [connection.deadline(P::CLOSE_WAIT)?, handler.deadline()];
    Ok(deadlines.into_iter().flatten().min())
}

/// Runs the handler's turn and writes. Returns whether there is more to do.
fn send_pending<P: ConnectionHandler>(
    event_loop: &EventLoop,
    connection: &mut ClientConnection,
    handler: &mut P,
) -> Result<bool, End> {
    let flow = handler.on_turn(connection, event_loop.is_stopping())?;
    if flow == Flow::Close && !connection.is_closing() {
        connection.close()?;
    }
    connection.write_out()?;
    Ok(flow == Flow::Continue)
}

/// After a failed write, the server's close frame and its last confirmations may still be readable.
fn read_close_reason<P: ConnectionHandler>(
    connection: &mut ClientConnection,
    handler: &mut P,
) -> Option<End> {
    for _ in 0..DRAIN_TURNS_MAX {
        connection.begin_turn();
        loop {
            match connection.read() {
                Ok(Some(event)) => handler.on_event(connection, event).ok()?,
                Ok(None) if connection.is_turn_used_up() => break,
                Ok(None) => return None,
                Err(end) => {
                    let explains_the_failure =
                        matches!(end.failure(), None | Some(Failure::Closed(_)));
                    return explains_the_failure.then_some(end);
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
    fn offers_stay_withheld_after_success_without_them() {
        for failure in [Failure::Status(400), Failure::HandshakeAborted] {
            let mut offers = SubprotocolOffers::new(WANTED);
            assert_eq!(offers.current(), WANTED);
            assert!(offers.failed(Some(failure)));
            assert_eq!(offers.current(), [""; 0]);
            offers.accepted(false);
            assert_eq!(offers.current(), [""; 0]);
            assert!(!offers.failed(Some(failure)), "no further attempt at once");
            assert_eq!(offers.current(), [""; 0], "for good");
        }
    }

    #[test]
    fn offers_resume_after_failure_without_them() {
        let mut offers = SubprotocolOffers::new(WANTED);
        // The attempt without offers fails, too.
        assert!(offers.failed(Some(Failure::HandshakeAborted)));
        assert!(!offers.failed(Some(Failure::HandshakeAborted)));
        assert_eq!(offers.current(), WANTED);
        // The server knows the offers; it was only not ready.
        assert!(offers.failed(Some(Failure::HandshakeAborted)));
        offers.accepted(true);
        assert_eq!(offers.current(), WANTED);
    }

    #[test]
    fn other_failures_leave_the_offers_unchanged() {
        let mut offers = SubprotocolOffers::new(WANTED);
        for failure in [
            Failure::Status(403),
            Failure::HandshakeTimeout,
            Failure::Unreachable,
        ] {
            assert!(!offers.failed(Some(failure)));
            assert_eq!(offers.current(), WANTED);
        }
        assert!(!SubprotocolOffers::new(&[]).failed(Some(Failure::HandshakeAborted)));
    }
}
