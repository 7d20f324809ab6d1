//! The life of a WebSocket: order of handlers, replies, closing, violations, control frames and broadcasts.

use super::wire::{
    Frame, UPGRADE, client_close, client_frame, client_ping, client_text, parse_frames, pong, text,
};
use super::world::{Setup, Told, World, echo, panic_quietly, send};
use crate::engine::hub::Destination;
use crate::engine::model::command::{Command, Received, Upgraded};
use crate::engine::model::program::Subscriptions;
use crate::engine::model::session::Status;
use crate::engine::reactor::Readiness;
use crate::limits::Limits;
use crate::message::Message;
use crate::protocol::connection::FrameReader;
use crate::protocol::http::Head;

fn closed(code: u16, reason: &str) -> Frame {
    Frame::Close(Some(code), reason.into())
}

#[test]
fn handlers_run_in_order_for_input_from_one_read() {
    let mut world = World::with_handler(echo);
    let client = world.connect();
    let all = [
        UPGRADE,
        &client_text("a"),
        &client_text("b"),
        &client_close(1000),
    ]
    .concat();
    world.client_sends(client, all);
    world.run_handlers();
    let expected = [
        Told::Entered,
        Told::Open,
        Told::message("a"),
        Told::message("b"),
        Told::Left,
        Told::Close,
    ];
    assert_eq!(world.told(client), expected);
    assert!(world.head(client).starts_with("HTTP/1.1 101 "));
    // Replies leave before the echo of the close.
    let expected = [text("a"), text("b"), closed(1000, "")];
    assert_eq!(world.all_frames(client), expected);
    // RFC 6455 §7.1.1: the server closes the TCP connection first. Both sides have sent their close frames.
    assert!(world.is_closed(client));
    world.assert_empty();
}

#[test]
fn messages_of_a_connection_are_handled_one_at_a_time() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    for n in 0..10 {
        world.client_says(client, &n.to_string());
        assert_eq!(world.jobs.len(), 1, "the first batch runs, the rest waits");
    }
    world.run_jobs();
    assert_eq!(world.all_frames(client), [text("0")]);
    assert_eq!(world.jobs.len(), 1, "all that came meanwhile is one batch");
    world.run_handlers();
    let expected: Vec<_> = (1..10).map(|n| text(n.to_string())).collect();
    assert_eq!(world.all_frames(client), expected);
}

#[test]
fn disconnect_handler_waits_for_earlier_handlers() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.told(client);
    world.client_says(client, "a");
    world.client_resets(client);
    assert_eq!(world.told(client), []);
    assert_eq!(world.jobs.len(), 1);
    world.run_handlers();
    let expected = [Told::message("a"), Told::Left, Told::Close];
    assert_eq!(world.told(client), expected);
    assert!(world.is_closed(client));
    world.assert_empty();
    assert_eq!(world.metrics().dropped.closed, 1, "the reply");
}

#[test]
fn close_code_or_its_absence_is_echoed() {
    for code in [1000, 1001, 1003, 1011, 3000, 4999] {
        let mut world = World::with_handler(echo);
        let client = world.join();
        let mut payload = u16::to_be_bytes(code).to_vec();
        payload.extend_from_slice(b"reason");
        world.client_sends(client, client_frame(0x88, &payload));
        world.run_handlers();
        assert_eq!(world.all_frames(client), [closed(code, "")]);
    }
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.client_sends(client, client_frame(0x88, b""));
    world.run_handlers();
    assert_eq!(
        world.all_frames(client),
        [Frame::Close(None, String::new())]
    );
}

#[test]
fn messages_before_a_violation_are_answered_before_close() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    // An unmasked frame: RFC 6455 §5.1.
    let all = [
        &client_text("a")[..],
        &client_text("b"),
        &[0x81, 1, b'x'],
        &client_text("never"),
    ]
    .concat();
    world.client_sends(client, all);
    assert_eq!(world.all_frames(client), []);
    world.run_handlers();
    let frames = world.all_frames(client);
    assert_eq!(frames[..2], [text("a"), text("b")]);
    assert!(
        matches!(frames[2..], [Frame::Close(Some(1002), _)]),
        "{frames:?}"
    );
    let expected = [
        Told::Open,
        Told::message("a"),
        Told::message("b"),
        Told::Close,
    ];
    assert_eq!(world.handled(client), expected);
    assert_eq!(world.metrics().protocol_errors, 1);
}

