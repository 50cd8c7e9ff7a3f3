//! One update: forward and backward over micro-batches, checks, clipping, AdamW; on one rank or on a mesh of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use llamero_autograd::{Tape, Targets, Var, body, elements};
use llamero_comm::{Comm, CommError, Op};
use llamero_data::Sequence;
use llamero_model::{Config, Division, Input, Llama, ParamSpec, Placement, Shard};
use llamero_tensor::{Backend, DType, RowLoss, Shape, Tensor};

use crate::context::MicroBatch;
use crate::faults::damage;
use crate::gradients::{GradientShares, Summed};
use crate::guard::Watch;
use crate::pipeline::{Action, Pipeline, stage_layers};
use crate::{Finding, Optimizer, Ranks, Sharding, Sign, TrainConfig, TrainError};

/// What one step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// Mean negative log-likelihood per target, in nats, before the update.
    pub loss: f64,
    /// What the z-loss adds to it, where there is one.
    pub z_loss: Option<f64>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate used.
    pub lr: f64,
    /// Tokens read by all ranks.
    pub tokens: u64,
    /// Why the update was not made, when it was not.
    pub skipped: Option<String>,
}

/// A model in training, or the part of it that one rank of a mesh holds. Every rank goes through the same steps.
pub struct Trainer<'b> {
    /// The chunks of the model on this rank: the whole model, where the mesh has one stage.
    stages: Vec<Llama>,
    /// What each of them is of the whole.
    places: Vec<Placement>,
    pub(crate) optimizer: Optimizer,
    backend: &'b dyn Backend,
    config: TrainConfig,
    ranks: Ranks,
    /// Exponential mean of the losses of steps that were made, for recognising spikes.
    pub(crate) mean_loss: Option<f64>,
    pub(crate) watch: Watch,
}

/// Weight of the newest loss in the running mean.
const MEAN_WEIGHT: f64 = 0.05;

/// The chunks of a model that a rank of a mesh holds, with values from `values` as in [`Llama::build`].
pub fn build_stages<E>(
    model: &Config,
    config: &TrainConfig,
    ranks: &Ranks,
    device: (&dyn Backend, DType),
    mut values: impl FnMut(&ParamSpec, std::ops::Range<usize>) -> Result<Vec<f32>, E>,
) -> Result<Vec<Llama>, E> {
    let places = places(model, config, ranks);
    let shards = (config.sharding == Sharding::Parameters).then(|| Arc::clone(ranks.shards()));
    let division = Division { slices: Arc::clone(&ranks.tp), shards };
    let build = |place| Llama::build(model, place, device, division.clone(), &mut values);
    places.iter().map(build).collect()
}

/// What the chunks on a rank are of the whole model.
fn places(model: &Config, config: &TrainConfig, ranks: &Ranks) -> Vec<Placement> {
    let (pp, chunks) = (ranks.mesh.pp, config.pipeline.chunks);
    let layers = stage_layers(model, pp * chunks);
    let place = |chunk: usize| {
        let stage = chunk * pp + ranks.at.pp;
        Placement {
            layers: layers[stage].clone(),
            first: stage == 0,
            last: stage + 1 == layers.len(),
            tp_rank: ranks.at.tp,
            tp_size: ranks.mesh.tp,
        }
    };
    (0..chunks).map(place).collect()
}

/// A micro-batch on its way through a chunk.
struct Flight<'a> {
    tape: Tape<'a>,
    /// What came from the stage before.
    input: Option<Var>,
    hidden: Var,
}

/// Loss and gradients of one step on this rank.
pub struct StepGradients {
    /// Mean over all targets of all ranks.
    pub loss: f64,
    /// Mean squared log-sum-exp, where there is a z-loss.
    pub lse_square: f64,
    /// Tokens read by all ranks.
    pub tokens: u64,
    /// Sum of the squares of all gradients of all ranks.
    pub square: f64,
    /// By parameter, of the rows that this rank updates.
    pub by_id: BTreeMap<usize, Tensor>,
    /// Their checksums, where the state is guarded.
    sums: Option<BTreeMap<usize, u64>>,
}

impl<'b> Trainer<'b> {
    /// A trainer of a whole model at step 0.
    pub fn new(model: Llama, backend: &'b dyn Backend, config: TrainConfig) -> Self {
        Self::on_mesh(vec![model], Ranks::solo(), backend, config)
    }

    /// One rank's part of a trainer at step 0, with what [`build_stages`] gave.
    pub fn on_mesh(stages: Vec<Llama>, ranks: Ranks, backend: &'b dyn Backend, config: TrainConfig) -> Self {
        let optimizer = Optimizer::new(&stages, backend, &**ranks.shards());
        let places = places(&stages[0].config, &config, &ranks);
        assert_eq!(places.len(), stages.len(), "a trainer has the chunks that its configuration says");
        let watch = Watch::default();
        Self { stages, places, optimizer, backend, config, ranks, mean_loss: None, watch }
    }

