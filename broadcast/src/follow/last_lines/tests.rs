use super::*;
use crate::follow::tests::Directory;

fn file(directory: &Directory, content: &[u8]) -> File {
    File::open(directory.file("file", content)).unwrap()
}

/// By definition: behind the last line ending before the wanted lines.
fn expected(content: &[u8], lines: usize) -> u64 {
    let endings = content
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n');
    let starts: Vec<u64> = endings.map(|(at, _)| at as u64 + 1).collect();
    let before = starts.len().checked_sub(lines + 1);
    before.map_or(0, |before| starts[before])
}

#[test]
fn last_lines_are_found_whatever_their_lengths() {
    let long = vec![b'x'; 3 * BLOCK_BYTES as usize / 2];
    let block = vec![b'x'; BLOCK_BYTES as usize - 1];
    let contents: [&[&[u8]]; 9] = [
        &[],
        &[b"\n"],
        &[b"1"],
        &[b"1\n2\n3\n"],
        &[b"1\n2\n3"],
        &[b"\n\n\n"],
        &[&long, b"\n", &long, b"\n2\n", &long],
        &[b"1\n", &block, b"\n", &block, b"\n"],
        &[b"1\n", &block, b"\n2", &block, b"\n3"],
    ];
    let directory = Directory::new();
    for (n, content) in contents.iter().enumerate() {
        let content = content.concat();
        let file = file(&directory, &content);
        for lines in 0..6 {
            let found = find(&file, content.len() as u64, lines, u64::MAX).unwrap();
            let expected = expected(&content, lines as usize);
            assert_eq!(found, expected, "{lines} lines of content {n}");
        }
    }
}

#[test]
fn bound_leaves_the_lines_that_begin_within_it() {
    let directory = Directory::new();
    let file = file(&directory, b"1111\n2222\n3333\n44");
    let find = |lines, back_max| find(&file, 17, lines, back_max).unwrap();
    assert_eq!(find(2, 13), 5);
    assert_eq!(
        find(2, 12),
        10,
        "the line ending before it is not within it"
    );
    assert_eq!(find(2, 3), 15);
    assert_eq!(find(2, 2), 15, "no line begins, but the bytes do");
    assert_eq!(find(2, 1), 16);
    assert_eq!(find(0, 1), 16);
    assert_eq!(find(9, 17), 0);
}

#[test]
fn large_file_is_not_read_whole() {
    let directory = Directory::new();
    let file = file(&directory, b"");
    // A hole takes no space, and would take long to read.
    let len = 1 << 40;
    let writer = std::fs::OpenOptions::new()
        .write(true)
        .open(directory.path("file"));
    writer.unwrap().set_len(len).unwrap();
    let back_max = 1 << 20;
    assert_eq!(find(&file, len, 1, back_max).unwrap(), len - back_max);
}

#[test]
fn file_truncated_meanwhile_has_an_offset() {
    let directory = Directory::new();
    let file = file(&directory, b"1\n2\n");
    assert_eq!(find(&file, 1_000_000, 1, u64::MAX).unwrap(), 2);
}
