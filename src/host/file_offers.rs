//! Lets a route's handler offer a file as its response's body, without reading it. Humphrey's `Response` can only contain a
//! body in memory.
//!
//! The handler stores the offer in a thread-local variable, and returns a response with the offer's number in a header, and
//! without a body. The route takes the file from the variable when the handler has returned.

use std::cell::RefCell;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use crate::atomic::AtomicU64;
use crate::engine::{BodyReader, BodySource};

/// The header for the number of an offer. The route removes it.
pub(crate) const OFFER_HEADER: &str = "X-Humphrey-Ws-File";

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

impl FileSource {
    fn check(&self, metadata: &Metadata) -> io::Result<()> {
        if FileVersion::new(metadata) == self.version {
            Ok(())
        } else {
            Err(io::Error::other(
                "it was changed or replaced while it was sent",
            ))
        }
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        // Opening a pipe that has replaced the file would block.
        self.check(&self.path.metadata()?)?;
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(buffer)?;
        self.check(&file.metadata()?)
    }
}

impl BodySource for FileSource {
    fn read_exact_at(&mut self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.read(buffer, at).map_err(|error| {
            io::Error::new(error.kind(), format!("the file {:?}: {error}", self.path))
        })
    }
}

/// Offered files with their numbers.
type Offers = Vec<(u64, BodyReader)>;

thread_local! {
    /// The offers of the handler that runs on this thread. `None`: it is not the handler of a mounted route.
    static OFFERS: RefCell<Option<Offers>> = const { RefCell::new(None) };
}

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// The offers of one run of a handler.
pub(super) struct FileOffers(Offers);

impl FileOffers {
    /// Returns the file whose number a response has.
    pub(super) fn take(&mut self, number: &str) -> Option<BodyReader> {
        let number: u64 = number.parse().ok()?;
        let offer = self.0.iter().position(|&(other, _)| other == number)?;
        Some(self.0.swap_remove(offer).1)
    }
}

/// Ends the run of a handler, even if it panics.
struct OffersGuard(Option<Offers>);

impl Drop for OffersGuard {
    fn drop(&mut self) {
        OFFERS.replace(mem::take(&mut self.0));
    }
}

/// Runs a route's handler. Returns its response, and the files that it has offered.
pub(super) fn run_with_offers<R>(handler: impl FnOnce() -> R) -> (R, FileOffers) {
    let guard = OffersGuard(OFFERS.replace(Some(Vec::new())));
    let response = handler();
    let offers = OFFERS.take().unwrap_or_default();
    drop(guard);
    (response, FileOffers(offers))
}

/// Offers a file as the body of a response, and returns the value of its [`OFFER_HEADER`]. Returns `None` if no handler of a
/// mounted route runs on this thread, such as in a Humphrey `App`.
pub(crate) fn offer_file(path: &Path, metadata: &Metadata) -> Option<String> {
    OFFERS.with_borrow_mut(|offers| {
        let number = NEXT_NUMBER.fetch_add(1, Relaxed);
        let source = FileSource {
            path: path.to_owned(),
            version: FileVersion::new(metadata),
        };
        let body = BodyReader::new(source, metadata.len());
        offers.as_mut()?.push((number, body));
        Some(number.to_string())
    })
}
