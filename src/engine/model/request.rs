//! Requests for mounted routes, their responses, and the memory that is counted for them.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use crate::engine::model::verdict::busy;
use crate::protocol::http::{self, BodyMode, Head};
use crate::sync::lock;

/// A request for a mounted route.
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) peer: SocketAddr,
    /// The client's address, as far as it is known.
    pub(crate) client: IpAddr,
    /// Whether the client can reuse the connection.
    pub(crate) keep_alive: bool,
}

/// The response to a request.
pub(crate) struct Response {
    pub(crate) head: Vec<u8>,
    /// The body, or its first piece.
    pub(crate) body: Vec<u8>,
    /// The rest of the body, if it is sent in pieces.
    pub(crate) rest: Option<BodyReader>,
    /// Whether the connection may be reused.
    pub(crate) keep_alive: bool,
    /// Counts the response among all responses until it is dropped.
    pub(crate) charge: Option<Charge>,
}

/// The bytes that responses hold. Not an atomic of loom: models do not check it.
pub(crate) type Account = AtomicUsize;

/// Counts the bytes of a response from the end of its handler until the client has received it.
pub(crate) struct Charge {
    account: Arc<Account>,
    bytes: usize,
}

impl Charge {
    pub(crate) fn new(account: &Arc<Account>, bytes: usize) -> Self {
        account.fetch_add(bytes, Relaxed);
        Self {
            account: account.clone(),
            bytes,
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.fetch_sub(self.bytes, Relaxed);
    }
}

impl Response {
    /// Makes a response without a body.
    pub(crate) fn small(head: Vec<u8>) -> Self {
        Self {
            head,
            body: Vec::new(),
            rest: None,
            keep_alive: false,
            charge: None,
        }
    }

    /// Creates a response that consists only of a piece of the body.
    pub(crate) fn piece(body: Vec<u8>, rest: BodyReader) -> Self {
        Self {
            head: Vec::new(),
            body,
            rest: rest.has_more().then_some(rest),
            keep_alive: true,
            charge: None,
        }
    }

    /// The response after a panic of a route's handler.
    pub(crate) fn internal_error(head_only: bool) -> Self {
        Self::small(http::refusal(
            500,
            &[],
            "internal server error\n",
            BodyMode::head_only_if(head_only),
        ))
    }

    /// The response while other responses, which clients have yet to read, leave no memory for one more.
    pub(crate) fn busy(head_only: bool) -> Self {
        Self::small(busy().response(BodyMode::head_only_if(head_only)))
    }

    /// The bytes that the response holds.
    pub(crate) fn bytes(&self) -> usize {
        self.head.capacity() + self.body.capacity()
    }
}

/// The rest of a body that is too large to be held in memory. Handlers read it in pieces, each one after the client has
/// received the previous piece.
pub(crate) struct BodyReader {
    source: Box<dyn BodySource>,
    /// The position of the next piece.
    at: u64,
    /// The bytes that are not read yet.
    left: u64,
}

/// The source of a body's bytes.
pub(crate) trait BodySource: Send {
    /// Fills the buffer with the bytes from this position on. May block.
    ///
    /// # Errors
    /// Fails if the bytes can't be read, or are no longer those of the same body.
    fn read_exact_at(&mut self, buffer: &mut [u8], at: u64) -> io::Result<()>;
}

/// The length of a piece in bytes. Longer pieces would save few jobs, but take memory for each slow client.
pub(crate) const PIECE_BYTES: u64 = 64 << 10;

impl BodyReader {
    /// Creates a body of the first `bytes` bytes of `source`.
    pub(crate) fn new(source: impl BodySource + 'static, bytes: u64) -> Self {
        Self {
            source: Box::new(source),
            at: 0,
            left: bytes,
        }
    }

    pub(crate) fn has_more(&self) -> bool {
        self.left > 0
    }

    /// The bytes that are not read yet.
    pub(crate) fn bytes(&self) -> u64 {
        self.left
    }

    /// Reads the next piece.
    ///
    /// # Errors
    /// Fails if the source does.
    pub(crate) fn next_piece(&mut self) -> io::Result<Vec<u8>> {
        let bytes = self.left.min(PIECE_BYTES);
        // The cast is lossless, because the value is at most PIECE_BYTES.
        let mut piece = vec![0; bytes as usize];
        self.source.read_exact_at(&mut piece, self.at)?;
        self.at += bytes;
        self.left -= bytes;
        Ok(piece)
    }
}

impl fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyReader")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

/// The rest of a body of which a handler will read the next piece. If the connection ends first, the job finds it
/// empty.
pub(crate) struct PieceTicket(Mutex<Option<BodyReader>>);

impl PieceTicket {
    pub(crate) fn new(rest: BodyReader) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(rest))))
    }

    /// Returns whether no handler has taken it yet.
    pub(crate) fn is_queued(&self) -> bool {
        lock(&self.0).is_some()
    }

    pub(crate) fn take(&self) -> Option<BodyReader> {
        lock(&self.0).take()
    }
}

/// A request that waits for its handler. It is taken once: by the handler, or by the shard when it stops waiting.
pub(crate) struct Ticket {
    request: Mutex<Option<Box<Request>>>,
    /// The bytes that the request holds.
    pub(crate) bytes: usize,
    pub(crate) head_only: bool,
}

impl Ticket {
    pub(crate) fn new(request: Request) -> Arc<Self> {
        Arc::new(Self {
            bytes: head_bytes(&request.head) + request.body.capacity(),
            head_only: request.head.method == "HEAD",
            request: Mutex::new(Some(Box::new(request))),
        })
    }

    pub(crate) fn take(&self) -> Option<Box<Request>> {
        lock(&self.request).take()
    }
}

/// Estimates the bytes that a head holds.
pub(crate) fn head_bytes(head: &Head) -> usize {
    let line = |(name, value): &(String, String)| {
        name.len() + value.len() + 2 * (size_of_val(name) + ALLOCATION_BYTES)
    };
    let lines = head.headers.iter().map(line).sum::<usize>();
    size_of::<Head>() + head.method.len() + head.target.len() + lines
}

/// The estimated overhead of an allocation.
const ALLOCATION_BYTES: usize = 16;
