//! Guards against silent corruption: bits that turn over in memory, and arithmetic that goes wrong on one machine.
//!
//! What lies still is summed when it is put down and again before it is used: weights, their lower halves and moments from one
//! update to the next, gradients from one micro-batch to the next and from their sum over ranks to the update. What was computed
//! is computed again, now and then, by another rank from the same data, and every gradient of that micro-batch must have the
//! same bits. What several ranks hold alike is compared (`replicas`). Messages carry hashes (`comm`). A finding names rank, step
//! and tensor, and all ranks go back to the newest checkpoint (`fit`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use llamero_data::Sequence;
use llamero_tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Orders, TrainError, Trainer};

/// What is watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// Weights, moments and gradients are summed whenever they have changed and before they are used.
    pub state: bool,
    /// Messages between ranks carry a hash of their bytes.
    pub messages: bool,
    /// Of so many matrix products one is checked by sums over its rows; 0 means none.
    pub products: u64,
    /// Steps between two comparisons of what several ranks hold alike; 0 means never.
    pub replicas: u64,
    /// Steps between two repeats of a micro-batch on the next data-parallel rank; 0 means never.
    pub repeat: u64,
}

impl Guard {
    /// Everything but products, which repeats cover; the rare checks every `steps` steps.
    pub fn every(steps: u64) -> Self {
        Self { state: true, messages: true, products: 0, replicas: steps, repeat: steps }
    }

    /// Whether anything is watched.
    pub fn is_on(&self) -> bool {
        self.state || self.products > 0 || self.replicas > 0 || self.repeat > 0
    }

    /// Whether a micro-batch of this step is computed twice.
    pub(crate) fn repeats(&self, step: u64) -> bool {
        self.repeat > 0 && step.is_multiple_of(self.repeat)
    }
}

/// How something was seen to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// Weights changed between two updates.
    Weight,
    /// The lower halves of the f32 masters changed between two updates.
    LowHalves,
    /// The first moment changed between two updates.
    FirstMoment,
    /// The second moment changed between two updates.
    SecondMoment,
    /// The sum that an average of weights is taken of changed between two updates.
    WeightSum,
    /// A gradient changed while it waited.
    Gradient,
    /// Ranks that must hold the same do not.
    Replicas,
    /// A matrix product is wrong.
    Product,
    /// A repeat of the same work on another rank came to something else.
    Repeat,
}

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// The step in which it was seen.
    pub step: u64,
    /// The tensor: of a parameter, its name; of a product, what is wrong with it.
    pub tensor: String,
    /// What shows it.
    pub sign: Sign,
    /// Where it is, as ranks of the world; several where one of them is wrong and it does not show which.
    pub ranks: Vec<usize>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, tensor, sign, ranks } = self;
        let list: Vec<String> = ranks.iter().map(usize::to_string).collect();
        let (s, list) = (if ranks.len() == 1 { "" } else { "s" }, list.join(", "));
        let what = match sign {
            Sign::Weight => "the weight changed between two updates",
            Sign::LowHalves => "the lower halves changed between two updates",
            Sign::FirstMoment => "the first moment changed between two updates",
            Sign::SecondMoment => "the second moment changed between two updates",
            Sign::WeightSum => "the sum of weights changed between two updates",
            Sign::Gradient => "the gradient changed while it waited",
            Sign::Replicas => "it differs from its copies",
            Sign::Product => return write!(f, "step {step}, rank{s} {list}: {tensor}"),
            Sign::Repeat => "its gradient has other bits when another rank repeats the micro-batch",
        };
        write!(f, "step {step}, rank{s} {list}: `{tensor}`: {what}")
    }
}

/// What a rank's guard knows.
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) guard: Guard,
    /// Sums of every state of the optimiser, in order, since the last update.
    seals: Option<Vec<Seal>>,
    findings: Mutex<Vec<Finding>>,
    /// Sequences of another rank's first micro-batch, to be repeated in the next step.
    pub(crate) repeat: Option<Vec<Sequence>>,
    /// How long this rank had waited for others when the step began.
    pub(crate) waited: Duration,
    /// Where faults to be injected come from.
    pub(crate) orders: Option<Orders>,
    /// A gradient to be damaged in the next step, chosen by this number.
    pub(crate) damage: Mutex<Option<u64>>,
}

/// Sums of one parameter's weight, lower halves, moments and sum of weights.
type Seal = [Option<u64>; 5];

const SIGNS: [Sign; 5] =
    [Sign::Weight, Sign::LowHalves, Sign::FirstMoment, Sign::SecondMoment, Sign::WeightSum];

