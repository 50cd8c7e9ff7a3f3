//! The character encoding of a page, and its text.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

use super::http::charset;

/// Bytes in which a page declares its encoding, as in browsers, but with room for what comes before.
const DECLARED_WITHIN: usize = 4096;

/// The text of a page.
///
/// What counts, in this order: a byte order mark; bytes that are valid UTF-8, which text in another encoding hardly ever is;
/// the encoding that HTTP or the page declares, if the bytes are valid in it; a guess from the bytes and the top-level domain
/// of the URL. Bytes without meaning become U+FFFD.
pub(crate) fn decode(bytes: &[u8], content_type: Option<&str>, url: &str) -> String {
    if let Some((encoding, length)) = Encoding::for_bom(bytes) {
        return encoding.decode_without_bom_handling(&bytes[length..]).0.into_owned();
    }
    let declared = || {
        let http = content_type.and_then(charset).and_then(|label| Encoding::for_label(label.as_bytes()));
        let page = || declared_in(&bytes[..bytes.len().min(DECLARED_WITHIN)]);
        [http, page()].into_iter().flatten()
    };
    // Encodings with escapes or zeros are valid UTF-8 too, though it is not what they say.
    let escaped = bytes.contains(&0x1b) || bytes.contains(&0);
    if !escaped && let Ok(text) = std::str::from_utf8(bytes) {
        return text.to_owned();
    }
    for encoding in declared() {
        let (text, _, wrong) = encoding.decode(bytes);
        if !wrong {
            return text.into_owned();
        }
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
    detector.feed(bytes, true);
    let guess = detector.guess(top_level_domain(url), Utf8Detection::Allow);
    // A few wrong bytes in what is declared say less than the declaration.
    let encoding = declared().next().filter(|encoding| mostly_valid(encoding, bytes)).unwrap_or(guess);
    encoding.decode(bytes).0.into_owned()
}

/// Whether less than one character in a hundred is wrong in this encoding.
fn mostly_valid(encoding: &'static Encoding, bytes: &[u8]) -> bool {
    let text = encoding.decode(bytes).0;
    let wrong = text.chars().filter(|&c| c == char::REPLACEMENT_CHARACTER).count();
    wrong * 100 < text.chars().count()
}

/// The encoding in `<meta charset=…>`, `<meta http-equiv=… content="…; charset=…">` or `<?xml encoding=…?>`.
fn declared_in(bytes: &[u8]) -> Option<&'static Encoding> {
    let text: String = bytes.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect();
    let tags = text.split('<').filter(|tag| tag.starts_with("meta") || tag.starts_with("?xml"));
    let label = tags.filter_map(|tag| {
        let tag = &tag[..tag.find('>').unwrap_or(tag.len())];
        let key = if tag.starts_with("meta") { "charset" } else { "encoding" };
        let value = tag[tag.find(key)? + key.len()..].trim_start().strip_prefix('=')?;
        let value = value.trim_start_matches([' ', '"', '\'']);
        Encoding::for_label(
            &value.as_bytes()[..value.find(['"', '\'', ';', ' ', '/', '?']).unwrap_or(value.len())],
        )
    });
    // A page that could be read so far is not in UTF-16, whatever it says.
    label.map(|found| if found == UTF_16LE || found == UTF_16BE { UTF_8 } else { found }).next()
}

/// `jp` of `https://example.co.jp:8080/…`, as the guess takes it.
fn top_level_domain(url: &str) -> Option<&[u8]> {
    let host = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let host = host.rsplit('@').next()?.split(':').next()?;
    let domain = host.rsplit('.').next()?;
    let valid = domain.len() > 1 && domain.bytes().all(|byte| byte.is_ascii_lowercase());
    valid.then_some(domain.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_and_undeclared_encodings_are_read() {
        let russian = "<p>Привет, это страница о городе и его жителях";
        let (bytes, _, _) = encoding_rs::WINDOWS_1251.encode(russian);
        assert_eq!(decode(&bytes, Some("text/html; charset=windows-1251"), ""), russian);
        assert_eq!(decode(&bytes, None, "http://example.ru/"), russian);
        let declaring =
            format!("<meta http-equiv='Content-Type' content='text/html; charset=windows-1251'>{russian}");
        let (bytes, _, _) = encoding_rs::WINDOWS_1251.encode(&declaring);
        assert_eq!(decode(&bytes, None, ""), declaring);
        // Latin-1 declared by a server's default, but written in UTF-8.
        assert_eq!(decode(russian.as_bytes(), Some("text/html; charset=iso-8859-1"), ""), russian);
        let japanese = "<p>こんにちは、世界";
        let (bytes, _, _) = encoding_rs::ISO_2022_JP.encode(japanese);
        assert_eq!(decode(&bytes, Some("text/html; charset=iso-2022-jp"), ""), japanese);
        let little: Vec<u8> = "\u{feff}Zürich".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(decode(&little, None, ""), "Zürich");
    }

    #[test]
    fn domains_are_found() {
        assert_eq!(top_level_domain("http://user@example.co.jp:80/a.b"), Some(&b"jp"[..]));
        assert_eq!(top_level_domain("http://10.0.0.1/"), None);
    }
}
