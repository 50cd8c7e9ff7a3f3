//! Against a server in this process that speaks the hub's endpoints.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use server::{COMMIT, Reply, Request, Server, Stored, list};

use super::digest::Hasher;
use super::*;

#[path = "../../tests/cli/hub_server.rs"]
mod server;

const TOKEN: &str = "hf_secret";

fn digest(like: &Digest, content: &[u8]) -> String {
    let mut hasher = Hasher::like(like, content.len() as u64);
    hasher.update(content);
    hasher.finish().hex().to_owned()
}

fn large(name: &str, content: &[u8]) -> Stored {
    Stored::large(name, content, &digest(&Digest::Sha256(String::new()), content))
}

fn small(name: &str, content: &[u8]) -> Stored {
    Stored::small(name, content, &digest(&Digest::Git(String::new()), content))
}

/// 100,000 bytes that are not all the same.
fn weights() -> Vec<u8> {
    (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A hub that answers the list itself and leaves files to `file`.
fn hub_of(files: Vec<Stored>, file: impl Fn(&Request, &Stored) -> Reply + Send + 'static) -> Server {
    Server::start(move |request| {
        if request.path.starts_with("/api/models/org/model/revision/") {
            return Reply::new(200, list(&files));
        }
        let name = request.path.strip_prefix(&format!("/org/model/resolve/{COMMIT}/"));
        match files.iter().find(|stored| Some(stored.name.as_str()) == name) {
            Some(stored) => file(request, stored),
            None => Reply::new(404, "").with("x-error-message", "Entry not found"),
        }
    })
}

fn client(server: &Server, token: Option<&str>) -> Hub {
    Hub::new(&server.address, token.map(str::to_owned), Duration::from_millis(1)).unwrap()
}

/// Fetches everything that a server lists.
fn fetch(server: &Server, dir: &Path, token: Option<&str>) -> Result<Vec<Fetched>> {
    let hub = client(server, token);
    let repository = hub.repository("org/model", "main")?;
    repository.files.iter().map(|file| hub.fetch(&repository, file, dir, &|_| {})).collect()
}

fn error(result: Result<Vec<Fetched>>) -> String {
    let error = format!("{:#}", result.unwrap_err());
    assert!(!error.contains(TOKEN), "{error}");
    error
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        dir.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_come_from_one_commit_and_the_token_goes_to_the_hub_alone() {
    let files = vec![
        small("config.json", b"{}\n"),
        small("a b/empty.json", b""),
        large("model.safetensors", &weights()),
    ];
    let cdn = Server::start(|request| Reply::file(request, &weights()));
    let to = format!("{}/blob?signature=x", cdn.address);
    let hub = Server::start({
        let files = files.clone();
        move |request| match request.path.as_str() {
            "/api/models/org/model/revision/refs%2Fpr%2F1?blobs=true" => Reply::new(200, list(&files)),
            path if path.ends_with("/model.safetensors") => Reply::redirect(&to),
            // To another path of the same host, as for repositories that have another name now.
            path if path.ends_with("/config.json") && path.starts_with("/org/") => {
                Reply::redirect(&path.replace("/org/", "/new/"))
            }
            path if path.starts_with("/new/model/resolve/") => Reply::new(200, "{}\n"),
            other => Reply::new(404, other),
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let client = client(&hub, Some(TOKEN));
    let repository = client.repository("org/model", "refs/pr/1").unwrap();
    assert_eq!(repository.commit, COMMIT);
    for (file, stored) in repository.files.iter().zip(["a b/empty.json", "config.json", "model.safetensors"])
    {
        assert_eq!(file.name, stored);
        assert_eq!(client.fetch(&repository, file, dir.path(), &|_| {}).unwrap(), Fetched::Now);
    }
    for stored in &files {
        assert!(std::fs::read(dir.path().join(&stored.name)).unwrap() == stored.content, "{}", stored.name);
    }
    assert_eq!(names(dir.path()), ["a b", "config.json", "model.safetensors"]);
    let asked: Vec<Request> = hub.requests();
    let bearer = format!("Bearer {TOKEN}");
    assert!(
        asked.len() == 4 && asked.iter().all(|r| r.header("authorization") == Some(&bearer)),
        "{asked:?}"
    );
    assert!(asked[1..].iter().all(|r| r.path.contains(COMMIT)), "{asked:?}");
    let elsewhere = cdn.requests();
    assert!(elsewhere.len() == 1 && elsewhere[0].header("authorization").is_none(), "{elsewhere:?}");
    assert!(!format!("{elsewhere:?}").contains(TOKEN));
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_was() {
    let hub = hub_of(vec![large("m", &weights())], |request, stored| {
        // Every answer ends 30,000 bytes later.
        Reply::file(request, &stored.content).cut(30_000)
    });
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(fetch(&hub, dir.path(), None).unwrap(), [Fetched::Now]);
    assert!(std::fs::read(dir.path().join("m")).unwrap() == weights());
    let first: Vec<Option<usize>> = hub.requests()[1..].iter().map(Request::first).collect();
    assert_eq!(first, [None, Some(30_000), Some(60_000), Some(90_000)]);
    assert_eq!(names(dir.path()), ["m"]);
}

#[test]
fn the_next_call_goes_on_where_the_last_one_ended() {
    let dir = tempfile::tempdir().unwrap();
    let dead = hub_of(vec![large("m", &weights())], |request, stored| match request.first() {
        None => Reply::file(request, &stored.content).cut(40_000),
        Some(_) => Reply::new(503, ""),
    });
    let said = error(fetch(&dead, dir.path(), None));
    assert!(said.contains("`m` has come to 40000 of 100000 bytes") && said.contains("503"), "{said}");
    // The list, and the tries of which the first one brought something.
    assert_eq!(dead.requests().len(), 1 + Tries::MOST as usize);
    let [part] = names(dir.path()).try_into().unwrap();
    assert!(part.starts_with("m.") && part.ends_with(".part"), "{part}");

    let alive = hub_of(vec![large("m", &weights())], |request, stored| Reply::file(request, &stored.content));
    assert_eq!(fetch(&alive, dir.path(), None).unwrap(), [Fetched::Now]);
    assert_eq!(alive.requests()[1].first(), Some(40_000));
    assert!(std::fs::read(dir.path().join("m")).unwrap() == weights());
    assert_eq!(names(dir.path()), ["m"]);

    // Once it is there, it is only looked at.
    assert_eq!(fetch(&alive, dir.path(), None).unwrap(), [Fetched::There]);
    assert_eq!(alive.requests().len(), 3);
    // Unless it is another one.
    std::fs::write(dir.path().join("m"), vec![0; 100_000]).unwrap();
    assert_eq!(fetch(&alive, dir.path(), None).unwrap(), [Fetched::Now]);
    assert!(std::fs::read(dir.path().join("m")).unwrap() == weights());
}

#[test]
fn a_part_of_another_version_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = weights();
    other[0] ^= 1;
    let old = hub_of(vec![large("m", &other)], |request, stored| match request.first() {
        None => Reply::file(request, &stored.content).cut(40_000),
        Some(_) => Reply::new(500, ""),
    });
    error(fetch(&old, dir.path(), None));
    let new = hub_of(vec![large("m", &weights())], |request, stored| Reply::file(request, &stored.content));
    // That of a file of another name stays, and so does one that somebody is fetching.
    std::fs::write(dir.path().join("n.0123456789ab.part"), "").unwrap();
    let busy = dir.path().join("m.0123456789ab.part");
    let lock = std::fs::File::create(&busy).unwrap();
    lock.lock().unwrap();
    assert_eq!(names(dir.path()).len(), 3);
    assert_eq!(fetch(&new, dir.path(), None).unwrap(), [Fetched::Now]);
    assert!(std::fs::read(dir.path().join("m")).unwrap() == weights());
    assert_eq!(names(dir.path()), ["m", "m.0123456789ab.part", "n.0123456789ab.part"]);
}

#[test]
fn a_server_without_ranges_begins_again() {
    let hub = hub_of(vec![large("m", &weights())], |request, stored| {
        let whole = Reply::new(200, stored.content.clone());
        if request.first().is_none() { whole.cut(50_000) } else { whole }
    });
    let dir = tempfile::tempdir().unwrap();
    fetch(&hub, dir.path(), None).unwrap();
    assert!(std::fs::read(dir.path().join("m")).unwrap() == weights());
    // One that gives another part than was asked for is not believed.
    let hub = hub_of(vec![large("m", &weights())], |request, stored| match request.first() {
        None => Reply::new(200, stored.content.clone()).cut(50_000),
        Some(_) => Reply::new(206, &stored.content[7..]).with("content-range", "bytes 7-99999/100000"),
    });
    let dir = tempfile::tempdir().unwrap();
    let said = error(fetch(&hub, dir.path(), None));
    assert!(said.contains("another part than bytes from 50000 on"), "{said}");
}

#[test]
fn contents_that_are_not_what_the_hub_says_are_removed() {
    let mut wrong = weights();
    wrong[77] ^= 1;
    for (sent, found) in
        [(wrong, "came with sha256 "), ([weights(), vec![1]].concat(), "is longer than the 100000 bytes")]
    {
        let hub = hub_of(vec![large("m", &weights())], move |request, _| Reply::file(request, &sent));
        let dir = tempfile::tempdir().unwrap();
        let said = error(fetch(&hub, dir.path(), None));
        assert!(said.contains("`m`") && said.contains(found), "{said}");
        assert!(!dir.path().join("m").exists());
    }
    let hub = hub_of(vec![small("c", b"true")], |request, _| Reply::file(request, b"evil"));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c"), "mine").unwrap();
    let said = error(fetch(&hub, dir.path(), None));
    assert!(said.contains("git blob") && said.contains("it was removed. hint"), "{said}");
    // What was there stays, and nothing else.
    assert_eq!(std::fs::read(dir.path().join("c")).unwrap(), b"mine");
    assert_eq!(names(dir.path()), ["c"]);
}

#[test]
fn refusals_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for (status, token, parts) in [
        (401, None, ["refuses it (401", "set `HF_TOKEN`"]),
        (403, Some(TOKEN), ["with this token (403", "accept the licence at http://"]),
        (404, Some(TOKEN), ["does not have it (404", "hint: see http://"]),
        (418, None, ["answers 418", "saying \"Go away\""]),
    ] {
        let answer = move |_: &Request| Reply::new(status, "").with("x-error-message", "Go away");
        let hub = Server::start(answer);
        let said = error(fetch(&hub, dir.path(), token));
        assert!(said.contains("`org/model` at revision `main`"), "{said}");
        assert!(parts.iter().all(|part| said.contains(part)) && said.contains("Go away"), "{said}");
        assert_eq!(hub.requests().len(), 1);
        // The same for a file.
        let hub = hub_of(vec![small("c", b"x")], move |request, _| answer(request));
        let said = error(fetch(&hub, dir.path(), token));
        assert!(
            said.contains("`c` of `org/model`") && parts.iter().all(|part| said.contains(part)),
            "{said}"
        );
    }
    assert_eq!(names(dir.path()).iter().filter(|name| !name.ends_with(".part")).count(), 0);
}

#[test]
fn a_hub_that_is_busy_is_asked_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let busy = |status| {
        let count = Arc::clone(&count);
        count.store(0, Ordering::SeqCst);
        Server::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Reply::new(status, ""),
            _ => Reply::new(200, list(&[])),
        })
    };
    for status in [429, 500, 503] {
        let server = busy(status);
        assert!(client(&server, None).repository("org/model", "main").unwrap().files.is_empty());
        assert_eq!(server.requests().len(), 3);
    }
    let server = Server::start(|_| Reply::new(500, ""));
    let said = format!("{:#}", client(&server, None).repository("org/model", "main").unwrap_err());
    assert!(said.contains("500") && server.requests().len() == Tries::MOST as usize, "{said}");
    let nobody = Hub::new("http://127.0.0.1:1", None, Duration::ZERO).unwrap();
    let said = format!("{:#}", nobody.repository("org/model", "main").unwrap_err());
    assert!(said.contains("no answer from `127.0.0.1`"), "{said}");
}

#[test]
fn redirects_end_and_stay_on_the_web() {
    let dir = tempfile::tempdir().unwrap();
    for (to, found) in [
        ("/again", "one redirect too many"),
        ("file:///etc/passwd", "which is refused"),
        ("ftp://127.0.0.1/x", "which is refused"),
        ("http://", "no address that can be read"),
    ] {
        let hub = Server::start(move |_| Reply::redirect(to));
        let said = error(fetch(&hub, dir.path(), Some(TOKEN)));
        assert!(said.contains(found), "{said}");
    }
    let hub = Server::start(|_| Reply::new(302, ""));
    assert!(error(fetch(&hub, dir.path(), None)).contains("no address that can be read"));
}

#[test]
fn lists_that_would_do_harm_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let id = "1".repeat(40);
    for name in ["../evil", "/etc/evil", "a/../../evil", "a//b", "./a", "a\\\\b", "c:evil", "", "a\\u0000b"] {
        let files = [Stored::small(name, b"x", &id)];
        let hub = Server::start(move |_| Reply::new(200, list(&files)));
        let said = error(fetch(&hub, dir.path(), None));
        assert!(said.contains("would not stay in its folder"), "{said}");
    }
    for (entry, found) in [
        (r#"{"rfilename": "a"}"#, "does not say size and digest of `a`"),
        (r#"{"rfilename": "a", "size": 3, "blobId": "xyz"}"#, "does not say size and digest of `a`"),
        (r#"{"rfilename": 7}"#, "does not answer like a hub"),
        ("<html>", "does not answer like a hub"),
    ] {
        let text = format!(r#"{{"sha":"{COMMIT}","siblings":[{entry}]}}"#);
        let hub = Server::start(move |_| Reply::new(200, text.clone()));
        let said = error(fetch(&hub, dir.path(), None));
        assert!(said.contains(found), "{said}");
    }
    assert!(names(dir.path()).is_empty());
}

#[test]
fn names_and_addresses_are_checked_before_anything_is_asked() {
    let hub = Hub::new("https://127.0.0.1:1/mirror/", None, Duration::ZERO).unwrap();
    assert_eq!(hub.url(&["org", "a b", "x/y"]).as_str(), "https://127.0.0.1:1/mirror/org/a%20b/x%2Fy");
    for name in ["", "/", "a/b/c", "../x", "a/..", "a b/c", "https://huggingface.co/a/b", ".git/x"] {
        let said = hub.repository(name, "main").unwrap_err().to_string();
        assert!(said.contains("is no name of a model"), "{said}");
    }
    for endpoint in ["huggingface.co", "ftp://x", "", "file:///x"] {
        assert!(Hub::new(endpoint, None, Duration::ZERO).is_err(), "{endpoint}");
    }
}
