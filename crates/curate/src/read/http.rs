//! An HTTP response as a crawler stored it: status, fields, and the body without its transfer and content encodings.

use std::io::{self, Read};

use super::warc::Headers;

/// A stored response.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code, such as 200.
    pub status: u16,
    /// Its named fields.
    pub headers: Headers,
    /// The body, decoded.
    pub body: Vec<u8>,
}

impl Response {
    /// Parses a response. Where a body is not encoded as its fields say (many crawlers store it decoded and keep the fields),
    /// it is taken as it is.
    ///
    /// # Errors
    /// No status line, a body whose encoding breaks off, or one of more than `limit` bytes, in words.
    pub fn parse(bytes: &[u8], limit: u64) -> Result<Response, String> {
        let (head, body) = split_head(bytes);
        let (line, fields) = head.split_at(head.iter().position(|&byte| byte == b'\n').unwrap_or(head.len()));
        let status = status(line).ok_or_else(|| {
            let shown: String = String::from_utf8_lossy(line).chars().take(40).collect();
            format!("its HTTP status line is `{}`", shown.trim().escape_debug())
        })?;
        let headers = Headers::parse(fields);
        let chunked =
            headers.get("Transfer-Encoding").is_some_and(|v| v.to_ascii_lowercase().contains("chunked"));
        let mut body = match chunked.then(|| dechunk(body)).flatten() {
            Some(body) => body?,
            None => body.to_vec(),
        };
        let codings = headers.get("Content-Encoding").unwrap_or_default().to_ascii_lowercase();
        // The last one was applied last.
        for coding in codings.rsplit(',').map(str::trim) {
            body = decode(coding, body, limit)?;
        }
        Ok(Response { status, headers, body })
    }

    /// The media type, in lower case and without parameters; empty where there is none.
    pub fn media_type(&self) -> String {
        media_type(self.headers.get("Content-Type").unwrap_or_default())
    }
}

/// `text/html` of `text/HTML; charset=…`.
pub(crate) fn media_type(value: &str) -> String {
    value.split([';', ',']).next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The parameter `charset` of a media type.
pub(crate) fn charset(value: &str) -> Option<&str> {
    value.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches(['"', '\'']))
    })
}

/// Head and body, divided by an empty line.
fn split_head(bytes: &[u8]) -> (&[u8], &[u8]) {
    let mut line = 0;
    while let Some(end) = bytes[line..].iter().position(|&byte| byte == b'\n') {
        let text = &bytes[line..line + end];
        line += end + 1;
        if text.is_empty() || text == b"\r" {
            return bytes.split_at(line);
        }
    }
    (bytes, &[])
}

/// The code of a line such as `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line.get(..16.min(line.len()))?).ok()?;
    let mut words = line.split_ascii_whitespace();
    words.next().filter(|word| word.starts_with("HTTP/"))?;
    words.next()?.parse().ok().filter(|code| (100..1000).contains(code))
}

/// The body without its chunk sizes; none if it has none at its start.
fn dechunk(bytes: &[u8]) -> Option<Result<Vec<u8>, String>> {
    let mut body = Vec::with_capacity(bytes.len());
    let (mut rest, mut first) = (bytes, true);
    loop {
        let Some((size, after)) = chunk_size(rest) else {
            let at = bytes.len() - rest.len();
            return (!first).then(|| Err(format!("its chunked body breaks off at byte {at}")));
        };
        first = false;
        if size == 0 {
            return Some(Ok(body));
        }
        let Some(chunk) = after.get(..size) else {
            let missing = size - after.len();
            return Some(Err(format!("its chunked body ends {missing} bytes early")));
        };
        body.extend_from_slice(chunk);
        rest = &after[size..];
        rest = rest.strip_prefix(b"\r\n").or_else(|| rest.strip_prefix(b"\n")).unwrap_or(rest);
    }
}

/// The size in hexadecimal at the start of a chunk, and what follows its line.
fn chunk_size(bytes: &[u8]) -> Option<(usize, &[u8])> {
    // An extension may follow the size.
    let end = bytes.iter().take(256).position(|&byte| byte == b'\n')?;
    let line = std::str::from_utf8(&bytes[..end]).ok()?;
    let digits = line.split(';').next()?.trim();
    let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let size = usize::from_str_radix(digits, 16).ok().filter(|_| valid)?;
    Some((size, &bytes[end + 1..]))
}

