//! Starting a node of a cluster.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use mio::{Poll, Waker};

use super::broker::Broker;
use super::broker_urls::BrokerUrls;
use super::counters::ClusterCounters;
use super::handle::{ClusterHandle, LinkWaker, Shared};
use super::interest::ServerStatus;
use super::link::{BrokerTarget, Connection, Endpoint, Link, WAKER};
use super::members::Members;
use super::nats::Nats;
use super::node::Node;
use super::outgoing::{Outgoing, Wake};
use super::queries::Queries;
use super::redis::url::RedisLogin;
use super::redis::{Redis, RedisSettings};
use super::servers::{ServerShared, server_key};
use super::settings::{Cluster, invalid};
#[cfg(not(feature = "__cluster-tls"))]
use super::socket::TlsServer;
#[cfg(feature = "__cluster-tls")]
use super::tls::TlsServers;
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
        let tls = TlsServers::new(urls.need_tls(), settings)?;
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
                status: ServerStatus::new(),
                message_bytes_max: AtomicUsize::new(usize::MAX),
            })
        };
        let servers: Vec<_> = identities.iter().map(share).collect();
        if has_duplicates(servers.iter().map(|server| server.key)) {
            return Err(invalid("two URLs of the cluster name the same server"));
        }
        let node = random_node();
        let connections = connections(urls, &tls, settings.message_bytes_max, node)?;
        let connections = connections.into_iter();
        let connections = connections
            .map(|(target, broker)| Connection::new(target, broker, now))
            .collect();
        let shared = Shared {
            servers,
            interest: Mutex::default(),
            counters: Arc::new(ClusterCounters::default()),
            queries: Arc::new(Queries::default()),
            waker,
            stop_by: Mutex::default(),
        };
        let handle = ClusterHandle {
            node,
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

/// Returns where the connections lead, and their brokers: one for each of those among which the rooms are divided.
fn connections(
    urls: BrokerUrls,
    tls: &TlsServers,
    message_bytes_max: usize,
    node: u32,
) -> io::Result<Vec<(BrokerTarget, Box<dyn Broker>)>> {
    let endpoint = |address: Address, is_encrypted: bool| {
        let tls = match is_encrypted {
            true => tls.at(&address)?,
            false => None,
        };
        io::Result::Ok(Endpoint { address, tls })
    };
    let redis = |login: RedisLogin, tls: bool| -> Box<dyn Broker> {
        Box::new(Redis::new(RedisSettings::new(
            login,
            tls,
            message_bytes_max,
        )))
    };
    Ok(match urls {
        BrokerUrls::Redis(urls) => {
            let connections = urls.into_iter().map(|url| {
                let server = endpoint(url.server, url.tls)?;
                let target = BrokerTarget::Servers([server].into());
                Ok((target, redis(url.login, url.tls)))
            });
            connections.collect::<io::Result<_>>()?
        }
        BrokerUrls::Sentinel(url) => {
            let broker = redis(url.login.clone(), false);
            vec![(BrokerTarget::Primary(url, None), broker)]
        }
        BrokerUrls::Nats(url) => {
            let servers = url.servers.iter().cloned();
            let servers = servers.map(|address| endpoint(address, url.tls));
            let mut servers: VecDeque<_> = servers.collect::<io::Result<_>>()?;
            // So that the nodes are divided among the servers.
            let first = node as usize % servers.len();
            servers.rotate_left(first);
            let broker = Nats::new(url, message_bytes_max);
            vec![(BrokerTarget::Servers(servers), Box::new(broker))]
        }
    })
}

/// Without TLS, URLs that need it are refused.
#[cfg(not(feature = "__cluster-tls"))]
struct TlsServers;

#[cfg(not(feature = "__cluster-tls"))]
impl TlsServers {
    fn new(is_needed: bool, _: &Cluster) -> io::Result<Self> {
        match is_needed {
            true => Err(invalid(
                "rediss:// and tls:// need TLS, which this build lacks: enable the feature 'cluster-tls' of humphrey_ws",
            )),
            false => Ok(Self),
        }
    }

    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "as with TLS")]
    fn at(&self, _: &Address) -> io::Result<Option<TlsServer>> {
        Ok(None)
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
