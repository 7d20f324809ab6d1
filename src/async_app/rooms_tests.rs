use super::super::history::HistoryPatterns;
use super::*;
use crate::async_app::{AsyncWebsocketApp, RunningApp};
use crate::limits::{HistoryLimits, KeyedLimits};
use crate::message::Message;

const ROOMS_MAX: usize = 4;

fn histories(patterns: &[&str]) -> HistoryPatterns {
    let mut histories = HistoryPatterns::default();
    for pattern in patterns {
        histories.add(pattern, HistoryLimits::messages(10).bytes(1_000));
    }
    histories
}

/// A node of a cluster that is not started, so it never connects.
#[cfg(feature = "cluster")]
fn unconnected_cluster() -> Arc<ClusterHandle> {
    use crate::cluster::{Cluster, PreparedCluster};
    let cluster = Cluster::new("redis://127.0.0.1");
    PreparedCluster::new(&cluster).unwrap().handle
}

struct Fixture {
    rooms: RoomDirectory,
    hub: Arc<Hub>,
    /// Rooms get their numbers from a running engine.
    _running: RunningApp,
    stamp: u64,
}

impl Fixture {
    fn new(patterns: &[&str]) -> Self {
        Self::with_rooms_max(patterns, ROOMS_MAX)
    }

    fn with_rooms_max(patterns: &[&str], rooms_max: usize) -> Self {
        Self::with_settings(RoomSettings {
            rooms_max,
            histories: histories(patterns),
            keyed: KeyedPatterns::default(),
            #[cfg(feature = "cluster")]
            cluster: None,
            presence: None,
        })
    }

    #[cfg(feature = "cluster")]
    fn clustered(patterns: &[&str]) -> Self {
        Self::with_settings(RoomSettings {
            rooms_max: ROOMS_MAX,
            histories: histories(patterns),
            keyed: KeyedPatterns::default(),
            cluster: Some(unconnected_cluster()),
            presence: None,
        })
    }

    fn with_settings(settings: RoomSettings) -> Self {
        let rooms = RoomDirectory::default();
        rooms.set_up(settings);
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_with_config((), 1, 1);
        let running = app.with_address("127.0.0.1:0").with_shards(1).start();
        let running = running.unwrap();
        Self {
            rooms,
            hub: running.engine.hub.clone(),
            _running: running,
            stamp: 0,
        }
    }

    fn try_keep(&mut self, name: &str) -> Result<(), JoinErrorReason> {
        let room = self.rooms.find_to_send(&self.hub, name)?.unwrap();
        self.stamp += 1;
        let mut history = room.history().unwrap();
        room.keep(&mut history, Message::new(name), self.stamp);
        Ok(())
    }

    /// Keeps a message of a keyed room.
    fn keep_keyed(&mut self, name: &str) -> Result<(), JoinErrorReason> {
        let room = self.rooms.find_keyed(&self.hub, name)?.unwrap();
        self.stamp += 1;
        let keyed = room.keyed.unwrap();
        let number = self.rooms.next_key();
        let message = keyed.bounds.prepare("key", &Message::new(name), None);
        keyed.messages().keep("key", number, message);
        keyed.set_used(self.stamp);
        Ok(())
    }

    fn keep(&mut self, name: &str) {
        self.try_keep(name).unwrap();
    }

    /// Adds an event stream that follows the room, which counts like a member.
    fn enter(&self, name: &str) -> Result<Arc<engine::SharedRoom>, JoinErrorReason> {
        loop {
            let room = self.rooms.find_or_make(&self.hub, name)?;
            // Another thread may have ended it just now.
            if let Some(streams) = self.hub.follow(&room.members) {
                return Ok(streams);
            }
        }
    }

    fn leave(&self, room: &Arc<engine::SharedRoom>) {
        if let Some(empty) = room.leave() {
            self.rooms.emptied(&empty);
        }
    }

    fn keeps(&self, name: &str) -> bool {
        self.rooms.find(name).is_some_and(|room| room.used() > 0)
    }
}

#[test]
fn room_that_keeps_messages_is_not_evicted_by_a_join() {
    let mut fixture = Fixture::new(&["*"]);
    for n in 0..ROOMS_MAX {
        fixture.keep(&format!("kept {n}"));
    }
    for n in 0..1_000 {
        let refused = fixture.enter(&format!("stranger {n}"));
        assert_eq!(refused.err(), Some(JoinErrorReason::Rooms));
    }
    for n in 0..ROOMS_MAX {
        assert!(fixture.keeps(&format!("kept {n}")), "{n}");
    }
    assert_eq!(fixture.rooms.len(), ROOMS_MAX);
}

