//! What data-parallel ranks may divide beside the state of the optimiser: same results, less memory.

use std::convert::Infallible;

use llamero_comm::{Threads, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_data::Sequence;
use llamero_model::{Config, Recompute, initial_values};
use llamero_tensor::{Backend, DType};
use llamero_train::{Mesh, PipelineConfig, Ranks, Sharding, TrainConfig, Trainer, build_stages};

use crate::common::{config, values};
use crate::{LOSSES, WEIGHTS, alone, apart, copy, fit, mesh, same_bits, settings, train};

/// What may be divided beside the state of the optimiser.
const LEVELS: [Sharding; 2] = [Sharding::Gradients, Sharding::Parameters];

/// With one micro-batch a rank all sums are made in the same order, whatever is divided along `dp`.
#[test]
fn sharding_changes_no_bit_of_one_micro_batch() {
    let tied = Config { tied: true, ..config() };
    let blocks = TrainConfig { recompute: Recompute::Blocks, ..settings() };
    let everything = TrainConfig { recompute: Recompute::Nothing, ..settings() };
    for (name, model, settings) in [
        ("dp=4", config(), settings()),
        ("dp=4", config(), everything),
        ("dp=2", config(), TrainConfig { micro_batch: 2, ..blocks.clone() }),
        ("dp=2", tied, TrainConfig { micro_batch: 2, ..settings() }),
        ("dp=2,tp=2", config(), TrainConfig { micro_batch: 2, ..settings() }),
        ("dp=2,pp=2", config(), TrainConfig { micro_batch: 2, ..settings() }),
        ("cp=2", config(), TrainConfig { micro_batch: 4, ..settings() }),
        ("dp=2,cp=2", config(), TrainConfig { micro_batch: 2, ..blocks.clone() }),
        ("dp=2,pp=2,tp=2", config(), TrainConfig { micro_batch: 2, ..blocks }),
    ] {
        for dtype in [DType::F32, DType::Bf16] {
            let with =
                |sharding| train(mesh(name), &model, &TrainConfig { sharding, ..settings.clone() }, dtype);
            let expected = with(Sharding::Optimizer);
            for sharding in LEVELS {
                let found = with(sharding);
                let what = format!("{name}, {sharding} sharded, {dtype}, {:?}", settings.recompute);
                assert!(same_bits(&found, &expected), "{what}: {:?}", apart(&found, &expected));
                println!("| {what} | same bits | |");
            }
        }
    }
}

/// Several micro-batches: each is added up over ranks, and then they are, where whole gradients are added up first.
#[test]
fn sharding_agrees_with_one_rank_to_rounding() {
    let canonical = alone(&config(), &settings(), DType::F32);
    let mut first = None;
    for name in ["dp=2", "dp=2,pp=2", "dp=2,tp=2", "dp=2,pp=2,tp=2"] {
        for recompute in [Recompute::Nothing, Recompute::Selective, Recompute::Blocks] {
            let with = |sharding| {
                let settings = TrainConfig { recompute, sharding, ..settings() };
                train(mesh(name), &config(), &settings, DType::F32)
            };
            let found = with(Sharding::Gradients);
            let (losses, weights) = apart(&found, &canonical);
            println!("| {name}, gradients sharded, {recompute:?} | {losses:.1e} | {weights:.1e} |");
            assert!(losses < LOSSES && weights < WEIGHTS, "{name}: losses {losses:e}, weights {weights:e}");
            for sharding in LEVELS {
                assert!(same_bits(&with(sharding), &found), "{name}: {sharding} sharded differ");
            }
            if !name.contains("tp") {
                let of_dp = first.get_or_insert(found.clone());
                assert!(same_bits(&found, of_dp), "{name}: differs from `dp=2`");
            }
        }
    }
}

/// A tied table gets gradients at both ends of a pipeline, and from two chunks of one rank.
#[test]
fn a_tied_table_may_be_sharded() {
    let tied = Config { tied: true, ..config() };
    let canonical = alone(&tied, &settings(), DType::F32);
    let interleaved = PipelineConfig { chunks: 2, run: None };
    for sharding in LEVELS {
        for (name, pipeline) in
            [("dp=2", PipelineConfig::default()), ("dp=2", interleaved), ("dp=2,pp=2,tp=2", interleaved)]
        {
            let settings = TrainConfig { sharding, pipeline, ..settings() };
            let found = train(mesh(name), &tied, &settings, DType::F32);
            let (losses, weights) = apart(&found, &canonical);
            let what = format!("{name}, {sharding} sharded");
            assert!(losses < LOSSES && weights < WEIGHTS, "{what}: losses {losses:e}, weights {weights:e}");
        }
    }
}

/// Ranks that had some rows of each weight leave a checkpoint to ranks that have all, and the other way round.
#[test]
fn checkpoints_are_loaded_however_weights_are_sharded() {
    let (saved_at, settings) = (5, TrainConfig { steps: Some(15), ..settings() });
    let with = |sharding| TrainConfig { sharding, ..settings.clone() };
    for dtype in [DType::F32, DType::Bf16] {
        let limit = if dtype == DType::F32 { LOSSES } else { 1e-3 };
        for (from, of) in [("dp=2,pp=2", Sharding::Parameters), ("dp=1", Sharding::Optimizer)] {
            let saved = tempfile::tempdir().unwrap();
            fit(mesh(from), &with(of), dtype, saved_at, saved.path());
            let go_on = |name: &str, sharding| {
                let dir = tempfile::tempdir().unwrap();
                copy(saved.path(), dir.path());
                fit(mesh(name), &with(sharding), dtype, 15, dir.path())
            };
            let alone = go_on("dp=1", Sharding::Optimizer);
            assert_eq!((alone.first().unwrap().step, alone.len()), (saved_at, 10), "{from}");
            for (name, sharding) in [
                ("dp=1", Sharding::Parameters),
                ("dp=2,pp=2", Sharding::Parameters),
                ("dp=4", Sharding::Parameters),
                ("dp=2,tp=2", Sharding::Parameters),
                ("dp=2", Sharding::Optimizer),
            ] {
                let history = go_on(name, sharding);
                let apart = history.iter().zip(&alone).map(|(f, e)| (f.loss / e.loss - 1.0).abs());
                let apart = apart.fold(0.0, f64::max);
                println!("| {from}, {of} sharded, to {name}, {sharding} sharded, {dtype} | {apart:.1e} |");
                assert!(apart < limit && history.len() == 10, "{from} to {name}, {dtype}: {apart:e}");
                if name == from && sharding == of {
                    let whole = tempfile::tempdir().unwrap();
                    let uninterrupted = fit(mesh(name), &with(sharding), dtype, 15, whole.path());
                    assert_eq!(history, uninterrupted[saved_at as usize..], "{name}, {dtype}");
                }
            }
        }
    }
}

/// Rows of a weight that one rank alone has are compared with nothing, and so found nowhere; norms are.
#[test]
fn sharded_weights_are_not_compared() {
    let settings = TrainConfig { sharding: Sharding::Parameters, ..settings() };
    let worlds = Threads::world(2, WorldOptions::default());
    let one = |world: World| {
        let (backend, first) = (Cpu::new(1).unwrap(), world.rank() == 0);
        let ranks = Ranks::new(&world, mesh("dp=2"));
        let Ok(stages) = build_stages(&config(), &settings, &ranks, (&backend, DType::F32), values);
        let mut trainer = Trainer::on_mesh(stages, ranks, &backend, settings.clone());
        assert_eq!(trainer.check_replicas(0).unwrap(), []);
        for (name, found) in [("layers.1.feed_forward.w2.weight", false), ("layers.1.ffn_norm.weight", true)]
        {
            if first {
                let param = trainer.model_mut().params_mut().find(|p| p.name == name).unwrap();
                let mut values = backend.download(&param.value);
                values[0] += 1.0;
                param.value = backend.upload(&values, param.value.shape(), DType::F32);
            }
            let divergences = trainer.check_replicas(0).unwrap();
            assert_eq!(divergences.iter().any(|d| d.tensor == name), found, "{name}: {divergences:?}");
        }
        trainer.ranks().all.barrier().unwrap();
    };
    let one = &one;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = worlds.into_iter().map(|world| scope.spawn(move || one(world))).collect();
        ranks.into_iter().for_each(|rank| rank.join().unwrap());
    });
}

