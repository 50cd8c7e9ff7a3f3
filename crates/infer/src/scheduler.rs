//! Which requests advance, and on which pages.
//!
//! A step is one packed pass over rows of several requests: the next row of each that is generating, and chunks of the prompts of
//! others. Requests stand in one order: priority, then arrival. Each may take the pages of those behind it, so the first one
//! always advances, and every one becomes the first one. What a request computes does not depend on any of this, because a
//! row of a pass depends on its own inputs only.

mod available;
mod job;
mod room;

use std::cmp::Reverse;

use bytes::Bytes;
use llamero_comm::CommError;
use llamero_tensor::{KV_PAGE, Tensor};

use crate::cache::{Page, Part, Pool, pages_for};
use crate::draft::DraftSession;
use crate::prefix::PrefixTree;
use crate::{InferError, SamplingParams};

pub(crate) use available::Available;
pub(crate) use job::Job;

/// A request that was passed over so many times in a row counts as one priority higher from then on.
const PATIENCE: u32 = 256;

/// Guesses are made while no more requests than these are generating: beyond, a pass has rows enough.
const GUESSING: usize = 4;

/// What a scheduler needs of a model.
pub(crate) trait Model {
    /// An empty page.
    fn new_page(&self) -> Tensor;
    /// A copy of a page.
    fn copy_page(&self, page: &Tensor) -> Tensor;
    /// What is in a page, for the host's memory.
    fn save_page(&self, page: &Tensor) -> Bytes;
    /// The page that was saved.
    fn restore_page(&self, saved: &Bytes) -> Tensor;
    /// Reads the rows of all parts in one pass and counts them into their sequences.
    fn read(&self, parts: &mut [Part<'_>]) -> Result<Output, CommError>;
    /// Some rows of hidden states, for later.
    fn keep(&self, hidden: &Tensor, rows: std::ops::Range<usize>) -> Tensor;
    /// Negative log-likelihood in nats of a target after each row of several tensors of hidden states.
    fn nll(&self, hidden: &[Tensor], targets: &[u32]) -> Vec<f32>;
    /// At most `most` tokens that the draft model would draw after `ids`.
    fn guess(
        &self,
        session: &mut DraftSession,
        ids: &[u32],
        params: &SamplingParams,
        most: usize,
    ) -> Vec<u32>;
}

/// What a pass computed.
pub(crate) struct Output {
    /// Hidden states of the wanted rows, in the order of the parts.
    pub(crate) hidden: Tensor,
    /// Logits of the parts that wanted them, one row after another.
    pub(crate) logits: Vec<f32>,
}

/// What a scheduler may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Rows of a pass, about.
    pub(crate) rows: usize,
    /// Requests that have pages at a time.
    pub(crate) sequences: usize,
    /// Pages at a time.
    pub(crate) pages: usize,
    /// Pages kept for later requests that begin alike.
    pub(crate) idle: usize,
    /// Pages saved in the host's memory for requests that had to give theirs.
    pub(crate) saved: usize,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passes over the model.
    pub passes: u64,
    /// Rows of all passes.
    pub rows: u64,
    /// How often a request gave its pages to one before it.
    pub preemptions: u64,
    /// Tokens whose keys and values were there from other requests.
    pub cached: u64,
    /// Tokens that were guessed.
    pub guessed: u64,
    /// Tokens that were guessed right.
    pub accepted: u64,
    /// Most pages that were in use at a time, those kept for later included.
    pub peak_pages: usize,
}

/// All requests that an engine has let in.
pub(crate) struct Scheduler {
    limits: Limits,
    available: Available,
    pool: Pool,
    tree: PrefixTree,
    /// In the order in which they go.
    jobs: Vec<Job>,
    next_ticket: u64,
    pub(crate) counts: Counts,
}

impl Scheduler {
    /// No requests yet.
    pub(crate) fn new(limits: Limits, available: Available) -> Self {
        let pool = Pool::new(limits.pages);
        let (tree, counts) = (PrefixTree::new(), Counts::default());
        Self { limits, available, pool, tree, jobs: Vec::new(), next_ticket: 0, counts }
    }

