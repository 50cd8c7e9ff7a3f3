//! Text to words, as a tokenizer of English sees them.
//!
//! A chunk between white space is stripped of brackets, quotes and other marks at its ends, each a word of its own; what is left
//! is cut at hyphens and slashes between letters and at a few other places, unless it looks like a URL; contractions come apart
//! (`don't` is `do` and `n't`), and abbreviations keep their full stop. These are the rules of the tokenizer behind the published
//! heuristics of FineWeb in datatrove; thresholds on counts of words mean the same here. In scripts without spaces between
//! words every character is a word of its own, with the signs above and below it.

use super::characters::{is_attached, is_space};
use crate::dedup::minhash::is_word_alone;

/// Calls `emit` with the byte range of each word, in order.
pub(crate) fn words(text: &str, emit: &mut impl FnMut(usize, usize)) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte < 0x80 {
            if KIND[byte as usize] == SPACE {
                at += 1;
                continue;
            }
        } else if let Some(c) = text[at..].chars().next().filter(|&c| is_space(c)) {
            at += c.len_utf8();
            continue;
        } else if let Some(length) = alone(&text[at..]) {
            emit(at, at + length);
            at += length;
            continue;
        }
        let from = at;
        let mut kinds = 0;
        while at < bytes.len() {
            let kind = KIND[bytes[at] as usize];
            if kind == SPACE {
                break;
            }
            if kind == WIDE {
                let Some(c) = text[at..].chars().next() else { break };
                if is_space(c) || is_word_alone(c) {
                    break;
                }
                kinds |= WIDE;
                at += c.len_utf8();
            } else {
                kinds |= kind;
                at += 1;
            }
        }
        if kinds == LETTER {
            plain(text, from, at, emit);
        } else {
            chunk(text, from, at, emit);
        }
    }
}

/// Bytes of the word at the start of a text that is one character and its signs.
fn alone(text: &str) -> Option<usize> {
    let mut characters = text.char_indices();
    characters.next().filter(|&(_, c)| is_word_alone(c))?;
    Some(characters.find(|&(_, c)| !is_attached(c)).map_or(text.len(), |(at, _)| at))
}

const SPACE: u8 = 1;
const LETTER: u8 = 2;
const OTHER: u8 = 4;
const WIDE: u8 = 8;

/// What each byte is.
const KIND: [u8; 256] = {
    let mut kinds = [OTHER; 256];
    let mut byte = 0;
    while byte < 256 {
        if byte >= 0x80 {
            kinds[byte] = WIDE;
        } else if byte == b' ' as usize || (byte >= 9 && byte <= 13) || (byte >= 0x1c && byte <= 0x1f) {
            kinds[byte] = SPACE;
        } else if (byte as u8).is_ascii_alphabetic() {
            kinds[byte] = LETTER;
        }
        byte += 1;
    }
    kinds
};

/// A chunk of ASCII letters: one word, but for contractions written without their apostrophe.
fn plain(text: &str, from: usize, to: usize, emit: &mut impl FnMut(usize, usize)) {
    match joined(&text.as_bytes()[from..to]) {
        Some(cut) => {
            emit(from, from + cut);
            emit(from + cut, to);
        }
        None => emit(from, to),
    }
}

/// Auxiliaries that take `n't`, without it.
const NEGATED: [&str; 22] = [
    "ai", "are", "ca", "could", "dare", "did", "does", "do", "had", "has", "have", "is", "may", "might",
    "must", "need", "ought", "sha", "should", "was", "were", "would",
];

/// Words that `cannot` and the like are made of, by where they are cut.
const JOINED: [(&str, usize); 22] = [
    ("cannot", 3),
    ("gonna", 3),
    ("gotta", 3),
    ("wont", 2),
    ("im", 1),
    ("ive", 1),
    ("id", 1),
    ("youre", 3),
    ("youve", 3),
    ("youll", 3),
    ("youd", 3),
    ("theyre", 4),
    ("theyve", 4),
    ("theyll", 4),
    ("theyd", 4),
    ("thats", 4),
    ("whats", 4),
    ("hes", 2),
    ("shes", 3),
    ("theres", 5),
    ("weve", 2),
    ("wheres", 5),
];

