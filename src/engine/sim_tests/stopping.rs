//! Graceful shutdown: accepted messages are delivered, clients and handlers are notified, and nothing leaks.

use std::time::Duration;

use super::wire::{Frame, UPGRADE, client_close, client_text, text};
use super::world::{Setup, Told, World, echo, panic_quietly};
use crate::engine::model::job::{Job, SessionEvent, Work};
use crate::engine::model::program::Subscriptions;
use crate::engine::model::request::Response;
use crate::engine::parts::mailbox::PushError;
use crate::limits::SlowConsumer;
use crate::message::Message;
use crate::protocol::http::{self, BodyMode, Persistence};

fn is_going_away(frame: &Frame) -> bool {
    matches!(frame, Frame::Close(Some(1001), _))
}

const WAIT: Duration = Duration::from_secs(3);

#[test]
fn stop_delivers_accepted_messages_then_closes_with_1001() {
    let mut world = World::with_handler(echo);
    let clients = world.joined(3);
    for n in 0..10 {
        world.broadcasts(n.to_string());
    }
    world.stop(WAIT);
    assert_eq!(
        world.try_send(clients[0], "refused"),
        Err(PushError::Closed)
    );
    for &client in &clients {
        let frames = world.all_frames(client);
        let expected: Vec<_> = (0..10).map(|n| text(n.to_string())).collect();
        assert_eq!(frames[..10], expected);
        assert!(is_going_away(&frames[10]) && frames.len() == 11);
        assert!(!world.has_stopped());
        world.client_sends(client, client_close(1001));
        world.run_handlers();
        assert!(world.is_closed(client));
        assert_eq!(world.handled(client), [Told::Open, Told::Close]);
    }
    assert!(world.has_stopped());
    world.finish();
    assert_eq!(world.metrics().connections, 0);
}

#[test]
fn silent_clients_are_dropped_at_the_stop_deadline() {
    let mut world = World::with_handler(echo);
    let (mute, stuck, head) = (world.join(), world.join(), world.connect());
    world.stall(stuck, 0);
    world.broadcasts("never read");
    world.stop(WAIT);
    assert!(world.is_closed(head), "it has nothing to wait for");
    world.advance(WAIT - Duration::from_millis(1));
    assert!(!world.has_stopped());
    world.advance_ms(2);
    world.turn();
    assert!(world.has_stopped());
    world.finish();
    for client in [mute, stuck] {
        assert!(world.is_closed(client));
        assert_eq!(world.handled(client), [Told::Open, Told::Close]);
    }
    let metrics = world.metrics();
    assert_eq!((metrics.connections, metrics.dropped.closed), (0, 1));
}

#[test]
fn waiting_messages_are_handled_before_the_disconnect() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.client_says(client, "a");
    world.client_says(client, "b");
    world.stop(WAIT);
    world.run_handlers();
    world.advance(WAIT);
    world.turn();
    world.finish();
    let expected = [
        Told::Open,
        Told::message("a"),
        Told::message("b"),
        Told::Close,
    ];
    assert_eq!(world.handled(client), expected);
}

#[test]
fn handler_outlasting_the_stop_is_followed_by_disconnect() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.client_says(client, "its handler takes its time");
    world.client_says(client, "waits");
    let job = world.hold_job();
    world.stop(WAIT);
    world.advance(WAIT);
    world.turn();
    assert!(world.has_stopped());
    world.finish();
    assert!(world.is_closed(client));
    let told = world.told(client);
    assert!(told.contains(&Told::Left), "{told:?}");
    assert!(
        !told.contains(&Told::Close),
        "never two at a time: {told:?}"
    );
    let metrics = world.metrics();
    assert_eq!((metrics.connections, metrics.dropped.unhandled), (0, 1));
    world.run_held_job(job);
    assert_eq!(
        world.handled(client),
        [Told::message("its handler takes its time"), Told::Close]
    );
}

#[test]
fn handler_ending_after_its_shard_still_runs_disconnect() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.client_says(client, "in the last moment");
    world.stop(WAIT);
    world.advance(WAIT);
    world.turn();
    assert!(world.has_stopped());
    // The handler reports its end to the shard, which no longer processes reports.
    world.run_job(0);
    world.finish();
    let expected = [Told::Open, Told::message("in the last moment"), Told::Close];
    assert_eq!(world.handled(client), expected);
}

#[test]
fn paced_shard_with_a_stuck_client_stops_in_time() {
    let mut world = World::new(Setup {
        slow_consumer: SlowConsumer::Pace {
            bytes_per_second_min: 1,
            patience: Duration::from_secs(60),
        },
        ..Setup::default()
    });
    let (stuck, other) = (world.join(), world.join());
    world.stall(stuck, 0);
    let long = "x".repeat(100_000);
    for _ in 0..20 {
        world.broadcasts(&long);
    }
    world.settle();
    let got = world.all_frames(other).len();
    assert!(got < 20);
    world.stop(WAIT);
    world.advance(WAIT);
    world.turn();
    assert!(world.has_stopped());
    world.finish();
    let metrics = world.metrics();
    assert_eq!(metrics.connections, 0);
    // One for each of the two recipients: the held-back broadcast, and the message that the stuck client did not accept.
    let dropped = &metrics.dropped;
    let expected = (got as u64, got as u64, 2 * (20 - got as u64));
    let counted = (metrics.messages_out, dropped.closed, dropped.not_running);
    assert_eq!(counted, expected);
    assert_eq!(dropped.no_recipient, 0);
}

