use super::*;

#[test]
fn missing_file_is_read_from_its_beginning_when_it_appears() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.path("log");
        let following = follow(mode, &log);
        following.expect_note(is_waiting);
        append(&log, "one\ntwo\n");
        following.expect(&["one", "two"]);
        following.expect_note(is_appeared);
        append(&log, "three\n");
        following.expect(&["three"]);
        assert!(following.other_notes().is_empty());
    }
}

#[test]
fn missing_directories_are_waited_for() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.path("a/b/c/log");
        let mut driven = Driven::new(mode, &[&log]);
        assert!(driven.visit().is_empty());
        for new in ["a", "a/b/c"] {
            fs::create_dir_all(directory.path(new)).unwrap();
            assert!(driven.visit().is_empty());
        }
        append(&log, "one\n");
        assert_eq!(driven.visit(), ["one"]);
        append(&log, "two\n");
        assert_eq!(driven.visit(), ["two"]);
        assert!(matches!(&driven.notes[..], [Note::Waiting, Note::Appeared]));
    }
}

#[test]
fn directories_created_with_the_file_at_once_are_found() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.path("a/b/c/log");
        let following = follow(mode, &log);
        fs::create_dir_all(directory.path("a/b/c")).unwrap();
        append(&log, "one\n");
        following.expect(&["one"]);
    }
}

#[test]
fn deleted_and_recreated_directory_is_followed() {
    for mode in MODES {
        let directory = Directory::new();
        fs::create_dir(directory.path("logs")).unwrap();
        let log = directory.file("logs/log", "");
        let following = follow(mode, &log);
        for n in 0..3 {
            append(&log, &format!("{n}\n"));
            following.expect(&[&n.to_string()]);
            fs::remove_dir_all(directory.path("logs")).unwrap();
            fs::create_dir(directory.path("logs")).unwrap();
        }
        // Renamed, with the directory.
        append(&log, "last\n");
        following.expect(&["last"]);
        fs::rename(directory.path("logs"), directory.path("old")).unwrap();
        fs::create_dir(directory.path("logs")).unwrap();
        append(&log, "new\n");
        following.expect(&["new"]);
    }
}

#[test]
fn deleted_and_recreated_file_is_followed() {
    for mode in MODES {
        let (_directory, log, following) = follow_empty_log(mode);
        let mut writer = append_to(&log);
        writer.write_all(b"one\n").unwrap();
        following.expect(&["one"]);
        fs::remove_file(&log).unwrap();
        // The deleted file is read on.
        writer.write_all(b"two\n").unwrap();
        following.expect(&["two"]);
        append(&log, "three\n");
        following.expect(&["three"]);
        following.expect_note(is_rotated);
        assert!(following.other_notes().is_empty());
    }
}

#[test]
fn vanished_file_is_reported_once_and_waited_for() {
    for mode in MODES {
        let timing = Timing {
            vanished: Duration::from_millis(50),
            deadline_check: Duration::from_millis(10),
            ..mode.timing()
        };
        let (_directory, log, following) = follow_empty_log_with(mode, timing);
        for n in 0..3 {
            append(&log, &format!("{n}\n"));
            following.expect(&[&n.to_string()]);
            fs::remove_file(&log).unwrap();
            following.expect_note(is_waiting);
            following.expect_nothing();
            append(&log, "again\n");
            following.expect(&["again"]);
            following.expect_note(is_appeared);
        }
        assert!(following.other_notes().is_empty());
    }
}

#[test]
fn file_that_returns_to_its_name_is_read_on() {
    for mode in MODES {
        let timing = Timing {
            vanished: Duration::ZERO,
            ..mode.timing()
        };
        let (directory, log, following) = follow_empty_log_with(mode, timing);
        append(&log, "one\n");
        following.expect(&["one"]);
        fs::rename(&log, directory.path("away")).unwrap();
        following.expect_note(is_waiting);
        append(&directory.path("away"), "two\n");
        following.expect(&["two"]);
        fs::rename(directory.path("away"), &log).unwrap();
        following.expect_note(is_appeared);
        append(&log, "three\n");
        following.expect(&["three"]);
    }
}

#[test]
fn deleted_file_is_closed_when_it_is_quiet() {
    for mode in MODES {
        for has_successor in [false, true] {
            let timing = Timing {
                check: Duration::from_millis(20),
                quiet: Duration::from_millis(50),
                ..mode.timing()
            };
            let (directory, log, following) = follow_empty_log_with(mode, timing);
            append(&log, "one\nunfinished");
            following.expect(&["one"]);
            fs::remove_file(&log).unwrap();
            if has_successor {
                directory.file("log", "");
            }
            // The sign that it is closed.
            following.expect(&["unfinished"]);
        }
    }
}

#[test]
fn relative_path_is_followed() {
    let name = format!("humphrey-follow-relative-{}", process::id());
    for mode in MODES {
        let path = Path::new(&name);
        let following = follow(mode, path);
        following.expect_note(is_waiting);
        append(path, "one\n");
        following.expect(&["one"]);
        fs::remove_file(path).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn file_without_permission_is_retried() {
    use std::os::unix::fs::PermissionsExt;
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.file("log", "one\ntwo\n");
        let set = |bits| fs::set_permissions(&log, fs::Permissions::from_mode(bits)).unwrap();
        set(0o0);
        if File::open(&log).is_ok() {
            // The superuser may read everything.
            return;
        }
        let following = follow_from(mode, Start::LastLines(1), &[&log]);
        let note = following.expect_note(is_unreadable);
        assert!(note.message(&log).contains("denied"), "{note:?}");
        following.expect_nothing();
        set(0o600);
        following.expect(&["two"]);
        following.expect_note(is_appeared);
        // A rotated file without permission.
        directory.file("next", "three\n");
        fs::set_permissions(directory.path("next"), fs::Permissions::from_mode(0o0)).unwrap();
        fs::rename(directory.path("next"), &log).unwrap();
        following.expect_note(is_unreadable);
        set(0o600);
        following.expect(&["three"]);
    }
}

#[test]
fn directory_at_the_path_is_an_error_until_it_is_replaced() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.path("log");
        fs::create_dir(&log).unwrap();
        let following = follow(mode, &log);
        following.expect_note(is_unreadable);
        following.expect_nothing();
        fs::remove_dir(&log).unwrap();
        append(&log, "one\n");
        following.expect(&["one"]);
    }
}
