//! The directory entries that decide which file a path leads to.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// As many symbolic links as Linux follows.
const LINKS_MAX: usize = 40;

/// A name in a directory. A change of it may make the path lead to another file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) directory: PathBuf,
    pub(super) name: OsString,
    /// Whether the name is that of the file itself, rather than of a symbolic link or of a missing directory.
    pub(super) is_file: bool,
}

/// The hops of a path: its symbolic links, and then the file. If the directory of one is missing, the last hop is the
/// outermost missing directory.
///
/// Symbolic links to directories are not followed one by one: changes of them are found without events.
pub(super) fn of(path: &Path) -> Vec<Hop> {
    let mut hops = Vec::new();
    let mut path = path.to_owned();
    while hops.len() < LINKS_MAX {
        let Some(name) = path.file_name().map(OsString::from) else {
            break;
        };
        let directory = parent(&path);
        if !directory.is_dir() {
            hops.extend(missing_directory(&directory));
            break;
        }
        let target = fs::read_link(&path).ok();
        hops.push(Hop {
            directory: directory.clone(),
            name,
            is_file: target.is_none(),
        });
        match target {
            Some(target) => path = directory.join(target),
            None => break,
        }
    }
    hops
}

/// The outermost directory on the way to this one that is missing.
fn missing_directory(directory: &Path) -> Option<Hop> {
    let missing = (directory.ancestors()).find(|missing| parent(missing).is_dir())?;
    Some(Hop {
        directory: parent(missing),
        name: missing.file_name()?.to_owned(),
        is_file: false,
    })
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    }
}

#[cfg(all(test, unix))]
mod tests;
