//! The URLs of a cluster's brokers: which kind they are.

use std::str::FromStr;

use super::nats::url::NatsUrl;
use super::redis::sentinel::SentinelUrl;
use super::redis::url::RedisUrl;
use super::url::{Address, InvalidBrokerUrl};

/// The brokers of a cluster.
pub(super) enum BrokerUrls {
    /// Servers of which each has its own rooms.
    Redis(Vec<RedisUrl>),
    /// One server, which another one may replace.
    Sentinel(SentinelUrl),
    Nats(NatsUrl),
}

impl FromStr for BrokerUrls {
    type Err = InvalidBrokerUrl;

    fn from_str(urls: &str) -> Result<Self, InvalidBrokerUrl> {
        let urls = urls.trim();
        if is_nats(urls) {
            return urls.parse().map(Self::Nats);
        }
        if scheme(urls).eq_ignore_ascii_case("redis+sentinel") {
            return urls.parse().map(Self::Sentinel);
        }
        let urls = urls.split(',').map(|url| match is_nats(url.trim()) {
            true => Err(InvalidBrokerUrl::Mixed),
            false => url.trim().parse(),
        });
        urls.collect::<Result<_, _>>().map(Self::Redis)
    }
}

/// Whether the broker of these URLs is NATS.
pub(super) fn is_nats(urls: &str) -> bool {
    let scheme = scheme(urls.trim());
    scheme.eq_ignore_ascii_case("nats") || scheme.eq_ignore_ascii_case("tls")
}

fn scheme(urls: &str) -> &str {
    urls.split_once("://").map_or("", |(scheme, _)| scheme)
}

impl BrokerUrls {
    /// All servers that connections lead to, each with whether they are encrypted. For a primary that Sentinels name, the first of
    /// these.
    pub(super) fn addresses(&self) -> Vec<(bool, &Address)> {
        match self {
            Self::Redis(urls) => urls.iter().map(|url| (url.tls, &url.server)).collect(),
            Self::Sentinel(url) => vec![(false, &url.sentinels[0])],
            Self::Nats(url) => {
                let servers = url.servers.iter();
                servers.map(|server| (url.tls, server)).collect()
            }
        }
    }

    /// What all nodes call the brokers that share the rooms.
    pub(super) fn identities(&self) -> Vec<String> {
        match self {
            Self::Redis(urls) => urls.iter().map(RedisUrl::identity).collect(),
            Self::Sentinel(url) => vec![url.name.clone()],
            // The servers of a NATS cluster are one.
            Self::Nats(_) => vec!["nats".into()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_different_brokers_are_not_mixed() {
        for (urls, error) in [
            ("redis://a,nats://b", InvalidBrokerUrl::Mixed),
            ("redis://a, http://b", InvalidBrokerUrl::Scheme),
            ("", InvalidBrokerUrl::Scheme),
        ] {
            assert_eq!(urls.parse::<BrokerUrls>().err(), Some(error), "{urls}");
        }
        let urls: BrokerUrls = " redis://a, rediss://b:1".parse().unwrap();
        let addresses = urls.addresses();
        let addresses: Vec<_> = addresses
            .iter()
            .map(|(tls, address)| (*tls, address.to_string()))
            .collect();
        assert_eq!(addresses, [(false, "a:6379".into()), (true, "b:1".into())]);
        let urls: BrokerUrls = "tls://a,b".parse().unwrap();
        assert_eq!((urls.addresses().len(), urls.identities().len()), (2, 1));
    }
}
