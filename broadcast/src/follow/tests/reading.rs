use super::*;

fn follow_last(mode: Mode, path: &Path, lines: u64) -> Following {
    follow_from(mode, Start::LastLines(lines), &[path])
}

#[test]
fn last_lines_are_delivered_first() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.file("log", "1\n2\n3\n");
        for (lines, expected) in [
            (0, &[][..]),
            (1, &["3"]),
            (2, &["2", "3"]),
            (3, &["1", "2", "3"]),
            (u64::MAX, &["1", "2", "3"]),
        ] {
            let following = follow_last(mode, &log, lines);
            following.expect(expected);
            following.expect_nothing();
        }
        let following = follow_from(mode, Start::Beginning, &[&log]);
        following.expect(&["1", "2", "3"]);
        append(&log, "4\n");
        following.expect(&["4"]);
    }
}

#[test]
fn unfinished_line_at_the_start_is_delivered_whole() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.file("log", "1\n2\nunfin");
        let following = follow_last(mode, &log, 1);
        following.expect(&["2"]);
        following.expect_nothing();
        append(&log, "ished\n");
        following.expect(&["unfinished"]);
    }
}

#[test]
fn empty_file_has_no_last_lines() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.file("log", "");
        let following = follow_last(mode, &log, 10);
        following.expect_nothing();
        append(&log, "one\n");
        following.expect(&["one"]);
    }
}

#[test]
fn last_lines_of_a_large_file_are_found() {
    let directory = Directory::new();
    let log = directory.path("log");
    let mut content = String::new();
    for number in 0..300_000 {
        content += &format!("{number}\n");
    }
    // Longer than a block of the search.
    let long = "x".repeat(90_000);
    content += &format!("{long}\n{long}\nlast\n");
    fs::write(&log, content).unwrap();
    for mode in MODES {
        let following = follow_last(mode, &log, 5);
        following.expect(&["299998", "299999", &long, &long, "last"]);
        let following = follow_last(mode, &log, 250_000);
        let (_, first) = following.next();
        assert_eq!(first, Ok(b"50003".to_vec()));
    }
}

#[test]
fn line_over_the_limit_at_the_end_is_skipped() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.file("log", "x".repeat(3 * LINE_BYTES_MAX));
        let following = follow(mode, &log);
        append(&log, "x\nshort\n");
        let (_, line) = following.next();
        assert!(line.is_err_and(|bytes| bytes > LINE_BYTES_MAX as u64));
        following.expect(&["short"]);
    }
}

#[test]
fn partial_lines_wait_for_their_end() {
    for mode in MODES {
        let (_directory, log, following) = follow_empty_log(mode);
        for piece in ["o", "n", "e", "\r"] {
            append(&log, piece);
            following.expect_nothing();
        }
        append(&log, "\n\n\r\ntwo\nthr");
        following.expect(&["one", "", "", "two"]);
        append(&log, "ee\n");
        following.expect(&["three"]);
    }
}

#[test]
fn line_over_the_limit_is_reported_and_skipped() {
    for mode in MODES {
        let (_directory, log, following) = follow_empty_log(mode);
        let length = 5 * LINE_BYTES_MAX;
        append(&log, &format!("before\n{}\nafter\n", "x".repeat(length)));
        following.expect(&["before"]);
        assert_eq!(following.next(), (0, Err(length as u64)));
        following.expect(&["after"]);
    }
}

#[test]
fn non_utf8_bytes_pass_unchanged() {
    for mode in MODES {
        let (_directory, log, following) = follow_empty_log(mode);
        append_to(&log).write_all(b"\xff\x00\xfe\n\0\n").unwrap();
        assert_eq!(following.next(), (0, Ok(b"\xff\x00\xfe".to_vec())));
        assert_eq!(following.next(), (0, Ok(b"\0".to_vec())));
    }
}

#[test]
fn lines_bear_the_index_of_their_file() {
    for mode in MODES {
        let directory = Directory::new();
        let (one, two) = (directory.file("1", ""), directory.path("2"));
        // Two names of one file, and one path twice.
        let link = directory.path("link");
        fs::hard_link(&one, &link).unwrap();
        let following = follow_from(mode, FROM_END, &[&one, &two, &link, &one]);
        append(&two, "two\n");
        assert_eq!(following.next(), (1, Ok(b"two".to_vec())));
        append(&one, "one\n");
        let mut files: Vec<_> = (0..3).map(|_| following.next()).collect();
        files.sort();
        let one = Ok(b"one".to_vec());
        assert_eq!(files, [(0, one.clone()), (2, one.clone()), (3, one)]);
        following.expect_note_about(1, is_waiting);
    }
}
