//! Compressed broadcasts on a simulated shard: when an epoch begins and ends, the bytes that compression saves, and the
//! order in which received messages are inflated.

pub(super) mod client;
mod game;

use super::wire::client_frame;
use crate::engine::hub::Destination;
use crate::engine::model::command::{Command, Form, Publication};
use crate::engine::model::replay::Replay;
use crate::engine::parts::mailbox::When;
use crate::limits::SlowConsumer;
use crate::message::Message;
use crate::protocol::fuzz::dice::{Dice, for_seeds};
use game::{CompressionGame, ROOMS};

/// Returns a message of a feed. It differs from the previous one in a few digits.
fn tick(n: usize) -> String {
    format!(
        "{{\"type\":\"tick\",\"symbol\":\"EUR/USD\",\"bid\":1.0{n},\"ask\":1.1{n},\"at\":17000{n}}}"
    )
}

#[test]
fn drop_oldest_of_replies_corrupts_no_stream() {
    drop_replies(SlowConsumer::DropOldest);
}

#[test]
fn skip_ahead_of_replies_corrupts_no_stream() {
    drop_replies(SlowConsumer::SkipAhead);
}

fn drop_replies(policy: SlowConsumer) {
    let mut replies_dropped = 0;
    for_seeds(100, |seed| {
        let mut game = CompressionGame::with_policy(Dice::from_seed(seed), policy);
        for _ in 0..3 {
            game.connect();
        }
        for index in 0..game.players.len() {
            game.join_room(index, 0);
        }
        for _ in 0..120 {
            // The clients read a few bytes, so that the oldest message is a reply or a broadcast, and sometimes partly written.
            if game.dice.one_in(4) {
                let index = game.dice.below(3);
                let room = game.dice.below(1_500);
                game.world.stall(game.players[index].client, room);
            }
            match game.dice.below(4) {
                0 => {
                    let index = game.dice.below(3);
                    let begin = game.payload();
                    let words = "reply ".repeat(180 + game.dice.below(500));
                    game.send_to(index, format!("{begin}{words}"));
                }
                1 => game.send(),
                _ => {
                    let room = game.dice.below(2) * ROOMS;
                    game.publish_to(room, None);
                }
            }
            if game.dice.one_in(2) {
                game.world.settle();
            }
            if game.dice.one_in(8) {
                game.read();
            }
        }
        let due: usize = game.players.iter().map(|player| player.due.len()).sum();
        let replies = |payloads: &[String]| {
            let long = payloads
                .iter()
                .filter(|payload| payload.ends_with("reply "));
            long.count()
        };
        let replies_due: usize = game.players.iter().map(|player| replies(&player.due)).sum();
        assert!(due > replies_due);
        let players = game.finish();
        let replies_got: usize = players.iter().map(|player| replies(&player.got)).sum();
        replies_dropped += replies_due - replies_got;
    });
    assert!(replies_dropped > 0 || std::env::var_os("SEED").is_some());
}

#[test]
fn single_follower_of_a_large_audience_gets_few_epochs() {
    let mut game = CompressionGame::with_policy(Dice::from_seed(3), SlowConsumer::Disconnect);
    game.world.joined(200);
    game.connect_until(1, |player| player.can_follow);
    let follower = game.world.id(game.players[0].client);
    for n in 0..600 {
        let payload = tick(n);
        // Each 20th message skips the follower, which then waits for the next epoch.
        let is_skipped = n % 20 == 0;
        let to = Destination {
            except: is_skipped.then_some(follower),
            ..Destination::default()
        };
        let frame = Message::new(&payload).frame().clone();
        game.world.hub.try_broadcast(&frame, to).unwrap();
        game.world.settle();
        if !is_skipped {
            game.players[0].due.push(payload);
        }
    }
    game.read();
    assert_eq!(game.players[0].got, game.players[0].due);
    // A new epoch after each skipped message would make 30. Instead, the pauses between epochs double.
    let epochs = game.world.metrics().compression.epochs;
    assert!((2..=8).contains(&epochs), "{epochs}");
    game.world.run_handlers();
}

