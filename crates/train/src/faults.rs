//! Faults inside a job, for chaos mode and tests: what a supervisor orders, a rank does to itself at its next step.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use llamero_tensor::{Backend, DType, Shape, Tensor};
use serde::{Deserialize, Serialize};

use crate::Trainer;

/// What goes wrong on a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A bit of a weight turns over.
    Weight,
    /// A bit of the lower halves of bf16 weights' masters turns over; of a weight, where there are none.
    LowHalves,
    /// A bit of a first moment turns over.
    FirstMoment,
    /// A bit of a second moment turns over.
    SecondMoment,
    /// A bit of a gradient turns over, between two micro-batches or before the update.
    Gradient,
    /// A bit of a message turns over on its way.
    Message,
    /// The rank stands still for ever.
    Hang,
    /// The rank stands still for some tenths of a second.
    Slow,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 8] = [
        Fault::Weight,
        Fault::LowHalves,
        Fault::FirstMoment,
        Fault::SecondMoment,
        Fault::Gradient,
        Fault::Message,
        Fault::Hang,
        Fault::Slow,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Weight => "bit flip in a weight",
            Fault::LowHalves => "bit flip in lower halves",
            Fault::FirstMoment => "bit flip in a first moment",
            Fault::SecondMoment => "bit flip in a second moment",
            Fault::Gradient => "bit flip in a gradient",
            Fault::Message => "bit flip in a message",
            Fault::Hang => "hang",
            Fault::Slow => "slow",
        }
    }
}

/// A fault and the number that chooses tensor, element and bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What.
    pub fault: Fault,
    /// Where.
    pub random: u64,
}

/// A folder with a file for every rank that is to do something.
#[derive(Clone, Debug)]
pub struct Orders {
    dir: PathBuf,
}

impl Orders {
    /// Orders in this folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    fn file(&self, rank: usize) -> PathBuf {
        self.dir.join(format!("rank-{rank}.json"))
    }

    /// Orders `rank` to do something; what it has not done yet is forgotten.
    pub fn give(&self, rank: usize, order: Order) -> io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let (path, temporary) = (self.file(rank), self.dir.join(format!("rank-{rank}.writing")));
        std::fs::write(&temporary, serde_json::to_vec(&order)?)?;
        std::fs::rename(temporary, path)
    }

    /// What `rank` is to do, once.
    pub(crate) fn take(&self, rank: usize) -> Option<Order> {
        let path = self.file(rank);
        let text = std::fs::read(&path).ok()?;
        std::fs::remove_file(path).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn full_disk(&self, rank: usize) -> PathBuf {
        self.dir.join(format!("full-disk-{rank}"))
    }

    /// The next file that `rank` writes for a checkpoint meets a full disk.
    pub fn fill_disk(&self, rank: usize) -> io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        std::fs::write(self.full_disk(rank), "")
    }

    /// The error of a full disk, when that was ordered.
    pub(crate) fn check_disk(&self, rank: usize) -> io::Result<()> {
        match std::fs::remove_file(self.full_disk(rank)) {
            Ok(()) => Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device (chaos)")),
            Err(_) => Ok(()),
        }
    }

    /// Forgets what ranks were to do to themselves; a disk that is full stays full for a new job.
    pub(crate) fn forget(&self, ranks: usize) {
        (0..ranks).for_each(|rank| drop(std::fs::remove_file(self.file(rank))));
    }

    /// Forgets all orders.
    pub fn clear(&self) -> io::Result<()> {
        if Path::new(&self.dir).exists() { std::fs::remove_dir_all(&self.dir) } else { Ok(()) }
    }
}