    /// The whole model, or the first chunk of it on this rank.
    pub fn model(&self) -> &Llama {
        &self.stages[0]
    }

    /// The whole model, or the first chunk of it on this rank.
    pub fn model_mut(&mut self) -> &mut Llama {
        &mut self.stages[0]
    }

    /// The chunks of the model on this rank; [`llamero_autograd::Param::whole`] puts sharded parameters together.
    pub fn stages(&self) -> &[Llama] {
        &self.stages
    }

    /// What the chunks are of the whole model.
    pub(crate) fn places(&self) -> &[Placement] {
        &self.places
    }

    /// The chunks of the model on this rank and the state of the optimiser.
    pub(crate) fn parts_mut(&mut self) -> (&mut [Llama], &mut Optimizer) {
        (&mut self.stages, &mut self.optimizer)
    }

    /// The device.
    pub fn backend(&self) -> &'b dyn Backend {
        self.backend
    }

    /// Settings of the run.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The ranks.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// This rank's part of the sequences of a step, given all of them: each data-parallel rank takes as many in a row.
    /// Context-parallel ranks take the same ones, and cut their rows out of them.
    pub fn own_sequences(&self, step: u64) -> std::ops::Range<usize> {
        llamero_comm::share(self.config.at(step).batch, self.ranks.at.dp, self.ranks.mesh.dp)
    }

    /// Loss and gradients of the mean over all targets of a step, of which `sequences` are this rank's part, without an
    /// update. The sum runs over micro-batches in order, so their size does not matter.
    pub fn gradients(&self, step: u64, sequences: Vec<Sequence>) -> Result<StepGradients, TrainError> {
        let ranks = &self.ranks;
        let micro_batches = sequences.chunks(self.config.at(step).micro_batch);
        let batches: Vec<MicroBatch> = micro_batches.map(|sequences| self.cut(sequences)).collect();
        drop(sequences);
        let tokens: usize = batches.iter().map(|b| b.tokens.len()).sum();
        let targets: usize = batches.iter().map(MicroBatch::num_targets).sum();
        let counts = everybodys(&*ranks.dp, &[targets as f64, tokens as f64])?;
        let [targets, tokens] = [0, 1].map(|i| counts.iter().map(|own| own[i]).sum::<f64>());
        let tokens = tokens as u64;
        if targets == 0.0 {
            return Err(TrainError::NoTargets { step, tokens: tokens as usize });
        }
        let repeated = self.watch.repeat.as_ref().map(|other| self.repeated(other, targets)).transpose()?;
        let mut shares = self.gradient_shares().watched(self.watch.guard.state, repeated.is_some());
        let sums = self.passes(&batches, targets, &mut shares)?;
        drop(batches);
        if let Some(repeated) = &repeated {
            self.compare_repeat(step, &shares.take_first(), repeated)?;
        }
        let table = self.stages[0].config.params();
        let Summed { mut by_id, changed, sums: checksums } =
            shares.finish(|id| table[id].shard == Shard::Whole)?;
        changed.into_iter().for_each(|id| self.gradient_changed(step, id));
        if let Some(random) = self.watch.take_damage() {
            damage(self.backend, &mut by_id, random);
        }
        // Every parameter once: what several ranks hold alike counts on the first of them. Squares are added in the order of
        // the table, so that the number of stages does not show.
        let mut own = vec![0.0; table.len() + 2];
        for (&id, gradient) in &by_id {
            let again =
                (table[id].shard == Shard::Whole && ranks.at.tp > 0) || (id == 0 && ranks.ends.rank() > 0);
            if !again {
                own[id] = self.backend.sum_of_squares(gradient);
            }
        }
        if ranks.at.tp == 0 {
            own[table.len()..].copy_from_slice(&sums);
        }
        let all = everybodys(&*ranks.all, &own)?;
        let total = |i: usize| all.iter().map(|own| own[i]).sum::<f64>();
        let square = (0..table.len()).map(total).sum();
        let [loss, lse_square] = [0, 1].map(|i| total(table.len() + i) / targets);
        Ok(StepGradients { loss, lse_square, tokens, square, by_id, sums: checksums })
    }

    /// This rank's rows of a micro-batch.
    fn cut(&self, sequences: &[Sequence]) -> MicroBatch {
        MicroBatch::cut(sequences, (self.ranks.at.cp, self.ranks.mesh.cp))
    }

    fn gradient_shares(&self) -> GradientShares<'b, '_> {
        GradientShares::new(self.backend, &self.ranks, self.config.sharding, self.stages[0].config.tied)
    }

    /// Sums of the gradients of another rank's micro-batch.
    fn repeated(&self, other: &[Sequence], targets: f64) -> Result<BTreeMap<usize, u64>, TrainError> {
        let mut shares = self.gradient_shares().only_sums();
        self.passes(&[self.cut(other)], targets, &mut shares)?;
        Ok(shares.take_first())
    }

    /// Notes that a gradient is not what it was.
    fn gradient_changed(&self, step: u64, id: usize) {
        let (tensor, rank) = (self.stages[0].config.params()[id].name.clone(), self.ranks.all.rank());
        self.watch.note(Finding { step, tensor, sign: Sign::Gradient, ranks: vec![rank] });
    }

    /// Every pass of this rank's schedule. Returns the sums of the losses and, where there is a z-loss, of the squared
    /// log-sum-exps, at the last stage: row by row in order, so that the cuts between micro-batches do not show in them.
    fn passes(
        &self,
        batches: &[MicroBatch],
        targets: f64,
        shares: &mut GradientShares<'b, '_>,
    ) -> Result<[f64; 2], TrainError> {
        let (ranks, chunks) = (&self.ranks, self.config.pipeline.chunks);
        let (rank, size) = (ranks.at.pp, ranks.mesh.pp);
        let run = self.config.pipeline.run.unwrap_or(size).max(size);
        let pipeline = Pipeline { ranks: size, chunks, micros: batches.len(), run };
        let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
        let mut flights: HashMap<(usize, usize), Flight<'_>> = HashMap::new();
        // Between chunks of one rank nothing is sent.
        let mut here: HashMap<(bool, usize, usize), Tensor> = HashMap::new();
        let (mut nll, mut lse_square, z) = (0.0, 0.0, self.config.z_loss as f32);
        for action in pipeline.schedule(rank) {
            match action {
                Action::Forward { chunk, micro } => {
                    let (stage, model) = (pipeline.stage(rank, chunk), &self.stages[chunk]);
                    let mut tape = Tape::record(self.backend);
                    if ranks.mesh.cp > 1 {
                        tape.divide_context(batches[micro].context(&*ranks.cp));
                    }
                    let (input, leaf) = if stage == 0 {
                        (Input::Tokens(&batches[micro].tokens), None)
                    } else {
                        let x = match here.remove(&(true, stage, micro)) {
                            Some(x) => x,
                            None => self.receive(&*ranks.pp, before, &batches[micro])?,
                        };
                        let leaf = tape.leaf(x);
                        (Input::Hidden(leaf.clone()), Some(leaf))
                    };
                    let segments = &batches[micro].segments;
                    let hidden = model.forward(&mut tape, input, segments, self.config.recompute);
                    tape.check()?;
                    if stage + 1 < pipeline.stages() {
                        if size == 1 {
                            here.insert((true, stage + 1, micro), hidden.value().clone());
                        } else {
                            self.send(&*ranks.pp, next, hidden.value())?;
                        }
                    }
                    flights.insert((chunk, micro), Flight { tape, input: leaf, hidden });
                }
                Action::Backward { chunk, micro } => {
                    let (stage, model) = (pipeline.stage(rank, chunk), &self.stages[chunk]);
                    let Some(Flight { tape, input, hidden }) = flights.remove(&(chunk, micro)) else {
                        unreachable!("a schedule goes forwards before it goes backwards")
                    };
                    self.watch.damage_between(|random| shares.damage(random));
                    shares.micro_batch(micro, batches.len());
                    let d_input = if stage + 1 == pipeline.stages() {
                        let batch = &batches[micro];
                        let shape = Shape::new(batch.tokens.len(), 1);
                        let each = vec![(1.0 / targets) as f32; shape.rows];
                        let d_row = self.backend.upload(&each, shape, DType::F32);
                        let loss = RowLoss { d_row: &d_row, z };
                        let targets = Targets { ids: &batch.targets, loss };
                        let (rows, d_input) = model.finish(tape, hidden, targets, input.as_ref(), shares)?;
                        for row in self.backend.download(&rows.nll) {
                            nll += f64::from(row);
                        }
                        if z != 0.0 {
                            for lse in self.backend.download(&rows.lse) {
                                lse_square += f64::from(lse).powi(2);
                            }
                        }
                        d_input
                    } else {
                        let dy = match here.remove(&(false, stage, micro)) {
                            Some(dy) => dy,
                            None => self.receive(&*ranks.pp_back, next, &batches[micro])?,
                        };
                        tape.backward(hidden, dy, input.as_ref(), shares)?
                    };
                    if let Some(d_input) = d_input {
                        if size == 1 {
                            here.insert((false, stage - 1, micro), d_input);
                        } else {
                            self.send(&*ranks.pp_back, before, &d_input)?;
                        }
                    }
                }
            }
            shares.check()?;
        }
        Ok([nll, lse_square])
    }

    fn send(&self, pipe: &dyn Comm, to: usize, x: &Tensor) -> Result<(), TrainError> {
        Ok(pipe.send(to, body(self.backend, x, 0..x.rows()))?)
    }

    /// Hidden states of this rank's share of the rows of a micro-batch, or their gradient.
    fn receive(&self, pipe: &dyn Comm, from: usize, batch: &MicroBatch) -> Result<Tensor, TrainError> {
        let (tp, model) = (&self.ranks.tp, &self.stages[0]);
        let rows = llamero_comm::share(batch.tokens.len(), tp.rank(), tp.size()).len();
        let shape = Shape::new(rows, model.config.dim);
        let Some(dtype) = model.params().next().map(|p| p.value.dtype()) else {
            unreachable!("a stage has parameters")
        };
        let body = pipe.recv(from, elements(dtype))?;
        let (found, expected) = (body.len() / dtype.bytes(), shape.elements());
        if body.len() != expected * dtype.bytes() {
            let (op, rank) = (Op::Send.name(), pipe.rank());
            return Err(CommError::Length { op, rank, from, found, expected }.into());
        }
        Ok(self.backend.upload_raw(&[&body], shape, dtype))
    }

    /// One update, or a reasoned refusal of it. `sequences` are this rank's part of the step's.
    pub fn step(&mut self, step: u64, sequences: Vec<Sequence>) -> Result<StepOutcome, TrainError> {
        let (mut sequences, mut outcome) = (Some(sequences), None);
        self.backend.scope(&mut || {
            if let Some(sequences) = sequences.take() {
                outcome = Some(self.update(step, sequences));
            }
        });
        outcome.unwrap_or_else(|| unreachable!("a scope runs its work"))
    }

    fn update(&mut self, step: u64, sequences: Vec<Sequence>) -> Result<StepOutcome, TrainError> {
        self.watch.waited = self.waited();
        self.obey();
        let StepGradients { loss, lse_square, tokens, square, by_id, sums } =
            self.gradients(step, sequences)?;
        self.watch.repeat = None;
        self.verify(step);
        let same = |(id, sum): (&usize, u64)| by_id.get(id).is_some_and(|x| self.backend.checksum(x) == sum);
        let changed = sums.iter().flatten().filter(|(id, sum)| !same((id, **sum)));
        changed.for_each(|(id, _)| self.gradient_changed(step, *id));
        let (grad_norm, settings) = (square.sqrt(), self.config.at(step));
        let lr = settings.lr;
        let skipped = self.refusal(loss, grad_norm);
        if skipped.is_none() {
            let optimizer = &self.config.optimizer;
            let scale = if grad_norm > optimizer.clip_norm { optimizer.clip_norm / grad_norm } else { 1.0 };
            let shards = Arc::clone(self.ranks.shards());
            self.optimizer.step(
                &mut self.stages,
                &by_id,
                (self.backend, &*shards),
                optimizer,
                (lr, scale),
            )?;
            let mean = self.mean_loss.map_or(loss, |mean| mean + MEAN_WEIGHT * (loss - mean));
            self.mean_loss = Some(mean);
        }
        if settings.averaged {
            self.add_to_average();
        }
        if skipped.is_none() || settings.averaged {
            self.seal();
        }
        let z_loss = (self.config.z_loss != 0.0).then_some(self.config.z_loss * lse_square);
        Ok(StepOutcome { loss, z_loss, grad_norm, lr, tokens, skipped })
    }

    fn refusal(&self, loss: f64, grad_norm: f64) -> Option<String> {
        if !loss.is_finite() {
            return Some(format!("the loss is {loss}"));
        }
        if !grad_norm.is_finite() {
            return Some(format!("the gradient norm is {grad_norm}"));
        }
        let mean = self.mean_loss?;
        let limit = mean * self.config.spike_factor;
        (loss > limit).then(|| {
            format!("the loss {loss:.3} is above {} × the recent mean {mean:.3}", self.config.spike_factor)
        })
    }
}

/// A few numbers of every rank, in rank order.
fn everybodys(comm: &dyn Comm, own: &[f64]) -> Result<Vec<Vec<f64>>, TrainError> {
    let bytes: Vec<u8> = own.iter().flat_map(|x| x.to_ne_bytes()).collect();
    let bodies = comm.all_gather(bytes.into())?;
    let mut all = Vec::with_capacity(bodies.len());
    for (from, body) in bodies.iter().enumerate() {
        let (found, expected) = (body.len() / size_of::<f64>(), own.len());
        if body.len() != expected * size_of::<f64>() {
            let (op, rank) = (Op::AllGather.name(), comm.rank());
            return Err(CommError::Length { op, rank, from, found, expected }.into());
        }
        all.push(body.as_chunks().0.iter().map(|b| f64::from_ne_bytes(*b)).collect());
    }
    Ok(all)
}
