//! How an engine is set up.

use crate::hosts::AllowedHosts;
use crate::limits::{Limits, SlowConsumer};
use crate::option_names::OptionNames;
use crate::origins::Origins;
use crate::ping::Heartbeat;
use crate::proxies::Proxies;

/// How an engine is set up.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    pub(crate) slow_consumer: SlowConsumer,
    pub(crate) heartbeat: Option<Heartbeat>,
    pub(crate) shards: usize,
    pub(crate) handler_threads: usize,
    /// Quick handlers run on the shards' own threads. Of no use with one handler thread: that is for what shards can't run.
    pub(crate) adaptive_handlers: bool,
    /// None: any, which is said when it first matters.
    pub(crate) origins: Option<Origins>,
    /// None: any.
    pub(crate) hosts: Option<AllowedHosts>,
    /// Mounted routes are for the pages of allowed origins only, but for links to these paths. None: for all.
    pub(crate) guarded: Option<Vec<String>>,
    pub(crate) option_names: OptionNames,
    pub(crate) proxies: Option<Proxies>,
    /// None: messages are neither packed nor inflated.
    #[cfg(feature = "deflate")]
    pub(crate) compression: Option<crate::compression::Compression>,
}
