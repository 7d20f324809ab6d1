//! Asking Redis Sentinels which server is the primary.
//!
//! It is asked anew for each connection, on a thread that may wait: connections are rare, and Sentinels may be slow to refuse one.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::resp::{RespDecoder, RespValue, put_argument, put_command};
use super::url::{RedisLogin, database_of};
use crate::cluster::url::{Address, InvalidBrokerUrl, UrlParts, is_plain};

const PORT: u16 = 26379;
/// How long one Sentinel may take to answer.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// An answer is far shorter.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// A URL `redis+sentinel://[user[:password]@]host[:port][,host[:port]…]/name[/database][?app=prefix]`.
///
/// The hosts are those of Sentinels, which know the primary under the name. The user and the password are those of the primary; a
/// Sentinel that demands some gets the same.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SentinelUrl {
    pub(crate) sentinels: Vec<Address>,
    /// What the Sentinels call the primary.
    pub(crate) name: String,
    pub(crate) login: RedisLogin,
}

impl fmt::Debug for SentinelUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentinelUrl")
            .field("sentinels", &self.sentinels)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl FromStr for SentinelUrl {
    type Err = InvalidBrokerUrl;

    fn from_str(url: &str) -> Result<Self, InvalidBrokerUrl> {
        let parts = UrlParts::split(url, PORT)?;
        if parts.scheme != "redis+sentinel" {
            return Err(InvalidBrokerUrl::Scheme);
        }
        let path = parts.path.strip_prefix('/').unwrap_or_default();
        let (name, database) = path.split_once('/').unwrap_or((path, ""));
        if !is_plain(name) {
            return Err(InvalidBrokerUrl::Primary);
        }
        Ok(Self {
            sentinels: parts.servers,
            name: name.to_owned(),
            login: RedisLogin {
                user: parts.user,
                password: parts.password,
                database: database_of(database)?,
                app: parts.app,
            },
        })
    }
}

impl SentinelUrl {
    /// Asks the Sentinels in turn until one knows the primary. Waits up to half a second for each of their addresses.
    pub(crate) fn find_primary(&self) -> io::Result<Address> {
        let mut failures = Vec::new();
        for sentinel in &self.sentinels {
            match self.ask(sentinel) {
                Ok(primary) => return Ok(primary),
                Err(error) => failures.push(format!("{sentinel}: {error}")),
            }
        }
        let name = &self.name;
        let failures = failures.join("; ");
        let error = format!("no Sentinel names the primary of \"{name}\" ({failures})");
        Err(io::Error::other(error))
    }

