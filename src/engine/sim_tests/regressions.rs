//! Regression tests for bugs of other libraries that need a simulated socket, clock and event loop to reproduce.
//! `tests/regressions.rs` has the full list.

use std::time::Duration;

use super::wire::{Frame, UPGRADE, client_close, client_frame, client_ping, client_text, text};
use super::world::{Setup, Told, World, echo, send};
use crate::engine::model::command::Command;
use crate::engine::parts::mailbox::{PushError, Weigh};
use crate::engine::reactor::{READ_BYTES, Stage};
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;
use crate::ping::Heartbeat;

const OUTBOX: usize = 1_000;

fn paced(patience: Duration) -> SlowConsumer {
    SlowConsumer::Pace {
        bytes_per_second_min: 1_000,
        patience,
    }
}

#[test]
fn frames_after_a_head_do_not_count_against_its_limit() {
    let payload = "x".repeat(READ_BYTES - 1_000);
    let frame = client_text(&payload);
    for cut in (0..UPGRADE.len()).step_by(7) {
        let mut world = World::new(Setup {
            limits: Limits {
                head_bytes_max: UPGRADE.len(),
                ..Limits::default()
            },
            handler: Box::new(echo),
            ..Setup::default()
        });
        let client = world.connect();
        world.client_sends(client, &UPGRADE[..cut]);
        // The rest of the head and the frame in one read.
        world.client_sends(client, [&UPGRADE[cut..], &frame].concat());
        world.run_handlers();
        let head = world.head(client);
        assert!(head.starts_with("HTTP/1.1 101 "), "cut at {cut}: {head}");
        assert_eq!(world.all_frames(client), [text(&payload)]);
    }
}

#[test]
fn every_deadline_of_a_nonreader_expires_on_time() {
    const DUE_MS: u64 = 3_000;
    let due = Duration::from_millis(DUE_MS);
    let long = Duration::from_secs(1_000_000);
    let never = Limits {
        outbox_bytes_max: OUTBOX,
        write_timeout: long,
        close_timeout: long,
        ..Limits::default()
    };
    let close = Limits {
        close_timeout: due,
        ..never.clone()
    };
    let at_once = Limits {
        close_timeout: Duration::ZERO,
        ..never.clone()
    };
    let write = Limits {
        write_timeout: due,
        ..never.clone()
    };
    let heartbeat = Heartbeat::new(Duration::from_millis(1_000), due);
    let newest = SlowConsumer::DropNewest;
    // Name, limits, policy, heartbeat, and whether the program closes.
    let cases = [
        ("heartbeat", &never, newest, Some(heartbeat), false),
        ("write", &write, newest, None, false),
        ("write, skips", &write, SlowConsumer::SkipAhead, None, false),
        ("close", &close, newest, None, true),
        ("verdict", &close, SlowConsumer::Disconnect, None, false),
        ("patience", &at_once, paced(due), None, false),
        (
            "heartbeat, paced",
            &never,
            paced(long),
            Some(heartbeat),
            false,
        ),
    ];
    for (name, limits, slow_consumer, heartbeat, closes) in cases {
        // Whether the program keeps sending and whether the client keeps sending. Neither extends the deadline.
        for goes_on in [false, true] {
            let mut world = World::new(Setup {
                limits: limits.clone(),
                slow_consumer,
                heartbeat,
                ..Setup::default()
            });
            let client = world.join();
            world.stall(client, 7);
            for _ in 0..30 {
                let _ = world.try_broadcast("x".repeat(98));
            }
            if closes {
                world.closes(client, 1000, "");
            }
            world.settle();
            for _ in 0..DUE_MS / 100 - 1 {
                if goes_on {
                    let _ = world.try_broadcast("more");
                    let _ = world.try_send(client, "more");
                }
                if goes_on && heartbeat.is_none() {
                    world.client_sends(client, client_ping(b"?"));
                }
                world.advance_ms(100);
                assert!(!world.is_closed(client), "{name}: too early");
            }
            world.advance_ms(200);
            assert!(world.is_closed(client), "{name}: never");
            world.assert_empty();
        }
    }
}

/// How a connection ends in the same turn in which messages are accepted for it and from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Program,
    CloseFrame,
    EndOfStream,
    Both,
    Violation,
    Reset,
}

/// A turn in which a connection ends.
#[derive(Debug)]
struct EndingTurn {
    end: Ending,
    /// The bytes that the client's socket accepts before it is full.
    room: usize,
    /// Whether the end comes before the messages.
    end_first: bool,
    /// Whether the client sends messages in that turn.
    speaks: bool,
    slow_consumer: SlowConsumer,
}

