//! Failures of TLS.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, InvalidMessage};

/// The maximum number of names of a certificate that an error lists: some certificates have a hundred.
const NAMES_SHOWN_MAX: usize = 8;

/// The maximum length of each of them in characters, which is that of a DNS name (RFC 1035 §2.3.4).
const NAME_LENGTH_MAX: usize = 253;

/// The reason why a TLS connection could not be opened (RFC 8446, RFC 5246).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsError {
    /// The server's certificate, or that of an authority in its chain, has expired.
    Expired {
        /// How long ago, if known.
        ago: Option<Duration>,
    },
    /// The server's certificate is not valid yet.
    NotYetValid {
        /// When it will be valid, if known.
        in_future: Option<Duration>,
    },
    /// No trusted authority has issued the server's certificate.
    UnknownIssuer,
    /// The server's certificate does not contain the host of the URL.
    WrongName {
        /// The host of the URL, if known.
        expected: Option<String>,
        /// The names and addresses in the certificate, if known.
        presented: Vec<String>,
    },
    /// The server's certificate is invalid or unsuitable for another reason. The text is the reason.
    InvalidCertificate(String),
    /// The server answered with something other than TLS.
    NotTls,
    /// The server and the client have no version, cipher suite or the like in common. The text is the reason.
    Incompatible(String),
    /// The server refused the connection with an alert (RFC 8446 §6.2). The text is its name.
    Refused(String),
    /// The server closed the connection during the TLS handshake.
    HungUp,
    /// The server violated TLS. The text is the reason.
    Protocol(String),
    /// The certificates of the trusted authorities can't be loaded. The text is the reason.
    Roots(String),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { ago } => {
                f.write_str("the server's certificate has expired")?;
                if let Some(ago) = ago {
                    write!(f, " {} ago", InWords(*ago))?;
                }
                f.write_str(": the server needs a new one, unless this machine's clock is wrong")
            }
            Self::NotYetValid { in_future } => {
                f.write_str("the server's certificate is not valid yet")?;
                if let Some(in_future) = in_future {
                    write!(f, ", but in {}", InWords(*in_future))?;
                }
                f.write_str(": check this machine's clock, and the certificate")
            }
            Self::UnknownIssuer => f.write_str(
                "the server's certificate was not issued by a trusted authority: if the server has an authority of its own, \
                 pass its certificate to with_root_certificates",
            ),
            Self::WrongName {
                expected,
                presented,
            } => {
                f.write_str("the server's certificate is not valid for ")?;
                match expected {
                    Some(expected) => f.write_str(expected)?,
                    None => f.write_str("the host in the URL")?,
                }
                match &presented[..] {
                    [] => Ok(()),
                    names => write!(f, ", but for {}", Listed(names)),
                }
            }
            Self::InvalidCertificate(why) => {
                write!(f, "the server's certificate is not acceptable: {why}")
            }
            Self::NotTls => f.write_str(
                "the server does not speak TLS on this port: use ws:// instead of wss://, or its port for TLS",
            ),
            Self::Incompatible(why) => {
                write!(f, "the server's TLS is incompatible with this client's: {why}")
            }
            Self::Refused(alert) => {
                write!(f, "the server refused the TLS connection with the alert {alert}")
            }
            Self::HungUp => f.write_str(
                "the server closed the connection during the TLS handshake; it may not speak TLS on this port",
            ),
            Self::Protocol(why) => write!(f, "the server violated TLS: {why}"),
            Self::Roots(why) => write!(
                f,
                "the certificates of the trusted authorities can't be loaded: {why}"
            ),
        }
    }
}

impl Error for TlsError {}

/// Describes an error of rustls during a handshake.
impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        use rustls::Error as Tls;
        match error {
            Tls::InvalidCertificate(error) => Self::of_certificate(error),
            Tls::NoCertificatesPresented => {
                Self::InvalidCertificate("the server has sent none".to_owned())
            }
            // The first bytes of a plain HTTP response are no TLS record.
            Tls::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NotTls,
            Tls::PeerIncompatible(why) => Self::Incompatible(format!("{why:?}")),
            Tls::AlertReceived(alert) => Self::of_alert(alert),
            error => Self::Protocol(error.to_string()),
        }
    }
}

impl TlsError {
    fn of_certificate(error: CertificateError) -> Self {
        let between = |later: UnixTime, earlier: UnixTime| {
            let seconds = later.as_secs().saturating_sub(earlier.as_secs());
            Some(Duration::from_secs(seconds))
        };
        match error {
            CertificateError::Expired => Self::Expired { ago: None },
            CertificateError::ExpiredContext { time, not_after } => Self::Expired {
                ago: between(time, not_after),
            },
            CertificateError::NotValidYet => Self::NotYetValid { in_future: None },
            CertificateError::NotValidYetContext { time, not_before } => Self::NotYetValid {
                in_future: between(not_before, time),
            },
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::NotValidForName => Self::WrongName {
                expected: None,
                presented: Vec::new(),
            },
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => Self::WrongName {
                expected: Some(expected.to_str().into_owned()),
                presented: presented.iter().filter_map(|name| bare(name)).collect(),
            },
            error => {
                let why = error.to_string();
                // `openssl req -x509` makes such certificates by default.
                if why.contains("CaUsedAsEndEntity") {
                    let why = "it is the certificate of an authority (CA:TRUE), and must not be used by a server: issue \
                               another one with it, or make a self-signed one with CA:FALSE";
                    return Self::InvalidCertificate(why.to_owned());
                }
                Self::InvalidCertificate(why)
            }
        }
    }

    fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::ProtocolVersion => {
                Self::Incompatible("the server supports neither TLS 1.2 nor TLS 1.3".to_owned())
            }
            AlertDescription::CertificateRequired => Self::Refused(
                "CertificateRequired: it accepts only clients with a certificate".to_owned(),
            ),
            alert => Self::Refused(format!("{alert:?}")),
        }
    }

    /// Describes an error of the socket during a TLS handshake. Returns the error itself if it does not mean that the server
    /// has closed the connection.
    pub(crate) fn of_socket(error: io::Error) -> Result<Self, io::Error> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => Ok(Self::HungUp),
            _ => Err(error),
        }
    }
}

/// Extracts the name from rustls's description, `DnsName("a")` or `IpAddress(1.2.3.4)`. Returns `None` for kinds of names that
/// are never compared with the host of a URL.
fn bare(name: &str) -> Option<String> {
    let dns = name
        .strip_prefix("DnsName(\"")
        .and_then(|name| name.strip_suffix("\")"));
    let address = name
        .strip_prefix("IpAddress(")
        .and_then(|name| name.strip_suffix(')'));
    let name = dns.or(address)?;
    // The text comes from an unverified certificate, and is shown on terminals.
    let clean = name
        .chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '\u{fffd}' });
    Some(clean.take(NAME_LENGTH_MAX).collect())
}

/// A duration, rounded down to one unit.
struct InWords(Duration);

impl fmt::Display for InWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (n, unit) = match seconds {
            0..=59 => (seconds, "second"),
            60..=3_599 => (seconds / 60, "minute"),
            3_600..=86_399 => (seconds / 3_600, "hour"),
            _ => (seconds / 86_400, "day"),
        };
        write!(f, "{n} {unit}{}", if n == 1 { "" } else { "s" })
    }
}

/// Names, separated by commas, and how many more there are.
struct Listed<'a>(&'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, name) in self.0.iter().take(NAMES_SHOWN_MAX).enumerate() {
            if n > 0 {
                f.write_str(", ")?;
            }
            f.write_str(name)?;
        }
        match self.0.len().saturating_sub(NAMES_SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
