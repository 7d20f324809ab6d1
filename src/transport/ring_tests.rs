use std::io::Read;
use std::net;

use super::*;

const GATHER_MIN: usize = <Ring as WriteMany<TcpStream>>::GATHER_MIN;

/// The shard's end of a connection, and the client's.
fn pair() -> (TcpStream, net::TcpStream) {
    let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    (TcpStream::from_std(ours), client)
}

fn pairs(count: usize) -> Vec<(TcpStream, net::TcpStream)> {
    (0..count).map(|_| pair()).collect()
}

/// Makes a ring. `None` where the kernel offers none: the engine then writes without one, and there is nothing to test.
fn ring() -> Option<Ring> {
    Ring::new().ok()
}

/// Makes the writes. Returns the index and outcome of each that was not made in full.
fn write_many(ring: &mut Ring, writes: &[(&TcpStream, &[u8])]) -> Vec<(usize, io::Result<usize>)> {
    let mut unfinished = Vec::new();
    let targets: Vec<usize> = (0..writes.len()).collect();
    let write = |tag: usize| {
        let (transport, bytes) = writes[tag];
        Some(Write {
            tag,
            transport,
            bytes,
        })
    };
    ring.write_many(&targets, write, |tag, len, outcome, _| {
        if !matches!(outcome, Ok(n) if n == len) {
            unfinished.push((tag, outcome));
        }
    });
    unfinished
}

