//! The self-signed certificate of `--tls-self-signed`, which is made once and kept in a directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

/// The names of the files in the directory.
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";

/// How many years a certificate is valid, in addition to the current year.
const VALID_YEARS: i32 = 10;

/// Returns the files of the certificate and its key. Makes them if the directory has neither.
pub(super) fn files(directory: &Path, listen: &[IpAddr]) -> io::Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
    match (certificate.exists(), key.exists()) {
        (true, true) => return Ok((certificate, key)),
        (false, false) => {}
        (has_certificate, _) => {
            let (present, missing) = match has_certificate {
                true => (CERTIFICATE, KEY),
                false => (KEY, CERTIFICATE),
            };
            let problem = format!(
                "{} contains {present} without {missing}: remove it to have both made again",
                directory.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
    }
    let named = |error: io::Error| {
        let problem = format!(
            "a certificate can't be made in {}: {error}",
            directory.display()
        );
        io::Error::new(error.kind(), problem)
    };
    let (certificate_pem, key_pem) = make(listen).map_err(io::Error::other).map_err(named)?;
    fs::create_dir_all(directory).map_err(named)?;
    write(&key, &key_pem, true).map_err(named)?;
    write(&certificate, &certificate_pem, false).map_err(named)?;
    Ok((certificate, key))
}

/// Makes a certificate for this machine, and for the addresses that the program listens on.
fn make(listen: &[IpAddr]) -> Result<(String, String), rcgen::Error> {
    let mut names = vec!["localhost".to_owned()];
    names.extend(host_name().filter(|name| name != "localhost"));
    let mut params = CertificateParams::new(names)?;
    let mut addresses = vec![
        IpAddr::from([127, 0, 0, 1]),
        "::1".parse().expect("an address"),
    ];
    for listen in listen {
        if !listen.is_unspecified() && !addresses.contains(listen) {
            addresses.push(*listen);
        }
    }
    let addresses = addresses.into_iter().map(SanType::IpAddress);
    params.subject_alt_names.extend(addresses);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "humphrey-broadcast");
    let year = current_year();
    params.not_before = rcgen::date_time_ymd(year, 1, 1);
    params.not_after = rcgen::date_time_ymd(year + VALID_YEARS + 1, 1, 1);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The name of this machine, if the system reports one that a certificate can contain.
fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    (!name.is_empty() && name.chars().all(is_name)).then(|| name.to_owned())
}

/// The current year, or 2026 if the clock is not set.
fn current_year() -> i32 {
    const YEAR_SECONDS: u64 = 31_556_952;
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let years = since.map_or(0, |since| since.as_secs() / YEAR_SECONDS);
    i32::try_from(1970 + years).map_or(2026, |year| year.max(2026))
}

/// Writes a new file, which appears with its whole contents. If it is private, only this user can read it.
fn write(path: &Path, contents: &str, is_private: bool) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = create(&unfinished, is_private)?;
    file.write_all(contents.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}

fn create(path: &Path, is_private: bool) -> io::Result<File> {
    // An interrupted start may have left a file that other users can read.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if is_private {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    #[cfg(not(unix))]
    let _ = is_private;
    options.open(path)
}

#[cfg(test)]
mod tests {
    use humphrey_ws::tls::Tls;

    use super::*;

    fn empty_directory(name: &str) -> PathBuf {
        let unique = format!("humphrey-broadcast-{name}-{}", std::process::id());
        let directory = std::env::temp_dir().join(unique);
        let _ = fs::remove_dir_all(&directory);
        directory
    }

    #[test]
    fn self_signed_certificate_is_made_once_and_private() {
        let directory = empty_directory("self-signed");
        files(&directory, &[[192, 0, 2, 1].into()]).unwrap();
        let read =
            || [CERTIFICATE, KEY].map(|name| fs::read_to_string(directory.join(name)).unwrap());
        let first = read();
        assert!(first[0].contains("BEGIN CERTIFICATE") && first[1].contains("PRIVATE KEY"));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = directory.join(KEY).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        files(&directory, &[[192, 0, 2, 1].into()]).unwrap();
        assert_eq!(read(), first);
        Tls::from_pem_files(directory.join(CERTIFICATE), directory.join(KEY)).unwrap();

        fs::remove_file(directory.join(KEY)).unwrap();
        let error = files(&directory, &[[127, 0, 0, 1].into()]).unwrap_err();
        assert!(error.to_string().contains("without key.pem"), "{error}");
        fs::remove_dir_all(directory).unwrap();
    }
}
