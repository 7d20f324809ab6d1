//! An open file that lines are read from.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Instant, SystemTime};

use super::identity::Identity;
use super::last_lines;
use super::position::{Piece, Position};
use crate::lines::{Line, LineSplitter};

/// The most that is read from the end of a file to find its last lines, unless one line may be longer.
const BACK_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    identity: Identity,
    content: Content,
    splitter: LineSplitter,
    bytes_max: usize,
    pub(super) opened: Instant,
    /// When it was opened or data was last read.
    pub(super) active: Instant,
    /// A read has failed. It must be opened again.
    pub(super) is_broken: bool,
    /// Whether the event loop wakes up when it can be read or has changed.
    pub(super) is_watched: bool,
}

#[derive(Debug)]
enum Content {
    Regular(Position),
    /// A named pipe, or a character device.
    Stream,
}

/// The result of one read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    Read(usize),
    /// There is nothing more to be read now.
    End,
    Truncated,
    /// `each` has broken.
    Stopped,
}

/// Takes the lines of a file.
pub(super) type EachLine<'a> = dyn FnMut(Line<'_>) -> ControlFlow<()> + 'a;

impl OpenFile {
    /// Opens a file at its beginning. Never blocks on a named pipe without a writer.
    pub(super) fn open(path: &Path, bytes_max: usize) -> io::Result<Self> {
        let file = system::open(path)?;
        let file_type = file.metadata()?.file_type();
        let content = if file_type.is_file() {
            Content::Regular(Position::start())
        } else if file_type.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::IsADirectory,
                "it is a directory",
            ));
        } else if system::is_stream(&file_type) {
            Content::Stream
        } else {
            let why = "it is neither a file nor a named pipe nor a character device";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        };
        let now = Instant::now();
        Ok(Self {
            identity: Identity::of_file(&file)?,
            file,
            content,
            splitter: LineSplitter::new(bytes_max),
            bytes_max,
            opened: now,
            active: now,
            is_broken: false,
            is_watched: false,
        })
    }

    /// Goes to where the last lines of a regular file begin.
    pub(super) fn skip_to_last(&mut self, lines: u64) -> io::Result<()> {
        let Content::Regular(position) = &mut self.content else {
            return Ok(());
        };
        // With so many bytes, a line is too long even if the last ones are a line ending.
        let line_max = self.bytes_max as u64 + 2;
        let back_max = if lines == 0 {
            line_max
        } else {
            line_max.max(BACK_BYTES_MAX)
        };
        let len = self.file.metadata()?.len();
        let offset = last_lines::find(&self.file, len, lines, back_max)?;
        *position = Position::at(offset, &self.file)?;
        Ok(())
    }

    /// Continues with another handle of the same file.
    pub(super) fn replace_handle(&mut self, other: Self) {
        self.file = other.file;
        self.is_broken = false;
        self.is_watched = false;
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn is_stream(&self) -> bool {
        matches!(self.content, Content::Stream)
    }

    /// Whether something was written to it, as far as that can be known.
    pub(super) fn has_data(&self) -> bool {
        self.is_stream()
            || self
                .file
                .metadata()
                .is_ok_and(|metadata| metadata.len() > 0)
    }

    /// Whether it was created after this time. Not every file system can tell.
    pub(super) fn is_newer_than(&self, time: SystemTime) -> bool {
        let created = self.file.metadata().and_then(|metadata| metadata.created());
        created.is_ok_and(|created| created > time)
    }

    /// Whether no name leads to it any more.
    pub(super) fn is_deleted(&self) -> bool {
        system::is_deleted(&self.file)
    }

    /// Whether a line has begun that is not finished.
    pub(super) fn has_unfinished_line(&self) -> bool {
        self.splitter.pending_bytes() > 0
    }

    /// Delivers the unfinished line.
    pub(super) fn finish_line(&mut self, each: &mut EachLine<'_>) -> ControlFlow<()> {
        self.splitter.finish(each)
    }

    /// Delivers the lines of the next bytes, at most as many as the buffer holds. See [`Position::read`] for `verify`.
    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        verify: bool,
        each: &mut EachLine<'_>,
    ) -> io::Result<Chunk> {
        if self.is_broken {
            return Ok(Chunk::End);
        }
        let (text, progress) = match &mut self.content {
            Content::Regular(position) => match position.read(&self.file, buffer, verify)? {
                Piece::Data { text, progress } => (text, progress),
                Piece::End => return Ok(Chunk::End),
                Piece::Truncated => {
                    position.restart();
                    return Ok(match self.splitter.finish(each) {
                        ControlFlow::Continue(()) => Chunk::Truncated,
                        ControlFlow::Break(()) => Chunk::Stopped,
                    });
                }
            },
            Content::Stream => match self.file.read(buffer) {
                // The last writer has closed the pipe. The next one begins a new line.
                Ok(0) => {
                    return Ok(match self.splitter.finish(each) {
                        ControlFlow::Continue(()) => Chunk::End,
                        ControlFlow::Break(()) => Chunk::Stopped,
                    });
                }
                Ok(read) => (&buffer[..read], read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Chunk::End),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    return Ok(Chunk::Read(0));
                }
                Err(error) => return Err(error),
            },
        };
        self.active = Instant::now();
        Ok(match self.splitter.push(text, each) {
            ControlFlow::Continue(()) => Chunk::Read(progress),
            ControlFlow::Break(()) => Chunk::Stopped,
        })
    }
}

#[cfg(unix)]
mod system {
    use std::fs::{File, FileType};
    use std::io;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::path::Path;

    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;

    pub(super) fn open(path: &Path) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty())) {
            Ok(file) => Ok(file.into()),
            Err(Errno::NXIO) => {
                let why = "it is a socket, or a device that is not there";
                Err(io::Error::new(io::ErrorKind::Unsupported, why))
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn is_stream(file_type: &FileType) -> bool {
        file_type.is_fifo() || file_type.is_char_device()
    }

    pub(super) fn is_deleted(file: &File) -> bool {
        file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }
}

#[cfg(windows)]
mod system {
    use std::fs::{File, FileType};
    use std::io;
    use std::path::Path;

    pub(super) fn open(path: &Path) -> io::Result<File> {
        File::open(path)
    }

    pub(super) fn is_stream(_: &FileType) -> bool {
        false
    }

    /// The standard library can't tell. It is read only until it is quiet for a while.
    pub(super) fn is_deleted(_: &File) -> bool {
        true
    }
}
