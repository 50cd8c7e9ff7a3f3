//! The merges against a word-for-word oracle.

use super::*;
use proptest::prelude::*;

type Pair = (Vec<u8>, Vec<u8>);

/// Tokens over `alphabet` beyond the single bytes, and pieces over the same letters.
fn vocabulary_and_piece(len: usize) -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<u8>)> {
    let letters = || proptest::sample::select(b"abc".to_vec());
    let token = proptest::collection::vec(letters(), 2..7);
    (proptest::collection::hash_set(token, 0..60), proptest::collection::vec(letters(), 1..len)).prop_map(
        |(tokens, piece)| {
            let mut tokens: Vec<_> = tokens.into_iter().collect();
            tokens.sort_by_key(|token| blake3::hash(token).to_hex().to_string());
            ((0..=255u8).map(|byte| vec![byte]).chain(tokens).collect(), piece)
        },
    )
}

/// The rule at the top of this file, word for word, on byte strings.
fn oracle(tokens: &[Vec<u8>], piece: &[u8]) -> Vec<u32> {
    let ranks: HashMap<&[u8], usize> = tokens.iter().map(Vec::as_slice).zip(0..).collect();
    let rank = |bytes: &[u8]| ranks.get(bytes).copied();
    if let Some(id) = rank(piece) {
        return vec![id as u32];
    }
    let mut parts: Vec<Vec<u8>> = piece.iter().map(|&byte| vec![byte]).collect();
    while let Some((_, at)) = (0..parts.len() - 1)
        .filter_map(|i| rank(&[parts[i].as_slice(), parts[i + 1].as_slice()].concat()).map(|r| (r, i)))
        .min()
    {
        let right = parts.remove(at + 1);
        parts[at].extend(right);
    }
    parts.iter().map(|part| rank(part).unwrap() as u32).collect()
}

fn ranks(tokens: &[Vec<u8>]) -> Result<Bpe> {
    Bpe::of_ranks(tokens.iter().collect(), tokens.len())
}

fn list(tokens: &[Vec<u8>], merges: &[Pair], rules: MergeRules) -> Result<Bpe> {
    let mut list = Merges::default();
    for (left, right) in merges {
        let [left, right] = [left, right].map(|side| side.iter().copied().map(Some));
        assert!(list.push_all(left, right));
    }
    Bpe::of_merges(tokens.iter().collect(), 0..tokens.len() as u32, &list, rules)
}

/// A piece as the only one.
fn one(piece: &[u8]) -> impl FnMut() -> Option<Range<usize>> {
    let mut piece = Some(0..piece.len()).filter(|piece| !piece.is_empty());
    move || piece.take()
}

fn encode(bpe: &Bpe, piece: &[u8]) -> Vec<u32> {
    let (mut out, mut again) = (Vec::new(), Vec::new());
    let mut scratch = Scratch::default();
    bpe.encode(piece, one(piece), &mut scratch, &mut out);
    bpe.encode(piece, one(piece), &mut scratch, &mut again);
    assert_eq!(out, again);
    out
}

/// A list of merges as training makes it: each joins two tokens that are there. With it, the tokens in an order that
/// has nothing to do with the merges, and a piece.
fn merges_and_piece(len: usize) -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<Pair>, Vec<u8>)> {
    let pairs = proptest::collection::vec((any::<usize>(), any::<usize>()), 0..40);
    let letters = proptest::sample::select(b"abc".to_vec());
    (pairs, proptest::collection::vec(letters, 1..len)).prop_map(|(pairs, piece)| {
        let mut tokens: Vec<Vec<u8>> = vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()];
        let mut merges = Vec::new();
        for (left, right) in pairs {
            let (left, right) = (tokens[left % tokens.len()].clone(), tokens[right % tokens.len()].clone());
            let joined = [left.as_slice(), &right].concat();
            if joined.len() < 9 && !tokens.contains(&joined) {
                tokens.push(joined);
                merges.push((left, right));
            }
        }
        tokens.sort_by_key(|token| blake3::hash(token).to_hex().to_string());
        (tokens, merges, piece)
    })
}

/// Merges one after the other over the whole piece, which is the same as the earliest first.
fn merge_oracle(tokens: &[Vec<u8>], merges: &[Pair], piece: &[u8]) -> Vec<u32> {
    let mut parts: Vec<Vec<u8>> = piece.iter().map(|&byte| vec![byte]).collect();
    let place = |pair: &[Vec<u8>]| merges.iter().position(|(l, r)| l[..] == pair[0] && r[..] == pair[1]);
    while let Some((_, at)) = parts.windows(2).enumerate().filter_map(|(i, w)| Some((place(w)?, i))).min() {
        let right = parts.remove(at + 1);
        parts[at].extend(right);
    }
    parts.iter().map(|part| tokens.iter().position(|t| t[..] == part[..]).unwrap() as u32).collect()
}