    fn ask(&self, sentinel: &Address) -> io::Result<Address> {
        let addresses = (sentinel.host.as_str(), sentinel.port).to_socket_addrs()?;
        let mut failure = io::Error::other("its name has no address");
        for address in addresses {
            match self.ask_at(address, Instant::now() + ANSWER_MAX) {
                Ok(primary) => return Ok(primary),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn ask_at(&self, address: SocketAddr, until: Instant) -> io::Result<Address> {
        let left = || {
            let left = until.saturating_duration_since(Instant::now());
            match left.is_zero() {
                true => Err(io::Error::from(io::ErrorKind::TimedOut)),
                false => Ok(left),
            }
        };
        let mut stream = TcpStream::connect_timeout(&address, left()?)?;
        stream.set_write_timeout(Some(left()?))?;
        let mut question = Vec::new();
        put_command(&mut question, 3);
        put_argument(&mut question, &[b"SENTINEL"]);
        put_argument(&mut question, &[b"GET-MASTER-ADDR-BY-NAME"]);
        put_argument(&mut question, &[self.name.as_bytes()]);
        stream.write_all(&question)?;
        let mut decoder = RespDecoder::new(ANSWER_BYTES_MAX, ANSWER_BYTES_MAX);
        let mut has_authenticated = false;
        loop {
            match read_answer(&mut stream, &mut decoder, &left)? {
                Answer::Primary(primary) => return Ok(primary),
                Answer::Authenticated if has_authenticated => stream.write_all(&question)?,
                Answer::Authenticated => return Err(io::Error::other("its answer is no address")),
                Answer::Credentials if !has_authenticated && self.login.password.is_some() => {
                    has_authenticated = true;
                    stream.write_all(&self.authentication())?;
                }
                Answer::Credentials => {
                    return Err(io::Error::other(
                        "it demands a password, or rejects that of the URL",
                    ));
                }
                Answer::Unknown => {
                    return Err(io::Error::other("it does not know the name"));
                }
                Answer::Error(error) => return Err(io::Error::other(error)),
            }
        }
    }

    fn authentication(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_command(&mut out, 2 + usize::from(self.login.user.is_some()));
        put_argument(&mut out, &[b"AUTH"]);
        for secret in [&self.login.user, &self.login.password]
            .into_iter()
            .flatten()
        {
            put_argument(&mut out, &[secret.as_bytes()]);
        }
        out
    }
}

/// What a Sentinel says.
enum Answer {
    Primary(Address),
    Authenticated,
    /// It demands other credentials.
    Credentials,
    Unknown,
    Error(&'static str),
}

fn read_answer(
    stream: &mut TcpStream,
    decoder: &mut RespDecoder,
    left: &dyn Fn() -> io::Result<Duration>,
) -> io::Result<Answer> {
    let mut buffer = [0; 1024];
    loop {
        let frame = decoder
            .next()
            .map_err(|error| io::Error::other(error.to_string()))?;
        if let Some(mut frame) = frame {
            return Ok(match frame.next() {
                Some(RespValue::Array(2)) => primary(frame.next_string(), frame.next_string())
                    .map_or(Answer::Error("its answer is no address"), Answer::Primary),
                Some(RespValue::Null) => Answer::Unknown,
                Some(RespValue::String(_)) => Answer::Authenticated,
                Some(RespValue::Error(error)) => match error {
                    _ if error.starts_with(b"NOAUTH") || error.starts_with(b"WRONGPASS") => {
                        Answer::Credentials
                    }
                    _ if error.starts_with(b"NOPERM") => {
                        Answer::Error("the user may not execute SENTINEL GET-MASTER-ADDR-BY-NAME")
                    }
                    _ => Answer::Error("it answers with an error: is it a Sentinel?"),
                },
                _ => Answer::Error("its answer is no address"),
            });
        }
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => decoder.push(&buffer[..len]),
        }
    }
}

fn primary(host: Option<&[u8]>, port: Option<&[u8]>) -> Option<Address> {
    let host = std::str::from_utf8(host?)
        .ok()
        .filter(|host| !host.is_empty())?;
    let port = std::str::from_utf8(port?).ok()?.parse().ok()?;
    Some(Address {
        host: host.to_owned(),
        port,
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    fn parse(url: &str) -> SentinelUrl {
        url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// A Sentinel that answers the requests on each connection in turn. Returns its address.
    fn sentinel(answers: &'static [(&'static str, &'static str)]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                for (request, answer) in answers {
                    let mut received = vec![0; request.len()];
                    if stream.read_exact(&mut received).is_err() {
                        break;
                    }
                    assert_eq!(String::from_utf8_lossy(&received), *request);
                    // The client may have had enough.
                    let _ = stream.write_all(answer.as_bytes());
                }
                // Until the client closes the connection.
                let _ = stream.read(&mut [0; 1]);
            }
        });
        address
    }

    fn find(hosts: &[&str]) -> Result<String, String> {
        let url = parse(&format!("redis+sentinel://me:pw@{}/main", hosts.join(",")));
        let found = url.find_primary();
        found
            .map(|primary| primary.to_string())
            .map_err(|error| error.to_string())
    }

    const ASK: &str = "*3\r\n$8\r\nSENTINEL\r\n$23\r\nGET-MASTER-ADDR-BY-NAME\r\n$4\r\nmain\r\n";
    const PRIMARY: &str = "*2\r\n$8\r\n10.0.0.7\r\n$4\r\n6380\r\n";

    #[test]
    fn url_names_the_sentinels_and_the_primary() {
        let url = parse("redis+sentinel://me:p%40@a,[::1]:7000/my-main.1/3?app=x");
        let sentinels: Vec<_> = url.sentinels.iter().map(Address::to_string).collect();
        assert_eq!(sentinels, ["a:26379", "[::1]:7000"]);
        let login = &url.login;
        assert_eq!(
            (&*url.name, login.database, &*login.app),
            ("my-main.1", 3, "x")
        );
        assert_eq!(login.password.as_deref(), Some("p@"));
        assert!(!format!("{url:?}").contains("p@"));
        for (url, error) in [
            ("redis+sentinel://a", InvalidBrokerUrl::Primary),
            ("redis+sentinel://a/", InvalidBrokerUrl::Primary),
            ("redis+sentinel://a/b c", InvalidBrokerUrl::Control),
            ("redis+sentinel://a/b%20", InvalidBrokerUrl::Primary),
            ("redis+sentinel://a/b/x", InvalidBrokerUrl::Database),
            ("redis+sentinel:///b", InvalidBrokerUrl::Host),
            ("redis://a/b", InvalidBrokerUrl::Scheme),
        ] {
            assert_eq!(url.parse::<SentinelUrl>(), Err(error), "{url}");
        }
    }

    #[test]
    fn sentinels_are_asked_in_turn() {
        let unknown = sentinel(&[(ASK, "*-1\r\n")]);
        let knows = sentinel(&[(ASK, PRIMARY)]);
        assert_eq!(
            find(&["127.0.0.1:1", &unknown, &knows]),
            Ok("10.0.0.7:6380".into())
        );
        let error = find(&["127.0.0.1:1", &unknown]).unwrap_err();
        assert!(
            error.contains("\"main\"") && error.contains("127.0.0.1:1: "),
            "{error}"
        );
        assert!(error.contains("does not know the name"), "{error}");
    }

    #[test]
    fn sentinel_that_demands_a_password_gets_that_of_the_url() {
        const AUTH: &str = "*3\r\n$4\r\nAUTH\r\n$2\r\nme\r\n$2\r\npw\r\n";
        const DEMANDS: &str = "-NOAUTH Authentication required.\r\n";
        let demands = sentinel(&[(ASK, DEMANDS), (AUTH, "+OK\r\n"), (ASK, PRIMARY)]);
        assert_eq!(find(&[&demands]), Ok("10.0.0.7:6380".into()));
        let rejects = sentinel(&[(ASK, DEMANDS), (AUTH, "-WRONGPASS pw\r\n")]);
        let error = find(&[&rejects]).unwrap_err();
        assert!(
            error.contains("password") && !error.contains("pw"),
            "{error}"
        );
    }

    #[test]
    fn answers_that_are_none_are_rejected() {
        for answer in [
            "+OK\r\n+OK\r\n",
            "*2\r\n$1\r\na\r\n$5\r\n65536\r\n",
            "*2\r\n$0\r\n\r\n$1\r\n1\r\n",
            "*3\r\n+a\r\n+1\r\n+b\r\n",
            ":1\r\n",
            "-ERR unknown command\r\n",
            "HTTP/1.1 400 Bad Request\r\n",
        ] {
            let answers = Box::leak(Box::new([(ASK, answer)]));
            assert!(find(&[&sentinel(answers)]).is_err(), "{answer:?}");
        }
    }

    #[test]
    fn silent_sentinel_holds_up_the_next_one_for_a_moment_only() {
        let silent = sentinel(&[(ASK, "*2\r\n$8\r\n10.0.")]);
        let knows = sentinel(&[(ASK, PRIMARY)]);
        assert_eq!(find(&[&silent, &knows]), Ok("10.0.0.7:6380".into()));
    }
}