#[test]
fn messages_in_the_ending_turn_are_delivered_or_counted() {
    use Ending::*;
    let policies = [SlowConsumer::Disconnect, paced(Duration::from_secs(1))];
    for end in [Program, CloseFrame, EndOfStream, Both, Violation, Reset] {
        for room in [0, 5, 40, usize::MAX / 2] {
            for end_first in [false, true] {
                for speaks in [false, true] {
                    for slow_consumer in policies {
                        let turn = EndingTurn {
                            end,
                            room,
                            end_first,
                            speaks,
                            slow_consumer,
                        };
                        turn.check();
                    }
                }
            }
        }
    }
}

impl EndingTurn {
    fn world(&self) -> World {
        World::new(Setup {
            slow_consumer: self.slow_consumer,
            limits: Limits {
                outbox_bytes_max: OUTBOX,
                ..Limits::default()
            },
            handler: Box::new(|hub, session, told| {
                if *told == Told::message("two") {
                    send(hub, session, "a reply");
                }
            }),
            ..Setup::default()
        })
    }

    /// Ends the client's connection, which the shard sees in its next turn.
    fn end(&self, world: &mut World, client: usize) {
        match self.end {
            Ending::Program => world.closes(client, 4000, ""),
            Ending::CloseFrame => world.pipe(client).client_sends(&client_close(1000)),
            Ending::EndOfStream => world.pipe(client).client_ends(),
            Ending::Both => {
                let mut pipe = world.pipe(client);
                pipe.client_sends(&client_close(1000));
                pipe.client_ends();
            }
            Ending::Violation => world.pipe(client).client_sends(&client_frame(0x83, b"")),
            Ending::Reset => world.pipe(client).client_resets(),
        }
    }

    /// Returns the frames that were sent to the client.
    fn play(&self, world: &mut World, client: usize) -> Vec<Frame> {
        world.stall(client, self.room);
        // The shard processes all of this in the single turn at the end.
        if self.speaks {
            // The handlers of these messages are running when the shard notices the end.
            let messages = [client_text("one"), client_text("two")].concat();
            world.pipe(client).client_sends(&messages);
        }
        if self.end_first {
            self.end(world, client);
        }
        let mut sent = Vec::new();
        for n in 0..4 {
            let (one, all) = (format!("one {n}"), format!("all {n}"));
            world.sends(client, &one);
            world.broadcasts(&all);
            sent.extend([text(one), text(all)]);
        }
        if !self.end_first {
            self.end(world, client);
        }
        world.turn();
        world.run_handlers();
        world.unstall(client);
        world.run_handlers();
        world.client_sends(client, client_close(1000));
        world.advance(Duration::from_secs(60));
        world.run_handlers();
        sent
    }

    fn check(&self) {
        let mut world = self.world();
        let (client, other) = (world.join(), world.join());
        let sent = self.play(&mut world, client);
        assert!(world.is_closed(client), "{self:?}");
        assert_eq!(world.all_frames(other).len(), 4, "{self:?}");
        let handled = world.handled(client);
        self.check_handled(&handled);
        let mut got = world.all_frames(client);
        self.check_received(&mut got, &sent);

        let metrics = world.metrics();
        let read = metrics.messages_in - metrics.dropped.unhandled;
        let told = handled.len() as u64 - 2;
        assert_eq!(
            read, told,
            "{self:?}: a received message was neither handled nor counted"
        );
        let replies = u64::from(handled.contains(&Told::message("two")));
        let dropped = &metrics.dropped;
        let lost = dropped.closed + dropped.no_recipient + dropped.slow_consumer;
        assert_eq!(metrics.messages_out, got.len() as u64 + 4, "{self:?}");
        // A closed client no longer receives broadcasts.
        let sent = if self.is_closed_first() { 4 } else { 8 };
        assert_eq!(
            got.len() as u64 + lost,
            sent + replies,
            "{self:?}: a sent message was neither delivered nor counted"
        );
    }

    /// Asserts that every message from the client that could be read was handled.
    fn check_handled(&self, handled: &[Told]) {
        if !matches!(self.end, Ending::Reset | Ending::Program) {
            let mut expected = vec![Told::Open, Told::Close];
            if self.speaks {
                expected.splice(1..1, ["one", "two"].map(Told::message));
            }
            assert_eq!(handled, expected, "{self:?}");
        }
    }

    /// Asserts that the client received its messages in order and without gaps, and all of them if it kept reading and
    /// the connection did not break. Removes the close frame.
    fn check_received(&self, got: &mut Vec<Frame>, sent: &[Frame]) {
        let closed = matches!(got.last(), Some(Frame::Close(..)));
        if closed {
            got.pop();
        }
        if self.end != Ending::EndOfStream && self.end != Ending::Reset {
            assert!(closed, "{self:?}: {got:?}");
        }
        if self.room > 1_000 && self.end != Ending::Reset && !self.is_closed_first() {
            assert_eq!(got[..8], *sent, "{self:?}");
        }
    }

