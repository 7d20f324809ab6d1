//! The provider of cryptography for TLS. It is always passed on explicitly, so that it depends neither on what other
//! crates have installed for the process nor on which features of rustls they use.

#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) mod testing;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

#[cfg(not(any(feature = "tls", feature = "tls-aws-lc")))]
compile_error!("the feature `__tls` is internal: enable `tls` or `tls-aws-lc`");

#[cfg(feature = "tls-aws-lc")]
use rustls::crypto::aws_lc_rs as chosen;
#[cfg(all(feature = "tls", not(feature = "tls-aws-lc")))]
use rustls::crypto::ring as chosen;

/// Returns the provider: aws-lc-rs with the feature `tls-aws-lc`, and otherwise ring.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(chosen::default_provider())
}

/// Returns the source of session tickets: each call makes new keys.
pub(crate) fn ticketer() -> Result<Arc<dyn rustls::server::ProducesTickets>, rustls::Error> {
    chosen::Ticketer::new()
}
