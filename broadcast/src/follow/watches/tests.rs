use super::*;
use crate::follow::hops;
use crate::follow::tests::Directory;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// The number of watches that the kernel has for a queue, and the number of those in the queue's table.
fn count<T>(queue: &Queue<T>) -> (usize, usize) {
    let path = format!("/proc/self/fdinfo/{}", queue.inotify.as_raw_fd());
    let info = fs::read_to_string(path).unwrap();
    let watches = info.lines().filter(|line| line.starts_with("inotify "));
    (watches.count(), queue.watches.len())
}

#[test]
fn watches_that_nobody_needs_are_removed() {
    let directory = Directory::new();
    let [one, two] = ["1", "2"].map(|name| File::open(directory.file(name, "")).unwrap());
    let mut watches = Watches::new();
    assert!(watches.watch_files(0, [&one, &two].into_iter()));
    assert!(watches.watch_files(1, [&one].into_iter()));
    assert!(watches.watch_files(0, [&two].into_iter()));
    assert_eq!(count(&watches.queues.as_ref().unwrap().files), (2, 2));
    assert!(watches.watch_files(1, [].into_iter()));
    assert_eq!(count(&watches.queues.as_ref().unwrap().files), (1, 1));
    for name in ["a", "b", "c"] {
        fs::create_dir(directory.path(name)).unwrap();
        let hops = hops::of(&directory.path(name).join("log"));
        let (watch, is_complete) = watches.watch_hops(0, &hops);
        assert!(watch.is_some() && is_complete);
        let directories = &watches.queues.as_ref().unwrap().directories;
        assert_eq!(count(directories), (1, 1));
    }
    // The kernel removes the watch of a directory that is deleted.
    fs::remove_dir(directory.path("c")).unwrap();
    let mut signals = 0;
    watches.drain(|source, signal| {
        assert_eq!(source, 0);
        signals += usize::from(matches!(signal, Signal::Path));
    });
    assert!(signals > 0);
    let directories = &watches.queues.as_ref().unwrap().directories;
    assert_eq!(count(directories), (0, 0));
}

#[test]
fn watch_added_again_loses_no_events() {
    // Fewer events than the default limit of the queue.
    const FILES: usize = 8_000;
    let directory = Directory::new();
    let mut watches = Watches::new();
    let hops = hops::of(&directory.path("log"));
    watches.watch_hops(0, &hops);
    let (mut created, mut deleted) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..FILES {
                fs::remove_file(directory.file("other", "")).unwrap();
            }
        });
        let by = Instant::now() + Duration::from_secs(30);
        while deleted < FILES && Instant::now() < by {
            watches.watch_hops(0, &hops);
            watches.drain(|_, signal| match signal {
                Signal::Entry(EntryChange::Created(_)) => created += 1,
                Signal::Entry(EntryChange::Deleted(_)) => deleted += 1,
                _ => {}
            });
        }
    });
    assert_eq!((created, deleted), (FILES, FILES));
}

#[test]
fn events_concern_the_sources_of_the_name_or_file() {
    let directory = Directory::new();
    let mut watches = Watches::new();
    for (source, name) in ["1", "2"].into_iter().enumerate() {
        let file = File::open(directory.file(name, "")).unwrap();
        watches.watch_hops(source, &hops::of(&directory.path(name)));
        watches.watch_files(source, [&file].into_iter());
    }
    let mut of = |act: &dyn Fn()| {
        act();
        let mut sources = Vec::new();
        watches.drain(|source, signal| {
            if !matches!(signal, Signal::Nothing | Signal::Entry(_)) {
                sources.push(source);
            }
        });
        sources
    };
    assert_eq!(of(&|| drop(directory.file("2", "line"))), [1]);
    let permissions = fs::metadata(&directory.0).unwrap().permissions();
    let set = || fs::set_permissions(directory.path("1"), permissions.clone()).unwrap();
    assert_eq!(of(&set), [0]);
    assert!(of(&|| drop(directory.file("3", "line"))).is_empty());
}
