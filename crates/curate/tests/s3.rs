//! Inputs in a store that speaks S3: moto, which the test starts (`pip install 'moto[server,s3]'`). Without it, it is skipped.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use llamero_curate::read::{ReadConfig, find};
use llamero_curate::{CurateConfig, curate, inventory};

/// Set in the process that reads: object stores are set up by variables of the environment, which a test cannot change in its own.
const READER: &str = "LLAMERO_TEST_S3_READER";

/// Documents of an object, one a line.
const COUNT: usize = 1000;

fn lines(key: &str) -> String {
    let line = |n| {
        format!(
            "{{\"text\": \"Document {n} of {key} has enough words of its own to stay, as all others here have.\"}}\n"
        )
    };
    (0..COUNT).map(line).collect()
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Sends a request, and says how the answer begins.
fn put(port: u16, path: &str, body: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let length = body.len();
    // Moto looks into the credentials for no more than the region.
    write!(
        stream,
        "PUT {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {length}\r\nConnection: close\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=key/20240101/us-east-1/s3/aws4_request\r\n\r\n"
    )?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn start() -> Option<(Server, u16)> {
    let named = std::env::var("LLAMERO_MOTO");
    let program = named.as_deref().unwrap_or("moto_server");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = Command::new(program)
        .args(["-H", "127.0.0.1", "-p", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let server = match child {
        Ok(child) => Server(child),
        Err(error) if named.is_ok() => panic!("LLAMERO_MOTO={program}: {error}"),
        Err(_) => return None,
    };
    // It takes some seconds to start; the bucket is made by the first request that it answers.
    for _ in 0..300 {
        if put(port, "/bucket", b"").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            return Some((server, port));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("moto was started, but does not answer");
}

#[test]
fn documents_are_read_from_s3() {
    if std::env::var_os(READER).is_some() {
        return read();
    }
    let Some((_server, port)) = start() else {
        eprintln!("skipped: moto_server is not installed, and LLAMERO_MOTO does not name it");
        return;
    };
    for key in ["crawl/a.jsonl", "crawl/b/c.jsonl", "other/d.jsonl"] {
        let answer = put(port, &format!("/bucket/{key}"), lines(key).as_bytes()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let reader = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "documents_are_read_from_s3", "--nocapture"])
        .env(READER, "1")
        .env("AWS_ENDPOINT", format!("http://127.0.0.1:{port}"))
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .status();
    assert!(reader.unwrap().success());
}

fn read() {
    let names = |entry: &str| {
        let inputs = find(&[entry.to_owned()]).unwrap();
        let config = ReadConfig::default();
        for input in &inputs {
            assert_eq!(input.records(&config).map(Result::unwrap).count(), COUNT);
        }
        inputs.iter().map(|input| input.name().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("s3://bucket/crawl/"), ["crawl/a.jsonl", "crawl/b/c.jsonl"]);
    assert_eq!(names("s3://bucket/crawl/**/*.jsonl"), ["crawl/a.jsonl", "crawl/b/c.jsonl"]);
    assert_eq!(names("s3://bucket/other/d.jsonl"), ["d.jsonl"]);
    // From the list, in which each object has its version, to the corpus.
    let sources = vec!["s3://bucket/crawl/".to_owned()];
    let config = CurateConfig { sources, read: Some(ReadConfig::default()), ..CurateConfig::default() };
    let out = tempfile::tempdir().unwrap();
    let report = curate(&config, &inventory(&config, &()).unwrap(), &out.path().join("corpus"), &()).unwrap();
    assert_eq!((report.documents_in, report.documents_kept), (2 * COUNT as u64, 2 * COUNT as u64));
    let missing = find(&["s3://bucket/nothing".to_owned()]).err().unwrap();
    assert!(missing.to_string().contains("no object of that name or prefix"), "{missing}");
}
