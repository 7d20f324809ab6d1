//! The program as one node of several, which reach each other through Redis.

#[cfg(feature = "cluster")]
use std::fs::File;
use std::io;
#[cfg(feature = "cluster")]
use std::io::Read;
#[cfg(feature = "cluster")]
use std::path::Path;

#[cfg(feature = "cluster")]
use humphrey_ws::Cluster;

use crate::App;
use crate::options::Options;

/// The most bytes of a file with URLs.
#[cfg(feature = "cluster")]
const URLS_BYTES_MAX: u64 = 64 << 10;

/// Makes the app a node of a cluster if an option names one.
#[cfg(feature = "cluster")]
pub(crate) fn apply(app: App, options: &Options) -> io::Result<App> {
    let urls = match (&options.cluster, &options.cluster_url_file) {
        (Some(urls), _) => urls.clone(),
        (None, Some(path)) => read(path)?,
        (None, None) => return Ok(app),
    };
    let cluster = Cluster::new(urls);
    #[cfg(feature = "cluster-tls")]
    let cluster = match &options.cluster_ca {
        Some(authorities) => cluster.root_certificates(authorities),
        None => cluster,
    };
    Ok(app.with_cluster(cluster))
}

/// Without the feature, no option names a cluster.
#[cfg(not(feature = "cluster"))]
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn apply(app: App, _: &Options) -> io::Result<App> {
    Ok(app)
}

/// Reads URLs from a file. Errors don't show its content, which may contain a password.
#[cfg(feature = "cluster")]
fn read(path: &Path) -> io::Result<String> {
    let named = |error: io::Error| {
        let what = format!("--cluster-url-file {}: {error}", path.display());
        io::Error::new(error.kind(), what)
    };
    let mut text = String::new();
    // Bounded, since the path may name an endless device.
    File::open(path)
        .and_then(|file| file.take(URLS_BYTES_MAX).read_to_string(&mut text))
        .map_err(named)?;
    Ok(text.trim().to_owned())
}
