use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::OptimizerConfig;

fn stage(at_tokens: u64, batch: usize, sequence: usize) -> RampStage {
    RampStage { at_tokens, batch: Some(batch), sequence: Some(sequence), micro_batch: None }
}

fn mix(at_tokens: u64, prose: f64, code: f64) -> MixStage {
    MixStage { at_tokens, weights: [(Domain::Prose, prose), (Domain::Code, code)].into() }
}

fn small() -> TrainConfig {
    TrainConfig { steps: Some(20), sequence: 4, batch: 4, micro_batch: 2, ..TrainConfig::default() }
}

#[test]
fn a_stage_begins_with_the_first_update_that_has_its_tokens() {
    let ramp = vec![stage(33, 2, 8), RampStage { at_tokens: 70, micro_batch: Some(4), ..stage(0, 6, 8) }];
    let config = TrainConfig { ramp, ..small() };
    config.validate().unwrap();
    let found: Vec<_> = (0..8)
        .map(|step| {
            let s = config.at(step);
            (s.batch, s.sequence, s.micro_batch, s.first_sequence, s.first_token)
        })
        .collect();
    let first = [(4, 4, 2, 0, 0), (4, 4, 2, 4, 16), (4, 4, 2, 8, 32)];
    let second = [(2, 8, 2, 12, 48), (2, 8, 2, 14, 64)];
    let third = [(6, 8, 4, 16, 80), (6, 8, 4, 22, 128), (6, 8, 4, 28, 176)];
    assert_eq!(found, [&first[..], &second, &third].concat());
    for (tokens, steps) in [(1, 1), (48, 3), (49, 4), (80, 5), (81, 6), (128, 6), (129, 7)] {
        let config = TrainConfig { steps: None, tokens: Some(tokens), ..config.clone() };
        assert_eq!(config.num_steps(), steps, "{tokens} tokens");
        assert!(config.tokens_before(steps) >= tokens && config.tokens_before(steps - 1) < tokens);
    }
}

#[test]
fn a_stage_that_is_over_before_it_begins_has_no_update() {
    let config = TrainConfig { ramp: vec![stage(17, 8, 4), stage(20, 16, 4)], ..small() };
    let batches: Vec<usize> = (0..4).map(|step| config.at(step).batch).collect();
    assert_eq!(batches, [4, 4, 16, 16]);
}

#[test]
fn without_ramp_and_mix_sequences_come_by_number() {
    let config = small();
    for step in 0..20 {
        for i in 0..4 {
            let number = step * 4 + i as u64;
            let place = Place { number, domain: None, chunk: number, part: 0..4 };
            assert_eq!(config.at(step).place(i), place);
        }
    }
}

proptest! {
    /// Whatever the ramp and the mix: parts of the chunks of a stream follow each other without a gap or an overlap, and
    /// what was seen of each domain is what its weights say, to a chunk for every change.
    #[test]
    fn no_token_is_repeated_or_left_out(
        ramp in prop::collection::vec((1u64..200, 1usize..4, 0usize..3), 0..4),
        weights in prop::collection::vec((1u64..300, 0u32..5, 1u32..5), 0..4),
        first in (1usize..4, 0usize..3),
    ) {
        let longest = 8;
        let shape = |(chunks, halvings): (usize, usize)| (chunks << halvings, longest >> halvings);
        let (batch, sequence) = shape(first);
        let mut at = 0;
        let mut ramp: Vec<RampStage> = ramp.into_iter().map(|(after, chunks, halvings)| {
            at += after;
            let (batch, sequence) = shape((chunks, halvings));
            stage(at, batch, sequence)
        }).collect();
        // So that the longest is there.
        ramp.push(stage(at + 100, 3, longest));
        let mut at = 0;
        let mix: Vec<MixStage> = weights.into_iter().enumerate().map(|(i, (after, prose, code))| {
            at += if i == 0 { 0 } else { after };
            mix(at, f64::from(prose), f64::from(code))
        }).collect();
        let changes = mix.len() as f64;
        let config = TrainConfig { steps: Some(60), batch, sequence, ramp, mix, ..TrainConfig::default() };
        config.validate().unwrap();
        let mut parts = BTreeSet::new();
        let (mut number, mut expected) = (0, 0.0);
        for step in 0..60 {
            let settings = config.at(step);
            prop_assert_eq!(settings.first_token, config.tokens_before(step));
            if let Some(stage) = config.mix.iter().rev().find(|m| m.at_tokens <= settings.first_token) {
                let share = stage.weights[&Domain::Prose] / stage.weights.values().sum::<f64>();
                expected += share * (settings.batch * settings.sequence) as f64;
            }
            for i in 0..settings.batch {
                let place = settings.place(i);
                prop_assert_eq!((place.number, place.part.len()), (number, settings.sequence));
                number += 1;
                prop_assert!(parts.insert((place.domain, place.chunk, place.part.start, place.part.end)));
            }
        }
        let mut seen: BTreeMap<Option<Domain>, u64> = BTreeMap::new();
        for (domain, chunk, start, end) in parts {
            let so_far = seen.entry(domain).or_default();
            prop_assert_eq!(*so_far, chunk * longest as u64 + start as u64);
            *so_far += (end - start) as u64;
        }
        if config.mix.is_empty() {
            prop_assert_eq!(seen, BTreeMap::from([(None, config.tokens_before(60))]));
        } else {
            let reported = config.seen(60);
            for (domain, tokens) in seen {
                prop_assert_eq!(reported[&domain.unwrap()], tokens);
            }
            let prose = reported.get(&Domain::Prose).copied().unwrap_or(0) as f64;
            prop_assert!((prose - expected).abs() <= longest as f64 * changes, "{prose} for {expected}");
        }
    }
}