/// Ranks as training makes them, of letters a, b and c, and a piece.
fn trained_and_piece(len: usize) -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<u8>)> {
    let pairs = proptest::collection::vec((any::<usize>(), any::<usize>()), 0..40);
    let letters = proptest::sample::select(b"aaaabbc".to_vec());
    (pairs, proptest::collection::vec(letters, 1..len)).prop_map(|(pairs, piece)| {
        let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
        for (left, right) in pairs {
            let choices: Vec<&Vec<u8>> = tokens[97..100].iter().chain(&tokens[256..]).collect();
            let joined = [left, right].map(|at| &choices[at % choices.len()][..]).concat();
            if joined.len() < 60 && !tokens.contains(&joined) && oracle(&tokens, &joined).len() == 2 {
                tokens.push(joined);
            }
        }
        (tokens, piece)
    })
}

proptest! {
    #[test]
    fn ranks_of_any_order_follow_the_rule((tokens, piece) in vocabulary_and_piece(40)) {
        let bpe = ranks(&tokens).unwrap();
        prop_assert_eq!(encode(&bpe, &piece), oracle(&tokens, &piece));
    }

    #[test]
    fn trained_ranks_follow_the_rule((tokens, piece) in trained_and_piece(40)) {
        let bpe = ranks(&tokens).unwrap();
        prop_assert!(bpe.window.is_some());
        prop_assert_eq!(encode(&bpe, &piece), oracle(&tokens, &piece));
    }

    #[test]
    fn lists_of_merges_are_followed_in_order((tokens, merges, piece) in merges_and_piece(60)) {
        let expected = merge_oracle(&tokens, &merges, &piece);
        let bpe = list(&tokens, &merges, MergeRules::default()).unwrap();
        prop_assert_eq!(&encode(&bpe, &piece), &expected);
        prop_assert_eq!(&bpe.merged(&piece), &expected);

        let rules = MergeRules { whole_pieces: true, unknown: None };
        let id = tokens.iter().position(|token| *token == piece);
        let expected = id.map_or(expected, |id| vec![id as u32]);
        prop_assert_eq!(encode(&list(&tokens, &merges, rules).unwrap(), &piece), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn stretch_by_stretch_is_all_at_once((tokens, piece) in trained_and_piece(9_000)) {
        let bpe = ranks(&tokens).unwrap();
        let longest = tokens.iter().map(Vec::len).max().unwrap();
        for window in [bpe.window.unwrap(), longest * TOKENS] {
            let mut out = vec![7];
            bpe.merge_stretches(&piece, window, &mut Merging::default(), &mut out);
            prop_assert_eq!(&out[1..], bpe.merged(&piece));
        }
    }
}

#[test]
fn bytes_that_are_no_token_are_left_out_or_unknown() {
    let tokens = [b"a".to_vec(), b"aa".to_vec(), b"?".to_vec()];
    let merges = [(b"a".to_vec(), b"a".to_vec())];
    let encoded = |unknown, piece: &[u8]| {
        let bpe = list(&tokens, &merges, MergeRules { whole_pieces: false, unknown }).unwrap();
        assert_eq!(bpe.missing_bytes().is_empty(), unknown.is_some());
        encode(&bpe, piece)
    };
    assert_eq!(encoded(None, b"axa"), [1]);
    assert!(encoded(None, b"xx").is_empty());
    assert_eq!(encoded(Some(2), b"axa"), [0, 2, 0]);
    assert_eq!(encoded(None, &b"ax".repeat(1_000)), [1; 500]);
    let rules = MergeRules::default();
    assert!(list(&tokens, &merges, rules).unwrap().window.is_some());
}

#[test]
fn bad_vocabularies_are_named() {
    let bytes = || (0..=255u8).map(|byte| vec![byte]);
    let error = |tokens: Vec<Vec<u8>>| ranks(&tokens).unwrap_err().to_string();
    assert_eq!(error(bytes().chain([vec![]]).collect()), "bad vocabulary: the token `256` is empty");
    assert_eq!(
        error(bytes().chain([b"a\n".to_vec(), b"a\n".to_vec()]).collect()),
        "bad vocabulary: `256` and `257` are the same token `a\\n`"
    );
    assert_eq!(
        error(bytes().skip(1).collect()),
        "bad vocabulary: the byte `0x00` is not a token; all 256 must be"
    );
    // Each of another length, the longest first, so that all ways to split them have to be looked at.
    let long = (2..=2000).rev().map(|len| b"a".repeat(len));
    let said = error(bytes().chain(long).collect());
    assert!(said.contains("`2000` lengths of up to `2000` bytes"), "{said}");
    let some = (2..=200).rev().map(|len| b"a".repeat(len));
    assert!(ranks(&bytes().chain(some).collect::<Vec<_>>()).is_ok());
    let tokens = [b"a".to_vec(), b"b".to_vec(), b"ab".to_vec()];
    let error = |merges: &[(&str, &str)]| {
        let merges: Vec<_> =
            merges.iter().map(|(l, r)| (l.as_bytes().to_vec(), r.as_bytes().to_vec())).collect();
        list(&tokens, &merges, MergeRules::default()).unwrap_err().to_string()
    };
    assert_eq!(error(&[("a", "b"), ("b", "c")]), "bad vocabulary: merge `1`, `b c`: `c` is not a token");
    assert_eq!(error(&[("b", "a")]), "bad vocabulary: merge `0`, `b a`: `ba` is not a token");
    assert_eq!(error(&[("a", "b"), ("a", "b")]), "bad vocabulary: merge `1`, `a b`: the same as merge `0`");
}
