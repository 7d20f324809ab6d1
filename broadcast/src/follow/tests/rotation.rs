use super::*;

use std::ops::Range;

/// Renames `log` to `log.1`, `log.1` to `log.2` and so on, as logrotate does.
fn shift(directory: &Directory, kept: usize) {
    let name = |n: usize| match n {
        0 => directory.path("log"),
        n => directory.path(&format!("log.{n}")),
    };
    for n in (0..kept).rev() {
        if name(n).exists() {
            fs::rename(name(n), name(n + 1)).unwrap();
        }
    }
}

#[test]
fn renamed_and_recreated_file_is_followed() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.file("log", "old\n");
        let following = follow(mode, &log);
        append(&log, "one\n");
        following.expect(&["one"]);
        for n in 2..6 {
            shift(&directory, 3);
            append(&log, &format!("{n}\n"));
            following.expect(&[&n.to_string()]);
            following.expect_note(is_rotated);
        }
        append(&log, "last\n");
        following.expect(&["last"]);
        assert!(following.other_notes().is_empty());
    }
}

#[test]
fn lines_written_to_the_renamed_file_come_first() {
    for mode in MODES {
        let (directory, log, following) = follow_empty_log(mode);
        let mut writer = append_to(&log);
        writer.write_all(b"one\n").unwrap();
        following.expect(&["one"]);
        shift(&directory, 1);
        directory.file("log", "");
        following.expect_note(is_rotated);
        // The writer still has the renamed file open.
        writer.write_all(b"two\n").unwrap();
        following.expect(&["two"]);
        writer.write_all(b"three\n").unwrap();
        append(&log, "four\n");
        following.expect(&["three", "four"]);
    }
}

#[test]
fn late_lines_of_a_finished_file_are_read() {
    for mode in MODES {
        let (directory, log, following) = follow_empty_log(mode);
        let mut late = append_to(&log);
        shift(&directory, 1);
        append(&log, "new\n");
        following.expect(&["new"]);
        // Another program, or another thread, that has not moved on yet.
        late.write_all(b"late\n").unwrap();
        following.expect(&["late"]);
        append(&log, "new\n");
        following.expect(&["new"]);
    }
}

#[test]
fn finished_file_is_closed_when_it_is_quiet() {
    for mode in MODES {
        let timing = Timing {
            check: Duration::from_millis(20),
            quiet: Duration::from_millis(50),
            ..mode.timing()
        };
        let (directory, log, following) = follow_empty_log_with(mode, timing);
        let mut late = append_to(&log);
        late.write_all(b"one\n").unwrap();
        following.expect(&["one"]);
        shift(&directory, 1);
        append(&log, "two\n");
        following.expect(&["two"]);
        // An unfinished line is the sign that it is closed.
        late.write_all(b"unfinished").unwrap();
        following.expect(&["unfinished"]);
        append(&log, "three\n");
        following.expect(&["three"]);
    }
}

#[test]
fn unfinished_line_of_a_renamed_file_is_delivered_first() {
    for mode in MODES {
        let (directory, log, following) = follow_empty_log(mode);
        append(&log, "one\ntw");
        following.expect(&["one"]);
        shift(&directory, 1);
        append(&log, "three\n");
        following.expect(&["tw", "three"]);
    }
}

#[test]
fn unfinished_line_of_a_renamed_file_can_still_be_finished() {
    for mode in MODES {
        let timing = Timing {
            unfinished_line_wait: DEADLINE,
            ..mode.timing()
        };
        let (directory, log, following) = follow_empty_log_with(mode, timing);
        let mut writer = append_to(&log);
        writer.write_all(b"one\ntw").unwrap();
        following.expect(&["one"]);
        shift(&directory, 1);
        append(&log, "three\n");
        following.expect_note(is_rotated);
        writer.write_all(b"o\n").unwrap();
        following.expect(&["two", "three"]);
    }
}

#[cfg(unix)]
#[test]
fn swapped_symbolic_link_is_followed() {
    use std::os::unix::fs::symlink;
    for mode in MODES {
        let directory = Directory::new();
        let first = directory.file("log.1", "");
        let current = directory.path("current");
        symlink("log.1", &current).unwrap();
        let following = follow(mode, &current);
        append(&first, "one\n");
        following.expect(&["one"]);
        // As Kubernetes does: another link takes the name.
        fs::create_dir(directory.path("elsewhere")).unwrap();
        let second = directory.file("elsewhere/log.2", "two\n");
        symlink("elsewhere/log.2", directory.path("next")).unwrap();
        append(&first, "still one\n");
        fs::rename(directory.path("next"), &current).unwrap();
        following.expect(&["still one", "two"]);
        following.expect_note(is_rotated);
        append(&second, "three\n");
        following.expect(&["three"]);
        // The file behind the link is rotated.
        fs::rename(&second, directory.path("elsewhere/log.3")).unwrap();
        append(&second, "four\n");
        following.expect(&["four"]);
    }
}

#[cfg(unix)]
#[test]
fn symbolic_link_back_to_an_earlier_file_goes_on_there() {
    use std::os::unix::fs::symlink;
    for mode in MODES {
        let directory = Directory::new();
        let (one, two) = (directory.file("1", ""), directory.file("2", ""));
        let current = directory.path("current");
        let point_to = |name: &str| {
            symlink(name, directory.path("next")).unwrap();
            fs::rename(directory.path("next"), &current).unwrap();
        };
        point_to("1");
        let following = follow(mode, &current);
        append(&one, "one\n");
        following.expect(&["one"]);
        point_to("2");
        append(&two, "two\n");
        following.expect(&["two"]);
        point_to("1");
        append(&one, "three\n");
        following.expect(&["three"]);
        point_to("2");
        append(&two, "four\n");
        following.expect(&["four"]);
    }
}

