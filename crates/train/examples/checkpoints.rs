//! What checkpoints cost: steps without one, saving while they wait and while they go on, and the interval that follows.
//!
//! ```text
//! cargo run --release -p llamero-train --example checkpoints -- DIM LAYERS HEADS KV_HEADS FFN VOCAB SEQUENCE BATCH \
//!     f32|bf16 DP STEPS FOLDER
//! ```

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "an example")]

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use llamero_comm::{Threads, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_data::{DataError, Sequence};
use llamero_model::{Config, initial_values};
use llamero_tensor::DType;
use llamero_train::{
    Checkpoints, Mesh, Observer, Ranks, SequenceSource, StepRecord, TrainConfig, Trainer, build_stages,
    train, young_daly,
};

struct MadeUp {
    vocab: usize,
    length: usize,
}

impl SequenceSource for MadeUp {
    fn sequence(&self, index: u64) -> Result<Sequence, DataError> {
        let id = |t: usize| ((t * 7919 + index as usize * 104_729) % self.vocab) as u32;
        let (tokens, targets) = (0..self.length).map(|t| (id(t), id(t + 1))).unzip();
        Ok(Sequence { tokens, targets, documents: vec![self.length] })
    }
}

/// Seconds of the steps, and what was seen of each checkpoint.
#[derive(Default)]
struct Watch {
    last: Option<Instant>,
    steps: Vec<f64>,
    /// Steps stood still so long for a copy.
    copies: Vec<f64>,
    /// And so long until the checkpoint was there.
    waits: Vec<f64>,
}

impl Watch {
    /// Seconds since the last call.
    fn lap(&mut self) -> Option<f64> {
        let now = Instant::now();
        self.last.replace(now).map(|last| (now - last).as_secs_f64())
    }
}

impl Observer for Watch {
    fn ready(&mut self, _: u64) {
        self.lap();
    }

    fn step(&mut self, _: &StepRecord, _: f64) {
        let lap = self.lap();
        self.steps.extend(lap);
    }

    fn copied(&mut self, _: u64) {
        let lap = self.lap();
        self.copies.extend(lap);
    }

    fn saved(&mut self, _: u64) {
        let lap = self.lap();
        self.waits.extend(lap);
    }
}

struct Job {
    model: Config,
    config: TrainConfig,
    dtype: DType,
    mesh: Mesh,
}

impl Job {
    fn run(&self, checkpoints: &Checkpoints) -> Watch {
        let one = |world: World| {
            let backend = Cpu::new((2 / self.mesh.size()).max(1)).unwrap();
            let ranks = Ranks::new(&world, self.mesh);
            let values = |spec: &_, rows| Ok::<_, Infallible>(initial_values(spec, rows, 1));
            let Ok(stages) = build_stages(&self.model, &self.config, &ranks, (&backend, self.dtype), values);
            let mut trainer = Trainer::on_mesh(stages, ranks, &backend, self.config.clone());
            let mut watch = Watch::default();
            let source = MadeUp { vocab: self.model.vocab, length: self.config.sequence };
            train(&mut trainer, &source, checkpoints, &mut watch).unwrap();
            trainer.ranks().all.barrier().unwrap();
            watch
        };
        let one = &one;
        std::thread::scope(|scope| {
            let worlds = Threads::world(self.mesh.size(), WorldOptions::default());
            let ranks: Vec<_> = worlds.into_iter().map(|world| scope.spawn(move || one(world))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).next().unwrap()
        })
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let defaults =
        ["512", "6", "8", "4", "1408", "8192", "512", "4", "bf16", "1", "8", "/tmp/llamero-checkpoints"];
    let arg = |i: usize| args.get(i).map_or(defaults[i], String::as_str);
    let size = |i: usize| arg(i).parse::<usize>().unwrap();
    let model = Config {
        dim: size(0),
        layers: size(1),
        heads: size(2),
        kv_heads: size(3),
        head_dim: size(0) / size(2),
        ffn: size(4),
        vocab: size(5),
        context: size(6),
        ..Config::preset("1m").unwrap()
    };
    let config = TrainConfig {
        steps: Some(size(10) as u64),
        sequence: size(6),
        batch: size(7),
        micro_batch: size(7),
        ..TrainConfig::default()
    };
    let dtype = if arg(8) == "f32" { DType::F32 } else { DType::Bf16 };
    let parameters = model.num_params();
    let job = Job { model, config, dtype, mesh: Mesh { dp: size(9), ..Mesh::default() } };
    let dir = PathBuf::from(arg(11));
    let run = |every: Duration, background: bool| {
        std::fs::remove_dir_all(&dir).ok();
        let watch = job.run(&Checkpoints::new(&dir).every(every).background(background));
        std::fs::remove_dir_all(&dir).ok();
        watch
    };
    println!("{parameters} parameters, {dtype}, {}; {} bytes a checkpoint", job.mesh, 12 * parameters);
    let calm = run(Duration::from_secs(10_000), true);
    let step = median(&calm.steps[1..]);
    println!("a step                                  {step:8.3} s");
    let waiting = run(Duration::ZERO, false);
    println!("saving while steps wait                 {:8.3} s", median(&waiting.waits));
    // The next begins as soon as one is there, so that all steps share the machine with writing.
    let going_on = run(Duration::from_nanos(1), true);
    let (stall, longest) = (median(&going_on.copies), going_on.copies.iter().copied().fold(0.0, f64::max));
    println!("saving while steps go on: stall         {stall:8.3} s, the longest {longest:.3}");
    println!("a step while it is written              {:8.3} s", median(&going_on.steps[2..]));
    let between = Duration::from_secs(3 * 3600);
    let interval = young_daly(Duration::from_secs_f64(stall), between).as_secs_f64().max(100.0 * stall);
    println!("interval at a failure in 3 h            {interval:8.1} s");
    println!(
        "stall                                   {:8.2} % of the time",
        100.0 * stall / (interval + stall)
    );
}
