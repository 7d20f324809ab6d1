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
//! The client shares the server's HTTP parser and protocol state machine. It has two layers:
//!
//! - [`Client`] is blocking: it handles one connection over TCP or another [`Transport`], on the caller's thread.
//!   [`ClientBuilder`] sets headers, subprotocols, timeouts and the message limit.
//! - [`Handshake`] and [`Connection`] do no I/O: the program passes received bytes in, and takes events and bytes to send out.
//!   They suit programs with an event loop and sockets of their own, such as `humphrey-broadcast listen` and `send`.
//!
//! Both layers mask frames with keys from the operating system's random source (RFC 6455 §10.3). They reject a server that
//! masks its frames, selects an extension or subprotocol that was not offered, or sends a wrong `Sec-WebSocket-Accept`.
//! Messages, response heads and pending output are bounded. The client offers no extensions by default; with the feature
//! `deflate` it can offer compression (RFC 7692). It follows no redirects.
//!
//! `wss://` URLs need the feature `client-tls`, whose cryptography is ring's, or `client-tls-aws-lc`. The client then trusts the
//! authorities that the operating system trusts; `ClientBuilder::with_root_certificates` names others. For another implementation
//! of TLS, implement [`Transport`] for its stream, and call [`ClientBuilder::connect_over`] with a `ws://` URL.

mod blocking;
mod connection;
mod deadline;
mod error;
mod handshake;
mod header;
mod random;
#[cfg(feature = "__client-tls")]
mod tls;
mod transport;
mod url;
mod wire;

pub use blocking::{Client, ClientBuilder};
pub use connection::{Connection, Event, ProtocolError};
pub use error::ClientError;
pub use handshake::{Accepted, Handshake, HandshakeError, HandshakeRequest, Refusal};
pub use header::{Header, InvalidHeader, Subprotocol};
#[cfg(feature = "__client-tls")]
#[cfg_attr(
    docsrs,
    doc(cfg(any(feature = "client-tls", feature = "client-tls-aws-lc")))
)]
pub use tls::ClientTls;
pub use transport::Transport;
pub use url::{InvalidUrl, ServerUrl};

#[cfg(feature = "__client-tls")]
#[cfg_attr(
    docsrs,
    doc(cfg(any(feature = "client-tls", feature = "client-tls-aws-lc")))
)]
pub use crate::tls_client::TlsError;
