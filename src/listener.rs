//! The sockets on which an app accepts connections.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
#[cfg(unix)]
use std::os::unix::net::UnixListener;
#[cfg(unix)]
use std::path::{Path, PathBuf};

/// A socket on which an app accepts connections
/// ([`AsyncWebsocketApp::with_listener`](crate::AsyncWebsocketApp::with_listener)): one of TCP, or a Unix socket.
///
/// It is bound already, by one of the functions here or by the program; a supervisor may have passed it on. So clients that
/// connect before the app runs are served when it does.
///
/// # Unix sockets
///
/// A client that connects over a Unix socket has no IP address. Its [`peer_addr`](crate::AsyncStream::peer_addr) is made up: the
/// unspecified IPv6 address, with a scope id and flow information that number the connection, so that it differs from that of
/// any other client. Limits per address do not apply to it, unless the app trusts the proxies at its Unix sockets and they name the
/// client ([`TrustedProxies`](crate::TrustedProxies)). TLS of [`with_tls`](crate::AsyncWebsocketApp::with_tls) is for TCP: a Unix socket
/// leaves no machine.
///
/// ```no_run
/// use humphrey_ws::{AsyncWebsocketApp, Listener};
///
/// # fn main() -> std::io::Result<()> {
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_listener(Listener::tcp("127.0.0.1:8080")?)
///     .with_listener(Listener::tcp("[::1]:8080")?);
/// # #[cfg(unix)]
/// let app = app.with_listener(Listener::unix("/run/chat/chat.sock")?);
/// app.try_run()
/// # }
/// ```
#[derive(Debug)]
pub struct Listener(pub(crate) ListenerSocket);

#[derive(Debug)]
pub(crate) enum ListenerSocket {
    Tcp(TcpListener),
    #[cfg(unix)]
    /// The file is removed before the socket is closed: afterwards, it could be a successor's.
    Unix(Option<SocketFile>, UnixListener),
}

impl Listener {
    /// Binds a TCP address. Port 0 takes any free port ([`local_addr`](Self::local_addr)).
    ///
    /// # Errors
    ///
    /// If the address can't be resolved or bound. The error names it, and the remedy where there is one.
    pub fn tcp(address: impl ToSocketAddrs) -> io::Result<Self> {
        let address = address.to_socket_addrs()?.next().ok_or_else(|| {
            let why = "the address to listen on resolves to no socket address";
            io::Error::new(io::ErrorKind::InvalidInput, why)
        })?;
        Ok(Self(ListenerSocket::Tcp(bind_tcp(address)?)))
    }

    /// Binds a Unix socket. A file that a process has left behind, and that no process listens on, is replaced; when the
    /// listener is dropped, its file is removed. The permissions are those of the process's umask: set them afterwards
    /// if another user is to connect, or let the directory decide.
    ///
    /// # Errors
    ///
    /// If another process listens there, or the file can't be made. The error names it.
    #[cfg(unix)]
    pub fn unix(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let socket = bind_unix(path).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "another process listens on it, or the file is no socket; stop that process, or choose another path"
                }
                io::ErrorKind::NotFound => "the directory does not exist",
                io::ErrorKind::InvalidInput => "the path is too long for a socket: at most 107 bytes",
                _ => "it can't be made",
            };
            let path = path.display();
            io::Error::new(error.kind(), format!("can't listen on {path}: {hint} ({error})"))
        })?;
        let file = SocketFile::new(path);
        Ok(Self(ListenerSocket::Unix(file, socket)))
    }

    /// Returns the TCP address, with the actual port; `None` for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            ListenerSocket::Tcp(socket) => socket.local_addr().ok(),
            #[cfg(unix)]
            ListenerSocket::Unix(..) => None,
        }
    }

    /// Returns the path of a Unix socket; `None` for TCP, and for a socket without a path.
    #[cfg(unix)]
    pub fn path(&self) -> Option<PathBuf> {
        match &self.0 {
            ListenerSocket::Tcp(_) => None,
            ListenerSocket::Unix(_, socket) => {
                Some(socket.local_addr().ok()?.as_pathname()?.to_path_buf())
            }
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Self {
        Self(ListenerSocket::Tcp(socket))
    }
}

/// Its file stays when the app ends: whoever has bound it removes it.
#[cfg(unix)]
impl From<UnixListener> for Listener {
    fn from(socket: UnixListener) -> Self {
        Self(ListenerSocket::Unix(None, socket))
    }
}

/// The most connections that wait to be accepted: more than the kernel's own limit (`net.core.somaxconn`, 4,096 by default on Linux),
/// so that an operator sets the limit. When a queue is full, the kernel drops the packets of further clients, which send them again
/// after one, three, seven and fifteen seconds. The standard library asks for a queue of 128.
#[cfg(unix)]
const BACKLOG: i32 = 65_535;

/// Lengthens a listener's queue.
#[cfg(unix)]
fn with_backlog<S: std::os::fd::AsFd>(socket: S) -> io::Result<S> {
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps)] // It can fail on Unix.
fn with_backlog<S>(socket: S) -> io::Result<S> {
    Ok(socket)
}

