use super::*;

#[test]
fn waker_ends_an_idle_follower() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.file("log", "one\n");
        // Nothing else would wake it up before the deadline.
        let timing = Timing {
            poll_min: Duration::from_secs(3600),
            ..mode.timing()
        };
        let mut following = follow_with(mode, Start::Beginning, &[&log], timing);
        following.expect(&["one"]);
        following.expect_nothing();
        following.stop();
    }
}

#[test]
fn stopped_follower_delivers_no_further_line() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.file("log", "1\n2\n3\n");
        let (mut following, gate) = follow_held(mode, Start::Beginning, &[&log]);
        gate.await_follower();
        following.stopping.store(true, Ordering::Relaxed);
        drop(gate);
        following.stop();
        following.expect(&["1"]);
        assert!(following.lines.borrow().is_empty());
    }
}

#[test]
fn break_ends_the_run() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.file("log", "1\n2\n3\n");
        let (watches, timing) = (mode.watches(), mode.timing());
        let follower = Follower::with(vec![log], Start::Beginning, 100, watches, timing).unwrap();
        let mut lines = 0;
        let each = |_, _: Line<'_>| {
            lines += 1;
            if lines == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        follower.run(|| false, each, |_, _| {}).unwrap();
        assert_eq!(lines, 2);
    }
}

#[test]
fn follower_without_files_waits_to_be_stopped() {
    let mut following = follow_from(MODES[0], FROM_END, &[]);
    following.expect_nothing();
    following.stop();
}

#[test]
fn busy_file_does_not_starve_others() {
    for mode in MODES {
        let directory = Directory::new();
        let busy = directory.file("busy", "busy line\n".repeat(1_000_000));
        let calm = directory.file("calm", "calm line\n");
        let following = follow_from(mode, Start::Beginning, &[&busy, &calm]);
        let mut before = 0;
        while following.next().0 == 0 {
            before += 1;
        }
        // A turn, and a buffer.
        assert!(before * 10 <= 400 << 10, "{before} lines");
    }
}

/// As when a file server has restarted.
#[test]
fn file_whose_handle_has_failed_is_opened_again() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.file("log", "one\ntw");
        let timing = Timing {
            check: Duration::from_millis(20),
            ..mode.timing()
        };
        let (watches, paths) = (mode.watches(), vec![log.clone()]);
        let mut follower = Follower::with(paths, FROM_END, 100, watches, timing).unwrap();
        append(&log, "o\n");
        for file in follower.sources[0].files.iter_mut() {
            file.is_broken = true;
        }
        let each = |_, line: Line<'_>| {
            assert_eq!(line, Line::Whole(b"two"));
            ControlFlow::Break(())
        };
        let note = |_, note| panic!("{note:?}");
        follower.run(|| false, each, note).unwrap();
    }
}

#[test]
fn many_files_are_followed() {
    for mode in MODES {
        let directory = Directory::new();
        let paths: Vec<_> = (0..100).map(|n| directory.path(&n.to_string())).collect();
        let paths: Vec<_> = paths.iter().map(PathBuf::as_path).collect();
        let following = follow_from(mode, FROM_END, &paths);
        for _ in 0..3 {
            for path in &paths {
                append(path, "line\n");
            }
            let mut files: Vec<_> = paths.iter().map(|_| following.next().0).collect();
            files.sort();
            assert!(files.into_iter().eq(0..paths.len()));
        }
    }
}

/// As on network file systems: a watched file changes without an event. A memory map does so, too.
#[cfg(target_os = "linux")]
#[test]
fn changes_without_events_are_found_and_polled_for() {
    use crate::follow::hops;

    let directory = Directory::new();
    let log = directory.file("log", "");
    let mut driven = Driven::new(Mode::Watched, &[&log]);
    driven.visit();
    // These watches are of something else.
    let other = directory.file("other", "");
    let watches = &mut driven.follower.watches;
    watches.watch_hops(0, &hops::of(&other));
    watches.watch_files(0, [&File::open(&other).unwrap()].into_iter());
    for _ in 0..2 {
        append(&log, "line\n");
        assert!(driven.visit().is_empty(), "there was an event");
        driven.follower.sources[0].schedule.next_check = Instant::now();
        assert_eq!(driven.visit(), ["line"]);
    }
    append(&log, "line\n");
    assert_eq!(driven.visit(), ["line"]);
}

#[cfg(target_os = "linux")]
#[test]
fn idle_follower_is_not_woken_up() {
    let directory = Directory::new();
    let paths = [directory.file("log", "line\n"), directory.path("missing")];
    let paths = paths.each_ref().map(PathBuf::as_path);
    let following = follow_from(Mode::Watched, FROM_END, &paths);
    following.expect_note_about(1, is_waiting);
    let by = Instant::now() + DEADLINE;
    let mut before = None;
    loop {
        following.expect_nothing();
        let asked = following.asked.load(Ordering::Relaxed);
        if before.replace(asked) == Some(asked) {
            return;
        }
        assert!(Instant::now() < by, "it has looked {asked} times");
    }
}
