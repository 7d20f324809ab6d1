//! Stands for the events about files on systems other than Linux: there are none, and files are polled.

use std::fs::File;
use std::io;

use super::Signal;
use super::hops::Hop;
use super::wait::Waiter;

#[derive(Debug)]
pub(super) struct Watches;

impl Watches {
    pub(super) fn new() -> Self {
        Self
    }

    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self
    }

    pub(super) fn register(&self, _: &Waiter) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn watch_hops(&mut self, _: usize, _: &[Hop]) -> (Option<i32>, bool) {
        (None, false)
    }

    pub(super) fn watch_files<'a>(&mut self, _: usize, _: impl Iterator<Item = &'a File>) -> bool {
        false
    }

    pub(super) fn drain(&mut self, _: impl FnMut(usize, Signal<'_>)) {}
}