impl Trainer<'_> {
    /// This trainer, which does at every step what it is ordered to.
    pub fn obeying(mut self, orders: Orders) -> Self {
        self.watch.orders = Some(orders);
        self
    }

    /// Does what was ordered.
    pub(crate) fn obey(&mut self) {
        let rank = self.ranks().all.rank();
        if let Some(order) = self.watch.orders.as_ref().and_then(|orders| orders.take(rank)) {
            self.plant(order);
        }
    }

    /// A fault, now or in the next step. Returns the tensor whose state it changed, if it did.
    pub fn plant(&mut self, Order { fault, random }: Order) -> Option<String> {
        let (which, at) = ((random >> 40) as usize, random & 0xff_ffff_ffff);
        match fault {
            Fault::Gradient => {
                *self.watch.damage.lock().unwrap_or_else(PoisonError::into_inner) = Some(random);
                return None;
            }
            Fault::Message => {
                if let Some(world) = &self.ranks().world {
                    world.damage_next(random);
                }
                return None;
            }
            Fault::Hang => loop {
                std::thread::sleep(Duration::from_secs(60));
            },
            Fault::Slow => {
                std::thread::sleep(Duration::from_millis(200 + random % 300));
                return None;
            }
            Fault::Weight | Fault::LowHalves | Fault::FirstMoment | Fault::SecondMoment => {}
        }
        let backend = self.backend();
        let (stages, optimizer) = self.parts_mut();
        let params = stages.iter_mut().flat_map(|stage| stage.params_mut());
        let mut states: Vec<_> = params.zip(&mut optimizer.states).collect();
        // A rank may have no rows of some parameters.
        states.retain(|(_, state)| !state.rows.is_empty());
        let count = states.len();
        let (param, state) = states.into_iter().nth(which % count.max(1))?;
        match (fault, &mut state.low) {
            (Fault::FirstMoment, _) => state.m = flipped(backend, &state.m, at),
            (Fault::SecondMoment, _) => state.v = flipped(backend, &state.v, at),
            (Fault::LowHalves, Some(low)) => {
                // Beside ones, no bits of a half make a NaN, of which `split` keeps less.
                let ones = vec![1.0; low.shape().elements()];
                let ones = backend.upload(&ones, low.shape(), DType::Bf16);
                let joined = backend.download(&backend.join(&ones, low));
                *low = backend.split(&low_flipped(backend, &joined, low.shape(), at)).1;
            }
            _ => param.value = flipped(backend, &param.value, at),
        }
        Some(param.name.clone())
    }
}

/// A copy with a bit turned over.
pub(crate) fn flipped(backend: &dyn Backend, x: &Tensor, random: u64) -> Tensor {
    let mut bytes = backend.download_raw(x, 0..x.rows()).to_vec();
    if !bytes.is_empty() {
        let bit = random % (8 * bytes.len() as u64);
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    }
    backend.upload_raw(&[&bytes], x.shape(), x.dtype())
}

/// Turns over a bit of one of some gradients.
pub(crate) fn damage(backend: &dyn Backend, gradients: &mut BTreeMap<usize, Tensor>, random: u64) {
    let mut waiting: Vec<_> = gradients.values_mut().filter(|x| x.shape().elements() > 0).collect();
    let count = waiting.len().max(1);
    if let Some(gradient) = waiting.get_mut((random >> 40) as usize % count) {
        **gradient = flipped(backend, gradient, random & 0xff_ffff_ffff);
    }
}

/// Lower halves, joined with ones, of which one has another bit: f32 values that split into them.
fn low_flipped(backend: &dyn Backend, joined: &[f32], shape: Shape, random: u64) -> Tensor {
    const ONE: u32 = 1f32.to_bits();
    let (at, bit) = ((random / 16) as usize % joined.len().max(1), random % 16);
    let mut values = joined.to_vec();
    if let Some(value) = values.get_mut(at) {
        let low = value.to_bits().wrapping_sub(ONE) as u16 ^ (1 << bit);
        *value = f32::from_bits(ONE.wrapping_add_signed(i32::from(low as i16)));
    }
    backend.upload(&values, shape, DType::F32)
}
