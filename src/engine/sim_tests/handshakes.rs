//! Handshakes that the program accepts or rejects.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use super::wire::{Frame, UPGRADE, client_text, parse_frames, text};
use super::world::{Setup, Told, World, echo, panic_quietly};
use crate::engine::hub::Hub;
use crate::engine::model::command::{Received, Upgraded};
use crate::engine::model::program::{HandshakeAccept, Subscriptions};
use crate::engine::reactor::Readiness;
use crate::engine::reactor::http::REQUEST_BYTES;
use crate::limits::Limits;
use crate::message::Message;
use crate::protocol::connection::FrameReader;
use crate::protocol::encode::{self, Opcode};
use crate::protocol::handshake;
use crate::protocol::http::{self, Head, Parsed};
use crate::request::{Reject, RequestHead};

/// Counts the attachments that the program makes, and records for each dropped one whether a handler thread dropped it.
#[derive(Clone, Default)]
pub(super) struct Attachments {
    made: Arc<AtomicUsize>,
    dropped: Arc<Mutex<Vec<bool>>>,
    hub: Arc<OnceLock<Weak<Hub>>>,
}

struct Attachment(Attachments);

impl Attachments {
    fn make(&self) -> Arc<Attachment> {
        self.made.fetch_add(1, SeqCst);
        Arc::new(Attachment(self.clone()))
    }

    #[track_caller]
    pub(super) fn assert_dropped_by_handlers(&self, made: usize) {
        assert_eq!(self.made.load(SeqCst), made);
        assert_eq!(*self.dropped.lock().unwrap(), vec![true; made]);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let hub = self.0.hub.get().and_then(Weak::upgrade);
        let by_handler = hub.is_some_and(|hub| crate::engine::hub::job_port::is_handler_of(&hub));
        self.0.dropped.lock().unwrap().push(by_handler);
        if by_handler && !std::thread::panicking() {
            // User code may panic here, which must not affect other connections.
            panic_quietly();
        }
    }
}

/// Accepts handshakes except for certain paths.
fn gate(request: &RequestHead, attachments: &Attachments) -> Result<HandshakeAccept, Reject> {
    let welcome = || HandshakeAccept {
        attachment: Some(attachments.make()),
        ..HandshakeAccept::default()
    };
    match request.path() {
        "/reject" => Err(Reject::new(403)
            .with_header("X-Why", "no")
            .with_body("not you\n")),
        "/panic" => panic_quietly(),
        "/speak" => Ok(HandshakeAccept {
            subprotocol: Some("chat".into()),
            headers: vec![("X-Server".into(), "north".into())],
            ..welcome()
        }),
        "/split" => Ok(HandshakeAccept {
            headers: vec![("X".into(), "a\r\nSet-Cookie: b".into())],
            ..welcome()
        }),
        _ => Ok(welcome()),
    }
}

pub(super) fn gated(limits: Limits) -> (World, Attachments) {
    let attachments = Attachments::default();
    let program = attachments.clone();
    let world = World::new(Setup {
        limits,
        subscriptions: Subscriptions {
            open: true,
            message: true,
            close: true,
            handshake: true,
            ..Subscriptions::default()
        },
        handler: Box::new(echo),
        gate: Box::new(move |request| gate(request, &program)),
        ..Setup::default()
    });
    let _ = attachments.hub.set(Arc::downgrade(&world.hub));
    (world, attachments)
}

fn upgrade(path: &str, more: &str) -> Vec<u8> {
    let upgrade = String::from_utf8(UPGRADE.to_vec()).unwrap();
    let (line, rest) = upgrade.split_once("\r\n").unwrap();
    assert!(line.starts_with("GET /"), "{line}");
    format!("GET {path} HTTP/1.1\r\n{more}{rest}").into_bytes()
}

pub(super) fn head(path: &str, more: &str) -> Head {
    match http::parse_head(&upgrade(path, more), 1 << 14) {
        Ok(Parsed::Complete { head, .. }) => head,
        other => panic!("{other:?}"),
    }
}

