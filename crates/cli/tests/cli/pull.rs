//! `llamero pull` from a hub in this process.

use std::path::Path;

use crate::hub_server::{COMMIT, Reply, Server, Stored, list};
use crate::world::{Said, command, said};

const CONTENT: &[u8] = b"hello\n";
/// `sha256sum` and `git hash-object` of it.
const SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
const GIT: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

fn hub(names: &'static [&'static str], token: Option<&'static str>) -> Server {
    Server::start(move |request| {
        if request.header("authorization") != token.map(|t| format!("Bearer {t}")).as_deref() {
            return Reply::new(401, "").with("x-error-message", "Access to model org/model is restricted");
        }
        let stored = |name: &&str| {
            if name.contains('.') && !name.ends_with(".json") {
                Stored::large(name, CONTENT, SHA256)
            } else {
                Stored::small(name, CONTENT, GIT)
            }
        };
        let files: Vec<Stored> = names.iter().map(stored).collect();
        match request.path.as_str() {
            "/api/models/org/model/revision/main?blobs=true" => Reply::new(200, list(&files)),
            path if path.starts_with(&format!("/org/model/resolve/{COMMIT}/")) => {
                Reply::file(request, CONTENT)
            }
            other => Reply::new(404, other),
        }
    })
}

/// The binary in an empty environment but for these variables, in `dir`.
fn pull(dir: &Path, hub: &Server, token: Option<&str>, args: &[&str]) -> Said {
    let mut command = command(["pull", "org/model"].iter().chain(args));
    command.current_dir(dir).env("HF_ENDPOINT", &hub.address);
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(name);
    }
    if let Some(token) = token {
        command.env("HUGGING_FACE_HUB_TOKEN", token);
    }
    said(&command.output().unwrap())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        dir.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const FILES: &[&str] =
    &["config.json", "model.safetensors", "pytorch_model.bin", "original/a.pth", "x-Q8_0.gguf", "LICENSE"];

#[test]
fn a_model_is_fetched_into_a_folder_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(FILES, Some("hf_x"));
    assert_eq!(pull(dir.path(), &hub, Some("hf_x"), &[]).ok(), "model\n");
    assert_eq!(names(&dir.path().join("model")), ["LICENSE", "config.json", "model.safetensors"]);
    let asked = hub.requests().len();
    // The second call only looks.
    assert_eq!(pull(dir.path(), &hub, Some("hf_x"), &[]).ok(), "model\n");
    assert_eq!(hub.requests().len(), asked + 1);
    let args =
        ["--include", "*.gguf", "--include", "original/*", "--exclude", "*.json", "--dir", "mine/here"];
    assert_eq!(pull(dir.path(), &hub, Some("hf_x"), &args).ok(), "mine/here\n");
    assert_eq!(names(&dir.path().join("mine/here")), ["original", "x-Q8_0.gguf"]);
    assert_eq!(std::fs::read(dir.path().join("mine/here/original/a.pth")).unwrap(), CONTENT);
}

#[test]
fn what_cannot_be_fetched_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let closed = hub(FILES, Some("hf_x"));
    pull(dir.path(), &closed, None, &[])
        .fails(1, &["is restricted", "401", "\nhint: accept the licence", "HF_TOKEN"]);
    let said = pull(dir.path(), &closed, Some("hf_other"), &[]).fails(1, &["with this token", "\nhint: "]);
    assert!(!said.contains("hf_other"), "{said}");
    pull(dir.path(), &closed, Some("hf x"), &[])
        .fails(1, &["`HUGGING_FACE_HUB_TOKEN` holds what cannot be a token"]);
    let open = hub(&["README.md", "a.gguf", "b.gguf"], None);
    pull(dir.path(), &open, None, &[])
        .fails(1, &["no safetensors", "`a.gguf`, `b.gguf`", "\nhint: choose with `--include`"]);
    pull(dir.path(), &open, None, &["--include", "*.pth"]).fails(1, &["no file that is asked for"]);
    pull(dir.path(), &open, None, &["--revision", "v9"])
        .fails(1, &["at revision `v9`", "does not have it (404"]);
    assert!(names(dir.path()).is_empty());
}
