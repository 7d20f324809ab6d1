//! Requests for mounted routes and their responses, and what these count for.

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
    /// Where the client is, as far as can be known.
    pub(crate) client: IpAddr,
    /// Whether the client can use the connection again.
    pub(crate) keep_alive: bool,
}

/// The answer to a request.
pub(crate) struct Response {
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<u8>,
    /// Whether the connection may be used again.
    pub(crate) keep_alive: bool,
    /// It counts among all answers until this is dropped.
    pub(crate) charge: Option<Charge>,
}

/// How much answers hold. Not of interest to models of threads.
pub(crate) type Account = AtomicUsize;

/// What answers hold, counted from when a handler has made them until their clients have them.
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
    /// An answer that is small.
    pub(crate) fn small(head: Vec<u8>) -> Self {
        Self {
            head,
            body: Vec::new(),
            keep_alive: false,
            charge: None,
        }
    }

    /// The answer where a route's handler panicked.
    pub(crate) fn internal_error(head_only: bool) -> Self {
        Self::small(http::refusal(
            500,
            &[],
            "internal server error\n",
            BodyMode::head_only_if(head_only),
        ))
    }

    /// The answer where what clients have still to read of others leaves no room for a further one.
    pub(crate) fn busy(head_only: bool) -> Self {
        Self::small(busy().response(BodyMode::head_only_if(head_only)))
    }

    /// What it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.head.capacity() + self.body.capacity()
    }
}

/// A request that waits for its handler: whoever takes it first has it, the handler or the shard, which gives up waiting.
pub(crate) struct Ticket {
    request: Mutex<Option<Box<Request>>>,
    /// What it holds.
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

/// What a head holds, about.
pub(crate) fn head_bytes(head: &Head) -> usize {
    let line = |(name, value): &(String, String)| {
        name.len() + value.len() + 2 * (size_of_val(name) + ALLOCATION_BYTES)
    };
    let lines = head.headers.iter().map(line).sum::<usize>();
    size_of::<Head>() + head.method.len() + head.target.len() + lines
}

/// What an allocation costs beside its bytes, about.
const ALLOCATION_BYTES: usize = 16;
