//! An error as the user reads it.

use std::io::ErrorKind;

/// The chain of causes on one line, outermost first, and the hint on a line of its own.
///
/// Some libraries repeat a cause in their own message; it is said once. A full disk gets its hint here, because every
/// crate can meet it, and only the command knows whether it `resumes` what it had begun.
pub(crate) fn text(error: &anyhow::Error, resumes: bool) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !parts.iter().any(|part| part.contains(&cause)) {
            parts.push(cause);
        }
    }
    let text = parts.join(": ").replace(". hint: ", "\nhint: ");
    if is_disk_full(error) && !text.contains("hint: ") {
        let full = if text.contains("disk full") { "" } else { "disk full: " };
        let resumes = if resumes { ", it resumes" } else { "" };
        return format!("{full}{text}\nhint: free some space and run the same command again{resumes}");
    }
    text
}

/// Whether the system's error is among the causes. Parquet keeps only its words.
fn is_disk_full(error: &anyhow::Error) -> bool {
    let full = |kind| matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|e| full(e.kind())) || cause.to_string().contains("(os error 28)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn a_repeated_cause_is_said_once() {
        let error = Err::<(), _>(std::io::Error::from(ErrorKind::NotFound))
            .context("cannot read `a`: entity not found")
            .context("stage `b`")
            .unwrap_err();
        assert_eq!(text(&error, false), "stage `b`: cannot read `a`: entity not found");
    }

    #[test]
    fn hints_have_their_own_line() {
        assert_eq!(
            text(&anyhow!("`a` is damaged. hint: run again"), true),
            "`a` is damaged\nhint: run again"
        );
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        let full = || std::io::Error::from(ErrorKind::StorageFull);
        let error = Err::<(), _>(full()).context("`a/b`").unwrap_err();
        let said = text(&error, true);
        assert!(said.starts_with("disk full: `a/b`: ") && said.contains("\nhint: free some space"), "{said}");
        assert!(said.ends_with("it resumes") && !text(&error, false).contains("resumes"), "{said}");
        let own = llamero_artifact::ArtifactError::io("write", "a/b".as_ref(), full());
        assert_eq!(text(&own.into(), false).matches("disk full").count(), 1);
        let other = Err::<(), _>(std::io::Error::from(ErrorKind::NotFound)).context("`a/b`").unwrap_err();
        assert!(!text(&other, true).contains("disk full"));
    }
}
