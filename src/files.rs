//! Handlers that serve files in pieces.
//!
//! They replace the handlers of the same names in [`humphrey::handlers`], which read the whole file into memory for
//! each request. On routes that are mounted with [`with_routes`](crate::AsyncWebsocketApp::with_routes), these handlers
//! keep 64 KiB in memory for each client that downloads a file, and read the next piece when the client has received
//! the previous one.
//!
//! ```no_run
//! use humphrey::SubApp;
//! use humphrey_ws::AsyncWebsocketApp;
//! use humphrey_ws::files::{serve_dir, serve_file};
//!
//! let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new().with_routes(
//!     SubApp::new()
//!         .with_path_aware_route("/files/*", serve_dir("public"))
//!         .with_route("/", serve_file("public/index.html")),
//! );
//! app.run();
//! ```
//!
//! A file is opened for each piece, so slow downloads use no file descriptors. If the file is changed or replaced
//! during a download, the connection is closed, and the client can tell from the announced length that the response is
//! incomplete. In a Humphrey `App`, the handlers also work, but read the whole file.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use humphrey::http::headers::HeaderType;
use humphrey::http::mime::MimeType;
use humphrey::http::{Request, Response, StatusCode};
use humphrey::route::{LocatedPath, try_find_path};

use crate::engine::PIECE_BYTES;
use crate::host::pass_on;
use crate::report::{Limited, limited};

/// Rate-limited, because clients can cause it with requests.
static UNREADABLE: Limited = Limited::new();

const INDEX_FILES: [&str; 2] = ["index.html", "index.htm"];

/// Serves one file, with the media type of its extension. The response is 404 if the file does not exist. If it can't
/// be read, an error is logged, and the client gets 500.
///
/// ```
/// use humphrey::SubApp;
/// use humphrey_ws::files::serve_file;
///
/// let routes: SubApp<()> = SubApp::new().with_route("/", serve_file("public/index.html"));
/// ```
pub fn serve_file<State>(
    path: &str,
) -> impl Fn(Request, Arc<State>) -> Response + Send + Sync + use<State> {
    let path = path.to_owned();
    move |_, _| respond_with(path.as_ref())
}

/// Serves the files of a directory and of its subdirectories. It requires a path-aware route that ends with `*`.
///
/// The part of the request's path after the route is the path of the file. A path that ends with `/` refers to the
/// `index.html` or `index.htm` of that directory. For a directory without the `/`, the response is a redirect to the
/// path with it (301). In all other cases, and for paths that contain `..` or `:`, it is 404. Symbolic links are
/// followed, even if they lead out of the directory.
///
/// ```
/// use humphrey::SubApp;
/// use humphrey_ws::files::serve_dir;
///
/// let routes: SubApp<()> = SubApp::new().with_path_aware_route("/files/*", serve_dir("public"));
/// ```
pub fn serve_dir<State>(
    directory: &str,
) -> impl Fn(Request, Arc<State>, &str) -> Response + Send + Sync + use<State> {
    let directory = directory.to_owned();
    move |request: Request, _, route| {
        let route = route.strip_suffix('*').unwrap_or(route);
        let path = request.uri.strip_prefix(route).unwrap_or(&request.uri);
        match try_find_path(&directory, path, &INDEX_FILES) {
            Some(LocatedPath::File(path)) => respond_with(&path),
            Some(LocatedPath::Directory) => Response::empty(StatusCode::MovedPermanently)
                .with_header(HeaderType::Location, with_slash(&request)),
            None => plain(StatusCode::NotFound, "not found\n"),
        }
    }
}

/// Returns the target of a request for a directory with the `/` that it lacks. A second `/` in front would make the
/// directory's name that of another host (RFC 3986 §4.2).
fn with_slash(request: &Request) -> String {
    let path = request.uri.trim_start_matches('/');
    match request.query.as_str() {
        "" => format!("/{path}/"),
        query => format!("/{path}/?{query}"),
    }
}

fn plain(status: StatusCode, body: &str) -> Response {
    Response::new(status, body).with_header(HeaderType::ContentType, "text/plain; charset=utf-8")
}

fn respond_with(path: &Path) -> Response {
    match read(path) {
        Ok(Some(body)) => {
            let response = Response::new(StatusCode::OK, body);
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(extension) => {
                    let media_type = MimeType::from_extension(extension);
                    response.with_header(HeaderType::ContentType, media_type.to_string())
                }
                None => response,
            }
        }
        Ok(None) => plain(StatusCode::NotFound, "not found\n"),
        Err(error) => {
            limited!(
                UNREADABLE,
                error,
                "the file {} can't be served: {error}",
                path.display()
            );
            plain(StatusCode::InternalError, "internal server error\n")
        }
    }
}

/// Reads a file. If the file is large and can be sent in pieces, passes it to the route instead, and returns an empty
/// body. Returns `None` if there is no such file.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // Refuse pipes and devices, because opening them could block, and directories.
    let metadata = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if metadata.len() > PIECE_BYTES && pass_on(path, &metadata) {
        return Ok(Some(Vec::new()));
    }
    fs::read(path).map(Some)
}
