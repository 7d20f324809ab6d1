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
    /// Sets which web pages may connect. By default all may, as in 0.5.1; then it is logged, once, when a page of
    /// another origin does.
    ///
    /// Checked for every connection, also for those that a Humphrey app hands over, and for event streams. Pages that may
    /// not connect are answered with 403; so are requests that browsers say come from pages of other sites
    /// ([`Origins::allows_request`]). Mounted routes are not concerned, but with
    /// [`with_guarded_routes`](Self::with_guarded_routes); see also [`with_cors`](Self::with_cors). Starting fails with an
    /// error if a list has an entry that is no origin.
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

    /// Sets which host names the app answers to. By default all: an app that is to be reached by its visitors only, on
    /// their own machine or network, should name them, which keeps DNS rebinding out ([`AllowedHosts`]).
    ///
    /// Checked for every request, however it comes: handshakes, event streams and mounted routes, also of a Humphrey or an
    /// axum app that hands its WebSockets over (whose own routes are theirs to check). Others are answered with 403. Starting
    /// fails with an error if an entry is no host name.
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

    /// Has mounted routes answer only what [`with_allowed_origins`](Self::with_allowed_origins) allows to connect: requests
    /// of other sites' pages are answered with 403, whether they carry `Origin` or are embedded without it. By default
    /// routes answer all pages.
    ///
    /// Links of other sites may lead to these paths, which should show a page and do nothing else.
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

    /// Sets what refusals call the options that would allow a client: those of the program, instead of the methods here.
    pub fn with_option_names(mut self, names: OptionNames) -> Self {
        self.option_names = names;
        self
    }

    /// Compresses messages with clients that ask for it (permessage-deflate, RFC 7692). By default messages are sent as they
    /// are, and compressed ones are not accepted. [`Compression`](crate::Compression) says which messages are packed, and how.
    #[cfg(feature = "deflate")]
    pub fn with_compression(mut self, compression: crate::compression::Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// Names the proxies in front of the app, which are believed when they say for whom they connect. By default
    /// nobody is.
    ///
    /// What they say is then the client's address: for [`AsyncStream::client_ip`](crate::AsyncStream::client_ip), for
    /// the limits per address ([`Limits::peer_connections_max`](crate::Limits::peer_connections_max)), and as the `origin_addr` of requests to mounted
    /// routes. Starting fails with an error if an entry is no network.
    pub fn with_trusted_proxies(mut self, proxies: TrustedProxies) -> Self {
        self.proxies = Some(proxies);
        self
    }
}
