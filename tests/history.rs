//! The history of rooms: ids without gaps, replays without gaps or duplicates, and bounds.

use crate::support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use humphrey_ws::{
    AsyncWebsocketApp, HistoryId, HistoryLimits, JoinErrorReason, Limits, Message, RunningApp,
    SendErrorReason,
};
use support::{Client, eventually, start};

const STOP: Duration = Duration::from_millis(100);

fn message(text: impl std::fmt::Display) -> Message {
    Message::new(text.to_string())
}

/// Starts an app whose clients join the room `r` after the id in their path. `/all` requests the whole history.
/// After the replay, each client receives the number of replayed messages.
fn resuming() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_shards(2)
        .with_connect_handler(|stream, _| {
            let id = match &stream.path()[1..] {
                "all" => None,
                id => Some(id.parse().expect("an id")),
            };
            match stream.join_since("r", id) {
                Ok(messages) => stream.send(message(format!("replayed {messages}"))),
                Err(error) => stream.send(message(format!("{:?}", error.reason))),
            }
        })
}

fn texts(running: &RunningApp, id: Option<HistoryId>) -> Vec<String> {
    let kept = running
        .sender()
        .room("r")
        .since(id)
        .expect("the history reaches back to the id");
    let text = |(_, message): &(HistoryId, Message)| message.text().unwrap().to_owned();
    kept.iter().map(text).collect()
}

