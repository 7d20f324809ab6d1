//! Inspections: which connections are reported, in how many turns, and to whom.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::streams::Scene;
use super::wire::{UPGRADE, client_close, text};
use super::world::{Setup, World, echo};
use crate::engine::hub::inspection::UNANSWERED_MAX;
use crate::engine::model::inspection::{Answers, ConnectionReport, PendingInspection};
use crate::engine::model::replay::Replay;
use crate::engine::parts::encoding::Encoding;
use crate::engine::reactor::inspecting::WORK_PER_TURN;
use crate::limits::{Limits, SlowConsumer};

/// What the shard has answered by now.
fn answers(pending: PendingInspection) -> Answers {
    pending.wait(Instant::now())
}

/// The answer to an inspection of all connections, which the shard answers at once.
fn inspect(world: &mut World) -> Answers {
    let pending = world.hub.inspect(usize::MAX);
    world.settle();
    let answers = answers(pending);
    assert!(answers.is_complete);
    answers
}

/// The report on a client, if there is one.
fn report_on(world: &mut World, client: usize) -> Option<ConnectionReport> {
    let id = world.id(client);
    let reports = inspect(world).reports.into_iter();
    let mut of_client = reports.filter(|report| report.id == id);
    let report = of_client.next();
    assert!(of_client.next().is_none(), "it is reported twice");
    report
}

/// The waiting bytes of a client, and how many seconds the oldest of them have waited.
fn behind(world: &mut World, client: usize) -> (usize, u64) {
    let report = report_on(world, client).unwrap();
    (report.waiting_bytes, report.lag.as_secs())
}

fn with_policy(slow_consumer: SlowConsumer, outbox_bytes_max: usize) -> World {
    World::new(Setup {
        slow_consumer,
        limits: Limits {
            outbox_bytes_max,
            ..Limits::default()
        },
        handler: Box::new(echo),
        ..Setup::default()
    })
}

#[test]
fn slow_client_is_reported_with_its_bytes_and_lag() {
    let mut world = World::echoing(Limits::default());
    let (quick, slow) = (world.join(), world.join());
    world.stall(slow, 3);
    world.broadcasts("12345678");
    world.settle();
    world.advance_ms(4_000);
    world.broadcasts("12345678");
    world.settle();
    world.advance_ms(1_000);
    assert_eq!(behind(&mut world, quick), (0, 0));
    assert_eq!(behind(&mut world, slow), (2 * 10 - 3, 5));
    // The first message has left.
    world.client_reads(slow, 7);
    assert_eq!(behind(&mut world, slow), (10, 1));
    world.unstall(slow);
    assert_eq!(behind(&mut world, slow), (0, 0));
}

#[test]
fn lag_of_a_steady_slow_reader_stays_constant() {
    let mut world = World::echoing(Limits {
        write_bytes_per_second_min: 0,
        ..Limits::default()
    });
    let client = world.join();
    world.stall(client, 0);
    for second in 0..60 {
        world.broadcasts("12345678");
        world.settle();
        world.advance_ms(1_000);
        if second >= 5 {
            world.client_reads(client, 10);
            assert_eq!(behind(&mut world, client), (5 * 10, 5));
        }
    }
}

#[test]
fn lag_after_skipping_ahead_is_that_of_the_newest_message() {
    let mut world = with_policy(SlowConsumer::SkipAhead, 30);
    let client = world.join();
    world.stall(client, 0);
    for _ in 0..3 {
        world.broadcasts("12345678");
        world.settle();
    }
    world.advance_ms(20_000);
    assert_eq!(behind(&mut world, client), (30, 20));
    world.broadcasts("12345678");
    world.settle();
    world.advance_ms(2_000);
    assert_eq!(behind(&mut world, client), (10, 2));
}

#[test]
fn report_describes_the_connection() {
    let mut world = World::echoing(Limits::default());
    let client = world.connect();
    let upgrade = String::from_utf8(UPGRADE.to_vec()).unwrap();
    let (_, rest) = upgrade.split_once("\r\n").unwrap();
    let request = format!("GET /a/path?secret=1 HTTP/1.1\r\n{rest}");
    world.client_sends(client, request);
    world.run_handlers();
    let rooms = world.new_rooms(3);
    let watchers =
        Arc::new(crate::engine::SharedRoom::new(1 << 40, "watchers".into(), false, 1).unreported());
    let session = world.session(client);
    for room in rooms[..2].iter().chain([&watchers]) {
        let reserved = world.hub.reserve_join(&session, 0, 0).unwrap();
        world
            .hub
            .join(reserved, room, &session, Replay::default())
            .unwrap();
    }
    world.settle();
    world.advance_ms(10_500);
    let report = report_on(&mut world, client).unwrap();
    assert_eq!(report.encoding, Encoding::Frames);
    assert_eq!(report.peer, session.peer());
    assert_eq!(report.client_ip, session.peer().ip());
    assert_eq!(&*report.path, "/a/path");
    assert_eq!((report.user, report.subprotocol), (None, None));
    let mut rooms: Vec<&str> = report.rooms.iter().map(|room| &**room).collect();
    rooms.sort_unstable();
    assert_eq!(rooms, ["0", "1"]);
    assert!((10..=11).contains(&report.connected_for.as_secs()));
    assert!(!report.is_closing && !report.is_tls && !report.is_compressed);
}

