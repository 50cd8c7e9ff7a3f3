use super::*;
use crate::{Annealing, PipelineConfig, RampStage, Sharding};

/// Table 4 of "The Llama 3 Herd of Models": 2,048 sequences of 8,192 tokens a step.
fn run_405b(chunks: usize) -> TrainConfig {
    TrainConfig {
        steps: Some(1_200_000),
        sequence: 8192,
        batch: 2048,
        micro_batch: 1,
        pipeline: PipelineConfig { chunks, run: None },
        sharding: Sharding::Gradients,
        ..TrainConfig::default()
    }
}

/// State of the optimiser divided, gradients not.
fn whole_gradients(config: &TrainConfig) -> TrainConfig {
    TrainConfig { sharding: Sharding::Optimizer, ..config.clone() }
}

fn question<'a>(model: &'a Config, config: &'a TrainConfig, mesh: &str, cp: usize) -> MeshQuestion<'a> {
    let mesh = Mesh { cp, ..mesh.parse().unwrap() };
    MeshQuestion { model, config, dtype: DType::Bf16, mesh, device: Device::h100(), mfu: None }
}

#[test]
fn rows_of_the_paper_come_out() {
    let (model, short) = (Config::preset("405b").unwrap(), run_405b(8));
    // 16M tokens: 128 sequences of 131,072.
    let long = TrainConfig { sequence: 131_072, batch: 128, ..short.clone() };
    for (config, mesh, cp, gpus, per_dp, mfu) in [
        (&short, "dp=64,pp=16,tp=8", 1, 8192, 32, 0.43),
        (&short, "dp=128,pp=16,tp=8", 1, 16384, 16, 0.41),
        // Printed with dp = 4, but 8 · 16 · 16 · 4 = 8,192 GPUs, and 4 · 16 · 131,072 = 8M tokens.
        (&long, "dp=8,pp=16,tp=8", 16, 16384, 16, 0.38),
    ] {
        let plan = plan_mesh(&question(&model, config, mesh, cp)).unwrap();
        assert_eq!((plan.axes.size(), plan.micro_batches), (gpus, per_dp), "{mesh}");
        // dp · batch a data-parallel rank · sequence, e.g. 64 · 32 · 8,192 = 2^24.
        assert_eq!(plan.tokens_per_step, 1 << 24, "{mesh}");
        assert_eq!((plan.mfu, plan.mfu_source), (mfu, MfuSource::Published), "{mesh}");
        // (16 − 1)/(8 · 32) = 5.9 %; with 16 micro-batches 11.7 %.
        assert_eq!(plan.bubble, 15.0 / (8 * per_dp) as f64, "{mesh}");
        assert_eq!((plan.params, plan.stages.len()), (405_853_388_800, 16));
        let layers: Vec<usize> = plan.stages.iter().map(StagePlan::num_layers).collect();
        assert_eq!((layers[0], layers[1], layers[15], layers.iter().sum::<usize>()), (7, 8, 7, 126));
    }
}

#[test]
fn the_405b_run_fits_80_gb() {
    let (model, config) = (Config::preset("405b").unwrap(), run_405b(8));
    for mesh in ["dp=64,pp=16,tp=8", "dp=128,pp=16,tp=8"] {
        for config in [&config, &whole_gradients(&config)] {
            let plan = plan_mesh(&question(&model, config, mesh, 1)).unwrap();
            assert!(plan.fits(), "{plan}");
        }
    }
    let plan = plan_mesh(&question(&model, &config, "dp=64,pp=16,tp=8", 1)).unwrap();
    // A block has 16,384 · (18,432 + 16,384 + 3 · 53,248) + 2 · 16,384 parameters; of 8 of them a rank has an eighth of the
    // matrices and all norms, in bf16.
    let of_block: u64 = 16_384 * (18_432 + 16_384 + 3 * 53_248) / 8 + 2 * 16_384;
    let second = &plan.stages[1];
    assert_eq!((second.params, second.memory.weights), (8 * of_block, 16 * of_block));
    // Moments and lower halves, 10 bytes a parameter, divided by 64.
    assert_eq!(second.memory.optimizer, 10 * (8 * of_block).div_ceil(64));
    // The first rank goes forwards 2 · 15 + 7 · 16 times and once more before it goes back for the first time. Each of these
    // passes through one block keeps: input and middle residual of 1,024 rows, an eighth of queries, keys and values, of the
    // output of attention and of gate and up of 8,192 rows; f32 log-sum-exps of 16 heads; and what it sent on.
    let kept = 2 * (1024 * 3 * 16_384 + 8192 * (18_432 + 16_384 + 2 * 53_248) / 8) + 4 * 8192 * 16;
    let first = &plan.stages[0];
    assert_eq!(first.in_flight, 2 * 15 + 7 * 16 + 1);
    let passes = first.memory.kept_activations as f64 / kept as f64;
    // The chunk with the embedding only keeps next to nothing, and there are up to 32 passes of it.
    assert!((143.0 - 32.0..143.0).contains(&passes), "{passes}");
    // Keeping everything does not fit, because inputs of products are kept gathered; this is why the default is selective.
    let everything = TrainConfig { recompute: Recompute::Nothing, ..config.clone() };
    assert!(!plan_mesh(&question(&model, &everything, "dp=64,pp=16,tp=8", 1)).unwrap().fits());
    // Nor do 4 stages with whole gradients: 405.85e9 / (4 · 8) parameters of 2 + 4 bytes are 76 GB without any activation.
    let four = plan_mesh(&question(&model, &whole_gradients(&config), "dp=256,pp=4,tp=8", 1)).unwrap();
    assert!(!four.fits() && four.stages[1].memory.weights + four.stages[1].memory.gradients > 75_000_000_000);
    // 16 ranks that share a sequence of 131,072 have 8,192 tokens each, and beside them only its keys and values.
    let long = TrainConfig { sequence: 131_072, batch: 128, ..config };
    assert!(plan_mesh(&question(&model, &long, "dp=8,pp=16,tp=8", 16)).unwrap().fits());
}

