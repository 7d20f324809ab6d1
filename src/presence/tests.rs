use std::time::{Duration, Instant};

use super::update::{self, Entries, Extent, Update, user};
use super::*;
use crate::protocol::fuzz::dice::Dice;

const UPDATE_BYTES_MAX: usize = 1_000;

fn fact(connections: u32, state: &str, set_at: u64) -> Fact {
    Fact {
        connections,
        state: state.to_owned().into(),
        set_at,
    }
}

fn connection() -> Member {
    Member::Connection(ConnectionKey {
        node: u32::MAX,
        shard: 1,
        slot: 2,
        generation: 3,
    })
}

fn facts() -> Vec<(Member, Option<Fact>)> {
    vec![
        (user("Ada"), Some(fact(2, "away", 1_700_000_000_000_000))),
        (user(""), Some(fact(u32::MAX, "", 9_000_000_000_000_000))),
        (connection(), Some(fact(0, "\0", 0))),
        (connection(), None),
        (user("Gr\u{fc}\u{df}e"), None),
    ]
}

fn entries(facts: &[(Member, Option<Fact>)]) -> Entries {
    let mut entries = Entries::default();
    for (member, fact) in facts {
        entries.put(member, fact.as_ref());
    }
    entries
}

fn part(version: u64, facts: &[(Member, Option<Fact>)]) -> Vec<u8> {
    let extent = Extent::Part {
        is_first: true,
        is_last: true,
    };
    update::update(extent, version, 0, &entries(facts))
}

fn updates() -> Vec<(Vec<u8>, Update)> {
    let mut updates = vec![
        (update::ask(None), Update::Ask { of: None }),
        (update::ask(Some(7)), Update::Ask { of: Some(7) }),
        (update::repeat(300), Update::Repeat { version: 300 }),
        (
            update::update(Extent::Changes, u64::MAX, 1, &entries(&facts())),
            Update::Changes {
                version: u64::MAX,
                previous: 1,
                facts: facts(),
            },
        ),
    ];
    for (is_first, is_last) in [(true, true), (true, false), (false, true), (false, false)] {
        let extent = Extent::Part { is_first, is_last };
        updates.push((
            update::update(extent, 5, 4, &entries(&facts())),
            Update::Part {
                version: 5,
                previous: 4,
                is_first,
                is_last,
                facts: facts(),
            },
        ));
    }
    updates
}

#[test]
fn encoded_update_decodes_to_itself() {
    for (bytes, expected) in updates() {
        assert_eq!(Update::decode(&bytes), Ok(expected));
    }
}

#[test]
fn truncated_update_is_refused_or_has_fewer_facts() {
    for (bytes, whole) in updates() {
        for len in 0..bytes.len() {
            assert_ne!(Update::decode(&bytes[..len]).as_ref(), Ok(&whole));
        }
    }
}

#[test]
fn bad_update_is_refused_with_its_cause() {
    for (bytes, cause) in [
        (&b""[..], BadUpdate::Truncated),
        (b"\x00", BadUpdate::Kind),
        (b"\x01\x00", BadUpdate::Truncated),
        (b"\x02\x00\x01", BadUpdate::Truncated),
        (b"\x02\x00\x01\x00\x09", BadUpdate::Kind),
        (b"\x02\x00\x01\x00\x80\x01\xff", BadUpdate::Utf8),
        (b"\x02\x00\x01\x00\x80\x80\x80\x01", BadUpdate::TooLong),
        (
            b"\x02\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            BadUpdate::TooLong,
        ),
        (
            b"\x02\x00\x01\x00\x00\x00\x01\xff\xff\xff\xff\xff\xff\xff\x7f\x00",
            BadUpdate::Time,
        ),
    ] {
        assert_eq!(Update::decode(bytes), Err(cause), "{bytes:?}");
        assert!(!cause.to_string().is_empty());
    }
}

#[test]
fn random_updates_never_panic() {
    let mut dice = Dice::from_seed(1);
    let seeds = updates();
    for _ in 0..20_000 {
        let mut bytes = seeds[dice.below(seeds.len())].0.clone();
        for _ in 0..=dice.below(4) {
            let at = dice.below(bytes.len());
            bytes[at] = dice.below(256) as u8;
        }
        let _ = Update::decode(&bytes);
    }
}