const RANKS: usize = 2;

/// A deep model of few words.
fn deep() -> Config {
    let preset = Config::preset("1m").unwrap();
    Config { dim: 128, layers: 12, heads: 4, kv_heads: 2, head_dim: 32, ffn: 352, vocab: 512, ..preset }
}

/// Bytes of tensors on one rank.
struct Bytes {
    /// At rest: weights, moments and, in bf16, lower halves of masters.
    state: usize,
    /// At the peak of a step, beside them.
    step: usize,
}

/// The rank that takes most of two steps of two micro-batches, so short that gradients outweigh activations.
fn counted(sharding: Sharding, dtype: DType) -> Bytes {
    let settings = TrainConfig {
        steps: Some(2),
        sequence: 16,
        batch: 2 * RANKS,
        micro_batch: 1,
        sharding,
        ..TrainConfig::default()
    };
    let mesh = Mesh { dp: RANKS, ..Mesh::default() };
    let one = |world: World| {
        let backend = Cpu::new(1).unwrap();
        let values = |spec: &_, rows| Ok::<_, Infallible>(initial_values(spec, rows, 1));
        let ranks = Ranks::new(&world, mesh);
        let Ok(stages) = build_stages(&deep(), &settings, &ranks, (&backend, dtype), values);
        let mut trainer = Trainer::on_mesh(stages, ranks, &backend, settings.clone());
        let state = backend.memory().live_bytes;
        backend.reset_peak();
        for step in 0..2 {
            let own = trainer.own_sequences(step);
            let outcome = trainer.step(step, own.map(short).collect()).unwrap();
            assert_eq!(outcome.skipped, None);
            trainer.ranks().all.barrier().unwrap();
        }
        assert_eq!(backend.memory().live_bytes, state, "{sharding}: a step leaves tensors behind");
        Bytes { state, step: backend.memory().peak_bytes - state }
    };
    let one = &one;
    let of_ranks: Vec<Bytes> = std::thread::scope(|scope| {
        let worlds = Threads::world(RANKS, WorldOptions::default());
        let ranks: Vec<_> = worlds.into_iter().map(|world| scope.spawn(move || one(world))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let most = |of: fn(&Bytes) -> usize| of_ranks.iter().map(of).max().unwrap();
    Bytes { state: most(|b| b.state), step: most(|b| b.step) }
}

fn short(i: usize) -> Sequence {
    let id = |t: usize| ((t * 31 + i) % 500) as u32;
    let (tokens, targets) = (0..16).map(|t| (id(t), id(t + 1))).unzip();
    Sequence { tokens, targets, documents: vec![16] }
}

#[test]
fn sharding_takes_less_memory() {
    let params = deep().num_params() as f64;
    for dtype in [DType::F32, DType::Bf16] {
        let levels = [Sharding::Optimizer, Sharding::Gradients, Sharding::Parameters];
        let [one, two, three] = levels.map(|sharding| {
            let counted = counted(sharding, dtype);
            let (state, step) = (counted.state as f64 / 1e6, counted.step as f64 / 1e6);
            println!("| {sharding}, {dtype} | {state:.2} MB | {step:.2} MB |");
            counted
        });
        assert_eq!(one.state, two.state);
        let saved = (one.step as f64 - two.step as f64) / (4.0 * params);
        // A rank's half of the gradients, less what is whole for a moment: a block's larger ones.
        assert!(saved > 0.35, "{dtype}: sharded gradients save {saved:.2} of all gradients");
        // The other rank's half of the weights, but for norms.
        let saved = (two.state - three.state) as f64 / (dtype.bytes() as f64 * params);
        assert!((0.49..=0.5).contains(&saved), "{dtype}: sharded weights save {saved:.3} of all weights");
        // What a step gathers is not there for long.
        let gathered = (three.step as f64 - two.step as f64) / (dtype.bytes() as f64 * params);
        assert!(gathered < 0.2, "{dtype}: {gathered:.2} of all weights are gathered at a time");
    }
}
