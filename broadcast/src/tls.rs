//! TLS of the server, with a certificate that SIGHUP reloads.

#[cfg(feature = "tls")]
mod self_signed;

use std::io;

#[cfg(feature = "tls")]
use humphrey_ws::tls::Tls;

use crate::App;
#[cfg(feature = "tls")]
use crate::diagnostics::report;
use crate::options::Options;
use crate::signals::Reload;

/// Has the app speak TLS if the options name a certificate. Then also returns what loads a renewed one; otherwise `None`.
#[cfg(feature = "tls")]
pub(crate) fn apply(app: App, options: &Options) -> io::Result<(App, Option<Reload>)> {
    let (certificate, key) = match (
        &options.tls_cert,
        &options.tls_key,
        &options.tls_self_signed,
    ) {
        (Some(certificate), Some(key), _) => (certificate.clone(), key.clone()),
        (_, _, Some(directory)) => self_signed::files(directory, options.listen_address().ip())?,
        _ => return Ok((app, None)),
    };
    let tls = Tls::from_pem_files(certificate, key)?;
    let app = app.with_tls(tls.clone());
    let quiet = options.quiet;
    Ok((app, Some(Box::new(move || reload(&tls, quiet)))))
}

/// Without the feature, no option names a certificate.
#[cfg(not(feature = "tls"))]
pub(crate) fn apply(app: App, _: &Options) -> io::Result<(App, Option<Reload>)> {
    Ok((app, None))
}

/// Loads a renewed certificate. If that fails, the previous one stays in use.
#[cfg(feature = "tls")]
fn reload(tls: &Tls, quiet: bool) {
    match tls.reload() {
        Ok(()) if quiet => {}
        Ok(()) => report!("the certificate was reloaded; new connections get it"),
        Err(error) => report!("{error}; the previous certificate stays in use"),
    }
}
