//! Settings that decide which clients may connect.

use super::AsyncWebsocketApp;
use crate::hosts::AllowedHosts;
use crate::option_names::OptionNames;
use crate::origins::Origins;
use crate::proxies::TrustedProxies;

impl<State, StreamState> AsyncWebsocketApp<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    /// Sets which origins may connect. By default every origin may, as in 0.5.1; the first foreign origin that connects
    /// is then logged.
    ///
    /// The app checks every WebSocket handshake, including those that a Humphrey app hands over, and every event stream
    /// request. A page whose origin may not connect gets 403. So does a request without `Origin` that the browser marks
    /// as coming from another site ([`Origins::allows_request`]). Mounted routes are not checked unless they are listed
    /// in [`with_guarded_routes`](Self::with_guarded_routes); see also [`with_cors`](Self::with_cors). Starting the app
    /// fails if a list contains an entry that is not an origin.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, Origins};
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_allowed_origins(Origins::Same);
    /// ```
    pub fn with_allowed_origins(mut self, origins: Origins) -> Self {
        self.origins = Some(origins);
        self
    }

    /// Sets which host names the app answers to. By default it answers to any. An app that is reachable only from its
    /// users' own machine or network should set this: it prevents DNS rebinding ([`AllowedHosts`]).
    ///
    /// The app checks every request: handshakes, event streams and mounted routes, and the WebSockets that a Humphrey
    /// or an axum app hands over. (The other routes of that app are not checked.) A request for any other host gets
    /// 403. Starting the app fails if an entry is not a host name.
    ///
    /// ```
    /// use humphrey_ws::{AllowedHosts, AsyncWebsocketApp};
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_address("127.0.0.1:8080")
    ///     .with_allowed_hosts(AllowedHosts::loopback());
    /// ```
    pub fn with_allowed_hosts(mut self, hosts: AllowedHosts) -> Self {
        self.hosts = Some(hosts);
        self
    }

    /// Restricts mounted routes to requests from [allowed origins](Self::with_allowed_origins). Requests from other
    /// sites' pages get 403, whether they carry `Origin` or are embedded without it. By default mounted routes answer
    /// every page.
    ///
    /// The given paths remain reachable by links from other sites. Their handlers should only show a page and change
    /// nothing.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, Origins};
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_allowed_origins(Origins::Same)
    ///     .with_guarded_routes(["/", "/help"]);
    /// ```
    pub fn with_guarded_routes<T: Into<String>>(
        mut self,
        linkable_paths: impl IntoIterator<Item = T>,
    ) -> Self {
        self.guarded = Some(linkable_paths.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the option names that refusal messages mention, so that they name the program's own options instead of
    /// these methods.
    pub fn with_option_names(mut self, names: OptionNames) -> Self {
        self.option_names = names;
        self
    }

    /// Has the app's own listener speak TLS: `wss://` and `https://` (RFC 8446, RFC 5246). By default it speaks plain TCP,
    /// for a proxy in front.
    ///
    /// A request without TLS gets 400. With TLS, `Origins::Same` means the scheme `https`. Connections that a Humphrey
    /// or axum app hands over are not affected: their host ends TLS, or does not. The time for a TLS handshake is part
    /// of [`Limits::handshake_timeout`](crate::Limits::handshake_timeout).
    ///
    /// ```no_run
    /// use humphrey_ws::AsyncWebsocketApp;
    /// use humphrey_ws::tls::Tls;
    ///
    /// let tls = Tls::from_pem_files("fullchain.pem", "privkey.pem").unwrap();
    /// let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new().with_tls(tls);
    /// app.run();
    /// ```
    #[cfg(feature = "__tls")]
    pub fn with_tls(mut self, tls: crate::tls::Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Compresses messages for clients that negotiate permessage-deflate (RFC 7692). By default compression is not
    /// negotiated. [`Compression`](crate::Compression) sets which messages are compressed, and at which level.
    #[cfg(feature = "deflate")]
    pub fn with_compression(mut self, compression: crate::compression::Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// Makes the app a node of a cluster: rooms, and everyone, then have members on all nodes, which reach each other
    /// through broker servers. By default an app is alone. [`Cluster`](crate::Cluster) has the forms of URLs.
    ///
    /// A broadcast to a room without a history reaches the members on its own node at once, and those on other nodes through
    /// the broker. The broadcasts of one thread arrive at every client in the order in which they were made (with several broker
    /// servers: in the order within each room). A node receives the messages of those rooms only that it has members of.
    ///
    /// While a broker server can't be reached, every node serves its own clients. Messages for other nodes are queued, and
    /// dropped and counted once the queue is full ([`ClusterMetrics`](crate::ClusterMetrics)). Starting the app fails if a URL
    /// can't be used, but not if a broker server can't be reached yet.
    ///
    /// The broker keeps the histories of rooms ([`with_history`](Self::with_history)), and assigns the ids: clients resume on
    /// any node by the same id. A message of such a room is delivered, on its own node too, when it comes back from the broker,
    /// in the order of the ids. While the broker can't be reached, such rooms are silent, and can't be joined.
    ///
    /// ```no_run
    /// use humphrey_ws::AsyncWebsocketApp;
    ///
    /// let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
    ///     .with_cluster("redis://localhost:6379")
    ///     .with_message_handler(|stream, message, _| stream.broadcast(message));
    /// app.run();
    /// ```
    #[cfg(feature = "cluster")]
    pub fn with_cluster(mut self, cluster: impl Into<crate::cluster::Cluster>) -> Self {
        self.cluster = Some(cluster.into());
        self
    }

    /// Expects the PROXY protocol (version 1 or 2) from these proxies, such as HAProxy with `send-proxy-v2`, or a load balancer of
    /// TCP: each of their connections to the app's own listeners begins with a header that names the client. By default it is
    /// expected from nobody.
    ///
    /// A network is an address (`127.0.0.1`), has a prefix length (`10.0.0.0/8`), or is the word `unix` for Unix sockets. The
    /// named address becomes the connection's peer: [`AsyncStream::peer_addr`](crate::AsyncStream::peer_addr), and the address for limits
    /// ([`Limits::peer_connections_max`](field@crate::Limits::peer_connections_max)). With TLS, the header comes before TLS. A connection of one of these proxies
    /// without a header, or with one longer than 4 KiB, is closed; connections of others can't have one. Starting the app
    /// fails if an entry is not a network.
    ///
    /// ```
    /// use humphrey_ws::AsyncWebsocketApp;
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_proxy_protocol(["10.0.0.0/8"]);
    /// ```
    pub fn with_proxy_protocol<T: Into<String>>(
        mut self,
        proxies: impl IntoIterator<Item = T>,
    ) -> Self {
        self.proxy_protocol = Some(proxies.into_iter().map(Into::into).collect());
        self
    }

    /// Trusts the forwarding header of these proxies. By default no proxy is trusted.
    ///
    /// The forwarded address becomes the client's address: for
    /// [`AsyncStream::client_ip`](crate::AsyncStream::client_ip), for the limits per address
    /// ([`Limits::peer_connections_max`](crate::Limits::peer_connections_max)), and as the `origin_addr` of requests to
    /// mounted routes. Starting the app fails if an entry is not a network.
    pub fn with_trusted_proxies(mut self, proxies: TrustedProxies) -> Self {
        self.proxies = Some(proxies);
        self
    }
}
