//! Runs the user code of one job.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use crate::engine::hub::Hub;
use crate::engine::hub::admission::{AdmissionRefused, quoted};
use crate::engine::hub::job_port::HandlersOf;
use crate::engine::model::command::Control;
use crate::engine::model::job::{Done, Job, MessageRun, SessionEvent, Work};
use crate::engine::model::program::{HandshakeAccept, Program};
use crate::engine::model::request::{Charge, PieceTicket, Request, Response};
use crate::engine::model::room::Presence;
use crate::engine::model::session::Session;
use crate::engine::model::verdict::{
    AcceptedHandshake, Granted, NotGranted, OnVerdict, PendingAttachment, Verdict,
};
use crate::engine::parts::mailbox::When;
use crate::engine::parts::unwind::catch_panic;
use crate::report::limited;
use crate::request::{Reject, RequestHead, check_accept};

/// Runs a job of the queue, and leaves its outcome in the shard's mailbox.
pub(crate) fn run_queued(hub: &Arc<Hub>, program: &dyn Program, job: Job) {
    let done = outcome(hub, program, job.work);
    if let (Some((shard, key)), Some(done)) = (job.to, done) {
        hub.send_control(shard, Control::Done(key, done), When::Deferred);
    }
}

/// Runs the handlers of a job. Returns the outcome if a shard waits for it.
pub(crate) fn outcome(hub: &Arc<Hub>, program: &dyn Program, work: Work) -> Option<Done> {
    let done = match work {
        Work::Session(session, events, bytes) => {
            handle_session(hub, program, session, events, bytes)
        }
        Work::Request(ticket) => Done::Request(
            ticket
                .take()
                .map(|request| (respond(hub, program, *request), ticket.bytes)),
        ),
        Work::Piece(ticket) => Done::Piece(ticket.upgrade().and_then(|ticket| piece(hub, &ticket))),
        Work::Handshake(request) => verdict(&request, |request| authorize(hub, program, request)),
        Work::EventStream(request) => verdict(&request, |request| {
            granted(hub, request, || program.event_stream(request))
        }),
        Work::Guard(request) => verdict(&request, |request| {
            let welcome = || program.guard(request).map(|()| HandshakeAccept::default());
            granted(hub, request, welcome)
        }),
        Work::Authorize(accepted, then) => {
            counting_panics(hub, || decide(hub, program, accepted, then));
            return None;
        }
        Work::Drop(attachment) => {
            // No connection is left to report a panic to.
            catch_panic(|| drop(attachment));
            return None;
        }
        Work::Release(session, counts) => {
            counting_panics(hub, || drop(session));
            hub.ended.fetch_sub(usize::from(counts), Relaxed);
            return None;
        }
    };
    Some(done)
}

/// Runs user code and counts a panic. Returns whether the code returned.
fn counting_panics(hub: &Hub, code: impl FnOnce()) -> bool {
    let outcome = catch_panic(code);
    if outcome.is_none() {
        hub.common.handler_panics.add(1);
    }
    outcome.is_some()
}

/// Runs the handlers of a session's events, in order. After a panic, the remaining messages are counted as unhandled;
/// room and close handlers are still called.
fn handle_session(
    hub: &Hub,
    program: &dyn Program,
    session: Arc<Session>,
    mut memory: Vec<SessionEvent>,
    bytes: usize,
) -> Done {
    let span = session.span.clone();
    let goes_on = memory
        .last()
        .is_some_and(|last| !matches!(last, SessionEvent::Close));
    let mut events = memory.drain(..);
    // An event whose handler panics ends the loop, and is already out of the list.
    let handled = span.within(|| {
        counting_panics(hub, || {
            loop {
                if let Some(SessionEvent::Message(_)) = events.as_slice().first() {
                    program.messages(&session, &mut MessageRun(&mut events));
                }
                match events.next() {
                    None => break,
                    Some(SessionEvent::Message(_)) => {
                        unreachable!("the program takes all messages")
                    }
                    Some(SessionEvent::Open(request)) => program.open(&session, request.as_ref()),
                    Some(SessionEvent::Room(change, room)) => {
                        program.room(&session, &room, change);
                    }
                    Some(SessionEvent::Nudge) => program.nudged(&session),
                    Some(SessionEvent::Close) => program.close(&session),
                }
            }
        })
    });
    let mut unhandled = 0;
    for event in events {
        match event {
            SessionEvent::Message(_) => unhandled += 1,
            SessionEvent::Room(change, room) => {
                span.within(|| counting_panics(hub, || program.room(&session, &room, change)));
            }
            SessionEvent::Close => {
                span.within(|| counting_panics(hub, || program.close(&session)));
            }
            SessionEvent::Open(_) | SessionEvent::Nudge => {}
        }
    }
    if goes_on && session.batch_done() {
        span.within(|| tell_end(hub, program, &session));
    }
    // This may drop the session's attachment, which is user code too.
    counting_panics(hub, || drop(session));
    Done::Session {
        panicked: !handled,
        unhandled,
        bytes,
        memory,
    }
}

