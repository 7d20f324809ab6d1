//! Which host names the server answers to: the `Host` of a request (RFC 9110 §7.2).

use std::fmt;

use crate::authority::{host_and_port, is_address, is_same_host, without_dot};
use crate::origins::Origins;

/// The host names that an app answers to
/// ([`AsyncWebsocketApp::with_allowed_hosts`](crate::AsyncWebsocketApp::with_allowed_hosts)). Requests for other hosts
/// get 403.
///
/// This prevents DNS rebinding, in which an attacker's page makes its own host name resolve to a server that only the
/// visitor can reach, such as one on the visitor's machine. The browser then treats the server as the page's own
/// origin, which [`Origins::Same`] allows; but the request still carries the attacker's name in `Host`.
///
/// Names are compared exactly, ignoring case, port and a trailing dot. A request without `Host` (HTTP/1.0) is not from
/// a browser and passes.
///
/// ```
/// use humphrey_ws::AllowedHosts;
///
/// let hosts = AllowedHosts::loopback().with_names(["live.example.com"]);
/// assert!(hosts.allows(Some("localhost:8080")));
/// assert!(hosts.allows(Some("[::1]:8080")));
/// assert!(hosts.allows(Some("Live.Example.com")));
/// assert!(!hosts.allows(Some("evil.example:8080")));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHosts {
    names: Vec<String>,
    /// Allows `localhost`, names below it, and IP addresses.
    loopback: bool,
}

/// A list entry that is not a host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InvalidHost(String);

impl fmt::Display for InvalidHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a host name: it must look like example.com, 192.0.2.1 or [2001:db8::1], in ASCII as browsers send it \
             (xn--…), without a scheme or a path",
            self.0
        )
    }
}

impl std::error::Error for InvalidHost {}

impl AllowedHosts {
    /// Allows only these names or addresses. Ports are ignored.
    pub fn list<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Self {
        Self {
            names: names.into_iter().map(Into::into).collect(),
            loopback: false,
        }
    }

    /// Allows `localhost` and the names below it, which browsers resolve to the machine itself (RFC 6761 §6.3), and any
    /// IP address. No attacker can use these for DNS rebinding, which needs a host name of its own.
    pub fn loopback() -> Self {
        Self {
            names: Vec::new(),
            loopback: true,
        }
    }

    /// Also allows these names.
    pub fn with_names<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.names.extend(names.into_iter().map(Into::into));
        self
    }

    /// Also allows the hosts of the listed origins. [`Origins::Any`] and [`Origins::Same`] list none.
    ///
    /// ```
    /// use humphrey_ws::{AllowedHosts, Origins};
    ///
    /// let hosts = AllowedHosts::loopback().with_origins(&Origins::list(["https://example.com"]));
    /// assert!(hosts.allows(Some("example.com")));
    /// ```
    pub fn with_origins(self, origins: &Origins) -> Self {
        let hosts: Vec<_> = origins.listed_hosts().map(str::to_owned).collect();
        self.with_names(hosts)
    }

    /// Returns whether a request with this `Host` header is answered.
    pub fn allows(&self, host: Option<&str>) -> bool {
        let Some(host) = host else {
            return true;
        };
        let Some((host, _)) = host_and_port(host) else {
            return false;
        };
        (self.loopback && (is_address(host) || is_localhost(host)))
            || self
                .names
                .iter()
                .any(|name| host_and_port(name).is_some_and(|(name, _)| is_same_host(name, host)))
    }

    /// Returns an error for an entry that is not a host name.
    pub(crate) fn check(&self) -> Result<(), InvalidHost> {
        match self.names.iter().find(|name| listable(name).is_none()) {
            Some(name) => Err(InvalidHost(name.clone())),
            None => Ok(()),
        }
    }
}

/// Returns the host name without its port, as it can be listed; `None` if it is not a host name.
pub(crate) fn listable(name: &str) -> Option<&str> {
    let is_name = |host: &str| {
        !without_dot(host).is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    host_and_port(name)
        .map(|(host, _)| host)
        .filter(|host| is_address(host) || is_name(host))
}

fn is_localhost(host: &str) -> bool {
    let host = without_dot(host);
    let last = host.rsplit('.').next().unwrap_or_default();
    last.eq_ignore_ascii_case("localhost") && !host.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names_and_addresses_are_allowed() {
        let hosts = AllowedHosts::loopback();
        for host in [
            "localhost",
            "localhost:8080",
            "LOCALHOST:8080",
            "localhost.",
            "localhost.:80",
            "app.localhost",
            "a.b.LocalHost.:1",
            "127.0.0.1",
            "127.0.0.1:8080",
            "127.0.0.1.",
            "192.0.2.7:80",
            "[::1]",
            "[::1]:8080",
            "[0:0:0:0:0:0:0:1]:8080",
            "[fe80::1%25eth0]:80",
        ] {
            assert!(hosts.allows(Some(host)), "{host}");
        }
        assert!(hosts.allows(None));
    }

    #[test]
    fn other_names_are_refused_by_loopback() {
        let hosts = AllowedHosts::loopback();
        for host in [
            "",
            ".",
            ".localhost",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "localhostx",
            "xlocalhost",
            "127.0.0.1.evil.example",
            "1.2.3.4.nip.io",
            "127.1",
            "2130706433",
            "0x7f.0.0.1",
            "::1",
            "[::1",
            "[evil.example]",
            "localhost:port",
            "localhost:99999",
            "localhost@evil.example",
            "localhost,evil.example",
        ] {
            assert!(!hosts.allows(Some(host)), "{host}");
        }
    }

    #[test]
    fn list_ignores_case_port_and_trailing_dot_only() {
        let hosts = AllowedHosts::list(["Example.com.", "api.example.org:8443", "[2001:DB8::1]"]);
        assert!(hosts.check().is_ok());
        for host in [
            "example.com",
            "EXAMPLE.COM:8080",
            "example.com.:1",
            "api.example.org",
            "[2001:db8:0::1]:80",
        ] {
            assert!(hosts.allows(Some(host)), "{host}");
        }
        for host in [
            "www.example.com",
            "com",
            "example.com.evil.example",
            "localhost",
            "127.0.0.1",
            "[::1]",
            "",
        ] {
            assert!(!hosts.allows(Some(host)), "{host}");
        }
    }

    #[test]
    fn hosts_of_listed_origins_are_allowed() {
        let of = |origins: &Origins| AllowedHosts::list([""; 0]).with_origins(origins);
        let listed = ["https://example.com:8443", "null", "file://"];
        let hosts = of(&Origins::same_or_list(listed));
        assert!(hosts.allows(Some("example.com")));
        assert!(!hosts.allows(Some("null")) && !hosts.allows(Some("")));
        assert!(!of(&Origins::Any).allows(Some("example.com")));
    }

    #[test]
    fn invalid_host_entry_is_named_in_the_error() {
        for entry in [
            "",
            ".",
            "https://example.com",
            "example.com/",
            "*.example.com",
            "*",
            "bücher.example",
            "user@example.com",
            "[::1",
            "a b",
        ] {
            let error = AllowedHosts::loopback().with_names([entry]).check();
            let error = error.unwrap_err().to_string();
            assert!(error.contains(&format!("{entry:?}")), "{error}");
        }
    }
}