#[test]
fn domains_alternate_as_evenly_as_they_can() {
    let config = TrainConfig { mix: vec![mix(0, 3.0, 1.0)], ..small() };
    let of: Vec<bool> = (0..5)
        .flat_map(|step| (0..4).map(move |i| (step, i)))
        .map(|(step, i)| config.at(step).place(i).domain == Some(Domain::Code))
        .collect();
    for n in 1..=20 {
        let code = of[..n].iter().filter(|code| **code).count() as f64;
        assert!((code - n as f64 / 4.0).abs() <= 0.5, "{code} of {n}");
    }
}

#[test]
fn a_long_run_does_not_overflow() {
    let tokens = 15_600_000_000_000;
    let ramp = vec![stage(252_000_000, 1024, 8192), stage(2_870_000_000_000, 2048, 8192)];
    let config = TrainConfig {
        steps: None,
        tokens: Some(tokens),
        sequence: 4096,
        batch: 1024,
        ramp,
        mix: vec![mix(0, 0.1, 0.9)],
        ..TrainConfig::default()
    };
    config.validate().unwrap();
    let steps = config.num_steps();
    assert_eq!(
        [0, 60, 61, 342_159].map(|step| (config.at(step).batch * config.at(step).sequence) >> 20),
        [4, 4, 8, 8]
    );
    assert_eq!(config.at(steps - 1).batch * config.at(steps - 1).sequence, 16 << 20);
    assert!((1_100_000..1_102_000).contains(&steps), "{steps}");
    let seen = config.seen(steps);
    let share = seen[&Domain::Code] as f64 / seen.values().sum::<u64>() as f64;
    assert!((share - 0.9).abs() < 1e-9, "{share}");
}

#[test]
fn the_rate_falls_from_the_end_of_the_cosine_linearly_to_zero() {
    let optimizer =
        OptimizerConfig { peak_lr: 1.0, final_lr_ratio: 0.1, warmup_steps: 5, ..Default::default() };
    let anneal = Some(Annealing { steps: Some(10), ..Annealing::default() });
    let config = TrainConfig { steps: Some(50), optimizer: optimizer.clone(), anneal, ..small() };
    let lr = |step| config.at(step).lr;
    assert_eq!(lr(39), learning_rate(&optimizer, 39, 40));
    for step in 40..50 {
        assert!((lr(step) - 0.1 * (50 - step) as f64 / 10.0).abs() < 1e-12, "step {step}: {}", lr(step));
    }
    // By tokens: 16 a step.
    let anneal = Some(Annealing { tokens: Some(160), ..Annealing::default() });
    let by_tokens = TrainConfig { anneal, ..config.clone() };
    assert!((0..50).all(|step| by_tokens.at(step).lr == lr(step)));
    for (tokens, updates) in [(1, 1), (16, 1), (17, 2), (800, 50), (9_000, 50)] {
        let anneal = Some(Annealing { tokens: Some(tokens), ..Annealing::default() });
        let config = TrainConfig { anneal, ..config.clone() };
        assert_eq!(config.anneal_start(), Some(50 - updates), "{tokens} tokens");
    }
    // A longer cosine has not come to its end.
    let optimizer = OptimizerConfig { cosine_steps: Some(80), ..optimizer };
    let longer = TrainConfig { optimizer: optimizer.clone(), ..config.clone() };
    assert_eq!(longer.at(40).lr, learning_rate(&optimizer, 40, 80));
    assert_eq!(longer.at(45).lr, learning_rate(&optimizer, 40, 80) * 0.5);
    // All of a run: there is no warm-up.
    let anneal = Some(Annealing { steps: Some(50), ..Annealing::default() });
    let all = TrainConfig { anneal, ..config };
    assert_eq!([all.at(0).lr, all.at(25).lr], [1.0, 0.5]);
}

