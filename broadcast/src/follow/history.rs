//! Tracks the files that had the followed name, by the events of its directory.
//!
//! A name may pass through several files between two looks at it: `log` is renamed to `log.1`, then a new `log` is
//! created, filled and renamed, too. The events say where these files have gone, so that they can still be opened, in
//! the order in which they had the name.

use std::ffi::{OsStr, OsString};

/// A change of an entry in the directory of the followed name.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "only Linux has events of paths")
)]
pub(super) enum EntryChange<'a> {
    Created(&'a OsStr),
    /// Renamed, to be followed by a `MovedTo` with the same cookie unless the file has left the directory.
    MovedFrom(&'a OsStr, u32),
    /// Renamed to this name. The file that had the name before is deleted.
    MovedTo(&'a OsStr, u32),
    Deleted(&'a OsStr),
}

/// The file that has the followed name now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupant {
    /// A file that may or may not have been opened, or nothing.
    Unknown,
    Nothing,
    /// A file that was not opened yet.
    Unopened,
    Opened,
}

/// Where a file is that had the followed name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Location {
    Named(OsString),
    /// Between the two events of a renaming with this cookie.
    Moving(u32),
}

#[derive(Debug)]
struct Passed {
    id: u64,
    location: Location,
    /// The last change of its location.
    changed: u64,
}

#[derive(Debug)]
pub(super) struct NameHistory {
    name: OsString,
    occupant: Occupant,
    /// The last change of the occupant.
    occupant_changed: u64,
    /// The files that had the name, and lost it before they were opened; oldest first.
    passed: Vec<Passed>,
    /// How many files were gone before they were opened.
    missed: u64,
    /// Counts the changes of the occupant and of the passed files.
    clock: u64,
}

impl NameHistory {
    pub(super) fn new(name: OsString) -> Self {
        Self {
            name,
            occupant: Occupant::Unknown,
            occupant_changed: 0,
            passed: Vec::new(),
            missed: 0,
            clock: 0,
        }
    }

    /// Whether the change concerns the files that have or had the name.
    pub(super) fn apply(&mut self, change: EntryChange<'_>) -> bool {
        let before = self.clock;
        match change {
            EntryChange::Created(name) => self.appeared(name, None),
            EntryChange::MovedFrom(name, cookie) => self.moved_from(name, cookie),
            EntryChange::MovedTo(name, cookie) => {
                self.disappeared(name);
                self.appeared(name, Some(cookie));
            }
            EntryChange::Deleted(name) => self.disappeared(name),
        }
        self.clock != before
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn set_occupant(&mut self, occupant: Occupant) {
        self.occupant = occupant;
        self.occupant_changed = self.tick();
    }

    /// A file has got this name, by being renamed if there is a cookie.
    fn appeared(&mut self, name: &OsStr, cookie: Option<u32>) {
        let moving = cookie.map(Location::Moving);
        let mut passed = self.passed.iter();
        let moved = passed.position(|passed| Some(&passed.location) == moving.as_ref());
        if name == self.name {
            if let Some(at) = moved {
                self.passed.remove(at);
            }
            self.set_occupant(Occupant::Unopened);
        } else if let Some(at) = moved {
            let changed = self.tick();
            self.passed[at].changed = changed;
            self.passed[at].location = Location::Named(name.to_owned());
        }
    }

    fn moved_from(&mut self, name: &OsStr, cookie: u32) {
        let location = Location::Moving(cookie);
        if name == self.name {
            let occupant = self.occupant;
            self.set_occupant(Occupant::Nothing);
            if matches!(occupant, Occupant::Unknown | Occupant::Unopened) {
                let changed = self.clock;
                self.passed.push(Passed {
                    id: changed,
                    location,
                    changed,
                });
            }
        } else if let Some(at) = self.passed.iter().position(|passed| passed.is_named(name)) {
            let changed = self.tick();
            self.passed[at].changed = changed;
            self.passed[at].location = location;
        }
    }

    /// The file with this name was deleted, or another one took the name.
    fn disappeared(&mut self, name: &OsStr) {
        if name == self.name {
            self.missed += u64::from(self.occupant == Occupant::Unopened);
            self.set_occupant(Occupant::Nothing);
        } else if let Some(at) = self.passed.iter().position(|passed| passed.is_named(name)) {
            self.passed.remove(at);
            self.missed += 1;
            self.tick();
        }
    }

    /// The number of changes so far, for [`NameHistory::has_changed`] and [`NameHistory::take_passed`].
    pub(super) fn now(&self) -> u64 {
        self.clock
    }

    pub(super) fn has_passed(&self) -> bool {
        !self.passed.is_empty()
    }

    /// The files that had the followed name and were not opened yet, oldest first: a number for each, and its name, which
    /// one that has left the directory has not.
    pub(super) fn passed(&self) -> impl Iterator<Item = (u64, Option<&OsStr>)> {
        self.passed.iter().map(|passed| match &passed.location {
            Location::Named(name) => (passed.id, Some(&**name)),
            Location::Moving(_) => (passed.id, None),
        })
    }

    /// Removes the oldest of the passed files, unless its name has changed since then, and returns its number.
    pub(super) fn take_passed(&mut self, since: u64) -> Option<u64> {
        let first = self.passed.first()?;
        if first.changed > since {
            return None;
        }
        Some(self.passed.remove(0).id)
    }

    /// Whether another file may have got the name since then.
    pub(super) fn has_changed(&self, since: u64) -> bool {
        self.occupant_changed > since
    }

    /// The file with the name has been opened.
    pub(super) fn occupant_is_opened(&mut self) {
        self.occupant = Occupant::Opened;
    }

    /// How many files were gone before they could be opened, since the last call.
    pub(super) fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }
}

impl Passed {
    fn is_named(&self, other: &OsStr) -> bool {
        matches!(&self.location, Location::Named(name) if name == other)
    }
}

#[cfg(test)]
mod tests;
