//! Whom a connection belongs to, and when its session expires.

use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use super::handshakes::head;
use super::streams::Scene;
use super::wire::{Frame, UPGRADE, client_close, client_text, text};
use super::world::{Setup, Told, World, echo, panic_quietly, send};
use crate::engine::handlers::pre_admission::authorize;
use crate::engine::hub::Destination;
use crate::engine::model::command::{Command, Upgraded};
use crate::engine::model::program::{HandshakeAccept, Subscriptions};
use crate::engine::model::verdict::Verdict;
use crate::engine::parts::expiry::Expiry;
use crate::engine::reactor::EXPIRED_PER_TURN;
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::request::{Reject, RequestHead};

/// A session expires within a step of its clock.
const STEP_MS: u64 = 130;

/// The query names the user.
fn gate(request: &RequestHead) -> Result<HandshakeAccept, Reject> {
    match request.path() {
        "/panic" => panic_quietly(),
        "/reject" => return Err(Reject::new(403)),
        _ => {}
    }
    Ok(HandshakeAccept {
        user: Some(request.query().to_owned()),
        subprotocol: (request.path() == "/wrong").then(|| "unknown".to_owned()),
        ..HandshakeAccept::default()
    })
}

fn world(user_connections_max: usize) -> World {
    World::new(Setup {
        limits: Limits {
            user_connections_max: Some(user_connections_max),
            ..Limits::default()
        },
        subscriptions: Subscriptions {
            open: true,
            message: true,
            close: true,
            handshake: true,
            ..Subscriptions::default()
        },
        handler: Box::new(echo),
        gate: Box::new(gate),
        ..Setup::default()
    })
}

fn upgrade(target: &str) -> Vec<u8> {
    let upgrade = String::from_utf8(UPGRADE.to_vec()).unwrap();
    let (_, rest) = upgrade.split_once("\r\n").unwrap();
    format!("GET {target} HTTP/1.1\r\n{rest}").into_bytes()
}

fn ask(world: &mut World, target: &str) -> usize {
    let client = world.connect();
    world.client_sends(client, upgrade(target));
    client
}

/// A connection of a user, or the status that it is refused with.
fn enter(world: &mut World, target: &str) -> Result<usize, String> {
    let client = ask(world, target);
    world.run_handlers();
    let head = world.head(client);
    match &head["HTTP/1.1 ".len()..][..3] {
        "101" => Ok(client),
        status => Err(status.to_owned()),
    }
}

/// Closes all connections of a user, as `AsyncSender::close_user` does.
fn close_user(world: &mut World, user: &str) -> usize {
    let code = CloseCode::POLICY_VIOLATION;
    let ids = world.hub.users.close(user, code, "signed out");
    for &id in &ids {
        let command = Command::Close(id.key(), code, "signed out".into());
        world.hub.post(id, command, false).unwrap();
    }
    world.settle();
    ids.len()
}

fn signed_out() -> Frame {
    Frame::Close(Some(1008), "signed out".into())
}

fn expired() -> Frame {
    Frame::Close(Some(3000), "session expired".into())
}

fn set_expiry(world: &mut World, client: usize, ms: Option<u64>) {
    let expiry = ms.and_then(|ms| world.expiry_in_ms(ms));
    world.hub.set_expiry(&world.session(client), expiry);
    world.settle();
}

// ------------------------------------------------------------------------------------------------------------- users

#[test]
fn user_with_all_connections_is_refused_with_429() {
    let mut world = world(2);
    let first = enter(&mut world, "/?ada").unwrap();
    let second = enter(&mut world, "/?ada").unwrap();
    assert_eq!(enter(&mut world, "/?ada"), Err("429".to_owned()));
    let other = enter(&mut world, "/?grace").unwrap();
    assert_eq!(world.metrics().refused.user_connections_max, 1);
    assert_eq!(world.metrics().refused.handshake_handler, 0);
    assert_eq!(world.session(first).user(), Some("ada"));
    world.client_resets(first);
    world.run_handlers();
    assert_eq!(world.hub.users.connections_of("ada"), [world.id(second)]);
    let third = enter(&mut world, "/?ada").unwrap();
    for client in [second, other, third] {
        world.client_sends(client, client_close(1000));
    }
    world.advance(Duration::from_secs(6));
    world.assert_empty();
}

