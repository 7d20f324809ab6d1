//! Several processes of the program over a real Redis, and over a real NATS server.
//!
//! Without a `redis-server` or `nats-server` on this machine, these tests say so and pass; `.ci/run` installs them.
#![cfg(all(unix, feature = "cluster"))]

#[path = "../../tests/support/brokers/mod.rs"]
mod brokers;
mod support;

use brokers::{NatsServer, RedisServer};
use rustix::process::Signal;
use support::events::Events;
use support::{Client, Program, eventually, http_get, run};
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

/// Starts a process, with further options.
fn start(redis: &RedisServer, options: &[&str]) -> Program {
    let url = redis.url();
    Program::start(&[&["--no-welcome", "--cluster", &url], options].concat())
}

/// The body of the response to a request that succeeds.
fn get(program: &Program, path: &str) -> String {
    let (status, _, body) = http_get(program.address(), path);
    assert_eq!(status, 200);
    body
}

#[test]
fn lines_reach_the_clients_of_every_process() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let mut first = start(&redis, &[]);
    let mut second = start(&redis, &["--on-message", "broadcast"]);
    let mut clients = [
        first.connect(),
        second.connect(),
        second.connect_to("/news"),
    ];
    eventually("the processes hear each other", || {
        get(&first, "/clients").contains("\"clients\": 3, \"nodes\": 2, \"complete\": true")
    });
    first.write(b"from the first\n");
    for client in &mut clients {
        assert_eq!(client.text(), "from the first");
    }
    second.write(b"from the second\n");
    for client in &mut clients {
        assert_eq!(client.text(), "from the second");
    }
    let [_, _, in_news] = &mut clients;
    in_news.send(Message::text("to the room"));
    assert_eq!(in_news.text(), "to the room");
    let counts = get(&first, "/clients/news");
    assert!(counts.contains("\"clients\": 3, \"room\": 1"), "{counts}");
    for program in [&mut first, &mut second] {
        program.signal(Signal::TERM);
        program.expect_exit(0);
    }
}

#[test]
fn processes_over_nats_share_lines_without_a_history() {
    let Some(nats) = NatsServer::start("") else {
        return;
    };
    let options = ["--no-welcome", "--cluster", &nats.url()];
    let mut programs = [0; 2].map(|_| Program::start(&options));
    for program in &mut programs {
        program.expect_line("without a history, since NATS keeps no messages");
    }
    let [first, second] = &mut programs;
    let mut clients = [first.connect(), second.connect()];
    eventually("the processes hear each other", || {
        get(first, "/clients").contains("\"clients\": 2, \"nodes\": 2, \"complete\": true")
    });
    assert_eq!(get(first, "/ready"), "ready\n");
    first.write(b"from the first\n");
    for client in &mut clients {
        assert_eq!(client.text(), "from the first");
    }
    // Nothing was kept.
    let mut late = second.connect();
    second.write(b"from the second\n");
    assert_eq!(late.text(), "from the second");
    for program in [first, second] {
        program.signal(Signal::TERM);
        program.expect_exit(0);
    }
}

#[test]
fn process_without_its_broker_says_so_and_serves_its_clients() {
    let mut program = Program::start(&[
        "--no-welcome",
        "--history=0",
        "--cluster=redis://127.0.0.1:1",
    ]);
    program.expect_line("the broker 127.0.0.1:1 can't be reached");
    let mut client = program.connect();
    program.write(b"local\n");
    assert_eq!(client.text(), "local");
    let counts = get(&program, "/clients");
    assert!(
        counts.contains("\"nodes\": 1, \"complete\": false"),
        "{counts}"
    );
    program.signal(Signal::TERM);
    program.expect_exit(0);
}

#[test]
fn process_without_history_is_ready_during_an_outage() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    let program = start(&redis, &["--history", "0"]);
    let is_connected = || get(&program, "/clients").contains("\"complete\": true");
    eventually("it is connected", is_connected);
    redis.kill();
    eventually("it has noticed the outage", || !is_connected());
    for (path, expected) in [("/health", "ok\n"), ("/ready", "ready\n")] {
        assert_eq!(get(&program, path), expected);
    }
}

#[test]
fn process_with_history_is_not_ready_during_an_outage() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    let program = start(&redis, &["--history", "10"]);
    let ready = || http_get(program.address(), "/ready");
    eventually("it is ready", || ready().0 == 200);
    redis.kill();
    eventually("it is not", || ready().0 == 503);
    assert!(ready().2.contains("--cluster"), "{}", ready().2);
    assert_eq!(get(&program, "/health"), "ok\n");
    redis.restart();
    eventually("it is ready again", || ready().0 == 200);
}

