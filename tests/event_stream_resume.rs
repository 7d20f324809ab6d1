//! Event streams that resume after the last event that their client has seen, without gaps or duplicates.

use crate::events;
use crate::support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use events::{EventSource, STOP, answer, app, request, serve, text};
use humphrey_ws::{HistoryLimits, Limits, Subscription};
use support::{DEADLINE, eventually, start};

#[test]
fn reconnecting_client_gets_missed_then_live_messages() {
    let (running, address) =
        serve(app().with_history("news", HistoryLimits::messages(100).bytes(10_000)));
    let news = running.sender().room("news");
    news.broadcast(text("before anyone came"));
    let mut source = EventSource::open(address, "/events?room=news");
    let begin = source.position();
    assert!(
        begin.ends_with("-1"),
        "a position without messages: {begin}"
    );
    for n in 2..=4 {
        news.broadcast(text(format!("{n}")));
    }
    assert_eq!(source.texts(3), ["2", "3", "4"]);
    let last = source.last_event_id.clone();
    assert_eq!(
        Some(last.as_str()),
        news.last_id().map(|id| id.to_string()).as_deref()
    );
    drop(source);
    news.broadcast(text("5"));
    news.broadcast(text("6"));
    let targets = [
        ("/events?room=news".to_owned(), last.as_str()),
        (format!("/events?room=news&lastEventId={last}"), ""),
    ];
    for (target, header) in targets {
        let mut source = EventSource::resume(address, &target, header);
        assert_eq!(source.texts(2), ["5", "6"]);
    }
    let mut source = EventSource::resume(address, "/events?room=news", &begin);
    assert_eq!(source.texts(5), ["2", "3", "4", "5", "6"]);
    news.broadcast(text("7"));
    assert_eq!(source.text(), "7");
    running.shutdown(STOP);
}

#[test]
fn gap_beyond_the_history_is_reported_before_the_replay() {
    let (running, address) =
        serve(app().with_history("*", HistoryLimits::messages(2).bytes(10_000)));
    let news = running.sender().room("news");
    let mut source = EventSource::open(address, "/events?room=news");
    let begin = source.position();
    for n in 1..=5 {
        news.broadcast(text(format!("{n}")));
    }
    for asked in [begin.as_str(), "dead-1", "not an id"] {
        let mut source = EventSource::resume(address, "/events?room=news", asked);
        let event = source.next();
        assert_eq!((&*event.kind, &*event.data), ("reset", asked));
        assert_eq!(source.texts(2), ["4", "5"]);
    }
    // A room with an empty history sends its position, so that the next reconnect causes no reset.
    let mut source = EventSource::resume(address, "/events?room=quiet", "dead-1");
    let event = source.next();
    assert_eq!(event.kind, "reset");
    let mut source = EventSource::resume(address, "/events?room=quiet", &event.id);
    running.sender().room("quiet").broadcast(text("hi"));
    assert_eq!(source.text(), "hi");
    running.shutdown(STOP);
}

#[test]
fn resume_in_an_evicted_room_reports_a_gap() {
    let limits = Limits::default().rooms_max(3);
    let (running, address) = start(
        app()
            .with_limits(limits)
            .with_history("*", HistoryLimits::messages(100).bytes(10_000))
            .with_event_stream("/events", |_, _| Ok(Subscription::room("a").and_room("b"))),
    );
    let sender = running.sender();
    let publish = |room: &str, data: &str| sender.room(room).broadcast(text(data));
    let mut source = EventSource::open(address, "/events");
    publish("a", "a1");
    let seen = source.next().id;
    drop(source);
    eventually("the stream has ended", || {
        sender.metrics().event_streams == 0
    });
    publish("b", "b1");
    publish("a", "a2");
    let mut source = EventSource::resume(address, "/events", &seen);
    assert_eq!(source.texts(2), ["b1", "a2"]);
    drop(source);
    eventually("the stream has ended", || {
        sender.metrics().event_streams == 0
    });
    // The fourth room evicts the least recently used one.
    publish("c", "c1");
    publish("d", "d1");
    assert!(sender.room("b").since(None).unwrap().is_empty());
    // A subscription alone evicts no room, but a message does.
    let (head, _) = answer(address, &request("GET", "/events", ""));
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    publish("a", "a3");
    publish("b", "b2");
    let mut source = EventSource::resume(address, "/events", &seen);
    assert_eq!(source.next().kind, "reset");
    assert_eq!(source.texts(4), ["a1", "a2", "a3", "b2"]);
    running.shutdown(STOP);
}

#[test]
fn room_without_history_ignores_the_last_event_id() {
    let (running, address) = serve(app());
    let mut source = EventSource::resume(address, "/events?room=news", "dead-1");
    running.sender().room("news").broadcast(text("hi"));
    assert_eq!(source.text(), "hi");
    running.shutdown(STOP);
}