/// Creates a connection from a Humphrey app whose handshake is not answered yet.
fn handed_over(path: &str, more: &str) -> Upgraded {
    let head = head(path, more);
    let handshake = handshake::check(&head.method, head.minor_version, head.pairs()).unwrap();
    Upgraded {
        head: Some(Box::new(head)),
        pending_out: handshake::response(&handshake),
        ..Upgraded::default()
    }
}

pub(super) const CHAT: &str = "Sec-WebSocket-Protocol: other, chat\r\n";

#[test]
fn client_is_not_connected_before_the_verdict() {
    let (mut world, _) = gated(Limits::default());
    let client = world.connect();
    world.client_sends(client, UPGRADE);
    world.begin_job(0);
    world.advance(Duration::from_secs(100_000));
    assert_eq!(world.output(client), b"");
    assert_eq!(world.told(client), []);
    assert!(!world.is_closed(client));
    world.run_jobs();
    assert!(world.head(client).starts_with("HTTP/1.1 101 "));
    world.run_handlers();
    assert_eq!(world.told(client), [Told::Entered, Told::Open]);
}

#[test]
fn accepted_settings_are_in_response_and_session() {
    let (mut world, attachments) = gated(Limits::default());
    let client = world.connect();
    world.client_sends(client, upgrade("/speak?a=b", CHAT));
    world.run_handlers();
    let head = world.head(client);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(
        head.contains("\r\nSec-WebSocket-Protocol: chat\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nX-Server: north\r\n"), "{head}");
    let session = world.session(client);
    assert_eq!(session.subprotocol(), Some("chat"));
    assert_eq!(session.target(), "/speak?a=b");
    assert!(session.attachment.get().unwrap().is::<Attachment>());
    drop(session);
    world.forget_sessions();
    world.client_resets(client);
    world.assert_empty();
    attachments.assert_dropped_by_handlers(1);
}

#[test]
fn rejection_is_answered_as_given_and_counted() {
    let (mut world, attachments) = gated(Limits::default());
    let client = world.connect();
    world.client_sends(client, upgrade("/reject", ""));
    world.run_handlers();
    let head = world.head(client);
    assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
    assert!(head.contains("\r\nX-Why: no\r\n"), "{head}");
    assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
    assert_eq!(world.output(client), b"not you\n");
    assert!(world.is_finished(client));
    world.client_ends(client);
    assert_eq!(world.told(client), []);
    assert_eq!(world.metrics().refused.handshake_handler, 1);
    assert_eq!(world.metrics().refused.total(), 1);
    world.assert_empty();
    attachments.assert_dropped_by_handlers(0);
}

#[test]
fn panic_or_invalid_verdict_is_answered_with_500() {
    for (path, panics, made) in [("/panic", 1, 0), ("/split", 0, 1), ("/speak", 0, 1)] {
        let (mut world, attachments) = gated(Limits::default());
        let client = world.connect();
        // The client does not offer this subprotocol.
        world.client_sends(client, upgrade(path, ""));
        world.run_handlers();
        let head = world.head(client);
        assert!(head.starts_with("HTTP/1.1 500 "), "{path}: {head}");
        assert!(!head.contains("Set-Cookie"), "{path}: {head}");
        world.client_ends(client);
        assert_eq!(world.told(client), []);
        assert_eq!(world.metrics().refused.handshake_handler, 1);
        assert_eq!(world.metrics().handler_panics, panics, "{path}");
        world.assert_empty();
        attachments.assert_dropped_by_handlers(made);
    }
}

#[test]
fn early_messages_are_handled_after_the_accept() {
    let (mut world, _) = gated(Limits::default());
    let client = world.connect();
    world.client_sends(client, [UPGRADE, &client_text("early")].concat());
    world.client_says(client, "later");
    assert_eq!(world.told(client), []);
    world.run_handlers();
    world.head(client);
    assert_eq!(world.frames(client), [text("early"), text("later")]);
    let told = [Told::Open, Told::message("early"), Told::message("later")];
    assert_eq!(world.handled(client), told);
    world.client_resets(client);
    world.assert_empty();
}

