//! From a folder, here or in the remote tier, to the state of a trainer.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use llamero_autograd::Param;
use llamero_comm::Comm;
use llamero_model::{ParamSpec, Placement};
use llamero_tensor::{Backend, DType, Shape, Tensor, pieces};

use super::format::{self, Kind, Piece, State, check_pieces, kinds, runs};
use super::remote::{Remote, Stored};
use super::{Checkpoints, agree, fail};
use crate::fit::Progress;
use crate::optimizer::State as Owned;
use crate::{TrainError, Trainer};

/// While the first rank fetches, the others hear of it this often.
const TELL: Duration = Duration::from_secs(1);

/// A checkpoint that may be whole.
struct Candidate {
    step: u64,
    /// In the remote tier.
    stored: bool,
}

impl Checkpoints {
    /// Puts the newest checkpoint that is whole for every rank into `trainer`, wherever it is; of two of one step, the one in
    /// the folder. Returns its progress, if there was one, and a line for everything that had to be passed over. Every rank
    /// calls it.
    pub(crate) fn load(
        &self,
        trainer: &mut Trainer<'_>,
    ) -> Result<(Option<Progress>, Vec<String>), TrainError> {
        let all = Arc::clone(&trainer.ranks().all);
        // The first rank's list is everybody's.
        let (mut passed_over, candidates) =
            if all.rank() == 0 { self.candidates() } else { (Vec::new(), Vec::new()) };
        let found = !candidates.is_empty() || !passed_over.is_empty();
        let list: Vec<u8> = candidates
            .iter()
            .flat_map(|Candidate { step, stored }| step.to_le_bytes().into_iter().chain([u8::from(*stored)]))
            .collect();
        let list = agree(&*all, Ok(list))?.swap_remove(0);
        let mut damaged = Vec::new();
        for entry in list.as_chunks::<9>().0 {
            let [step @ .., stored] = entry;
            let (step, stored) = (u64::from_le_bytes(*step), *stored != 0);
            let dir = self.dir.join(format::folder(step));
            let name = self.name(step, stored);
            let fetched = if stored { self.fetch(&*all, step)? } else { Ok(()) };
            let checked = fetched.and_then(|()| check(&dir, trainer));
            let reason = checked.as_ref().err().cloned().unwrap_or_default();
            let reasons = agree(&*all, Ok(reason.into_bytes()))?;
            if let Some(reason) = reasons.iter().find(|reason| !reason.is_empty()) {
                let reason = String::from_utf8_lossy(reason);
                passed_over.push(format!("checkpoint `{name}` was passed over: {reason}"));
                damaged.extend((!stored).then_some(dir));
                continue;
            }
            let Ok(state) = checked else { unreachable!("a failed check has a reason") };
            let restored = restore(&dir, trainer, &state);
            agree(&*all, restored.map(|()| Vec::new()))?;
            if all.rank() == 0 {
                // They must not count among those that are kept. Only room is lost where that fails.
                let others = damaged.iter().filter(|damaged| **damaged != dir);
                others.for_each(|damaged| drop(format::set_apart(damaged)));
            }
            if stored {
                passed_over.push(format!(
                    "went on from `{name}`, for the folder of the run had none so new that is whole"
                ));
            }
            return Ok((Some(state.progress), passed_over));
        }
        self.begin_again(&*all, found, passed_over)
    }

    /// There is nothing to go on from: the run begins at its start if there was nothing, or if that was asked for.
    fn begin_again(
        &self,
        all: &dyn Comm,
        found: bool,
        mut passed_over: Vec<String>,
    ) -> Result<(Option<Progress>, Vec<String>), TrainError> {
        let refused = found && !self.start_over;
        let reason = passed_over.join("\n  ");
        let error = || TrainError::NoCheckpoint { dir: self.dir.clone(), reason };
        agree(all, if refused { Err(error()) } else { Ok(Vec::new()) })?;
        if found {
            passed_over.push("no checkpoint could be used: training began again at the start".into());
        }
        Ok((None, passed_over))
    }

    fn name(&self, step: u64, stored: bool) -> String {
        match &self.remote {
            Some(remote) if stored => remote.name(step),
            _ => self.dir.join(format::folder(step)).display().to_string(),
        }
    }

