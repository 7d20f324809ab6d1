//! nginx as TLS proxy in front of a server, as Debian packages it.

use std::fs;
use std::io;
use std::net::{SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::Setup;
use crate::load::tls::Certificate;
use crate::run::server::{Server, free_address};

/// Timeout for nginx to start listening.
const PATIENCE: Duration = Duration::from_secs(10);
/// Debian installs it in a directory that is not in the search path of every user.
const PROGRAMS: [&str; 2] = ["nginx", "/usr/sbin/nginx"];

/// The nginx of this machine.
pub(super) struct Nginx {
    program: &'static str,
    pub(super) version: String,
}

impl Nginx {
    pub(super) fn find() -> io::Result<Self> {
        let find = |program| {
            let output = Command::new(program).arg("-v").output().ok()?;
            let says = String::from_utf8_lossy(&output.stderr).into_owned();
            let (_, version) = says.split_once("nginx/")?;
            let version = format!("nginx {}", version.trim());
            Some(Self { program, version })
        };
        let found = PROGRAMS.into_iter().find_map(find);
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is not installed"))
    }

    /// Starts nginx on the server's CPU. It accepts TLS connections and forwards them to the server.
    pub(super) fn put_before(
        &self,
        server: Server,
        setup: &Setup,
        certificate: &Certificate,
    ) -> io::Result<Server> {
        let address = free_address()?;
        let directory = setup.target.join("nginx");
        fs::create_dir_all(&directory)?;
        let file = directory.join(format!("{}.conf", address.port()));
        let text = configuration(&directory, address, server.address, certificate);
        fs::write(&file, text)?;
        let child = Command::new(&setup.program)
            .args(["exec", "--cpu", &setup.server_cpu, "--", self.program])
            .args(["-e", "stderr", "-p"])
            .arg(&directory)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let server = server.behind(child, address);
        let outcome = wait(address);
        // nginx has read it.
        fs::remove_file(&file)?;
        outcome.map(|()| server)
    }
}

fn wait(address: SocketAddrV4) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(_) => return Ok(()),
            Err(error) if start.elapsed() >= PATIENCE => {
                let text = format!("nginx did not start: {error}");
                return Err(io::Error::new(error.kind(), text));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// One process, as for the other servers, with the settings that WebSockets and many connections need. Everything else is
/// default.
fn configuration(
    directory: &Path,
    address: SocketAddrV4,
    backend: SocketAddrV4,
    certificate: &Certificate,
) -> String {
    let Certificate { certificate, key } = certificate;
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| {
        let path: PathBuf = directory.join(name);
        format!("    {name}_temp_path {:?};\n", path.display().to_string())
    });
    format!(
        "daemon off;
master_process off;
pid {:?};
events {{
    worker_connections 20000;
}}
http {{
    access_log off;
{}    server {{
        listen {address} ssl;
        ssl_certificate {certificate:?};
        ssl_certificate_key {key:?};
        ssl_protocols TLSv1.3;
        location / {{
            proxy_pass http://{backend};
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_read_timeout 1h;
        }}
    }}
}}
",
        directory.join("nginx.pid").display().to_string(),
        temporary.concat(),
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::load::tls::P256;

    #[test]
    fn configuration_names_addresses_and_files() {
        let address = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let text = configuration(Path::new("/tmp/of it"), address(1), address(2), &P256);
        assert!(text.contains("listen 127.0.0.1:1 ssl;"), "{text}");
        assert!(text.contains("proxy_pass http://127.0.0.1:2;"), "{text}");
        assert!(text.contains(&format!("ssl_certificate_key {:?};", P256.key)));
        assert!(
            text.contains("proxy_temp_path \"/tmp/of it/proxy\";"),
            "{text}"
        );
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