/// Limits with 10,000 bytes for requests that wait for the program, half of them for requests with early bytes.
fn with_little_room() -> Limits {
    Limits {
        message_bytes_max: 40_000,
        received_bytes_max: 80_000,
        ..Limits::default()
    }
}

#[test]
fn early_bytes_over_the_budget_are_refused() {
    let (mut world, _) = gated(with_little_room());
    let early = client_text(&"x".repeat(2_400));
    let clients: Vec<_> = (0..3).map(|_| world.connect()).collect();
    for &client in &clients {
        world.client_sends(client, [UPGRADE, early.as_slice()].concat());
    }
    assert!(world.core().cx.receive_budget.bytes() <= 5_000);
    for &client in &clients[1..] {
        assert!(world.head(client).starts_with("HTTP/1.1 503 "));
        world.client_ends(client);
    }
    assert_eq!(world.metrics().refused.handshakes_max, 2);
    // Clients that wait for the response, as they should, are not affected.
    let conforming = world.connect();
    world.client_sends(conforming, UPGRADE);
    world.run_handlers();
    for client in [clients[0], conforming] {
        assert!(world.head(client).starts_with("HTTP/1.1 101 "));
        world.client_resets(client);
    }
    world.assert_empty();
}

#[test]
fn requests_awaiting_a_verdict_over_budget_are_refused() {
    let (mut world, _) = gated(with_little_room());
    // A waiting request takes less memory on 32-bit targets.
    let count = if size_of::<usize>() == 8 { 30 } else { 60 };
    let clients: Vec<_> = (0..count).map(|_| world.connect()).collect();
    for &client in &clients {
        world.client_sends(client, UPGRADE);
        assert!(world.core().cx.receive_budget.bytes() <= 10_000);
    }
    let refused = world.metrics().refused.handshakes_max as usize;
    assert!((count / 3..count - 5).contains(&refused), "{refused}");
    world.run_handlers();
    for (n, &client) in clients.iter().enumerate() {
        let status = if n + refused < count { "101" } else { "503" };
        let head = world.head(client);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        world.client_resets(client);
    }
    world.assert_empty();
}

#[test]
fn requests_awaiting_connect_handlers_are_bounded() {
    let mut world = World::new(Setup {
        limits: with_little_room(),
        ..Setup::default()
    });
    let clients: Vec<_> = (0..200).map(|_| world.connect()).collect();
    for &client in &clients {
        world.client_sends(client, UPGRADE);
        assert!(world.core().cx.receive_budget.bytes() <= 41_000);
    }
    world.run_handlers();
    let (seen, kept) = world.requests();
    assert!((40..150).contains(&seen), "{seen}");
    assert_eq!(kept, 0);
    assert_eq!(world.core().cx.receive_budget.bytes(), 0);
    assert_eq!(world.metrics().connections, 200);
}

#[test]
fn client_leaving_before_the_verdict_leaks_nothing() {
    for (path, ends) in [
        ("/", true),
        ("/", false),
        ("/reject", true),
        ("/reject", false),
    ] {
        let (mut world, attachments) = gated(Limits::default());
        let client = world.connect();
        world.client_sends(
            client,
            [upgrade(path, "").as_slice(), &client_text("a")].concat(),
        );
        match ends {
            true => world.client_ends(client),
            false => world.client_resets(client),
        }
        world.run_jobs();
        world.forget_sessions();
        world.run_handlers();
        if ends && path == "/" {
            assert_eq!(world.handled(client).last(), Some(&Told::Close));
        }
        world.assert_empty();
        attachments.assert_dropped_by_handlers(usize::from(path == "/"));
    }
}