#[test]
fn url_is_read_from_a_file_and_its_password_never_shown() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let file = std::env::temp_dir().join(format!("humphrey-broadcast-url-{}", std::process::id()));
    let path = file.to_str().unwrap();
    std::fs::write(&file, format!("{}\n", redis.url())).unwrap();
    let mut program = Program::start(&["--cluster-url-file", path]);
    eventually("it is connected", || {
        get(&program, "/clients").contains("\"complete\": true")
    });
    program.signal(Signal::TERM);
    program.expect_exit(0);

    std::fs::write(&file, "redis://:the-secret@").unwrap();
    let (code, _, stderr) = run(&["--cluster-url-file", path]);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(code, 2, "{stderr}");
    assert!(
        stderr.contains("redis://") && !stderr.contains("the-secret"),
        "{stderr}"
    );
    let (code, _, stderr) = run(&["--cluster-url-file", path]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("--cluster-url-file"), "{stderr}");
}

/// Starts two processes with a history.
fn start_two(redis: &RedisServer) -> [Program; 2] {
    let programs = [0; 2].map(|_| start(redis, &["--history", "9", "--publish-token", "x"]));
    eventually("the processes hear each other", || {
        get(&programs[0], "/clients").contains("\"nodes\": 2, \"complete\": true")
    });
    programs
}

/// Publishes a message and waits until it is kept.
fn publish(program: &Program, path: &str, text: &str) {
    let (status, body) = program.publish(path, "Authorization: Bearer x\r\n", text.as_bytes());
    assert_eq!(status, 200, "{body}");
}

/// Receives the end of the replay, and returns its field `complete` and the ids of everyone and of the room.
fn replay_end(client: &mut Client) -> (bool, [Option<String>; 2]) {
    let live = client.json();
    assert_eq!(live["kind"], "live", "{live}");
    assert_eq!(live["server"], "cluster");
    let id = |room: &str| live["last"][room].as_str().map(str::to_owned);
    (
        live["complete"].as_bool().unwrap(),
        [id("everyone"), id("room")],
    )
}

/// Receives a JSON message, and returns its room, text, id and time.
fn message(client: &mut Client) -> (Option<String>, String, String, u64) {
    let message = client.json();
    assert_eq!(message["kind"], "message", "{message}");
    (
        message["room"].as_str().map(str::to_owned),
        message["text"].as_str().unwrap().to_owned(),
        message["id"].as_str().unwrap().to_owned(),
        message["at"].as_u64().unwrap(),
    )
}

#[test]
fn clients_of_every_form_resume_on_another_process() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let mut programs = start_two(&redis);
    let mut json = programs[1].connect_json("/news");
    assert_eq!(replay_end(&mut json), (true, [None, None]));
    let mut here = programs[0].connect_json("/");
    assert!(replay_end(&mut here).0);
    let mut plain = programs[1].connect();
    let mut events = Events::open(&programs[1], "/events", "");

    programs[0].write(b"one\n");
    let first = message(&mut json);
    assert_eq!((&first.0, first.1.as_str()), (&None, "one"));
    assert_eq!(message(&mut here), first, "the same id and time");
    assert_eq!(plain.text(), "one");
    let (event, event_id) = events.next();
    assert_eq!(event, "data: one");
    // With the position among the lines of sources, of which there are none.
    let event_id = event_id.unwrap();
    assert!(event_id.split(',').any(|id| id == first.2), "{event_id}");
    publish(&programs[0], "/news", "of news");
    let of_news = message(&mut json);
    assert_eq!(of_news.0.as_deref(), Some("news"));
    assert_eq!(of_news.1, "of news");
    drop((json, events));
    for text in ["two", "three"] {
        publish(&programs[1], "", text);
    }

    // The other process has had no client in the room so far.
    let path = format!("/news?since={}&room_since={}", first.2, of_news.2);
    let mut resumed = programs[0].connect_json(&path);
    assert_eq!(message(&mut resumed).1, "two");
    let last = message(&mut resumed);
    assert_eq!(last.1, "three");
    let ids = [Some(last.2.clone()), Some(of_news.2.clone())];
    assert_eq!(replay_end(&mut resumed), (true, ids));
    let id = format!("Last-Event-ID: {event_id}\r\n");
    let mut events = Events::open(&programs[0], "/events", &id);
    assert_eq!(events.next().0, "data: two");
    let (event, event_id) = events.next();
    assert_eq!(event, "data: three");
    let event_id = event_id.unwrap();
    assert!(event_id.split(',').any(|id| id == last.2), "{event_id}");
    let mut late = programs[0].connect_to("/news?since=all");
    let texts = [0; 4].map(|_| late.text());
    assert_eq!(texts, ["one", "two", "three", "of news"]);

    for (room, kept) in [("", 3), ("news", 1)] {
        let key = format!("humphrey_ws:{{history:plain/{room}}}:messages");
        assert_eq!(redis.command(&["LLEN", &key]), format!(":{kept}\r\n"));
    }
    let keys = redis.command(&["KEYS", "*:messages"]);
    assert!(keys.starts_with("*2\r\n"), "one for each room: {keys}");
    for program in &mut programs {
        program.signal(Signal::TERM);
        program.expect_exit(0);
    }
}