fn received(mut client: &net::TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

/// Writes to a full socket and a closed one among others that take everything, and checks each outcome.
fn check_each_outcome(ring: &mut Ring) {
    let pairs = pairs(2 * GATHER_MIN);
    let much = vec![7; 64 << 20];
    let mut writes: Vec<(&TcpStream, &[u8])> = pairs
        .iter()
        .map(|(ours, _)| (ours, &b"all of it"[..]))
        .collect();
    writes[1].1 = &much;
    pairs[GATHER_MIN].0.shutdown(net::Shutdown::Write).unwrap();

    let mut unfinished = write_many(ring, &writes);
    unfinished.sort_by_key(|&(index, _)| index);
    let [(1, Ok(part)), (GATHER_MIN, Err(ref gone))] = unfinished[..] else {
        panic!("{unfinished:?}");
    };
    assert!(0 < part && part < much.len());
    assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    for (index, (_, client)) in pairs.iter().enumerate() {
        match index {
            1 => assert_eq!(received(client, part), much[..part]),
            GATHER_MIN => {}
            _ => assert_eq!(received(client, 9), b"all of it"),
        }
    }
}

#[test]
fn partial_write_is_reported_with_its_index() {
    if let Some(mut ring) = ring() {
        check_each_outcome(&mut ring);
        assert!(ring.0.is_some());
    }
}

#[test]
fn writes_after_a_ring_failure_are_made_without_it() {
    // The kernel refuses every request on such a ring.
    let Ok(disabled) = IoUring::builder().setup_r_disabled().build(ENTRIES as u32) else {
        return;
    };
    let mut ring = Ring(Some(disabled));
    check_each_outcome(&mut ring);
    assert!(ring.0.is_none());
    check_each_outcome(&mut ring);
}

#[test]
fn full_socket_does_not_delay_other_writes() {
    let Some(mut ring) = ring() else { return };
    let pairs = pairs(GATHER_MIN);
    let much = vec![7; 4 << 20];
    let full = &pairs[0].0;
    while write(full, &much).is_ok() {}
    let writes: Vec<(&TcpStream, &[u8])> =
        pairs.iter().map(|(ours, _)| (ours, &b"x"[..])).collect();
    let unfinished = write_many(&mut ring, &writes);
    let [(0, Err(ref error))] = unfinished[..] else {
        panic!("{unfinished:?}");
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    for (_, client) in &pairs[1..] {
        assert_eq!(received(client, 1), b"x");
    }
}

#[test]
fn writes_beyond_the_ring_size_are_each_made_once() {
    const SOCKETS: usize = 16;
    let Some(mut ring) = ring() else { return };
    let pairs = pairs(SOCKETS);
    let closed = pair();
    closed.0.shutdown(net::Shutdown::Write).unwrap();
    let bytes: Vec<u8> = (0..2 * ENTRIES + GATHER_MIN + 1)
        .map(|n| (n / SOCKETS) as u8)
        .collect();
    let sockets = pairs.iter().map(|(ours, _)| ours).cycle();
    let mut writes: Vec<(&TcpStream, &[u8])> = sockets.zip(bytes.chunks(1)).collect();
    let places = [0, ENTRIES, 2 * ENTRIES + GATHER_MIN];
    places
        .iter()
        .for_each(|&place| writes.insert(place, (&closed.0, b"x")));
    let mut unfinished = write_many(&mut ring, &writes);
    unfinished.sort_by_key(|&(index, _)| index);
    assert!(unfinished.iter().all(|(_, outcome)| {
        matches!(outcome, Err(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }));
    assert!(
        unfinished.iter().map(|&(index, _)| index).eq(places),
        "{unfinished:?}"
    );
    for (index, (ours, mut client)) in pairs
        .iter()
        .map(|(ours, client)| (ours, client))
        .enumerate()
    {
        ours.shutdown(net::Shutdown::Write).unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        let sent: Vec<u8> = bytes.iter().skip(index).step_by(SOCKETS).copied().collect();
        assert_eq!(received, sent, "socket {index}");
    }
}

#[test]
fn large_writes_to_slow_readers_arrive_complete_and_in_order() {
    let Some(mut ring) = ring() else { return };
    let pairs = pairs(GATHER_MIN);
    let bytes: Vec<u8> = (0..3 << 20).map(|n: u32| (n ^ (n >> 11)) as u8).collect();
    let mut sent = [0; GATHER_MIN];
    let mut got = vec![Vec::new(); GATHER_MIN];
    let mut part = vec![0; 100_003];
    while got.iter().any(|got| got.len() < bytes.len()) {
        let left = (0..GATHER_MIN).filter(|&index| sent[index] < bytes.len());
        let left: Vec<usize> = left.collect();
        // Fewer writes than this bypass the ring, so it is tested only while all sockets have bytes left.
        if left.len() == GATHER_MIN {
            let pieces = left
                .iter()
                .map(|&index| (&pairs[index].0, &bytes[sent[index]..]));
            let pieces: Vec<(&TcpStream, &[u8])> = pieces.collect();
            let mut outcomes: Vec<io::Result<usize>> =
                pieces.iter().map(|(_, piece)| Ok(piece.len())).collect();
            for (index, outcome) in write_many(&mut ring, &pieces) {
                outcomes[index] = outcome;
            }
            for (&index, outcome) in left.iter().zip(outcomes) {
                match outcome {
                    Ok(n) => sent[index] += n,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        } else {
            for index in left {
                if let Ok(n) = write(&pairs[index].0, &bytes[sent[index]..]) {
                    sent[index] += n;
                }
            }
        }
        for (index, (_, client)) in pairs.iter().enumerate() {
            if got[index].len() < sent[index] {
                let n = { client }.read(&mut part).unwrap();
                got[index].extend_from_slice(&part[..n]);
            }
        }
    }
    assert!(got.iter().all(|got| *got == bytes));
}

#[test]
fn dropped_ring_does_not_interrupt_the_thread_that_made_it() {
    for _ in 0..20 {
        let socket = net::UdpSocket::bind("127.0.0.1:0").unwrap();
        // The kernel does not restart an interrupted call that has a timeout.
        let timeout = std::time::Duration::from_millis(50);
        socket.set_read_timeout(Some(timeout)).unwrap();
        let Ok(ring) = Ring::new() else { return };
        let ended = thread::spawn(move || drop(ring));
        let error = socket.recv(&mut [0]).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::Interrupted);
        ended.join().unwrap();
    }
}
