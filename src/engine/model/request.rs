//! Requests for mounted routes, their responses, and the memory that is counted for them.

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
    pub(crate) body: Vec<u8>,
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
            keep_alive: false,
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
