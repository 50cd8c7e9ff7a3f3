//! One request on its way.

use std::ops::Range;
use std::sync::mpsc::Sender;

use bytes::Bytes;
use llamero_tensor::Tensor;

use super::{Model, Output, PATIENCE};
use crate::cache::{Part, Sequence, pages_for};
use crate::draft::{Guesser, guess_limit};
use crate::prefix::{NodeId, ROOT};
use crate::request::{Cancel, Guess};
use crate::score::check_finite;
use crate::{Event, Finish, Generation, InferError, Logprobs, Request, Result, SamplingParams, Task, sample};

/// Tokens whose log-probabilities are computed at a time where they are only wanted at the end.
const SCORED_TOGETHER: usize = 64;

/// A request that an engine has let in.
pub(crate) struct Job {
    /// Number by arrival.
    pub(super) ticket: u64,
    priority: i32,
    /// How much higher it counts for having waited, and for how many passes it did.
    boost: i32,
    passed_over: u32,
    task: Task,
    stream: bool,
    events: Sender<Event>,
    cancel: Cancel,

    /// The tokens given, and those generated.
    pub(super) ids: Vec<u32>,
    prompt: usize,
    context: usize,
    /// Keys and values of the first of them.
    pub(super) sequence: Sequence,
    /// What other requests took its pages for.
    pub(super) saved: Option<Saved>,
    /// Full pages that are in the tree, and the node of the last one.
    pub(super) filed: usize,
    pub(super) node: NodeId,
    cached: Option<usize>,
    guesser: Guesser,

    /// Rows of it in the pass, their tokens, and how many of the last ones' results are wanted.
    pub(super) planned: usize,
    reading: Vec<u32>,
    guesses: Vec<u32>,
    pub(super) wanted: usize,

    /// Hidden states whose targets have no log-probability yet.
    pub(super) unscored: Vec<(Tensor, Vec<u32>)>,
    logprobs: Vec<f32>,
    /// Generated tokens that the caller knows of.
    told: usize,
    over: Option<Over>,
}

/// Keys and values in the host's memory.
pub(super) struct Saved {
    pub(super) len: usize,
    pub(super) pages: Vec<Bytes>,
}

/// Why nothing more is computed.
enum Over {
    Finished(Finish),
    Scored,
    Failed(InferError),
}

impl Job {
    /// A request for a model with `context` positions; it was checked.
    pub(crate) fn new(request: Request, context: usize, events: Sender<Event>, cancel: Cancel) -> Self {
        let Request { ids, task, priority, stream } = request;
        let guess = if let Task::Generate { guess, .. } = task { guess } else { Guess::Off };
        Self {
            ticket: 0,
            priority,
            boost: 0,
            passed_over: 0,
            task,
            stream,
            events,
            cancel,
            prompt: ids.len(),
            ids,
            context,
            sequence: Sequence::default(),
            saved: None,
            filed: 0,
            node: ROOT,
            cached: None,
            guesser: Guesser::new(guess),
            planned: 0,
            reading: Vec::new(),
            guesses: Vec::new(),
            wanted: 0,
            unscored: Vec::new(),
            logprobs: Vec::new(),
            told: 0,
            over: None,
        }
    }

    pub(super) fn priority(&self) -> i32 {
        self.priority
    }

    /// Its place among all: a higher one goes first. `top` is the highest priority of all requests; nobody is raised above it.
    pub(super) fn rank(&self, top: i32) -> i32 {
        self.priority.saturating_add(self.boost).min(top)
    }

