//! Files: `tokenizer.model` here, Hugging Face's in [`hf`].

mod gguf;
pub(crate) mod hf;

pub use gguf::GgufVocabulary;

use crate::bpe::FixedMap;
use crate::{Error, Release, Result, Tokenizer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::io::Write as _;
use std::path::Path;

/// See [`Tokenizer::load_of`].
pub(crate) fn load(path: &Path, release: Release) -> Result<Tokenizer> {
    if path.is_dir() {
        // The first says more: special tokens, added words, the chat template.
        for name in ["tokenizer.json", "tokenizer.model"] {
            let file = path.join(name);
            if file.try_exists().map_err(io("read", &file))? {
                return load(&file, release);
            }
        }
        return Err(Error::NotFound { path: path.into() });
    }
    let contents = std::fs::read(path).map_err(io("read", path))?;
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        return hf::read_tokenizer_json(&contents, path, path.parent());
    }
    // Such a file begins with the length of its first piece, and is not text.
    if contents.starts_with(b"\n") && std::str::from_utf8(&contents).is_err() {
        let problem = "this is a SentencePiece model; only byte-level BPE is supported".to_owned();
        return Err(Error::ModelLine { path: path.into(), line: 1, problem });
    }
    let ranks = read_model_file(&contents, path)?;
    Tokenizer::from_ranks_of(ranks, release).map_err(|error| in_file(path, error))
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.into(), source }
}

fn in_file(path: &Path, error: Error) -> Error {
    Error::InFile { path: path.into(), source: Box::new(error) }
}

/// Writes `contents` beside `path` and renames, so that `path` is never half written.
pub(crate) fn write(path: &Path, contents: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".part");
    let temporary = Path::new(&temporary);
    let written = std::fs::File::create(temporary)
        .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(temporary, path));
    written.map_err(|source| {
        // The first error is the one worth telling.
        let _ = std::fs::remove_file(temporary);
        io("write", path)(source)
    })
}

/// The contents of a `tokenizer.model`.
pub(crate) fn model_file(tokenizer: &Tokenizer) -> Vec<u8> {
    let mut text = String::new();
    for (rank, token) in tokenizer.tokens().iter().take(tokenizer.num_ranks()).enumerate() {
        STANDARD.encode_string(token, &mut text);
        text.push_str(&format!(" {rank}\n"));
    }
    text.into_bytes()
}

/// The tokens of a `tokenizer.model`, in the order of their ranks, which must be 0, 1, 2 …, as everybody writes them. Tokens must be
/// distinct and include every single byte.
fn read_model_file(contents: &[u8], path: &Path) -> Result<Vec<Vec<u8>>> {
    let at = |line: usize, problem: String| Error::ModelLine { path: path.into(), line, problem };
    let last = contents.split_inclusive(|&byte| byte == b'\n').count();
    let whole = contents.ends_with(b"\n");
    let cut = |line, problem| if line == last && !whole { format!("{problem}; {CUT}") } else { problem };
    // (rank, line, token)
    let mut entries = Vec::new();
    for (line, text) in (1..).zip(contents.split(|&byte| byte == b'\n')) {
        let text = text.trim_ascii();
        if !text.is_empty() {
            // What is wrong from the first line on is something else.
            let problem = |problem| match entries.is_empty() && whole {
                true => format!("this is no `tokenizer.model`: {problem}"),
                false => cut(line, problem),
            };
            let (token, rank) = read_model_line(text).map_err(|wrong| at(line, problem(wrong)))?;
            entries.push((rank, line, token));
        }
    }
    if entries.is_empty() {
        return Err(at(1, "the file is empty; expected lines of base64, a space and a rank".to_owned()));
    }
    check_ranks(&entries).map_err(|(line, problem)| at(line, cut(line, problem)))?;
    if !whole {
        return Err(at(last, format!("{CUT}. hint: fetch it again; if it is whole, end it with a newline")));
    }
    Ok(entries.into_iter().map(|(_, _, token)| token).collect())
}

/// What is said of a file whose last line has no newline: all writers end with one, so more may be missing.
const CUT: &str = "the file ends in the middle of a line";

/// The line with a wrong rank or token among (rank, line, token), and what is wrong.
fn check_ranks(entries: &[(u32, usize, Vec<u8>)]) -> Result<(), (usize, String)> {
    let mut lines = FixedMap::default();
    for (expected, (rank, line, token)) in (0u32..).zip(entries) {
        if *rank < expected {
            return Err((*line, format!("rank `{rank}` occurs twice")));
        }
        if *rank > expected {
            let problem = match entries.iter().find(|(rank, ..)| *rank == expected) {
                Some((_, other, _)) => format!(
                    "rank `{rank}` is here, but rank `{expected}` in line {other}: ranks must be in order"
                ),
                None => format!("rank `{rank}` is here, but rank `{expected}` is nowhere"),
            };
            return Err((*line, problem));
        }
        if let Some(other) = lines.insert(token.as_slice(), *line) {
            let problem = format!("the token `{}` is in line {other}, too", token.escape_ascii());
            return Err((*line, problem));
        }
    }
    match (0..=255u8).find(|&byte| !lines.contains_key([byte].as_slice())) {
        Some(byte) => {
            let last = entries.last().map_or(1, |(_, line, _)| *line);
            Err((
                last,
                format!("the ranks end here, and the byte `0x{byte:02x}` is no token; all 256 must be"),
            ))
        }
        None => Ok(()),
    }
}

