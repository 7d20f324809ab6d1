//! The cost of operations in exact counts: reads, writes, turns of the event loop, wake-ups and copies of messages.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};

use super::wire::client_text;
use super::world::{Setup, World, echo};
use crate::engine::handlers::pool::{RunOn, simulate};
use crate::engine::hub::{Destination, Hub};
use crate::engine::model::job::{Job, SessionEvent, Work};
use crate::engine::model::replay::Replay;
use crate::engine::parts::id::{Key, LocalId};
use crate::engine::parts::mailbox::Wake;
use crate::limits::Limits;
use crate::message::Message;

/// The turns of a shard for a message with a reply: one reads the message, and one sends the reply.
const TURNS_OF_AN_ECHO: usize = 2;
const TURNS_OF_A_BROADCAST: usize = 1;

/// The number of calls to a client's socket, including those without effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SystemCalls {
    reads: usize,
    writes: usize,
}

fn calls_so_far(world: &World, client: usize) -> SystemCalls {
    let pipe = world.pipe(client);
    SystemCalls {
        reads: pipe.reads,
        writes: pipe.tries,
    }
}

/// Returns the socket calls for each client, which must be equal, and the turns of the shard that an action takes.
fn cost(
    world: &mut World,
    clients: &[usize],
    something: impl FnOnce(&mut World),
) -> (SystemCalls, usize) {
    let turns = world.turns;
    let before: Vec<SystemCalls> = clients.iter().map(|&c| calls_so_far(world, c)).collect();
    something(world);
    world.run_handlers();
    let mut costs = clients.iter().zip(before).map(|(&client, before)| {
        let now = calls_so_far(world, client);
        SystemCalls {
            reads: now.reads - before.reads,
            writes: now.writes - before.writes,
        }
    });
    let first = costs.next().expect("there is at least one client");
    assert!(
        costs.all(|other| other == first),
        "all clients must have the same cost"
    );
    (first, world.turns - turns)
}

const ONE_WRITE: SystemCalls = SystemCalls {
    reads: 0,
    writes: 1,
};
const ONE_READ: SystemCalls = SystemCalls {
    reads: 1,
    writes: 0,
};
const ONE_OF_EACH: SystemCalls = SystemCalls {
    reads: 1,
    writes: 1,
};

#[test]
fn echo_is_one_read_one_write_and_two_turns() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    for n in 0..10 {
        let (calls, turns) = cost(&mut world, &[client], |world| {
            world.client_says(client, &n.to_string());
        });
        // A short read means that the socket is empty, so the shard does not read again.
        assert_eq!(calls, ONE_OF_EACH);
        assert!(turns <= TURNS_OF_AN_ECHO, "{turns}");
    }
}

#[test]
fn replies_to_one_read_are_one_write_and_two_turns() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    for messages in [2, 16, 500] {
        let (calls, turns) = cost(&mut world, &[client], |world| {
            world.client_sends(client, client_text("message").repeat(messages));
        });
        assert_eq!(calls, ONE_OF_EACH);
        assert!(turns <= TURNS_OF_AN_ECHO, "{turns}");
    }
}

#[test]
fn messages_of_many_clients_take_the_turns_of_one() {
    let mut world = World::with_handler(echo);
    let clients = world.joined(100);
    let (calls, turns) = cost(&mut world, &clients, |world| {
        for client in 0..100 {
            world.pipe(client).client_sends(&client_text("message"));
        }
    });
    assert_eq!(calls, ONE_OF_EACH);
    assert!(turns <= TURNS_OF_AN_ECHO, "{turns}");
}

#[test]
fn message_without_reply_is_one_read() {
    let mut world = World::new(Setup::default());
    let client = world.join();
    let (calls, _) = cost(&mut world, &[client], |world| {
        world.client_says(client, "message");
    });
    assert_eq!(calls, ONE_READ);
}

#[test]
fn queued_broadcasts_are_one_write_per_member_and_one_turn() {
    let mut world = World::with_handler(echo);
    let clients = world.joined(20);
    let room = world.hub.new_room("room".into(), false);
    for &client in &clients {
        let session = world.session(client);
        let reserved = world.hub.reserve_join(&session, 0, 0).unwrap();
        world
            .hub
            .join(reserved, &room, &session, Replay::default())
            .unwrap();
    }
    world.run_handlers();
    for room in [None, Some(&room)] {
        for messages in [1, 4, 100] {
            let (calls, turns) = cost(&mut world, &clients, |world| {
                for n in 0..messages {
                    let message = Message::new(n.to_string());
                    let to = Destination {
                        room,
                        ..Destination::default()
                    };
                    world.hub.try_broadcast(message.frame(), to).unwrap();
                }
            });
            assert_eq!(calls, ONE_WRITE, "{messages} messages");
            assert!(turns <= TURNS_OF_A_BROADCAST, "{turns}");
        }
    }
}