    /// Forgets all requests, whose callers then hear nothing any more, and all pages.
    pub(crate) fn reset(&mut self) {
        let available = std::mem::replace(&mut self.available, Available::unknown());
        *self = Self { counts: self.counts, ..Self::new(self.limits, available) };
    }

    /// Requests that are not over.
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Pages that are there.
    #[cfg(test)]
    pub(crate) fn live_pages(&self) -> usize {
        self.pool.live()
    }

    /// Pages that are kept for later requests.
    #[cfg(test)]
    pub(crate) fn kept_pages(&self) -> usize {
        self.tree.idle()
    }

    /// The pages that are shared.
    #[cfg(test)]
    pub(crate) fn tree(&self) -> &PrefixTree {
        &self.tree
    }

    /// Requests that have no pages, but those of a draft model.
    #[cfg(test)]
    pub(crate) fn waiting_drafts(&self) -> usize {
        self.jobs.iter().filter(|job| !job.is_running() && job.has_draft()).count()
    }

    /// Lets a request in.
    pub(crate) fn add(&mut self, mut job: Job) {
        job.ticket = self.next_ticket;
        self.next_ticket += 1;
        self.jobs.push(job);
    }

    /// Makes one pass. Does nothing when there are no requests.
    pub(crate) fn step(&mut self, model: &dyn Model) {
        self.drop_cancelled(model);
        self.plan(model);
        let mut parts: Vec<Part<'_>> =
            self.jobs.iter_mut().filter(|job| job.planned > 0).map(Job::part).collect();
        if parts.is_empty() {
            assert!(self.jobs.is_empty(), "scheduler: no request can advance");
            return;
        }
        let rows: usize = parts.iter().map(|part| part.ids.len()).sum();
        self.counts.passes += 1;
        self.counts.rows += rows as u64;
        let output = model.read(&mut parts);
        drop(parts);
        match output {
            Ok(output) => self.advance(model, &output),
            Err(error) => {
                for job in self.jobs.iter_mut().filter(|job| job.planned > 0) {
                    job.fail(InferError::Comm(error.clone()));
                }
            }
        }
        self.counts.peak_pages = self.counts.peak_pages.max(self.pool.live());
        self.file_pages();
        self.finish(model);
    }

    /// Draws tokens from the pass, and computes what log-probabilities are due.
    fn advance(&mut self, model: &dyn Model, output: &Output) {
        let wanted: usize = self.jobs.iter().filter(|job| job.draws()).map(|job| job.wanted).sum();
        let vocab = output.logits.len() / wanted.max(1);
        let (mut row, mut logit) = (0, 0);
        for job in self.jobs.iter_mut().filter(|job| job.planned > 0) {
            let rows = row..row + job.wanted;
            row = rows.end;
            let logits = if job.draws() { job.wanted * vocab } else { 0 };
            let (guessed, accepted) =
                job.advance(model, output, rows, (&output.logits[logit..logit + logits], vocab));
            self.counts.guessed += guessed;
            self.counts.accepted += accepted;
            logit += logits;
        }
        score_due(model, self.jobs.iter_mut().filter(|job| job.is_due()));
        self.jobs.iter_mut().for_each(Job::tell);
    }

    /// Puts pages that have become full into the tree.
    fn file_pages(&mut self) {
        for job in &mut self.jobs {
            while (job.filed + 1) * KV_PAGE <= job.sequence.len {
                let ids = &job.ids[job.filed * KV_PAGE..][..KV_PAGE];
                let page: Page = job.sequence.pages[job.filed].clone();
                let (node, page) = self.tree.insert(job.node, ids, page);
                job.sequence.pages[job.filed] = page;
                job.node = node;
                job.filed += 1;
            }
        }
    }

