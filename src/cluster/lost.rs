//! The reasons why a node gives a connection to a broker server up.

use std::fmt;
use std::io;
use std::time::Duration;

use super::broker::BrokerError;
#[cfg(feature = "__cluster-tls")]
use crate::tls_client::TlsError;

/// Why a connection is given up.
#[derive(Debug)]
pub(super) enum Lost {
    Io(io::Error),
    #[cfg(feature = "__cluster-tls")]
    Tls(TlsError),
    Broker(BrokerError),
    /// Connecting or the first answers took longer than this.
    Timeout(Duration),
    /// The TLS handshake took longer than this.
    #[cfg(feature = "__cluster-tls")]
    HandshakeTimeout(Duration),
    /// This node's own heartbeats did not return.
    Silent,
}

impl Lost {
    /// The server has closed the connection.
    pub(super) fn closed() -> Self {
        Self::Io(io::ErrorKind::UnexpectedEof.into())
    }

    /// Whether the next attempt fails as well until a person has changed something.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Self::Broker(error) => matches!(error, BrokerError::Authentication(_)),
            #[cfg(feature = "__cluster-tls")]
            Self::Tls(error) => !matches!(error, TlsError::HungUp | TlsError::Protocol(_)),
            _ => false,
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("it has closed the connection")
            }
            Self::Io(error) => write!(f, "{error}"),
            #[cfg(feature = "__cluster-tls")]
            Self::Tls(TlsError::UnknownIssuer) => f.write_str(
                "the server's certificate was not issued by a trusted authority: if the server has an authority of its own, \
                 pass its certificate to Cluster::root_certificates",
            ),
            #[cfg(feature = "__cluster-tls")]
            Self::Tls(TlsError::NotTls) => f.write_str(
                "the server does not speak TLS on this port: use redis:// instead of rediss:// (nats:// instead of tls://), or its port for TLS",
            ),
            #[cfg(feature = "__cluster-tls")]
            Self::Tls(error) => write!(f, "{error}"),
            Self::Broker(error) => write!(f, "{error}"),
            Self::Timeout(after) => write!(f, "it did not answer within {} s", after.as_secs()),
            #[cfg(feature = "__cluster-tls")]
            Self::HandshakeTimeout(after) => write!(
                f,
                "it did not complete the TLS handshake within {} s; it may not speak TLS on this port",
                after.as_secs()
            ),
            Self::Silent => f.write_str("this node's own heartbeats did not come back within 3 s"),
        }
    }
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<BrokerError> for Lost {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

#[cfg(feature = "__cluster-tls")]
impl From<TlsError> for Lost {
    fn from(error: TlsError) -> Self {
        Self::Tls(error)
    }
}
