//! Lets a route's handler pass a file to the route without reading it. Humphrey's `Response` can only contain a body in
//! memory.
//!
//! The handler stores the file in a thread-local variable, and returns a response without a body. The route takes the
//! file from the variable when the handler has returned.

use std::cell::RefCell;
use std::fs::{File, Metadata};
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::engine::{BodyReader, BodySource};

/// A file that is opened for each piece, so that slow clients do not use up the process's file descriptors.
struct FileSource {
    path: PathBuf,
    version: FileVersion,
}

/// Identifies the version of a file, to detect changes.
#[derive(Debug, PartialEq, Eq)]
struct FileVersion {
    bytes: u64,
    modified: Option<SystemTime>,
    /// The file's device, and its number on the device.
    inode: Option<(u64, u64)>,
}

impl FileVersion {
    fn new(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let inode = {
            use std::os::unix::fs::MetadataExt;
            Some((metadata.dev(), metadata.ino()))
        };
        #[cfg(not(unix))]
        let inode = None;
        Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            inode,
        }
    }
}

impl BodySource for FileSource {
    fn read_exact_at(&mut self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let mut file = File::open(&self.path)?;
        if FileVersion::new(&file.metadata()?) != self.version {
            let path = self.path.display();
            let changed = format!("{path} was changed or replaced while it was sent");
            return Err(io::Error::other(changed));
        }
        io::Seek::seek(&mut file, io::SeekFrom::Start(at))?;
        io::Read::read_exact(&mut file, buffer)
    }
}

enum Offer {
    /// No file can be passed on, because no handler of a mounted route runs on this thread.
    Impossible,
    Open,
    Made(BodyReader),
}

thread_local! {
    static OFFER: RefCell<Offer> = const { RefCell::new(Offer::Impossible) };
}

/// Restores the state of the thread, even after a panic of the handler.
struct Restored(Offer);

impl Drop for Restored {
    fn drop(&mut self) {
        OFFER.replace(mem::replace(&mut self.0, Offer::Impossible));
    }
}

/// Runs a route's handler. Returns its response, and the file that it has passed on, if any.
pub(super) fn accepting_file<R>(handler: impl FnOnce() -> R) -> (R, Option<BodyReader>) {
    let restored = Restored(OFFER.replace(Offer::Open));
    let response = handler();
    let made = OFFER.replace(Offer::Impossible);
    drop(restored);
    match made {
        Offer::Made(body) => (response, Some(body)),
        Offer::Open | Offer::Impossible => (response, None),
    }
}

/// Passes on a file as the body of the response that the handler is to return without one. Returns false if no route's
/// handler runs on this thread, such as in a Humphrey `App`.
pub(crate) fn pass_on(path: &Path, metadata: &Metadata) -> bool {
    OFFER.with_borrow_mut(|offer| {
        let is_possible = !matches!(offer, Offer::Impossible);
        if is_possible {
            let source = FileSource {
                path: path.to_owned(),
                version: FileVersion::new(metadata),
            };
            *offer = Offer::Made(BodyReader::new(source, metadata.len()));
        }
        is_possible
    })
}
