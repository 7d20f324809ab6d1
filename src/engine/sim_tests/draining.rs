//! Draining: connections are closed evenly over a time, and clients learn how long to wait.

use std::time::Duration;

use super::streams::Scene;
use super::wire::{Frame, client_close, text};
use super::world::{Told, World, echo};
use crate::limits::SlowConsumer;

const OVER: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_millis(2_500);

fn restart() -> Frame {
    let reason = "server is restarting, retry-after=2.500";
    Frame::Close(Some(1012), reason.into())
}

/// Returns which clients have got a close frame in the time that has passed. They reply to it.
fn closed(world: &mut World, clients: &[usize]) -> Vec<usize> {
    let mut closed = Vec::new();
    for &client in clients {
        let frames = world.frames(client);
        if let Some(last) = frames.last() {
            assert_eq!(frames, [restart()], "{last:?}");
            world.client_sends(client, client_close(1012));
            closed.push(client);
        }
    }
    world.run_handlers();
    closed
}

/// Expects that one to three clients are closed in each of the last five seconds of a drain. Removes them from `open`, and returns
/// their number for each second.
#[track_caller]
fn expect_even_closing(world: &mut World, open: &mut Vec<usize>) -> Vec<usize> {
    let mut counts = Vec::new();
    for _ in 0..5 {
        world.advance(Duration::from_secs(1));
        let gone = closed(world, open);
        open.retain(|client| !gone.contains(client));
        counts.push(gone.len());
    }
    assert!(
        counts.iter().all(|count| (1..=3).contains(count)),
        "{counts:?}"
    );
    counts
}

#[test]
fn drain_closes_connections_evenly_after_their_messages() {
    let mut world = World::with_handler(echo);
    let clients = world.joined(20);
    world.drain(OVER, WAIT);
    let mut open = clients.clone();
    for second in 0..10 {
        let payload = second.to_string();
        world.broadcasts(&payload);
        world.client_says(open[0], "echo");
        for &client in &open {
            let frames = world.frames(client);
            assert!(
                frames.contains(&text(&payload)),
                "until it is closed, all goes on"
            );
        }
        world.advance(Duration::from_secs(1));
        let gone = closed(&mut world, &open);
        assert_eq!(gone.len(), 2, "in second {second}");
        open.retain(|client| !gone.contains(client));
        assert_eq!(world.metrics().connections, open.len() as u64);
    }
    for &client in &clients {
        assert!(world.is_closed(client));
        assert_eq!(world.handled(client).last(), Some(&Told::Close));
    }
}

#[test]
fn clients_that_come_during_a_drain_share_the_rest_of_its_time() {
    let mut world = World::with_handler(echo);
    let mut open = world.joined(4);
    world.drain(OVER, WAIT);
    world.advance(OVER / 2);
    let gone = closed(&mut world, &open);
    assert_eq!(gone.len(), 2);
    open.retain(|client| !gone.contains(client));
    open.extend(world.joined(8));
    let counts = expect_even_closing(&mut world, &mut open);
    assert!(open.is_empty(), "{counts:?}");
}

#[test]
fn clients_that_come_to_an_emptied_shard_share_the_rest_of_the_time() {
    let mut world = World::with_handler(echo);
    // It keeps the drain going, and has no turn.
    let idle = world.connect();
    world.drain(OVER, WAIT);
    world.advance(OVER / 2);
    let mut open = world.joined(10);
    let counts = expect_even_closing(&mut world, &mut open);
    assert!(open.len() <= 1, "{counts:?}");
    world.client_ends(idle);
}

#[test]
fn drain_ends_when_no_connection_is_left() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.drain(OVER, WAIT);
    world.advance(OVER / 10);
    assert!(!world.is_drained());
    world.client_ends(client);
    world.run_handlers();
    assert!(world.is_drained());
    let mut unused = World::with_handler(echo);
    unused.drain(OVER, WAIT);
    assert!(unused.is_drained());
    assert_eq!(unused.sleeps(), None, "nothing is left to do");
}

#[test]
fn drain_ends_in_time_with_clients_that_do_not_reply() {
    let mut world = World::with_handler(echo);
    let mute = world.join();
    let idle = world.connect();
    world.drain(OVER, WAIT);
    world.advance(OVER / 2);
    assert_eq!(world.frames(mute), [restart()]);
    world.advance(OVER / 2 - Duration::from_millis(1));
    assert!(!world.is_drained());
    world.advance_ms(1);
    assert!(world.is_drained());
    world.stop(Duration::from_secs(1));
    assert!(world.is_closed(idle));
    world.finish();
}

#[test]
fn stop_during_a_drain_closes_the_rest_at_once() {
    let mut world = World::with_handler(echo);
    let clients = world.joined(3);
    world.drain(OVER, WAIT);
    world.stop(Duration::from_secs(1));
    for &client in &clients {
        assert_eq!(world.frames(client), [restart()]);
        world.client_sends(client, client_close(1012));
    }
    world.run_handlers();
    assert!(world.has_stopped());
    world.finish();
}

#[test]
fn second_drain_shortens_the_first_and_never_prolongs_it() {
    for (second, end) in [(OVER / 10, OVER / 10), (OVER * 3, OVER)] {
        let mut world = World::with_handler(echo);
        let clients = world.joined(100);
        world.drain(OVER, Duration::ZERO);
        world.drain(second, WAIT);
        world.advance(end - Duration::from_millis(1));
        let gone = closed(&mut world, &clients);
        assert_eq!(gone.len(), 100, "{second:?}");
        assert!(world.is_drained());
    }
}

#[test]
fn event_stream_is_told_its_reconnection_time_and_ends() {
    let mut scene = Scene::new(SlowConsumer::Disconnect);
    let stream = scene.join();
    scene.publish("last");
    scene.world.settle();
    scene.world.drain(OVER, WAIT);
    scene.world.advance(OVER / 2);
    let output = String::from_utf8(scene.world.output(stream)).unwrap();
    assert_eq!(output, "data: last\n\nretry: 2500\n\n");
    assert!(scene.world.is_finished(stream));
    scene.world.client_ends(stream);
    assert!(scene.world.is_closed(stream) && scene.world.is_drained());
}