/// Binds a TCP listener. An error names the address, and the remedy where there is one.
pub(crate) fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).and_then(with_backlog);
    bound.map_err(|error| {
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

/// Binds a Unix socket, in place of a file that nobody listens on.
#[cfg(unix)]
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    use std::os::unix::net::UnixStream;

    match UnixListener::bind(path).and_then(with_backlog) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
            let refused = || {
                let connected = UnixStream::connect(path);
                connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            };
            if !is_socket || !refused() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path).and_then(with_backlog)
        }
        bound => bound,
    }
}

/// The file of a Unix socket, which is removed when the listener is dropped, unless a successor has put its own there.
#[cfg(unix)]
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

#[cfg(unix)]
impl SocketFile {
    fn new(path: &Path) -> Option<Self> {
        Some(Self {
            path: std::path::absolute(path).ok()?,
            identity: Self::identity(path)?,
        })
    }

    fn identity(path: &Path) -> Option<(u64, u64)> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::symlink_metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    }
}

#[cfg(unix)]
impl Drop for SocketFile {
    fn drop(&mut self) {
        if Self::identity(&self.path) == Some(self.identity) {
            // If it can't be removed, the next process to listen replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn address_in_use_is_named_in_the_error() {
        let first = Listener::tcp("127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap();
        let error = Listener::tcp(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn clients_beyond_the_usual_queue_connect_before_they_are_accepted() {
        use std::net::TcpStream;
        use std::time::Duration;

        let longest = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let clients = longest.trim().parse::<usize>().unwrap().min(300);
        let listener = Listener::tcp("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // Nobody accepts: the packets of clients that do not fit into the queue are dropped.
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
        let connected: Vec<TcpStream> = (0..clients).map(connect).collect();
        assert_eq!(connected.len(), clients);
    }

    #[cfg(unix)]
    mod unix {
        use super::*;
        use std::os::unix::net::UnixStream;

        fn path(name: &str) -> PathBuf {
            let name = format!("humphrey_ws-{}-{name}", std::process::id());
            std::env::temp_dir().join(name)
        }

        #[test]
        fn file_is_removed_with_its_listener_but_not_a_successors() {
            let path = path("removed");
            let listener = Listener::unix(&path).unwrap();
            assert_eq!(listener.path().as_ref(), Some(&path));
            drop(listener);
            assert!(!path.exists());
            let first = Listener::unix(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            let second = Listener::unix(&path).unwrap();
            drop(first);
            assert!(UnixStream::connect(&path).is_ok());
            drop(second);
        }

        #[test]
        fn abandoned_socket_is_replaced_and_anything_else_is_not() {
            let path = path("abandoned");
            // A listener that does not remove its file, as when its process was killed.
            drop(UnixListener::bind(&path).unwrap());
            let listener = Listener::unix(&path).unwrap();
            let error = Listener::unix(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            assert!(
                error.to_string().contains(path.to_str().unwrap()),
                "{error}"
            );
            drop(listener);
            std::fs::write(&path, "a file").unwrap();
            assert!(Listener::unix(&path).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
            std::fs::remove_file(&path).unwrap();
        }

        #[test]
        fn path_that_cannot_be_bound_is_named_in_the_error() {
            for (path, why) in [
                ("/nowhere/socket".to_owned(), "directory does not exist"),
                (format!("/tmp/{}", "x".repeat(200)), "too long"),
            ] {
                let error = Listener::unix(&path).unwrap_err().to_string();
                assert!(error.contains(&path) && error.contains(why), "{error}");
            }
        }
    }
}
