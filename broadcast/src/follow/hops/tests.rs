use super::*;
use crate::follow::tests::Directory;

use std::os::unix::fs::symlink;

fn hop(directory: &Path, name: &str, is_file: bool) -> Hop {
    Hop {
        directory: directory.to_owned(),
        name: name.into(),
        is_file,
    }
}

#[test]
fn hops_are_the_links_and_the_file() {
    let temporary = Directory::new();
    let directory = &temporary.0;
    let inner = directory.join("inner");
    fs::create_dir(&inner).unwrap();
    let file = hop(&inner, "log.1", true);
    assert_eq!(of(&inner.join("log.1")), std::slice::from_ref(&file));
    symlink("log.1", inner.join("log")).unwrap();
    symlink(inner.join("log"), directory.join("current")).unwrap();
    let links = [
        hop(directory, "current", false),
        hop(&inner, "log", false),
        file,
    ];
    assert_eq!(of(&directory.join("current")), links);
    // A link to a file in a directory that does not exist.
    symlink("a/b/log", directory.join("dangling")).unwrap();
    let links = [
        hop(directory, "dangling", false),
        hop(directory, "a", false),
    ];
    assert_eq!(of(&directory.join("dangling")), links);
    // A file is no directory.
    fs::write(directory.join("a"), "").unwrap();
    assert_eq!(of(&directory.join("dangling")), links);
    symlink("loop", directory.join("loop")).unwrap();
    assert_eq!(of(&directory.join("loop")).len(), LINKS_MAX);
}

#[test]
fn hop_of_a_bare_name_is_in_the_current_directory() {
    let here = hop(Path::new("."), "no such file", true);
    assert_eq!(of(Path::new("no such file")), [here]);
    let missing = hop(Path::new("."), "no such directory", false);
    assert_eq!(of(Path::new("no such directory/a/b")), [missing]);
}

#[test]
fn path_without_a_name_has_no_hops() {
    assert_eq!(of(Path::new("/")), []);
    assert_eq!(of(Path::new("..")), []);
}
