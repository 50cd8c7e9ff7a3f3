//! A hub in this process: a server for the endpoints that `pull` uses, and tests say how it misbehaves.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Path and query.
    pub(crate) path: String,
    /// By lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte that is asked for.
    pub(crate) fn first(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What the server says.
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    sent: usize,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { status, headers: Vec::new(), sent: body.len(), body }
    }

    /// A file, or the rest of it where the request asks for that.
    pub(crate) fn file(request: &Request, content: &[u8]) -> Self {
        match request.first() {
            None => Self::new(200, content),
            Some(first) if first >= content.len() => Self::new(416, ""),
            Some(first) => {
                let range = format!("bytes {first}-{}/{}", content.len() - 1, content.len());
                Self::new(206, &content[first..]).with("content-range", &range)
            }
        }
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::new(302, "").with("location", to)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The connection ends after so many bytes of the body.
    pub(crate) fn cut(self, sent: usize) -> Self {
        Self { sent: sent.min(self.body.len()), ..self }
    }
}

/// A server on a port of its own, until the process ends.
pub(crate) struct Server {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers requests, one connection after another, as `answer` says.
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is its own affair.
                drop(stream.and_then(|stream| serve(stream, &answer, &log)));
            }
        });
        Self { address, requests }
    }

    /// What came so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &impl Fn(&Request) -> Reply,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let request = Request { path, headers };
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut head = format!(
        "HTTP/1.1 {} Said\r\nconnection: close\r\ncontent-length: {}\r\n",
        reply.status,
        reply.body.len()
    );
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&reply.body[..reply.sent])?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // Until the client has read it all, so that the end is no reset.
    std::io::copy(&mut stream.take(1 << 16), &mut std::io::sink()).map(drop)
}

/// A file of a made-up repository.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
    /// What the list says about it, in JSON.
    pub(crate) entry: String,
}

impl Stored {
    /// A large file, with its sha256.
    pub(crate) fn large(name: &str, content: &[u8], sha256: &str) -> Self {
        let size = content.len();
        let entry = format!(
            r#"{{"rfilename":"{name}","size":{size},"blobId":"{}","lfs":{{"sha256":"{sha256}","size":{size},"pointerSize":130}}}}"#,
            "0".repeat(40)
        );
        Self { name: name.into(), content: content.into(), entry }
    }

    /// A small file, with git's hash.
    pub(crate) fn small(name: &str, content: &[u8], git: &str) -> Self {
        let entry = format!(r#"{{"rfilename":"{name}","size":{},"blobId":"{git}"}}"#, content.len());
        Self { name: name.into(), content: content.into(), entry }
    }
}

/// The commit of the made-up repository.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The list of files.
pub(crate) fn list(files: &[Stored]) -> String {
    let entries: Vec<&str> = files.iter().map(|file| file.entry.as_str()).collect();
    format!(r#"{{"id":"org/model","sha":"{COMMIT}","gated":false,"siblings":[{}]}}"#, entries.join(","))
}
