//! The Hugging Face hub: what a repository of a model holds, and its files.
//!
//! Three endpoints are used: `GET /api/models/REPO/revision/REV?blobs=true` lists the files of a revision with their sizes and
//! digests and says which commit it is, and `GET /REPO/resolve/COMMIT/FILE` gives a file, mostly by a redirect to another host.
//! Every file comes from that one commit and is compared with its digest: sha256 for large files, git's for small ones.

mod digest;
mod fetch;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use ureq::Body;
use ureq::http::{Response, StatusCode, header};
use url::Url;

pub(crate) use digest::Digest;
pub(crate) use fetch::Fetched;

/// Where the hub is, unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// Environment variables for a token, the first one that is set.
const TOKENS: [&str; 2] = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
/// Redirects that are followed for one file.
const MOST_REDIRECTS: usize = 8;
/// The largest list of files that is read.
const MOST_LIST: u64 = 64 << 20;
/// Between tries; doubles each time.
const PAUSE: Duration = Duration::from_millis(500);
/// For the connection, for the first byte of an answer, and for one answer as a whole: then the rest of a file is asked for
/// anew, so that a connection that stalls holds nobody up for ever.
const TIMEOUTS: [Duration; 3] = [Duration::from_secs(30), Duration::from_secs(60), Duration::from_secs(600)];

/// A hub.
pub(crate) struct Hub {
    agent: ureq::Agent,
    endpoint: Url,
    token: Option<String>,
    pause: Duration,
}

/// A repository at one commit.
#[derive(Debug)]
pub(crate) struct Repository {
    /// `ORG/MODEL`.
    pub(crate) name: String,
    /// The commit's hash.
    pub(crate) commit: String,
    /// Its files, by name.
    pub(crate) files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RemoteFile {
    /// Path in the repository, with `/`; stays inside of a folder that it is appended to.
    pub(crate) name: String,
    /// Its bytes.
    pub(crate) size: u64,
    /// What they must hash to.
    pub(crate) digest: Digest,
}

/// Why a request gave nothing.
enum Trouble {
    /// It may go well the next time.
    Passing(anyhow::Error),
    /// It will not.
    Lasting(anyhow::Error),
}

impl Hub {
    /// The hub and the token that the environment names.
    ///
    /// # Errors
    /// An endpoint that is no address, a token that cannot be one.
    pub(crate) fn from_env() -> Result<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let token = TOKENS.iter().find_map(|name| Some((*name, set(name)?)));
        if let Some((name, _)) =
            token.as_ref().filter(|(_, t)| !t.trim().chars().all(|c| c.is_ascii_graphic()))
        {
            bail!("`{name}` holds what cannot be a token. hint: copy it again, it begins with `hf_`");
        }
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        Self::new(&endpoint, token.map(|(_, token)| token.trim().to_owned()), PAUSE)
    }

    /// A hub at `endpoint`; waits for `pause` before the second try, and longer before later ones.
    pub(crate) fn new(endpoint: &str, token: Option<String>, pause: Duration) -> Result<Self> {
        let url = Url::parse(endpoint.trim()).with_context(|| format!("`HF_ENDPOINT` is `{endpoint}`"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            bail!(
                "`HF_ENDPOINT` is `{endpoint}`, which is no address of a hub. hint: it looks like `{ENDPOINT}`"
            );
        }
        let [connect, first, whole] = TIMEOUTS;
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // Followed here, where it is known who may see the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(connect))
            .timeout_recv_response(Some(first))
            .timeout_recv_body(Some(whole))
            .user_agent(concat!("llamero/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: config.new_agent(), endpoint: url, token, pause })
    }

    /// What repository `name` holds at a revision: a branch, a tag or a commit.
    ///
    /// # Errors
    /// A name that is none; a repository that is absent or closed; an answer that is not the hub's.
    pub(crate) fn repository(&self, name: &str, revision: &str) -> Result<Repository> {
        check_name(name)?;
        let mut segments = vec!["api", "models"];
        segments.extend(name.split('/'));
        segments.extend(["revision", revision]);
        let mut url = self.url(&segments);
        url.set_query(Some("blobs=true"));
        let mut tries = Tries::new(self.pause);
        let list = loop {
            match self.list(&url, name, revision) {
                Ok(list) => break list,
                Err(trouble) => tries.again(trouble)?,
            }
        };
        let mut files = list.siblings.into_iter().map(RemoteFile::try_from).collect::<Result<Vec<_>>>()?;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Repository { name: name.into(), commit: list.sha, files })
    }

    fn list(&self, url: &Url, name: &str, revision: &str) -> Result<ListJson, Trouble> {
        let what = format!("`{name}` at revision `{revision}`");
        let mut response = self.get(url, 0)?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(&response, &what, name));
        }
        let text = response.body_mut().with_config().limit(MOST_LIST).read_to_string();
        let text =
            text.map_err(|e| Trouble::Passing(anyhow!(e).context(format!("the list of files of {what}"))))?;
        serde_json::from_str(&text).map_err(|e| {
            let hint = "hint: is `HF_ENDPOINT` the address of a hub?";
            Trouble::Lasting(anyhow!("`{url}` does not answer like a hub: {e}. {hint}"))
        })
    }

