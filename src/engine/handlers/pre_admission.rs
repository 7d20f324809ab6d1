//! Authorises handshakes that a host with its own runtime reads and answers, before the host hands the connection over.

#![cfg_attr(not(feature = "axum"), allow(dead_code))] // Only hosts behind features use this.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Instant;

use mio::net::TcpStream;

use super::pool::push_work;
use crate::engine::hub::Hub;
use crate::engine::hub::admission::{AdmissionRefused, failure};
use crate::engine::hub::job_port::HandlersOf;
use crate::engine::model::command::{NewConnection, Upgraded};
use crate::engine::model::job::Work;
use crate::engine::model::verdict::{
    AcceptedHandshake, Attachment, ConnectionPermit, CountConnections, Granted, OnVerdict,
    PendingAttachment, Verdict, shutting_down, too_many,
};
use crate::protocol::handshake;
use crate::protocol::handshake::HandshakeRefusal;
use crate::protocol::http::Head;
use crate::report::debug;
use crate::request::{Reject, RequestHead};
use crate::transport;
use crate::user_threads::while_nonblocking;

/// Authorises a handshake that a host has read. It makes the same checks as for handshakes that the engine reads: form,
/// limits and origins, and then the handshake handler of the program, which may block.
///
/// Calls `on_verdict` once: on a handler thread, or before this function returns if no handler is called. The verdict
/// is a rejection with 503 if the engine has stopped or stops before the handler returns.
pub(crate) fn authorize(
    hub: &Arc<Hub>,
    head: Head,
    peer: SocketAddr,
    on_verdict: Box<dyn FnOnce(Verdict) + Send>,
) {
    let on_verdict = OnVerdict(Some(on_verdict));
    // The logger of the program may block, but a thread of the host's runtime must not.
    match while_nonblocking(|| pre_admit(hub, head, peer)) {
        Err(reject) => on_verdict.tell(Verdict::Rejected(reject)),
        Ok(accepted) if !hub.subscriptions.handshake => {
            on_verdict.tell(Verdict::Accepted(accepted))
        }
        Ok(accepted) => {
            // If the handler threads have ended, this drops `on_verdict`, which reports 503.
            let _ = push_work(hub, Work::Authorize(accepted, on_verdict));
        }
    }
}

/// Sets the attachment of an accepted handshake's session, in place of the one that the handshake handler returned.
///
/// # Errors
///
/// If the attachment does not have the type that the program expects, the error is the name of the expected type.
pub(crate) fn attach(
    hub: &Arc<Hub>,
    accepted: &mut AcceptedHandshake,
    attachment: Attachment,
) -> Result<(), &'static str> {
    // Without a program, the engine has stopped. The connection will be closed, so the type does not matter.
    if let Some(program) = hub.jobs.program() {
        let (kept_type, name) = program.attachment_type();
        if (*attachment).type_id() != kept_type {
            return Err(name);
        }
    }
    let handlers = Box::new(HandlersOf(Arc::downgrade(hub)));
    accepted.granted.attachment = Some(PendingAttachment::new(attachment, handlers));
    Ok(())
}

/// Takes over a connection whose handshake [`authorize`] has accepted and the host has answered. `early` contains the
/// bytes that the client has sent after its request.
pub(crate) fn adopt_accepted(
    hub: &Hub,
    mut accepted: Box<AcceptedHandshake>,
    stream: TcpStream,
    early: Vec<u8>,
) {
    let peer = accepted.request().peer_addr();
    let peer_slot = accepted.peer_slot.take();
    hub.adopt(NewConnection {
        stream: transport::plain(stream),
        peer,
        peer_slot,
        upgraded: Some(Upgraded {
            is_answered: true,
            early,
            accepted: Some(accepted),
            ..Upgraded::default()
        }),
    });
}

/// Makes the checks and counts that come before the handshake handler, as for handshakes that the engine reads.
fn pre_admit(
    hub: &Arc<Hub>,
    head: Head,
    peer: SocketAddr,
) -> Result<Box<AcceptedHandshake>, Reject> {
    let counters = &hub.common;
    if hub.has_stopped() {
        counters.refused_unserved.add(1);
        return Err(shutting_down());
    }
    hub.connected();
    let mut permit = ConnectionPermit {
        counts: Arc::downgrade(hub) as Weak<dyn CountConnections>,
        bytes: 0,
        handed_over: false,
    };
    let refuse = |refused: AdmissionRefused| refused.record(counters, peer);
    if hub.is_full() {
        return Err(refuse(AdmissionRefused::ConnectionsMax));
    }
    let handshake =
        handshake::check(&head.method, head.minor_version, head.pairs()).map_err(|refusal| {
            failure(refusal, counters).add(1);
            debug!("{peer} did not become a WebSocket: {refusal}");
            handshake_reject(refusal)
        })?;
    let mut peer_slot = None;
    let client = hub
        .admit(peer, Some(&head), false, &mut peer_slot, Instant::now())
        .map_err(refuse)?;
    let request = RequestHead::received(head, peer, client);
    permit.bytes = request.bytes();
    let authorizing_bytes = hub.authorizing_bytes.fetch_add(permit.bytes, Relaxed) + permit.bytes;
    let limits = &hub.settings.limits;
    // This share of the memory equals that of the shards for handshakes that they authorise themselves. A single
    // handshake always fits.
    if authorizing_bytes
        > (limits.received_bytes_max / 8).max(limits.head_bytes_max.saturating_mul(2))
    {
        counters.refused_handshakes_max.add(1);
        return Err(too_many());
    }
    let granted = match hub.subscriptions.handshake {
        true => Granted::default(),
        false => {
            let known = hub.subscriptions.subprotocols;
            let mut granted = Granted::choosing(&request, known);
            granted.agree_compression(&hub.settings, &request);
            granted
        }
    };
    Ok(Box::new(AcceptedHandshake {
        handshake,
        granted,
        request: Arc::new(request),
        peer_slot,
        permit: Some(permit),
    }))
}

fn handshake_reject(refusal: HandshakeRefusal) -> Reject {
    let reject = Reject::new(refusal.status()).with_body(format!("{refusal}\n"));
    let headers = refusal.headers().iter();
    // The host that writes the answer sets `Connection`.
    headers
        .filter(|(name, _)| *name != "Connection")
        .fold(reject, |reject, (name, value)| {
            reject.with_header(*name, *value)
        })
}