#[test]
fn stop_does_not_wait_for_a_verdict() {
    for (accepts, early) in [(true, ""), (true, "early"), (false, "")] {
        let (mut world, attachments) = gated(Limits::default());
        let client = world.connect();
        let path = if accepts { "/" } else { "/reject" };
        let mut request = upgrade(path, "");
        if !early.is_empty() {
            request.extend(client_text(early));
        }
        world.client_sends(client, request);
        world.begin_job(0);
        world.stop(Duration::from_secs(10));
        let head = world.head(client);
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        world.client_ends(client);
        assert!(world.has_stopped());
        // The job itself.
        assert_eq!(world.core().cx.receive_budget.bytes(), REQUEST_BYTES);
        assert_eq!(world.metrics().refused.unserved, 1);
        // The handler returns only now, with the shard still running or not.
        if early.is_empty() {
            world.run_job(0);
        }
        world.finish();
        assert_eq!(world.told(client), []);
        attachments.assert_dropped_by_handlers(usize::from(accepts));
    }
}

#[test]
fn stop_drops_clients_without_a_verdict() {
    let (mut world, attachments) = gated(Limits::default());
    let client = world.connect();
    world.client_sends(client, upgrade("/", ""));
    world.begin_job(0);
    // The client does not read, so the response can't be written.
    world.stall(client, 0);
    world.stop(Duration::from_secs(1));
    world.advance(Duration::from_secs(2));
    assert!(world.has_stopped());
    world.finish();
    assert!(world.is_closed(client));
    assert_eq!(world.told(client), []);
    attachments.assert_dropped_by_handlers(1);
}

#[test]
fn request_is_dropped_when_the_connect_handler_returns() {
    let mut world = World::with_handler(echo);
    let client = world.connect();
    world.client_sends(client, UPGRADE);
    assert_eq!(world.requests(), (0, 0));
    world.run_handlers();
    assert_eq!(world.requests(), (1, 0));
    assert!(!world.is_closed(client));
}

// ------------------------------------------------------------------------------------------ what others have read

#[test]
fn handed_over_handshake_is_answered_by_the_verdict() {
    let (mut world, _) = gated(Limits::default());
    let client = world.adopt(handed_over("/speak", CHAT));
    assert_eq!(world.output(client), b"");
    world.run_handlers();
    let head = world.head(client);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(
        head.contains("\r\nSec-WebSocket-Protocol: chat\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nX-Server: north\r\n"), "{head}");
    assert_eq!(head.matches("HTTP/1.1").count(), 1, "{head}");
    assert_eq!(world.session(client).subprotocol(), Some("chat"));
    world.client_says(client, "a");
    world.run_handlers();
    assert_eq!(world.all_frames(client), [text("a")]);

    let client = world.adopt(handed_over("/reject", ""));
    world.run_handlers();
    assert!(world.head(client).starts_with("HTTP/1.1 403 "));
    assert_eq!(world.output(client), b"not you\n");
    assert_eq!(world.metrics().refused.handshake_handler, 1);
}

#[test]
fn rejection_after_a_foreign_101_is_a_close_frame() {
    let (mut world, _) = gated(Limits::default());
    // The client has received the first three bytes of the pong.
    let pending_out = encode::control(Opcode::Pong, b"pending_out").split_off(3);
    let client = world.adopt(Upgraded {
        is_answered: true,
        pending_out: pending_out.clone(),
        received: Some(Received {
            messages: vec![Message::new("a"), Message::new("b")],
            protocol: FrameReader::new(1_000),
        }),
        ..handed_over("/reject", "")
    });
    world.run_handlers();
    let mut output = world.output(client);
    assert_eq!(
        output.drain(..pending_out.len()).collect::<Vec<_>>(),
        pending_out
    );
    let close = Frame::Close(Some(1008), "not you".into());
    assert_eq!(parse_frames(&mut output), [close]);
    assert!(world.is_finished(client));
    world.client_ends(client);
    assert_eq!(world.metrics().dropped.unhandled, 2);
    assert_eq!(world.told(client), []);
    world.assert_empty();
}