#[test]
fn header_over_the_limit_is_refused_with_1009() {
    let mut world = World::new(Setup {
        limits: Limits {
            message_bytes_max: 100,
            ..Limits::default()
        },
        handler: Box::new(echo),
        ..Setup::default()
    });
    let client = world.join();
    world.client_sends(client, client_text(&"x".repeat(100)));
    // The header alone.
    world.client_sends(client, &client_text(&"x".repeat(101))[..8]);
    world.run_handlers();
    let frames = world.all_frames(client);
    assert_eq!(frames[0], text("x".repeat(100)));
    assert!(
        matches!(frames[1..], [Frame::Close(Some(1009), _)]),
        "{frames:?}"
    );
}

#[test]
fn panic_closes_only_its_connection_with_1011() {
    let mut world = World::with_handler(|hub, session, told| {
        echo(hub, session, told);
        if *told == Told::message("panic") {
            panic_quietly();
        }
    });
    let client = world.join();
    let other = world.join();
    world.told(client);
    let batch = [
        client_text("a"),
        client_text("panic"),
        client_text("b"),
        client_text("c"),
    ];
    world.client_sends(client, batch.concat());
    world.client_says(client, "later");
    world.run_handlers();
    let expected = [text("a"), text("panic"), closed(1011, "internal error")];
    assert_eq!(world.all_frames(client), expected);
    // Later messages are not handled either. The client's close frame ends the connection.
    world.client_says(client, "too late");
    world.client_sends(client, client_close(1011));
    world.client_ends(client);
    world.run_handlers();
    let expected = [
        Told::message("a"),
        Told::message("panic"),
        Told::Left,
        Told::Close,
    ];
    assert_eq!(world.told(client), expected);
    let metrics = world.metrics();
    assert_eq!((metrics.handler_panics, metrics.dropped.unhandled), (1, 4));
    world.client_says(other, "still there");
    world.run_handlers();
    assert_eq!(world.all_frames(other), [text("still there")]);
}

#[test]
fn panic_in_connect_or_disconnect_still_runs_the_other() {
    for at in [Told::Open, Told::Close] {
        let panics_at = at.clone();
        let mut world = World::with_handler(move |_, _, told| {
            if *told == panics_at {
                panic_quietly();
            }
        });
        let client = world.connect();
        world.client_sends(client, [UPGRADE, &client_text("a")].concat());
        world.run_handlers();
        world.client_sends(client, client_close(1000));
        world.client_ends(client);
        world.run_handlers();
        let told = world.handled(client);
        assert_eq!(told.first(), Some(&Told::Open));
        assert_eq!(told.last(), Some(&Told::Close));
        assert_eq!(told.contains(&Told::message("a")), at == Told::Close);
        assert_eq!(world.metrics().handler_panics, 1);
        world.assert_empty();
    }
}

#[test]
fn input_may_arrive_byte_by_byte() {
    let mut world = World::with_handler(echo);
    let client = world.connect();
    let long = "é".repeat(200);
    let all = [
        UPGRADE,
        &client_text("a"),
        &client_ping(b"ping"),
        &client_frame(0x01, b"frag"),
        &client_ping(b"between"),
        &client_frame(0x80, b"mented"),
        &client_text(&long),
        &client_close(4000),
    ]
    .concat();
    for byte in all {
        world.client_sends(client, [byte]);
        world.run_handlers();
    }
    world.head(client);
    let expected = [
        text("a"),
        pong("ping"),
        pong("between"),
        text("fragmented"),
        text(long),
        closed(4000, ""),
    ];
    assert_eq!(world.all_frames(client), expected);
}

#[test]
fn partial_frame_delays_only_its_own_client() {
    let mut world = World::with_handler(echo);
    let (slow, quick) = (world.join(), world.join());
    let frame = client_text("slow");
    world.client_sends(slow, &frame[..3]);
    world.client_says(quick, "quick");
    world.broadcasts("all");
    world.run_handlers();
    assert_eq!(world.all_frames(quick), [text("all"), text("quick")]);
    assert_eq!(world.all_frames(slow), [text("all")]);
    world.client_sends(slow, &frame[3..]);
    world.run_handlers();
    assert_eq!(world.all_frames(slow), [text("slow")]);
}