#[test]
fn broadcasts_and_single_sends_are_one_write() {
    let mut world = World::with_handler(echo);
    let clients = world.joined(3);
    let (calls, turns) = cost(&mut world, &clients, |world| {
        for _ in 0..5 {
            world.broadcasts("for all");
            for client in 0..3 {
                world.sends(client, "for one");
            }
        }
    });
    assert_eq!(calls, ONE_WRITE);
    assert!(turns <= TURNS_OF_A_BROADCAST, "{turns}");
}

#[test]
fn full_socket_is_tried_once_per_turn() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.stall(client, 10);
    world.broadcasts("more than ten bytes");
    world.settle();
    let (calls, turns) = cost(&mut world, &[client], |world| {
        for _ in 0..10 {
            world.broadcasts("more");
            world.sends(client, "and more");
        }
    });
    assert!(calls.writes <= turns && turns <= TURNS_OF_A_BROADCAST);
    let (calls, _) = cost(&mut world, &[client], |world| world.unstall(client));
    assert_eq!(calls, ONE_WRITE);
}

#[test]
fn broadcast_is_written_without_copying() {
    let mut world = World::with_handler(echo);
    let clients = world.joined(5);
    for size in [1, 100, 10_000, 100_000] {
        let message = Message::new("x".repeat(size));
        world
            .hub
            .try_broadcast(message.frame(), Destination::default())
            .unwrap();
        world.settle();
        for &client in &clients {
            let of_message = message.frame().as_ptr().addr();
            assert_eq!(world.pipe(client).handed, [of_message], "{size} bytes");
        }
    }
}

#[test]
fn broadcasts_queued_for_slow_members_share_memory() {
    let mut world = World::new(Setup {
        limits: Limits {
            outbox_bytes_max: 10 << 20,
            ..Limits::default()
        },
        ..Setup::default()
    });
    let clients = world.joined(5);
    for &client in &clients {
        world.stall(client, 0);
    }
    let messages: Vec<Message> = [20_000, 30_000, 25_000]
        .map(|size| Message::new("x".repeat(size)))
        .into();
    for message in &messages {
        let to = Destination::default();
        world.hub.try_broadcast(message.frame(), to).unwrap();
        world.settle();
    }
    for &client in &clients {
        assert_eq!(world.unshared_bytes(client), 0);
        world.unstall(client);
        let frames = messages.iter().map(|m| m.frame().as_ptr().addr());
        assert_eq!(world.pipe(client).handed, frames.collect::<Vec<_>>());
    }
}

/// A waker that counts its calls.
#[derive(Clone, Default)]
struct Bell(Arc<AtomicUsize>);

