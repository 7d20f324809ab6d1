//! The URLs of a cluster's brokers, of any kind.

use std::str::FromStr;

use super::nats::url::NatsUrl;
use super::redis::sentinel::SentinelUrl;
use super::redis::url::RedisUrl;
use super::url::InvalidBrokerUrl;

/// The brokers of a cluster.
pub(super) enum BrokerUrls {
    /// Servers among which the rooms are divided.
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
        if names_sentinels(urls) {
            return urls.parse().map(Self::Sentinel);
        }
        let urls = urls.split(',').map(str::trim);
        let urls = urls.map(|url| match is_nats(url) || names_sentinels(url) {
            true => Err(InvalidBrokerUrl::Mixed),
            false => url.parse(),
        });
        urls.collect::<Result<_, _>>().map(Self::Redis)
    }
}

/// Whether the broker of these URLs is NATS.
pub(super) fn is_nats(urls: &str) -> bool {
    let scheme = scheme(urls.trim());
    scheme.eq_ignore_ascii_case("nats") || scheme.eq_ignore_ascii_case("tls")
}

fn names_sentinels(urls: &str) -> bool {
    scheme(urls).eq_ignore_ascii_case("redis+sentinel")
}

fn scheme(urls: &str) -> &str {
    urls.split_once("://").map_or("", |(scheme, _)| scheme)
}

impl BrokerUrls {
    /// Whether some connection is encrypted.
    pub(super) fn need_tls(&self) -> bool {
        match self {
            Self::Redis(urls) => urls.iter().any(|url| url.tls),
            Self::Sentinel(_) => false,
            Self::Nats(url) => url.tls,
        }
    }

    /// The names that all nodes give to the brokers among which the rooms are divided.
    pub(super) fn identities(&self) -> Vec<String> {
        match self {
            Self::Redis(urls) => urls.iter().map(RedisUrl::identity).collect(),
            Self::Sentinel(url) => vec![url.name.clone()],
            // All servers of a NATS cluster have all rooms.
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
            ("redis://a,redis+sentinel://b/x", InvalidBrokerUrl::Mixed),
            ("redis://a, http://b", InvalidBrokerUrl::Scheme),
            ("", InvalidBrokerUrl::Scheme),
        ] {
            assert_eq!(urls.parse::<BrokerUrls>().err(), Some(error), "{urls}");
        }
        let identities = |urls: &str| {
            let urls: BrokerUrls = urls.parse().unwrap();
            (urls.identities(), urls.need_tls())
        };
        let both = vec!["a:6379".to_owned(), "b:1".to_owned()];
        assert_eq!(identities(" redis://a, rediss://b:1"), (both, true));
        assert_eq!(identities("tls://a,b"), (vec!["nats".to_owned()], true));
        let sentinels = identities("redis+sentinel://a,b/main");
        assert_eq!(sentinels, (vec!["main".to_owned()], false));
    }
}
