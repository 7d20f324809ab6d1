//! TLS: the outcomes of handshakes, and what they tell about a request.

#[cfg(feature = "__tls")]
use std::io;

use crate::engine::reactor::ConnCx;
#[cfg(feature = "__tls")]
use crate::engine::reactor::ShardCx;
use crate::request::RequestHead;
use crate::transport::ShardTransport;
#[cfg(feature = "__tls")]
use crate::transport::{Handshake, TlsFailure};

impl<T: ShardTransport> ConnCx<'_, T> {
    /// Whether the connection has TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.socket.transport.as_ref().is_some_and(T::is_tls)
    }

    /// Adds the client's certificates to a request, if its connection has TLS.
    pub(super) fn over_tls(&self, request: RequestHead) -> RequestHead {
        #[cfg(feature = "__tls")]
        if let Some(transport) = &self.socket.transport
            && let Some(certificates) = transport.client_certificates()
        {
            return request.over_tls(certificates);
        }
        request
    }
}

#[cfg(feature = "__tls")]
impl<T: ShardTransport> ShardCx<T> {
    /// Counts the outcome of a read: the end of a handshake, or of a connection with TLS.
    #[cold]
    pub(super) fn count_tls(
        &self,
        was_handshake: bool,
        handshake: Handshake,
        result: &io::Result<usize>,
    ) {
        use io::ErrorKind::{Interrupted, InvalidData, UnexpectedEof, WouldBlock};

        let counters = self.counters();
        let has_ended = match result {
            Ok(_) => false,
            Err(error) => !matches!(error.kind(), WouldBlock | Interrupted),
        };
        // The failure itself. While the connection lingers after it, reads can fail in other ways.
        let has_failed = match result {
            Ok(_) => false,
            Err(error) => matches!(error.kind(), InvalidData | UnexpectedEof),
        };
        match handshake {
            Handshake::Complete { resumed } if was_handshake => {
                counters.tls_handshakes.add_alone(1);
                counters.tls_resumed.add_alone(resumed.into());
            }
            // A reset comes without an announcement, too.
            Handshake::Running if has_ended => counters.tls_aborted.add_alone(1),
            Handshake::Complete { .. } if has_ended => counters.tls_truncated.add_alone(1),
            Handshake::Failed(failure) if has_failed => {
                let counter = match failure {
                    TlsFailure::Aborted => &counters.tls_aborted,
                    TlsFailure::PlainHttp => &counters.tls_plain_http,
                    TlsFailure::Incompatible => &counters.tls_incompatible,
                    TlsFailure::ClientCertificate => &counters.tls_client_certificates,
                    TlsFailure::Untrusted => &counters.tls_untrusted,
                    TlsFailure::Alert => &counters.tls_alerts,
                    TlsFailure::Malformed => &counters.tls_malformed,
                };
                counter.add_alone(1);
            }
            _ => {}
        }
    }
}