#[test]
fn audience_of_incompressible_messages_stops_compressing() {
    let mut game = CompressionGame::with_policy(Dice::from_seed(3), SlowConsumer::Disconnect);
    game.connect_until(4, |player| player.can_follow);
    let noise = |game: &mut CompressionGame| -> String {
        let letters = (0..100).map(|_| char::from(b' ' + game.dice.below(95) as u8));
        letters.collect()
    };
    for n in 0..2_000 {
        let payload = match n {
            0..40 => tick(n),
            _ => noise(&mut game),
        };
        game.broadcast(&payload);
    }
    game.read();
    let before = game.world.metrics().compression;
    // A random message that happens to become shorter begins a further epoch.
    assert!(before.epochs < 10, "{before:?}");
    // After a new member has joined, compression is tried again within a few messages.
    game.connect();
    while !game.players.last().expect("just joined").can_follow {
        game.players.pop();
        game.connect();
    }
    for n in 0..200 {
        game.broadcast(&tick(n));
    }
    game.read();
    for player in &game.players {
        assert_eq!(player.got, player.due);
    }
    let compressed = game.world.metrics().compression.compressed - before.compressed;
    assert!(compressed > 150, "{compressed} of 200");
    game.world.run_handlers();
}

#[test]
fn short_message_does_not_wait_for_long_ones() {
    const LONG: usize = 8 << 20;
    const ATTACKERS: usize = 8;
    let mut game = CompressionGame::with_policy(Dice::from_seed(3), SlowConsumer::Disconnect);
    game.connect_until(ATTACKERS + 1, |player| player.inflaters.is_some());
    let send = |game: &mut CompressionGame, index: usize, len: usize| {
        let payload = miniz_oxide::deflate::compress_to_vec(&vec![b'a'; len], 9);
        let frame = client_frame(0xC1, &payload);
        game.world
            .pipe(game.players[index].client)
            .client_sends(&frame);
    };
    for index in 0..ATTACKERS {
        send(&mut game, index, LONG);
    }
    send(&mut game, ATTACKERS, 100_000);
    let inflated =
        |game: &CompressionGame| game.world.metrics().compression.inflated_bytes as usize;
    let mut turns = 0;
    while inflated(&game) % LONG == 0 {
        game.world.turn();
        turns += 1;
        assert!(turns < 10, "the short message waits for the long ones");
    }
    assert_eq!(inflated(&game), 100_000);
    // The long messages do not starve.
    while inflated(&game) < 100_000 + ATTACKERS * LONG {
        game.world.turn();
        turns += 1;
        assert!(turns < 10 + ATTACKERS * LONG / (200 << 10));
    }
}

#[test]
fn followers_receive_a_third_of_the_uncompressed_bytes() {
    let mut game = CompressionGame::new(Dice::from_seed(3));
    game.connect_until(4, |player| player.can_follow);
    for n in 0..500 {
        game.broadcast(&tick(n));
    }
    game.read();
    let metrics = game.world.metrics().compression;
    assert!(metrics.sent_bytes * 3 < metrics.plain_bytes, "{metrics:?}");
    game.world.run_handlers();
}

#[test]
fn late_follower_gets_an_epoch_after_many_plain_messages() {
    let mut game = CompressionGame::new(Dice::from_seed(3));
    game.connect_until(2, |player| player.can_follow);
    // None of the members of the room can follow. Other connections can.
    let plain = game.world.join();
    let session = game.world.session(plain);
    let hub = game.world.hub.clone();
    let reserved = hub.reserve_join(&session, 0, 0).unwrap();
    hub.join(reserved, &game.rooms[0], &session, Replay::default())
        .unwrap();
    for _ in 0..1_000 {
        game.publish_to(0, None);
        game.world.settle();
    }
    assert_eq!(game.world.metrics().compression.epochs, 0);
    game.join_room(0, 0);
    game.world.settle();
    let to = Destination {
        room: Some(&game.rooms[0]),
        ..Destination::default()
    };
    let frame = Message::new("x".repeat(100)).frame().clone();
    hub.try_broadcast(&frame, to).unwrap();
    game.world.settle();
    assert_eq!(game.world.metrics().compression.epochs, 1);
    game.world.run_handlers();
}

