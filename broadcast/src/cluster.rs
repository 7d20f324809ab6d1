//! The program as one node of several, which reach each other through Redis or NATS.

use std::io;

#[cfg(feature = "cluster")]
use humphrey_ws::Cluster;

use crate::App;
#[cfg(feature = "cluster")]
use crate::diagnostics::report;
#[cfg(feature = "cluster")]
use crate::option_file;
use crate::options::Options;

/// The most bytes of a file with URLs.
#[cfg(feature = "cluster")]
const URLS_BYTES_MAX: u64 = 64 << 10;

/// Replaces the option that names a file by the URL in it. Turns the history off if the broker keeps none, and says so.
#[cfg(feature = "cluster")]
pub(crate) fn settle(options: &mut Options) -> io::Result<()> {
    if let Some(path) = options.cluster_url_file.take() {
        let urls = option_file::read(&path, URLS_BYTES_MAX);
        options.cluster = Some(option_file::named("--cluster-url-file", &path, urls)?);
    }
    let keeps_none = |urls: &String| !Cluster::new(urls.as_str()).keeps_histories();
    if options.cluster.as_ref().is_some_and(keeps_none) {
        let is_asked_for = options
            .history
            .replace(0)
            .is_some_and(|messages| messages > 0);
        if is_asked_for || !options.quiet {
            report!(
                "without a history, since NATS keeps no messages: --history needs Redis or Valkey"
            );
        }
    }
    Ok(())
}

/// Without the feature, no option names a cluster.
#[cfg(not(feature = "cluster"))]
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn settle(_: &mut Options) -> io::Result<()> {
    Ok(())
}

/// Makes the app a node of a cluster if an option names one.
#[cfg(feature = "cluster")]
pub(crate) fn apply(app: App, options: &Options) -> App {
    let Some(urls) = &options.cluster else {
        return app;
    };
    let cluster = Cluster::new(urls.as_str());
    #[cfg(feature = "cluster-tls")]
    let cluster = match &options.cluster_ca {
        Some(authorities) => cluster.root_certificates(authorities),
        None => cluster,
    };
    app.with_cluster(cluster)
}

/// Without the feature, no option names a cluster.
#[cfg(not(feature = "cluster"))]
pub(crate) fn apply(app: App, _: &Options) -> App {
    app
}