    fn is_closed_first(&self) -> bool {
        self.end == Ending::Program && self.end_first
    }
}

#[test]
fn outbox_stays_within_its_bound_after_any_burst() {
    let policies = [
        SlowConsumer::Disconnect,
        SlowConsumer::DropNewest,
        SlowConsumer::DropOldest,
        SlowConsumer::SkipAhead,
        paced(Duration::from_secs(1_000)),
    ];
    for policy in policies {
        for room in [0, 1, 30, 500, 3_000] {
            for len in [1, 13, 48, 123, 126, 499, 500, 995] {
                for kinds in 1..4 {
                    burst(policy, room, len, kinds);
                }
            }
        }
    }
}

fn burst(policy: SlowConsumer, room: usize, len: usize, kinds: usize) {
    let mut world = World::new(Setup {
        slow_consumer: policy,
        limits: Limits {
            outbox_bytes_max: OUTBOX,
            ..Limits::default()
        },
        ..Setup::default()
    });
    let client = world.join();
    world.stall(client, room);
    let payload = "x".repeat(len);
    for n in 0..(room + 3 * OUTBOX) / len + 3 {
        match kinds {
            1 => world.broadcasts(&payload),
            2 => world.sends(client, &payload),
            _ if n % 3 == 0 => world.sends(client, &payload),
            _ => world.broadcasts(&payload),
        }
    }
    world.settle();
    let key = world.key(client);
    let Some(Stage::WebSocket(ws)) = world.core().conns.get(key).map(|conn| &conn.stage) else {
        panic!("the client is still connected");
    };
    let (bytes, frame) = (ws.outbox.bytes(), Message::new(&payload).frame().len());
    let case = format!("{policy:?}, room for {room}, {len} bytes each, {kinds}: {bytes}");
    match policy {
        // The frame in progress, and the close frame.
        SlowConsumer::Disconnect => assert!(bytes <= frame + 127, "{case}"),
        SlowConsumer::SkipAhead | SlowConsumer::Pace { .. } => {
            assert!((1..=OUTBOX).contains(&bytes), "{case}");
        }
        _ => assert!((OUTBOX + 1 - frame..=OUTBOX).contains(&bytes), "{case}"),
    }
}

#[test]
fn mailbox_stays_within_its_bound_before_its_shard_runs() {
    const MAILBOX: usize = 10_000;
    let mut world = World::new(Setup {
        limits: Limits {
            mailbox_bytes_max: MAILBOX,
            ..Limits::default()
        },
        ..Setup::default()
    });
    let client = world.join();
    let payload = "x".repeat(100);
    let weight = Command::Broadcast(Message::new(&payload).frame().clone()).weight();
    assert!(weight > 100);
    for round in 0..3 {
        let mut taken = 0;
        let refused = loop {
            let outcome = match taken % 2 {
                0 => world.try_broadcast(&payload).map(drop),
                _ => world.try_send(client, &payload),
            };
            match outcome {
                Ok(()) => taken += 1,
                Err(refused) => break refused,
            }
            assert!(taken <= MAILBOX, "it is never full");
        };
        assert_eq!(
            (taken, refused),
            (MAILBOX / weight, PushError::Full),
            "{round}"
        );
        world.settle();
        assert_eq!(world.all_frames(client).len(), taken);
    }
}

#[test]
fn busy_client_is_read_only_up_to_its_bound() {
    const PENDING: usize = 1_000;
    let busy = || {
        let mut world = World::new(Setup {
            limits: Limits {
                pending_bytes_max: PENDING,
                ..Limits::default()
            },
            ..Setup::default()
        });
        let client = world.join();
        world.client_says(client, "its handler runs");
        (world, client)
    };
    for len in [1, 50, 700] {
        let (mut world, client) = busy();
        let frame = client_text(&"x".repeat(len));
        for _ in 0..2_000 {
            world.client_sends(client, &frame);
        }
        let waits = 2_000 - world.pipe(client).unread() / frame.len();
        assert!(
            waits > 0 && waits * len <= PENDING + len,
            "{waits} of {len} bytes"
        );
        // A burst adds no more than one read to that.
        let (mut world, client) = busy();
        let burst = frame.repeat(10 * READ_BYTES / frame.len());
        world.client_sends(client, &burst);
        let taken = burst.len() - world.pipe(client).unread();
        assert!((1..=READ_BYTES).contains(&taken), "{taken} bytes at once");
        world.run_handlers();
        assert_eq!(world.pipe(client).unread(), 0);
    }
}
