//! Handlers that serve files in pieces.

use crate::support;

use std::fs;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use humphrey::SubApp;
use humphrey::http::address::Address;
use humphrey::http::headers::Headers;
use humphrey::http::method::Method;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::files::{serve_dir, serve_file};
use humphrey_ws::{AsyncWebsocketApp, RunningApp};
use support::{DEADLINE, eventually, read_head, start, tcp};

const PIECE_BYTES: usize = 64 << 10;

/// Creates an empty directory for a test.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Creates a file of zeros that takes no room on the disk.
fn sparse(path: &Path, bytes: u64) -> File {
    let file = File::create(path).unwrap();
    file.set_len(bytes).unwrap();
    file
}

fn serve(directory: &Path) -> (RunningApp, SocketAddr) {
    let directory = directory.to_str().unwrap();
    start(
        AsyncWebsocketApp::<()>::new()
            .with_routes(SubApp::new().with_path_aware_route("/files/*", serve_dir(directory))),
    )
}

/// Requests a path, and returns the response's head. Its body can be read from the socket.
fn begin(address: SocketAddr, method: &str, path: &str) -> (String, TcpStream) {
    let mut socket = tcp(address);
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    (read_head(&mut socket), socket)
}

fn get(address: SocketAddr, path: &str) -> (String, Vec<u8>) {
    let (head, mut socket) = begin(address, "GET", path);
    let mut body = Vec::new();
    socket.read_to_end(&mut body).unwrap();
    (head, body)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    let found = lines.find(|(other, _)| other.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value)
}

#[test]
fn file_of_any_size_arrives_whole() {
    let directory = directory("files of any size");
    let (running, address) = serve(&directory);
    for bytes in [
        0,
        1,
        PIECE_BYTES - 1,
        PIECE_BYTES,
        PIECE_BYTES + 1,
        3_000_000,
    ] {
        let content: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
        fs::write(directory.join("data.json"), &content).unwrap();
        let (head, body) = get(address, "/files/data.json");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(header(&head, "Content-Type"), Some("application/json"));
        assert_eq!(header(&head, "Content-Length"), Some(&*bytes.to_string()));
        assert!(body == content, "{bytes} bytes arrived as {}", body.len());
        let (head, mut socket) = begin(address, "HEAD", "/files/data.json");
        assert_eq!(header(&head, "Content-Length"), Some(&*bytes.to_string()));
        assert_eq!(socket.read(&mut [0]).unwrap(), 0, "HEAD has no body");
    }
    running.shutdown(DEADLINE);
}

#[test]
fn file_larger_than_memory_can_be_downloaded() {
    const TIB: u64 = 1 << 40;
    let directory = directory("a large file");
    sparse(&directory.join("large"), TIB);
    let (running, address) = serve(&directory);
    let (head, mut socket) = begin(address, "GET", "/files/large");
    assert_eq!(header(&head, "Content-Length"), Some(&*TIB.to_string()));
    let mut beginning = vec![1; 20 << 20];
    socket.read_exact(&mut beginning).unwrap();
    assert!(beginning.iter().all(|&byte| byte == 0));
    drop(socket);
    running.shutdown(DEADLINE);
}

#[test]
fn file_that_changes_ends_the_connection() {
    const BYTES: u64 = 1 << 30;
    let directory = directory("a file that changes");
    let path = directory.join("log");
    let (running, address) = serve(&directory);
    let shorten = |file: File| file.set_len(1 << 20).unwrap();
    let append = |mut file: File| {
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b"one more line").unwrap();
    };
    let replace = |_: File| {
        let other = directory.join("other");
        sparse(&other, BYTES);
        fs::rename(&other, &path).unwrap();
    };
    let remove = |_: File| fs::remove_file(&path).unwrap();
    let changes: [&dyn Fn(File); 4] = [&shorten, &append, &replace, &remove];
    for (n, change) in changes.into_iter().enumerate() {
        let file = sparse(&path, BYTES);
        let (head, mut socket) = begin(address, "GET", "/files/log");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        socket.read_exact(&mut vec![0; 1 << 20]).unwrap();
        change(file);
        let mut rest = Vec::new();
        // The connection may be reset.
        let _ = socket.read_to_end(&mut rest);
        assert!(rest.len() < 1 << 29, "change {n}: {} bytes", rest.len());
    }
    running.shutdown(DEADLINE);
}

#[test]
#[cfg_attr(
    not(target_os = "linux"),
    ignore = "descriptors are listed in Linux's /proc"
)]
fn download_that_is_not_read_holds_no_descriptor() {
    let directory = directory("downloads that are not read");
    let path = directory.join("large");
    sparse(&path, 1 << 40);
    let (running, address) = serve(&directory);
    let downloads: Vec<_> = (0..20)
        .map(|_| begin(address, "GET", "/files/large"))
        .collect();
    let is_open = || {
        let descriptors = fs::read_dir("/proc/self/fd").unwrap();
        let mut targets = descriptors.map(|entry| fs::read_link(entry.unwrap().path()));
        targets.any(|target| target.is_ok_and(|target| target == path))
    };
    eventually("the sockets are full", || !is_open());
    assert_eq!(running.sender().metrics().slow_consumers, 0);
    drop(downloads);
    running.shutdown(DEADLINE);
}

