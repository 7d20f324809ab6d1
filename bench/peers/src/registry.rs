//! Shared by all peers on tokio: the jobs, and the usual design of one task per connection and a broadcast channel.

use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::sync::broadcast;

/// The path whose connection is the publisher.
const PUBLISH: &str = "/publish";
/// The mark of messages whose handler blocks, and its offset.
const BLOCK: &[u8] = b"sleep-50";
const BLOCK_AT: usize = 16;
const BLOCK_TIME: Duration = Duration::from_millis(50);
/// Capacity of the broadcast channel: more messages than are ever in flight.
const BEHIND: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Job {
    Echo,
    FanOut,
    Blocked,
}

impl Job {
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "echo" => Some(Self::Echo),
            "fanout" => Some(Self::FanOut),
            "blocked" => Some(Self::Blocked),
            _ => None,
        }
    }
}

/// Runs before an echo: blocks as a handler might that calls a database.
pub fn handle(job: Job, payload: &[u8]) {
    if job == Job::Blocked && payload.get(BLOCK_AT..BLOCK_AT + BLOCK.len()) == Some(BLOCK) {
        thread::sleep(BLOCK_TIME);
    }
}

#[derive(Clone)]
pub struct Registry {
    pub job: Job,
    pub everyone: broadcast::Sender<Bytes>,
}

impl Registry {
    pub fn new(job: Job) -> Self {
        let (everyone, _) = broadcast::channel(BEHIND);
        Self { job, everyone }
    }

    pub fn is_publisher(&self, path: &str) -> bool {
        path == PUBLISH
    }

    /// Subscribes a client. Call it before the handshake is answered: connected clients must receive everything published
    /// from then on.
    pub fn subscriber(&self) -> Subscriber {
        Subscriber {
            receiver: (self.job == Job::FanOut).then(|| self.everyone.subscribe()),
            registry: self.clone(),
        }
    }
}

/// A client whose handshake is in progress.
pub struct Subscriber {
    registry: Registry,
    receiver: Option<broadcast::Receiver<Bytes>>,
}

impl Subscriber {
    /// Serves the connection until it ends.
    pub async fn serve<S, M, E>(self, mut socket: S, path: String)
    where
        S: Stream<Item = Result<M, E>> + Sink<M, Error = E> + Unpin,
        M: Payload,
    {
        let Self { registry, receiver } = self;
        let Some(mut receiver) = receiver else {
            while let Some(Ok(message)) = socket.next().await {
                let Some(payload) = message.data() else {
                    continue;
                };
                handle(registry.job, payload);
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            return;
        };
        let publishes = registry.is_publisher(&path);
        loop {
            tokio::select! {
                received = socket.next() => match received {
                    Some(Ok(message)) => if publishes && message.data().is_some() {
                        // No subscribers is not an error.
                        let _ = registry.everyone.send(message.into_bytes());
                    },
                    _ => return,
                },
                message = receiver.recv() => match message {
                    Ok(message) => if socket.send(M::binary(message)).await.is_err() {
                        return;
                    },
                    // Messages were missed, which the load client must notice.
                    Err(_) => return,
                },
            }
        }
    }
}

/// The message type of a library.
pub trait Payload {
    fn binary(bytes: Bytes) -> Self;
    /// The payload; `None` for control frames.
    fn data(&self) -> Option<&[u8]>;
    fn into_bytes(self) -> Bytes;
}
