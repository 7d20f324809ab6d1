//! Runs each seed of the fuzz targets once. The seeds include all inputs that have ever failed.

use std::fs;
use std::path::PathBuf;

use crate::engine::sim_tests::{dialogue, game, rooms};
use crate::protocol::fuzz::dice::{Dice, for_seeds};
use crate::protocol::fuzz::{client_frame, server_frame};

type FuzzTarget = (&'static str, fn(&[u8]));

const TARGETS: &[FuzzTarget] = &[
    ("frames", super::frames),
    ("client_frames", super::client_frames),
    ("reply", super::reply),
    ("handshake", super::handshake),
    ("close_payload", super::close_payload),
    ("protocol", super::protocol),
    ("shard", super::shard),
    ("rooms", super::rooms),
    #[cfg(feature = "deflate")]
    ("offers", super::offers),
    #[cfg(feature = "deflate")]
    ("inflate", super::inflate),
    #[cfg(feature = "deflate")]
    ("compress", super::compress),
    #[cfg(feature = "__tls")]
    ("tls", super::tls),
    #[cfg(feature = "cluster")]
    ("redis", super::redis),
    #[cfg(feature = "cluster")]
    ("nats", super::nats),
    #[cfg(feature = "cluster")]
    ("envelope", super::envelope),
];

fn seeds(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz", "seeds", target]
        .iter()
        .collect()
}

/// Prints the path of the seed if the case panics.
struct InputOnPanic(PathBuf);

impl Drop for InputOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[allow(clippy::print_stderr)] // It is one of many.
            {
                eprintln!("seed {}", self.0.display());
            }
        }
    }
}

#[test]
fn every_seed_of_every_fuzz_target_holds() {
    for &(target, run) in TARGETS {
        let mut played = 0;
        for seed in fs::read_dir(seeds(target)).unwrap() {
            let named = InputOnPanic(seed.unwrap().path());
            run(&fs::read(&named.0).unwrap());
            played += 1;
        }
        assert!(played >= 5, "{target} has {played} seeds");
    }
}

/// A little fuzzing without a nightly toolchain, for the fast targets: bytes are changed, removed, doubled, and copied
/// from another seed.
#[test]
fn mutations_of_the_clients_seeds_hold() {
    for (seeds, run) in [
        (server_frames(), super::client_frames as fn(&[u8])),
        (replies(), super::reply),
    ] {
        let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|(_, seed)| seed).collect();
        for_seeds(3_000, |number| {
            let mut dice = Dice::from_seed(number);
            let mut case = seeds[dice.below(seeds.len())].clone();
            for _ in 0..=dice.below(4) {
                let at = dice.below(case.len().max(1)).min(case.len());
                let end = (at + dice.below(9)).min(case.len());
                match dice.below(4) {
                    0 => case[at..end]
                        .iter_mut()
                        .for_each(|byte| *byte = dice.below(256) as u8),
                    1 => drop(case.drain(at..end)),
                    2 => {
                        let again = case[at..end].to_vec();
                        case.splice(at..at, again);
                    }
                    _ => {
                        let other = &seeds[dice.below(seeds.len())];
                        case.truncate(at);
                        case.extend_from_slice(&other[dice.below(other.len())..]);
                    }
                }
            }
            run(&case);
        });
    }
}

#[cfg(feature = "__tls")]
#[test]
fn random_tls_connections_hold() {
    for_seeds(300, |seed| super::tls(&tls_case(seed)));
}

#[cfg(feature = "__tls")]
fn tls_case(seed: u64) -> Vec<u8> {
    let mut dice = Dice::from_seed(seed);
    let len = 8 + dice.below(100);
    (0..len).map(|_| dice.below(256) as u8).collect()
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    client_frame(first, [0x37, 0xFA, 0x21, 0x3D], payload)
}

fn close(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_bytes()].concat()
}

