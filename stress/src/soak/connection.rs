//! Opens the connections of a soak's clients, plain or with TLS.

use std::net::{SocketAddrV4, TcpStream};

use super::Pair;
use crate::certificates::TlsClients;
use crate::check::{During, Outcome};
use crate::client::tls::TlsStream;
use crate::client::{self, Transport};
use crate::random::Random;

/// The addresses of the apps, and the configurations of TLS clients.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) addresses: Pair<SocketAddrV4>,
    /// Clients that resume TLS sessions.
    pub(super) resuming: TlsClients,
    /// Clients that make full TLS handshakes only.
    pub(super) full: TlsClients,
}

impl Connector {
    /// Makes a TCP connection to an app.
    pub(super) fn tcp(
        &self,
        app: usize,
        receive_buffer: Option<usize>,
        random: &mut Random,
    ) -> Outcome<TcpStream> {
        let source = client::source(random.next());
        client::tcp_with_buffer(self.addresses[app], source, receive_buffer).during("connecting")
    }

    /// Connects to an app, and completes the TLS handshake if the app has TLS. The caller makes the WebSocket handshake.
    pub(super) fn connect(
        &self,
        app: usize,
        receive_buffer: Option<usize>,
        random: &mut Random,
    ) -> Outcome<Box<dyn Transport>> {
        let socket = self.tcp(app, receive_buffer, random)?;
        if app == 0 {
            return Ok(Box::new(socket));
        }
        let configs = match random.below(2) {
            0 => &self.full,
            _ => &self.resuming,
        };
        Ok(Box::new(TlsStream::connect(socket, configs.any(random))?))
    }
}