#[test]
fn ids_have_one_epoch_and_no_gaps() {
    let app = resuming().with_history("r", HistoryLimits::messages(10).bytes(1_000));
    let (running, _) = start(app);
    let room = running.sender().room("r");
    assert_eq!(room.last_id(), None);
    for n in 1..=25 {
        room.broadcast(message(n));
        let id = room.last_id().unwrap();
        assert_eq!(id.sequence(), n);
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    let kept = room.since(None).unwrap();
    let sequences: Vec<u64> = kept.iter().map(|(id, _)| id.sequence()).collect();
    assert_eq!(sequences, (16..=25).collect::<Vec<_>>());
    assert!(
        kept.iter()
            .all(|(id, message)| message.text() == Some(&id.sequence().to_string()))
    );
    let id = |index: usize| Some(kept[index].0);
    assert_eq!(texts(&running, id(6)), ["23", "24", "25"]);
    assert_eq!(texts(&running, id(9)), [""; 0]);

    // The history is also bounded in bytes.
    for _ in 0..5 {
        room.broadcast(message("x".repeat(400)));
    }
    assert_eq!(room.since(None).unwrap().len(), 2);
    let gone = room.since(id(9)).unwrap_err();
    assert_eq!(Some(gone.asked), id(9));
    assert_eq!(gone.oldest.map(|id| id.sequence()), Some(29));
    // Messages in the history do not count as lost, even without members.
    assert_eq!(running.sender().metrics().dropped.total(), 0);
    running.shutdown(STOP);
}

#[test]
fn room_without_history_stores_nothing() {
    let app = resuming()
        .with_history("secret/*", HistoryLimits::NONE)
        .with_history("*", HistoryLimits::messages(10).bytes(1_000));
    let (running, _) = start(app);
    let sender = running.sender();
    for room in ["secret/a", "public"] {
        sender.room(room).broadcast(message("x"));
    }
    assert!(sender.room("secret/a").since(None).unwrap().is_empty());
    assert_eq!(sender.room("secret/a").last_id(), None);
    assert_eq!(sender.room("public").since(None).unwrap().len(), 1);
    let foreign = sender.room("public").last_id();
    assert!(sender.room("secret/a").since(foreign).is_err());
    assert!(sender.everyone().since(None).unwrap().is_empty());
    assert_eq!(
        sender.metrics().rooms,
        1,
        "only the room with a history is left"
    );
    running.shutdown(STOP);
}

#[test]
fn join_since_replays_or_reports_a_gap() {
    let (running, address) =
        start(resuming().with_history("r", HistoryLimits::messages(5).bytes(10_000)));
    let room = running.sender().room("r");
    let ids: Vec<HistoryId> = (1..=8)
        .map(|n| {
            room.broadcast(message(n));
            room.last_id().unwrap()
        })
        .collect();
    let mut all = Client::connect_to(address, "/all");
    let mut some = Client::connect_to(address, &format!("/{}", ids[5]));
    let mut last = Client::connect_to(address, &format!("/{}", ids[7]));
    for n in 4..=8 {
        assert_eq!(all.receive_text(), n.to_string());
    }
    assert_eq!(all.receive_text(), "replayed 5");
    assert_eq!(
        (some.receive_text(), some.receive_text()),
        ("7".into(), "8".into())
    );
    assert_eq!(some.receive_text(), "replayed 2");
    assert_eq!(last.receive_text(), "replayed 0");

    let mut early = Client::connect_to(address, &format!("/{}", ids[0]));
    assert_eq!(early.receive_text(), "HistoryGone");
    let foreign = "1-5".parse::<HistoryId>().unwrap();
    let mut other = Client::connect_to(address, &format!("/{foreign}"));
    assert_eq!(other.receive_text(), "HistoryGone");
    assert_eq!(room.len(), 3, "a refused client is in the room");
    room.broadcast(message("live"));
    for client in [&mut all, &mut some, &mut last] {
        assert_eq!(client.receive_text(), "live");
    }
    running.shutdown(STOP);
}

#[test]
fn replay_turns_live_without_gap_or_duplicate() {
    const SENDERS: usize = 4;
    const MESSAGES: usize = 2_000;
    let (running, address) =
        start(resuming().with_history("r", HistoryLimits::messages(100_000).bytes(16 << 20)));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for sender in 0..SENDERS {
            let room = running.sender().room("r");
            scope.spawn(move || {
                for n in 0..MESSAGES {
                    room.broadcast_with(|id| message(format!("{} {sender} {n}", id.unwrap())));
                }
            });
        }
        let clients: Vec<_> = (0..12)
            .map(|_| {
                let (done, running) = (&done, &running);
                scope.spawn(move || {
                    let room = running.sender().room("r");
                    let since = room.last_id();
                    let path = since.map_or("/all".to_owned(), |id| format!("/{id}"));
                    let mut client = Client::connect_to(address, &path);
                    let mut next = since.map_or(1, |id| id.sequence() + 1);
                    let mut of = [None; SENDERS];
                    while next <= (SENDERS * MESSAGES) as u64 {
                        let text = client.receive_text();
                        let words: Vec<&str> = text.split(' ').collect();
                        let [id, sender, n] = words[..] else {
                            assert!(text.starts_with("replayed "), "{text}");
                            continue;
                        };
                        let id: HistoryId = id.parse().unwrap();
                        assert_eq!(id.sequence(), next, "the ids have a gap");
                        next += 1;
                        let (sender, n): (usize, usize) =
                            (sender.parse().unwrap(), n.parse().unwrap());
                        let before = of[sender].replace(n);
                        assert!(
                            before.is_none_or(|before| before + 1 == n),
                            "the messages of a sender are out of order"
                        );
                        assert!(!done.load(Ordering::Relaxed));
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    running.shutdown(STOP);
}

/// Receives messages up to the number of replayed ones. Returns the sequences of these messages.
fn receive_replay(client: &mut Client) -> Vec<u64> {
    let mut sequences = Vec::new();
    loop {
        let text = client.receive_text();
        if let Some(replayed) = text.strip_prefix("replayed ") {
            assert_eq!(replayed, sequences.len().to_string());
            return sequences;
        }
        let id: HistoryId = text.split(' ').next().unwrap().parse().unwrap();
        sequences.push(id.sequence());
    }
}

#[test]
fn replays_that_clients_share_follow_the_history() {
    const KEPT: usize = 2_000;
    let (running, address) =
        start(resuming().with_history("r", HistoryLimits::messages(KEPT).bytes(16 << 20)));
    let room = running.sender().room("r");
    let publish = |count: usize| {
        for _ in 0..count {
            room.broadcast_with(|id| message(format!("{} {:0150}", id.unwrap(), 0)));
        }
    };
    publish(KEPT);
    let epoch = room.last_id().unwrap().to_string();
    let epoch = epoch.rsplit_once('-').unwrap().0;
    let mut members = Vec::new();
    for n in 0..40 {
        // Sometimes the history no longer contains anything that earlier clients got.
        publish(if n % 10 == 5 && n < 30 {
            2 * KEPT
        } else {
            7 * n
        });
        let last = room.last_id().unwrap().sequence();
        let oldest = last - KEPT as u64 + 1;
        let seen = (n % 3 > 0).then(|| oldest - 1 + (n * n * 37 % KEPT) as u64);
        let path = seen.map_or("/all".to_owned(), |seen| format!("/{epoch}-{seen}"));
        let mut client = Client::connect_to(address, &path);
        let first = seen.map_or(oldest, |seen| seen + 1);
        let expected: Vec<u64> = (first..=last).collect();
        assert_eq!(receive_replay(&mut client), expected, "client {n}, {path}");
        if n >= 30 {
            members.push((client, last));
        }
    }
    let last = room.last_id().unwrap().sequence();
    for (mut client, replayed) in members {
        for sequence in replayed + 1..=last {
            let live = client.receive_text();
            assert!(live.starts_with(&format!("{epoch}-{sequence} ")), "{live}");
        }
    }
    running.shutdown(STOP);
}

#[test]
fn repeated_join_replays_nothing_to_a_member() {
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_history("r", HistoryLimits::messages(10).bytes(1_000))
        .with_connect_handler(|stream, _| {
            stream.join("r");
            stream.send(message("joined"));
        })
        .with_message_handler(|stream, _, _| {
            let replayed = stream.join_since("r", None).unwrap();
            stream.send(message(format!("replayed {replayed}")));
        });
    let (running, address) = start(app);
    let mut client = Client::connect(address);
    assert_eq!(client.receive_text(), "joined");
    running.sender().room("r").broadcast(message("once"));
    client.send("again");
    assert_eq!(client.receive_text(), "once");
    assert_eq!(client.receive_text(), "replayed 0");
    running.shutdown(STOP);
}

#[test]
fn replay_over_the_outbox_bound_is_not_slow() {
    let app = resuming()
        .with_history("r", HistoryLimits::messages(1_000).bytes(8 << 20))
        .with_limits(
            Limits::default()
                .outbox_bytes_max(64 << 10)
                .mailbox_bytes_max(64 << 10),
        );
    let (running, address) = start(app);
    let room = running.sender().room("r");
    for n in 0..1_000 {
        room.broadcast(message(format!("{n} {}", "x".repeat(4_000))));
    }
    let mut client = Client::connect_to(address, "/all");
    for n in 0..1_000 {
        assert!(client.receive_text().starts_with(&format!("{n} ")));
    }
    assert_eq!(client.receive_text(), "replayed 1000");
    assert_eq!(running.sender().metrics().slow_consumers, 0);
    running.shutdown(STOP);
}

#[test]
fn least_used_room_with_history_is_evicted_first() {
    let app = resuming()
        .with_history("*", HistoryLimits::messages(3).bytes(1_000))
        .with_limits(Limits::default().rooms_max(32));
    let (running, address) = start(app);
    let sender = running.sender();
    let mut inside = Client::connect_to(address, "/all");
    assert_eq!(inside.receive_text(), "replayed 0");
    for n in 0..100 {
        sender.room(&format!("user {n}")).broadcast(message(n));
        sender.room("often").broadcast(message(n));
        assert!(sender.metrics().rooms <= 32);
    }
    assert!(sender.room("user 0").since(None).unwrap().is_empty());
    assert_eq!(sender.room("user 99").since(None).unwrap().len(), 1);
    assert_eq!(sender.room("often").last_id().unwrap().sequence(), 100);
    // The room with a member was not evicted, and is still the same.
    sender.room("r").broadcast(message("still there"));
    assert_eq!(inside.receive_text(), "still there");
    running.shutdown(STOP);
}

#[test]
fn rooms_without_history_are_evicted_first() {
    let app = resuming()
        .with_history("*", HistoryLimits::messages(3).bytes(1_000))
        .with_limits(Limits::default().rooms_max(8));
    let (running, address) = start(app);
    let sender = running.sender();
    for n in 0..4 {
        sender.room(&format!("talk {n}")).broadcast(message(n));
    }
    // Clients that join rooms with new names, send nothing and leave do not evict rooms with messages.
    let visitor = Client::connect_to(address, "/all");
    eventually("the client is in the room", || sender.room("r").len() == 1);
    let id = sender.room("r").members()[0];
    for n in 0..100 {
        let room = sender.room(&format!("made up {n}"));
        room.try_join(id).expect("the join succeeds");
        room.leave(id);
    }
    for n in 0..4 {
        let kept = sender.room(&format!("talk {n}")).since(None).unwrap();
        assert_eq!(kept.len(), 1, "talk {n}");
    }
    drop(visitor);
    running.shutdown(STOP);
}

#[test]
fn refused_message_gets_no_id() {
    let app = resuming()
        .with_history("r", HistoryLimits::messages(10).bytes(1_000))
        .with_limits(Limits::default().message_bytes_max(100));
    let (running, _) = start(app);
    let room = running.sender().room("r");
    let error = room.try_broadcast(message("x".repeat(101))).unwrap_err();
    assert_eq!(error.reason, SendErrorReason::TooLarge);
    assert_eq!(room.last_id(), None);
    room.try_broadcast(message("fits")).unwrap();
    assert_eq!(room.last_id().unwrap().sequence(), 1);
    running.shutdown(STOP);
    let late = room.try_broadcast(message("late")).unwrap_err();
    assert_eq!(late.reason, SendErrorReason::Closed);
    assert_eq!(room.broadcast_with(|_| message("late")), None);
}

#[test]
fn join_needing_missing_history_is_refused() {
    let (running, address) = start(resuming());
    let mut plain = Client::connect_to(address, "/all");
    assert_eq!(plain.receive_text(), "replayed 0");
    let mut resumes = Client::connect_to(address, "/1-1");
    let refused = format!("{:?}", JoinErrorReason::HistoryGone);
    assert_eq!(resumes.receive_text(), refused);
    assert_eq!(running.sender().room("r").len(), 1);
    plain.close();
    eventually("the room is freed", || {
        running.sender().metrics().rooms == 0
    });
    running.shutdown(STOP);
}

/// Publishes with slow closures. Returns the number of calls of each closure, and the assigned sequences.
fn publish_with_slow_closures(
    room: &humphrey_ws::Room,
    producers: usize,
    messages: usize,
) -> (usize, Vec<u64>) {
    let calls = AtomicUsize::new(0);
    let given = Mutex::new(Vec::new());
    let (publishing, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // Whether another producer is publishing, or all others are done.
    let is_contended = || publishing.load(SeqCst) > 1 || done.load(SeqCst) + 1 == producers;
    thread::scope(|scope| {
        for _ in 0..producers {
            scope.spawn(|| {
                for _ in 0..messages {
                    publishing.fetch_add(1, SeqCst);
                    let id = room.broadcast_with(|id| {
                        calls.fetch_add(1, SeqCst);
                        eventually("another producer wants an id", is_contended);
                        message(id.unwrap())
                    });
                    publishing.fetch_sub(1, SeqCst);
                    given.lock().unwrap().push(id.unwrap().sequence());
                }
                done.fetch_add(1, SeqCst);
            });
        }
    });
    let mut given = given.into_inner().unwrap();
    given.sort_unstable();
    (calls.into_inner(), given)
}

#[test]
fn closure_runs_once_per_message_under_many_producers() {
    let (running, _) =
        start(resuming().with_history("*", HistoryLimits::messages(10).bytes(1_000)));
    let room = running.sender().room("news");
    let (calls, given) = publish_with_slow_closures(&room, 8, 20);
    assert_eq!(given, (1..=160).collect::<Vec<u64>>());
    assert_eq!(calls, 160);
    running.shutdown(STOP);
}

#[test]
fn slow_closure_gets_its_id_beside_fast_producers() {
    let (running, _) =
        start(resuming().with_history("*", HistoryLimits::messages(10).bytes(1_000)));
    let room = running.sender().room("news");
    let done = AtomicBool::new(false);
    let calls = AtomicUsize::new(0);
    let id = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    room.broadcast(message("fast"));
                }
            });
        }
        let id = room.broadcast_with(|id| {
            let (id, run) = (id.unwrap(), calls.fetch_add(1, Ordering::Relaxed));
            if run == 0 {
                eventually("another producer has the id", || {
                    let last = room.last_id().map(|last| last.sequence());
                    last >= Some(id.sequence())
                });
            }
            // Ends the test even if the slow closure never gets its id.
            if run == 50 {
                done.store(true, Ordering::Relaxed);
            }
            message(id)
        });
        done.store(true, Ordering::Relaxed);
        id
    });
    assert!(id.is_some());
    // The first call is wasted, because another producer takes the id. The second one holds the lock of the room.
    assert_eq!(calls.into_inner(), 2);
    running.shutdown(STOP);
}

#[test]
fn closure_may_publish_to_its_own_and_other_rooms() {
    let (running, _) =
        start(resuming().with_history("*", HistoryLimits::messages(10).bytes(1_000)));
    let sender = running.sender();
    let (here, there) = (sender.room("here"), sender.room("there"));
    let is_first = AtomicBool::new(true);
    let id = here.broadcast_with(|id| {
        if is_first.swap(false, Ordering::Relaxed) {
            here.broadcast_with(|id| message(id.unwrap()));
            there.broadcast_with(|id| message(id.unwrap()));
            here.broadcast(message("plain"));
        }
        message(id.unwrap())
    });
    assert_eq!(id.unwrap().sequence(), 3);
    assert_eq!(there.last_id().unwrap().sequence(), 1);
    running.shutdown(STOP);
}
