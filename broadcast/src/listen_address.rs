//! The addresses of `--listen`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
#[cfg(unix)]
use std::path::PathBuf;

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListenAddress {
    Tcp(SocketAddr),
    #[cfg(unix)]
    Unix(PathBuf),
}

impl ListenAddress {
    /// Parses an address of `--listen`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        #[cfg(unix)]
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("'unix:' needs a path, such as unix:/run/broadcast.sock".into()),
                path => Ok(Self::Unix(path.into())),
            };
        }
        parse_tcp(text).map(Self::Tcp)
    }

    pub(crate) fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            #[cfg(unix)]
            Self::Unix(_) => None,
        }
    }

    /// Whether only this machine can connect.
    pub(crate) fn is_local(&self) -> bool {
        self.tcp()
            .is_none_or(|address| address.ip().to_canonical().is_loopback())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            #[cfg(unix)]
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Parses a TCP address to listen on: `IP:PORT`, `HOST:PORT`, `PORT` for this machine only, or `:PORT` for all addresses.
pub(crate) fn parse_tcp(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    if let Some(Ok(port)) = text.strip_prefix(':').map(str::parse::<u16>) {
        return Ok((Ipv4Addr::UNSPECIFIED, port).into());
    }
    text.to_socket_addrs()
        .map_err(|error| format!("use IP:PORT or HOST:PORT, such as 127.0.0.1:8080 ({error})"))?
        .next()
        .ok_or_else(|| "the host name has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_may_be_a_port_alone_or_a_path() {
        let parse = |text| ListenAddress::parse(text).map(|address| address.to_string());
        assert_eq!(parse("80").unwrap(), "127.0.0.1:80");
        assert_eq!(parse(":80").unwrap(), "0.0.0.0:80");
        assert_eq!(parse("[::1]:80").unwrap(), "[::1]:80");
        assert!(parse("99999").is_err() && parse("nonsense").is_err());
        #[cfg(unix)]
        {
            assert_eq!(parse("unix:/run/a,b").unwrap(), "unix:/run/a,b");
            assert_eq!(parse("unix:x.sock").unwrap(), "unix:x.sock");
            assert!(parse("unix:").is_err());
        }
    }

    #[test]
    fn address_is_local_if_no_other_machine_reaches_it() {
        let is_local = |text| ListenAddress::parse(text).unwrap().is_local();
        assert!(
            is_local("127.0.0.1:80") && is_local("[::1]:80") && is_local("[::ffff:127.0.0.1]:80")
        );
        assert!(!is_local(":80") && !is_local("192.0.2.1:80"));
        #[cfg(unix)]
        assert!(is_local("unix:/x"));
    }
}
