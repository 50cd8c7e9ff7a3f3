//! What ranks are expected to send in a step against what their flight recorders saw.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[expect(dead_code, reason = "other tests use the rest")]
mod common;

use common::{Made, config, values};
use llamero_comm::{Record, Threads, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_model::Recompute;
use llamero_tensor::DType;
use llamero_train::{
    Bandwidth, Device, Mesh, MeshQuestion, PipelineConfig, Ranks, SequenceSource, TrainConfig, Trainer, Zero,
    build_stages, plan_mesh,
};

/// Bytes that a rank sent in a step along `tp`, `pp` and `dp`, and its stage.
fn sent(world: &World, mesh: Mesh, settings: &TrainConfig, dtype: DType) -> (usize, [f64; 3]) {
    let backend = Cpu::new(1).unwrap();
    let ranks = Ranks::new(world, mesh);
    let stage = ranks.at.pp;
    let Ok(stages) = build_stages(&config(), settings, &ranks, (&backend, dtype), values);
    let mut trainer = Trainer::on_mesh(stages, ranks, &backend, settings.clone());
    let own = trainer.own_sequences(0).map(|i| Made.sequence(i as u64).unwrap()).collect();
    trainer.step(0, own).unwrap();
    let records = world.recorder().records();
    trainer.ranks().all.barrier().unwrap();
    let of = |names: &[&str], ranks: usize| -> f64 {
        let bytes = |r: &Record| match r.peer {
            Some(_) => r.bytes as f64,
            // A part of a collective stays here.
            None => r.bytes as f64 * (ranks - 1) as f64 / ranks as f64,
        };
        records.iter().filter(|r| names.contains(&r.group.as_str())).map(bytes).sum()
    };
    (stage, [of(&["tp"], mesh.tp), of(&["pp", "pp-back"], mesh.pp), of(&["dp"], mesh.dp)])
}

#[test]
fn a_step_sends_what_is_planned() {
    let unknown = Bandwidth { tp: 1.0, cp: 1.0, pp: 1.0, dp: 1.0 };
    let device = Device { bandwidth: unknown, ..Device::h100() };
    let model = config();
    for (mesh, chunks) in
        [("tp=2", 1), ("dp=2", 1), ("dp=4", 1), ("pp=2", 1), ("pp=2", 2), ("dp=2,pp=2,tp=2", 1)]
    {
        let mesh: Mesh = mesh.parse().unwrap();
        for recompute in [Recompute::Nothing, Recompute::Selective, Recompute::Blocks] {
            for dtype in [DType::F32, DType::Bf16] {
                let pipeline = PipelineConfig { chunks, run: None };
                let settings = TrainConfig {
                    steps: Some(10),
                    sequence: model.context,
                    batch: 4,
                    micro_batch: 1,
                    recompute,
                    pipeline,
                    ..TrainConfig::default()
                };
                let worlds =
                    Threads::world(mesh.size(), WorldOptions { records: 1 << 16, ..WorldOptions::default() });
                let found: Vec<_> = std::thread::scope(|scope| {
                    let settings = &settings;
                    let run = move |w: World| sent(&w, mesh, settings, dtype);
                    let ranks: Vec<_> = worlds.into_iter().map(|w| scope.spawn(move || run(w))).collect();
                    ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
                });
                let (device, config, zero) = (device.clone(), &settings, Zero::One);
                let question =
                    MeshQuestion { model: &model, config, dtype, mesh, cp: 1, zero, device, mfu: None };
                let plan = plan_mesh(&question).unwrap();
                for (stage, found) in found {
                    let planned = plan.stages[stage].traffic;
                    let planned = [planned.tp, planned.pp, planned.dp].map(|axis| axis.bytes as f64);
                    for ((axis, found), planned) in ["tp", "pp", "dp"].iter().zip(found).zip(planned) {
                        let what =
                            format!("{mesh}, {chunks} chunks, {dtype}, {recompute:?}, stage {stage}, {axis}");
                        // Shares of unequal length, and counts of tokens, which are a few bytes.
                        let near = (found - planned).abs() <= 0.005 * found;
                        assert!(near, "{what}: {found} bytes sent, {planned} planned");
                    }
                }
            }
        }
    }
}