#[test]
fn pongs_precede_queued_messages_but_split_no_frame() {
    let messages: Vec<String> = (0..4).map(|n| format!("message {n}")).collect();
    let frame_len = 2 + messages[0].len();
    for room in 0..=messages.len() * frame_len {
        let mut world = World::with_handler(echo);
        let client = world.join();
        world.stall(client, room);
        for message in &messages {
            world.sends(client, message);
        }
        world.settle();
        world.client_sends(client, [client_ping(b"1"), client_ping(b"2")].concat());
        world.broadcasts("later");
        world.unstall(client);
        let got = world.all_frames(client);
        // The messages sent in full, and the one in progress.
        let before = room.div_ceil(frame_len);
        let mut expected: Vec<Frame> = messages[..before].iter().map(text).collect();
        expected.extend([pong("1"), pong("2")]);
        expected.extend(messages[before..].iter().map(text));
        expected.push(text("later"));
        assert_eq!(got, expected, "room for {room} bytes");
    }
}

#[test]
fn frames_leave_whole_and_in_order_at_any_socket_size() {
    // Joined broadcasts, single sends, a large message, one byte of room at a time.
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.stall(client, 0);
    let large = "x".repeat(300);
    for payload in ["a", "b", &large, "c"] {
        world.broadcasts(payload);
        world.sends(client, payload);
    }
    world.settle();
    let mut bytes = Vec::new();
    let mut frames = Vec::new();
    while frames.len() < 8 {
        world.client_reads(client, 1);
        bytes.extend(world.output(client));
        frames.extend(parse_frames(&mut bytes));
    }
    let expected: Vec<Frame> = ["a", "a", "b", "b", &large, &large, "c", "c"]
        .map(text)
        .to_vec();
    assert_eq!(frames, expected);
    assert_eq!(world.metrics().messages_out, 8);
}

#[test]
fn broadcasts_of_one_turn_are_one_write_per_member() {
    let mut world = World::with_handler(echo);
    let clients = world.joined(5);
    let before: Vec<usize> = clients.iter().map(|&c| world.pipe(c).writes).collect();
    for n in 0..100 {
        world.broadcasts(n.to_string());
    }
    world.settle();
    for (&client, before) in clients.iter().zip(before) {
        assert_eq!(world.pipe(client).writes, before + 1);
        let expected: Vec<_> = (0..100).map(|n| text(n.to_string())).collect();
        assert_eq!(world.all_frames(client), expected);
    }
    assert_eq!(world.metrics().messages_out, 500);
}

#[test]
fn replies_to_one_read_are_one_write() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    let before = world.pipe(client).writes;
    let all: Vec<u8> = (0..100).flat_map(|n| client_text(&n.to_string())).collect();
    world.client_sends(client, all);
    world.run_handlers();
    assert_eq!(world.all_frames(client).len(), 100);
    assert_eq!(world.pipe(client).writes, before + 1);
}

#[test]
fn send_between_broadcasts_keeps_its_order() {
    let mut world = World::with_handler(echo);
    let clients = world.joined(3);
    let mut expected = vec![Vec::new(); 3];
    for n in 0..30 {
        let payload = n.to_string();
        if n % 4 == 1 {
            let at = n % 3;
            world.sends(clients[at], &payload);
            expected[at].push(text(payload));
        } else {
            world.broadcasts(&payload);
            expected.iter_mut().for_each(|e| e.push(text(&payload)));
        }
    }
    world.settle();
    for (&client, expected) in clients.iter().zip(expected) {
        assert_eq!(world.all_frames(client), expected);
    }
}

#[test]
fn close_between_broadcasts_keeps_its_order() {
    let mut world = World::with_handler(echo);
    let clients = world.joined(2);
    world.broadcasts("1");
    world.closes(clients[0], 4001, "enough");
    world.broadcasts("2");
    world.sends(clients[0], "3");
    world.settle();
    assert_eq!(
        world.all_frames(clients[0]),
        [text("1"), closed(4001, "enough")]
    );
    assert_eq!(world.all_frames(clients[1]), [text("1"), text("2")]);
    assert_eq!(world.metrics().dropped.closed, 1);
}

