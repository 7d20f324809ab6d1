//! TLS of the app's own listener (features `tls` and `tls-aws-lc`): certificates, and their renewal while the app runs.
//!
//! The [guide](https://github.com/w-henderson/Humphrey/blob/master/humphrey-ws/docs/tls.md) shows how to get a
//! certificate and to renew it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

/// The version of rustls that [`Tls::from_config`] takes configurations of.
pub use rustls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ServerConfig, SignatureAlgorithm};

use crate::atomic::AtomicU64;
use crate::crypto;
use crate::report::{info, warning};
use crate::sync::lock;

/// The work of a handshake whose signature is cheap, and of one with RSA or unknown (`ShardTransport::read_cost`).
const CHEAP: u32 = 1;
const COSTLY: u32 = 4;

/// The shortest time between two checks of the files.
const WATCH_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The certificate and key, or the whole configuration, of the app's own listener
/// ([`AsyncWebsocketApp::with_tls`](crate::AsyncWebsocketApp::with_tls)).
///
/// The app speaks TLS 1.2 and 1.3 and offers the application protocol `http/1.1`. Clients can resume a session with a
/// ticket, which only they keep; the app never accepts early data. Connections that are open go on when a certificate
/// is replaced: a `Tls` is a handle, and all clones of it stand for the same one.
///
/// ```no_run
/// use humphrey_ws::AsyncWebsocketApp;
/// use humphrey_ws::tls::Tls;
///
/// let tls = Tls::from_pem_files("fullchain.pem", "privkey.pem").unwrap();
/// let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new().with_tls(tls.clone());
/// // Later, from any thread, when the files have been renewed:
/// tls.reload().unwrap();
/// # drop(app);
/// ```
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    current: Mutex<Current>,
    files: Option<Files>,
    /// When the files that were read last had been modified. It is locked while files are read and their certificate is
    /// put in place, so that no older one replaces a newer one.
    loaded: Mutex<Modified>,
    reloads: AtomicU64,
}

struct Current {
    config: Arc<ServerConfig>,
    cost: u32,
}

/// The times at which the files were modified, as far as they are known.
type Modified = [Option<SystemTime>; 2];

#[derive(Debug, Clone)]
struct Files {
    certificates: PathBuf,
    key: PathBuf,
}

/// The reason why a certificate or a configuration can't be used.
#[derive(Debug)]
pub struct TlsConfigError {
    what: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl TlsConfigError {
    fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            source: None,
        }
    }

    fn of(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            what: what.into(),
            source: Some(source.into()),
        }
    }
}

impl fmt::Display for TlsConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for TlsConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}