/// Where a word that is two in one is cut. Only lower case, a capital first letter and all capitals count.
fn joined(word: &[u8]) -> Option<usize> {
    if !(2..=8).contains(&word.len())
        || !matches!(word[word.len() - 1] | 0x20, b't' | b'a' | b's' | b'e' | b'l' | b'd' | b'm')
    {
        return None;
    }
    if let Some(&(_, cut)) = JOINED.iter().find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(word)) {
        return Some(cut);
    }
    let stem = word.strip_suffix(b"nt").or_else(|| word.strip_suffix(b"NT"))?;
    let known = |stem: &[u8]| NEGATED.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(stem));
    // `want` and `cent` end so by nature; `dant` is not in use.
    known(stem).then_some(stem.len())
}

/// A chunk with marks, digits or letters beyond ASCII.
fn chunk(text: &str, from: usize, to: usize, emit: &mut impl FnMut(usize, usize)) {
    let (mut left, mut right) = (from, to);
    // Ends of the marks taken from the right, the outermost first; more than these stay in the middle.
    let mut suffixes = [0_usize; 64];
    let mut taken = 0;
    while left < right && !is_special(&text[left..right]) {
        let rest = &text[left..right];
        let prefix = prefix(rest);
        if prefix > 0 {
            emit(left, left + prefix);
            left += prefix;
            if is_special(&text[left..right]) {
                break;
            }
        }
        let suffix = if left < right && taken < suffixes.len() { suffix(&text[left..right]) } else { 0 };
        if suffix > 0 {
            suffixes[taken] = right;
            taken += 1;
            right -= suffix;
        }
        if prefix == 0 && suffix == 0 {
            break;
        }
    }
    if left < right {
        middle(text, left, right, emit);
    }
    for &end in suffixes[..taken].iter().rev() {
        emit(right, end);
        right = end;
    }
}

/// What is left of a chunk without the marks at its ends.
fn middle(text: &str, from: usize, to: usize, emit: &mut impl FnMut(usize, usize)) {
    let rest = &text[from..to];
    if let Some(cut) = contraction(rest).or_else(|| joined(rest.as_bytes())) {
        emit(from, from + cut);
        emit(from + cut, to);
        return;
    }
    if is_special(rest) || is_url(rest) {
        emit(from, to);
        return;
    }
    let mut start = from;
    let mut before: Option<char> = None;
    let mut characters = rest.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        let mut end = at + c.len_utf8();
        if c == '.' || matches!(c, '-' | '–' | '—' | '~') {
            // A run of the same mark is one.
            while (c == '.' || c == '-') && rest[end..].starts_with(c) {
                end += 1;
                characters.next();
            }
        }
        let after = rest[end..].chars().next();
        let is_cut = match (before, after) {
            (Some(before), Some(after)) => infix(before, c, end - at, after),
            _ => false,
        };
        if is_cut {
            if start < from + at {
                emit(start, from + at);
            }
            emit(from + at, from + end);
            start = from + end;
        }
        before = Some(c);
    }
    if start < to {
        emit(start, to);
    }
}

/// Whether a mark between two characters cuts a word. `length` is the number of bytes of its run.
fn infix(before: char, mark: char, length: usize, after: char) -> bool {
    let quote = |c: char| matches!(c, '\'' | '"' | '”' | '“' | '`' | '‘' | '´' | '’' | '‚' | '„' | '»' | '«');
    match mark {
        '.' if length > 1 => true,
        '…' => true,
        '.' => (before.is_lowercase() || quote(before)) && (after.is_uppercase() || quote(after)),
        ',' => before.is_alphabetic() && after.is_alphabetic(),
        '-' | '–' | '—' | '~' if before.is_alphabetic() && after.is_alphabetic() => length <= 3,
        '+' | '-' | '*' | '^' => before.is_ascii_digit() && (after.is_ascii_digit() || after == '-'),
        ':' | '<' | '>' | '=' | '/' => {
            (before.is_alphabetic() || before.is_ascii_digit()) && after.is_alphabetic()
        }
        _ => is_pictograph(mark),
    }
}

/// Symbols that are neither letters nor marks: emoji, arrows, boxes, dingbats.
fn is_pictograph(c: char) -> bool {
    matches!(c, '©' | '®' | '°' | '¦' | '\u{2100}'..='\u{214f}' | '\u{2195}'..='\u{21ff}' | '\u{2300}'..='\u{27bf}'
        | '\u{2800}'..='\u{28ff}' | '\u{2b00}'..='\u{2bff}' | '\u{1f000}'..='\u{1faff}')
        && !matches!(c, '\u{2102}' | '\u{2107}' | '\u{210a}'..='\u{2113}' | '\u{2115}' | '\u{2119}'..='\u{211d}')
}

