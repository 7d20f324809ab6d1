//! The HTTP server of those peers that are upgraded by hyper.

use std::error::Error;
use std::io;

use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::registry::Registry;

/// Answers each request and upgrades its connection.
pub async fn serve<Answer, Failure>(
    listener: TcpListener,
    registry: Registry,
    answer: impl Fn(Request<Incoming>, Registry) -> Answer + Copy + Send + 'static,
) -> io::Result<()>
where
    Answer: Future<Output = Result<Response<Empty<Bytes>>, Failure>> + Send,
    Failure: Into<Box<dyn Error + Send + Sync>>,
{
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let registry = registry.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, registry.clone()));
            let connection = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            // The task ends with the upgrade, or when the client disconnects.
            let _ = connection.await;
        });
    }
}