/// Returns the seeds for frames from a client: a limit, cuts, and the bytes of the client.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let crab = "🦀".as_bytes();
    let text = frame(0x81, b"Hello");
    let streams = [
        ("text", text.clone()),
        ("binary_16", frame(0x82, &[7; 126])),
        (
            "fragments",
            [
                frame(0x01, &crab[..1]),
                frame(0x89, b"between"),
                frame(0x00, &crab[1..3]),
                frame(0x80, &crab[3..]),
            ]
            .concat(),
        ),
        (
            "many",
            [&text[..], &frame(0x8A, b""), &frame(0x02, b""), &text].concat(),
        ),
        ("close", frame(0x88, &close(1000, "bye"))),
        ("close_code_invalid", frame(0x88, &close(1005, ""))),
        ("unmasked", b"\x81\x05Hello".to_vec()),
        ("reserved_bits", frame(0xC1, b"x")),
        ("reserved_opcode", frame(0x83, b"x")),
        ("not_minimal", b"\x82\xFE\x00\x05".to_vec()),
        (
            "length_64",
            b"\x82\xFF\x00\x00\x00\x00\x00\x01\x00\x00\x01\x02\x03\x04x".to_vec(),
        ),
        (
            "too_long",
            b"\x82\xFF\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF".to_vec(),
        ),
        ("not_utf8", frame(0x81, b"ok \xED\xA0\x80")),
        ("long_ping", frame(0x89, &[1; 126])),
        ("unfinished", text[..8].to_vec()),
    ];
    let mut seeds = Vec::new();
    for (n, (name, stream)) in streams.into_iter().enumerate() {
        let limit = [5, 3, 4][n % 3];
        let mut seed = vec![limit, 2, 1, 3];
        seed.extend(stream);
        seeds.push((name, seed));
    }
    seeds
}

/// Returns the seeds for frames from a server: the unmasked frames of the other seeds, except those about masking.
fn server_frames() -> Vec<(&'static str, Vec<u8>)> {
    let crab = "🦀".as_bytes();
    let text = server_frame(0x81, b"Hello");
    let fragments = [
        server_frame(0x01, &crab[..1]),
        server_frame(0x89, b"between"),
        server_frame(0x00, &crab[1..3]),
        server_frame(0x80, &crab[3..]),
    ];
    let streams = [
        ("text", text.clone()),
        ("binary_16", server_frame(0x82, &[7; 126])),
        ("fragments", fragments.concat()),
        (
            "many",
            [&text[..], &server_frame(0x8A, b""), &text].concat(),
        ),
        ("close", server_frame(0x88, &close(1000, "bye"))),
        ("close_code_invalid", server_frame(0x88, &close(1005, ""))),
        ("masked", frame(0x81, b"Hello")),
        ("reserved_bits", server_frame(0xC1, b"x")),
        ("not_minimal", b"\x82\x7E\x00\x05".to_vec()),
        (
            "length_64",
            b"\x82\x7F\x00\x00\x00\x00\x00\x01\x00\x00x".to_vec(),
        ),
        ("not_utf8", server_frame(0x81, b"ok \xED\xA0\x80")),
        ("long_ping", server_frame(0x89, &[1; 126])),
        ("unfinished", text[..4].to_vec()),
    ];
    let with_limit = |(n, (name, stream)): (usize, (_, Vec<u8>))| {
        let mut seed = vec![[5, 3, 4][n % 3], 2, 1, 3];
        seed.extend(stream);
        (name, seed)
    };
    streams.into_iter().enumerate().map(with_limit).collect()
}