#[test]
fn user_is_not_counted_where_the_handshake_fails() {
    let mut world = world(1);
    for (target, status) in [
        ("/panic?ada", "500"),
        ("/reject?ada", "403"),
        ("/wrong?ada", "500"),
    ] {
        assert_eq!(enter(&mut world, target), Err(status.to_owned()));
        assert_eq!(world.hub.users.counted(), (0, 0), "{target}");
    }
    // It has gone while the handler ran.
    let client = ask(&mut world, "/?ada");
    world.begin_job(0);
    world.client_resets(client);
    world.run_handlers();
    world.advance(Duration::from_secs(60));
    assert_eq!(world.hub.users.counted().1, 0);
    enter(&mut world, "/?grace").unwrap();
}

#[test]
fn user_key_over_255_bytes_is_refused_with_500() {
    let (longest, too_long) = ("u".repeat(255), "u".repeat(256));
    let mut world = world(1);
    assert_eq!(
        enter(&mut world, &format!("/?{too_long}")),
        Err("500".to_owned())
    );
    assert_eq!(world.hub.users.counted(), (0, 0));
    let client = enter(&mut world, &format!("/?{longest}")).unwrap();
    assert_eq!(world.session(client).user(), Some(&*longest));
    let told = Arc::<Mutex<Option<Verdict>>>::default();
    let then = told.clone();
    let tell = move |verdict| *then.lock().unwrap() = Some(verdict);
    let peer = ([192, 0, 2, 1], 1234).into();
    let target = format!("/?{too_long}");
    authorize(&world.hub, head(&target, ""), peer, Box::new(tell));
    world.turn();
    world.run_handlers();
    match told.lock().unwrap().take() {
        Some(Verdict::Rejected(reject)) => assert_eq!(reject.status(), 500),
        _ => panic!("a host's handshake is accepted"),
    }
    let mut scene = Scene::new(SlowConsumer::Disconnect);
    for (user, status) in [(&too_long, "500"), (&longest, "200")] {
        let stream = scene.ask(&format!("/events?user={user}"));
        scene.world.run_handlers();
        let head = format!("HTTP/1.1 {status} ");
        assert!(scene.world.output(stream).starts_with(head.as_bytes()));
    }
    assert_eq!(scene.world.hub.users.counted(), (1, 1));
}

#[test]
fn user_counts_from_the_verdict_of_a_host_until_it_drops_it() {
    let mut world = world(1);
    let told = Arc::<Mutex<Option<Verdict>>>::default();
    let ask_host = |world: &mut World| {
        let then = told.clone();
        let tell = move |verdict| *then.lock().unwrap() = Some(verdict);
        let peer = ([192, 0, 2, 1], 1234).into();
        authorize(&world.hub, head("/?ada", ""), peer, Box::new(tell));
        world.turn();
        world.run_handlers();
        told.lock().unwrap().take().unwrap()
    };
    let Verdict::Accepted(first) = ask_host(&mut world) else {
        panic!("it is refused")
    };
    let Verdict::Rejected(reject) = ask_host(&mut world) else {
        panic!("it is accepted")
    };
    assert_eq!(reject.status(), 429);
    assert_eq!(world.metrics().refused.user_connections_max, 1);
    drop(first);
    let Verdict::Accepted(third) = ask_host(&mut world) else {
        panic!("it is refused")
    };
    // Closed before its connection comes.
    assert_eq!(close_user(&mut world, "ada"), 0);
    let client = world.adopt(Upgraded {
        is_answered: true,
        early: client_text("early"),
        accepted: Some(third),
        ..Upgraded::default()
    });
    world.run_handlers();
    assert_eq!(world.all_frames(client), [signed_out()]);
    assert_eq!(world.handled(client), [Told::Open]);
    world.client_sends(client, client_close(1008));
    world.run_handlers();
    assert_eq!(world.handled(client), [Told::Close]);
    world.assert_empty();
}

#[test]
fn close_user_closes_all_connections_of_that_user_only() {
    let mut world = world(10);
    let own: Vec<_> = (0..5)
        .map(|_| enter(&mut world, "/?ada").unwrap())
        .collect();
    let other = enter(&mut world, "/?adam").unwrap();
    world.sends(own[0], "before");
    assert_eq!(close_user(&mut world, "ada"), 5);
    assert_eq!(world.all_frames(own[0]), [text("before"), signed_out()]);
    for &client in &own[1..] {
        assert_eq!(world.all_frames(client), [signed_out()]);
    }
    assert_eq!(close_user(&mut world, "nobody"), 0);
    assert_eq!(world.all_frames(other), []);
    // A client that does not answer counts until it is disconnected.
    assert_eq!(world.hub.users.counted(), (6, 6));
    world.advance(Duration::from_secs(6));
    world.run_handlers();
    assert_eq!(world.hub.users.counted(), (1, 1));
    for client in own {
        assert_eq!(world.handled(client), [Told::Open, Told::Close]);
    }
    world.client_resets(other);
    world.assert_empty();
}