#[test]
fn messages_of_a_block_are_as_documented() {
    let (model, config) = (Config::preset("405b").unwrap(), run_405b(8));
    let config = whole_gradients(&config);
    let plan = plan_mesh(&question(&model, &config, "dp=64,pp=16,tp=8", 1)).unwrap();
    let of_second = &plan.stages[1].traffic;
    // 8 blocks, 10 collectives each, of 32 · 8,192 tokens, 16,384 wide, in bf16, of which 7/8 leave the rank; and gradients of
    // 16 norms, divided by dp, there and back.
    let hidden: u64 = 32 * 8192 * 16_384 * 2;
    assert_eq!(of_second.tp.bytes, 8 * 10 * hidden / 8 * 7 + 2 * (4 * 16 * 16_384 / 64) / 8 * 7);
    // Each of 8 chunks sends an eighth of the rows on, and as much back.
    assert_eq!(of_second.pp.bytes, 8 * 2 * hidden / 8);
    // f32 gradients to the ranks that update them, bf16 weights back: 6 bytes a parameter, 63/64 of them.
    let expected = 6.0 * plan.stages[1].params as f64 * 63.0 / 64.0;
    assert!((of_second.dp.bytes as f64 / expected - 1.0).abs() < 1e-9);
    assert_eq!((of_second.cp.bytes, of_second.dp.seconds), (0, Some(of_second.dp.bytes as f64 / 50e9)));
    // 16 ranks share sequences of 131,072: in 8 blocks keys and values of one head of 128 are gathered twice and their
    // gradients added up once in f32, 15/16 of 16 sequences.
    let long = TrainConfig { sequence: 131_072, batch: 128, ..config };
    let plan = plan_mesh(&question(&model, &long, "dp=8,pp=16,tp=8", 16)).unwrap();
    assert_eq!(plan.stages[1].traffic.cp.bytes, 8 * (2 * 2 + 4) * (16 * 131_072 * 256) / 16 * 15);
}

/// 6 operations a parameter and token: 3.8e25 in the paper for 15.6T tokens, which attention at 8,192 tokens raises by 4 %.
#[test]
fn arithmetic_and_hours_are_those_of_the_paper() {
    let (model, config) = (Config::preset("405b").unwrap(), run_405b(8));
    let plan = plan_mesh(&question(&model, &config, "dp=128,pp=16,tp=8", 1)).unwrap();
    let attention = 6.0 * 126.0 * 8192.0 * 16_384.0;
    let all = (plan.flops_per_token - attention) * 15.6e12;
    assert!((all / 3.8e25 - 1.0).abs() < 0.01, "{all:e}");
    assert!((plan.flops_per_token / (plan.flops_per_token - attention) - 1.042).abs() < 0.001);
    // 41 % of 16,384 · 989.5 TFLOP/s.
    let speed = plan.flops_per_step / plan.step_seconds;
    assert!((speed / (0.41 * 16_384.0 * 989.5e12) - 1.0).abs() < 1e-12);
    assert_eq!(plan.tokens, Some(1_200_000 << 24));
    let hours = plan.device_hours.unwrap();
    assert!((hours / (1.2e6 * plan.step_seconds * 16_384.0 / 3600.0) - 1.0).abs() < 1e-12);
    let slower = MeshQuestion { mfu: Some(0.205), ..question(&model, &config, "dp=128,pp=16,tp=8", 1) };
    let slower = plan_mesh(&slower).unwrap();
    assert_eq!(slower.mfu_source, MfuSource::Given);
    assert!((slower.device_hours.unwrap() / hours - 2.0).abs() < 1e-12);
    let small = Config::preset("8b").unwrap();
    let plan = plan_mesh(&question(&small, &run_405b(1), "dp=128,pp=16,tp=8", 1)).unwrap();
    assert_eq!((plan.mfu, plan.mfu_source), (0.4, MfuSource::Assumed));
}