fn is_currency(c: char) -> bool {
    matches!(c, '$' | '£' | '€' | '¥' | '฿' | '\u{20a0}'..='\u{20c0}')
}

/// Marks that stand alone at either end of a chunk.
fn is_mark(c: char) -> bool {
    matches!(
        c,
        '…' | ','
            | ':'
            | ';'
            | '!'
            | '?'
            | '¿'
            | '؟'
            | '¡'
            | '('
            | ')'
            | '['
            | ']'
            | '{'
            | '}'
            | '<'
            | '>'
            | '_'
            | '#'
            | '*'
            | '&'
            | '。'
            | '？'
            | '！'
            | '，'
            | '、'
            | '；'
            | '：'
            | '～'
            | '·'
            | '।'
            | '،'
            | '۔'
            | '؛'
            | '٪'
            | '\''
            | '"'
            | '”'
            | '“'
            | '`'
            | '‘'
            | '´'
            | '’'
            | '‚'
            | '„'
            | '»'
            | '«'
            | '「'
            | '」'
            | '『'
            | '』'
            | '（'
            | '）'
            | '〔'
            | '〕'
            | '【'
            | '】'
            | '《'
            | '》'
            | '〈'
            | '〉'
            | '—'
            | '–'
    ) || is_pictograph(c)
}

/// Bytes of the mark that the text begins with.
fn prefix(text: &str) -> usize {
    let Some(c) = text.chars().next() else { return 0 };
    let rest = &text[c.len_utf8()..];
    let alone = match c {
        '.' => {
            let dots = text.len() - text.trim_start_matches('.').len();
            return if dots > 1 { dots } else { 0 };
        }
        '…' => return text.len() - text.trim_start_matches('…').len(),
        '+' => !rest.starts_with(|c: char| c.is_ascii_digit()),
        '§' | '%' | '=' => true,
        _ => is_mark(c) || is_currency(c),
    };
    if alone { c.len_utf8() } else { 0 }
}

/// Units that are cut off a number.
const UNITS: [&str; 38] = [
    "km", "km²", "km³", "m", "m²", "m³", "dm", "cm", "mm", "ha", "µm", "nm", "yd", "in", "ft", "kg", "g",
    "mg", "µg", "t", "lb", "oz", "m/s", "km/h", "kmh", "mph", "Pa", "mb", "MB", "kb", "KB", "gb", "GB", "tb",
    "TB", "T", "K", "M",
];

/// Bytes of the longest unit, and some.
const MAX_UNIT: usize = 8;

/// Bytes of the mark that the text ends with.
fn suffix(text: &str) -> usize {
    let Some(c) = text.chars().next_back() else { return 0 };
    let head = &text[..text.len() - c.len_utf8()];
    let before = head.chars().next_back();
    match c {
        '.' => {
            let dots = text.len() - text.trim_end_matches('.').len();
            if dots > 1 {
                return dots;
            }
            let Some(before) = before else { return 0 };
            let capitals =
                before.is_uppercase() && head[..head.len() - before.len_utf8()].ends_with(char::is_uppercase);
            let ends = before.is_lowercase() || before.is_ascii_digit() || capitals || is_mark(before);
            usize::from(ends || matches!(before, '%' | '²' | '-' | '+'))
        }
        '…' => text.len() - text.trim_end_matches('…').len(),
        's' | 'S' if head.ends_with(['\'', '’']) => 1 + before.map_or(0, char::len_utf8),
        '+' => usize::from(before.is_some_and(|c| c.is_ascii_digit())),
        _ if is_mark(c) => c.len_utf8(),
        _ if is_currency(c) || c == '%' => {
            c.len_utf8() * usize::from(before.is_some_and(|c| c.is_ascii_digit()))
        }
        // The digit before a unit is near: to look at all of the text for each mark would take a time that grows with its square.
        _ if text.bytes().rev().take(MAX_UNIT + 1).any(|byte| byte.is_ascii_digit()) => {
            let unit = |unit: &&&str| {
                text.strip_suffix(**unit).is_some_and(|number| number.ends_with(|c: char| c.is_ascii_digit()))
            };
            UNITS.iter().filter(unit).map(|unit| unit.len()).max().unwrap_or(0)
        }
        _ => 0,
    }
}

