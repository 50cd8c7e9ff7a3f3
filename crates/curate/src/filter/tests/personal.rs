//! Personal data: what is taken for it and what is not.

use serde_json::Value;

use crate::Document;
use crate::filter::filter;

fn redacted(text: &str) -> String {
    let mut document = Document { text: text.to_owned(), ..Document::default() };
    assert_eq!(filter("pii", &Value::Null).unwrap().apply(&mut document), None);
    document.text
}

#[test]
fn harmless_text_stays() {
    for text in [
        "a share of +0.12345678 of it",
        "at +48.8566140, +2.3522219 on the map",
        "scores +1 -2 +3 -4 -5 -6 -7 -8",
        "from +1 2 3 4 5 6 7 8 to more",
        "changes +10.5 20.5 30.5 40.5",
        "on +2024-01-01 12:00 and +31.12.2024 12",
        "offset +12345678,5 and +123456789%",
        "![](icon@2x.png) and C = A@B.dot(D)",
        "a row: 4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        "years 4111 1111 1111 1111 1111 1111 of a table",
        ".sk-estimator-doc-link-fitted-and-hover-state { color: red }",
        ".sk-estimator-12-doc-link-fitted-and-hover-state-34",
        "It begins with -----BEGIN RSA PRIVATE KEY----- at the top. The rest of this text is prose.",
        "between `-----BEGIN PRIVATE KEY-----` and `-----END PRIVATE KEY-----` there is base64",
    ] {
        assert_eq!(redacted(text), text);
    }
}

#[test]
fn a_one_at_the_end_and_rows_of_ones_are_no_numbers() {
    for text in ["See chapter 1.", "1 ", "a 1-", "1.1", "1-555-123-456"] {
        assert_eq!(redacted(text), text);
    }
    assert_eq!(redacted("1-555-234-5678 or 1 (555) 234-5678"), "[PHONE] or [PHONE]");
    // A matrix takes neither a stack nor a time that grows with its square.
    let matrix = "1 ".repeat(2_000_000);
    assert_eq!(redacted(&matrix), matrix);
}

#[test]
fn personal_data_in_its_forms_goes() {
    for (text, left) in [
        ("+1 (555) 123-4567, +1 (555) 123.4567", "[PHONE], [PHONE]"),
        ("+44 (0)20 7946 0958 or +33 1 23 45 67 89.", "[PHONE] or [PHONE]."),
        ("+1.555.123.4567 +4930123456 +491701234567x89", "[PHONE] [PHONE] [PHONE]x89"),
        ("card 4111 1111 1111 1111 12/29, 4111111111111111", "card [CARD] 12/29, [CARD]"),
        ("3782-822463-10005", "[CARD]"),
        ("icon@example.org, a@b.photo.museum", "[EMAIL], [EMAIL]"),
        ("sk-abcdEFGH1234ijklMNOP5678qrstUVWX90", "[KEY]"),
        ("sk-ant-api03-AbC1dEf2GhI3jKl4-MnO5pQr6StU7_vWx8", "[KEY]"),
    ] {
        assert_eq!(redacted(text), left);
    }
}

#[test]
fn a_key_ends_with_its_base64() {
    let line = "MIIEpAIBAAKCAQEA7bq98Jx3kQ0XyZ1nRk5vT2wP8uH4sL6dF9gC3mB7aE+0qWjY";
    let begin = "-----BEGIN RSA PRIVATE KEY-----";
    let end = "-----END RSA PRIVATE KEY-----";
    for (text, left) in [
        (format!("a\n{begin}\n{line}\n{line}\nThe rest is prose.\n"), "a\n[KEY]\nThe rest is prose.\n"),
        (format!("a {begin}\n{line}"), "a [KEY]"),
        (
            format!(
                "{begin}\r\nProc-Type: 4,ENCRYPTED\r\nDEK-Info: AES-128-CBC,00FF\r\n\r\n{line}\r\nAbC=\r\n{end}\r\nb"
            ),
            "[KEY]\r\nb",
        ),
        (
            format!("{{\"private_key\": \"{begin}\\n{line}\\nAbC4\\n{end}\\n\"}}"),
            "{\"private_key\": \"[KEY]\\n\"}",
        ),
        (format!("{begin} {line} {line} AbC4= {end} b"), "[KEY] b"),
        (
            format!("{begin} Proc-Type: 4,ENCRYPTED DEK-Info: AES,00FF {line} {end} {line}"),
            &format!("[KEY] {line}"),
        ),
        (format!("key = \"{begin}\\n\" +\n  \"{line}\\n\" +\n  \"{end}\";"), "key = \"[KEY]\";"),
        (format!("> {begin}\n> {line}\n> {end}\n> b"), "> [KEY]\n> b"),
    ] {
        assert_eq!(redacted(&text), left);
    }
}

#[test]
fn what_stands_before_may_be_of_any_script() {
    for (text, left) in [
        ("call\u{a0}+1 555 123 4567", "call\u{a0}[PHONE]"),
        ("call\u{a0}212-555-0123", "call\u{a0}[PHONE]"),
        ("host\u{a0}8.8.8.8", "host\u{a0}[IP]"),
        ("ssn\u{a0}123-45-6789", "ssn\u{a0}[SSN]"),
        ("IP：8.8.8.8 “8.8.8.8”", "IP：[IP] “[IP]”"),
        ("电话212-555-0123", "电话[PHONE]"),
        ("é212-555-0123 ж8.8.8.8 ٣8.8.8.8", "é212-555-0123 ж8.8.8.8 ٣8.8.8.8"),
    ] {
        assert_eq!(redacted(text), left);
    }
}