#[test]
fn first_connection_gets_the_history_if_configured() {
    let (running, address) = start(
        app()
            .with_history("*", HistoryLimits::messages(10).bytes(10_000))
            .with_event_stream("/events", |_, _| {
                Ok(Subscription::room("a").and_room("b").with_history())
            }),
    );
    let sender = running.sender();
    for n in 0..4 {
        sender.room("a").broadcast(text(format!("a{n}")));
        sender.room("b").broadcast(text(format!("b{n}")));
    }
    let mut source = EventSource::open(address, "/events");
    assert_eq!(
        source.texts(8),
        ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"],
        "the order of publication"
    );
    running.shutdown(STOP);
}

#[test]
fn stream_of_several_rooms_resumes_from_the_id_of_any() {
    let (running, address) = start(
        app()
            .with_history("*", HistoryLimits::messages(100).bytes(10_000))
            .with_event_stream("/events", |_, _| {
                Ok(Subscription::room("a").and_room("b").and_room("c"))
            }),
    );
    let sender = running.sender();
    let mut source = EventSource::open(address, "/events");
    let mut ids = vec![source.position()];
    let rooms = ["a", "b", "b", "a", "c", "a"];
    for (n, room) in rooms.iter().enumerate() {
        sender.room(room).broadcast(text(format!("{n}")));
        ids.push(source.next().id);
    }
    for (seen, id) in ids.iter().enumerate() {
        let mut source = EventSource::resume(address, "/events", id);
        sender.room("a").broadcast(text("live"));
        let expected: Vec<String> = (seen..rooms.len()).map(|n| n.to_string()).collect();
        assert_eq!(source.texts(expected.len()), expected, "after {seen}");
        // Live messages of the earlier rounds and of this one.
        assert_eq!(source.texts(seen + 1), vec!["live"; seen + 1]);
    }
    running.shutdown(STOP);
}

/// Creates an app with a stream of three rooms, of which `c` has no history.
fn serve_three() -> (humphrey_ws::RunningApp, std::net::SocketAddr) {
    start(
        app()
            .with_history("c", HistoryLimits::NONE)
            .with_history("*", HistoryLimits::messages(3).bytes(10_000))
            .with_event_stream("/events", |_, _| {
                Ok(Subscription::room("a").and_room("b").and_room("c"))
            }),
    )
}

#[test]
fn stream_names_its_rooms_on_request() {
    let (running, address) = serve_three();
    let sender = running.sender();
    for room in ["a", "b", "c"] {
        sender.room(room).broadcast(text("before"));
    }
    let epoch = |room: &str| format!("{:x}", sender.room(room).last_id().unwrap().epoch());
    let mut source = EventSource::open(address, "/events?eventRooms");
    let event = source.next();
    // The event also has the position of the stream, which is after the latest message.
    let position = format!("{}-1", epoch("b"));
    assert_eq!((&*event.kind, &event.id), ("rooms", &position));
    let expected = |first: &str, second: &str| {
        format!(
            "{{\"{}\":\"{first}\",\"{}\":\"{second}\"}}",
            epoch(first),
            epoch(second)
        )
    };
    assert!(
        [expected("a", "b"), expected("b", "a")].contains(&event.data),
        "{event:?}"
    );
    for room in ["b", "a", "c"] {
        sender.room(room).broadcast(text(room));
    }
    for room in ["b", "a"] {
        let event = source.next();
        assert_eq!(
            (&*event.data, event.id.split('-').next()),
            (room, Some(&*epoch(room)))
        );
    }
    assert_eq!(source.text(), "c");
    // The event precedes the reset, and only clients that request it receive it.
    let mut source = EventSource::open(address, "/events?eventRooms&lastEventId=dead-1");
    assert_eq!([source.next().kind, source.next().kind], ["rooms", "reset"]);
    let mut source = EventSource::open(address, "/events?lastEventId=dead-1");
    assert_eq!(source.next().kind, "reset");
    running.shutdown(STOP);
}

#[test]
fn resume_from_an_id_of_each_room_repeats_and_loses_nothing() {
    let (running, address) = serve_three();
    let sender = running.sender();
    let say = |room: &str, what: &str| {
        sender.room(room).broadcast(text(what));
        sender.room(room).last_id().unwrap().to_string()
    };
    let (a1, _b1, b2) = (say("a", "a1"), say("b", "b1"), say("b", "b2"));
    let (a2, _b3) = (say("a", "a2"), say("b", "b3"));
    let resumed = |ids: &[&str]| {
        let ids: Vec<_> = ids.iter().map(|id| format!("lastEventId={id}")).collect();
        EventSource::open(address, &format!("/events?{}", ids.join("&")))
    };
    // Resumes after one id of each room, in any order. Ids of other rooms are ignored.
    for ids in [&[&*a1, &*b2][..], &[&b2, "dead-7", &a1, "none"]] {
        assert_eq!(resumed(ids).texts(2), ["a2", "b3"], "{ids:?}");
    }
    // One id also gives the position in the other rooms. Of several ids of a room, the last one counts.
    assert_eq!(resumed(&[&a2]).texts(1), ["b3"]);
    assert_eq!(resumed(&[&a1, &a2, &b2]).texts(1), ["b3"]);
    // Missing messages in one room are a gap.
    for n in 4..8 {
        say("b", &format!("b{n}"));
    }
    assert_eq!(resumed(&[&a2, &b2]).next().kind, "reset");
    assert_eq!(resumed(&["dead-1", "beef-2"]).next().data, "dead-1 beef-2");
    running.shutdown(STOP);
}

