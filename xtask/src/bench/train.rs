//! Training steps: tokens per second and peak memory, ours and the peer's variants in turn.

use serde_json::Value;

use super::session::{Label, Session, number, words};
use super::table::{against, gib, markdown, median};

/// A shape of the issue that set the targets.
struct Shape {
    name: &'static str,
    /// Steps of a process, two of them warm-up.
    steps: usize,
    /// Tokens per second at least this many times the best of the peer.
    speed: f64,
    /// Peak memory at most this share of the leanest of the peer.
    memory: f64,
    /// Share of the register peak, where one is asked for.
    mfu: Option<f64>,
}

const SHAPES: [Shape; 3] = [
    Shape { name: "8m", steps: 9, speed: 1.9, memory: 0.45, mfu: None },
    Shape { name: "56m", steps: 6, speed: 1.35, memory: 0.55, mfu: None },
    Shape { name: "125m", steps: 5, speed: 1.45, memory: 0.75, mfu: Some(0.7) },
];

/// Variants of the peer: a name, and its options.
const VARIANTS: [(&str, &str); 4] = [
    ("eager f32", "--mode eager --dtype f32"),
    ("eager bf16", "--mode eager --dtype bf16"),
    ("compiled f32", "--mode compile --dtype f32"),
    ("compiled bf16", "--mode compile --dtype bf16"),
];

/// Llama 3's vocabulary and context on the 125M model must fit into this.
const LONG_LIMIT: f64 = 12.0 * (1u64 << 30) as f64;
/// How far the estimate of memory may be off.
const ESTIMATE: f64 = 0.10;

/// What later rounds are for.
#[derive(Clone, Copy)]
struct Want {
    speed: bool,
    memory: bool,
}

/// Results of one shape.
struct Measured {
    shape: &'static Shape,
    ours: Vec<Value>,
    /// By variant, in the order of [`VARIANTS`].
    peer: Vec<Vec<Value>>,
}

pub(super) fn speed(session: &mut Session) -> Result<String, String> {
    let measured = measure(session, Want { speed: true, memory: false })?;
    speed_table(&measured)
}

pub(super) fn memory(session: &mut Session) -> Result<String, String> {
    let measured = measure(session, Want { speed: false, memory: true })?;
    Ok(memory_table(&measured)? + &long(session)?)
}

pub(super) fn both(session: &mut Session) -> Result<String, String> {
    let measured = measure(session, Want { speed: true, memory: true })?;
    Ok(speed_table(&measured)? + "\n" + &memory_table(&measured)? + &long(session)?)
}

fn measure(session: &mut Session, want: Want) -> Result<Vec<Measured>, String> {
    let asked = session.options.shapes.clone();
    if let Some(unknown) = asked.iter().find(|name| !SHAPES.iter().any(|shape| shape.name == **name)) {
        return Err(format!("`--shape {unknown}` is none of 8m, 56m, 125m"));
    }
    let wanted = SHAPES.iter().filter(|s| asked.is_empty() || asked.iter().any(|name| name == s.name));
    wanted.map(|shape| rounds(session, shape, want)).collect()
}

/// The first round runs every variant; later ones only those that may win.
fn rounds(session: &mut Session, shape: &'static Shape, want: Want) -> Result<Measured, String> {
    let base = format!("--shape {} --steps {}", shape.name, session.options.steps.unwrap_or(shape.steps));
    let ours = [words(&format!("train {base}")), session.options.ours.clone()].concat();
    let mut measured = Measured { shape, ours: Vec::new(), peer: vec![Vec::new(); VARIANTS.len()] };
    for round in 0..session.options.samples {
        let label = |by| Label { bench: "train", case: shape.name, by, round };
        measured.ours.push(session.ours(&label("llamero"), &ours)?);
        let chosen = if round == 0 { (0..VARIANTS.len()).collect() } else { measured.contenders(want)? };
        for variant in chosen {
            let (name, options) = VARIANTS[variant];
            let args = words(&format!("{base} {options}"));
            measured.peer[variant].push(session.peer(&label(name), "train_torch.py", &args)?);
        }
    }
    Ok(measured)
}

fn median_of(results: &[Value], key: &str) -> Result<f64, String> {
    let values: Vec<f64> = results.iter().map(|r| number(r, key)).collect::<Result<_, _>>()?;
    Ok(median(&values))
}

impl Measured {
    /// The median of every variant.
    fn peers(&self, key: &str) -> Result<Vec<f64>, String> {
        self.peer.iter().map(|results| median_of(results, key)).collect()
    }

    /// Variants that later rounds repeat: the two fastest, the leanest.
    fn contenders(&self, want: Want) -> Result<Vec<usize>, String> {
        let first = |key: &str| -> Result<Vec<f64>, String> {
            self.peer.iter().map(|results| median_of(results.get(..1).unwrap_or_default(), key)).collect()
        };
        let mut chosen = Vec::new();
        if want.speed {
            let speeds = first("tokens_per_s")?;
            let mut order: Vec<usize> = (0..speeds.len()).collect();
            order.sort_by(|&a, &b| speeds[b].total_cmp(&speeds[a]));
            chosen.extend(order.into_iter().take(2));
        }
        if want.memory {
            let sizes = first("peak_memory_bytes")?;
            chosen.extend((0..sizes.len()).min_by(|&a, &b| sizes[a].total_cmp(&sizes[b])));
        }
        chosen.sort_unstable();
        chosen.dedup();
        Ok(chosen)
    }

