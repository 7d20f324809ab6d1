//! Throughput, and the policies for slow clients.
#![cfg(unix)]

mod support;

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::{Program, eventually, http_get, number_of, numbered};

#[test]
fn million_lines_arrive_complete_and_in_order() {
    const LINES: u64 = 1_000_000;
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof", "--slow-client=pace"]);
    let reader = program.connect_raw();
    let mut input = program.take_input();
    let begun = Instant::now();
    let feeder = thread::spawn(move || input.write_all(&numbered(0..LINES)));
    let mut next = 0;
    reader.read_to_close(|payload| {
        assert_eq!(number_of(payload), next);
        next += 1;
    });
    assert_eq!(next, LINES);
    feeder.join().unwrap().unwrap();
    program.expect_line(&format!("1 client, {LINES} messages sent"));
    program.expect_exit(0);
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
}

/// Ten clients under `--slow-client pace`: nine that read at different steady rates, and one that never reads. The input
/// comes as fast as it is taken, until the server has disconnected the stalled client, however much its sockets hold.
#[test]
fn pace_disconnects_stalled_client_and_others_get_all() {
    const LINES_AT_ONCE: u64 = 200;
    const RESIDENT_BYTES_MAX: u64 = 96 << 20;
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof", "--slow-client", "pace"]);
    let stalled = program.connect_raw();
    let readers = read_steadily(&program, 9);
    let address = program.address();
    let has_clients = |count: &str| http_get(address, "/clients").2.trim() == count;
    eventually("all have joined", || has_clients(r#"{"clients": 10}"#));
    let mut input = program.take_input();
    let is_cut_off = Arc::new(AtomicBool::new(false));
    let feeder = {
        let is_cut_off = is_cut_off.clone();
        let padding = "x".repeat(200);
        thread::spawn(move || {
            let mut lines = 0;
            loop {
                let was_cut_off = is_cut_off.load(Ordering::SeqCst);
                let mut some = String::new();
                for n in lines..lines + LINES_AT_ONCE {
                    writeln!(some, "{n} {padding}").unwrap();
                }
                input.write_all(some.as_bytes()).unwrap();
                lines += LINES_AT_ONCE;
                // These lines were written after the stalled client was disconnected.
                if was_cut_off {
                    return (lines, input);
                }
            }
        })
    };
    eventually("the stalled client is disconnected", || {
        has_clients(r#"{"clients": 9}"#)
    });
    is_cut_off.store(true, Ordering::SeqCst);
    let (lines, input) = feeder.join().unwrap();
    let peak = program.peak_resident_bytes();
    assert!(peak < RESIDENT_BYTES_MAX, "{peak} bytes were resident");
    drop(input);
    for reader in readers {
        assert_eq!(reader.join().unwrap(), lines);
    }
    // What it can still read is what its sockets and its outbox held.
    let mut got = 0;
    let close = stalled.read_to_end(|payload| {
        assert_eq!(number_of(payload), got);
        got += 1;
    });
    assert!(got < lines, "the stalled client got every line");
    // The socket may have been closed before the close frame found room in it.
    assert!(close.is_none_or(|code| code == 1013), "{close:?}");
    let summary = program.expect_line("10 clients");
    program.expect_exit(0);
    let [sent, dropped] = counts(&summary);
    assert!(sent >= 9 * lines && sent <= 9 * lines + got, "{summary}");
    assert!(dropped > 0, "{summary}");
}

/// Starts clients that read at steady rates to the end. Each thread returns the number of lines that its client got.
fn read_steadily(program: &Program, clients: u64) -> Vec<thread::JoinHandle<u64>> {
    let read = |n| {
        let mut reader = program.connect_raw();
        thread::spawn(move || {
            // From 4 MB/s on: the slowest sets the pace.
            reader.set_rate((4 + n) << 20);
            let mut next = 0;
            reader.read_to_close(|payload| {
                assert_eq!(number_of(payload), next);
                next += 1;
            });
            next
        })
    };
    (0..clients).map(read).collect()
}

/// Returns the two figures of the summary: messages sent, and messages dropped for slow clients.
fn counts(summary: &str) -> [u64; 2] {
    ["messages sent", "dropped (slow clients)"].map(|what| {
        summary
            .split(", ")
            .find_map(|part| part.strip_suffix(what))
            .map_or(0, |number| number.trim().parse().unwrap())
    })
}

/// Feeds a client that reads and one that does not, until the messages of the latter no longer fit. Then that one reads
/// too: once all lines are written, or once the server is about to disconnect it, since a close frame waits only for the
/// close timeout. Returns the number of lines, what each client got, their close codes, and the summary.
fn overflow(policy: &str) -> (u64, [Vec<u64>; 2], [Option<u16>; 2], String) {
    const LINES: u64 = 40_000;
    let mut program = Program::start(&["--no-welcome", "--exit-on-eof", "--slow-client", policy]);
    let (reading, late) = (program.connect_raw(), program.connect_raw());
    let quick = thread::spawn(move || {
        let mut got = Vec::new();
        let close = reading.read_to_end(|payload| got.push(number_of(payload)));
        (got, close)
    });
    let address = program.address();
    let has_clients = |count: &str| http_get(address, "/clients").2.trim() == count;
    eventually("both have joined", || has_clients(r#"{"clients": 2}"#));
    let mut input = program.take_input();
    let feeder = thread::spawn(move || {
        let padding = "x".repeat(1_000);
        for n in 0..LINES {
            input
                .write_all(format!("{n} {padding}\n").as_bytes())
                .unwrap();
        }
    });
    match policy {
        "disconnect" => eventually("the client that does not read is disconnected", || {
            has_clients(r#"{"clients": 1}"#)
        }),
        _ => eventually("all lines are written", || feeder.is_finished()),
    }
    let mut got = Vec::new();
    let close = late.read_to_end(|payload| got.push(number_of(payload)));
    feeder.join().unwrap();
    let (quick_got, quick_close) = quick.join().unwrap();
    let summary = program.expect_line("2 clients");
    program.expect_exit(0);
    (LINES, [quick_got, got], [quick_close, close], summary)
}

#[test]
fn drop_newest_sent_and_dropped_add_up() {
    let (lines, got, close, summary) = overflow("drop-newest");
    check_sums(lines, &got, close, &summary);
    // The oldest messages were kept.
    assert_eq!(got[1][..1_000], (0..1_000).collect::<Vec<_>>());
}

#[test]
fn drop_oldest_sent_and_dropped_add_up() {
    let (lines, got, close, summary) = overflow("drop-oldest");
    check_sums(lines, &got, close, &summary);
    // The newest messages were kept.
    assert_eq!(got[1].last(), Some(&(lines - 1)));
}

#[test]
fn skip_ahead_sent_and_dropped_add_up() {
    let (lines, got, close, summary) = overflow("skip-ahead");
    check_sums(lines, &got, close, &summary);
    assert_eq!(got[1].last(), Some(&(lines - 1)));
}

#[track_caller]
fn check_sums(lines: u64, got: &[Vec<u64>; 2], close: [Option<u16>; 2], summary: &str) {
    let [sent, dropped] = counts(summary);
    let received = (got[0].len() + got[1].len()) as u64;
    assert_eq!(sent, received, "{summary}");
    assert_eq!(sent + dropped, 2 * lines, "{summary}");
    assert!(
        (got[1].len() as u64) < lines,
        "nothing was dropped: {summary}"
    );
    for got in got {
        assert!(got.is_sorted_by(|a, b| a < b), "not in order");
    }
    assert_eq!(close, [Some(1001); 2]);
}

#[test]
fn disconnect_closes_the_slow_client_with_1013() {
    let (_, got, close, summary) = overflow("disconnect");
    let [sent, dropped] = counts(&summary);
    assert_eq!(close[1], Some(1013), "{summary}");
    assert_eq!(sent, (got[0].len() + got[1].len()) as u64, "{summary}");
    assert!(dropped > 0, "{summary}");
    // Without a gap: each client got the first messages.
    for got in got {
        let len = got.len() as u64;
        assert_eq!(got, (0..len).collect::<Vec<_>>());
    }
}
