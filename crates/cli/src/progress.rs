//! Progress on stderr: bars with rate and time left on a terminal, a line now and then otherwise.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Plain lines come at most this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The progress of one piece of work.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    name: String,
    total: u64,
    /// Units that an earlier process did.
    first: u64,
    started: Instant,
    last_line: RefCell<Instant>,
}

impl Progress {
    /// Work of `total` units, e.g. steps or bytes. `unit` is `bytes` or a word for the count.
    pub(crate) fn new(name: &str, total: u64, unit: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let counts = if unit == "bytes" {
                "{bytes}/{total_bytes} {bytes_per_sec}".to_string()
            } else {
                format!("{{pos}}/{{len}} {unit} {{per_sec}}")
            };
            let template = format!("{{prefix:>10}} {{bar:30}} {counts} {{msg}} eta {{eta}}");
            let style =
                ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style).with_prefix(name.to_owned())
        });
        let now = Instant::now();
        Self { bar, name: name.into(), total, first: 0, started: now, last_line: RefCell::new(now) }
    }

    /// The same work where an earlier process has done `first` units: rate and time left count from there.
    pub(crate) fn from(self, first: u64) -> Self {
        if let Some(bar) = &self.bar {
            bar.set_position(first);
            bar.reset_eta();
        }
        Self { first, ..self }
    }

    /// Says that `done` units are done, with a few words.
    pub(crate) fn at(&self, done: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message.to_owned());
            return;
        }
        let mut last = self.last_line.borrow_mut();
        if last.elapsed() < LINE_EVERY {
            return;
        }
        *last = Instant::now();
        let elapsed = self.started.elapsed().as_secs_f64();
        let percent = 100 * done / self.total.max(1);
        let here = done.saturating_sub(self.first).max(1);
        let left = elapsed / here as f64 * self.total.saturating_sub(done) as f64;
        say!("{:>10} {percent:3} % {message} eta {left:.0} s", self.name);
    }

    /// Ends it; the bar goes away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Progress of the curation, which reports from several threads.
pub(crate) struct CurateProgress {
    bar: ProgressBar,
    phase: Mutex<Phase>,
}

/// What is worked on now.
struct Phase {
    name: String,
    total: u64,
    started: Instant,
    last_line: Instant,
    /// Partitions that are finished, and all of them.
    partitions: (u64, u64),
}

impl CurateProgress {
    pub(crate) fn new() -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template(
            "{prefix:>10} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg} eta {eta}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let now = Instant::now();
        let (name, partitions) = (String::new(), (0, 0));
        Self { bar, phase: Mutex::new(Phase { name, total: 1, started: now, last_line: now, partitions }) }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl llamero_curate::Progress for CurateProgress {
    fn phase(&self, name: &str, total_bytes: u64) {
        self.bar.set_prefix(name.to_owned());
        self.bar.set_length(total_bytes);
        self.bar.set_position(0);
        self.bar.set_message("");
        self.bar.reset_eta();
        if let Ok(mut phase) = self.phase.lock() {
            name.clone_into(&mut phase.name);
            phase.total = total_bytes.max(1);
            phase.started = Instant::now();
            phase.partitions = (0, 0);
        }
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        let Ok(mut phase) = self.phase.lock() else { return };
        if self.bar.is_hidden() && phase.last_line.elapsed() >= LINE_EVERY {
            phase.last_line = Instant::now();
            let done = self.bar.position().max(1);
            let left = phase.total.saturating_sub(done) as f64 / done as f64;
            let eta = phase.started.elapsed().as_secs_f64() * left;
            let percent = (100 * done / phase.total).min(100);
            let parts = match phase.partitions {
                (_, 0) => String::new(),
                (done, all) => format!("{done} of {all} parts "),
            };
            say!("{:>10} {percent:3} % {parts}eta {eta:.0} s", phase.name);
        }
    }

    fn partition(&self, done: u64, total: u64) {
        self.bar.set_message(format!("{done}/{total} parts"));
        if let Ok(mut phase) = self.phase.lock() {
            phase.partitions = (done, total);
        }
    }
}