impl From<TlsConfigError> for io::Error {
    fn from(error: TlsConfigError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

impl Tls {
    /// Reads a certificate and its private key from PEM files (RFC 7468). `certificates` contains the server's
    /// certificate first, and then those of intermediate authorities, as certificate authorities deliver them
    /// (`fullchain.pem`). The key is in PKCS #8, PKCS #1 or SEC 1 format, without a passphrase. Both may be in one file.
    ///
    /// # Errors
    ///
    /// If a file can't be read or contains no certificate or key, or if the key is not the certificate's. The error names
    /// the file.
    pub fn from_pem_files(
        certificates: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Result<Self, TlsConfigError> {
        let files = Files {
            certificates: certificates.into(),
            key: key.into(),
        };
        let modified = files.modified();
        let current = files.read()?;
        Ok(Self::new(current, Some(files), modified))
    }

    /// Takes a configuration of the program's, for everything that PEM files alone do not express: client certificates,
    /// several certificates that are chosen by the server name (SNI), other cipher suites.
    ///
    /// The app changes it in some points: the application protocol is `http/1.1`, early data is refused, and sessions are
    /// resumed by tickets with keys of their own rather than by state in the server.
    ///
    /// # Errors
    ///
    /// If the system has no randomness for the keys of tickets.
    pub fn from_config(config: ServerConfig) -> Result<Self, TlsConfigError> {
        Ok(Self::new(Current::of(config, COSTLY)?, None, [None; 2]))
    }

    fn new(current: Current, files: Option<Files>, loaded: Modified) -> Self {
        Self(Arc::new(Shared {
            current: Mutex::new(current),
            files,
            loaded: Mutex::new(loaded),
            reloads: AtomicU64::new(0),
        }))
    }

    /// Reads the files again, and uses their certificate for all connections from now on. Open connections continue.
    /// Sessions of before can't be resumed.
    ///
    /// # Errors
    ///
    /// As [`from_pem_files`](Self::from_pem_files), and if this was created from a configuration
    /// ([`set`](Self::set) replaces that). The certificate of before stays in use then.
    pub fn reload(&self) -> Result<(), TlsConfigError> {
        self.0.reload()
    }

    /// Uses another configuration for all connections from now on, as [`from_config`](Self::from_config) does. Open
    /// connections continue. Sessions of before can't be resumed, so that a client whose authority is no longer trusted
    /// does not come back with a ticket.
    ///
    /// # Errors
    ///
    /// As [`from_config`](Self::from_config). The configuration of before stays in use then.
    pub fn set(&self, config: ServerConfig) -> Result<(), TlsConfigError> {
        self.0.replace(Current::of(config, COSTLY)?);
        Ok(())
    }

    /// Checks every `interval`, but at most ten times a second, whether the files have been modified, and then reloads them, for as long as the app or a
    /// clone of this handle exists. A certificate that can't be used is reported as a warning, and the one of before
    /// stays in use. A thread of its own does that.
    ///
    /// # Errors
    ///
    /// If this was created from a configuration, or if the thread can't be started.
    pub fn watch(self, interval: Duration) -> Result<Self, TlsConfigError> {
        let Some(files) = self.0.files.clone() else {
            return Err(TlsConfigError::new("there are no files to watch"));
        };
        let shared = Arc::downgrade(&self.0);
        std::thread::Builder::new()
            .name("humphrey_ws certificates".into())
            .spawn(move || watch(&shared, &files, interval))
            .map_err(|error| {
                TlsConfigError::of(
                    "the thread that watches certificates can't be started",
                    error,
                )
            })?;
        Ok(self)
    }

    /// Returns the configuration for a new connection, and the work of its handshake.
    pub(crate) fn current(&self) -> (Arc<ServerConfig>, u32) {
        let current = lock(&self.0.current);
        (current.config.clone(), current.cost)
    }

    /// Returns how often a certificate or a configuration was replaced.
    pub(crate) fn reloads(&self) -> u64 {
        self.0.reloads.load(Relaxed)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.0.files)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn reload(&self) -> Result<(), TlsConfigError> {
        let Some(files) = &self.files else {
            return Err(TlsConfigError::new(
                "there are no files to reload: this was created from a configuration, which `set` replaces",
            ));
        };
        let mut loaded = lock(&self.loaded);
        let modified = files.modified();
        self.replace(files.read()?);
        *loaded = modified;
        Ok(())
    }

    fn replace(&self, current: Current) {
        *lock(&self.current) = current;
        self.reloads.fetch_add(1, Relaxed);
    }
}

impl Current {
    fn of(mut config: ServerConfig, cost: u32) -> Result<Self, TlsConfigError> {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.max_early_data_size = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = crypto::ticketer().map_err(|error| {
            TlsConfigError::of("the keys of session tickets can't be made", error)
        })?;
        config.send_tls13_tickets = 1;
        Ok(Self {
            config: Arc::new(config),
            cost,
        })
    }
}

impl Files {
    fn read(&self) -> Result<Current, TlsConfigError> {
        let certificates = read_certificates(&self.certificates)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| {
            TlsConfigError::of(
                format!("{} contains no usable private key", self.key.display()),
                error,
            )
        })?;
        let provider = crypto::provider();
        let unusable = |error: rustls::Error| {
            TlsConfigError::of(
                format!(
                    "the certificate in {} can't be used with the key in {}",
                    self.certificates.display(),
                    self.key.display()
                ),
                error,
            )
        };
        let signing = provider.key_provider.load_private_key(key.clone_key());
        let cost = match signing.map_err(unusable)?.algorithm() {
            SignatureAlgorithm::RSA => COSTLY,
            _ => CHEAP,
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(unusable)?;
        Current::of(config, cost)
    }

    fn modified(&self) -> Modified {
        [&self.certificates, &self.key].map(|path| path.metadata().ok()?.modified().ok())
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let unreadable = |error| {
        TlsConfigError::of(
            format!("the certificates in {} can't be read", path.display()),
            error,
        )
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|error| unreadable(Box::new(error)))?
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(Box::new(error)))?;
    match certificates.is_empty() {
        true => Err(TlsConfigError::new(format!(
            "{} contains no certificate",
            path.display()
        ))),
        false => Ok(certificates),
    }
}

fn watch(shared: &Weak<Shared>, files: &Files, interval: Duration) {
    // Files that can't be used are reported once.
    let mut unusable = None;
    loop {
        std::thread::sleep(interval.max(WATCH_INTERVAL_MIN));
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let modified = files.modified();
        let is_known = *lock(&shared.loaded) == modified || unusable == Some(modified);
        // While a file is being replaced it may not exist.
        if is_known || modified.contains(&None) {
            continue;
        }
        match shared.reload() {
            Ok(()) => info!(
                "a new certificate was loaded from {}",
                files.certificates.display()
            ),
            Err(error) => {
                unusable = Some(modified);
                warning!("a new certificate can't be used, and the one of before stays: {error}");
            }
        }
    }
}