/// Whoever finds a connection may send to it, or to everyone.
#[test]
fn connection_that_can_be_found_receives_broadcasts() {
    let mut world = World::new(Setup {
        subscriptions: Subscriptions {
            handshake: true,
            ..Subscriptions::default()
        },
        handler: Box::new(|hub, session, told| {
            if *told == Told::Entered {
                // Its id can be looked up now, so it must be known to no thread earlier.
                assert_eq!(hub.users.connections_of("ada"), []);
                assert_eq!(hub.members(), 1);
                let message = Message::new("hello");
                let to = Destination::default();
                assert_eq!(hub.try_broadcast(message.frame(), to), Ok(true));
                send(hub, session, "Ada");
            }
        }),
        gate: Box::new(gate),
        ..Setup::default()
    });
    let client = enter(&mut world, "/?ada").unwrap();
    let id = world.session(client).id;
    assert_eq!(world.hub.users.connections_of("ada"), [id]);
    assert_eq!(world.frames(client), [text("hello"), text("Ada")]);
}

#[test]
fn user_of_an_ended_session_is_not_counted() {
    let mut world = world(1);
    let client = enter(&mut world, "/?ada").unwrap();
    let session = world.session(client);
    world.client_resets(client);
    world.run_handlers();
    assert_eq!(world.hub.users.counted(), (0, 0));
    assert_eq!(session.user(), Some("ada"));
    enter(&mut world, "/?ada").unwrap();
}

#[test]
fn event_streams_count_for_their_user_and_are_closed_with_it() {
    let mut scene = Scene::new(SlowConsumer::Disconnect);
    let stream = scene.ask("/events?user=ada");
    // Its handler has granted it, and has not begun it.
    scene.world.run_jobs();
    assert_eq!(scene.world.hub.users.connections_of("ada"), []);
    let world = &mut scene.world;
    world.run_handlers();
    assert!(world.output(stream).starts_with(b"HTTP/1.1 200 "));
    let early = scene.ask("/events?user=ada");
    let world = &mut scene.world;
    world.run_jobs();
    assert_eq!(world.hub.users.counted(), (2, 2));
    assert_eq!(close_user(world, "ada"), 2);
    assert!(world.output(early).starts_with(b"HTTP/1.1 403 "));
    world.run_handlers();
    assert!(world.is_finished(stream));
    world.client_ends(stream);
    world.client_ends(early);
    world.assert_empty();
}

// ------------------------------------------------------------------------------------------------------------ expiry

#[test]
fn session_is_closed_with_3000_when_it_expires() {
    let mut world = World::with_handler(echo);
    let (client, other) = (world.join(), world.join());
    set_expiry(&mut world, client, Some(60_000));
    world.sends(client, "before");
    world.advance_ms(59_999);
    assert_eq!(world.all_frames(client), [text("before")]);
    world.advance_ms(STEP_MS);
    assert_eq!(world.all_frames(client), [expired()]);
    // What it sends from then on is not handled.
    world.client_says(client, "late");
    world.client_sends(client, client_close(3000));
    world.run_handlers();
    assert_eq!(world.handled(client), [Told::Open, Told::Close]);
    assert_eq!(world.metrics().expired, 1);
    assert_eq!(world.all_frames(other), []);
    world.client_resets(other);
    world.assert_empty();
}

#[test]
fn expired_client_that_does_not_answer_is_disconnected() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.stall(client, 0);
    set_expiry(&mut world, client, Some(1_000));
    world.advance_ms(1_000 + STEP_MS + 5_100);
    assert!(world.is_closed(client));
    world.assert_empty();
}

#[test]
fn refresh_moves_the_expiry_without_a_turn() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.advance(Duration::from_secs(11));
    set_expiry(&mut world, client, Some(10_000));
    let turns = world.turns;
    for _ in 0..100 {
        set_expiry(&mut world, client, Some(20_000));
    }
    assert_eq!(world.turns, turns);
    // It wakes once, when the first of them would have come.
    world.advance_ms(19_990);
    assert_eq!(world.turns, turns + 1);
    assert_eq!(world.all_frames(client), []);
    world.advance_ms(10 + STEP_MS);
    assert_eq!(world.all_frames(client), [expired()]);
}