/// Calls the handlers for the end of a session whose shard has ended while handlers ran, and so can't queue them
/// itself.
fn tell_end(hub: &Hub, program: &dyn Program, session: &Arc<Session>) {
    for room in session.rooms_left_behind() {
        counting_panics(hub, || program.room(session, &room, Presence::Left));
    }
    if program.subscriptions().close {
        counting_panics(hub, || program.close(session));
    }
}

/// Runs the handler of a route, unless the responses that clients have not read yet leave no room for another.
fn respond(hub: &Hub, program: &dyn Program, request: Request) -> Response {
    hub.common.requests.add(1);
    let head_only = request.head.method == "HEAD";
    let bytes_max = hub.settings.limits.outboxes_bytes_max;
    if hub.responses_bytes.load(Relaxed) > bytes_max {
        hub.common.refused_unserved.add(1);
        return Response::busy(head_only);
    }
    let mut response = catch_panic(|| program.request(request)).unwrap_or_else(|| {
        hub.common.handler_panics.add(1);
        Response::internal_error(head_only)
    });
    let bytes = response.bytes();
    response.charge = Some(Charge::new(&hub.responses_bytes, bytes));
    response
}

/// Reads the next piece of a response, if its connection still waits for it.
fn piece(hub: &Hub, ticket: &PieceTicket) -> Option<Response> {
    let mut rest = ticket.take()?;
    let read = catch_panic(|| rest.next_piece());
    match read.unwrap_or_else(|| Err(io::Error::other("the source panicked"))) {
        Ok(body) => {
            let mut piece = Response::piece(body, rest);
            piece.charge = Some(Charge::new(&hub.responses_bytes, piece.bytes()));
            Some(piece)
        }
        Err(error) => {
            limited!(
                hub.logged.unreadable_body,
                warning,
                "a response was cut off, because the rest of its body can't be read: {error}"
            );
            None
        }
    }
}

/// Decides a request, if the shard still waits for the verdict.
fn verdict(
    request: &Weak<RequestHead>,
    decide: impl FnOnce(&RequestHead) -> Result<Granted, NotGranted>,
) -> Done {
    let verdict = match request.upgrade() {
        Some(request) => decide(&request),
        None => Err(Reject::internal_error().into()),
    };
    Done::Handshake(Box::new(verdict))
}

/// Decides a handshake that a host has read, and gives the host the verdict.
fn decide(
    hub: &Arc<Hub>,
    program: &dyn Program,
    mut accepted: Box<AcceptedHandshake>,
    then: OnVerdict,
) {
    then.tell(match authorize(hub, program, accepted.request()) {
        Ok(mut granted) => {
            granted.agree_compression(&hub.settings, accepted.request());
            accepted.grant(granted);
            Verdict::Accepted(accepted)
        }
        Err(NotGranted::Program(reject)) => {
            hub.common.refused_handshake_handler.add(1);
            Verdict::Rejected(reject)
        }
        Err(NotGranted::UserConnections) => {
            let peer = accepted.request().peer_addr();
            Verdict::Rejected(AdmissionRefused::UserConnections.record(&hub.common, peer))
        }
    });
}

/// Runs the handshake handler.
fn authorize(
    hub: &Arc<Hub>,
    program: &dyn Program,
    request: &RequestHead,
) -> Result<Granted, NotGranted> {
    granted(hub, request, || program.handshake(request))
}

/// Runs `decide` and checks its answer. If the answer has an invalid rejection or subprotocol, or a user key that is
/// too long, the client gets 500.
fn granted(
    hub: &Arc<Hub>,
    request: &RequestHead,
    decide: impl FnOnce() -> Result<HandshakeAccept, Reject>,
) -> Result<Granted, NotGranted> {
    let answer = catch_panic(decide).unwrap_or_else(|| {
        hub.common.handler_panics.add(1);
        Err(Reject::internal_error())
    });
    let HandshakeAccept {
        subprotocol,
        headers,
        attachment,
        user,
        expiry,
        rendered,
    } = answer.map_err(Reject::checked)?;
    let handlers = || Box::new(HandlersOf(Arc::downgrade(hub)));
    let attachment = attachment.map(|attachment| PendingAttachment::new(attachment, handlers()));
    let checked = check_accept(request, subprotocol.as_deref(), &headers, user.as_deref());
    if let Err(wrong) = checked {
        limited!(
            hub.logged.bad_accept,
            error,
            "the program accepted a request for \"{}\", but {wrong}: the client gets a 500 response",
            quoted(request.path())
        );
        return Err(Reject::internal_error().into());
    }
    // This check comes last, so that a request refused for another reason never counts for the user.
    let user_slot = match user {
        Some(user) => Some(hub.users.enter(&user).ok_or(NotGranted::UserConnections)?),
        None => None,
    };
    Ok(Granted {
        subprotocol,
        headers,
        attachment,
        user_slot,
        expiry,
        rendered,
        // Compression is negotiated later, once the request is accepted.
        #[cfg(feature = "deflate")]
        compression: None,
    })
}