    /// All that there are, newest first, after tidying up; and a line for each that cannot be whole.
    fn candidates(&self) -> (Vec<String>, Vec<Candidate>) {
        format::tidy(&self.dir);
        let local = format::published(&self.dir);
        let mut candidates: Vec<_> =
            local.into_iter().map(|(step, _)| Candidate { step, stored: false }).collect();
        let mut remarks = Vec::new();
        match self.remote.as_ref().map(|remote| remote.list()) {
            None => {}
            Some(Ok(stored)) => {
                for Stored { step, whole } in stored {
                    if whole {
                        candidates.push(Candidate { step, stored: true });
                    } else {
                        let name = self.name(step, true);
                        remarks
                            .push(format!("checkpoint `{name}` was passed over: its upload was cut short"));
                    }
                }
            }
            Some(Err(reason)) => remarks.push(format!("the remote tier was left out: {reason}")),
        }
        candidates.sort_by_key(|candidate| (std::cmp::Reverse(candidate.step), candidate.stored));
        (remarks, candidates)
    }

    /// The first rank brings a checkpoint here. All ranks learn how that went, and until then that it goes on.
    fn fetch(&self, all: &dyn Comm, step: u64) -> Result<Result<(), String>, TrainError> {
        let Some(remote) = &self.remote else { return Ok(Err("there is no remote tier".into())) };
        let first = all.rank() == 0;
        let (sender, receiver) = channel();
        if first {
            let (remote, dir): (Arc<Remote>, _) = (Arc::clone(remote), self.dir.clone());
            std::thread::spawn(move || sender.send(remote.fetch(step, &dir)));
        }
        loop {
            let told = if !first {
                Vec::new()
            } else {
                match receiver.recv_timeout(TELL) {
                    Ok(Ok(())) => vec![1],
                    Ok(Err(reason)) => [&[2], reason.as_bytes()].concat(),
                    Err(RecvTimeoutError::Timeout) => vec![0],
                    Err(RecvTimeoutError::Disconnected) => {
                        b"\x02the thread that fetches has panicked".to_vec()
                    }
                }
            };
            match agree(all, Ok(told))?[0].split_first() {
                Some((0, _)) => {}
                Some((1, _)) => return Ok(Ok(())),
                // One rank says why.
                Some((_, reason)) if first => return Ok(Err(String::from_utf8_lossy(reason).into_owned())),
                _ => return Ok(Err("the first rank could not fetch it".into())),
            }
        }
    }
}

/// The rows that a rank needs of a parameter: what it updates, and of weights that are not sharded all of its slice.
fn needed(kind: Kind, param: &Param, state: &Owned) -> Range<usize> {
    let whole = kind == Kind::Weight && !param.is_sharded();
    if whole { 0..param.value.rows() } else { state.rows.clone() }
}

/// Checks everything about a checkpoint that this rank needs, before anything of it is used.
fn check(dir: &Path, trainer: &Trainer<'_>) -> Result<State, String> {
    let state = State::read(dir)?;
    let config = &trainer.model().config;
    if state.model != *config {
        return Err("it belongs to another model".into());
    }
    if state.has_sums() != (trainer.config().num_averaged(state.progress.step) > 0) {
        return Err("it belongs to a run whose weights are averaged over other steps".into());
    }
    let table = config.params();
    // Every element that is needed is in exactly one piece.
    let mut wanted: HashSet<*const Piece> = HashSet::new();
    let params = trainer.stages().iter().zip(trainer.places());
    let params = params.flat_map(|(stage, place)| stage.params().map(move |param| (param, place)));
    for ((param, place), owned) in params.zip(&trainer.optimizer.states) {
        let spec = &table[param.id];
        for kind in kinds(state.has_sums()) {
            let cols = spec.local_cols(place);
            for (_, rows) in runs(spec, place, &needed(kind, param, owned)) {
                let found: usize = overlaps(&state, kind, &param.name, &rows, &cols)
                    .inspect(|(_, _, piece, ..)| {
                        wanted.insert(*piece);
                    })
                    .map(|(.., rows, cols)| rows.len() * cols.len())
                    .sum();
                if found != rows.len() * cols.len() {
                    let all = rows.len() * cols.len();
                    return Err(format!("{found} of {all} values of `{}` ({kind:?}) are there", param.name));
                }
            }
        }
    }
    for shards in &state.files {
        check_pieces(dir, shards, |piece| wanted.contains(&std::ptr::from_ref(piece)))?;
    }
    Ok(state)
}

