//! The sockets that the server listens on: those of `--listen`, or those that the service manager passes on.

use std::io;

use humphrey_ws::Listener;

use crate::diagnostics::report;
use crate::listen_address::ListenAddress;
use crate::options::Options;

/// The server's sockets, bound, and their actual addresses.
pub(crate) struct Listening {
    pub(crate) listeners: Vec<Listener>,
    pub(crate) addresses: Vec<ListenAddress>,
}

impl Listening {
    /// Takes over the sockets that the service manager has passed on. If there are none, binds those of the options.
    pub(crate) fn open(options: &Options) -> io::Result<Self> {
        let mut listening = Self {
            listeners: Vec::new(),
            addresses: Vec::new(),
        };
        for listener in inherited()? {
            listening.add(listener)?;
        }
        if listening.listeners.is_empty() {
            for address in options.listen_addresses() {
                listening.add(bind(&address, options)?)?;
            }
        } else if options.names_address() && !options.quiet {
            report!("--listen has no effect: the service manager has passed the sockets on");
        }
        Ok(listening)
    }

    fn add(&mut self, listener: Listener) -> io::Result<()> {
        self.addresses.push(address_of(&listener)?);
        self.listeners.push(listener);
        Ok(())
    }

    /// Whether only this machine can connect.
    pub(crate) fn is_local(&self) -> bool {
        self.addresses.iter().all(ListenAddress::is_local)
    }
}

#[cfg_attr(not(unix), allow(unused_variables))] // They say how to make Unix sockets.
fn bind(address: &ListenAddress, options: &Options) -> io::Result<Listener> {
    match address {
        ListenAddress::Tcp(address) => Listener::tcp(address),
        #[cfg(unix)]
        ListenAddress::Unix(path) => {
            use std::fs::Permissions;
            use std::os::unix::fs::PermissionsExt;
            let listener = Listener::unix(path)?;
            if let Some(mode) = options.listen_mode {
                std::fs::set_permissions(path, Permissions::from_mode(mode))?;
            }
            Ok(listener)
        }
    }
}

fn address_of(listener: &Listener) -> io::Result<ListenAddress> {
    if let Some(address) = listener.local_addr() {
        return Ok(ListenAddress::Tcp(address));
    }
    #[cfg(unix)]
    return Ok(ListenAddress::Unix(listener.path().unwrap_or_default()));
    #[cfg(not(unix))]
    Err(io::Error::other("a listener has no address"))
}

/// The sockets that systemd has passed on (`sd_listen_fds(3)`).
#[cfg(unix)]
fn inherited() -> io::Result<Vec<Listener>> {
    let mut passed = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..passed.len() {
        let unusable = |error: io::Error| {
            let why = format!(
                "socket {index} that the service manager has passed on can't be used: it must be a listening stream socket, of \
                 TCP or Unix ({error})"
            );
            io::Error::new(io::ErrorKind::InvalidInput, why)
        };
        if let Ok(Some(socket)) = passed.take_tcp_listener(index) {
            listeners.push(Listener::from(listening(socket).map_err(unusable)?));
        } else if let Some(socket) = passed.take_unix_listener(index).map_err(unusable)? {
            listeners.push(Listener::from(listening(socket).map_err(unusable)?));
        }
    }
    Ok(listeners)
}

/// Returns a socket that listens; other sockets, such as that of an accepted connection, are an error.
#[cfg(all(unix, not(target_vendor = "apple")))]
fn listening<S: std::os::fd::AsFd>(socket: S) -> io::Result<S> {
    match rustix::net::sockopt::socket_acceptconn(&socket)? {
        true => Ok(socket),
        false => Err(io::Error::other("it does not listen")),
    }
}

/// Apple's systems do not tell.
#[cfg(target_vendor = "apple")]
#[allow(clippy::unnecessary_wraps)] // As elsewhere.
fn listening<S>(socket: S) -> io::Result<S> {
    Ok(socket)
}

#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps)] // As on Unix.
fn inherited() -> io::Result<Vec<Listener>> {
    Ok(Vec::new())
}