#[cfg(unix)]
#[test]
fn swapped_link_to_the_directory_is_followed() {
    use std::os::unix::fs::symlink;
    let directory = Directory::new();
    for name in ["a", "b"] {
        fs::create_dir(directory.path(name)).unwrap();
    }
    symlink("a", directory.path("logs")).unwrap();
    let log = directory.file("logs/log", "");
    for mode in MODES {
        let timing = Timing {
            check: Duration::from_millis(20),
            ..mode.timing()
        };
        let following = follow_with(mode, FROM_END, &[&log], timing);
        append(&log, "one\n");
        following.expect(&["one"]);
        fs::write(directory.path("b/log"), "two\n").unwrap();
        fs::remove_file(directory.path("logs")).unwrap();
        symlink("b", directory.path("logs")).unwrap();
        following.expect(&["two"]);
        append(&log, "three\n");
        following.expect(&["three"]);
        fs::remove_file(directory.path("logs")).unwrap();
        symlink("a", directory.path("logs")).unwrap();
    }
}

#[test]
fn file_replaced_by_renaming_is_followed() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.file("log", "old\n");
        let following = follow(mode, &log);
        append(&log, "one\n");
        directory.file("log.new", "two\n");
        fs::rename(directory.path("log.new"), &log).unwrap();
        following.expect(&["one", "two"]);
        append(&log, "three\n");
        following.expect(&["three"]);
    }
}

/// Files that are renamed before the follower has seen them.
#[cfg(target_os = "linux")]
#[test]
fn files_that_had_the_name_for_a_moment_are_read() {
    let directory = Directory::new();
    let log = directory.file("log", "1\n");
    let (following, gate) = follow_held(Mode::Watched, Start::Beginning, &[&log]);
    gate.await_follower();
    // The follower is busy with the first line.
    for n in 2..10 {
        shift(&directory, 20);
        append(&log, &format!("{n}\n"));
    }
    drop(gate);
    following.expect(&["1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    assert!(following.other_notes().iter().all(|note| note == "Rotated"));
}

#[cfg(target_os = "linux")]
#[test]
fn files_deleted_unseen_are_reported() {
    let directory = Directory::new();
    let log = directory.file("log", "1\n");
    let (following, gate) = follow_held(Mode::Watched, Start::Beginning, &[&log]);
    gate.await_follower();
    for n in 2..10 {
        shift(&directory, 2);
        append(&log, &format!("{n}\n"));
    }
    drop(gate);
    following.expect(&["1", "7", "8", "9"]);
    let missed = following.expect_note(|note| matches!(note, Note::Missed(_)));
    assert!(matches!(missed, Note::Missed(5)), "{missed:?}");
}

/// Writes numbered lines, one after the other.
fn write_numbers(log: &Path, numbers: Range<usize>) {
    let mut writer = append_to(log);
    for number in numbers {
        writer.write_all(format!("{number}\n").as_bytes()).unwrap();
    }
}

#[track_caller]
fn expect_numbers(following: &Following, numbers: Range<usize>) {
    for number in numbers {
        let (file, line) = following.next();
        let line = line.map(|line| String::from_utf8(line).unwrap());
        let notes = &following.notes;
        assert_eq!((file, line), (0, Ok(number.to_string())), "{notes:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn rotations_at_full_speed_lose_nothing() {
    for lines in [0, 1, 20, 1000].map(|lines| lines + 1) {
        let directory = Directory::new();
        let following = follow(Mode::Watched, &directory.path("log"));
        for n in 0..21 {
            write_numbers(&directory.path("log"), n * lines..(n + 1) * lines);
            shift(&directory, 21);
        }
        expect_numbers(&following, 0..21 * lines);
        let missed = following.other_notes();
        assert!(!missed.iter().any(|note| note.starts_with("Missed")));
    }
}

#[test]
fn rotations_of_files_that_were_seen_lose_nothing() {
    let (directory, log, following) = follow_empty_log(Mode::Polled);
    for n in 0..6 {
        let numbers = n * 1000..(n + 1) * 1000;
        write_numbers(&log, numbers.clone());
        expect_numbers(&following, numbers.start..numbers.start + 1);
        shift(&directory, 6);
        expect_numbers(&following, numbers.start + 1..numbers.end);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn missed_file_is_reported_although_no_other_takes_its_name() {
    let directory = Directory::new();
    let log = directory.file("log", "1\n");
    let (following, gate) = follow_held(Mode::Watched, Start::Beginning, &[&log]);
    gate.await_follower();
    fs::remove_file(&log).unwrap();
    append(&log, "unseen\n");
    fs::remove_file(&log).unwrap();
    drop(gate);
    following.expect(&["1"]);
    let missed = following.expect_note(|note| matches!(note, Note::Missed(_)));
    assert!(matches!(missed, Note::Missed(1)), "{missed:?}");
}

/// The files of a test that are open in this process.
#[cfg(target_os = "linux")]
fn open_files(directory: &Directory) -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let files = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let files = files.filter(|file| file.starts_with(&directory.0));
    files.count()
}

#[cfg(target_os = "linux")]
#[test]
fn finished_files_are_closed_after_many_rotations() {
    for mode in MODES {
        let (directory, log, following) = follow_empty_log(mode);
        for n in 0..20 {
            append(&log, &format!("{n}\n"));
            following.expect(&[&n.to_string()]);
            shift(&directory, 30);
        }
        append(&log, "last\n");
        following.expect(&["last"]);
        let by = Instant::now() + DEADLINE;
        // The last one, and those of which late lines are read.
        while open_files(&directory) > 5 {
            assert!(Instant::now() < by, "{} open files", open_files(&directory));
            thread::yield_now();
        }
    }
}