    /// An address below the endpoint.
    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// Asks for `url` from byte `first` on and follows redirects. The token goes to the endpoint's own host and to no other.
    fn get(&self, url: &Url, first: u64) -> Result<Response<Body>, Trouble> {
        let mut url = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let mut request = self.agent.get(url.as_str());
            if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.endpoint.origin()) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if first > 0 {
                request = request.header(header::RANGE, format!("bytes={first}-"));
            }
            let host = url.host_str().unwrap_or_default().to_owned();
            let response = request
                .call()
                .map_err(|e| Trouble::Passing(anyhow!(e).context(format!("no answer from `{host}`"))))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            let lost = || Trouble::Lasting(anyhow!("`{host}` redirects to no address that can be read"));
            let next = url.join(location.ok_or_else(lost)?).map_err(|_| lost())?;
            let kept = next.scheme() == "https" || next.scheme() == url.scheme();
            if !kept || !matches!(next.scheme(), "http" | "https") {
                let text = format!(
                    "`{host}` redirects from {} to `{}:`, which is refused",
                    url.scheme(),
                    next.scheme()
                );
                return Err(Trouble::Lasting(anyhow!(text)));
            }
            url = next;
        }
        Err(Trouble::Lasting(anyhow!("`{url}` is one redirect too many")))
    }

    /// What an answer other than success means. `what` was asked for.
    fn refusal(&self, response: &Response<Body>, what: &str, repository: &str) -> Trouble {
        let status = response.status();
        let says = says(response);
        let page = self.url(&repository.split('/').collect::<Vec<_>>());
        let text = match status.as_u16() {
            401 | 403 if self.token.is_none() => format!(
                "{what}: the hub refuses it ({status}){says}: it is private, or its licence must be accepted, or it does not exist. \
                 hint: accept the licence at {page} and set `{}` to a token of that account",
                TOKENS[0]
            ),
            401 | 403 => format!(
                "{what}: the hub refuses it with this token ({status}){says}. hint: accept the licence at {page} with the account of \
                 the token, and see that the token may read it and has not expired"
            ),
            404 => format!("{what}: the hub does not have it ({status}){says}. hint: see {page}"),
            _ => format!("{what}: the hub answers {status}{says}"),
        };
        match status.as_u16() {
            408 | 425 | 429 | 500..=599 => Trouble::Passing(anyhow!(text)),
            _ => Trouble::Lasting(anyhow!(text)),
        }
    }
}

/// The hub's own words on an error.
fn says(response: &Response<Body>) -> String {
    let message = response.headers().get("x-error-message").and_then(|m| m.to_str().ok()).unwrap_or_default();
    let plain: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
    if plain.is_empty() { plain } else { format!(", saying \"{plain}\"") }
}

/// Tries that come to nothing, one after another.
struct Tries {
    failed: u32,
    pause: Duration,
}

impl Tries {
    const MOST: u32 = 5;

    fn new(pause: Duration) -> Self {
        Self { failed: 0, pause }
    }

    /// Waits if it makes sense to try again.
    fn again(&mut self, trouble: Trouble) -> Result<()> {
        match trouble {
            Trouble::Lasting(error) => Err(error),
            Trouble::Passing(error) if self.failed + 1 == Self::MOST => Err(error),
            Trouble::Passing(error) => {
                self.failed += 1;
                let pause = self.pause * 2u32.pow(self.failed - 1);
                say!("{error:#}; trying again");
                std::thread::sleep(pause);
                Ok(())
            }
        }
    }

    /// Something came: what failed before no longer counts.
    fn progressed(&mut self) {
        self.failed = 0;
    }
}

#[derive(Deserialize)]
struct ListJson {
    sha: String,
    siblings: Vec<FileJson>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileJson {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<LfsJson>,
}

#[derive(Deserialize)]
struct LfsJson {
    sha256: String,
    size: u64,
}

impl TryFrom<FileJson> for RemoteFile {
    type Error = anyhow::Error;

    fn try_from(file: FileJson) -> Result<Self> {
        let name = file.rfilename;
        let inside = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':']);
        if !name.split('/').all(inside) || name.chars().any(char::is_control) {
            bail!("the hub names a file `{}`, which would not stay in its folder", name.escape_debug());
        }
        let (size, digest) = match (file.lfs, file.size, file.blob_id) {
            (Some(lfs), ..) => (lfs.size, Digest::sha256(&lfs.sha256)),
            (None, Some(size), Some(id)) => (size, Digest::git(&id)),
            _ => (0, None),
        };
        match digest {
            Some(digest) => Ok(Self { name, size, digest }),
            None => {
                bail!("the hub does not say size and digest of `{name}`. hint: is `HF_ENDPOINT` a whole hub?")
            }
        }
    }
}

/// `ORG/MODEL`, or `MODEL` alone, of letters, digits, `-`, `_` and `.`.
fn check_name(name: &str) -> Result<()> {
    let plain = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && part.chars().all(known) && !part.starts_with('.')
    };
    if name.split('/').count() <= 2 && name.split('/').all(plain) {
        return Ok(());
    }
    bail!("`{name}` is no name of a model on the hub. hint: it looks like `HuggingFaceTB/SmolLM2-135M`")
}
