//! From WARC records and whole files to documents.

use super::http::{Response, media_type};
use super::stream::Stream;
use super::warc::{Flaw, WarcRecord};
use super::{CONTENT_TYPE, Found, HTML, Place, Record, charset, id_at};
use crate::Document;

/// What a page is, by its media type or, where that says nothing, by how it begins.
enum Content {
    Html,
    Text,
    Other,
}

fn content(media_type: &str, body: &[u8]) -> Content {
    match media_type {
        "text/html" | "application/xhtml+xml" => Content::Html,
        "text/plain" => Content::Text,
        "" | "application/octet-stream" | "unknown/unknown" => {
            let start =
                String::from_utf8_lossy(&body[..body.len().min(256)]).trim_start().to_ascii_lowercase();
            if start.starts_with("<!doctype html") || start.starts_with("<html") {
                Content::Html
            } else {
                Content::Other
            }
        }
        _ => Content::Other,
    }
}

/// What a response is that is no page.
fn status(status: u16) -> &'static str {
    match status {
        404 | 410 => "responses that say the page is not there (404, 410)",
        300..400 => "redirects (3xx)",
        400..500 => "refusals (other 4xx)",
        500..600 => "errors of the server (5xx)",
        _ => "responses of other statuses",
    }
}

/// What a record is that is neither HTML nor text.
fn other(media_type: &str) -> &'static str {
    match media_type.split_once('/') {
        Some((_, "pdf")) => "PDF files",
        Some((_, "json" | "ld+json")) => "JSON",
        Some((_, "xml" | "rss+xml" | "atom+xml")) => "XML and feeds",
        Some((_, "css" | "javascript" | "x-javascript")) => "style sheets and scripts",
        Some(("image", _)) => "images",
        Some(("audio" | "video", _)) => "audio and video",
        Some(("font", _)) => "fonts",
        _ => "records of other media types",
    }
}

/// The document of a WARC record, if it is meant to be one.
pub(super) fn document(record: WarcRecord, name: &str, limit: u64) -> Result<Found, Flaw> {
    let (content_type, body) = match record.kind() {
        "response" => {
            let broken = |reason| Flaw { place: record.place, reason };
            let response = Response::parse(&record.block, limit).map_err(broken)?;
            if response.status != 200 {
                return Ok(Found::Passed(status(response.status)));
            }
            (response.headers.get("Content-Type").map(str::to_owned), response.body)
        }
        "resource" => (record.headers.get("Content-Type").map(str::to_owned), record.block.clone()),
        // A conversion is what another extractor made of a page; WET is always UTF-8.
        "conversion" => (Some("text/plain; charset=utf-8".to_owned()), record.block.clone()),
        "request" => return Ok(Found::Passed("requests")),
        "warcinfo" => return Ok(Found::Passed("descriptions of files")),
        "metadata" => return Ok(Found::Passed("metadata")),
        "revisit" => return Ok(Found::Passed("revisits")),
        _ => return Ok(Found::Passed("records of other types")),
    };
    let media_type = media_type(content_type.as_deref().unwrap_or_default());
    let kind = match content(&media_type, &body) {
        Content::Html => HTML,
        Content::Text => "text/plain",
        Content::Other => return Ok(Found::Passed(other(&media_type))),
    };
    let url = record.url();
    let mut document = Document {
        id: record.id().map_or_else(|| id_at(name, record.place.position), str::to_owned),
        text: charset::decode(&body, content_type.as_deref(), &url),
        url,
        source: name.to_owned(),
        date: record.date().to_owned(),
        ..Document::default()
    };
    document.meta.insert(CONTENT_TYPE.to_owned(), kind.to_owned());
    if let Some(why) = record.headers.get("WARC-Truncated") {
        document.meta.insert("warc.truncated".to_owned(), why.to_owned());
    }
    if let Some(languages) = record.headers.get("WARC-Identified-Content-Language") {
        document.meta.insert("warc.languages".to_owned(), languages.to_owned());
    }
    Ok(Found::Document(Box::new(Record { document, place: record.place })))
}

/// A file that is one document.
pub(super) fn whole(mut stream: Stream, name: &str, limit: u64, html: bool) -> Result<Found, Flaw> {
    let flaw = |length: usize, reason| {
        let place = Place { length: length as u64, ..Place::default() };
        Err(Flaw { place, reason })
    };
    loop {
        let held = stream.window().len();
        if held as u64 > limit {
            return flaw(held, format!("has more than the {limit} bytes allowed"));
        }
        match stream.more() {
            Ok(true) => {}
            Ok(false) => break,
            Err(damage) => return flaw(held, damage.reason),
        }
    }
    let bytes = stream.window();
    let (text, kind) = if html {
        (charset::decode(bytes, None, ""), HTML)
    } else {
        match std::str::from_utf8(bytes) {
            Ok(text) if text.contains('\0') => {
                return flaw(bytes.len(), "is no text: it has NUL bytes".to_owned());
            }
            Ok(text) => (text.strip_prefix('\u{feff}').unwrap_or(text).to_owned(), "text/plain"),
            Err(error) => {
                let reason = format!("is no text: byte {} is not UTF-8", error.valid_up_to());
                return flaw(bytes.len(), reason);
            }
        }
    };
    let place = Place { length: bytes.len() as u64, ..Place::default() };
    let mut document = Document {
        id: super::id_of(name),
        url: name.into(),
        source: name.into(),
        text,
        ..Document::default()
    };
    document.meta.insert(CONTENT_TYPE.to_owned(), kind.to_owned());
    Ok(Found::Document(Box::new(Record { document, place })))
}