#[test]
fn lines_of_a_source_reach_viewers_of_everyone_on_every_process() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let mut programs = [
        start(&redis, &["--prefix-room"]),
        // It has no sources of its own.
        start(&redis, &[]),
    ];
    eventually("the processes hear each other", || {
        get(&programs[1], "/clients").contains("\"nodes\": 2, \"complete\": true")
    });
    let mut viewer = programs[1].connect_json("/");
    assert!(replay_end(&mut viewer).0);
    programs[0].write(b"web: GET /\n");
    let (room, text, ..) = message(&mut viewer);
    assert_eq!((room.as_deref(), &*text), (Some("web"), "GET /"));
    for program in &mut programs {
        program.signal(Signal::TERM);
        program.expect_exit(0);
    }
}

#[test]
fn clients_of_json_are_told_of_messages_that_redis_has_lost() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    let mut programs = start_two(&redis);
    let mut in_news = programs[1].connect_json("/news");
    assert!(replay_end(&mut in_news).0);
    let offers = "humphrey_ws.procedures.v1";
    let mut page =
        Client::connect_as(programs[1].address(), "/news?form=json", Some(offers)).unwrap();
    assert!(replay_end(&mut page).0);
    let mut plain = programs[1].connect();
    publish(&programs[0], "", "before");
    let before = message(&mut in_news);
    assert_eq!(plain.text(), "before");
    assert!(
        page.message()
            .into_data()
            .ends_with(b"\"text\":\"before\"}")
    );
    redis.restart();

    // One line for each room, which names the position in this room only.
    let mut gaps = [0; 2].map(|_| replay_end(&mut in_news));
    gaps.sort_by_key(|(_, ids)| ids[0].is_none());
    let [(false, [Some(everyone), None]), (false, [None, Some(_)])] = &gaps else {
        panic!("{gaps:?}");
    };
    assert_ne!(*everyone, before.2);
    // The page is told of the gap by the library, too.
    for _ in 0..2 {
        let told = loop {
            let told = page.message().into_data();
            // An outage may have lasted for long enough on a busy machine.
            if !matches!(told[..], [7, .., 4, 0 | 1]) {
                break told;
            }
        };
        assert!(matches!(told[..], [7, .., 3]), "{told:?}");
        assert!(!replay_end(&mut page).0);
    }
    programs[0].write(b"after\n");
    let after = message(&mut in_news);
    assert_eq!(after.1, "after");
    assert_eq!(
        after.2,
        format!("{}-1", everyone.split('-').next().unwrap())
    );
    assert_eq!(plain.text(), "after");
    assert!(page.message().into_data().ends_with(b"\"text\":\"after\"}"));
    // A resume from the position in the line has no gap.
    let mut resumed = programs[0].connect_json(&format!("/?since={everyone}"));
    assert_eq!(message(&mut resumed).1, "after");
    assert!(replay_end(&mut resumed).0);
    for program in &mut programs {
        program.signal(Signal::TERM);
        program.expect_exit(0);
    }
}

#[test]
fn history_without_its_broker_refuses_clients_and_messages_for_now() {
    let program = Program::start(&[
        "--no-welcome",
        "--history=9",
        "--publish-token=x",
        "--cluster=redis://127.0.0.1:1",
    ]);
    program.connect().expect_close(CloseCode::Again);
    let counts = get(&program, "/clients");
    assert!(counts.contains("\"complete\": false"), "{counts}");
}