#[test]
fn broadcast_in_the_connect_handler_reaches_the_client() {
    let mut world = World::with_handler(|hub, _, told| {
        if *told == Told::Open {
            hub.try_broadcast(Message::new("welcome").frame(), Destination::default())
                .unwrap();
        }
    });
    let first = world.join();
    assert_eq!(world.all_frames(first), [text("welcome")]);
    let second = world.join();
    assert_eq!(world.all_frames(first), [text("welcome")]);
    assert_eq!(world.all_frames(second), [text("welcome")]);
}

#[test]
fn send_after_the_client_disconnected_is_counted() {
    let mut world = World::with_handler(|hub, session, told| {
        if *told == Told::Close {
            send(hub, session, "too late");
        }
    });
    let client = world.join();
    world.client_resets(client);
    world.run_handlers();
    assert_eq!(world.metrics().dropped.no_recipient, 1);
    assert_eq!(world.session(client).status(), Status::Closed);
}

#[test]
fn half_closed_client_still_receives_replies() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    {
        let mut pipe = world.pipe(client);
        pipe.client_sends(&client_text("a"));
        pipe.client_sends(&client_text("b"));
        pipe.client_ends();
    }
    world.run_handlers();
    assert_eq!(world.all_frames(client), [text("a"), text("b")]);
    assert_eq!(
        world.handled(client)[1..],
        [Told::message("a"), Told::message("b"), Told::Close]
    );
    assert!(world.is_closed(client));
    world.assert_empty();
}

#[test]
fn server_close_waits_for_the_client_before_the_socket() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.closes(client, 1000, "bye");
    world.settle();
    assert_eq!(world.all_frames(client), [closed(1000, "bye")]);
    assert!(!world.is_finished(client));
    world.client_says(client, "crossing");
    world.client_sends(client, client_close(1000));
    world.run_handlers();
    assert_eq!(
        world.all_frames(client),
        [],
        "nothing after the close frame"
    );
    assert!(world.is_closed(client));
    assert_eq!(world.handled(client), [Told::Open, Told::Close]);
    assert_eq!(world.metrics().dropped.unhandled, 1);
    world.assert_empty();
}

#[test]
fn messages_received_before_server_close_are_handled() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.client_says(client, "a");
    world.client_says(client, "b");
    world.closes(client, 1000, "");
    world.settle();
    assert_eq!(world.all_frames(client), [closed(1000, "")]);
    world.client_sends(client, client_close(1000));
    world.client_ends(client);
    world.run_handlers();
    let expected = [
        Told::Open,
        Told::message("a"),
        Told::message("b"),
        Told::Close,
    ];
    assert_eq!(world.handled(client), expected);
    assert_eq!(world.metrics().dropped.closed, 2, "the replies");
    world.assert_empty();
}

#[test]
fn flood_to_a_busy_handler_is_paused_and_loses_nothing() {
    let mut world = World::new(Setup {
        limits: Limits {
            pending_bytes_max: 1_000,
            ..Limits::default()
        },
        handler: Box::new(echo),
        ..Setup::default()
    });
    let client = world.join();
    let payload = "x".repeat(1_000);
    world.client_says(client, "first");
    let burst = client_text(&payload).repeat(100);
    for _ in 0..10 {
        world.client_sends(client, &burst);
    }
    assert!(world.pipe(client).unread() > 800_000);
    let reads = world.pipe(client).reads;
    world.client_says(client, "last");
    assert_eq!(world.pipe(client).reads, reads, "it is not read");
    world.run_handlers();
    assert_eq!(world.pipe(client).unread(), 0);
    let frames = world.all_frames(client);
    assert_eq!(frames.len(), 1_002);
    assert_eq!(frames.last(), Some(&text("last")));
}

#[test]
fn paused_client_is_read_again_when_its_handler_ends() {
    // The outbox is empty and nothing is written, so no write can cause the shard to read again.
    let mut world = World::new(Setup {
        limits: Limits {
            pending_bytes_max: 0,
            ..Limits::default()
        },
        ..Setup::default()
    });
    let client = world.join();
    world.client_says(client, "a");
    world.client_says(client, "b");
    assert!(world.pipe(client).unread() > 0);
    world.run_jobs();
    assert_eq!(world.pipe(client).unread(), 0);
    world.run_handlers();
    let expected = [Told::Open, Told::message("a"), Told::message("b")];
    assert_eq!(world.handled(client), expected);
}

