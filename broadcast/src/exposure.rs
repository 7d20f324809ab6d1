//! The warning at the start of a server whose messages others can read.

use std::net::SocketAddr;

/// How the server is protected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exposure {
    pub(crate) address: SocketAddr,
    /// The server speaks TLS, or a proxy is named, which may.
    pub(crate) is_encrypted: bool,
    /// Reading needs a token.
    pub(crate) needs_token: bool,
}

/// The option that has the server speak TLS.
const TLS_ADVICE: &str = match cfg!(feature = "tls") {
    true => "--tls-cert",
    false => "--trusted-proxy for a proxy with TLS",
};

impl Exposure {
    /// What others can read, and which options change that. `None` if only this machine reaches the server, or nobody
    /// without the token can read anything.
    pub(crate) fn warning(&self) -> Option<String> {
        let address = self.address;
        if address.ip().to_canonical().is_loopback() {
            return None;
        }
        match (self.needs_token, self.is_encrypted) {
            (true, true) => None,
            (true, false) => Some(format!(
                "warning: the token and every line travel unencrypted to and from {address}: see {TLS_ADVICE}"
            )),
            (false, true) => Some(format!(
                "warning: every client that can reach {address} can read every line: see --read-token-file"
            )),
            (false, false) => Some(format!(
                "warning: every client that can reach {address} can read every line, unencrypted: see --read-token-file and {TLS_ADVICE}"
            )),
        }
    }
}

/// The warning if the token of administrators travels unencrypted between machines.
pub(crate) fn admin_warning(address: SocketAddr, is_encrypted: bool) -> Option<String> {
    let is_local = address.ip().to_canonical().is_loopback();
    (!is_local && !is_encrypted).then(|| {
        format!(
            "warning: the token of --admin-token-file travels unencrypted to {address}: use a loopback address for --metrics, or \
             {TLS_ADVICE} without --metrics"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_token_in_the_open_is_warned_about() {
        let of =
            |address: &str, is_encrypted| admin_warning(address.parse().unwrap(), is_encrypted);
        assert_eq!(of("127.0.0.1:80", false), None);
        assert_eq!(of("[::1]:80", false), None);
        assert_eq!(of("0.0.0.0:80", true), None);
        let warning = of("192.0.2.1:80", false).unwrap();
        assert!(warning.contains("--admin-token-file") && warning.contains("192.0.2.1:80"));
    }

    #[test]
    fn warning_names_what_is_missing() {
        let of = |address: &str, is_encrypted, needs_token| {
            let address = address.parse().unwrap();
            let exposure = Exposure {
                address,
                is_encrypted,
                needs_token,
            };
            exposure.warning()
        };
        for address in ["127.0.0.1:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            assert_eq!(of(address, false, false), None);
        }
        for address in ["0.0.0.0:80", "[::]:80", "192.0.2.1:80"] {
            assert_eq!(of(address, true, true), None);
            let neither = of(address, false, false).unwrap();
            assert!(
                neither.contains(address) && neither.contains("unencrypted"),
                "{neither}"
            );
            assert!(neither.contains("--read-token-file and --t"), "{neither}");
            let no_token = of(address, true, false).unwrap();
            assert!(
                no_token.ends_with("every line: see --read-token-file"),
                "{no_token}"
            );
            let plain = of(address, false, true).unwrap();
            assert!(
                plain.contains("the token") && !plain.contains("--read-token-file"),
                "{plain}"
            );
        }
    }
}
