use super::*;
use std::io::Seek;

#[test]
fn truncated_file_is_read_from_its_beginning() {
    for mode in MODES {
        let (directory, log, following) = follow_empty_log(mode);
        for n in 0..5 {
            append(&log, &format!("{n} long enough\n"));
            following.expect(&[&format!("{n} long enough")]);
            // As logrotate does with `copytruncate`.
            fs::copy(&log, directory.path("log.1")).unwrap();
            append_to(&log).set_len(0).unwrap();
            append(&log, "short\n");
            following.expect(&["short"]);
            following.expect_note(is_truncated);
        }
        assert!(following.other_notes().is_empty());
    }
}

/// Rewrites the file while the follower is busy, so that it sees only the result.
fn rewrite_unseen(mode: Mode, before: &str, after: &str, expected: &[&str]) {
    let rewrite = |log: &Path| fs::write(log, after).unwrap();
    assert_rewritten_unseen(mode, before, rewrite, expected);
}

fn assert_rewritten_unseen(
    mode: Mode,
    before: &str,
    rewrite: impl FnOnce(&Path),
    expected: &[&str],
) {
    let directory = Directory::new();
    let log = directory.file("log", before);
    let busy = directory.file("busy", "");
    let (following, gate) = follow_held(mode, FROM_END, &[&log, &busy]);
    append(&busy, "busy\n");
    gate.await_follower();
    rewrite(&log);
    drop(gate);
    assert_eq!(following.next(), (1, Ok(b"busy".to_vec())));
    following.expect_note(is_truncated);
    following.expect(expected);
    append(&log, "more\n");
    following.expect(&["more"]);
}

#[test]
fn file_rewritten_longer_is_read_from_its_beginning() {
    for mode in MODES {
        rewrite_unseen(mode, "a\nb\n", "c\nd\ne\n", &["c", "d", "e"]);
        // The same first line.
        let before = format!("header\n{}", "old\n".repeat(1000));
        let after = format!("header\n{}", "new\n".repeat(1001));
        let lines = ["header"].into_iter().chain(["new"; 1001]);
        rewrite_unseen(mode, &before, &after, &lines.collect::<Vec<_>>());
    }
}

#[test]
fn file_rewritten_to_the_same_length_is_read_from_its_beginning() {
    for mode in MODES {
        rewrite_unseen(mode, "a\nb\n", "c\nd\n", &["c", "d"]);
    }
}

/// Timestamps of files may be as coarse as 10 ms, and those of some file systems are coarser.
#[cfg(target_os = "linux")]
#[test]
fn event_of_a_file_with_the_same_length_and_time_is_enough() {
    let rewrite = |log: &Path| {
        let time = fs::metadata(log).unwrap().modified().unwrap();
        fs::write(log, "c\nd\n").unwrap();
        append_to(log).set_modified(time).unwrap();
    };
    assert_rewritten_unseen(Mode::Watched, "a\nb\n", rewrite, &["c", "d"]);
}

#[test]
fn file_rewritten_shorter_is_read_from_its_beginning() {
    for mode in MODES {
        rewrite_unseen(mode, "a\nb\n", "c\n", &["c"]);
    }
}

#[test]
fn touched_file_is_not_read_again() {
    for mode in MODES {
        let (_directory, log, following) = follow_empty_log(mode);
        append(&log, "one\n");
        following.expect(&["one"]);
        let now = std::time::SystemTime::now() + Duration::from_secs(1);
        append_to(&log).set_modified(now).unwrap();
        // The same content once more.
        let file = OpenOptions::new().write(true).open(&log).unwrap();
        (&file).write_all(b"one\n").unwrap();
        following.expect_nothing();
        append(&log, "two\n");
        following.expect(&["two"]);
    }
}

#[test]
fn unfinished_line_of_a_truncated_file_is_delivered() {
    for mode in MODES {
        let (_directory, log, following) = follow_empty_log(mode);
        append(&log, "one\ntw");
        following.expect(&["one"]);
        append_to(&log).set_len(0).unwrap();
        following.expect(&["tw"]);
        following.expect_note(is_truncated);
        append(&log, "three\n");
        following.expect(&["three"]);
    }
}

/// A program that does not open its log in append mode goes on at its old offset after `copytruncate`.
#[test]
fn zeros_before_the_old_offset_are_skipped() {
    for mode in MODES {
        let (_directory, log, following) = follow_empty_log(mode);
        let mut writer = OpenOptions::new().write(true).open(&log).unwrap();
        for n in 0..3 {
            let line = format!("{n} {}", "x".repeat(LINE_BYTES_MAX - 10));
            writer.write_all(format!("{line}\n").as_bytes()).unwrap();
            following.expect(&[&line]);
            writer.set_len(0).unwrap();
            following.expect_note(is_truncated);
            writer.write_all(b"after\n").unwrap();
            following.expect(&["after"]);
        }
        assert!(writer.stream_position().unwrap() > LINE_BYTES_MAX as u64);
        assert!(following.other_notes().is_empty());
    }
}

#[test]
fn truncations_at_full_speed_deliver_the_last_lines() {
    for mode in MODES {
        let (_directory, log, following) = follow_empty_log(mode);
        let mut number = 0;
        for _ in 0..200 {
            fs::write(&log, "").unwrap();
            let mut writer = append_to(&log);
            for _ in 0..number % 7 + 1 {
                number += 1;
                writer.write_all(format!("{number}\n").as_bytes()).unwrap();
            }
        }
        append(&log, "end\n");
        // Lines that are cut off unread are lost, but never doubled or out of order.
        let mut last = 0;
        loop {
            let (_, line) = following.next();
            let line = String::from_utf8(line.unwrap()).unwrap();
            if line == "end" {
                break;
            }
            let n: u64 = line.parse().unwrap();
            assert!(n > last, "{n} after {last}");
            last = n;
        }
        assert_eq!(last, number);
    }
}
