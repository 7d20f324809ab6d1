//! Events of inotify about the followed files and their directories.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Event, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::Signal;
use super::history::EntryChange;
use super::hops::Hop;

const BUFFER_BYTES: usize = 16 << 10;

/// The watches of all sources.
#[derive(Debug)]
pub(super) struct Watches {
    queues: Option<Queues>,
}

/// The directories have a queue of their own: many writes to a file would make a common queue overflow, and the events of
/// renamed files would be lost.
#[derive(Debug)]
struct Queues {
    directories: Queue<Name>,
    files: Queue<()>,
}

/// A name that a source depends on.
#[derive(Debug)]
struct Name {
    name: OsString,
    is_file: bool,
}

#[derive(Debug)]
struct Queue<T> {
    inotify: OwnedFd,
    mask: WatchFlags,
    /// The sources that a watch is for.
    watches: HashMap<i32, Vec<(usize, T)>>,
}

impl Watches {
    /// Without inotify, as beyond the limit of `fs.inotify.max_user_instances`, no file is watched.
    pub(super) fn new() -> Self {
        Self {
            queues: Queues::new().ok(),
        }
    }

    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self { queues: None }
    }

    /// What the event loop waits for.
    pub(super) fn register(&self, waiter: &super::wait::Waiter) -> io::Result<()> {
        if let Some(queues) = &self.queues {
            waiter.add_watches(&queues.directories.inotify)?;
            waiter.add_watches(&queues.files.inotify)?;
        }
        Ok(())
    }

    /// Watches the hops of a source, and no others from now on. Returns the watch of the directory of the file itself,
    /// and whether all are watched.
    pub(super) fn watch_hops(&mut self, source: usize, hops: &[Hop]) -> (Option<i32>, bool) {
        let Some(queues) = &mut self.queues else {
            return (None, false);
        };
        let mut of_file = None;
        let watched = hops.iter().filter_map(|hop| {
            let watch = queues.directories.add(&hop.directory)?;
            of_file = hop.is_file.then_some(watch).or(of_file);
            let name = hop.name.clone();
            let is_file = hop.is_file;
            Some((watch, Name { name, is_file }))
        });
        let watched: Vec<_> = watched.collect();
        let is_complete = !hops.is_empty() && watched.len() == hops.len();
        queues.directories.replace(source, watched);
        (of_file, is_complete)
    }

    /// Watches the open files of a source, and no others from now on. Returns whether all are watched.
    pub(super) fn watch_files<'a>(
        &mut self,
        source: usize,
        files: impl Iterator<Item = &'a File>,
    ) -> bool {
        let Some(queues) = &mut self.queues else {
            return false;
        };
        let mut is_complete = true;
        let watched = files.filter_map(|file| {
            // Exactly this file, whatever its name is by now.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let watch = queues.files.add(Path::new(&path));
            is_complete &= watch.is_some();
            Some((watch?, ()))
        });
        let watched = watched.collect();
        queues.files.replace(source, watched);
        is_complete
    }

    /// Calls `on_signal` with each event since the last call and the source that it is for.
    pub(super) fn drain(&mut self, mut on_signal: impl FnMut(usize, Signal<'_>)) {
        let Some(queues) = &mut self.queues else {
            return;
        };
        queues.directories.drain(|source, name, event| {
            on_signal(source, path_signal(name, event));
        });
        queues
            .files
            .drain(|source, (), _| on_signal(source, Signal::Data));
    }
}

/// What an event in a directory says about a name in it.
fn path_signal<'a>(watched: &Name, event: &'a Event<'_>) -> Signal<'a> {
    let Some(name) = event.file_name() else {
        return Signal::Path;
    };
    let name = OsStr::from_bytes(name.to_bytes());
    let events = event.events();
    if watched.is_file {
        let change = if events.contains(ReadFlags::CREATE) {
            Some(EntryChange::Created(name))
        } else if events.contains(ReadFlags::MOVED_FROM) {
            Some(EntryChange::MovedFrom(name, event.cookie()))
        } else if events.contains(ReadFlags::MOVED_TO) {
            Some(EntryChange::MovedTo(name, event.cookie()))
        } else if events.contains(ReadFlags::DELETE) {
            Some(EntryChange::Deleted(name))
        } else {
            None
        };
        if let Some(change) = change {
            return Signal::Entry(change);
        }
    }
    if name == watched.name {
        Signal::Path
    } else {
        Signal::Nothing
    }
}

impl Queues {
    fn new() -> io::Result<Self> {
        let directory_events = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            // Permissions.
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        Ok(Self {
            directories: Queue::new(directory_events)?,
            files: Queue::new(WatchFlags::MODIFY)?,
        })
    }
}

impl<T> Queue<T> {
    fn new(mask: WatchFlags) -> io::Result<Self> {
        Ok(Self {
            inotify: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?,
            // Watches are added again and again. Without this, the kernel clears the mask of a watch before it sets the new
            // one, and events in between are lost.
            mask: mask | WatchFlags::MASK_ADD,
            watches: HashMap::new(),
        })
    }

    /// Watches the directory or file at this path. Returns the same watch as before if it is the same directory or file.
    fn add(&self, path: &Path) -> Option<i32> {
        inotify::add_watch(&self.inotify, path, self.mask).ok()
    }

    /// Sets the watches of a source. Those that nobody needs any more are removed last, since the events of one that is
    /// removed and added again are lost.
    fn replace(&mut self, source: usize, watched: Vec<(i32, T)>) {
        for sources in self.watches.values_mut() {
            sources.retain(|(other, _)| *other != source);
        }
        for (watch, what) in watched {
            self.watches.entry(watch).or_default().push((source, what));
        }
        let inotify = &self.inotify;
        self.watches.retain(|watch, sources| {
            if sources.is_empty() {
                let _ = inotify::remove_watch(inotify, *watch);
            }
            !sources.is_empty()
        });
    }

    fn drain(&mut self, mut on_event: impl FnMut(usize, &T, &Event<'_>)) {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(_) => return,
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                for (source, what) in self.watches.values().flatten() {
                    on_event(*source, what, &event);
                }
                continue;
            }
            for (source, what) in self.watches.get(&event.wd()).into_iter().flatten() {
                on_event(*source, what, &event);
            }
            // The directory or file is gone, and its watch with it.
            if event.events().contains(ReadFlags::IGNORED) {
                self.watches.remove(&event.wd());
            }
        }
    }
}

#[cfg(test)]
mod tests;
