//! The settings of a cluster.

use std::io;
#[cfg(feature = "__cluster-tls")]
use std::path::PathBuf;
use std::time::Duration;

use super::broker_urls::is_nats;

/// The broker servers through which the nodes of a cluster reach each other, and the limits of a node's link to them.
/// Needs the feature `cluster`.
///
/// | broker | URL |
/// |---|---|
/// | Redis from version 6, Valkey | `redis://[[user]:password@]host[:port][/db][?app=prefix]` |
/// | a primary that Sentinels name | `redis+sentinel://[[user]:password@]host[:port][,host[:port]…]/name[/db][?app=prefix]` |
/// | NATS, without JetStream | `nats://[user:password@\|token@]host[:port][,host[:port]…][?app=prefix]` |
///
/// All nodes of a cluster need the same URLs. With `rediss://` or `tls://` instead, the connection uses TLS; that needs the
/// feature `cluster-tls` or `cluster-tls-aws-lc`. The server has to present a certificate that is valid now, contains the host of
/// the URL, and was issued by an authority that the operating system trusts, or one of `root_certificates`. There is no setting
/// that turns this off. Programs that share a broker need different prefixes; the default is `humphrey_ws`.
///
/// Sentinels are asked for the primary before each attempt to connect; a Sentinel that demands a password gets that of the URL.
/// Connections to Sentinels and to their primary have no TLS.
/// With several Redis URLs, separated by commas, each room belongs to one of the servers, which its name decides (rendezvous
/// hashing). The servers of a NATS URL are one NATS cluster: a node is connected to one of them, by chance at first, and turns to
/// the next one when it loses it. NATS keeps no messages: see [`keeps_histories`](Self::keeps_histories).
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, Cluster};
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_cluster(Cluster::new("redis://localhost:6379").outgoing_bytes_max(16 << 20));
/// ```
#[derive(Clone)]
pub struct Cluster {
    pub(super) urls: String,
    pub(super) outgoing_bytes_max: usize,
    pub(super) incoming_bytes_max: usize,
    pub(super) message_bytes_max: usize,
    pub(super) outage_wait_max: Duration,
    #[cfg(feature = "__cluster-tls")]
    pub(super) root_certificates: Option<PathBuf>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // URLs may contain passwords.
        f.debug_struct("Cluster")
            .field("outgoing_bytes_max", &self.outgoing_bytes_max)
            .field("incoming_bytes_max", &self.incoming_bytes_max)
            .field("message_bytes_max", &self.message_bytes_max)
            .field("outage_wait_max", &self.outage_wait_max)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Creates settings for the broker servers with these URLs, which are separated by commas. They are checked when the
    /// app starts.
    pub fn new(urls: impl Into<String>) -> Self {
        Self {
            urls: urls.into(),
            outgoing_bytes_max: 8 << 20,
            incoming_bytes_max: 8 << 20,
            message_bytes_max: 1 << 20,
            outage_wait_max: Duration::from_secs(5),
            #[cfg(feature = "__cluster-tls")]
            root_certificates: None,
        }
    }

    /// Whether the broker keeps the histories of rooms ([`with_history`](crate::AsyncWebsocketApp::with_history)). Redis and Valkey
    /// do. NATS does not: an app that asks for histories does not start with it.
    ///
    /// ```
    /// use humphrey_ws::Cluster;
    ///
    /// assert!(Cluster::new("redis://localhost").keeps_histories());
    /// assert!(!Cluster::new("nats://localhost").keeps_histories());
    /// ```
    pub fn keeps_histories(&self) -> bool {
        !is_nats(&self.urls)
    }

    /// Sets how many bytes of messages may be queued for each broker server. Default 8 MiB. While the queue is full,
    /// [`Room::broadcast`](crate::Room::broadcast) waits, and
    /// [`Room::try_broadcast`](crate::Room::try_broadcast) fails. An empty queue takes one message of any size.
    pub fn outgoing_bytes_max(mut self, bytes: usize) -> Self {
        self.outgoing_bytes_max = bytes;
        self
    }

    /// Sets how many bytes of messages of other nodes may wait for room in the mailboxes of this node's shards. Default
    /// 8 MiB. Beyond it, messages are dropped and counted
    /// ([`ClusterMetrics::dropped_full`](crate::ClusterMetrics::dropped_full)).
    pub fn incoming_bytes_max(mut self, bytes: usize) -> Self {
        self.incoming_bytes_max = bytes;
        self
    }

    /// Sets the length of the longest message that is sent to other nodes, in bytes. Default 1 MiB. Longer messages to a
    /// room or to everyone are refused ([`SendErrorReason::TooLarge`](crate::SendErrorReason::TooLarge)). Some 64 bytes
    /// of it are for the information that accompanies a message.
    pub fn message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// Sets how long an outage of a broker server may make threads wait that broadcast, in total. Default 5 seconds. From
    /// then on until its end, messages that don't fit into the queue reach the clients of this node only, and are counted
    /// ([`ClusterMetrics::dropped_broker`](crate::ClusterMetrics::dropped_broker)).
    pub fn outage_wait_max(mut self, wait: Duration) -> Self {
        self.outage_wait_max = wait;
        self
    }

    /// With `rediss://` and `tls://` URLs, trusts the authorities whose certificates are in a PEM file (RFC 7468), instead of those that
    /// the operating system trusts. The file may also contain the self-signed certificate of a server, unless that says that
    /// it is an authority (`CA:TRUE`). It is read when the app starts, which fails if it can't be read, contains no
    /// certificate or an invalid one, or if no URL begins with `rediss://` or `tls://`.
    ///
    /// ```
    /// use humphrey_ws::Cluster;
    ///
    /// let cluster = Cluster::new("rediss://redis.internal:6379").root_certificates("/etc/redis/ca.pem");
    /// ```
    #[cfg(feature = "__cluster-tls")]
    #[cfg_attr(
        docsrs,
        doc(cfg(any(feature = "cluster-tls", feature = "cluster-tls-aws-lc")))
    )]
    pub fn root_certificates(mut self, pem_file: impl Into<PathBuf>) -> Self {
        self.root_certificates = Some(pem_file.into());
        self
    }
}

impl From<&str> for Cluster {
    fn from(urls: &str) -> Self {
        Self::new(urls)
    }
}

impl From<String> for Cluster {
    fn from(urls: String) -> Self {
        Self::new(urls)
    }
}

/// The error of settings that can't be used.
pub(super) fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}
