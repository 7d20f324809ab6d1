//! Named pipes, devices, and sockets at the followed path.

use super::*;

use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;

fn make_fifo(path: &Path) {
    let made = process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

fn open_fifo(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

#[test]
fn named_pipe_without_a_writer_does_not_block_others() {
    for mode in MODES {
        let directory = Directory::new();
        let pipe = directory.path("pipe");
        make_fifo(&pipe);
        let log = directory.file("log", "");
        let following = follow_from(mode, FROM_END, &[&log, &pipe]);
        append(&log, "one\n");
        following.expect(&["one"]);
        let mut writer = open_fifo(&pipe);
        append(&log, "two\n");
        following.expect(&["two"]);
        writer.write_all(b"piped\n").unwrap();
        assert_eq!(following.next(), (1, Ok(b"piped".to_vec())));
        append(&log, "three\n");
        following.expect(&["three"]);
        assert!(following.other_notes().is_empty());
    }
}

#[test]
fn named_pipe_is_read_from_writer_after_writer() {
    for mode in MODES {
        let directory = Directory::new();
        let pipe = directory.path("pipe");
        make_fifo(&pipe);
        let following = follow(mode, &pipe);
        for n in 0..20 {
            let mut writer = open_fifo(&pipe);
            writer
                .write_all(format!("{n}\nunfinished").as_bytes())
                .unwrap();
            drop(writer);
            // What a writer has not finished is a line of its own.
            following.expect(&[&n.to_string(), "unfinished"]);
        }
    }
}

#[test]
fn much_data_passes_through_a_named_pipe() {
    for mode in MODES {
        let directory = Directory::new();
        let pipe = directory.path("pipe");
        make_fifo(&pipe);
        let following = follow(mode, &pipe);
        let writing = thread::spawn(move || {
            let mut writer = open_fifo(&pipe);
            for n in 0..100_000 {
                writer.write_all(format!("{n}\n").as_bytes()).unwrap();
            }
        });
        for n in 0..100_000 {
            following.expect(&[&n.to_string()]);
        }
        writing.join().unwrap();
    }
}

#[test]
fn recreated_named_pipe_is_followed() {
    for mode in MODES {
        let directory = Directory::new();
        let pipe = directory.path("pipe");
        for _ in 0..2 {
            make_fifo(&pipe);
            let following = follow(mode, &pipe);
            open_fifo(&pipe).write_all(b"one\n").unwrap();
            following.expect(&["one"]);
            fs::remove_file(&pipe).unwrap();
            make_fifo(&pipe);
            following.expect_note(is_rotated);
            open_fifo(&pipe).write_all(b"two\n").unwrap();
            following.expect(&["two"]);
            fs::remove_file(&pipe).unwrap();
            // Replaced by a file.
            append(&pipe, "three\n");
            following.expect(&["three"]);
            fs::remove_file(&pipe).unwrap();
        }
    }
}

#[test]
fn device_at_its_end_does_not_spin() {
    for mode in MODES {
        let directory = Directory::new();
        let log = directory.file("log", "");
        let null = Path::new("/dev/null");
        let mut following = follow_from(mode, FROM_END, &[&log, null]);
        append(&log, "one\n");
        following.expect(&["one"]);
        following.expect_nothing();
        following.stop();
    }
}

#[test]
fn socket_is_an_error() {
    for mode in MODES {
        let directory = Directory::new();
        let path = directory.path("socket");
        let socket = UnixListener::bind(&path).unwrap();
        let following = follow(mode, &path);
        let note = following.expect_note(is_unreadable);
        assert!(note.message(&path).contains("socket"), "{note:?}");
        following.expect_nothing();
        drop(socket);
    }
}

#[test]
fn file_in_proc_is_no_endless_source() {
    for mode in MODES {
        let path = Path::new("/proc/self/status");
        if !path.exists() {
            return;
        }
        let following = follow_from(mode, Start::Beginning, &[path]);
        following.expect_nothing();
    }
}

#[test]
fn opened_file_is_not_inherited_or_blocking() {
    use rustix::fs::{OFlags, fcntl_getfl};
    use rustix::io::{FdFlags, fcntl_getfd};

    let directory = Directory::new();
    let pipe = directory.path("pipe");
    make_fifo(&pipe);
    let opened = super::super::open_file::OpenFile::open(&pipe, 1).unwrap();
    assert!(
        fcntl_getfd(opened.file())
            .unwrap()
            .contains(FdFlags::CLOEXEC)
    );
    assert!(
        fcntl_getfl(opened.file())
            .unwrap()
            .contains(OFlags::NONBLOCK)
    );
    let mut options = OpenOptions::new();
    let options = options
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32);
    assert!(options.open(&pipe).is_ok(), "there is a reader");
}
