//! Starting a node of a cluster.

use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use mio::{Poll, Waker};

use super::broker_urls::BrokerUrls;
use super::counters::ClusterCounters;
use super::handle::{ClusterHandle, LinkWaker, Shared};
use super::interest::ServerStatus;
use super::link::{Connection, Endpoint, Link, WAKER};
use super::members::Members;
use super::nats::Nats;
use super::node::Node;
use super::outgoing::{Outgoing, Wake};
use super::queries::Queries;
use super::redis::{Redis, RedisSettings};
use super::servers::{ServerShared, server_key};
use super::settings::{Cluster, invalid};
#[cfg(not(feature = "__cluster-tls"))]
use super::socket::TlsServer;
#[cfg(feature = "__cluster-tls")]
use super::tls::tls_servers;
use super::url::Address;

/// A node whose settings have been checked, and which does not run yet.
pub(crate) struct PreparedCluster {
    pub(crate) handle: Arc<ClusterHandle>,
    poll: Poll,
    connections: Vec<Connection>,
    incoming_bytes_max: usize,
    now: Instant,
}

impl PreparedCluster {
    /// Checks the settings, and creates what the app's threads share with the link.
    ///
    /// # Errors
    ///
    /// If a URL can't be used (the error says why, without the password), the certificates of the trusted authorities can't
    /// be loaded, or the system refuses a poll.
    pub(crate) fn new(settings: &Cluster) -> io::Result<Self> {
        let now = Instant::now();
        let urls: BrokerUrls = settings.urls.parse().map_err(invalid)?;
        let addresses = urls.addresses();
        let mut tls = tls_servers(&addresses, settings)?.into_iter();
        let poll = Poll::new()?;
        let waker = Arc::new(LinkWaker::new(Waker::new(poll.registry(), WAKER)?));
        let identities = urls.identities();
        let share = |identity: &String| {
            let waker: Arc<dyn Wake> = waker.clone();
            Arc::new(ServerShared {
                key: server_key(identity),
                outgoing: Outgoing::new(
                    settings.outgoing_bytes_max,
                    settings.outage_wait_max,
                    now,
                    waker,
                ),
                status: ServerStatus::default(),
                message_bytes_max: AtomicUsize::new(usize::MAX),
            })
        };
        let servers: Vec<_> = identities.iter().map(share).collect();
        if has_duplicates(servers.iter().map(|server| server.key)) {
            return Err(invalid("two URLs of the cluster name the same server"));
        }
        let mut endpoint = |address: &Address, greets| Endpoint {
            address: address.clone(),
            tls: tls.next().flatten(),
            greets,
        };
        let bytes_max = settings.message_bytes_max;
        let connections = match &urls {
            BrokerUrls::Redis(urls) => urls
                .iter()
                .map(|url| {
                    let endpoints = [endpoint(&url.server, false)];
                    let redis = Redis::new(RedisSettings::new(url.clone(), bytes_max));
                    Connection::new(endpoints.into(), Box::new(redis), now)
                })
                .collect(),
            BrokerUrls::Sentinel(url) => {
                let sentinel = &url.sentinels[0];
                let settings = RedisSettings::new(url.of_primary(sentinel.clone()), bytes_max);
                let redis = Box::new(Redis::new(settings));
                let endpoints = [endpoint(sentinel, false)];
                vec![Connection::new(endpoints.into(), redis, now).of_primary(url.clone())]
            }
            BrokerUrls::Nats(url) => {
                let servers = url.servers.iter();
                let endpoints = servers.map(|server| endpoint(server, true)).collect();
                let nats = Nats::new(url.clone(), bytes_max);
                vec![Connection::new(endpoints, Box::new(nats), now)]
            }
        };
        let shared = Shared {
            servers,
            interest: Mutex::default(),
            counters: Arc::new(ClusterCounters::default()),
            queries: Arc::new(Queries::default()),
            waker,
            stop_by: Mutex::default(),
        };
        let handle = ClusterHandle {
            node: random_node(),
            message_bytes_max: settings.message_bytes_max,
            shared: Arc::new(shared),
            thread: Mutex::default(),
        };
        Ok(Self {
            handle: Arc::new(handle),
            poll,
            connections,
            incoming_bytes_max: settings.incoming_bytes_max,
            now,
        })
    }

    /// Starts the link.
    pub(crate) fn start(self, members: Arc<dyn Members>) -> io::Result<()> {
        let shared = self.handle.shared.clone();
        let node = Node::new(
            self.handle.node,
            shared.servers.clone(),
            self.incoming_bytes_max,
            members,
            (shared.queries.clone(), shared.counters.clone()),
            self.now,
        );
        let link = Link::new(self.poll, shared, node, self.connections);
        let thread = thread::Builder::new()
            .name("humphrey_ws cluster".into())
            // The link must not wait: not for a mailbox, nor for itself, as when a logger broadcasts its log lines.
            .spawn(move || crate::user_threads::while_nonblocking(|| link.run()))?;
        *crate::sync::lock(&self.handle.thread) = Some(thread);
        Ok(())
    }
}

/// Refuses URLs that need TLS.
#[cfg(not(feature = "__cluster-tls"))]
fn tls_servers(servers: &[(bool, &Address)], _: &Cluster) -> io::Result<Vec<Option<TlsServer>>> {
    match servers.iter().any(|(tls, _)| *tls) {
        true => Err(invalid(
            "rediss:// and tls:// need TLS, which this build lacks: enable the feature 'cluster-tls' of humphrey_ws",
        )),
        false => Ok(vec![None; servers.len()]),
    }
}

fn has_duplicates(keys: impl Iterator<Item = u64>) -> bool {
    let mut keys: Vec<_> = keys.collect();
    keys.sort_unstable();
    keys.windows(2).any(|pair| pair[0] == pair[1])
}

/// Draws the number of this node. It is not 0, the number of an app that is alone.
fn random_node() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    // A new `RandomState` has random keys, so its hash serves as a random number.
    (RandomState::new().hash_one(std::process::id()) as u32).max(1)
}
