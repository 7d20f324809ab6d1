use super::*;

/// The decoded body, and the number of input bytes that belonged to it.
type Decoded = Result<(Vec<u8>, usize), HttpError>;

/// Decodes `input` split at the given positions.
fn feed(framing: BodyFraming, max: usize, input: &[u8], cuts: &[usize]) -> Decoded {
    let mut body = Body::new(framing, max)?;
    let (mut used, mut from) = (0, 0);
    for &to in cuts.iter().chain([&input.len()]) {
        let (taken, complete) = body.feed(&input[from..to])?;
        assert_eq!(complete, body.is_complete());
        assert!(
            complete || taken == to - from,
            "what is not complete takes everything"
        );
        used += taken;
        from = to;
    }
    assert!(body.is_complete(), "incomplete");
    assert_eq!(body.feed(b"GET /"), Ok((0, true)));
    Ok((body.into_bytes(), used))
}

/// Decodes `input` whole, split at every byte, and byte by byte, and asserts that the results are equal.
fn decode(framing: BodyFraming, max: usize, input: &[u8]) -> Decoded {
    let whole = feed(framing, max, input, &[]);
    for cut in 0..=input.len() {
        assert_eq!(feed(framing, max, input, &[cut]), whole, "cut at {cut}");
    }
    let every: Vec<usize> = (0..input.len()).collect();
    assert_eq!(feed(framing, max, input, &every), whole, "byte by byte");
    whole
}

fn chunked(input: &[u8]) -> Decoded {
    decode(BodyFraming::Chunked, 100, input)
}

fn bad(result: Decoded) -> bool {
    matches!(result, Err(HttpError::BadRequest(_)))
}

#[test]
fn missing_body_is_complete_at_once() {
    for framing in [BodyFraming::None, BodyFraming::Length(0)] {
        assert_eq!(decode(framing, 0, b"next"), Ok((vec![], 0)));
        assert!(Body::new(framing, 0).unwrap().is_complete());
    }
}

#[test]
fn body_with_length_leaves_the_bytes_after_it() {
    assert_eq!(
        decode(BodyFraming::Length(5), 5, b"hellonext"),
        Ok((b"hello".to_vec(), 5))
    );
}

#[test]
fn length_over_the_limit_fails_at_once() {
    for length in [6, 1 << 32, 1 << 40, (1 << 32) + 5, u64::MAX] {
        let error = Body::new(BodyFraming::Length(length), 5).unwrap_err();
        assert_eq!(error, HttpError::BodyTooLarge);
    }
}

#[test]
fn announced_length_reserves_little_memory() {
    let mut body = Body::new(BodyFraming::Length(1 << 30), 1 << 30).unwrap();
    body.feed(b"x").unwrap();
    assert!(body.bytes.capacity() < 10_000);
}

#[test]
fn chunks_are_joined() {
    // RFC 9112 §7.1
    assert_eq!(chunked(b"0\r\n\r\n"), Ok((vec![], 5)));
    assert_eq!(
        chunked(b"5\r\nhello\r\n0\r\n\r\nnext"),
        Ok((b"hello".to_vec(), 15))
    );
    let (body, _) =
        chunked(b"1\r\na\r\n00a\r\n0123456789\r\nB\r\n\r\n3456789\r\n\r\n0\r\n\r\n").unwrap();
    assert_eq!(body, b"a0123456789\r\n3456789\r\n");
}

#[test]
fn extensions_and_trailers_are_ignored() {
    // RFC 9112 §7.1.1, §7.1.2
    for input in [
        &b"3;name=value;other=\"quoted\"\r\nabc\r\n0\r\n\r\n"[..],
        b"3 \t; a\r\nabc\r\n0;last\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\nTrailer: dropped\r\nX:\ty\r\n\r\n",
    ] {
        assert_eq!(chunked(input), Ok((b"abc".to_vec(), input.len())));
    }
}

#[test]
fn malformed_chunk_is_refused() {
    for input in [
        &b"\r\n"[..],
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x5\r\n",
        b" 5\r\n",
        b";x\r\n",
        b"5 5\r\n",
        b"5\nhello\r\n",
        b"5\r\r\n",
        b"5;a\nhello",
        b"5;a\rb",
        b"5;\0\r\n",
        b"5\r\nhelloX",
        b"5\r\nhello\n0",
        b"5\r\nhello\rX",
        b"0\r\n\n",
        b"0\r\n\rX",
        b"0\r\nTrailer: x\n\r\n",
        b"0\r\nTrailer: x\rX",
        b"0\r\nTrailer: \0\r\n",
    ] {
        assert!(bad(chunked(input)), "{:?}", String::from_utf8_lossy(input));
    }
}

#[test]
fn sum_of_chunk_sizes_over_the_limit_is_refused() {
    let max = |input: &[u8]| decode(BodyFraming::Chunked, 10, input);
    assert_eq!(
        max(b"6\r\nabcdef\r\n4\r\nabcd\r\n0\r\n\r\n")
            .unwrap()
            .0
            .len(),
        10
    );
    for input in [
        &b"b"[..],
        b"6\r\nabcdef\r\n5",
        b"ffffffffffffffff",
        b"10000000000000000",
    ] {
        assert_eq!(max(input), Err(HttpError::BodyTooLarge));
    }
}

#[test]
fn long_chunk_framing_is_refused() {
    let extension = |len: usize| format!("1;{}\r\nx\r\n", "e".repeat(len));
    let last = "0\r\n\r\n";
    let input = extension(SIZE_LINE_BYTES_MAX - 2) + last;
    assert!(chunked(input.as_bytes()).is_ok());
    assert!(bad(chunked(extension(SIZE_LINE_BYTES_MAX - 1).as_bytes())));
    let zeros = "0".repeat(SIZE_LINE_BYTES_MAX + 1);
    assert!(bad(chunked(zeros.as_bytes())));
    // Each line is valid, but there are too many.
    let all = extension(200).repeat(EXTENSION_BYTES_MAX / 100);
    assert!(bad(feed(BodyFraming::Chunked, 100, all.as_bytes(), &[])));
    let trailers = format!("0\r\n{}", "a: b\r\n".repeat(TRAILER_BYTES_MAX));
    let trailers = feed(BodyFraming::Chunked, 100, trailers.as_bytes(), &[]);
    assert_eq!(trailers, Err(HttpError::HeadTooLarge));
}

#[test]
fn tiny_chunks_rarely_grow_the_buffer() {
    let mut body = Body::new(BodyFraming::Chunked, 1 << 20).unwrap();
    let (mut grown, mut capacity) = (0, 0);
    for _ in 0..50_000 {
        body.feed(b"1\r\nx\r\n").unwrap();
        if body.bytes.capacity() != capacity {
            capacity = body.bytes.capacity();
            grown += 1;
        }
    }
    assert!(grown < 30, "{grown}");
}
