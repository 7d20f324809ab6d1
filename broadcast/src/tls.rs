//! TLS of the server, with a certificate that SIGHUP reloads.

#[cfg(feature = "tls")]
mod self_signed;

use std::io;

#[cfg(feature = "tls")]
use humphrey_ws::tls::Tls;

use crate::App;
#[cfg(feature = "tls")]
use crate::diagnostics::report;
#[cfg(feature = "tls")]
use crate::listen_address::ListenAddress;
use crate::listening::Listening;
use crate::options::Options;
#[cfg(feature = "tls")]
use crate::service_manager;
use crate::signals::Reload;

/// Has the app speak TLS if the options name a certificate. Then also returns what loads a renewed one; otherwise `None`.
#[cfg(feature = "tls")]
pub(crate) fn apply(
    app: App,
    options: &Options,
    listening: &Listening,
) -> io::Result<(App, Option<Reload>)> {
    let (certificate, key) = match (
        &options.tls_cert,
        &options.tls_key,
        &options.tls_self_signed,
    ) {
        (Some(certificate), Some(key), _) => (certificate.clone(), key.clone()),
        (_, _, Some(directory)) => {
            let addresses = listening.addresses.iter();
            let addresses = addresses.filter_map(ListenAddress::tcp);
            self_signed::files(
                directory,
                &addresses.map(|tcp| tcp.ip()).collect::<Vec<_>>(),
            )?
        }
        _ => return Ok((app, None)),
    };
    let tls = Tls::from_pem_files(certificate, key)?;
    let app = app.with_tls(tls.clone());
    let quiet = options.quiet;
    let load = move || service_manager::reloading(|| reload(&tls, quiet));
    Ok((app, Some(Box::new(load))))
}

/// Without the feature, no option names a certificate.
#[cfg(not(feature = "tls"))]
pub(crate) fn apply(app: App, _: &Options, _: &Listening) -> io::Result<(App, Option<Reload>)> {
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
