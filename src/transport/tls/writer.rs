//! Writes to many connections: seals the records of several, and then writes them. The first system call evicts the
//! processor's cache, so the cryptography comes before it.

use std::io;
use std::ops::Range;

use mio::net::TcpStream;

use super::ShardSocket;
use super::session::{RECORD_BYTES, Sealed};
#[cfg(not(all(feature = "io-uring", target_os = "linux")))]
use crate::transport::OneByOne as Inner;
#[cfg(all(feature = "io-uring", target_os = "linux"))]
use crate::transport::ring::Ring as Inner;
use crate::transport::{LOOK_AHEAD, ShardTransport, Write, WriteMany};

/// The maximum number of sealed bytes that are collected before they are written.
const SEALED_BYTES_MAX: usize = 1 << 20;

/// Writes to plain connections and to those with TLS.
pub(crate) struct Writer {
    inner: Inner,
    /// `None`: the app has no TLS, so that all connections are plain.
    sealed: Option<Sealed>,
}

/// A write whose records are sealed.
struct SealedWrite<'a, G> {
    tag: G,
    transport: &'a ShardSocket,
    plain: &'a [u8],
    /// The place of the sealed records; `None` for a plain connection.
    sealed: Option<Range<usize>>,
}

impl Writer {
    pub(crate) fn new(inner: Inner, has_tls: bool) -> Self {
        Self {
            inner,
            sealed: has_tls.then(Sealed::new),
        }
    }
}

impl WriteMany<ShardSocket> for Writer {
    const GATHER_MIN: usize = <Inner as WriteMany<TcpStream>>::GATHER_MIN;
    const AT_ONCE: usize = <Inner as WriteMany<TcpStream>>::AT_ONCE;

    #[inline]
    fn write_many<'a, K: Copy, G: Copy>(
        &mut self,
        targets: &[K],
        mut write: impl FnMut(K) -> Option<Write<'a, ShardSocket, G>>,
        mut outcome: impl FnMut(G, usize, io::Result<usize>, bool),
    ) {
        let Some(sealed) = &mut self.sealed else {
            let plain = |target| {
                write(target).map(|write| Write {
                    tag: write.tag,
                    transport: write.transport.tcp(),
                    bytes: write.bytes,
                })
            };
            self.inner.write_many(targets, plain, outcome);
            return;
        };
        let mut sealed_writes = Vec::with_capacity(LOOK_AHEAD.min(targets.len()));
        sealed.clear();
        for targets in targets.chunks(LOOK_AHEAD) {
            // As in `OneByOne`, all are looked up before the first is sealed.
            let mut chunk = [const { None }; LOOK_AHEAD];
            for (entry, &target) in chunk.iter_mut().zip(targets) {
                *entry = write(target);
            }
            for write in chunk.into_iter().flatten() {
                match seal(&write, sealed) {
                    Ok(place) => sealed_writes.push(SealedWrite {
                        tag: write.tag,
                        transport: write.transport,
                        plain: write.bytes,
                        sealed: place,
                    }),
                    Err(error) => {
                        outcome(write.tag, write.bytes.len(), Err(error), false);
                    }
                }
            }
            if sealed_writes.len() + LOOK_AHEAD > Self::AT_ONCE || sealed.len() > SEALED_BYTES_MAX {
                write_sealed(&mut self.inner, &sealed_writes, sealed, &mut outcome);
                sealed_writes.clear();
                sealed.clear();
            }
        }
        write_sealed(&mut self.inner, &sealed_writes, sealed, &mut outcome);
    }
}

/// Seals the first record of a write. Returns its place, or `None` for a plain connection.
fn seal<G>(
    write: &Write<'_, ShardSocket, G>,
    sealed: &mut Sealed,
) -> io::Result<Option<Range<usize>>> {
    let ShardSocket::Tls(tls) = write.transport else {
        return Ok(None);
    };
    let mut session = tls.session.borrow_mut();
    session.begin_writing(&tls.tcp)?;
    let begin = sealed.len();
    let first = write.bytes.len().min(RECORD_BYTES);
    session.seal(&write.bytes[..first], sealed)?;
    Ok(Some(begin..sealed.len()))
}

/// Writes the records of several connections, and then the rest of their plain bytes.
fn write_sealed<G: Copy>(
    inner: &mut Inner,
    writes: &[SealedWrite<'_, G>],
    sealed: &Sealed,
    outcome: &mut impl FnMut(G, usize, io::Result<usize>, bool),
) {
    let places: Vec<usize> = (0..writes.len()).collect();
    let write = |place: usize| {
        let write = &writes[place];
        Some(Write {
            tag: place,
            transport: write.transport.tcp(),
            bytes: match &write.sealed {
                Some(range) => sealed.range(range.clone()),
                None => write.plain,
            },
        })
    };
    inner.write_many(&places, write, |place, _, result, _| {
        let SealedWrite {
            tag,
            transport,
            plain,
            sealed: place,
        } = &writes[place];
        let result = match (transport, place) {
            (ShardSocket::Tls(tls), Some(range)) => {
                let records = sealed.range(range.clone());
                let sent = tls.session.borrow_mut().sent(records, result);
                let first = plain.len().min(RECORD_BYTES);
                sent.map(|is_sent| match &plain[first..] {
                    // If this fails, the first record was still accepted, and the error shows again.
                    rest if is_sent && !rest.is_empty() => {
                        first + transport.write(rest).unwrap_or_default()
                    }
                    _ => first,
                })
            }
            _ => result,
        };
        outcome(*tag, plain.len(), result, transport.has_pending());
    });
}