/// A table of a node that needs a room, and other nodes that tell it something.
struct Hearing {
    table: PresenceTable<u32>,
    now: Instant,
}

impl Hearing {
    fn new() -> Self {
        let mut table = PresenceTable::new(false, Some(1));
        table.needed(&"a".into());
        Self {
            table,
            now: Instant::now(),
        }
    }

    fn handle(&mut self, event: NodeEvent<'_>) -> Result<(), BadUpdate> {
        match event.decode()? {
            Some(heard) => self.table.on_heard(heard, self.now),
            None => Ok(()),
        }
    }

    fn hear(&mut self, node: u32, update: &[u8]) {
        assert_eq!(self.try_hear(node, update), Ok(()));
    }

    fn try_hear(&mut self, node: u32, update: &[u8]) -> Result<(), BadUpdate> {
        self.handle(NodeEvent::Update {
            room: "a",
            node,
            is_gone: false,
            update,
        })
    }

    fn members(&self) -> Vec<(Member, Fact)> {
        let mut members: Vec<_> = self.table.members("a").into_iter().collect();
        members.sort_by(|(one, _), (other, _)| one.cmp(other));
        members
    }

    fn users(&self) -> Vec<String> {
        let members = self.members().into_iter();
        members
            .map(|(member, _)| match member {
                Member::User(user) => user.to_string(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// What it tells after this time.
    fn tells_after(&mut self, time: Duration) -> Vec<Vec<u8>> {
        self.now += time;
        let flush = self.table.flush(self.now, UPDATE_BYTES_MAX, |_| true);
        flush.rooms.into_iter().flat_map(|of| of.updates).collect()
    }

    fn tells(&mut self) -> Vec<Vec<u8>> {
        self.tells_after(Duration::from_millis(100))
    }
}

fn ask_all() -> Vec<u8> {
    update::ask(None)
}

fn nothing() -> Vec<Vec<u8>> {
    Vec::new()
}

#[test]
fn missed_update_makes_a_node_ask_for_all_facts_until_it_gets_them() {
    let mut hearing = Hearing::new();
    let ada = [(user("Ada"), Some(fact(1, "", 0)))];
    hearing.hear(7, &part(10, &ada));
    assert_eq!(hearing.members(), [(user("Ada"), fact(1, "", 0))]);
    hearing.hear(7, &update::repeat(10));
    assert_eq!(hearing.tells(), nothing());
    hearing.hear(7, &update::repeat(12));
    assert_eq!(hearing.tells(), [update::ask(Some(7))]);
    let left = entries(&[(user("Ada"), None)]);
    hearing.hear(7, &update::update(Extent::Changes, 13, 12, &left));
    assert_eq!(hearing.users(), ["Ada"], "what was missed may say so");
    assert_eq!(hearing.tells(), nothing(), "it was asked");
    for _ in 0..4 {
        assert_eq!(
            hearing.tells_after(Duration::from_secs(2)),
            [update::ask(Some(7))]
        );
    }
    assert_eq!(
        hearing.tells_after(Duration::from_secs(60)),
        nothing(),
        "it never answers"
    );
    // An update that was sent before.
    hearing.hear(7, &update::update(Extent::Changes, 9, 8, &left));
    assert_eq!(hearing.users(), ["Ada"]);
    hearing.hear(7, &part(14, &[]));
    assert_eq!(hearing.members(), []);
    assert_eq!(hearing.tells_after(Duration::from_secs(60)), nothing());
}

#[test]
fn question_that_was_not_sent_is_asked_again() {
    let mut hearing = Hearing::new();
    let bob = [(user("Bob"), Some(fact(1, "", 0)))];
    hearing.hear(8, &part(1, &bob));
    hearing.handle(NodeEvent::Subscribed { room: "a" }).unwrap();
    assert_eq!(hearing.tells(), [ask_all()]);
    hearing.table.not_published(&"a".into(), hearing.now);
    assert_eq!(hearing.table.answered_at("a"), None);
    assert_eq!(hearing.tells_after(Duration::from_secs(1)), [ask_all()]);
    assert_eq!(hearing.users(), ["Bob"], "nobody has asked its node");
    // Nobody answers.
    hearing.tells_after(Duration::from_secs(3));
    assert_eq!(hearing.members(), []);
}

#[test]
fn members_of_others_are_shown_during_an_outage() {
    let mut hearing = Hearing::new();
    hearing.hear(8, &part(1, &[(user("Bob"), Some(fact(1, "", 0)))]));
    hearing.handle(NodeEvent::Subscribed { room: "a" }).unwrap();
    assert_eq!(hearing.tells(), [ask_all()]);
    for _ in 0..10 {
        hearing.now += Duration::from_secs(1);
        hearing
            .table
            .flush(hearing.now, UPDATE_BYTES_MAX, |_| false);
    }
    assert_eq!(hearing.users(), ["Bob"]);
}

#[test]
fn room_is_answered_once_all_nodes_have() {
    let mut hearing = Hearing::new();
    for node in [7, 8] {
        hearing.handle(NodeEvent::New(node)).unwrap();
    }
    hearing.handle(NodeEvent::Subscribed { room: "a" }).unwrap();
    assert!(!hearing.table.is_answered("a", hearing.now));
    hearing.tells();
    let asked = hearing.now;
    hearing.hear(7, &part(1, &[]));
    assert!(!hearing.table.is_answered("a", asked));
    hearing.hear(8, &part(1, &[]));
    assert!(hearing.table.is_answered("a", asked));
    // A node without members in the room does not answer.
    hearing.handle(NodeEvent::New(9)).unwrap();
    assert!(!hearing.table.is_answered("a", asked));
    assert!(
        hearing
            .table
            .is_answered("a", asked + Duration::from_millis(250))
    );
}

#[test]
fn room_that_is_needed_again_is_answered_once_it_was_asked_again() {
    let mut hearing = Hearing::new();
    let (room, ada) = ("a".into(), user("Ada"));
    let answer = part(1, &[(user("Bob"), Some(fact(1, "", 0)))]);
    hearing.handle(NodeEvent::New(7)).unwrap();
    hearing.table.joined(&room, &ada, key(1), &1, hearing.now);
    hearing.handle(NodeEvent::Subscribed { room: "a" }).unwrap();
    hearing.tells();
    hearing.hear(7, &answer);
    assert!(hearing.table.is_answered("a", hearing.now));
    // The table keeps the room: its member may come back, and other nodes have to be told.
    let grace = Duration::from_secs(60);
    hearing.table.left(&room, &ada, &key(1), grace, hearing.now);
    hearing.table.unneeded("a");
    // Another subscription, such as after an outage, of a room that is about to be unsubscribed from.
    hearing.handle(NodeEvent::Subscribed { room: "a" }).unwrap();
    assert!(!hearing.tells().contains(&ask_all()));
    hearing.hear(7, &answer);
    assert_eq!(hearing.users(), ["Ada"]);
    let later = hearing.now + Duration::from_secs(1);
    assert!(!hearing.table.is_answered("a", later));
    hearing.table.needed(&room);
    assert!(!hearing.table.is_answered("a", later));
    hearing.handle(NodeEvent::Subscribed { room: "a" }).unwrap();
    assert!(
        hearing
            .tells_after(Duration::from_secs(1))
            .contains(&ask_all())
    );
    hearing.hear(7, &answer);
    assert!(hearing.table.is_answered("a", hearing.now));
    assert_eq!(hearing.users(), ["Ada", "Bob"]);
}

#[test]
fn node_that_comes_back_is_asked_for_all_rooms_twice() {
    let mut hearing = Hearing::new();
    hearing.handle(NodeEvent::New(7)).unwrap();
    let mut asked = |seconds: u64| {
        hearing.now += Duration::from_secs(seconds);
        let flush = hearing.table.flush(hearing.now, UPDATE_BYTES_MAX, |_| true);
        flush.nodes_to_ask
    };
    assert_eq!(asked(0), [7]);
    assert_eq!(asked(4), [0_u32; 0]);
    assert_eq!(asked(1), [7]);
    assert_eq!(asked(100), [0_u32; 0]);
    assert_eq!(hearing.table.next_due(), None);
}

#[test]
fn parts_of_all_facts_replace_them_with_the_last() {
    let mut hearing = Hearing::new();
    let of = |name: &str| [(user(name), Some(fact(1, "", 0)))];
    hearing.hear(7, &part(1, &of("Ada")));
    let mut tell = |version, is_first, is_last, name: &str| {
        let extent = Extent::Part { is_first, is_last };
        let update = update::update(extent, version, version - 1, &entries(&of(name)));
        hearing.hear(7, &update);
        hearing.users()
    };
    assert_eq!(tell(5, true, false, "Bob"), ["Ada"]);
    assert_eq!(tell(6, false, false, "Cy"), ["Ada"]);
    assert_eq!(tell(7, false, true, "Dan"), ["Bob", "Cy", "Dan"]);
    // A part is missing.
    tell(10, true, false, "Eve");
    assert_eq!(tell(12, false, true, "Fay"), ["Bob", "Cy", "Dan"]);
    assert_eq!(hearing.tells(), [update::ask(Some(7))]);
}

#[test]
fn facts_beyond_the_bound_are_refused_and_not_asked_for() {
    let mut hearing = Hearing::new();
    let state = "x".repeat(1 << 20);
    let facts = |from: usize, to: usize| -> Vec<_> {
        let facts = (from..to).map(|n| (user(&n.to_string()), Some(fact(1, &state, 0))));
        facts.collect()
    };
    hearing.handle(NodeEvent::Subscribed { room: "a" }).unwrap();
    hearing.tells();
    hearing.hear(7, &part(1, &facts(0, 40)));
    assert_eq!(
        hearing.try_hear(8, &part(1, &facts(40, 100))),
        Err(BadUpdate::TooMuch)
    );
    assert_eq!(hearing.users().len(), 40, "those that were known stay");
    let later = hearing.now + Duration::from_secs(10);
    assert!(!hearing.table.is_answered("a", later), "some are missing");
    for version in 2..10 {
        hearing.hear(8, &update::repeat(version));
        assert_eq!(hearing.tells_after(Duration::from_secs(2)), nothing());
    }
    // Once the node is gone, it may tell them again.
    hearing.handle(NodeEvent::Gone(8)).unwrap();
    hearing.hear(8, &part(20, &facts(40, 50)));
    assert_eq!(hearing.users().len(), 50);
    hearing.table.unneeded("a");
    assert_eq!(hearing.members(), []);
}

#[test]
fn made_up_nodes_are_bounded() {
    let mut hearing = Hearing::new();
    for node in 100..10_000 {
        let name = node.to_string();
        hearing.hear(node, &part(1, &[(user(&name), Some(fact(1, "", 0)))]));
    }
    assert_eq!(hearing.users().len(), 1_024);
    for node in 100..10_000 {
        hearing.handle(NodeEvent::Gone(node)).unwrap();
    }
    assert_eq!(hearing.members(), []);
    hearing.table.unneeded("a");
    assert_eq!((hearing.table.rooms(), hearing.table.next_due()), (0, None));
}

#[test]
fn newer_state_wins_whatever_the_order() {
    for order in [[7, 8], [8, 7]] {
        let mut hearing = Hearing::new();
        for node in order {
            let state = fact(1, &format!("of {node}"), node.into());
            hearing.hear(node, &part(1, &[(user("Ada"), Some(state))]));
        }
        assert_eq!(hearing.members(), [(user("Ada"), fact(2, "of 8", 8))]);
    }
}

fn key(slot: u32) -> ConnectionKey {
    ConnectionKey {
        node: 1,
        shard: 0,
        slot,
        generation: 0,
    }
}

#[test]
fn state_outlives_the_connections_of_the_node_that_has_set_it() {
    let mut hearing = Hearing::new();
    let (room, ada) = ("a".into(), user("Ada"));
    hearing.hear(7, &part(1, &[(ada.clone(), Some(fact(1, "of 7", 500)))]));
    let now = hearing.now;
    hearing.table.joined(&room, &ada, key(1), &1, now);
    let left = entries(&[(ada.clone(), None)]);
    hearing.hear(7, &update::update(Extent::Changes, 2, 1, &left));
    assert_eq!(hearing.members(), [(ada.clone(), fact(1, "of 7", 500))]);
    // A clock that is behind does not undo what is set now.
    assert!(hearing.table.set_state(&room, &ada, "own".into(), 3, now));
    assert_eq!(hearing.members(), [(ada.clone(), fact(1, "own", 501))]);
    hearing.hear(7, &part(3, &[(ada.clone(), Some(fact(1, "newer", 700)))]));
    assert_eq!(hearing.members(), [(ada.clone(), fact(2, "newer", 700))]);
    hearing.handle(NodeEvent::Gone(7)).unwrap();
    assert_eq!(hearing.members(), [(ada, fact(1, "newer", 700))]);
}

#[test]
fn same_state_is_told_once() {
    let mut hearing = Hearing::new();
    let (room, ada) = ("a".into(), user("Ada"));
    let now = hearing.now;
    hearing.table.joined(&room, &ada, key(1), &1, now);
    assert!(hearing.table.set_state(&room, &ada, "here".into(), 5, now));
    assert_eq!(hearing.tells().len(), 1);
    for _ in 0..10 {
        let now = hearing.now;
        assert!(hearing.table.set_state(&room, &ada, "here".into(), 9, now));
        assert_eq!(hearing.tells_after(Duration::from_millis(300)), nothing());
    }
}

#[test]
fn clients_are_told_at_most_four_times_a_second() {
    let mut hearing = Hearing::new();
    let (room, ada) = ("a".into(), user("Ada"));
    assert!(hearing.table.watch("a"));
    let mut told = 0;
    for n in 0..100 {
        let now = hearing.now;
        match n % 2 {
            0 => hearing.table.joined(&room, &ada, key(1), &1, now),
            _ => hearing
                .table
                .left(&room, &ada, &key(1), Duration::ZERO, now),
        }
        // Other nodes ask all the time.
        hearing.hear(7, &ask_all());
        hearing.now += Duration::from_millis(20);
        let flush = hearing.table.flush(hearing.now, UPDATE_BYTES_MAX, |_| true);
        told += flush
            .rooms
            .iter()
            .filter(|of| !of.changes.is_empty())
            .count();
    }
    assert!((5..=9).contains(&told), "{told} times in 2 s");
}

#[test]
fn leaving_and_joining_again_keeps_no_memory() {
    let mut table: PresenceTable<u32> = PresenceTable::new(true, None);
    let (room, ada, now) = ("a".into(), user("Ada"), Instant::now());
    let grace = Duration::from_secs(3_600);
    let mut dropped = 0;
    for n in 0..1_000 {
        table.joined(&room, &ada, key(n), &n, now);
        table.left(&room, &ada, &key(n), grace, now);
        dropped += table.take_dropped().len();
    }
    // All but the last connection, which the room handler would be told of.
    assert_eq!(dropped, 999);
    assert_eq!(table.next_due(), Some(now + Duration::from_millis(20)));
    table.flush(now + grace / 2, 0, |_| false);
    assert_eq!(table.next_due(), Some(now + grace));
    assert!(table.next_announced().is_some_and(|of| of.has_joined));
    table.remove_all(now);
    assert_eq!(
        table
            .next_announced()
            .map(|of| (of.connection, of.has_joined)),
        Some((999, false))
    );
    assert!(table.next_announced().is_none());
}

#[test]
fn room_of_an_app_that_is_alone_is_forgotten_with_its_last_member() {
    let mut table: PresenceTable<u32> = PresenceTable::new(true, None);
    let (room, now) = ("a".into(), Instant::now());
    table.needed(&room);
    table.joined(&room, &user("Ada"), key(1), &1, now);
    assert!(table.next_announced().is_some_and(|of| of.has_joined));
    let grace = Duration::from_secs(1);
    table.left(&room, &user("Ada"), &key(1), grace, now);
    table.unneeded(&room);
    table.flush(now + grace / 2, 0, |_| false);
    assert_eq!(table.members("a")[&user("Ada")], fact(0, "", 0));
    table.flush(now + grace, 0, |_| false);
    assert!(table.members("a").is_empty());
    assert!(table.next_announced().is_some_and(|of| !of.has_joined));
    assert!(table.next_announced().is_none());
    table.flush(now + 2 * grace, 0, |_| false);
    assert_eq!((table.rooms(), table.next_due()), (0, None));
}
