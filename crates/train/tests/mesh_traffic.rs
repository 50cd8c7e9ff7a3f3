//! What ranks are expected to send in a step against what their flight recorders saw.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[expect(dead_code, reason = "other tests use the rest")]
mod common;

use common::{Made, config, values};
use llamero_comm::{Op, Record, Threads, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_model::Recompute;
use llamero_tensor::DType;
use llamero_train::{
    Device, Mesh, MeshQuestion, MessageKind, PipelineConfig, Ranks, SequenceSource, Sharding, TrainConfig,
    Trainer, build_stages, plan_mesh,
};

/// What is told apart: groups of an axis, its size, an op; and the kinds that are planned as such.
type Look = (&'static [&'static str], fn(Mesh) -> usize, Op, &'static [MessageKind]);

const LOOKS: [Look; 9] = [
    (&["tp"], |m| m.tp, Op::AllGather, &[MessageKind::ActivationsGathered, MessageKind::LossesGathered]),
    (&["tp"], |m| m.tp, Op::ReduceScatter, &[MessageKind::ActivationsSummed]),
    (&["tp"], |m| m.tp, Op::AllReduce, &[MessageKind::NormsSummed]),
    (&["pp"], |m| m.pp, Op::Send, &[MessageKind::HiddenSent]),
    (&["pp-back"], |m| m.pp, Op::Send, &[MessageKind::HiddenGradientsSent]),
    (&["cp"], |m| m.cp, Op::AllGather, &[MessageKind::ContextGathered]),
    (&["cp"], |m| m.cp, Op::ReduceScatter, &[MessageKind::ContextSummed]),
    (&["dp"], |m| m.dp * m.cp, Op::ReduceScatter, &[MessageKind::GradientsSummed]),
    (&["dp"], |m| m.dp * m.cp, Op::AllGather, &[MessageKind::WeightsGathered]),
];

/// Bytes that a rank sent in a step, by kind, and its stage.
fn sent(world: &World, mesh: Mesh, settings: &TrainConfig, dtype: DType) -> (usize, Vec<f64>) {
    let backend = Cpu::new(1).unwrap();
    let ranks = Ranks::new(world, mesh);
    let stage = ranks.at.pp;
    let Ok(stages) = build_stages(&config(), settings, &ranks, (&backend, dtype), values);
    let mut trainer = Trainer::on_mesh(stages, ranks, &backend, settings.clone());
    let own = trainer.own_sequences(0).map(|i| Made.sequence(i as u64).unwrap()).collect();
    trainer.step(0, own).unwrap();
    let records = world.recorder().records();
    trainer.ranks().all.barrier().unwrap();
    let of = |(names, size, op, _): &Look| -> f64 {
        let bytes = |r: &Record| match r.peer {
            Some(_) => r.bytes as f64,
            // A part of a collective stays here.
            None => r.bytes as f64 * (size(mesh) - 1) as f64 / size(mesh) as f64,
        };
        records.iter().filter(|r| names.contains(&r.group.as_str()) && r.op == *op).map(bytes).sum()
    };
    (stage, LOOKS.iter().map(of).collect())
}

const POLICIES: [(Recompute, Sharding); 7] = [
    (Recompute::Nothing, Sharding::Optimizer),
    (Recompute::Selective, Sharding::Optimizer),
    (Recompute::Blocks, Sharding::Optimizer),
    (Recompute::Selective, Sharding::Gradients),
    (Recompute::Selective, Sharding::Parameters),
    (Recompute::Nothing, Sharding::Parameters),
    (Recompute::Blocks, Sharding::Parameters),
];

#[test]
fn a_step_sends_what_is_planned() {
    let device = Device::h100();
    let model = config();
    for (mesh, chunks) in [
        ("tp=2", 1),
        ("dp=2", 1),
        ("dp=4", 1),
        ("pp=2", 1),
        ("pp=2", 2),
        ("dp=2,pp=2,tp=2", 1),
        ("cp=2", 1),
        ("cp=2,tp=2", 1),
        ("dp=2,cp=2", 1),
    ] {
        let mesh: Mesh = mesh.parse().unwrap();
        for (recompute, sharding) in POLICIES {
            for dtype in [DType::F32, DType::Bf16] {
                let pipeline = PipelineConfig { chunks, run: None };
                let settings = TrainConfig {
                    steps: Some(10),
                    sequence: model.context,
                    batch: 4,
                    micro_batch: 1,
                    recompute,
                    pipeline,
                    sharding,
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
                let (device, config) = (device.clone(), &settings);
                let question = MeshQuestion { model: &model, config, dtype, mesh, device, mfu: None };
                let plan = plan_mesh(&question).unwrap();
                for (stage, found) in found {
                    let axes = plan.stages[stage].traffic.axes();
                    let kinds: Vec<_> = axes.iter().flat_map(|(_, axis)| &axis.kinds).collect();
                    for ((.., wanted), found) in LOOKS.iter().zip(found) {
                        let of_kind = kinds.iter().filter(|sent| wanted.contains(&sent.kind));
                        let planned: u64 = of_kind.map(|sent| sent.bytes).sum();
                        let what = format!(
                            "{mesh}, {chunks} chunks, {dtype}, {recompute:?}, {sharding} sharded, stage {stage}, {wanted:?}"
                        );
                        // Shares of unequal length, and counts of tokens, which are a few bytes.
                        let near = (found - planned as f64).abs() <= 0.005 * found + 100.0;
                        assert!(near, "{what}: {found} bytes sent, {planned} planned");
                    }
                }
            }
        }
    }
}
