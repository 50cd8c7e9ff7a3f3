//! Crate folders of the cargo registry: `name-1.2.3`, and the order of their versions.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// A version as cargo writes it: `major.minor.patch[-pre][+build]`, ordered newest last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    core: [u64; 3],
    pre: String,
    build: String,
}

impl Version {
    /// `None` when the text is not a full version.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (rest, build) = text.split_once('+').unwrap_or((text, ""));
        let (numbers, pre) = rest.split_once('-').unwrap_or((rest, ""));
        let mut core = [0; 3];
        let mut parts = numbers.split('.');
        for slot in &mut core {
            let part = parts.next()?;
            // `parse` alone would take a leading plus sign.
            if !part.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            *slot = part.parse().ok()?;
        }
        if parts.next().is_some() {
            return None;
        }
        Some(Self { core, pre: pre.to_owned(), build: build.to_owned() })
    }

    /// Bytes that compare as versions do.
    pub(crate) fn sortable(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.core.iter().flat_map(|number| number.to_be_bytes()).collect();
        // Each part of a pre-release begins with a 1 or 2, its end is a 0, and a release is behind them all.
        if self.pre.is_empty() {
            bytes.push(0xFF);
        } else {
            for part in self.pre.split('.') {
                match part.parse::<u64>() {
                    Ok(number) => {
                        bytes.push(1);
                        bytes.extend_from_slice(&number.to_be_bytes());
                    }
                    Err(_) => bytes.push(2),
                }
                bytes.extend_from_slice(part.as_bytes());
                bytes.push(0);
            }
            bytes.push(0);
        }
        bytes.extend_from_slice(self.build.as_bytes());
        bytes.push(0);
        bytes
    }
}

/// Pre-releases come before their release; their dotted parts compare as numbers where both are numbers.
fn compare_pre(left: &str, right: &str) -> Ordering {
    if left.is_empty() || right.is_empty() {
        return left.is_empty().cmp(&right.is_empty());
    }
    let (mut left, mut right) = (left.split('.'), right.split('.'));
    loop {
        let order = match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (a, b) if a.is_none() || b.is_none() => a.is_some().cmp(&b.is_some()),
            (a, b) => {
                let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
                match (a.parse::<u64>(), b.parse::<u64>()) {
                    (Ok(x), Ok(y)) => x.cmp(&y).then_with(|| a.cmp(b)),
                    (x, y) => y.is_ok().cmp(&x.is_ok()).then_with(|| a.cmp(b)),
                }
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.core
            .cmp(&other.core)
            .then_with(|| compare_pre(&self.pre, &other.pre))
            .then_with(|| self.build.cmp(&other.build))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [major, minor, patch] = self.core;
        write!(out, "{major}.{minor}.{patch}")?;
        if !self.pre.is_empty() {
            write!(out, "-{}", self.pre)?;
        }
        if !self.build.is_empty() {
            write!(out, "+{}", self.build)?;
        }
        Ok(())
    }
}

/// Splits `serde_json-1.0.154` into the crate's name and version: at the first hyphen that a full version follows.
pub(crate) fn split_crate(folder: &str) -> Option<(&str, Version)> {
    folder.match_indices('-').find_map(|(at, _)| {
        let version = Version::parse(&folder[at + 1..])?;
        (at > 0).then_some((&folder[..at], version))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_split_into_name_and_version() {
        for (folder, name, version) in [
            ("serde_json-1.0.154", "serde_json", "1.0.154"),
            ("toml-1.2.1+spec-1.1.0", "toml", "1.2.1+spec-1.1.0"),
            ("foo-bar-2-0.1.0-rc.1", "foo-bar-2", "0.1.0-rc.1"),
        ] {
            assert_eq!(
                split_crate(folder),
                Version::parse(version).map(|version| (name, version)),
                "{folder}"
            );
        }
        for folder in
            ["no-version", "a-1.2", "-1.2.3", "a-1.2.3.4", "a-1.+2.3", "", "a-99999999999999999999.0.0"]
        {
            assert_eq!(split_crate(folder), None, "{folder}");
        }
    }

    #[test]
    fn versions_compare_as_numbers() {
        let ordered = [
            "0.9.0",
            "0.10.0-alpha",
            "0.10.0-alpha.1",
            "0.10.0-alpha.beta",
            "0.10.0-beta.2",
            "0.10.0-beta.11",
            "0.10.0",
            "0.10.0+a",
            "1.0.0",
            "10.0.0",
        ]
        .map(|text| Version::parse(text).unwrap());
        for (i, left) in ordered.iter().enumerate() {
            for (j, right) in ordered.iter().enumerate() {
                assert_eq!(left.cmp(right), i.cmp(&j), "{left:?} {right:?}");
                assert_eq!(left.sortable().cmp(&right.sortable()), i.cmp(&j), "{left:?} {right:?}");
            }
        }
    }
}
