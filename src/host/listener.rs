//! Binds the app's own listener. The engine accepts its connections.

use std::io;
use std::net::{SocketAddr, TcpListener};

/// Binds a listener. An error names the address, and the remedy where there is one.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another process listens on it; stop that process, or choose another port"
            }
            io::ErrorKind::PermissionDenied => {
                "the process may not bind this port; choose one from 1024, or grant it CAP_NET_BIND_SERVICE"
            }
            io::ErrorKind::AddrNotAvailable => {
                "no network interface of this machine has this address; use 0.0.0.0 for all"
            }
            _ => {
                return io::Error::new(error.kind(), format!("can't listen on {address}: {error}"));
            }
        };
        io::Error::new(
            error.kind(),
            format!("can't listen on {address}: {hint} ({error})"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_in_use_is_named_in_the_error() {
        let first = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