/// Where parts of a tensor are: file, offset of the piece in it, the piece, and the rows and columns that are wanted of it.
fn overlaps<'a>(
    state: &'a State,
    kind: Kind,
    name: &'a str,
    rows: &'a Range<usize>,
    cols: &'a Range<usize>,
) -> impl Iterator<Item = (&'a str, u64, &'a Piece, Range<usize>, Range<usize>)> {
    let meet = |a: &Range<usize>, b: &Range<usize>| a.start.max(b.start)..a.end.min(b.end);
    state.files.iter().flat_map(move |shards| {
        let mut offset = 0;
        shards.pieces.iter().filter_map(move |piece| {
            let at = offset;
            offset += piece.bytes();
            let (rows, cols) = (meet(&piece.rows, rows), meet(&piece.cols, cols));
            let here = piece.kind == kind && piece.name == name && !rows.is_empty() && !cols.is_empty();
            here.then_some((shards.file.as_str(), at, piece, rows, cols))
        })
    })
}

/// Replaces the state of `trainer` tensor by tensor, so that no second copy of it is ever in memory. The pieces were
/// read and found whole just before; one that cannot be read now ends the run, for what it leaves is a mixture.
fn restore(dir: &Path, trainer: &mut Trainer<'_>, state: &State) -> Result<(), TrainError> {
    let backend = trainer.backend();
    let table = trainer.model().config.params();
    let places = trainer.places().to_vec();
    let (stages, optimizer) = trainer.parts_mut();
    let params = stages.iter_mut().zip(&places);
    let params = params.flat_map(|(stage, place)| stage.params_mut().map(move |param| (param, place)));
    for ((param, place), owned) in params.zip(&mut optimizer.states) {
        let spec = &table[param.id];
        owned.sum = None;
        for kind in kinds(state.has_sums()) {
            let wanted = needed(kind, param, owned);
            let tensor = read_tensor(dir, state, (kind, spec, place), wanted, backend)?;
            match (kind, &mut owned.low) {
                (Kind::FirstMoment, _) => owned.m = tensor,
                (Kind::SecondMoment, _) => owned.v = tensor,
                (Kind::WeightSum, _) => owned.sum = Some(tensor),
                (Kind::Weight, None) => param.value = tensor,
                (Kind::Weight, Some(low)) if owned.rows.len() == tensor.rows() => {
                    (param.value, *low) = backend.split(&tensor);
                }
                (Kind::Weight, Some(low)) => {
                    let mut own = backend.zeros(Shape::new(owned.rows.len(), tensor.cols()), DType::F32);
                    backend.copy_rows(&mut own, 0, &tensor, owned.rows.clone(), 0..tensor.cols());
                    *low = backend.split(&own).1;
                    param.value = backend.split(&tensor).0;
                }
            }
        }
    }
    optimizer.updates = state.updates;
    trainer.mean_loss = state.mean_loss;
    Ok(())
}

/// Rows of this rank's slice of a tensor, in pieces.
fn read_tensor(
    dir: &Path,
    state: &State,
    (kind, spec, place): (Kind, &ParamSpec, &Placement),
    local: Range<usize>,
    backend: &dyn Backend,
) -> Result<Tensor, TrainError> {
    let cols = spec.local_cols(place);
    let mut tensor = backend.zeros(Shape::new(local.len(), cols.len()), DType::F32);
    for (own, global) in runs(spec, place, &local) {
        let mut at = own.start - local.start;
        for rows in pieces(global, cols.len()) {
            let mut host = vec![f32::NAN; rows.len() * cols.len()];
            for (file, offset, piece, some_rows, some_cols) in overlaps(state, kind, &spec.name, &rows, &cols)
            {
                let path = dir.join(file);
                let mut file = File::open(&path).map_err(fail(&path))?;
                let width = piece.cols.len();
                let mut bytes = vec![0; some_cols.len() * size_of::<f32>()];
                for row in some_rows {
                    let element = (row - piece.rows.start) * width + some_cols.start - piece.cols.start;
                    let from = SeekFrom::Start(offset + (element * size_of::<f32>()) as u64);
                    file.seek(from).and_then(|_| file.read_exact(&mut bytes)).map_err(fail(&path))?;
                    let to = (row - rows.start) * cols.len() + some_cols.start - cols.start;
                    for (value, bytes) in host[to..].iter_mut().zip(bytes.as_chunks().0) {
                        *value = f32::from_le_bytes(*bytes);
                    }
                }
            }
            let part = Shape::new(rows.len(), cols.len());
            backend.copy_rows(
                &mut tensor,
                at,
                &backend.upload(&host, part, DType::F32),
                0..part.rows,
                0..part.cols,
            );
            at += part.rows;
        }
    }
    Ok(tensor)
}
