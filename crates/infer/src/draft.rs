//! Guessing the next tokens, so that one pass reads several.
//!
//! What is drawn at a position is a function of the logits there, so guesses change how many passes an answer takes and
//! nothing else: a guess is kept where it is what was drawn, and forgotten with everything behind it where it is not
//! (Leviathan et al. 2023; lookup in the prompt: Saxena 2023).

use crate::SamplingParams;
use crate::cache::Sequence;
use crate::request::Guess;
use crate::scheduler::Model;

/// Most tokens guessed at a time.
const MOST: usize = 16;
/// Tokens guessed at first.
const FIRST: usize = 4;
/// The longest and the shortest run of last tokens that is looked up.
const RUNS: [usize; 3] = [4, 3, 2];

/// Most guesses where `left` tokens may still be generated and `room` positions are free.
pub(crate) fn guess_limit(left: usize, room: usize) -> usize {
    left.min(room).saturating_sub(1).min(MOST)
}

/// How one request's tokens are guessed.
pub(crate) struct Guesser {
    guess: Guess,
    /// How many at a time: more while they are right.
    size: usize,
    session: Option<DraftSession>,
}

/// What the draft model has read of a request.
#[derive(Default)]
pub(crate) struct DraftSession {
    pub(crate) ids: Vec<u32>,
    pub(crate) sequence: Sequence,
}

impl Guesser {
    pub(crate) fn new(guess: Guess) -> Self {
        Self { guess, size: FIRST, session: None }
    }

    /// At most `most` tokens that may follow `ids`.
    pub(crate) fn guess(
        &mut self,
        ids: &[u32],
        params: &SamplingParams,
        most: usize,
        model: &dyn Model,
    ) -> Vec<u32> {
        let most = most.min(self.size);
        match self.guess {
            _ if most == 0 => Vec::new(),
            Guess::Off => Vec::new(),
            Guess::Lookup => look_up(ids, most),
            Guess::Draft => model.guess(self.session.get_or_insert_default(), ids, params, most),
        }
    }

    /// Gives up what the draft model has read: the request has to wait.
    pub(crate) fn forget(&mut self) {
        self.session = None;
    }

    #[cfg(test)]
    pub(crate) fn has_session(&self) -> bool {
        self.session.is_some()
    }

    /// Takes note of how many guesses were right.
    pub(crate) fn learn(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        self.size = if right == guessed { (self.size * 2).min(MOST) } else { (right + 1).max(self.size / 2) };
    }
}

/// What followed the last tokens where they occurred most recently, the longest run of them that did.
fn look_up(ids: &[u32], most: usize) -> Vec<u32> {
    for run in RUNS {
        let Some(start) = ids.len().checked_sub(run) else { continue };
        let last = &ids[start..];
        if let Some(at) = ids[..ids.len() - 1].windows(run).rposition(|window| window == last) {
            let follows = &ids[at + run..];
            return follows[..follows.len().min(most)].to_vec();
        }
    }
    Vec::new()
}
