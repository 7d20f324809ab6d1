//! Handshakes that a host server has read, which the program decides about before the connection is handed over
//! (`handlers::pre_admission`).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::handshakes::{CHAT, gated, head};
use super::wire::{client_text, text};
use super::world::{World, echo};
use crate::engine::handlers::pre_admission::authorize;
use crate::engine::model::command::Upgraded;
use crate::engine::model::verdict::{AcceptedHandshake, Verdict};
use crate::limits::Limits;
use crate::request::Reject;

type Answers = Arc<Mutex<Option<Verdict>>>;

fn ask(world: &World, path: &str, more: &str) -> Answers {
    let told = Answers::default();
    let then = told.clone();
    let peer = ([192, 0, 2, 1], 1234).into();
    let tell = move |verdict| *then.lock().unwrap() = Some(verdict);
    authorize(&world.hub, head(path, more), peer, Box::new(tell));
    told
}

/// Runs the authorization job that bypasses the shard.
fn run_authorize_job(world: &mut World) {
    world.turn();
    world.run_handlers();
}

fn accepted(told: &Answers) -> Box<AcceptedHandshake> {
    match told.lock().unwrap().take() {
        Some(Verdict::Accepted(accepted)) => accepted,
        Some(Verdict::Rejected(reject)) => panic!("{reject}"),
        None => panic!("nothing was told"),
    }
}

fn rejected(told: &Answers) -> Reject {
    match told.lock().unwrap().take() {
        Some(Verdict::Rejected(reject)) => reject,
        Some(Verdict::Accepted(_)) => panic!("the handshake was accepted"),
        None => panic!("nothing was told"),
    }
}

#[test]
fn host_receives_the_verdict_of_the_program() {
    let (mut world, kept) = gated(Limits::default());
    let told = ask(&world, "/speak", CHAT);
    assert!(told.lock().unwrap().is_none(), "the handler has not run");
    run_authorize_job(&mut world);
    let accepted = accepted(&told);
    let names: Vec<_> = accepted.headers().iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "Upgrade",
            "Connection",
            "Sec-WebSocket-Accept",
            "Sec-WebSocket-Protocol",
            "X-Server"
        ]
    );
    let client = world.adopt(Upgraded {
        is_answered: true,
        early: client_text("early"),
        accepted: Some(accepted),
        ..Upgraded::default()
    });
    world.run_handlers();
    assert_eq!(world.all_frames(client), [text("early")]);
    assert_eq!(world.session(client).subprotocol(), Some("chat"));
    assert_eq!(world.requests(), (1, 0));
    world.forget_sessions();
    world.client_resets(client);

    let told = ask(&world, "/reject", "");
    run_authorize_job(&mut world);
    assert_eq!(rejected(&told).status(), 403);
    let told = ask(&world, "/panic", "");
    run_authorize_job(&mut world);
    assert_eq!(rejected(&told).status(), 500);
    assert_eq!(world.metrics().refused.handshake_handler, 2);
    world.assert_empty();
    kept.assert_dropped_by_handlers(1);
}

#[test]
fn host_with_an_invalid_request_is_refused_at_once() {
    let (world, _) = gated(Limits::default());
    let mut no_handshake = head("/", "");
    no_handshake.headers.retain(|(name, _)| name != "Upgrade");
    let told = Answers::default();
    let then = told.clone();
    let tell = move |verdict| *then.lock().unwrap() = Some(verdict);
    let peer = ([192, 0, 2, 1], 1234).into();
    authorize(&world.hub, no_handshake, peer, Box::new(tell));
    assert_eq!(rejected(&told).status(), 426);
    assert_eq!(world.metrics().handshake_failures.not_an_upgrade, 1);
    world.hub.stop(Duration::ZERO);
    assert_eq!(rejected(&ask(&world, "/", "")).status(), 503);
}

#[test]
fn host_without_a_handshake_handler_is_answered_at_once() {
    let world = World::with_handler(echo);
    accepted(&ask(&world, "/", ""));
}

#[test]
fn accepted_handshake_counts_as_a_connection_from_the_start() {
    let (mut world, _) = gated(Limits {
        connections_max: 2,
        peer_connections_max: Some(1),
        ..Limits::default()
    });
    let told = ask(&world, "/", "");
    assert_eq!(rejected(&ask(&world, "/", "")).status(), 429);
    run_authorize_job(&mut world);
    drop(accepted(&told));
    let told = ask(&world, "/", "");
    world.connect();
    assert_eq!(rejected(&ask(&world, "/", "")).status(), 503);
    run_authorize_job(&mut world);
    let mut accepted = accepted(&told);
    let peer_slot = accepted.peer_slot.take();
    let client = world.adopt(Upgraded {
        is_answered: true,
        accepted: Some(accepted),
        ..Upgraded::default()
    });
    assert_eq!(rejected(&ask(&world, "/", "")).status(), 503);
    world.client_resets(client);
    world.run_handlers();
    assert_eq!(rejected(&ask(&world, "/", "")).status(), 429);
    drop(peer_slot);
    ask(&world, "/", "");
    run_authorize_job(&mut world);
}

#[test]
fn host_is_refused_with_503_after_the_stop() {
    let (mut world, _) = gated(Limits::default());
    world.stop(Duration::from_secs(1));
    world.finish();
    world.hub.jobs.close();
    assert_eq!(rejected(&ask(&world, "/", "")).status(), 503);
}

#[test]
fn attachment_of_an_absent_client_is_dropped_by_a_handler() {
    let (mut world, kept) = gated(Limits::default());
    let told = ask(&world, "/", "");
    run_authorize_job(&mut world);
    drop(accepted(&told));
    run_authorize_job(&mut world);
    kept.assert_dropped_by_handlers(1);
}