#[test]
fn room_that_keeps_nothing_is_evicted_by_a_join() {
    let mut fixture = Fixture::new(&["*"]);
    fixture.keep("kept");
    for n in 0..1_000 {
        let room = fixture.enter(&format!("stranger {n}")).unwrap();
        fixture.leave(&room);
    }
    // No client ever joined these.
    for n in 0..1_000 {
        fixture
            .rooms
            .find_or_make(&fixture.hub, &format!("made up {n}"))
            .unwrap();
    }
    assert!(fixture.keeps("kept"));
    assert_eq!(fixture.rooms.len(), ROOMS_MAX);
}

#[test]
fn room_with_members_is_never_evicted() {
    let mut fixture = Fixture::new(&["*"]);
    let members: Vec<_> = (0..ROOMS_MAX)
        .map(|n| fixture.enter(&format!("{n}")).unwrap())
        .collect();
    assert_eq!(fixture.enter("late").err(), Some(JoinErrorReason::Rooms));
    assert_eq!(
        fixture.try_keep("late").unwrap_err(),
        JoinErrorReason::Rooms
    );
    // It can be evicted once its last member has left, whatever happened before.
    let again = fixture.enter("2").unwrap();
    fixture.leave(&members[2]);
    assert_eq!(
        fixture.try_keep("late").unwrap_err(),
        JoinErrorReason::Rooms
    );
    fixture.leave(&again);
    fixture.keep("late");
    assert!(fixture.rooms.find("2").is_none() && fixture.keeps("late"));
    for n in [0, 1, 3] {
        assert!(fixture.rooms.find(&n.to_string()).is_some(), "{n}");
    }
}

#[test]
fn message_to_keep_evicts_the_least_recently_used_room() {
    let mut fixture = Fixture::new(&["*"]);
    for name in ["a", "b", "c", "d", "a", "b"] {
        fixture.keep(name);
    }
    // A room that keeps messages stays without members, too.
    let member = fixture.enter("c").unwrap();
    fixture.keep("e");
    assert!(!fixture.keeps("d") && fixture.keeps("c"));
    fixture.leave(&member);
    fixture.keep("f");
    assert!(!fixture.keeps("c"));
    fixture.keep("g");
    assert!(!fixture.keeps("a") && fixture.keeps("b"));
}

#[test]
fn pinned_room_is_never_evicted() {
    let mut fixture = Fixture::new(&["everyone", "*"]);
    let _members: Vec<_> = (0..ROOMS_MAX)
        .map(|n| fixture.enter(&format!("{n}")).unwrap())
        .collect();
    // It neither needs nor takes a place in `rooms_max`.
    fixture.keep("everyone");
    let member = fixture.enter("everyone").unwrap();
    fixture.leave(&member);
    for n in 0..1_000 {
        assert_eq!(
            fixture.try_keep(&format!("late {n}")).unwrap_err(),
            JoinErrorReason::Rooms
        );
    }
    assert!(fixture.keeps("everyone"));
    assert_eq!(fixture.rooms.len(), ROOMS_MAX + 1);
}

#[test]
fn eviction_looks_at_few_rooms_of_many() {
    const MANY: usize = 5_000;
    let mut fixture = Fixture::with_rooms_max(&["*"], MANY);
    let members: Vec<_> = (0..MANY)
        .map(|n| fixture.enter(&format!("{n}")).unwrap())
        .collect();
    let waiting = |fixture: &Fixture| {
        let deserted = fixture.rooms.deserted();
        deserted.unused.len() + deserted.kept.len()
    };
    // All were enqueued when they were created; each refusal finds a bounded number of them in use.
    let before = waiting(&fixture);
    assert_eq!(before, MANY);
    assert!(fixture.enter("late").is_err());
    assert_eq!(waiting(&fixture), before - LOOKED_AT_MAX);
    while waiting(&fixture) > 0 {
        assert!(fixture.enter("late").is_err());
    }
    // Whichever room is deserted can be evicted, wherever it was in the queue.
    fixture.leave(&members[MANY / 2]);
    assert_eq!(waiting(&fixture), 1);
    fixture.keep("late");
    assert!(fixture.keeps("late"));
}

#[test]
fn room_is_enqueued_once_however_often_it_is_emptied() {
    let fixture = Fixture::with_rooms_max(&["*"], 10);
    for _ in 0..1_000 {
        let room = fixture.enter("a").unwrap();
        fixture.leave(&room);
    }
    assert_eq!(fixture.rooms.deserted().unused.len(), 1);
}