#[test]
fn messages_of_a_refused_handover_are_counted() {
    for (connections_max, status) in [(1, "403"), (0, "503")] {
        let (mut world, _) = gated(Limits {
            connections_max,
            ..Limits::default()
        });
        let client = world.adopt(Upgraded {
            received: Some(Received {
                messages: vec![Message::new("a")],
                protocol: FrameReader::new(1_000),
            }),
            ..handed_over("/reject", "")
        });
        world.run_handlers();
        let head = world.head(client);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(world.metrics().dropped.unhandled, 1);
    }
}

#[test]
fn subprotocol_after_the_response_is_ignored() {
    let (mut world, _) = gated(Limits::default());
    let client = world.adopt(Upgraded {
        is_answered: true,
        pending_out: Vec::new(),
        ..handed_over("/speak", CHAT)
    });
    world.run_handlers();
    assert_eq!(world.output(client), b"");
    assert_eq!(world.session(client).subprotocol(), None);
    assert_eq!(world.handled(client), [Told::Open]);
}

#[test]
fn handover_without_its_request_is_authorized_too() {
    let (mut world, _) = gated(Limits::default());
    let client = world.adopt(Upgraded {
        is_answered: true,
        ..Upgraded::default()
    });
    assert_eq!(world.told(client), []);
    world.run_handlers();
    assert_eq!(world.handled(client), [Told::Open]);
    assert_eq!(world.requests(), (0, 0));
}

#[test]
fn client_awaiting_a_verdict_is_no_pending_handshake() {
    let (mut world, _) = gated(Limits {
        handshakes_max: 1,
        ..Limits::default()
    });
    let asked = world.connect();
    world.client_sends(asked, UPGRADE);
    let handed_over = world.adopt(handed_over("/", ""));
    let (first, second) = (world.connect(), world.connect());
    let closed = [asked, handed_over, first, second].map(|client| world.is_closed(client));
    assert_eq!(closed, [false, false, true, false]);
    world.run_handlers();
    for client in [asked, handed_over] {
        assert!(world.head(client).starts_with("HTTP/1.1 101 "));
    }
}

#[test]
fn messages_of_a_handover_lost_before_verdict_are_counted() {
    let one_message = || Upgraded {
        is_answered: true,
        pending_out: Vec::new(),
        received: Some(Received {
            messages: vec![Message::new("a")],
            protocol: FrameReader::new(1_000),
        }),
        ..handed_over("/", "")
    };
    let (mut world, _) = gated(Limits::default());
    world.adopt(one_message());
    // The shard ends without a stop, as it does if polling fails.
    world.finish();
    assert_eq!(world.metrics().dropped.unhandled, 1);

    let (mut world, attachments) = gated(Limits::default());
    let client = world.adopt(one_message());
    world.begin_job(0);
    world.stop(Duration::from_secs(1));
    let close = Frame::Close(Some(1001), "the server is shutting down".into());
    assert_eq!(world.frames(client), [close]);
    world.client_ends(client);
    assert!(world.has_stopped());
    world.finish();
    assert_eq!(world.metrics().messages_in, 1);
    assert_eq!(world.metrics().dropped.unhandled, 1);
    attachments.assert_dropped_by_handlers(1);
}

#[test]
fn client_in_a_slot_reused_in_one_turn_is_answered_once() {
    let mut world = World::with_handler(echo);
    let gone = world.join();
    world.client_says(gone, "a");
    world.client_resets(gone);
    world.run_job(0);
    let left = world.key(gone);
    // The readiness event precedes the handler's result, which alone kept the slot in use.
    let writable = Readiness {
        writable: true,
        ..Readiness::default()
    };
    world.core().ready(left.token().unwrap(), writable);
    let came = world.adopt(handed_over("/", ""));
    assert_eq!(world.key(came).slot, left.slot);
    world.run_handlers();
    let output = String::from_utf8(world.output(came)).unwrap();
    assert_eq!(output.matches("HTTP/1.1").count(), 1, "{output}");
}
