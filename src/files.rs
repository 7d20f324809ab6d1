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
//! incomplete.
//!
//! The `body` of the returned `Response` is empty if the route is to send the file in pieces, which applies to files of more than
//! 64 KiB. A handler that calls one of these handlers can change the status and the headers, or replace the body, but it can't
//! read or transform the content. In a Humphrey `App`, the handlers also work, but read the whole file into the body.

use std::fs;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use humphrey::http::headers::HeaderType;
use humphrey::http::mime::MimeType;
use humphrey::http::{Request, Response, StatusCode};
use humphrey::percent::PercentDecode;
use humphrey::route::{LocatedPath, try_find_path};

use crate::engine::PIECE_BYTES;
use crate::host::{OFFER_HEADER, offer_file};
use crate::protocol::http::SAFE_HEADERS;
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
/// path with it (301). In all other cases the response is 404: also for paths that contain `..` or `:`, and for files and
/// directories whose names begin with a dot, such as `.git`, except `.well-known` (RFC 8615). Symbolic links are followed, even if
/// they lead out of the directory.
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
        let located = match is_hidden(path) {
            true => None,
            false => try_find_path(&directory, path, &INDEX_FILES),
        };
        match located {
            Some(LocatedPath::File(path)) => respond_with(&path),
            Some(LocatedPath::Directory) => Response::empty(StatusCode::MovedPermanently)
                .with_header(HeaderType::Location, with_slash(&request)),
            None => plain(StatusCode::NotFound, "not found\n"),
        }
    }
}

/// Whether a file or directory in the path has a name that begins with a dot.
fn is_hidden(path: &str) -> bool {
    let Some(path) = path.percent_decode() else {
        // Such a path names no file.
        return true;
    };
    path.split(|&byte| byte == b'/')
        .any(|name| name.starts_with(b".") && name != b".well-known")
}

/// Returns the path and the query of a request for a directory, with the `/` that the path lacks. Only one `/` may be in front:
/// the text between two and the next would be a host (RFC 3986 §4.2).
fn with_slash(request: &Request) -> String {
    let path = request.uri.trim_start_matches(['/', '\\']);
    match request.query.as_str() {
        "" => format!("/{path}/"),
        query => format!("/{path}/?{query}"),
    }
}

/// Makes a response in plain text.
fn plain(status: StatusCode, body: &str) -> Response {
    let response = Response::new(status, body)
        .with_header(HeaderType::ContentType, "text/plain; charset=utf-8");
    SAFE_HEADERS
        .iter()
        .fold(response, |response, &(name, value)| {
            response.with_header(HeaderType::from(name), value)
        })
}

fn respond_with(path: &Path) -> Response {
    match content_of(path) {
        Ok(Some(content)) => {
            let extension = path.extension().and_then(|extension| extension.to_str());
            // Browsers would guess the type of a file without one.
            let media_type = extension.map_or(MIME_OF_BYTES.to_owned(), |extension| {
                MimeType::from_extension(extension).to_string()
            });
            let response = match content {
                Content::Whole(body) => Response::new(StatusCode::OK, body),
                Content::Offered(number) => Response::empty(StatusCode::OK)
                    .with_header(HeaderType::from(OFFER_HEADER), number),
            };
            response
                .with_header(HeaderType::ContentType, media_type)
                .with_header(HeaderType::from("X-Content-Type-Options"), "nosniff")
        }
        Ok(None) => plain(StatusCode::NotFound, "not found\n"),
        Err(error) => {
            limited!(
                UNREADABLE,
                error,
                "the file {path:?} can't be served: {error}"
            );
            plain(StatusCode::InternalError, "internal server error\n")
        }
    }
}

/// The media type of files without an extension.
const MIME_OF_BYTES: &str = "application/octet-stream";

enum Content {
    Whole(Vec<u8>),
    /// The number of the offer.
    Offered(String),
}

/// Reads a file, or offers it to the route if it is large. Returns `None` if there is no such file.
fn content_of(path: &Path) -> io::Result<Option<Content>> {
    // Opening a pipe or a device could block.
    let metadata = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut file = File::open(path)?;
    if metadata.len() > PIECE_BYTES
        && let Some(number) = offer_file(path, &metadata)
    {
        return Ok(Some(Content::Offered(number)));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(Some(Content::Whole(content)))
}
