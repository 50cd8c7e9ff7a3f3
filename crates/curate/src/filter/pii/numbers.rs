//! Numbers of telephones, cards and insured people.

use std::ops::Range;

/// Digits from `at` on with single separators between them: up to `most` digits, and where the last ends.
fn digits(bytes: &[u8], at: usize, most: usize, separators: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut digits, mut end, mut place) = (Vec::with_capacity(most), at, at);
    while let Some(&byte) = bytes.get(place) {
        if byte.is_ascii_digit() {
            if digits.len() == most {
                return None;
            }
            digits.push(byte - b'0');
            end = place + 1;
        } else if !separators.contains(&byte) || place + 1 != end + 1 {
            break;
        }
        place += 1;
    }
    let follows = bytes.get(end).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    (!follows).then_some((digits, end))
}

/// A social security number.
pub(super) fn ssn(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let candidate = bytes.get(at..at + 11)?;
    let shape = candidate.iter().enumerate().all(|(place, byte)| match place {
        3 | 6 => *byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    let follows = bytes.get(at + 11).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    // Never given out.
    let invalid = candidate.starts_with(b"000")
        || candidate.starts_with(b"666")
        || candidate[0] == b'9'
        || &candidate[4..6] == b"00"
        || &candidate[7..] == b"0000";
    (shape && !follows && !invalid).then_some(at..at + 11)
}

/// Digits in each group of a card's number; one unbroken group may have 15 to 19.
const CARDS: [&[usize]; 3] = [&[4, 4, 4, 4], &[4, 4, 4, 4, 3], &[4, 6, 5]];

/// A card's number: unbroken, or in the groups in which cards show it.
pub(super) fn card(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    if !matches!(bytes[at], b'3'..=b'6') {
        return None;
    }
    let run = |from: usize| bytes[from..].iter().take(20).take_while(|byte| byte.is_ascii_digit()).count();
    let mut groups = vec![run(at)];
    let mut end = at + groups[0];
    let separator = bytes.get(end).copied().filter(|byte| matches!(byte, b' ' | b'-'));
    while separator.is_some() && bytes.get(end) == separator.as_ref() && groups.len() < 6 {
        match run(end + 1) {
            // What stands behind the number, such as its expiry.
            0..3 => break,
            digits => {
                groups.push(digits);
                end += 1 + digits;
            }
        }
    }
    let shaped = matches!(groups[..], [15..=19]) || CARDS.contains(&groups.as_slice());
    let follows = bytes.get(end).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    // A group before the first makes it a row of a table.
    let row = groups.len() > 1
        && at >= 5
        && Some(bytes[at - 1]) == separator
        && bytes[at - 5..at - 1].iter().all(u8::is_ascii_digit);
    if !shaped || follows || row {
        return None;
    }
    // Luhn's check digit: every second digit from the right counts twice, with its own digits added.
    let double = |digit: u32| if digit > 4 { digit * 2 - 9 } else { digit * 2 };
    let sum: u32 = bytes[at..end]
        .iter()
        .filter(|byte| byte.is_ascii_digit())
        .rev()
        .map(|byte| u32::from(byte - b'0'))
        .enumerate()
        .map(|(place, digit)| if place % 2 == 1 { double(digit) } else { digit })
        .sum();
    sum.is_multiple_of(10).then_some(at..end)
}

/// A telephone number; ten digits in a row, too, where `bare` says so.
pub(super) fn phone(bytes: &[u8], at: usize, bare: bool) -> Option<Range<usize>> {
    let national = |digits: &[u8]| digits.len() == 10 && digits[0] >= 2 && digits[3] >= 2;
    match bytes[at] {
        b'+' => international(bytes, at),
        b'(' => {
            let area = bytes.get(at + 1..at + 4).filter(|area| area.iter().all(u8::is_ascii_digit))?;
            if bytes.get(at + 4) != Some(&b')') {
                return None;
            }
            let rest = at + 5 + usize::from(matches!(bytes.get(at + 5), Some(b' ' | b'-')));
            let (digits, end) = digits(bytes, rest, 7, b" -.")?;
            (area[0] >= b'2' && digits.len() == 7 && digits[0] >= 2).then_some(at..end)
        }
        b'2'..=b'9' => {
            let (digits, end) = digits(bytes, at, 10, b" -.")?;
            let separated =
                end - at == 12 && bytes[at + 3] == bytes[at + 7] && !bytes[at + 3].is_ascii_digit();
            (national(&digits) && (separated || bare && end - at == 10)).then_some(at..end)
        }
        // What follows is no other `1`: each would ask the next one.
        b'1' if matches!(bytes.get(at + 1..at + 3), Some([b'-' | b' ' | b'.', b'(' | b'2'..=b'9'])) => {
            let inner = phone(bytes, at + 2, false)?;
            Some(at..inner.end)
        }
        _ => None,
    }
}

/// A number behind a `+`: a country code, and groups of digits behind single separators or brackets.
fn international(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    if !matches!(bytes.get(at + 1), Some(b'1'..=b'9')) {
        return None;
    }
    let (mut groups, mut end) = (Vec::<&[u8]>::new(), at);
    let (mut dots, mut others, mut brackets) = (0, 0, 0);
    let mut next = at + 1;
    while groups.len() < 8 {
        let digits = bytes[next..].iter().take(16).take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            break;
        }
        groups.push(&bytes[next..next + digits]);
        end = next + digits;
        let between = bytes[end..].iter().take(3).take_while(|byte| b" -.()".contains(byte)).count();
        let (mut separators, mut of_brackets) = (0, 0);
        for byte in &bytes[end..end + between] {
            match byte {
                b'(' | b')' => of_brackets += 1,
                _ => separators += 1,
            }
        }
        // ` -` comes between numbers with signs. `) ` and ` (` are one separation.
        if between == 0 || separators > 1 || of_brackets > 1 {
            break;
        }
        if bytes.get(end + between).is_some_and(u8::is_ascii_digit) {
            dots += usize::from(bytes[end..end + between].contains(&b'.'));
            others += usize::from(!bytes[end..end + between].contains(&b'.'));
            brackets += of_brackets;
        }
        next = end + between;
    }
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let count: usize = lengths.iter().sum();
    // `+48.85661`, and `+1 2.5 3.5`; of `+1 (555) 123.4567` the bracket says what it is.
    let decimal = dots == 1 && others == 0 || dots > 0 && others > 0 && brackets == 0;
    let (year, month) = (
        |group: &[u8]| matches!(group, [b'1', b'9', ..] | [b'2', b'0', ..]),
        |group: &[u8]| group[0] <= b'3',
    );
    let date = match (&lengths[..], &groups[..]) {
        ([4, 2, 2, ..], [first, second, third, ..]) => year(first) && month(second) && month(third),
        ([2, 2, 4, ..], [first, second, third, ..]) => month(first) && month(second) && year(third),
        _ => false,
    };
    // The country and an area may be of one digit; more of them are a list of small numbers.
    let list = lengths.iter().filter(|&&length| length == 1).count() > 2;
    let follows = match (bytes.get(end), bytes.get(end + 1)) {
        (Some(b','), Some(digit)) => digit.is_ascii_digit(),
        (Some(b'x'), Some(digit)) => !digit.is_ascii_digit(),
        (Some(byte), _) => byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'%'),
        (None, _) => false,
    };
    ((8..=15).contains(&count) && !decimal && !date && !list && !follows).then_some(at..end)
}