/// What keeps its full stop or its other marks.
const ABBREVIATIONS: [&str; 60] = [
    "Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "Jr.", "Sr.", "St.", "Mt.", "Co.", "Corp.", "Inc.", "Ltd.", "Gov.",
    "Gen.", "Rep.", "Rev.", "Sen.", "Messrs.", "Adm.", "Bros.", "vs.", "v.s.", "e.g.", "i.e.", "a.m.",
    "p.m.", "E.g.", "I.e.", "Ph.D.", "D.C.", "E.G.", "I.E.", "Jan.", "Feb.", "Mar.", "Apr.", "Jun.", "Jul.",
    "Aug.", "Sep.", "Sept.", "Oct.", "Nov.", "Dec.", "Ala.", "Ariz.", "Ark.", "Calif.", "Colo.", "Conn.",
    "Del.", "Fla.", "Ga.", "Ill.", "Ind.", "w/o", "and/or", "o'clock", "ma'am",
];

/// Emoticons that would otherwise come apart.
const EMOTICONS: [&str; 22] = [
    ":)", ":-)", ":(", ":-(", ";)", ";-)", ":D", ":-D", ":P", ":-P", ":p", ":/", ":-/", ":|", ":o", ":O",
    ":*", "<3", "=)", "=(", ":]", "^_^",
];

/// Whether a chunk is left as it is, or is a contraction.
fn is_special(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() > 10 || bytes.is_empty() {
        return false;
    }
    if bytes.len() == 2 && bytes[1] == b'.' && bytes[0].is_ascii_lowercase() {
        return true;
    }
    let last = bytes[bytes.len() - 1];
    (last == b'.' || bytes.contains(&b'/') || bytes.contains(&b'\'')) && ABBREVIATIONS.contains(&text)
        || !last.is_ascii_alphanumeric() && EMOTICONS.contains(&text)
        || bytes[0] == b':' && EMOTICONS.contains(&text)
        || text == "<3"
        || contraction(text).is_some()
}

/// Words before `'ll`, `'ve`, `'re`, `'d` and `'m`.
const STEMS: [&str; 29] = [
    "i", "you", "he", "she", "it", "we", "they", "who", "what", "when", "where", "why", "how", "there",
    "that", "this", "these", "those", "could", "might", "must", "should", "would", "y'all", "which", "not",
    "let", "ma", "may",
];

/// Where a contraction is cut.
fn contraction(text: &str) -> Option<usize> {
    let at = text.rfind(['\'', '’']).filter(|&at| at > 0)?;
    let mark = text[at..].chars().next().map_or(1, char::len_utf8);
    let (stem, tail) = (&text[..at], &text[at + mark..]);
    let known = |list: &[&str], word: &str| list.iter().any(|known| known.eq_ignore_ascii_case(word));
    if tail == "t" || tail == "T" {
        let verb = stem.strip_suffix(['n', 'N'])?;
        return (known(&NEGATED, verb) || verb.eq_ignore_ascii_case("wo")).then_some(verb.len());
    }
    (known(&["ll", "ve", "re", "d", "m", "s"], tail) && known(&STEMS, stem)).then_some(at)
}

/// `scheme://…`, or a domain with an ending of letters and whatever follows its slash.
fn is_url(text: &str) -> bool {
    let rest = match text.find("://") {
        Some(at) if at > 0 && text[..at].bytes().all(|byte| byte.is_ascii_alphabetic()) => &text[at + 3..],
        _ => text.strip_prefix("mailto:").unwrap_or(text),
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let host = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(host, |(host, _)| host);
    let Some((name, ending)) = host.rsplit_once('.') else { return false };
    let letters = |c: char| c.is_ascii_alphabetic() || c > '\u{a0}' && c.is_alphabetic();
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with(['-', '_'])
            && !label.ends_with(['-', '_'])
            && label.chars().all(|c| letters(c) || c.is_ascii_digit() || c == '-' || c == '_')
    };
    // `end.Next` is two sentences that lost their space.
    let is_sentence = ending.starts_with(char::is_uppercase) && name.ends_with(char::is_lowercase);
    !is_sentence
        && (2..=63).contains(&ending.chars().count())
        && ending.chars().all(letters)
        && name.split('.').all(label)
}