    /// Takes out requests that are over.
    fn finish(&mut self, model: &dyn Model) {
        if self.jobs.iter().all(|job| !job.is_over()) {
            return;
        }
        let (over, going) = std::mem::take(&mut self.jobs).into_iter().partition(Job::is_over);
        self.jobs = going;
        for mut job in over {
            // Some of its last tokens may have no log-probability yet.
            score_due(model, std::iter::once(&mut job));
            let (len, first) = (job.sequence.len, job.filed * KV_PAGE);
            if len > first && self.limits.idle > 0 {
                let last = job.sequence.pages.swap_remove(job.filed);
                self.tree.insert_last(job.node, &job.ids[first..len], last);
            }
            job.sequence.truncate(0);
            job.say_last();
        }
        for _ in self.limits.idle..self.tree.idle() {
            self.tree.evict();
        }
    }

    fn drop_cancelled(&mut self, model: &dyn Model) {
        self.jobs.iter_mut().for_each(Job::hear);
        self.finish(model);
    }

    /// Decides which rows go into the next pass, and gives them pages.
    fn plan(&mut self, model: &dyn Model) {
        let top = self.jobs.iter().map(Job::priority).max().unwrap_or(0);
        self.jobs.sort_by_key(|job| (Reverse(job.rank(top)), job.ticket));
        let generating = self.jobs.iter().filter(|job| job.is_running() && job.rows_left() == 1).count();
        let mut chunk = self.limits.rows.saturating_sub(generating).max(self.limits.rows / 4).max(1);
        let mut running = self.jobs.iter().filter(|job| job.is_running()).count();
        for i in 0..self.jobs.len() {
            self.jobs[i].planned = 0;
            if !self.jobs[i].is_running() {
                // Those behind it may have to give way, so they do not count against the first.
                let may = chunk > 0 && (i == 0 || running < self.limits.sequences);
                if !(may && self.start(i, model)) {
                    self.jobs[i].pass_over();
                    continue;
                }
                running += 1;
            }
            let left = self.jobs[i].rows_left();
            let rows = if left == 1 { 1 } else { left.min(chunk) };
            if rows == 0 || !self.grow(i, rows, model) {
                self.jobs[i].pass_over();
                continue;
            }
            if left > 1 {
                chunk -= rows;
            } else if generating <= GUESSING {
                self.guess(i, model);
            }
            self.jobs[i].plan(rows);
        }
    }

    /// Lets a request guess tokens beyond its next one, as far as there is room.
    fn guess(&mut self, i: usize, model: &dyn Model) {
        let sequence = &self.jobs[i].sequence;
        let pages = sequence.pages.len().saturating_add(self.pool.free());
        let room = pages.saturating_mul(KV_PAGE) - sequence.len - 1;
        let guesses = self.jobs[i].guess(room, model);
        let enough = self.grow(i, 1 + guesses, model);
        assert!(enough, "scheduler: no room for {guesses} guesses in {room}");
    }

    /// Gives a running request pages for its next rows.
    fn grow(&mut self, i: usize, rows: usize, model: &dyn Model) -> bool {
        let sequence = &self.jobs[i].sequence;
        let missing = pages_for(sequence.len + rows).saturating_sub(sequence.pages.len());
        if !self.make_room(missing, i, model) {
            return false;
        }
        for _ in 0..missing {
            let page = self.pool.hold(model.new_page());
            self.jobs[i].sequence.pages.push(page);
        }
        true
    }
}

/// Computes the log-probabilities that some requests wait for, all in one go.
fn score_due<'a>(model: &dyn Model, jobs: impl Iterator<Item = &'a mut Job>) {
    let mut jobs: Vec<&mut Job> = jobs.filter(|job| !job.unscored.is_empty()).collect();
    if jobs.is_empty() {
        return;
    }
    let (mut hidden, mut targets) = (Vec::new(), Vec::new());
    for (rows, of_rows) in jobs.iter_mut().flat_map(|job| &mut job.unscored) {
        hidden.push(rows.clone());
        targets.extend_from_slice(of_rows);
    }
    let nll = model.nll(&hidden, &targets);
    let mut at = 0;
    for job in jobs {
        at += job.take_scores(&nll[at..]);
    }
}
