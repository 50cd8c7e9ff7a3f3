//! Where the scheduler is, and whether it is there.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::CurateError;

/// How long a scheduler may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the first executor may take to register.
const EXECUTORS: Duration = Duration::from_secs(30);

/// The address of a scheduler, `df://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    port: u16,
}

/// What a scheduler says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Ready,
    /// It is there, but has no executor.
    Alone,
}

impl Address {
    pub(super) fn parse(text: &str) -> Result<Address, CurateError> {
        let hint = "give `df://HOST:PORT`, with the host and port of `llamero curate scheduler`".to_owned();
        let bad = |problem: &str| CurateError::Cluster {
            address: text.to_owned(),
            problem: problem.to_owned(),
            hint: hint.clone(),
        };
        let place = text.strip_prefix("df://").ok_or_else(|| bad("is not the address of a scheduler"))?;
        let (host, port) = place.rsplit_once(':').ok_or_else(|| bad("has no port"))?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| bad("has no usable port"))?;
        let plain = |char: char| char.is_ascii_alphanumeric() || "-._[]:".contains(char);
        if host.is_empty() || !host.chars().all(plain) {
            return Err(bad("has no usable host"));
        }
        Ok(Address { host: host.to_owned(), port })
    }

    /// For Ballista's client.
    pub(super) fn url(&self) -> String {
        format!("http://{}:{}", self.host, self.port)
    }

    fn error(&self, problem: String, hint: &str) -> CurateError {
        CurateError::Cluster { address: self.to_string(), problem, hint: hint.to_owned() }
    }

    /// That the scheduler is gone.
    pub(super) fn gone(&self, problem: String) -> CurateError {
        let hint = "start `llamero curate scheduler` and its executors there and run the same command again; finished \
                    stages are kept";
        self.error(problem, hint)
    }

    /// Waits for a scheduler with an executor.
    pub(super) fn wait_until_ready(&self) -> Result<(), CurateError> {
        let since = Instant::now();
        while self.health()? == Health::Alone {
            if since.elapsed() > EXECUTORS {
                let problem = format!("has had no executor for {} s", EXECUTORS.as_secs());
                let scheduler = format!("{}:{}", self.host, self.port);
                let hint = format!("start executors: `llamero curate executor --scheduler {scheduler}`");
                return Err(self.error(problem, &hint));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Asks the scheduler.
    pub(super) fn health(&self) -> Result<Health, CurateError> {
        let answer = self.ask().map_err(|error| self.gone(format!("does not answer: {error}")))?;
        let (head, _) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        if !head.to_ascii_lowercase().contains("\r\nserver: ballista/") {
            let hint = "give the host and port of `llamero curate scheduler`";
            return Err(self.error("is not a scheduler of Ballista".to_owned(), hint));
        }
        Ok(if head.starts_with("HTTP/1.1 200") { Health::Ready } else { Health::Alone })
    }

    fn ask(&self) -> std::io::Result<String> {
        let until = Instant::now() + PATIENCE;
        let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
        let left = || until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let mut failure = std::io::Error::other("its name leads nowhere");
        for place in (host, self.port).to_socket_addrs()? {
            let mut stream = match TcpStream::connect_timeout(&place, left().ok_or_else(late)?) {
                Ok(stream) => stream,
                Err(error) => {
                    failure = error;
                    continue;
                }
            };
            stream.set_write_timeout(left())?;
            write!(stream, "GET /readyz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.host)?;
            let mut answer = Vec::new();
            let mut piece = [0; 4096];
            while answer.len() < 1 << 16 {
                stream.set_read_timeout(Some(left().ok_or_else(late)?))?;
                match stream.read(&mut piece)? {
                    0 => break,
                    read => answer.extend_from_slice(&piece[..read]),
                }
            }
            return Ok(String::from_utf8_lossy(&answer).into_owned());
        }
        Err(failure)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "df://{}:{}", self.host, self.port)
    }
}
