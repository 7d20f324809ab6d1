//! A WebSocket client (RFC 6455), with the feature `client`.
//!
//! ```no_run
//! use humphrey_ws::websocket_client::Client;
//! use humphrey_ws::CloseCode;
//!
//! let mut client = Client::connect("ws://127.0.0.1:8080/news")?;
//! client.send("Grüezi")?;
//! let answer = client.receive()?;
//! println!("{:?}", answer.text());
//! client.close(CloseCode::NORMAL, "")?;
//! # Ok::<(), humphrey_ws::websocket_client::ClientError>(())
//! ```
//!
//! It is the server's own HTTP reader and state machine in the other role, in two layers:
//!
//! - [`Client`] is the blocking way: one connection, on a thread of its own, over TCP or any other [`Transport`].
//!   [`ClientBuilder`] sets headers, subprotocols, time limits and the message limit.
//! - [`Handshake`] and [`Connection`] do no I/O: bytes go in, events and bytes come out. A program with an event loop of
//!   its own uses them with its own sockets; `humphrey-broadcast listen` and `send` do.
//!
//! What holds for both: frames are masked with keys from the operating system's random source (RFC 6455 §10.3); a server
//! that masks, that chooses an extension or a subprotocol that was not offered, or whose `Sec-WebSocket-Accept` is wrong
//! is refused; messages, heads and what waits to be sent are bounded. No extension is offered, and redirects are not
//! followed. `wss://` is refused: a [`Transport`] of the program's own may speak TLS below.

mod blocking;
mod connection;
mod error;
mod handshake;
mod header;
mod random;
mod transport;
mod url;

pub use blocking::{Client, ClientBuilder};
pub use connection::{Connection, Event, ProtocolError};
pub use error::ClientError;
pub use handshake::{Accepted, Handshake, HandshakeError, HandshakeRequest, Refusal};
pub use header::{Header, InvalidHeader, Subprotocol};
pub use transport::Transport;
pub use url::{InvalidUrl, ServerUrl};
