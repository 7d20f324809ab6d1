use super::*;
use crate::follow::tests::Directory;

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};

struct Temporary {
    file: File,
    position: Position,
    _directory: Directory,
}

impl Temporary {
    fn new(content: &[u8]) -> Self {
        let directory = Directory::new();
        let path = directory.file("file", content);
        Self {
            file: OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .unwrap(),
            position: Position::start(),
            _directory: directory,
        }
    }

    fn append(&mut self, content: &[u8]) {
        self.file.seek(SeekFrom::End(0)).unwrap();
        self.file.write_all(content).unwrap();
    }

    fn overwrite(&mut self, at: u64, content: &[u8]) {
        self.file.seek(SeekFrom::Start(at)).unwrap();
        self.file.write_all(content).unwrap();
    }

    /// Reads to the end with this buffer; none if the file is found to be truncated.
    fn read(&mut self, buffer: usize, verify: bool) -> Option<Vec<u8>> {
        let mut buffer = vec![0; buffer];
        let mut all = Vec::new();
        loop {
            match self.position.read(&self.file, &mut buffer, verify).unwrap() {
                Piece::Data { text, .. } => all.extend_from_slice(text),
                Piece::End => return Some(all),
                Piece::Truncated => return None,
            }
        }
    }
}

/// Bytes that do not repeat soon.
fn content(len: usize) -> Vec<u8> {
    let numbers = (0..).flat_map(|n: u32| n.to_le_bytes());
    numbers.take(len).collect()
}

#[test]
fn growing_file_is_read_whatever_the_sizes() {
    let all = content(5000);
    for buffer in [BEFORE_BYTES + 1, BEFORE_BYTES + 100, 4096, 10_000] {
        for step in [1, 100, 255, 256, 257, 1024, 4999] {
            let mut temporary = Temporary::new(b"");
            let mut read = Vec::new();
            for piece in all.chunks(step) {
                temporary.append(piece);
                read.extend(temporary.read(buffer, false).expect("not truncated"));
            }
            assert!(read == all, "{buffer} {step}");
        }
    }
}

#[test]
fn position_inside_the_file_goes_on_there() {
    let all = content(5000);
    for offset in [0, 1, 255, 256, 257, 1023, 1024, 1025, 5000] {
        let mut temporary = Temporary::new(&all);
        temporary.position = Position::at(offset as u64, &temporary.file).unwrap();
        assert_eq!(temporary.read(1000, false).as_deref(), Some(&all[offset..]));
        temporary.append(b"more");
        assert_eq!(temporary.read(1000, false).as_deref(), Some(&b"more"[..]));
    }
}

#[test]
fn change_of_remembered_bytes_is_a_truncation() {
    // The first bytes, and those before the position.
    for at in [0, 1023, 4744, 4999] {
        let mut temporary = Temporary::new(&content(5000));
        temporary.read(1000, false).unwrap();
        temporary.overwrite(at, b"!");
        temporary.append(b"more");
        assert_eq!(temporary.read(1000, false), None);
    }
}

#[test]
fn change_without_another_length_or_time_is_found_if_asked_for() {
    let mut temporary = Temporary::new(&content(100));
    temporary.read(1000, false).unwrap();
    let time = temporary.file.metadata().unwrap().modified().unwrap();
    temporary.overwrite(0, b"!");
    temporary.file.set_modified(time).unwrap();
    assert_eq!(temporary.read(1000, false), Some(Vec::new()));
    assert_eq!(temporary.read(1000, true), None);
}

#[test]
fn restart_skips_zeros_at_the_beginning_only() {
    let mut temporary = Temporary::new(&[0; 3000]);
    temporary.position.restart();
    assert_eq!(temporary.read(1000, false), Some(Vec::new()));
    temporary.append(b"\0\0text\0");
    assert_eq!(temporary.read(1000, false), Some(b"text\0".to_vec()));
    temporary.append(b"\0");
    assert_eq!(temporary.read(1000, false), Some(b"\0".to_vec()));
}