#[test]
fn event_stream_is_reported_with_its_rooms() {
    let mut scene = Scene::new(SlowConsumer::Disconnect);
    let stream = scene.join();
    scene.world.stall(stream, 0);
    scene.publish("late");
    scene.world.settle();
    scene.world.advance_ms(3_000);
    let report = report_on(&mut scene.world, stream).unwrap();
    assert_eq!(report.encoding, Encoding::Events);
    // It follows broadcasts to everyone, too, which is no room.
    assert_eq!(report.rooms, [Arc::from("r")]);
    assert_eq!(&*report.path, "/events");
    assert_eq!(report.lag.as_secs(), 3);
    assert!(report.waiting_bytes > 4);
}

#[test]
fn connection_is_reported_until_it_has_ended() {
    let mut world = World::echoing(Limits::default());
    let (closed, slow, http) = (world.join(), world.join(), world.connect());
    world.stall(slow, 0);
    world.broadcasts("never read");
    world.closes(slow, 1008, "");
    world.client_sends(closed, client_close(1000));
    world.run_handlers();
    world.settle();
    world.advance_ms(1_000);
    assert!(report_on(&mut world, closed).is_none());
    assert!(report_on(&mut world, http).is_none());
    let report = report_on(&mut world, slow).unwrap();
    assert!(report.is_closing);
    // The message, and the close frame behind it.
    assert_eq!((report.waiting_bytes, report.lag.as_secs()), (12 + 4, 1));
    world.advance_ms(10_000);
    assert_eq!(inspect(&mut world).connections, 0);
}

#[test]
fn slowest_connections_are_selected_by_lag_then_bytes() {
    let mut world = World::echoing(Limits::default());
    let clients = world.joined(50);
    let send = |world: &mut World, client: usize, bytes: usize| {
        world.stall(client, 0);
        world.sends(client, &"x".repeat(bytes));
        world.settle();
    };
    send(&mut world, clients[30], 10);
    world.advance_ms(1_000);
    send(&mut world, clients[10], 10);
    send(&mut world, clients[40], 20);
    world.advance_ms(1_000);
    send(&mut world, clients[20], 100);
    let slowest = |world: &mut World, limit| {
        let pending = world.hub.inspect(limit);
        world.settle();
        let answers = answers(pending);
        assert_eq!(answers.connections, 50);
        let ids = answers.reports.iter().map(|report| report.id);
        let of = |id| clients.iter().position(|&client| world.id(client) == id);
        let mut found: Vec<usize> = ids.map(|id| of(id).unwrap()).collect();
        found.sort_unstable();
        found
    };
    assert_eq!(slowest(&mut world, 0), [0; 0]);
    assert_eq!(slowest(&mut world, 1), [30]);
    assert_eq!(slowest(&mut world, 2), [30, 40]);
    assert_eq!(slowest(&mut world, 3), [10, 30, 40]);
    assert_eq!(slowest(&mut world, 4), [10, 20, 30, 40]);
    assert_eq!(slowest(&mut world, 49).len(), 49);
    assert_eq!(slowest(&mut world, 1_000).len(), 50);
}

#[test]
fn one_connection_is_found_by_its_id_while_it_lasts() {
    let mut world = World::echoing(Limits::default());
    let (client, _other) = (world.join(), world.join());
    let id = world.id(client);
    let find = |world: &mut World| {
        let pending = world.hub.inspect_one(id);
        world.settle();
        let answers = answers(pending);
        assert!(answers.is_complete);
        assert_eq!(answers.reports.len(), answers.connections);
        answers.reports.first().map(|report| report.id)
    };
    assert_eq!(find(&mut world), Some(id));
    world.client_resets(client);
    world.run_handlers();
    assert_eq!(find(&mut world), None);
    // Another connection takes its slot.
    world.join();
    assert_eq!(find(&mut world), None);
    let nowhere = crate::engine::LocalId::new(7, 0, 0);
    let answers = answers(world.hub.inspect_one(nowhere));
    assert!(answers.is_complete && answers.reports.is_empty());
}

