//! The settings of an engine.

use crate::hosts::AllowedHosts;
use crate::limits::{Limits, SlowConsumer};
use crate::option_names::OptionNames;
use crate::origins::Origins;
use crate::ping::Heartbeat;
use crate::proxies::Proxies;

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
    /// TLS of the app's own listener. `None`: its connections are plain.
    #[cfg(feature = "__tls")]
    pub(crate) tls: Option<crate::tls::Tls>,
    /// The settings of compression. `None`: messages are neither compressed nor inflated.
    #[cfg(feature = "deflate")]
    pub(crate) compression: Option<crate::compression::Compression>,
}

impl Settings {
    /// Whether the app's own listener has TLS.
    #[allow(clippy::unused_self)] // Without the feature, it has none.
    pub(crate) fn has_tls(&self) -> bool {
        #[cfg(feature = "__tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "__tls"))]
        return false;
    }
}