fn replies() -> Vec<(&'static str, Vec<u8>)> {
    let accepted = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: keep-alive\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    let texts = [
        ("accepted", format!("{accepted}\r\n\u{1}frames")),
        ("interim", format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nLink: </a>\r\n\r\n{accepted}\r\n")),
        ("interim_without_end", "HTTP/1.1 102 x\r\n\r\n".repeat(20)),
        ("subprotocol", format!("{accepted}Sec-WebSocket-Protocol: superchat\r\n\r\n")),
        ("subprotocol_not_offered", format!("{accepted}Sec-WebSocket-Protocol: other\r\n\r\n")),
        ("subprotocols", format!("{accepted}Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: superchat\r\n\r\n")),
        ("extension", format!("{accepted}Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")),
        ("accept_wrong", accepted.replace("s3p", "S3p") + "\r\n"),
        ("accept_twice", format!("{accepted}Sec-WebSocket-Accept: x\r\n\r\n")),
        ("other_protocol", accepted.replace("websocket", "websocket, h2c") + "\r\n"),
        ("folded", accepted.replace("Connection: Upgrade", "Connection:\r\n Upgrade") + "\r\n"),
        ("line_feeds", accepted.replace("\r\n", "\n") + "\n"),
        ("refused", "HTTP/1.1 503 Busy\r\nRetry-After: Sun, 06 Nov 1994 08:50:37 GMT\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 4\r\n\r\nbusy".into()),
        ("chunked", "HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\n5;a\r\nhello\r\n1\r\n!\r\n0\r\nA: b\r\n\r\n".into()),
        ("to_the_end", "HTTP/1.0 200 OK\r\n\r\n<html>".into()),
        ("no_content", "HTTP/1.1 204\r\nContent-Length: 9\r\n\r\nx".into()),
        ("no_http", "SSH-2.0-OpenSSH_9.2\r\n".into()),
        ("http_2", "HTTP/2 200\r\n\r\n".into()),
        ("control", "HTTP/1.1 101 x\r\nA: b\0\r\n\r\n".into()),
    ];
    texts
        .into_iter()
        .map(|(name, text)| (name, [&[3, 2, 2, 7, 1], text.as_bytes()].concat()))
        .collect()
}

fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let upgrade = "GET /chat?room=1 HTTP/1.1\r\nHost: example\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    let texts = [
        ("upgrade", format!("{upgrade}Origin: http://example\r\n\r\n\u{1}early")),
        ("upgrade_with_body", format!("{upgrade}Content-Length: 5\r\n\r\nhello")),
        ("upgrade_version_8", upgrade.replace("13", "8") + "\r\n"),
        ("upgrade_bad_key", upgrade.replace("dGhl", "....") + "\r\n"),
        ("upgrade_http_1_0", upgrade.replace("HTTP/1.1", "HTTP/1.0") + "\r\n"),
        ("get_twice", "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2)),
        ("absolute", "GET http://example/a?b HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n".into()),
        ("options", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".into()),
        ("post", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello".into()),
        (
            "chunked",
            "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\"b\"\r\nhello\r\n01\r\n!\r\n0\r\nTrailer: x\r\n\r\n".into(),
        ),
        ("two_framings", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        ("lengths_differ", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\nab".into()),
        ("no_host", "GET / HTTP/1.1\r\n\r\n".into()),
        ("http_2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        ("folded", "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n".into()),
        ("injection", "GET /a%0D%0ASet-Cookie:x HTTP/1.1\r\nHost: x\r\n\r\n".into()),
        ("bare_cr", "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\rc\r\n\r\n".into()),
        // Found by fuzzing: a request that was cut after its version was reported as another version.
        ("version_cut", "GET /chat HTTP/1Sec-WebSocket-Key: dGhlIHNh==\r\n\r\n".into()),
    ];
    texts
        .into_iter()
        .map(|(name, text)| (name, [&[8, 2, 7, 1], text.as_bytes()].concat()))
        .collect()
}

fn close_payloads() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", Vec::new()),
        ("short", vec![3]),
        ("normal", close(1000, "")),
        ("reason", close(4001, "täglich")),
        ("never_sent", close(1006, "")),
        ("not_utf8", [&close(1000, "cut ")[..], b"\xC3"].concat()),
        ("longest", close(1001, &"a".repeat(123))),
        ("cut_between_characters", close(3000, &"🦀".repeat(40))),
    ]
}

#[test]
#[ignore = "writes fuzz/seeds: for when what a target makes of its bytes has changed"]
fn write_seeds() {
    let games = |chances: fn(u64, usize) -> Vec<u8>, count| {
        (0..count)
            .map(|seed| {
                let name = format!("game_{seed:02}");
                (name, chances(seed, 60 + 20 * (seed as usize % 10)))
            })
            .collect::<Vec<_>>()
    };
    let named = |seeds: Vec<(&str, Vec<u8>)>| {
        seeds
            .into_iter()
            .map(|(name, seed)| (name.to_owned(), seed))
            .collect()
    };
    let mut shard = games(game::chances, 12);
    // Found by fuzzing: a handed-over connection over the limit did not receive the rest of the frame in progress.
    shard.push(("refused_in_mid_frame".into(), game::chances(2553, 80)));
    let all = [
        ("frames", named(frames())),
        ("client_frames", named(server_frames())),
        ("reply", named(replies())),
        ("handshake", named(requests())),
        ("close_payload", named(close_payloads())),
        ("protocol", games(dialogue::chances, 40)),
        ("shard", shard),
        ("rooms", games(rooms::chances, 12)),
        #[cfg(feature = "__tls")]
        ("tls", games(|seed, _| tls_case(seed), 12)),
    ];
    for (target, named) in all {
        fs::create_dir_all(seeds(target)).unwrap();
        for (name, seed) in named {
            fs::write(seeds(target).join(name), seed).unwrap();
        }
    }
}
