//! Several processes of the program over a real Redis.
//!
//! Without a `redis-server` on this machine, these tests say so and pass; `.ci/run` installs one.
#![cfg(all(unix, feature = "cluster"))]

#[path = "../../tests/support/redis_server.rs"]
mod redis_server;
mod support;

use redis_server::RedisServer;
use rustix::process::Signal;
use support::{Program, eventually, http_get, run};
use tungstenite::Message;

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
fn process_without_its_broker_says_so_and_serves_its_clients() {
    let mut program = Program::start(&["--no-welcome", "--cluster", "redis://127.0.0.1:1"]);
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
    let program = start(&redis, &[]);
    let is_connected = || get(&program, "/clients").contains("\"complete\": true");
    eventually("it is connected", is_connected);
    redis.kill();
    eventually("it has noticed the outage", || !is_connected());
    for (path, expected) in [("/health", "ok\n"), ("/ready", "ready\n")] {
        assert_eq!(get(&program, path), expected);
    }
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
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("--cluster-url-file"), "{stderr}");
}

#[test]
fn history_and_cluster_exclude_each_other() {
    let (code, _, stderr) = run(&["--cluster", "redis://localhost", "--history", "10"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("--history"), "{stderr}");
}