    /// Whether it has pages.
    pub(super) fn is_running(&self) -> bool {
        !self.sequence.pages.is_empty()
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Positions that are read before the next result.
    fn end(&self) -> usize {
        match self.task {
            Task::Generate { .. } => self.ids.len(),
            // The last token is predicted and not read.
            Task::Score { .. } => self.ids.len() - 1,
        }
    }

    /// The first position whose result is wanted.
    fn first_wanted(&self) -> usize {
        match self.task {
            Task::Generate { .. } => self.ids.len() - 1,
            // Where its pages were taken, some of its results are there already.
            Task::Score { from } => from - 1 + self.logprobs.len() + self.unscored_targets(),
        }
    }

    fn unscored_targets(&self) -> usize {
        self.unscored.iter().map(|(_, targets)| targets.len()).sum()
    }

    /// Tokens that need not be read where their keys and values are there.
    pub(super) fn cacheable(&self) -> usize {
        self.first_wanted().min(self.end() - 1)
    }

    /// Rows until the next result.
    pub(super) fn rows_left(&self) -> usize {
        self.end() - self.sequence.len
    }

    /// Notes that it has pages, and keys and values of its first `len` tokens; returns how many of them it got for nothing.
    pub(super) fn started(&mut self, len: usize) -> usize {
        if self.cached.is_some() {
            return 0;
        }
        self.cached = Some(len);
        len
    }

    pub(super) fn pass_over(&mut self) {
        self.passed_over += 1;
        if self.passed_over == PATIENCE {
            self.passed_over = 0;
            self.boost = self.boost.saturating_add(1);
        }
    }

    /// Guesses at most `most` tokens beyond its next one; returns how many there are.
    pub(super) fn guess(&mut self, most: usize, model: &dyn Model) -> usize {
        let Task::Generate { params, .. } = &self.task else { return 0 };
        let left = params.max_tokens - (self.ids.len() - self.prompt);
        // The last token is not read, so guesses end before it.
        let most = most.min(guess_limit(left, self.context - self.ids.len()));
        self.guesses = self.guesser.guess(&self.ids, params, most, model);
        self.guesses.len()
    }

    /// Decides that its next `rows` rows and its guesses are in the pass.
    pub(super) fn plan(&mut self, rows: usize) {
        let len = self.sequence.len;
        let end = len + rows;
        self.passed_over = 0;
        self.planned = rows + self.guesses.len();
        self.reading.clear();
        self.reading.extend_from_slice(&self.ids[len..end]);
        self.reading.extend_from_slice(&self.guesses);
        self.wanted = end.saturating_sub(self.first_wanted().max(len)) + self.guesses.len();
    }

    /// Whether tokens are drawn from the pass.
    pub(super) fn draws(&self) -> bool {
        self.planned > 0 && self.wanted > 0 && matches!(self.task, Task::Generate { .. })
    }

    /// Its rows in the pass.
    pub(super) fn part(&mut self) -> Part<'_> {
        let logits = self.draws();
        Part { sequence: &mut self.sequence, ids: &self.reading, wanted: self.wanted, logits }
    }

    /// Goes on from what the pass computed for it: the hidden states `rows`, and logits where it draws. Returns how many
    /// tokens were guessed, and how many of them right.
    pub(super) fn advance(
        &mut self,
        model: &dyn Model,
        output: &Output,
        rows: Range<usize>,
        (logits, vocab): (&[f32], usize),
    ) -> (u64, u64) {
        let guesses = std::mem::take(&mut self.guesses);
        if let Task::Score { .. } = self.task {
            let len = self.sequence.len;
            let targets = self.ids[len + 1 - self.wanted..=len].to_vec();
            if !targets.is_empty() {
                self.unscored.push((model.keep(&output.hidden, rows), targets));
            }
            if len == self.end() {
                self.over = Some(Over::Scored);
            }
            return (0, 0);
        }
        if rows.is_empty() {
            return (0, 0);
        }
        let before = self.ids.len();
        for (row, logits) in logits.chunks_exact(vocab).enumerate() {
            match self.draw(logits) {
                Ok(id) if self.over.is_none() && guesses.get(row) == Some(&id) => {}
                Ok(_) => break,
                Err(error) => {
                    self.fail(error);
                    break;
                }
            }
        }
        // Keys and values of wrong guesses go. The last token is read in the next pass.
        self.sequence.truncate(self.ids.len() - 1);
        let drawn = self.ids.len() - before;
        if drawn == 0 {
            return (0, 0);
        }
        self.guesser.learn(guesses.len(), drawn - 1);
        if self.logprobs_wanted() != Logprobs::Off && !matches!(self.over, Some(Over::Failed(_))) {
            let kept = model.keep(&output.hidden, rows.start..rows.start + drawn);
            self.unscored.push((kept, self.ids[before..].to_vec()));
        }
        (guesses.len() as u64, drawn as u64 - 1)
    }

