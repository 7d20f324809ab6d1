//! Which file it is: the same one as before, whatever its name, or another one.

use std::fs::File;
use std::io;
use std::path::Path;

/// Identifies a file for as long as it is open: the system may give its number to another file after that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity(system::Identity);

impl Identity {
    pub(super) fn of_file(file: &File) -> io::Result<Self> {
        system::of_file(file).map(Self)
    }

    /// Follows symbolic links.
    pub(super) fn of_path(path: &Path) -> io::Result<Self> {
        system::of_path(path).map(Self)
    }
}

#[cfg(unix)]
mod system {
    use std::fs::{self, File, Metadata};
    use std::io;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(super) struct Identity {
        device: u64,
        inode: u64,
    }

    impl From<Metadata> for Identity {
        fn from(metadata: Metadata) -> Self {
            Self {
                device: metadata.dev(),
                inode: metadata.ino(),
            }
        }
    }

    pub(super) fn of_file(file: &File) -> io::Result<Identity> {
        file.metadata().map(Identity::from)
    }

    pub(super) fn of_path(path: &Path) -> io::Result<Identity> {
        fs::metadata(path).map(Identity::from)
    }
}

/// The time of creation would not do: Windows gives a new file that of the file which had its name some seconds before.
#[cfg(windows)]
mod system {
    use std::fs::File;
    use std::io;
    use std::path::Path;
    use std::sync::Arc;

    use same_file::Handle;

    pub(super) type Identity = Arc<Handle>;

    pub(super) fn of_file(file: &File) -> io::Result<Identity> {
        Handle::from_file(file.try_clone()?).map(Arc::new)
    }

    pub(super) fn of_path(path: &Path) -> io::Result<Identity> {
        Handle::from_path(path).map(Arc::new)
    }
}