#[test]
fn expiry_moved_earlier_or_removed_takes_effect() {
    let mut world = World::with_handler(echo);
    let (nearer, withdrawn) = (world.join(), world.join());
    for client in [nearer, withdrawn] {
        set_expiry(&mut world, client, Some(1_000_000));
    }
    set_expiry(&mut world, nearer, Some(2_000));
    set_expiry(&mut world, withdrawn, Some(2_000));
    set_expiry(&mut world, withdrawn, None);
    assert_eq!(world.expiries(), 1);
    world.advance_ms(2_000 + STEP_MS);
    assert_eq!(world.all_frames(nearer), [expired()]);
    world.advance(Duration::from_secs(10_000));
    assert_eq!(world.all_frames(withdrawn), []);
    assert_eq!((world.expiries(), world.sleeps()), (0, None));
    // It can be set once more.
    set_expiry(&mut world, withdrawn, Some(500));
    world.advance_ms(500 + STEP_MS);
    assert_eq!(world.all_frames(withdrawn), [expired()]);
}

#[test]
fn session_that_has_expired_already_is_closed_at_once() {
    let mut world = World::new(Setup {
        subscriptions: Subscriptions {
            open: true,
            close: true,
            handshake: true,
            ..Subscriptions::default()
        },
        gate: Box::new(|_| {
            Ok(HandshakeAccept {
                expiry: Expiry::at_time(UNIX_EPOCH),
                ..HandshakeAccept::default()
            })
        }),
        ..Setup::default()
    });
    let client = enter(&mut world, "/").unwrap();
    assert_eq!(world.all_frames(client), [expired()]);
    world.client_sends(client, client_close(3000));
    world.run_handlers();
    assert_eq!(world.handled(client), [Told::Open, Told::Close]);
    world.assert_empty();
}

#[test]
fn expiry_during_a_stopped_process_is_not_extended() {
    let mut world = World::with_handler(echo);
    let (client, other) = (world.join(), world.join());
    set_expiry(&mut world, client, Some(60_000));
    set_expiry(&mut world, other, Some(7_200_000));
    world.advance_ms(1_000);
    world.stand_still(Duration::from_secs(3_600));
    assert_eq!(world.all_frames(client), [expired()]);
    assert_eq!(world.all_frames(other), []);
    world.advance_ms(3_599_000 + STEP_MS);
    assert_eq!(world.all_frames(other), [expired()]);
}

#[test]
fn sessions_expiring_together_close_over_several_turns() {
    let mut world = World::with_handler(echo);
    let clients = world.joined(EXPIRED_PER_TURN + 10);
    for &client in &clients {
        let expiry = world.expiry_in_ms(1_000);
        world.hub.set_expiry(&world.session(client), expiry);
    }
    world.settle();
    world.skip_ms(1_000 + STEP_MS);
    world.turn();
    assert_eq!(world.metrics().expired, EXPIRED_PER_TURN as u64);
    assert_eq!(world.sleeps(), Some(Duration::ZERO));
    world.settle();
    assert_eq!(world.metrics().expired, clients.len() as u64);
}

#[test]
fn event_stream_with_a_past_expiry_is_refused_with_401() {
    let mut scene = Scene::new(SlowConsumer::Disconnect);
    // The expiry is in the past when the handler sets it.
    let stream = scene.ask("/events?expired");
    let world = &mut scene.world;
    world.run_handlers();
    let output = world.output(stream);
    assert!(
        output.starts_with(b"HTTP/1.1 401 "),
        "{:?}",
        String::from_utf8_lossy(&output)
    );
    assert!(output.ends_with(b"session expired\n"));
    assert!(world.is_finished(stream));
    assert_eq!(world.metrics().expired, 1);
    world.client_ends(stream);
    world.run_handlers();
    assert_eq!(world.expiries(), 0);
    world.assert_empty();
}

#[test]
fn event_stream_ends_when_it_expires() {
    let mut scene = Scene::new(SlowConsumer::Disconnect);
    // By the time in which the test itself runs: so it expires no earlier than that.
    let stream = scene.ask("/events?expires_in_ms=2000");
    let world = &mut scene.world;
    world.run_handlers();
    assert!(world.output(stream).starts_with(b"HTTP/1.1 200 "));
    world.advance_ms(1_900);
    assert!(!world.is_finished(stream));
    world.advance(Duration::from_secs(3_600));
    assert!(world.is_closed(stream));
    assert_eq!(world.metrics().expired, 1);
    world.assert_empty();
}