/// Undoes one content encoding.
fn decode(coding: &str, body: Vec<u8>, limit: u64) -> Result<Vec<u8>, String> {
    let bytes = body.as_slice();
    let decoded = match coding {
        "gzip" | "x-gzip" if bytes.starts_with(&[0x1f, 0x8b]) => {
            take(flate2::read::MultiGzDecoder::new(bytes), limit)
        }
        // Named after zlib, but some servers send it bare.
        "deflate" if is_zlib(bytes) => take(flate2::read::ZlibDecoder::new(bytes), limit),
        "deflate" if !body.is_empty() => match take(flate2::read::DeflateDecoder::new(bytes), limit) {
            Err(_) => return Ok(body),
            decoded => decoded,
        },
        // It has no mark: what cannot be decoded was stored decoded.
        "br" => match take(brotli_decompressor::Decompressor::new(bytes, 4096), limit) {
            Err(_) => return Ok(body),
            decoded => decoded,
        },
        "zstd" if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) => {
            zstd::stream::read::Decoder::with_buffer(bytes).and_then(|decoder| take(decoder, limit))
        }
        _ => return Ok(body),
    };
    let decoded = decoded.map_err(|error| format!("its {coding} body is damaged: {error}"))?;
    if decoded.len() as u64 > limit {
        return Err(format!("its {coding} body has more than the {limit} bytes allowed"));
    }
    Ok(decoded)
}

fn is_zlib(bytes: &[u8]) -> bool {
    matches!(bytes, [first, second, ..] if first & 15 == 8 && (u32::from(*first) << 8 | u32::from(*second)) % 31 == 0)
}

/// Reads to the end, or one byte beyond the limit.
fn take(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn body(head: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        let bytes = [format!("HTTP/1.1 200 OK\r\n{head}\r\n").as_bytes(), body].concat();
        Response::parse(&bytes, 1000).map(|response| response.body)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn bodies_are_decoded_where_they_are_encoded() {
        let chunked = "Transfer-Encoding: chunked\r\n";
        assert_eq!(body(chunked, b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), Ok(b"abcde".to_vec()));
        assert_eq!(body(chunked, b"<p>stored decoded"), Ok(b"<p>stored decoded".to_vec()));
        assert_eq!(body("content-encoding: gzip\r\n", &gzip(b"hello")), Ok(b"hello".to_vec()));
        assert_eq!(body("Content-Encoding: gzip\r\n", b"hello"), Ok(b"hello".to_vec()));
        assert_eq!(body("Content-Encoding: br\r\n", b"\x0b\x02\x80hello\x03"), Ok(b"hello".to_vec()));
        assert_eq!(body("Content-Encoding: br\r\n", b"<html>"), Ok(b"<html>".to_vec()));
        let zlib = b"\x78\x9c\xcb\x48\xcd\xc9\xc9\x07\x00\x06\x2c\x02\x15";
        assert_eq!(body("Content-Encoding: deflate\r\n", zlib), Ok(b"hello".to_vec()));
        assert_eq!(body("Content-Encoding: deflate\r\n", &zlib[2..11]), Ok(b"hello".to_vec()));
        let twice = gzip(&gzip(b"hello"));
        assert_eq!(body("Content-Encoding: gzip, gzip\r\n", &twice), Ok(b"hello".to_vec()));
    }

    #[test]
    fn broken_bodies_are_told() {
        let cut = body("Transfer-Encoding: chunked\r\n", b"5\r\nabcde\r\nff\r\nx").unwrap_err();
        assert_eq!(cut, "its chunked body ends 254 bytes early");
        let cut = body("Content-Encoding: gzip\r\n", &gzip(b"hello")[..12]).unwrap_err();
        assert!(cut.starts_with("its gzip body is damaged"), "{cut}");
        let large = body("Content-Encoding: gzip\r\n", &gzip(&[b'x'; 1001])).unwrap_err();
        assert_eq!(large, "its gzip body has more than the 1000 bytes allowed");
        assert!(Response::parse(b"<html>", 10).unwrap_err().contains("`<html>`"));
    }

    #[test]
    fn parameters_are_found() {
        assert_eq!(charset("text/html; a=b; Charset=\"UTF-8\""), Some("UTF-8"));
        assert_eq!(charset("text/html"), None);
        assert_eq!(media_type("Text/HTML ; charset=x"), "text/html");
    }
}