fn read_model_line(text: &[u8]) -> Result<(Vec<u8>, u32), String> {
    let shown = || String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
    let Some(space) = text.iter().position(|&byte| byte == b' ') else {
        return Err(format!("expected base64, a space and a rank, found `{}`", shown()));
    };
    let (token, rank) = (&text[..space], &text[space + 1..]);
    let token = STANDARD.decode(token).map_err(|error| format!("bad base64 in `{}`: {error}", shown()))?;
    let rank = std::str::from_utf8(rank).ok().filter(|rank| rank.bytes().all(|byte| byte.is_ascii_digit()));
    match rank.and_then(|rank| rank.parse().ok()) {
        Some(rank) => Ok((token, rank)),
        None => Err(format!("bad rank in `{}`: expected a number below 2^32", shown())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(contents: &[u8]) -> Result<Vec<Vec<u8>>> {
        read_model_file(contents, Path::new("t.model"))
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(contents in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&contents);
        }

        #[test]
        fn near_valid_files_are_read_or_refused_with_a_line(contents in r"([A-Za-z0-9+/]{0,4}={0,2} ?[0-9]{0,11}\r?\n){0,5}") {
            match read(contents.as_bytes()) {
                Ok(tokens) => prop_assert!(!tokens.is_empty() && tokens.len() <= contents.lines().count()),
                Err(Error::ModelLine { line, .. }) => {
                    prop_assert!(line >= 1 && line <= contents.lines().count().max(1));
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }

    /// Lines of all bytes.
    fn bytes() -> String {
        (0..=255u8).map(|byte| format!("{} {byte}\n", STANDARD.encode([byte]))).collect()
    }

    #[test]
    fn white_space_at_ends_of_lines_and_empty_lines_say_nothing() {
        let lines = bytes().replace('\n', " \r\n\n");
        assert_eq!(read(lines.as_bytes()).unwrap(), (0..=255u8).map(|byte| vec![byte]).collect::<Vec<_>>());
    }

    #[test]
    fn errors_are_located() {
        for (contents, expected) in [
            ("", "t.model:1: the file is empty; expected lines of base64, a space and a rank"),
            ("YQ== 0\nYg==\n", "t.model:2: expected base64, a space and a rank, found `Yg==`"),
            ("YQ== 0\n\nYg== x\n", "t.model:3: bad rank in `Yg== x`: expected a number below 2^32"),
            ("YQ== 0\nYg== +1\n", "t.model:2: bad rank in `Yg== +1`: expected a number below 2^32"),
            (
                "# Title\n",
                "t.model:1: this is no `tokenizer.model`: bad base64 in `# Title`: Invalid symbol 35, offset 0.",
            ),
            (
                "YQ== 4294967296\n",
                "t.model:1: this is no `tokenizer.model`: bad rank in `YQ== 4294967296`: expected a number below 2^32",
            ),
            ("YQ== 0\nYg== 0\n", "t.model:2: rank `0` occurs twice"),
            ("YQ== 0\nYg== 2\n", "t.model:2: rank `2` is here, but rank `1` is nowhere"),
            (
                "YQ== 0\nYg== 2\nYw== 1\n",
                "t.model:2: rank `2` is here, but rank `1` in line 3: ranks must be in order",
            ),
            ("YQ== 0\n\nYQ== 1\n", "t.model:3: the token `a` is in line 1, too"),
            ("YQ== 0\n\n", "t.model:1: the ranks end here, and the byte `0x00` is no token; all 256 must be"),
            (
                "YQ== 0\nYg==",
                "t.model:2: expected base64, a space and a rank, found `Yg==`; the file ends in the middle of a line",
            ),
            ("YQ== 0\nYg== 0", "t.model:2: rank `0` occurs twice; the file ends in the middle of a line"),
            (
                bytes().trim_end(),
                "t.model:256: the file ends in the middle of a line. hint: fetch it again; if it is whole, end it with a newline",
            ),
        ] {
            assert_eq!(read(contents.as_bytes()).unwrap_err().to_string(), expected);
        }
        let bad_base64 = read(b"Y* 0").unwrap_err().to_string();
        assert!(bad_base64.starts_with("t.model:1: bad base64 in `Y* 0`: "), "{bad_base64}");
    }
}
