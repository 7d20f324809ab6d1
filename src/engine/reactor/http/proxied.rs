//! Connections from proxies that name their client before the request, with the PROXY protocol.

use crate::engine::reactor::ConnCx;
use crate::engine::reactor::http::Http;
use crate::protocol::proxy_header::{self, InvalidProxyHeader, ProxyHeader};
use crate::proxies::is_unix_peer;
use crate::report::limited;
use crate::transport::ShardTransport;

/// The maximum number of bytes of TLS that are received together with the header. A client sends a few hundred before it waits.
#[cfg(feature = "__tls")]
const EARLY_BYTES_MAX: usize = 16 << 10;

impl Http {
    /// Takes the header of the proxy from the received bytes. Returns whether there may be more to do.
    pub(super) fn take_proxy_header<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) -> bool {
        match proxy_header::parse(&self.buffer) {
            Ok(None) => false,
            Ok(Some(header)) => {
                self.buffer.drain(..header.bytes);
                self.on_proxy_header(cx, header)
            }
            Err(why) => {
                self.fail_proxied(cx, why);
                false
            }
        }
    }

    fn on_proxy_header<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        header: ProxyHeader,
    ) -> bool {
        let is_tcp = !is_unix_peer(self.peer.ip());
        self.expects_proxy_header = false;
        if let Some(client) = header.client {
            self.peer = client;
            self.client = client.ip();
        }
        if is_tcp && cx.shard.hub.settings.has_tls() && !self.begin_tls(cx) {
            cx.free();
            return false;
        }
        match cx.shard.hub.admit_peer(self.peer, cx.shard.now) {
            Ok(peer_slot) => cx.socket.peer_slot = peer_slot,
            Err(refused) if cx.is_tls() => {
                // Not worth a TLS handshake.
                refused.counter(cx.shard.counters()).add(1);
                cx.free();
            }
            Err(refused) => self.refuse(cx, refused, false),
        }
        !cx.is_over()
    }

    /// Has TLS begin with the bytes behind the header. Returns whether it has.
    #[cfg(feature = "__tls")]
    fn begin_tls<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) -> bool {
        let early = std::mem::take(&mut self.buffer);
        let Some(tls) = cx.shard.hub.settings.tls.as_ref() else {
            return false;
        };
        let (config, cost) = tls.current();
        if early.len() > EARLY_BYTES_MAX {
            cx.shard.counters().failed_malformed.add(1);
            return false;
        }
        let transport = cx.socket.transport.take();
        cx.socket.transport = match transport.map(|plain| plain.secured(config, cost, &early)) {
            Some(Ok(secured)) => Some(secured),
            Some(Err(error)) => {
                limited!(
                    cx.shard.hub.logged.not_accepted,
                    error,
                    "TLS can't be set up for a connection, which is closed: {error}"
                );
                None
            }
            None => None,
        };
        // What was received already is in the transport now.
        cx.socket.readable = true;
        cx.want_read();
        cx.socket.transport.is_some()
    }

    #[cfg(not(feature = "__tls"))]
    #[allow(clippy::unused_self)] // As with TLS.
    fn begin_tls<T: ShardTransport>(&mut self, _: &mut ConnCx<'_, T>) -> bool {
        false
    }

    /// Closes a connection whose header can't be read. Without it, the client is unknown, and TLS may not have begun, so
    /// there is no response.
    fn fail_proxied<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>, why: InvalidProxyHeader) {
        cx.shard.counters().failed_malformed.add(1);
        let peer = self.peer;
        limited!(
            cx.shard.hub.logged.bad_proxy_header,
            warning,
            "a connection from the proxy {peer} is closed: {why} (see with_proxy_protocol)"
        );
        cx.free();
    }
}
