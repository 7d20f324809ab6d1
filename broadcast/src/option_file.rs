//! The files that options name: short texts, such as a token or a URL with a password.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads at most `bytes_max` bytes of a file, since its path may name an endless device. Returns the text without the whitespace
/// around it.
pub(crate) fn read(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(bytes_max)
        .read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Adds the option and the path of its file to an error. The error doesn't contain the content of the file.
pub(crate) fn named<T>(option: &str, path: &Path, read: io::Result<T>) -> io::Result<T> {
    read.map_err(|error| {
        let what = format!("{option} {}: {error}", path.display());
        io::Error::new(error.kind(), what)
    })
}