#[test]
fn stream_begins_while_each_new_message_displaces_one() {
    let (running, address) = start(
        app()
            .with_history("news", HistoryLimits::messages(5))
            .with_event_stream("/events", |_, _| {
                Ok(Subscription::room("news").with_history())
            }),
    );
    let stop = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> = (0..2)
        .map(|_| {
            let (room, stop) = (running.sender().room("news"), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    room.broadcast(text("x".repeat(5_000)));
                }
            })
        })
        .collect();
    for _ in 0..20 {
        let event = EventSource::open(address, "/events").next();
        assert_eq!(event.kind, "message", "{event:?}");
    }
    stop.store(true, Ordering::SeqCst);
    for publisher in publishers {
        publisher.join().unwrap();
    }
    running.shutdown(DEADLINE);
}

#[test]
fn resume_during_publishing_loses_and_repeats_nothing() {
    const ROOMS: usize = 3;
    const ROUNDS: usize = 100;
    /// A small number, so that the client has nearly always caught up when it reconnects.
    const AHEAD_MAX: usize = 20;
    let (running, address) = start(
        app()
            .with_history("*", HistoryLimits::messages(10_000).bytes(10_000_000))
            .with_event_stream("/events", |_, _| {
                Ok((0..ROOMS).fold(Subscription::broadcasts(), |all, n| {
                    all.and_room(format!("{n}"))
                }))
            }),
    );
    let stop = Arc::new(AtomicBool::new(false));
    let read = Arc::new([const { AtomicUsize::new(0) }; ROOMS]);
    let mut first = EventSource::open(address, "/events");
    let mut last = first.position();
    drop(first);
    let publishers: Vec<_> = (0..ROOMS)
        .map(|n| {
            let room = running.sender().room(&n.to_string());
            let (stop, read) = (stop.clone(), read.clone());
            std::thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::SeqCst) {
                    // Slow enough for the client to keep up.
                    if count < read[n].load(Ordering::SeqCst) + AHEAD_MAX {
                        room.broadcast(text(format!("{n} {count}")));
                        count += 1;
                    }
                    std::thread::yield_now();
                }
                count
            })
        })
        .collect();
    let mut expected = [0; ROOMS];
    let mut check = |data: &str| {
        let (room, count) = data.split_once(' ').unwrap();
        let room: usize = room.parse().unwrap();
        assert_eq!(count.parse(), Ok(expected[room]), "of room {room}");
        expected[room] += 1;
        read[room].store(expected[room], Ordering::SeqCst);
    };
    for round in 0..ROUNDS {
        let mut source = EventSource::resume(address, "/events", &last);
        for _ in 0..20 + round % 13 {
            let event = source.next();
            assert_eq!(event.kind, "message", "{event:?}");
            check(&event.data);
        }
        last = source.last_event_id.clone();
    }
    stop.store(true, Ordering::SeqCst);
    let sent: Vec<usize> = publishers
        .into_iter()
        .map(|publisher| publisher.join().unwrap())
        .collect();
    let source = EventSource::resume(address, "/events", &last);
    running.shutdown(DEADLINE);
    for data in source.rest() {
        check(&data);
    }
    assert_eq!(expected.to_vec(), sent);
}

#[test]
fn replay_of_several_rooms_keeps_the_live_order() {
    const ROOMS: usize = 4;
    const EACH: usize = 5_000;
    let (running, address) = start(
        app()
            .with_history("*", HistoryLimits::messages(EACH).bytes(10_000_000))
            .with_limits(Limits::default().outbox_bytes_max(100_000_000))
            .with_event_stream("/events", |_, _| {
                Ok((0..ROOMS).fold(Subscription::broadcasts(), |all, n| {
                    all.and_room(format!("{n}"))
                }))
            }),
    );
    let mut live = EventSource::open(address, "/events");
    let begin = live.position();
    let publishers: Vec<_> = (0..ROOMS)
        .map(|n| {
            let room = running.sender().room(&n.to_string());
            std::thread::spawn(move || (0..EACH).for_each(|n| room.broadcast(text(format!("{n}")))))
        })
        .collect();
    let came: Vec<String> = (0..ROOMS * EACH).map(|_| live.next().id).collect();
    for publisher in publishers {
        publisher.join().unwrap();
    }
    live = EventSource::resume(address, "/events", &begin);
    let replayed: Vec<String> = (0..ROOMS * EACH).map(|_| live.next().id).collect();
    // So all messages that a client has not seen follow the last id that it has seen.
    assert!(replayed == came);
    running.shutdown(STOP);
}