    /// Draws the next token, and says whether it is the last one.
    fn draw(&mut self, logits: &[f32]) -> Result<u32> {
        let Task::Generate { params, .. } = &self.task else {
            panic!("scheduler: nothing is drawn when scoring")
        };
        let id = sample(logits, params, &self.ids, self.ids.len())?;
        self.ids.push(id);
        self.over = self.why_over(params, id).map(Over::Finished);
        Ok(id)
    }

    fn why_over(&self, params: &SamplingParams, id: u32) -> Option<Finish> {
        if params.stop.contains(&id) {
            Some(Finish::Stop)
        } else if self.ids.len() - self.prompt == params.max_tokens {
            Some(Finish::Length)
        } else if self.ids.len() == self.context {
            Some(Finish::Context)
        } else {
            None
        }
    }

    fn logprobs_wanted(&self) -> Logprobs {
        match self.task {
            Task::Generate { logprobs, .. } => logprobs,
            Task::Score { .. } => Logprobs::AtEnd,
        }
    }

    /// Whether its log-probabilities are computed now.
    pub(super) fn is_due(&self) -> bool {
        self.logprobs_wanted() == Logprobs::EachToken || self.unscored_targets() >= SCORED_TOGETHER
    }

    /// Takes as many negative log-likelihoods from the front as it waits for; returns how many these are.
    pub(super) fn take_scores(&mut self, nll: &[f32]) -> usize {
        let targets: Vec<u32> =
            std::mem::take(&mut self.unscored).into_iter().flat_map(|(_, targets)| targets).collect();
        let nll = &nll[..targets.len()];
        let first = match self.task {
            Task::Generate { .. } => self.prompt,
            Task::Score { from } => from,
        };
        if let Err(error) = check_finite(nll, &targets, first + self.logprobs.len()) {
            self.fail(error);
        }
        self.logprobs.extend(nll.iter().map(|x| -x));
        targets.len()
    }

    pub(super) fn fail(&mut self, error: InferError) {
        self.unscored.clear();
        self.over = Some(Over::Failed(error));
    }

    /// Notices that nobody wants its answer any more.
    pub(super) fn hear(&mut self) {
        if self.over.is_none() && self.cancel.is_cancelled() {
            self.over = Some(match self.task {
                Task::Generate { .. } => Over::Finished(Finish::Cancelled),
                Task::Score { .. } => Over::Failed(InferError::Stopped),
            });
        }
    }

    /// Tells tokens that the caller does not know of.
    pub(super) fn tell(&mut self) {
        if !self.stream || matches!(self.over, Some(Over::Failed(_))) {
            return;
        }
        let stop = usize::from(matches!(self.over, Some(Over::Finished(Finish::Stop))));
        let each = self.logprobs_wanted() == Logprobs::EachToken;
        for at in self.told..self.ids.len() - self.prompt - stop {
            let logprob = each.then(|| self.logprobs[at]);
            if self.events.send(Event::Token { id: self.ids[self.prompt + at], logprob }).is_err() {
                self.cancel.cancel();
            }
            self.told = at + 1;
        }
    }

    /// Tells how it ended.
    pub(super) fn say_last(self) {
        let event = match self.over {
            Some(Over::Finished(finish)) => Event::Done(Generation {
                ids: self.ids[self.prompt..].to_vec(),
                logprobs: self.logprobs,
                finish,
                cached: self.cached.unwrap_or(0),
            }),
            Some(Over::Scored) => Event::Scored(self.logprobs),
            Some(Over::Failed(error)) => Event::Failed(error),
            None => panic!("scheduler: a request that is not over ends"),
        };
        // Whoever does not listen any more does not want to know.
        drop(self.events.send(event));
    }

    /// Gives its pages to others. What is in them is saved where that takes at most `room` pages, and computed again where not.
    pub(super) fn pre_empt(&mut self, room: usize, model: &dyn Model) {
        let len = self.sequence.len;
        let used = &self.sequence.pages[..pages_for(len)];
        if len > 0 && used.len() <= room {
            self.saved =
                Some(Saved { len, pages: used.iter().map(|page| model.save_page(page.tensor())).collect() });
        }
        self.sequence.truncate(0);
        self.guesser.forget();
        (self.node, self.filed) = (ROOT, 0);
    }

    /// Whether the draft model's pages are held for it.
    #[cfg(test)]
    pub(super) fn has_draft(&self) -> bool {
        self.guesser.has_session()
    }
}
