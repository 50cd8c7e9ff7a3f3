//! URL duplicates: the newest document of each address.

use serde::{Deserialize, Serialize};

use super::Verdicts;
use super::verdict::First;
use crate::CurateError;
use crate::item::Value;
use crate::plan::{Emit, Input, Map, Registry, Step};

pub(super) fn register(registry: &mut Registry) {
    registry.map_of::<UrlKey>("url-key");
}

/// Appends the stage `url`; sketches must have their URL hash.
///
/// # Errors
/// None in practice.
pub fn append(verdicts: &mut Verdicts) -> Result<(), CurateError> {
    let left = verdicts.left("url");
    let first = First {
        reason: "url_duplicate".to_owned(),
        detail: "the newest document of the address is kept".to_owned(),
    };
    let input = Input::through(&left, vec![Step::new("url-key")]);
    verdicts.plan().stage("url", vec![input], Some(Step::with("first", &first)?));
    verdicts.give("url");
    Ok(())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UrlKey {}

impl Map for UrlKey {
    fn map(&self, _: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let sketch = Value::sketch(value)?;
        if sketch.url.is_empty() { Ok(()) } else { emit(&sketch.url, &sketch.label) }
    }
}

/// Query parameters that say who came from where, and nothing of the page.
const TRACKING: [&str; 8] = ["fbclid", "gclid", "dclid", "msclkid", "mc_cid", "mc_eid", "igshid", "_ga"];

/// An address without what does not change the page: scheme, user, `www.`, default port, fragment, slash at the end,
/// `index.html`, tracking parameters, order of parameters. None where there is none.
///
/// What is no URL, such as a path, is compared as it is.
pub fn normalise(address: &str) -> Option<String> {
    let address = address.trim();
    if address.is_empty() {
        return None;
    }
    // Crawls also have addresses without a scheme, but a path below a source is no address.
    let Ok(url) = ::url::Url::parse(address) else { return Some(address.to_owned()) };
    let Some(host) = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https")) else {
        return Some(address.to_owned());
    };
    let host = host.trim_end_matches('.');
    let mut text = host.strip_prefix("www.").unwrap_or(host).to_owned();
    if let Some(port) = url.port() {
        text += &format!(":{port}");
    }
    let path = url.path();
    let path = ["index.html", "index.htm", "index.php"]
        .into_iter()
        .find_map(|index| path.strip_suffix(index).filter(|rest| rest.ends_with('/')))
        .unwrap_or(path);
    text += path.trim_end_matches('/');
    let is_kept = |part: &&str| {
        let name = part.split('=').next().unwrap_or_default();
        !part.is_empty() && !name.starts_with("utm_") && !TRACKING.contains(&name)
    };
    let mut query: Vec<_> = url.query().unwrap_or_default().split('&').filter(is_kept).collect();
    query.sort_unstable();
    if !query.is_empty() {
        text += &format!("?{}", query.join("&"));
    }
    Some(text)
}
