//! Which host names the server answers to: the `Host` of a request (RFC 9110 §7.2).

use std::fmt;

use crate::authority::{host_and_port, is_address, is_same_host, without_dot};
use crate::origins::Origins;

/// The host names that an app answers to
/// ([`AsyncWebsocketApp::with_allowed_hosts`](crate::AsyncWebsocketApp::with_allowed_hosts)); others are answered with 403.
///
/// It keeps DNS rebinding out: a page makes the name of its own site resolve to the address of a server that only its
/// visitor can reach, such as one on the visitor's machine. To the browser the server then *is* that site, so that
/// [`Origins::Same`] allows its pages; but the request still has the site's name as its `Host`.
///
/// Names are compared exactly, without regard to case, to a port and to a dot at the end. A request without `Host`
/// (HTTP/1.0) comes from no browser and passes.
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
    /// Names of the machine itself, and addresses.
    loopback: bool,
}

/// An entry that is no host name.
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
    /// These names or addresses and no others. A port behind them is ignored.
    pub fn list<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Self {
        Self {
            names: names.into_iter().map(Into::into).collect(),
            loopback: false,
        }
    }

    /// What no foreign site can have as its name: `localhost` and the names below it, which browsers take for the machine
    /// itself (RFC 6761 §6.3), and IP addresses of any kind, since rebinding needs a name.
    pub fn loopback() -> Self {
        Self {
            names: Vec::new(),
            loopback: true,
        }
    }

    /// Allows these names, too.
    pub fn with_names<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.names.extend(names.into_iter().map(Into::into));
        self
    }

    /// Allows the hosts of the origins that are listed there, too. [`Origins::Any`] and [`Origins::Same`] list none.
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

    /// Whether a request with this `Host` header is answered.
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

    /// Finds what can't be meant in the list.
    pub(crate) fn check(&self) -> Result<(), InvalidHost> {
        match self.names.iter().find(|name| listable(name).is_none()) {
            Some(name) => Err(InvalidHost(name.clone())),
            None => Ok(()),
        }
    }
}

/// The name of a host as it can be listed, without its port; `None` if it is none.
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
    fn a_list_is_exact_but_for_case_port_and_final_dot() {
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
    fn an_entry_that_is_no_host_name_is_found_and_named() {
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
