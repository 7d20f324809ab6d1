//! What all peers on tokio share: the jobs, and the usual design, which is a task for each connection and a broadcast
//! channel between them.

use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::sync::broadcast;

/// The path whose connection is the publisher.
const PUBLISH: &str = "/publish";
/// What the messages say whose handler blocks, and where.
const BLOCK: &[u8] = b"sleep-50";
const BLOCK_AT: usize = 16;
const BLOCK_TIME: Duration = Duration::from_millis(50);
/// Messages that a receiver may be behind: more than are ever in flight.
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

/// What an echo's handler does before it answers: it blocks, as a handler that calls a database may.
pub fn handle(job: Job, payload: &[u8]) {
    if job == Job::Blocked && payload.get(BLOCK_AT..BLOCK_AT + BLOCK.len()) == Some(BLOCK) {
        thread::sleep(BLOCK_TIME);
    }
}

#[derive(Clone)]
pub struct Hall {
    pub job: Job,
    pub everyone: broadcast::Sender<Bytes>,
}

impl Hall {
    pub fn new(job: Job) -> Self {
        let (everyone, _) = broadcast::channel(BEHIND);
        Self { job, everyone }
    }

    pub fn is_publisher(&self, path: &str) -> bool {
        path == PUBLISH
    }

    /// To be asked before the handshake is answered: who is connected must get what is published then.
    pub fn guest(&self) -> Guest {
        Guest {
            receiver: (self.job == Job::FanOut).then(|| self.everyone.subscribe()),
            hall: self.clone(),
        }
    }
}

/// Someone who is about to be connected.
pub struct Guest {
    hall: Hall,
    receiver: Option<broadcast::Receiver<Bytes>>,
}

impl Guest {
    /// Serves the connection until it ends.
    pub async fn serve<S, M, E>(self, mut socket: S, path: String)
    where
        S: Stream<Item = Result<M, E>> + Sink<M, Error = E> + Unpin,
        M: Payload,
    {
        let Self { hall, receiver } = self;
        let Some(mut receiver) = receiver else {
            while let Some(Ok(message)) = socket.next().await {
                let Some(payload) = message.data() else {
                    continue;
                };
                handle(hall.job, payload);
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            return;
        };
        let publishes = hall.is_publisher(&path);
        loop {
            tokio::select! {
                received = socket.next() => match received {
                    Some(Ok(message)) => if publishes && message.data().is_some() {
                        // Nobody there to hear it is no error.
                        let _ = hall.everyone.send(message.into_bytes());
                    },
                    _ => return,
                },
                message = receiver.recv() => match message {
                    Ok(message) => if socket.send(M::binary(message)).await.is_err() {
                        return;
                    },
                    // It has missed messages: that must be noticed.
                    Err(_) => return,
                },
            }
        }
    }
}

/// A library's message.
pub trait Payload {
    fn binary(bytes: Bytes) -> Self;
    /// None for control frames.
    fn data(&self) -> Option<&[u8]>;
    fn into_bytes(self) -> Bytes;
}