#[test]
fn pings_and_closes_are_read_while_the_handler_blocks() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.client_says(client, "blocks");
    world.client_sends(client, client_ping(b"p"));
    assert_eq!(world.all_frames(client), [pong("p")]);
    world.client_sends(client, client_close(1000));
    assert_eq!(world.all_frames(client), [], "after the reply");
    world.run_handlers();
    assert_eq!(world.all_frames(client), [text("blocks"), closed(1000, "")]);
}

#[test]
fn unread_pongs_are_bounded_and_the_latest_is_kept() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.stall(client, 0);
    let pings: Vec<u8> = (0u32..200)
        .flat_map(|n| client_ping(&n.to_be_bytes()))
        .collect();
    world.client_sends(client, pings);
    let reads = world.pipe(client).reads;
    world.client_sends(client, client_ping(b"late"));
    assert_eq!(world.pipe(client).reads, reads, "it is not read");
    world.unstall(client);
    let frames = world.all_frames(client);
    assert!(frames.len() <= 17, "{}", frames.len());
    assert!(frames.contains(&pong(199u32.to_be_bytes())));
    assert_eq!(frames.last(), Some(&pong("late")));
}

#[test]
fn stale_key_or_event_does_not_affect_a_reused_slot() {
    let mut world = World::with_handler(echo);
    let old = world.join();
    world.client_resets(old);
    world.run_handlers();
    let new = world.join();
    assert_eq!(world.key(old).slot, world.key(new).slot);
    world.sends(old, "for nobody");
    world.closes(old, 1000, "");
    world.settle();
    let (old_key, reads) = (world.key(old), world.pipe(new).reads);
    let all = Readiness {
        readable: true,
        hangup: true,
        writable: true,
    };
    world.core().ready(old_key.token().unwrap(), all);
    world.core().ready(usize::MAX - 5, all);
    world.turn();
    assert_eq!(world.pipe(new).reads, reads);
    assert_eq!(world.all_frames(new), []);
    assert_eq!(world.metrics().dropped.no_recipient, 1);
    world.client_says(new, "fine");
    world.run_handlers();
    assert_eq!(world.all_frames(new), [text("fine")]);
}

#[test]
fn messages_without_a_handler_are_counted_and_dropped() {
    let mut world = World::new(Setup {
        subscriptions: Subscriptions::default(),
        ..Setup::default()
    });
    let client = world.join();
    world.client_says(client, "a");
    world.client_sends(client, client_ping(b""));
    world.broadcasts("b");
    world.settle();
    assert_eq!(world.all_frames(client), [pong(""), text("b")]);
    assert_eq!(world.metrics().dropped.unhandled, 1);
    world.client_sends(client, client_close(1000));
    world.client_ends(client);
    assert!(world.jobs.is_empty());
    assert_eq!(world.told(client), [Told::Entered, Told::Left]);
    world.assert_empty();
}

#[test]
fn adopted_connection_continues_at_its_read_position() {
    let mut world = World::with_handler(echo);
    let mut protocol = FrameReader::new(1_000);
    let cut = client_text("cut");
    let mut begun = cut[..4].to_vec();
    assert!(protocol.receive(&mut &mut begun[..]).unwrap().is_none());
    let head = Head {
        method: "GET".into(),
        target: "/path".into(),
        minor_version: 1,
        headers: Vec::new(),
    };
    let client = world.adopt(Upgraded {
        pending_out: Vec::new(),
        head: Some(Box::new(head)),
        is_answered: true,
        has_input_ended: false,
        close_reply: None,
        has_output_ended: false,
        received: Some(Received {
            messages: vec![Message::new("early")],
            protocol,
        }),
        ..Upgraded::default()
    });
    world.client_sends(client, &cut[4..]);
    world.run_handlers();
    assert_eq!(world.all_frames(client), [text("early"), text("cut")]);
    assert_eq!(
        world.handled(client),
        [Told::Open, Told::message("early"), Told::message("cut")]
    );
    assert_eq!(world.session(client).target(), "/path");
}

#[test]
fn send_before_the_upgrade_is_counted() {
    let mut world = World::with_handler(echo);
    let client = world.connect();
    let command = Command::Send(world.key(client), Message::new("x").frame().clone());
    world.hub.post(world.id(client), command, false).unwrap();
    world.closes(client, 1000, "");
    world.settle();
    assert_eq!(world.metrics().dropped.closed, 1);
    assert_eq!(world.output(client), b"");
    assert!(!world.try_broadcast("nobody").unwrap());
}
