//! The settings of an engine.

use std::net::IpAddr;

use crate::hosts::AllowedHosts;
use crate::limits::{Limits, SlowConsumer};
use crate::option_names::OptionNames;
use crate::origins::Origins;
use crate::ping::Heartbeat;
use crate::proxies::{Networks, Proxies};

/// The settings of an engine.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    pub(crate) slow_consumer: SlowConsumer,
    pub(crate) heartbeat: Option<Heartbeat>,
    pub(crate) shards: usize,
    pub(crate) handler_threads: usize,
    /// Whether shards run quick handlers on their own threads. Without effect if there is only one handler thread,
    /// which is needed for handlers that shards can't run.
    pub(crate) adaptive_handlers: bool,
    /// The allowed origins. `None`: any, with a warning when a foreign one first connects.
    pub(crate) origins: Option<Origins>,
    /// The allowed host names. `None`: any.
    pub(crate) hosts: Option<AllowedHosts>,
    /// The paths that pages of other origins may link to, if mounted routes are only for allowed origins. `None`:
    /// routes are for all.
    pub(crate) guarded: Option<Vec<String>>,
    pub(crate) option_names: OptionNames,
    pub(crate) proxies: Option<Proxies>,
    /// The proxies that begin each connection with a header of the PROXY protocol.
    pub(crate) proxy_protocol: Option<Networks>,
    /// TLS of the app's own listener. `None`: its connections are plain.
    #[cfg(feature = "__tls")]
    pub(crate) tls: Option<crate::tls::Tls>,
    /// The settings of compression. `None`: messages are neither compressed nor inflated.
    #[cfg(feature = "deflate")]
    pub(crate) compression: Option<crate::compression::Compression>,
}

impl Settings {
    /// Whether connections from this address begin with a header of the PROXY protocol.
    pub(crate) fn expects_proxy_header(&self, peer: IpAddr) -> bool {
        let networks = self.proxy_protocol.as_ref();
        networks.is_some_and(|networks| networks.contain(peer))
    }

    /// Whether the app's own listeners of TCP have TLS.
    #[allow(clippy::unused_self)] // Without the feature, they have none.
    pub(crate) fn has_tls(&self) -> bool {
        #[cfg(feature = "__tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "__tls"))]
        return false;
    }
}