#[test]
fn paced_shard_delivers_accepted_messages_before_closing() {
    let mut world = World::new(Setup {
        slow_consumer: SlowConsumer::pace(),
        ..Setup::default()
    });
    let (slow, other) = (world.join(), world.join());
    world.stall(slow, 0);
    let long = "x".repeat(100_000);
    for _ in 0..20 {
        world.broadcasts(&long);
    }
    world.stop(WAIT);
    assert!(world.all_frames(other).len() < 20);
    world.unstall(slow);
    let frames = world.all_frames(slow);
    assert_eq!(frames.len(), 21);
    assert!(is_going_away(&frames[20]));
}

#[test]
fn client_arriving_during_the_stop_is_dropped() {
    let mut world = World::with_handler(echo);
    let first = world.join();
    world.stop(WAIT);
    let late = world.connect();
    assert!(world.is_closed(late));
    world.client_sends(first, client_close(1001));
    world.run_handlers();
    world.client_ends(first);
    assert!(world.has_stopped());
}

#[test]
fn request_in_a_handler_is_answered_before_the_stop_ends() {
    let mut world = World::new(Setup {
        subscriptions: Subscriptions {
            request: true,
            ..Subscriptions::default()
        },
        route: Box::new(|request| Response {
            head: http::response(
                200,
                &[],
                b"done",
                Persistence::keep_alive_if(request.keep_alive),
                BodyMode::Full,
            ),
            keep_alive: request.keep_alive,
            body: Vec::new(),
            rest: None,
            charge: None,
        }),
        ..Setup::default()
    });
    let (asks, idle) = (world.connect(), world.connect());
    for client in [asks, idle] {
        world.client_sends(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        if client == idle {
            let last = world.jobs.len() - 1;
            world.run_job(last);
            world.hub.wake_deferred();
            world.settle();
        }
    }
    world.stop(WAIT);
    assert!(world.is_closed(idle));
    assert!(!world.is_closed(asks));
    world.run_handlers();
    assert!(world.output(asks).ends_with(b"done"));
    assert!(world.is_finished(asks));
    world.client_ends(asks);
    assert!(world.has_stopped());
}

#[test]
fn handshake_during_the_stop_is_connected_and_closed() {
    let mut world = World::with_handler(echo);
    let stuck = world.join();
    let late = world.connect();
    world.stall(stuck, 0);
    world
        .pipe(late)
        .client_sends(&[UPGRADE, &client_text("a")].concat());
    world.stop(WAIT);
    world.run_handlers();
    if !world.is_closed(late) || world.pipe(late).written > 0 {
        assert!(world.head(late).starts_with("HTTP/1.1 101 "));
        assert!(world.all_frames(late).iter().any(is_going_away));
    }
    world.advance(WAIT);
    world.turn();
    world.finish();
    assert_eq!(world.metrics().connections, 0);
}

#[test]
fn nothing_leaks_after_many_connections() {
    let mut world = World::with_handler(echo);
    for round in 0..200 {
        let clients = world.joined(5);
        for (n, &client) in clients.iter().enumerate() {
            world.client_says(client, "a");
            match (round + n) % 5 {
                0 => world.client_resets(client),
                1 => world.client_ends(client),
                2 => world.client_sends(client, client_close(1000)),
                3 => world.closes(client, 1000, ""),
                _ => world.client_sends(client, [0xFF, 0xFF]),
            }
            world.broadcasts("b");
        }
        world.run_handlers();
        world.advance_ms(5_100);
        world.run_handlers();
        for client in clients {
            assert!(world.is_closed(client));
            let told = world.told(client);
            assert_eq!((&told[0], &told[1]), (&Told::Entered, &Told::Open));
            assert_eq!(told[told.len() - 2..], [Told::Left, Told::Close]);
        }
    }
    world.assert_empty();
    assert!(
        world.core().conns.next_key().slot < 5,
        "places are used again"
    );
    world.advance(Duration::from_secs(11));
    assert_eq!(world.sleeps(), None);
}

#[test]
fn disconnect_runs_after_a_panic_in_the_same_job() {
    let mut world = World::with_handler(|_, _, told| {
        if matches!(told, Told::Message(_)) {
            panic_quietly();
        }
    });
    let client = world.join();
    let events = vec![
        SessionEvent::Message(Message::new("a")),
        SessionEvent::Message(Message::new("b")),
        SessionEvent::Close,
    ];
    let job = Job {
        to: Some((0, world.key(client))),
        work: Work::Session(world.session(client), events, 0),
    };
    world.run_held_job(job);
    let expected = [Told::Open, Told::message("a"), Told::Close];
    assert_eq!(world.handled(client), expected);
}