/// What is said of a run with a ramp, against each of its phases as a run of its own.
#[test]
fn a_ramp_is_the_sum_of_its_phases() {
    let model = Config::preset("405b").unwrap();
    let ask = |config: &TrainConfig| plan_mesh(&question(&model, config, "dp=64,pp=16,tp=8", 1)).unwrap();
    let stage = |at_tokens, sequence, batch| RampStage { at_tokens, sequence, batch, micro_batch: None };
    // 100 steps of 4M tokens, then of 8M, then of 16M to the 300th.
    let ramp = vec![stage(100 << 22, Some(8192), None), stage((100 << 22) + (100 << 23), None, Some(2048))];
    let run = TrainConfig { steps: Some(300), sequence: 4096, batch: 1024, ramp, ..run_405b(8) };
    let plan = ask(&run);
    let phases: Vec<_> = [(4096, 1024), (8192, 1024), (8192, 2048)]
        .into_iter()
        .map(|(sequence, batch)| ask(&TrainConfig { steps: Some(100), sequence, batch, ..run_405b(8) }))
        .collect();
    let sum = |of: fn(&MeshPlan) -> f64| phases.iter().map(of).sum::<f64>();
    assert_eq!(plan.tokens, Some(100 * ((1 << 22) + (1 << 23) + (1 << 24))));
    let hours = plan.device_hours.unwrap() / sum(|phase| phase.device_hours.unwrap());
    assert!((hours - 1.0).abs() < 1e-12, "{hours}");
    let found: Vec<_> = plan.batches.iter().map(|b| (b.first_step, b.tokens, b.micro_batches)).collect();
    assert_eq!(found, [(0, 1 << 22, 16), (100, 1 << 23, 16), (200, 1 << 24, 32)]);
    // The last is the largest in every respect.
    assert_eq!((plan.tokens_per_step, plan.micro_batches, plan.sequence), (1 << 24, 32, 8192));
    assert_eq!(plan.stages, phases[2].stages);
    // A sum of weights in f32, divided by 64 as the moments are.
    let anneal = Some(Annealing { steps: Some(3), ..Annealing::default() });
    let averaged = ask(&TrainConfig { anneal, ..run });
    let [with, without] = [&averaged, &plan].map(|plan| plan.stages[1].memory.optimizer);
    assert_eq!(with - without, 4 * plan.stages[1].params.div_ceil(64));
    assert_eq!((plan.checkpoint_bytes, averaged.checkpoint_bytes), (12 * plan.params, 16 * plan.params));
}

#[test]
fn a_plan_is_text_and_json() {
    let (model, config) = (Config::preset("405b").unwrap(), run_405b(8));
    let plan = plan_mesh(&question(&model, &config, "dp=64,pp=16,tp=8", 1)).unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<MeshPlan>(&text).unwrap(), plan);
    let table = plan.to_string();
    for wanted in ["dp=64,pp=16,tp=8, 8192 × H100 80 GB", "bubble 5.9 % of the work, 5.5 % of the step"] {
        assert!(table.contains(wanted), "{table}");
    }
    let tight = Device { memory_bytes: 40_000_000_000, ..Device::h100() };
    let tight = MeshQuestion { device: tight, ..question(&model, &config, "dp=64,pp=16,tp=8", 1) };
    assert!(plan_mesh(&tight).unwrap().to_string().contains("does NOT fit"));
}

#[test]
fn what_cannot_be_planned_is_said() {
    let (model, config) = (Config::preset("405b").unwrap(), run_405b(8));
    let ask = |mesh: &str, cp, mfu| {
        let question = MeshQuestion { mfu, ..question(&model, &config, mesh, cp) };
        plan_mesh(&question).unwrap_err().to_string()
    };
    assert!(ask("dp=64,pp=16,tp=16", 1, None).contains("kv_heads"));
    assert!(ask("dp=3,pp=16,tp=8", 1, None).contains("`batch`, which is 2048"));
    assert!(ask("dp=64,pp=16,tp=8", 3, None).contains("`sequence` is 8192"));
    assert!(ask("dp=64,pp=16,tp=8", 1, Some(1.5)).contains("1.5"));
    // Fewer micro-batches than stages.
    assert!(ask("dp=256,pp=16,tp=8", 1, None).contains("8 micro-batches"));
}