#[test]
fn epoch_ends_sooner_the_more_members_wait() {
    let epochs = |joining: usize| {
        let mut game = CompressionGame::new(Dice::from_seed(3));
        game.connect_until(12, |player| player.can_follow);
        game.broadcast(&tick(0));
        game.connect_until(12 + joining, |player| player.can_follow);
        let mut messages = 0;
        while game.world.metrics().compression.epochs < 2 {
            messages += 1;
            game.broadcast(&tick(messages));
        }
        game.read();
        game.world.run_handlers();
        messages
    };
    // A new epoch costs each of 12 followers as much as 4 uncompressed messages, which one waiting member has received
    // after 48 messages. At least 16 messages pass.
    assert_eq!([epochs(1), epochs(2), epochs(12)], [49, 25, 17]);
}

#[test]
fn members_of_two_audiences_follow_only_one() {
    let mut game = CompressionGame::new(Dice::from_seed(3));
    game.connect_until(4, |player| player.can_follow);
    for index in 0..4 {
        game.join_room(index, 0);
    }
    game.world.settle();
    for n in 0..500 {
        let payload = tick(n);
        // Both messages are sent in one turn.
        for room in [Some(&game.rooms[0]), None] {
            let to = Destination {
                room,
                ..Destination::default()
            };
            let frame = Message::new(&payload).frame().clone();
            game.world.hub.try_broadcast(&frame, to).unwrap();
        }
        game.world.settle();
    }
    game.read();
    let metrics = game.world.metrics();
    // Every client follows one audience throughout, which therefore needs few epochs. Of the 4 × 500 messages to that
    // audience, at least 4 × 450 are compressed.
    assert!(metrics.compression.epochs < 20, "{metrics:?}");
    assert!(
        metrics.compression.plain_bytes > 4 * 450 * 80,
        "{metrics:?}"
    );
    game.world.run_handlers();
}

#[test]
fn history_of_a_room_is_dropped_with_its_last_member() {
    let mut game = CompressionGame::new(Dice::from_seed(3));
    game.connect_until(3, |player| player.can_follow);
    let histories = |game: &mut CompressionGame| {
        let fanout = &game.world.core().cx.fanout;
        fanout.shared_compression.histories_len()
    };
    // The third client stays, so that the shard goes on compressing.
    for index in 0..2 {
        game.join_room(index, index);
        game.join_room(index, 2);
    }
    game.world.settle();
    for room in 0..3 {
        for n in 0..20 {
            let to = Destination {
                room: Some(&game.rooms[room]),
                ..Destination::default()
            };
            let frame = Message::new(tick(n)).frame().clone();
            game.world.hub.try_broadcast(&frame, to).unwrap();
            game.world.settle();
        }
    }
    assert!(game.world.metrics().compression.epochs > 0);
    assert_eq!(histories(&mut game), 3);
    game.leave_room(0, 0);
    game.world.settle();
    assert_eq!(histories(&mut game), 2);
    let ended = game.players[1].client;
    game.world.client_resets(ended);
    game.world.run_handlers();
    assert_eq!(histories(&mut game), 1);
    game.leave_room(0, 2);
    game.world.settle();
    assert_eq!(histories(&mut game), 0);
    // A message that was on its way when the last member left.
    let late = Publication {
        room: Some(game.rooms[2].clone()),
        frame: Some(Message::new(tick(20)).frame().clone()),
        form: Form::Any,
        key: None,
        except: None,
        with_ids: None,
        rendered: None,
        event: None,
    };
    let late = Command::Publish(Box::new(late));
    let mailbox = &game.world.hub.shards[0].mailbox;
    assert!(mailbox.push(late, When::Now).is_ok());
    game.world.settle();
    assert_eq!(histories(&mut game), 0);
}