#[test]
fn locked_stripe_keeps_only_its_own_names_waiting() {
    let fixture = Fixture::with_rooms_max(&[], 1_000);
    let _locked = fixture.rooms.names.write("locked");
    let mut made = 0;
    for n in 0..500 {
        let name = n.to_string();
        if !fixture.rooms.names.shares_stripe(&name, "locked") {
            let member = fixture.enter(&name).unwrap();
            fixture.leave(&member);
            made += 1;
        }
    }
    assert!(made > 450, "{made}");
    assert_eq!(fixture.rooms.counted.load(Relaxed), 0);
}

#[test]
fn rooms_created_and_ended_by_many_threads_are_counted() {
    const THREADS: usize = 4;
    let fixture = Fixture::new(&["kept*"]);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let fixture = &fixture;
            scope.spawn(move || {
                for n in 0..2_000 {
                    let name = format!("{}{}", ["kept", "other"][n % 2], (thread + n) % 6);
                    match fixture.enter(&name) {
                        Ok(member) => fixture.leave(&member),
                        Err(reason) => assert_eq!(reason, JoinErrorReason::Rooms),
                    }
                    assert!(fixture.rooms.counted.load(Relaxed) <= ROOMS_MAX);
                }
            });
        }
    });
    assert_eq!(fixture.rooms.counted.load(Relaxed), fixture.rooms.len());
}

#[test]
fn keyed_room_is_evicted_like_a_room_with_a_history() {
    let mut keyed = KeyedPatterns::default();
    keyed.add("board/*", KeyedLimits::keys(10));
    keyed.add("pinned", KeyedLimits::keys(10));
    let mut fixture = Fixture::with_settings(RoomSettings {
        rooms_max: ROOMS_MAX,
        histories: histories(&["*"]),
        keyed,
        #[cfg(feature = "cluster")]
        cluster: None,
        presence: None,
    });
    assert!(
        fixture
            .rooms
            .find_keyed(&fixture.hub, "news")
            .unwrap()
            .is_none()
    );
    assert!(fixture.rooms.bounds("board/1").is_none());
    fixture.keep_keyed("pinned").unwrap();
    for n in 0..ROOMS_MAX - 1 {
        fixture.keep_keyed(&format!("board/{n}")).unwrap();
    }
    fixture.keep("news");
    // A join evicts no room that keeps messages, and a message that is to be kept the least recently used one.
    for name in ["board/stranger", "stranger"] {
        assert_eq!(fixture.enter(name).err(), Some(JoinErrorReason::Rooms));
    }
    fixture.keep_keyed("board/new").unwrap();
    assert!(!fixture.keeps("board/0") && fixture.keeps("board/1"));
    // No event stream of other rooms misses anything.
    assert_eq!(fixture.rooms.evicted_stamp.load(Relaxed), 0);
    let member = fixture.enter("board/1").unwrap();
    fixture.keep("weather");
    assert!(fixture.keeps("board/1") && !fixture.keeps("board/2"));
    fixture.leave(&member);
    for n in 0..100 {
        fixture.keep(&format!("{n}"));
    }
    assert!(!fixture.keeps("board/1") && fixture.keeps("pinned"));
    assert!(fixture.rooms.evicted_stamp.load(Relaxed) > 0);
    assert_eq!(fixture.rooms.len(), ROOMS_MAX + 1);
}

#[cfg(feature = "cluster")]
#[test]
fn histories_are_not_served_without_the_broker() {
    let with = |patterns: &[&str], cluster: Option<Arc<ClusterHandle>>| {
        let rooms = RoomDirectory::default();
        rooms.set_up(RoomSettings {
            rooms_max: ROOMS_MAX,
            histories: histories(patterns),
            keyed: KeyedPatterns::default(),
            cluster,
            presence: None,
        });
        rooms.are_histories_served()
    };
    assert!(!with(&["chat/*"], Some(unconnected_cluster())));
    assert!(with(&["chat/*"], None));
    assert!(with(&[], Some(unconnected_cluster())) && with(&[], None));
}

#[cfg(feature = "cluster")]
#[test]
fn copy_without_members_is_dropped_once_it_has_been_idle() {
    // Even a pinned room is dropped: the broker keeps its messages.
    let mut fixture = Fixture::clustered(&["pinned", "chat/*"]);
    for name in ["pinned", "chat/left", "chat/joined"] {
        fixture.keep(name);
    }
    let left = fixture.enter("chat/left").unwrap();
    let joined = fixture.enter("chat/joined").unwrap();
    fixture.leave(&left);
    fixture.rooms.evict_idle(Duration::from_secs(60));
    assert_eq!(fixture.rooms.len(), 3);
    fixture.rooms.evict_idle(Duration::ZERO);
    assert_eq!(fixture.rooms.len(), 1);
    assert!(fixture.keeps("chat/joined"));
    fixture.leave(&joined);
    fixture.rooms.evict_idle(Duration::ZERO);
    assert_eq!(fixture.rooms.len(), 0);
}