impl Wake for Bell {
    fn wake(&self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Shards whose event loops do not run. They take commands and go to sleep when the test says so.
struct Sleepers {
    hub: Arc<Hub>,
    bells: Vec<Bell>,
}

impl Sleepers {
    /// Creates sleeping shards with the given numbers of members.
    fn new(world: &World, members: &[usize]) -> Self {
        let bells: Vec<Bell> = members.iter().map(|_| Bell::default()).collect();
        let wakers = bells.iter().map(|bell| Box::new(bell.clone()) as _);
        let hub = world.hub_of(wakers.collect());
        let sleepers = Self { hub, bells };
        for (shard, &members) in members.iter().enumerate() {
            sleepers.hub.shards[shard].members.store(members, SeqCst);
            sleepers.goes_to_sleep(shard);
        }
        sleepers
    }

    fn takes_its_mail(&self, shard: usize) {
        let mailbox = &self.hub.shards[shard].mailbox;
        mailbox.take(Some(&mut VecDeque::new()), &mut Vec::new());
    }

    fn goes_to_sleep(&self, shard: usize) {
        self.takes_its_mail(shard);
        assert!(self.hub.shards[shard].mailbox.sleep(false));
    }

    fn broadcast(&self) {
        let frame = Message::new("message").frame().clone();
        self.hub.broadcast(&frame, Destination::default()).unwrap();
    }

    /// Returns how often each shard has been woken since the last call.
    fn wakes(&self) -> Vec<usize> {
        let wakes = self.bells.iter().map(|bell| bell.0.swap(0, SeqCst));
        wakes.collect()
    }
}

#[test]
fn broadcast_wakes_each_sleeping_shard_with_members_once() {
    let world = World::new(Setup::default());
    let sleepers = Sleepers::new(&world, &[3, 0, 1, 2]);
    sleepers.broadcast();
    assert_eq!(sleepers.wakes(), [1, 0, 1, 1]);
    for _ in 0..10 {
        sleepers.broadcast();
    }
    assert_eq!(sleepers.wakes(), [0; 4], "they are on their way");
    sleepers.takes_its_mail(0);
    sleepers.goes_to_sleep(2);
    sleepers.broadcast();
    assert_eq!(sleepers.wakes(), [0, 0, 1, 0], "one is awake");
}

#[test]
fn room_broadcast_wakes_only_shards_with_members() {
    let world = World::new(Setup::default());
    let sleepers = Sleepers::new(&world, &[5, 5, 5]);
    let room = sleepers.hub.new_room("room".into(), false);
    for slot in 0..4 {
        let key = Key {
            slot,
            generation: 0,
        };
        room.reach(1);
        room.add(LocalId { shard: 1, key });
    }
    let to = Destination {
        room: Some(&room),
        ..Destination::default()
    };
    for expected in [[0, 1, 0], [0, 0, 0]] {
        let frame = Message::new("message").frame().clone();
        sleepers.hub.broadcast(&frame, to).unwrap();
        assert_eq!(sleepers.wakes(), expected);
    }
}

#[test]
fn sends_in_handlers_wake_each_shard_once_at_their_end() {
    let hub: Arc<OnceLock<Weak<Hub>>> = Arc::default();
    let of_handler = hub.clone();
    let mut world = World::with_handler(move |_, _, _| {
        let frame = Message::new("message").frame().clone();
        if let Some(hub) = of_handler.get().and_then(Weak::upgrade) {
            hub.broadcast(&frame, Destination::default()).unwrap();
        }
    });
    let client = world.join();
    let sleepers = Sleepers::new(&world, &[3, 1, 0, 2]);
    hub.set(Arc::downgrade(&sleepers.hub)).unwrap();
    // The first shard's thread runs the handlers, and the last shard is awake, too.
    sleepers.takes_its_mail(0);
    sleepers.takes_its_mail(3);
    for _ in 0..10 {
        let event = SessionEvent::Message(Message::new("message"));
        let work = Work::Session(world.session(client), vec![event], 0);
        simulate(&sleepers.hub, Job { to: None, work }, RunOn::Shard);
    }
    assert_eq!(sleepers.wakes(), [0; 4]);
    sleepers.hub.wake_deferred();
    sleepers.hub.wake_deferred();
    assert_eq!(sleepers.wakes(), [0, 1, 0, 0]);
}

#[test]
fn corked_broadcasts_wake_each_shard_once_at_their_end() {
    let world = World::new(Setup::default());
    let sleepers = Sleepers::new(&world, &[3, 0, 2]);
    sleepers.hub.cork(|| {
        sleepers.broadcast();
        // An inner cork ends with the outer one.
        sleepers.hub.cork(|| sleepers.broadcast());
        sleepers.broadcast();
        assert_eq!(sleepers.wakes(), [0; 3]);
    });
    assert_eq!(sleepers.wakes(), [1, 0, 1]);
    // Without commands, there is nothing to wake for.
    sleepers.hub.cork(|| ());
    assert_eq!(sleepers.wakes(), [0; 3]);
    sleepers.goes_to_sleep(0);
    sleepers.broadcast();
    assert_eq!(sleepers.wakes(), [1, 0, 0], "the cork has ended");
}

#[test]
fn corked_thread_wakes_shards_after_64_broadcasts() {
    let world = World::new(Setup::default());
    let sleepers = Sleepers::new(&world, &[1]);
    sleepers.hub.cork(|| {
        for _ in 0..64 {
            sleepers.broadcast();
        }
        assert_eq!(sleepers.wakes(), [0]);
        sleepers.broadcast();
        assert_eq!(sleepers.wakes(), [1]);
    });
    assert_eq!(sleepers.wakes(), [0], "it is awake");
}

#[test]
fn cork_concerns_its_hub_and_its_thread_alone() {
    let world = World::new(Setup::default());
    let [corked, other] = [1, 2].map(|members| Sleepers::new(&world, &[members]));
    corked.hub.cork(|| {
        other.broadcast();
        assert_eq!(other.wakes(), [1]);
        // The inner cork is another app's: both wake their own shards.
        other.goes_to_sleep(0);
        other.hub.cork(|| other.broadcast());
        assert_eq!(other.wakes(), [1]);
        std::thread::scope(|scope| {
            scope.spawn(|| corked.broadcast());
        });
        assert_eq!(corked.wakes(), [1]);
    });
}

#[test]
fn cork_whose_code_panics_wakes_the_shards() {
    let world = World::new(Setup::default());
    let sleepers = Sleepers::new(&world, &[1]);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        sleepers.hub.cork(|| {
            sleepers.broadcast();
            panic!("as a program may");
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(sleepers.wakes(), [1]);
    sleepers.goes_to_sleep(0);
    sleepers.broadcast();
    assert_eq!(sleepers.wakes(), [1], "the cork has ended");
}

#[test]
fn cork_in_a_handler_leaves_the_wake_up_to_its_end() {
    let hub: Arc<OnceLock<Weak<Hub>>> = Arc::default();
    let of_handler = hub.clone();
    let mut world = World::with_handler(move |_, _, _| {
        let frame = Message::new("message").frame().clone();
        if let Some(hub) = of_handler.get().and_then(Weak::upgrade) {
            hub.cork(|| hub.broadcast(&frame, Destination::default()))
                .unwrap();
        }
    });
    let client = world.join();
    let sleepers = Sleepers::new(&world, &[1]);
    hub.set(Arc::downgrade(&sleepers.hub)).unwrap();
    let event = SessionEvent::Message(Message::new("message"));
    let work = Work::Session(world.session(client), vec![event], 0);
    simulate(&sleepers.hub, Job { to: None, work }, RunOn::Shard);
    assert_eq!(sleepers.wakes(), [0]);
    sleepers.hub.wake_deferred();
    assert_eq!(sleepers.wakes(), [1]);
}

#[test]
fn corked_commands_for_several_shards_wake_each_of_them_after_64() {
    let world = World::new(Setup::default());
    let sleepers = Sleepers::new(&world, &[1, 1]);
    let frame = Message::new("message").frame().clone();
    let send = |shard| {
        let key = Key {
            slot: 0,
            generation: 0,
        };
        let id = LocalId { shard, key };
        sleepers.hub.send(id, frame.clone(), true).unwrap();
    };
    sleepers.hub.cork(|| {
        (0..64).for_each(|_| send(0));
        assert_eq!(sleepers.wakes(), [0, 0]);
        (0..65).for_each(|_| send(1));
        assert_eq!(sleepers.wakes(), [1, 1]);
    });
}

#[test]
fn corked_thread_that_waits_for_a_full_mailbox_has_woken_the_other_shards() {
    let world = World::new(Setup {
        limits: Limits::default().mailbox_bytes_max(400),
        ..Setup::default()
    });
    let sleepers = Sleepers::new(&world, &[1, 1]);
    // The first shard paces its producers: a client of it reads nothing.
    sleepers.takes_its_mail(0);
    assert!(sleepers.hub.shards[0].mailbox.sleep(true));
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            sleepers.hub.cork(|| {
                let frame = Message::new("x".repeat(40)).frame().clone();
                let mut broadcasts = 0;
                while sleepers
                    .hub
                    .broadcast(&frame, Destination::default())
                    .is_ok()
                {
                    broadcasts += 1;
                }
                broadcasts
            })
        });
        let begun = std::time::Instant::now();
        let mut was_woken = false;
        while !was_woken && begun.elapsed().as_secs() < 60 {
            was_woken = sleepers.wakes()[1] > 0;
            std::thread::yield_now();
        }
        // Ends the wait of the producer.
        for handle in &sleepers.hub.shards {
            handle.mailbox.close();
        }
        assert!(was_woken, "the second shard sleeps");
        assert!(producer.join().unwrap() < 64);
    });
}

#[test]
fn echoes_beside_lone_messages_cause_no_yields() {
    let mut world = World::echoing(Limits::default());
    let client = world.join();
    for _ in 0..20 {
        world.broadcasts("lone");
        world.client_says(client, "hello");
        assert!(!world.core().cx.bursts.woken());
        world.turn();
        world.run_handlers();
        world.settle();
    }
}