impl Watch {
    pub(crate) fn note(&self, finding: Finding) {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).push(finding);
    }

    /// Damages a gradient that waits for another micro-batch, if that was asked for and `damage` finds one; else the update is
    /// the next occasion.
    pub(crate) fn damage_between(&self, mut damage: impl FnMut(u64) -> bool) {
        let mut asked = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        *asked = asked.filter(|random| random % 2 == 1 || !damage(*random));
    }

    pub(crate) fn take_damage(&self) -> Option<u64> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Trainer<'_> {
    /// This trainer, watched from the state that it has now.
    pub fn guarded(mut self, guard: Guard) -> Self {
        self.watch.guard = guard;
        self.seal();
        self
    }

    /// What is watched.
    pub fn guard(&self) -> Guard {
        self.watch.guard
    }

    /// What this rank has found since it was last asked.
    pub fn take_findings(&self) -> Vec<Finding> {
        std::mem::take(&mut self.watch.findings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn sums(&self) -> Vec<Seal> {
        let backend = self.backend();
        let sum = |x: &Tensor| Some(backend.checksum(x));
        let params = self.stages().iter().flat_map(|stage| stage.params());
        let states = params.zip(&self.optimizer.states);
        let of = states.map(|(param, state)| {
            let low = state.low.as_ref().map(|low| backend.checksum_low(low));
            [sum(&param.value), low, sum(&state.m), sum(&state.v), state.sum.as_ref().and_then(sum)]
        });
        of.collect()
    }

    /// Takes the state as it is for the right one: after an update, or after it was loaded.
    pub(crate) fn seal(&mut self) {
        self.watch.seals = self.watch.guard.state.then(|| self.sums());
    }

    /// Whether the state is still what was sealed; notes what is not.
    pub(crate) fn verify(&self, step: u64) {
        let Some(seals) = &self.watch.seals else { return };
        let params = self.stages().iter().flat_map(|stage| stage.params());
        for ((param, sealed), found) in params.zip(seals).zip(self.sums()) {
            for ((sign, sealed), found) in SIGNS.into_iter().zip(sealed).zip(&found) {
                if sealed != found {
                    let (tensor, ranks) = (param.name.clone(), vec![self.ranks().all.rank()]);
                    self.watch.note(Finding { step, tensor, sign, ranks });
                }
            }
        }
    }

    /// Compares replicas and notes what is wrong with them. Every rank calls it.
    pub(crate) fn look_at_replicas(&self, step: u64) -> Result<(), TrainError> {
        if self.guard().replicas > 0 {
            self.check_replicas(step)?.into_iter().for_each(|finding| self.watch.note(finding));
        }
        Ok(())
    }

    /// Looks at the state where no step follows that would. Every rank calls it.
    pub(crate) fn check_now(&self, step: u64) -> Result<(), TrainError> {
        if !self.guard().is_on() {
            return Ok(());
        }
        self.verify(step);
        let found = self.everybodys(AfterStep { found: self.take_findings(), busy: Vec::new() })?.found;
        if found.is_empty() { Ok(()) } else { Err(TrainError::corrupted(step, &found)) }
    }

    /// Places of the next data-parallel rank's first micro-batch among the sequences of `step`, when this step is one that is
    /// repeated: give them to [`Trainer::repeat`].
    pub fn repeated_sequences(&self, step: u64) -> Option<std::ops::Range<usize>> {
        let (dp, size) = (self.ranks().at.dp, self.ranks().mesh.dp);
        let settings = self.config().at(step);
        self.guard().repeats(step).then(|| {
            let other = llamero_comm::share(settings.batch, (dp + 1) % size, size);
            other.start..other.end.min(other.start + settings.micro_batch)
        })
    }

    /// The next step also computes this micro-batch, and compares its gradients with those of the rank that it belongs to.
    pub fn repeat(&mut self, sequences: Vec<Sequence>) {
        self.watch.repeat = Some(sequences);
    }

    /// Compares a repeat with what the next data-parallel rank had: sums of gradients by parameter.
    pub(crate) fn compare_repeat(
        &self,
        step: u64,
        own: &BTreeMap<usize, u64>,
        repeated: &BTreeMap<usize, u64>,
    ) -> Result<(), TrainError> {
        let ranks = self.ranks();
        let (rank, size) = (ranks.dp.rank(), ranks.dp.size());
        let bytes: Vec<u8> = own.values().flat_map(|sum| sum.to_ne_bytes()).collect();
        let bodies = ranks.dp.all_gather(bytes.into())?;
        // The same rows of the next data-parallel rank's sequences.
        let next = (rank + ranks.mesh.cp) % size;
        let found = bodies[next].as_chunks().0.iter().map(|b| u64::from_ne_bytes(*b));
        // The sweep goes from the last parameter to the first: what went wrong first has the highest number.
        let same_number = found.len() == repeated.len();
        let first =
            repeated.iter().zip(found).filter(|((_, a), b)| *a != b).map(|((id, _), _)| *id).next_back();
        if same_number && first.is_none() {
            return Ok(());
        }
        let table = self.model().config.params();
        let tensor = first.map_or("all gradients".into(), |id| table[id].name.clone());
        let place = |n| ranks.mesh.rank(ranks.mesh.replica(n, ranks.at));
        let mut both = vec![place(rank), place(next)];
        both.sort_unstable();
        both.dedup();
        self.watch.note(Finding { step, tensor, sign: Sign::Repeat, ranks: both });
        Ok(())
    }

    /// After a step that took this rank so long: what all ranks have to tell, the same on all of them. Every rank calls it.
    pub(crate) fn after_step(&mut self, step: u64, took: Duration) -> Result<AfterStep, TrainError> {
        if step.is_multiple_of(self.guard().replicas.max(1)) {
            self.look_at_replicas(step)?;
        }
        for tensor in self.backend().take_faults() {
            let ranks = vec![self.ranks().all.rank()];
            self.watch.note(Finding { step, tensor, sign: Sign::Product, ranks });
        }
        let busy = took.saturating_sub(self.waited().saturating_sub(self.watch.waited));
        let own = AfterStep { found: self.take_findings(), busy: vec![busy.as_secs_f64()] };
        self.everybodys(own)
    }

    /// How long this rank has waited for others in all.
    pub(crate) fn waited(&self) -> Duration {
        self.ranks().world.as_ref().map_or(Duration::ZERO, llamero_comm::World::waited)
    }

    /// Repeats need the same bits on all ranks, which other instructions do not give. Every rank calls it; returns a remark when
    /// there will be no repeats.
    pub(crate) fn check_devices(&mut self) -> Result<Option<String>, TrainError> {
        let all = std::sync::Arc::clone(&self.ranks().all);
        if self.watch.guard.repeat == 0 || all.size() == 1 {
            return Ok(None);
        }
        // The number of threads changes no bit.
        let name = self.backend().name();
        let own = name.split(" x").next().unwrap_or(&name).to_owned();
        let names = all.all_gather(own.into_bytes().into())?;
        let Some(other) = names.iter().find(|other| other[..] != names[0][..]) else { return Ok(None) };
        self.watch.guard.repeat = 0;
        let [a, b] = [&names[0], other].map(|name| String::from_utf8_lossy(name).into_owned());
        Ok(Some(format!(
            "no micro-batch is repeated to check arithmetic: ranks compute on `{a}` and on `{b}`"
        )))
    }

    /// What all ranks tell each other.
    fn everybodys(&self, own: AfterStep) -> Result<AfterStep, TrainError> {
        let all = &self.ranks().all;
        if all.size() == 1 {
            return Ok(own);
        }
        let failed =
            |rank: usize, e: serde_json::Error| TrainError::OtherRank { rank, reason: e.to_string() };
        let text = serde_json::to_vec(&own).map_err(|e| failed(all.rank(), e))?;
        let mut told = AfterStep::default();
        for (rank, body) in all.all_gather(text.into())?.iter().enumerate() {
            let of_rank: AfterStep = serde_json::from_slice(body).map_err(|e| failed(rank, e))?;
            told.found.extend(of_rank.found);
            told.busy.extend(of_rank.busy);
        }
        told.found.sort();
        told.found.dedup();
        Ok(told)
    }
}

/// What ranks have to tell after a step.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct AfterStep {
    /// What is wrong.
    pub(crate) found: Vec<Finding>,
    /// Seconds that each rank did not wait for others.
    pub(crate) busy: Vec<f64>,
}

/// Sums over gradients that lie still.
#[derive(Default)]
pub(crate) struct GradientSeals {
    sums: BTreeMap<usize, u64>,
    /// Parameters whose gradient changed.
    pub(crate) changed: Vec<usize>,
}

impl GradientSeals {
    /// A gradient will not be touched for a while.
    pub(crate) fn put(&mut self, id: usize, sum: u64) {
        self.sums.insert(id, sum);
    }

    /// A gradient that may have lain still is to be used.
    pub(crate) fn open(&mut self, id: usize, sum: impl FnOnce() -> u64) {
        if let Some(sealed) = self.sums.remove(&id)
            && sealed != sum()
        {
            self.changed.push(id);
        }
    }
}
