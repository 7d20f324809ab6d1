//! The app's own listener. Accepting is the engine's; finding out what to listen on is done here.

use std::io;
use std::net::{SocketAddr, TcpListener};

/// Binds a listener, and names the address if that fails.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => "something listens there already",
            io::ErrorKind::PermissionDenied => "ports below 1024 need the right to bind them",
            io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
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
    fn an_address_in_use_is_named() {
        let first = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