#[test]
fn the_average_takes_every_so_many_weights_and_the_last() {
    for (every, expected) in
        [(1, vec![6, 7, 8, 9]), (2, vec![7, 9]), (3, vec![6, 9]), (9, vec![9]), (0, vec![])]
    {
        let anneal = Some(Annealing { steps: Some(4), tokens: None, average_every: every });
        let config = TrainConfig { steps: Some(10), anneal, ..small() };
        let averaged: Vec<u64> = (0..10).filter(|step| config.at(*step).averaged).collect();
        assert_eq!(averaged, expected, "every {every}");
        assert_eq!(config.num_averaged(10), expected.len() as u64);
    }
}

#[test]
fn what_cannot_be_is_named() {
    let ramp = |stages: &[RampStage]| TrainConfig { ramp: stages.to_vec(), ..small() };
    let mixed = |stages: &[MixStage]| TrainConfig { mix: stages.to_vec(), ..small() };
    let anneal = |steps, tokens| TrainConfig {
        anneal: Some(Annealing { steps, tokens, average_every: 1 }),
        ..small()
    };
    let cases = [
        (ramp(&[stage(0, 4, 4)]), "ramp.at_tokens"),
        (ramp(&[stage(9, 4, 4), stage(9, 8, 4)]), "ramp.at_tokens"),
        (ramp(&[stage(9, 4, 6)]), "divisor of the longest, 6"),
        (ramp(&[stage(9, 3, 4), stage(20, 3, 8)]), "multiple of 2"),
        (ramp(&[stage(9, 0, 4)]), "ramp.batch"),
        (ramp(&[stage(9, 4, 1)]), "ramp.sequence"),
        (mixed(&[mix(5, 1.0, 1.0)]), "mix.at_tokens"),
        (mixed(&[mix(0, 1.0, 1.0), mix(0, 1.0, 1.0)]), "mix.at_tokens"),
        (mixed(&[mix(0, 1.0, -1.0)]), "mix.weights"),
        (mixed(&[mix(0, 0.0, 0.0)]), "mix.weights"),
        (anneal(None, None), "anneal.steps"),
        (anneal(Some(1), Some(1)), "anneal.tokens"),
        (anneal(Some(0), None), "anneal.steps"),
        (TrainConfig { tokens: Some(100), ..small() }, "tokens"),
        (TrainConfig { z_loss: -1.0, ..small() }, "z_loss"),
        (
            TrainConfig { optimizer: OptimizerConfig { embedding_lr: 0.0, ..Default::default() }, ..small() },
            "embedding_lr",
        ),
    ];
    for (config, named) in cases {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(named), "{named}: {error}");
    }
}

/// Ids of artifacts are hashes of this text.
#[test]
fn settings_that_are_left_out_are_not_written() {
    let expected = concat!(
        r#"{"sequence":512,"seed":1,"batch":16,"micro_batch":4,"optimizer":{"peak_lr":0.0003,"final_lr_ratio":0.1,"#,
        r#""warmup_steps":20,"beta1":0.9,"beta2":0.95,"eps":1e-8,"weight_decay":0.1,"clip_norm":1.0},"#,
        r#""spike_factor":4.0,"max_skipped_steps":5,"recompute":"selective"}"#
    );
    assert_eq!(serde_json::to_string(&TrainConfig::default()).unwrap(), expected);
}