#[test]
fn busy_shard_answers_later_and_the_caller_goes_on() {
    let mut world = World::echoing(Limits::default());
    world.join();
    let late = world.hub.inspect(9);
    let early = answers(world.hub.inspect(9));
    assert!(!early.is_complete && early.reports.is_empty());
    assert!(world.is_due(), "the shard is woken");
    world.turn();
    let late = answers(late);
    assert!(late.is_complete && late.reports.len() == 1);
}

#[test]
fn unanswered_inspections_are_bounded_and_forgotten() {
    let mut world = World::echoing(Limits::default());
    world.join();
    for _ in 0..3 {
        let pending: Vec<_> = (0..100).map(|_| world.hub.inspect(9)).collect();
        let mut controls = Vec::new();
        let mailbox = &world.hub.shards[0].mailbox;
        mailbox.take(None, &mut controls);
        assert_eq!(controls.len(), UNANSWERED_MAX);
        drop(controls);
        // The shard has dropped these, as one that ends does.
        for pending in pending {
            assert!(!answers(pending).is_complete);
        }
        // The threads have gone before the shard answers.
        let gone: Vec<_> = (0..100).map(|_| world.hub.inspect(9)).collect();
        drop(gone);
        world.settle();
        assert!(inspect(&mut world).is_complete);
    }
}

#[test]
fn many_connections_are_inspected_in_portions() {
    const CLIENTS: usize = WORK_PER_TURN + 200;
    let mut world = World::echoing(Limits::default());
    let clients = world.joined(CLIENTS);
    world.stall(clients[0], 0);
    world.broadcasts("slow");
    world.settle();
    world.advance_ms(1_000);
    let before = world.turns;
    let pending = world.hub.inspect(10);
    world.settle();
    let answer = answers(pending);
    assert_eq!((answer.connections, answer.reports.len()), (CLIENTS, 10));
    let first = answer
        .reports
        .iter()
        .find(|report| report.waiting_bytes > 0);
    assert_eq!(first.unwrap().id, world.id(clients[0]));
    assert_eq!(world.turns - before, 2, "turns to rank all");

    // Another client is served between two portions, and those that end meanwhile are left out.
    let before = world.turns;
    let pending = world.hub.inspect(usize::MAX);
    world.turn();
    world
        .pipe(clients[1])
        .client_sends(&super::wire::client_text("am I heard?"));
    world.pipe(clients[2]).client_resets();
    world.turn();
    for _ in 0..world.jobs.len() {
        world.run_job(0);
    }
    world.hub.wake_deferred();
    world.turn();
    let frames = world.frames(clients[1]);
    assert_eq!(frames.last(), Some(&text("am I heard?")));
    assert!(world.is_due(), "the inspection goes on");
    world.settle();
    let turns = world.turns - before;
    assert!(turns > CLIENTS * 8 / WORK_PER_TURN, "{turns} turns");
    let answer = answers(pending);
    assert!(answer.is_complete);
    assert_eq!(answer.reports.len(), CLIENTS - 1);
    assert_ne!(world.sleeps(), Some(Duration::ZERO), "it sleeps again");
}

#[test]
fn inspection_that_nobody_awaits_is_ended_in_portions() {
    let mut world = World::echoing(Limits::default());
    world.joined(300);
    let pending = world.hub.inspect(usize::MAX);
    // It has collected reports, and is not done.
    world.turn();
    world.turn();
    assert!(world.is_due());
    drop(pending);
    let next = world.hub.inspect(1);
    world.settle();
    assert_eq!(answers(next).reports.len(), 1);
    assert_ne!(world.sleeps(), Some(Duration::ZERO), "it sleeps again");
}

#[test]
fn stopping_shard_releases_the_caller() {
    let mut world = World::echoing(Limits::default());
    world.joined(300);
    let deadline = Instant::now() + Duration::from_secs(60);
    let (begun, queued) = (world.hub.inspect(usize::MAX), world.hub.inspect(9));
    world.turn();
    assert!(world.is_due(), "the first is being answered");
    let in_mailbox = world.hub.inspect(9);
    let started = Instant::now();
    world.finish();
    let after_the_end = world.hub.inspect(9);
    for pending in [begun, queued, in_mailbox, after_the_end] {
        assert!(!pending.wait(deadline).is_complete);
    }
    assert!(started.elapsed() < Duration::from_secs(50), "it has waited");
}

#[test]
fn shard_that_closes_its_connections_still_answers() {
    let mut world = World::echoing(Limits::default());
    let client = world.join();
    world.stop(Duration::from_secs(3));
    assert!(report_on(&mut world, client).unwrap().is_closing);
}