#[test]
fn directory_is_redirected_and_its_index_is_served() {
    let directory = directory("a directory with an index");
    fs::create_dir(directory.join("guide")).unwrap();
    fs::write(directory.join("guide/index.html"), "an index").unwrap();
    fs::create_dir(directory.join("empty")).unwrap();
    let (running, address) = serve(&directory);
    let (head, _) = get(address, "/files/guide");
    assert!(head.starts_with("HTTP/1.1 301 "), "{head}");
    assert_eq!(header(&head, "Location"), Some("/files/guide/"));
    let (head, _) = get(address, "/files/guide?a=b");
    assert_eq!(header(&head, "Location"), Some("/files/guide/?a=b"));
    let (head, body) = get(address, "/files/guide/");
    assert_eq!(header(&head, "Content-Type"), Some("text/html"));
    assert_eq!(body, b"an index");
    for missing in ["/files/", "/files/empty/", "/files/none", "/files/a..b"] {
        let (head, body) = get(address, missing);
        assert!(head.starts_with("HTTP/1.1 404 "), "{missing}: {head}");
        assert_eq!(body, b"not found\n");
    }
    running.shutdown(DEADLINE);
}

#[test]
fn redirect_never_leads_to_another_host() {
    let directory = directory("a directory with the name of a host");
    fs::create_dir(directory.join("host.example")).unwrap();
    let path = directory.to_str().unwrap();
    let (running, address) = start(
        AsyncWebsocketApp::<()>::new()
            .with_routes(SubApp::new().with_path_aware_route("/*", serve_dir(path))),
    );
    for path in ["/host.example", "//host.example", "///host.example"] {
        let (head, _) = get(address, path);
        assert!(head.starts_with("HTTP/1.1 301 "), "{path}: {head}");
        assert_eq!(header(&head, "Location"), Some("/host.example/"));
    }
    running.shutdown(DEADLINE);
}

#[test]
fn handler_decides_on_the_response_with_a_file() {
    const BYTES: usize = 1 << 20;
    let directory = directory("a file in other responses");
    let path = directory.join("data");
    sparse(&path, BYTES as u64);
    fs::write(directory.join("other"), vec![1; BYTES]).unwrap();
    let file = serve_file(path.to_str().unwrap());
    let other = serve_file(directory.join("other").to_str().unwrap());
    let app = AsyncWebsocketApp::<()>::new().with_routes(SubApp::new().with_route(
        "/*",
        move |request: Request, state: Arc<()>| {
            let path = request.uri.clone();
            let mut response = file(request.clone(), state.clone());
            match path.as_str() {
                "/empty" => return Response::empty(StatusCode::OK),
                "/status" => response.status_code = StatusCode::NotFound,
                "/body" => response.body = b"instead".to_vec(),
                "/first" => drop(other(request, state)),
                "/second" => response = other(request, state),
                _ => {}
            }
            response
        },
    ));
    let (running, address) = start(app);
    let zeros = vec![0; BYTES];
    for (path, status, expected) in [
        ("/file", 200, &zeros[..]),
        ("/empty", 200, b""),
        ("/status", 404, &zeros),
        ("/body", 200, b"instead"),
        ("/first", 200, &zeros),
        ("/second", 200, &[1; BYTES]),
    ] {
        let (head, body) = get(address, path);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(body == expected, "{path}: {} bytes", body.len());
        // Only the library's own header for files, which is removed, has this name.
        assert_eq!(header(&head, "X-Humphrey-Ws-File"), None);
    }
    running.shutdown(DEADLINE);
}

#[test]
fn hidden_files_are_not_served() {
    let directory = directory("hidden files");
    for name in [".git", ".well-known", "open"] {
        fs::create_dir(directory.join(name)).unwrap();
        fs::write(directory.join(name).join("file"), "content").unwrap();
    }
    fs::write(directory.join(".env"), "SECRET").unwrap();
    fs::write(directory.join("open/.env"), "SECRET").unwrap();
    let (running, address) = serve(&directory);
    for (path, status) in [
        ("/files/open/file", 200),
        ("/files/.well-known/file", 200),
        ("/files/.env", 404),
        ("/files/%2eenv", 404),
        ("/files//.env", 404),
        ("/files/open/.env", 404),
        ("/files/open%2F.env", 404),
        ("/files/.git/file", 404),
        ("/files/.git", 404),
        ("/files/%", 404),
    ] {
        let (head, _) = get(address, path);
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {head}"
        );
        assert_eq!(header(&head, "X-Content-Type-Options"), Some("nosniff"));
    }
    running.shutdown(DEADLINE);
}

#[test]
fn outside_of_routes_the_whole_file_is_in_the_response() {
    let directory = directory("a file outside of routes");
    let path = directory.join("data");
    let content = vec![b'x'; 5 * PIECE_BYTES];
    fs::write(&path, &content).unwrap();
    let request = || Request {
        method: Method::Get,
        uri: "/".into(),
        query: String::new(),
        version: "HTTP/1.1".into(),
        headers: Headers::new(),
        content: None,
        address: Address::new("127.0.0.1:1").unwrap(),
    };
    let response = serve_file(path.to_str().unwrap())(request(), Arc::new(()));
    assert_eq!(response.status_code, StatusCode::OK);
    assert!(response.body == content);
    // Neither is a file, and reading the device would never end.
    for other in ["/dev/zero", directory.to_str().unwrap()] {
        let response = serve_file(other)(request(), Arc::new(()));
        assert_eq!(response.status_code, StatusCode::NotFound, "{other}");
    }
}