    /// The fastest variant and its tokens per second.
    fn fastest(&self) -> Result<(&'static str, f64), String> {
        let all = VARIANTS.iter().map(|v| v.0).zip(self.peers("tokens_per_s")?);
        all.max_by(|a, b| a.1.total_cmp(&b.1)).ok_or_else(|| "no variant".into())
    }

    /// The variant with the least peak memory, and that.
    fn leanest(&self) -> Result<(&'static str, f64), String> {
        let all = VARIANTS.iter().map(|v| v.0).zip(self.peers("peak_memory_bytes")?);
        all.min_by(|a, b| a.1.total_cmp(&b.1)).ok_or_else(|| "no variant".into())
    }
}

fn speed_table(measured: &[Measured]) -> Result<String, String> {
    let header = [
        "shape",
        "ours, tokens/s",
        "GFLOP/s",
        "share of peak",
        "best PyTorch, tokens/s",
        "variant",
        "ours / best",
        "target",
    ];
    let row = |m: &Measured| -> Result<Vec<String>, String> {
        let (variant, best) = m.fastest()?;
        let (ours, mfu) = (median_of(&m.ours, "tokens_per_s")?, median_of(&m.ours, "mfu")?);
        let (ratio, gflops) = (ours / best, median_of(&m.ours, "gflops")?);
        let met = ratio >= m.shape.speed && m.shape.mfu.is_none_or(|least| mfu >= least);
        let share = m.shape.mfu.map_or(String::new(), |least| format!(", ≥ {:.0} %", 100.0 * least));
        Ok(vec![
            m.shape.name.into(),
            format!("{ours:.0}"),
            format!("{gflops:.1}"),
            format!("{:.1} %", 100.0 * mfu),
            format!("{best:.0}"),
            variant.into(),
            format!("{ratio:.2}"),
            against(format!("≥ {:.2}{share}", m.shape.speed), met),
        ])
    };
    let rows = measured.iter().map(row).collect::<Result<Vec<_>, _>>()?;
    Ok(format!("### Training speed\n\n{}", markdown(&header, &rows)))
}

fn memory_table(measured: &[Measured]) -> Result<String, String> {
    let header =
        ["shape", "ours, peak", "estimated before", "leanest PyTorch", "variant", "ours / leanest", "target"];
    let row = |m: &Measured| -> Result<Vec<String>, String> {
        let (variant, leanest) = m.leanest()?;
        let ours = median_of(&m.ours, "peak_memory_bytes")?;
        let ratio = ours / leanest;
        Ok(vec![
            m.shape.name.into(),
            gib(ours),
            estimated(median_of(&m.ours, "estimated_memory_bytes")?, ours),
            gib(leanest),
            variant.into(),
            format!("{ratio:.2}"),
            against(format!("≤ {:.2}", m.shape.memory), ratio <= m.shape.memory),
        ])
    };
    let rows = measured.iter().map(row).collect::<Result<Vec<_>, _>>()?;
    Ok(format!("### Peak memory\n\n{}", markdown(&header, &rows)))
}

/// The estimate, how far it is off, and whether that is little enough.
fn estimated(estimate: f64, peak: f64) -> String {
    let off = estimate / peak - 1.0;
    against(format!("{} ({:+.0} %)", gib(estimate), 100.0 * off), off.abs() <= ESTIMATE)
}

/// Ours alone: a long sequence with Llama 3's vocabulary.
fn long(session: &mut Session) -> Result<String, String> {
    let label = Label { bench: "memory", case: "125m-long", by: "llamero", round: 0 };
    let args = [words("train --shape 125m-long --steps 2 --warmup 1"), session.options.ours.clone()].concat();
    let result = session.ours(&label, &args)?;
    let (peak, estimate) =
        (number(&result, "peak_memory_bytes")?, number(&result, "estimated_memory_bytes")?);
    let limit = against("< 12 GiB".into(), peak < LONG_LIMIT);
    let (peak, estimate) = (gib(peak), estimated(estimate, peak));
    Ok(format!(
        "\n125M with a vocabulary of 128,256 and 8,192 tokens: {peak} (estimated {estimate}), target {limit}\n"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn measured() -> Measured {
        let peer =
            |speed: f64, bytes: f64| vec![json!({ "tokens_per_s": speed, "peak_memory_bytes": bytes })];
        let ours = json!({ "tokens_per_s": 400.0, "mfu": 0.5, "gflops": 70.0, "peak_memory_bytes": 5e8,
            "estimated_memory_bytes": 4e8 });
        let peer = vec![peer(100.0, 1e9), peer(150.0, 2e9), peer(120.0, 3e9), peer(200.0, 2e9)];
        Measured { shape: &SHAPES[2], ours: vec![ours], peer }
    }

    #[test]
    fn later_rounds_repeat_what_may_win() {
        let m = measured();
        assert_eq!(m.contenders(Want { speed: true, memory: false }).unwrap(), [1, 3]);
        assert_eq!(m.contenders(Want { speed: true, memory: true }).unwrap(), [0, 1, 3]);
        assert_eq!(m.contenders(Want { speed: false, memory: true }).unwrap(), [0]);
    }

    #[test]
    fn tables_compare_with_the_best() {
        let speed = speed_table(&[measured()]).unwrap();
        // Twice as fast, but the share of the peak is below the target.
        assert!(speed.contains("| 200 | compiled bf16 | 2.00 | ≥ 1.45, ≥ 70 % ✗ |"), "{speed}");
        let memory = memory_table(&[measured()]).unwrap();
        assert!(
            memory.contains("(-20 %) ✗") && memory.contains("| eager f32 | 0.50 | ≤ 0.75 ✓ |"),
            "{memory}"
        );
    }
}
