//! What templates expect of their environment: that of `transformers`, which is Python's Jinja with a few functions.

use super::Date;
use crate::chat::is_space;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;
use serde::Serialize as _;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io;

/// Steps after which a template is stopped; text costs a step for every [`BYTES`]. A long dialog takes some thousands of them.
const FUEL: u64 = 2_000_000;
/// Bytes of text that a step pays for.
const BYTES: usize = 64;

/// An environment without templates.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(method);
    environment
        .add_function("raise_exception", |message: String| -> Result<Value, Error> { Err(failure(message)) });
    environment.add_filter("tojson", to_json);
    environment.add_filter("trim", |text: String, chars: Option<String>| {
        strip(&text, chars.as_deref(), (true, true))
    });
    Ok(environment)
}

pub(super) fn failure(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The reason with the line, without the name of the template, which says nothing.
pub(super) fn explain(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("line {line}: {detail}"),
        None => detail,
    }
}

/// Methods of Python's types. White space is Python's.
fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str().filter(|_| value.kind() == ValueKind::String) else {
        return pycompat::unknown_method_callback(state, value, method, args);
    };
    let stripped = |ends| {
        let (chars,): (Option<String>,) = from_args(args)?;
        Ok(Value::from(strip(text, chars.as_deref(), ends)))
    };
    match method {
        "strip" => stripped((true, true)),
        "lstrip" => stripped((true, false)),
        "rstrip" => stripped((false, true)),
        "split" if args.is_empty() => Ok(text.split(is_space).filter(|word| !word.is_empty()).collect()),
        "title" if args.is_empty() => Ok(Value::from(title(text))),
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Words with their first letter large and the others small.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            titled.extend(c.to_lowercase());
        } else {
            titled.extend(c.to_uppercase());
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    titled
}

fn strip(text: &str, chars: Option<&str>, (start, end): (bool, bool)) -> String {
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(goes) } else { text };
    let text = if end { text.trim_end_matches(goes) } else { text };
    text.to_owned()
}

/// Python's `json.dumps` without escapes of what is not ASCII.
fn to_json(state: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Metered { state, text: Vec::new(), paid: 0, spent: None };
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, OneLine)),
    };
    if let Some(error) = out.spent {
        return Err(error);
    }
    written.map_err(|error| failure(format!("tojson: {error}")))?;
    String::from_utf8(out.text).map_err(|error| failure(format!("tojson: {error}")))
}

/// Text that is paid for as it grows: what a template gives to a filter may be a list of any length that is nowhere in memory.
struct Metered<'a, 'env> {
    state: &'a State<'a, 'env>,
    text: Vec<u8>,
    paid: usize,
    /// That the steps are used up.
    spent: Option<Error>,
}

impl io::Write for Metered<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let steps = (self.text.len() + bytes.len()).saturating_sub(self.paid) / BYTES;
        if steps > 0 {
            self.paid += steps * BYTES;
            if let Err(error) = self.state.consume_fuel(steps as u64) {
                self.spent = Some(error);
                return Err(io::Error::other("out of fuel"));
            }
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON on one line, with a space after each comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The function `strftime_now`, for which it is always `date`.
pub(super) fn strftime_now(date: Date) -> Value {
    Value::from_function(move |format: String| strftime(date, &format))
}

fn strftime(date: Date, format: &str) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    let Date { year, month, day } = date;
    let month_name = MONTHS[usize::from(month - 1)];
    let weekday = DAYS[weekday(date)];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += weekday,
            Some('a') => out += &weekday[..3],
            Some('H' | 'M' | 'S') => out += "00",
            Some('%') => out.push('%'),
            other => {
                let found = other.map(String::from).unwrap_or_default();
                return Err(failure(format!("strftime_now: `%{found}` is not supported")));
            }
        }
    }
    Ok(out)
}

/// The day of the week, Sunday is 0: days since a Sunday before the calendar begins.
fn weekday(Date { year, month, day }: Date) -> usize {
    const BEFORE: [usize; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    // January and February count to the year before, as far as leap days are concerned.
    let years = usize::from(year) + 400;
    let past = if month > 2 { years } else { years - 1 };
    let leaps = past / 4 - past / 100 + past / 400;
    (years * 365 + leaps + BEFORE[usize::from(month - 1)] + usize::from(day) + 6) % 7
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, context: Value) -> String {
        environment().unwrap().render_str(source, context).unwrap()
    }

    #[test]
    fn days_are_written_as_python_does() {
        let date = |y, m, d| Date::new(y, m, d).unwrap();
        for (day, format, text) in [
            (date(2024, 7, 26), "%d %b %Y", "26 Jul 2024"),
            (date(2026, 11, 5), "%A, %B %d, %y %%", "Thursday, November 05, 26 %"),
            (date(2000, 2, 29), "%a %Y-%m-%d %H:%M:%S", "Tue 2000-02-29 00:00:00"),
            (date(1900, 1, 1), "%A", "Monday"),
            (date(2100, 3, 1), "%A", "Monday"),
        ] {
            assert_eq!(strftime(day, format).unwrap(), text);
        }
        assert!(strftime(date(2024, 7, 26), "%j").unwrap_err().to_string().contains("`%j`"));
        for (year, month, day) in
            [(2023, 2, 29), (1900, 2, 29), (2024, 4, 31), (2024, 13, 1), (2024, 0, 1), (2024, 1, 0)]
        {
            assert_eq!(Date::new(year, month, day), None);
        }
    }

    #[test]
    fn json_is_written_as_python_does() {
        let list = Value::from_iter([Value::from(1), Value::from("é<'")]);
        let value = Value::from_pairs([("b", list), ("a", Value::from_pairs([("c", Value::from(()))]))]);
        let context = || Value::from_pairs([("x", value.clone())]);
        assert_eq!(render("{{ x | tojson }}", context()), r#"{"b": [1, "é<'"], "a": {"c": null}}"#);
        assert_eq!(
            render("{{ x | tojson(indent=2) }}", context()),
            "{\n  \"b\": [\n    1,\n    \"é<'\"\n  ],\n  \"a\": {\n    \"c\": null\n  }\n}"
        );
    }

    #[test]
    fn strings_have_pythons_methods() {
        let context = || Value::from_pairs([("x", "\u{1c} a<t>b\n")]);
        for (source, text) in [
            ("{{ x.strip() }}|{{ x | trim }}|{{ x.lstrip() }}|", "a<t>b|a<t>b|a<t>b\n|"),
            ("{{ x.split('<t>')[-1].rstrip('\\n') }}", "b"),
            ("{{ x.rstrip('\\nb') }}|{{ 'abca'.strip('a') }}", "\u{1c} a<t>|bc"),
            ("{{ 'ab'.startswith('a') }} {{ 'ab'.upper() }} {{ {'k': 1}.get('z', 2) }}", "True AB 2"),
        ] {
            assert_eq!(render(source, context()), text, "{source}");
        }
    }

    #[test]
    fn endless_templates_are_stopped() {
        let nested = "{% for a in range(9999) %}".repeat(4) + "x" + &"{% endfor %}".repeat(4);
        let error = environment().unwrap().render_str(&nested, ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfFuel);
        // Lists that are nowhere in memory until a filter writes them down.
        for long in ["{{ ([[0]*100000000]*100000000) | tojson }}", "{{ ([0]*100000000) | tojson(indent=4) }}"]
        {
            let error = environment().unwrap().render_str(long, ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfFuel, "{long}");
        }
    }
}
