//! Products of the layers of real models, ours and the peer's in turn for each.

use serde_json::json;

use super::session::{Label, Session, number, words};
use super::table::{against, markdown, median};

/// Seconds of work in one sample.
const SECONDS: f64 = 0.2;
/// What large bf16 products should reach of the register peak.
const SHARE: f64 = 0.88;
/// A product is large when no side is below this.
const LARGE: usize = 768;

/// A linear layer: tokens, outputs and inputs.
struct Layer {
    name: &'static str,
    tokens: usize,
    outputs: usize,
    inputs: usize,
}

const fn layer(name: &'static str, tokens: usize, outputs: usize, inputs: usize) -> Layer {
    Layer { name, tokens, outputs, inputs }
}

const LAYERS: [Layer; 15] = [
    layer("square", 2048, 2048, 2048),
    layer("125M wo", 2048, 768, 768),
    layer("125M wqkv", 2048, 1280, 768),
    layer("125M w13", 2048, 4096, 768),
    layer("125M w2", 2048, 768, 2048),
    layer("125M head", 2048, 32_000, 768),
    layer("1B wo", 2048, 2048, 2048),
    layer("1B wqkv", 2048, 3072, 2048),
    layer("1B w13", 2048, 16_384, 2048),
    layer("1B w2", 2048, 2048, 8192),
    layer("tiny", 64, 64, 64),
    layer("odd", 100, 300, 77),
    layer("one token", 1, 2048, 2048),
    layer("four tokens", 4, 768, 3072),
    layer("uneven", 17, 2048, 513),
];

/// One product of a layer, as `m`, `n` and `k`.
#[derive(Debug, PartialEq)]
struct Case {
    name: String,
    op: &'static str,
    dtype: &'static str,
    sizes: [usize; 3],
    /// Whether our weight is packed beforehand, as it is where few tokens at a time are multiplied by it.
    packed: bool,
}

impl Case {
    /// Whether the target for the share of the peak holds for it.
    fn is_large(&self) -> bool {
        self.dtype == "bf16" && self.sizes.iter().all(|&size| size >= LARGE)
    }
}

/// Forward, input gradient and weight gradient of every layer; with a handful of tokens there is no weight gradient.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in ["bf16", "f32"] {
        for Layer { name, tokens, outputs, inputs } in LAYERS {
            for (op, sizes) in [
                ("nt", [tokens, outputs, inputs]),
                ("nn", [tokens, inputs, outputs]),
                ("tn", [outputs, inputs, tokens]),
            ] {
                // A 1B model's wo is the square.
                let again = name == "1B wo";
                if !again && (op != "tn" || tokens > 4) {
                    cases.push(Case {
                        name: format!("{name} {op} {dtype}"),
                        op,
                        dtype,
                        sizes,
                        packed: false,
                    });
                }
                if op == "nt" && tokens < 32 {
                    cases.push(Case {
                        name: format!("{name} packed {dtype}"),
                        op,
                        dtype,
                        sizes,
                        packed: true,
                    });
                }
            }
        }
    }
    cases
}

/// Speeds of one case over the rounds.
#[derive(Default)]
struct Speeds {
    ours: Vec<f64>,
    share: Vec<f64>,
    peer: Vec<f64>,
}

pub(super) fn run(session: &mut Session) -> Result<String, String> {
    let filter = session.options.filter.clone();
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.name.contains(&filter)).collect();
    if cases.is_empty() {
        return Err(format!("gemm: no name contains `{filter}`"));
    }
    let mut server = session.server("gemm_torch.py", &[])?;
    let mut measured = Vec::new();
    for case in cases {
        let Case { op, dtype, sizes: [m, n, k], packed, .. } = case;
        let packed = if packed { " --packed" } else { "" };
        let ours = format!(
            "gemm --m {m} --n {n} --k {k} --dtype {dtype} --op {op} --samples 1 --seconds {SECONDS}{packed}"
        );
        let question = json!({ "m": m, "n": n, "k": k, "dtype": dtype, "op": op, "seconds": SECONDS });
        let mut speeds = Speeds::default();
        for round in 0..session.options.samples {
            let label = |by| Label { bench: "gemm", case: &case.name, by, round };
            let result = session.ours(&label("llamero"), &words(&ours))?;
            speeds.ours.push(number(&result, "gflops")?);
            speeds.share.push(number(&result, "fraction_of_peak")?);
            let result = server.ask(&question)?;
            session.record(&label("torch"), &result);
            speeds.peer.push(number(&result, "gflops")?);
        }
        measured.push((case, speeds));
    }
    Ok(report(&measured))
}

fn report(measured: &[(Case, Speeds)]) -> String {
    let header = [
        "product",
        "m × n × k",
        "ours, GFLOP/s",
        "share of peak",
        "PyTorch, GFLOP/s",
        "ours / PyTorch",
        "target",
    ];
    let rows: Vec<Vec<String>> = measured.iter().map(|(case, speeds)| row(case, speeds)).collect();
    let ratio = |s: &Speeds| median(&s.ours) / median(&s.peer);
    let slower: Vec<&str> =
        measured.iter().filter(|(_, s)| ratio(s) < 1.0).map(|(case, _)| case.name.as_str()).collect();
    let slower = if slower.is_empty() { "none".to_owned() } else { slower.join(", ") };
    format!("### Matrix products\n\n{}\nSlower than PyTorch: {slower}.\n", markdown(&header, &rows))
}

fn row(case: &Case, speeds: &Speeds) -> Vec<String> {
    let (ours, share, peer) = (median(&speeds.ours), median(&speeds.share), median(&speeds.peer));
    let [m, n, k] = case.sizes;
    let ratio = ours / peer;
    let target = if case.is_large() {
        against(format!("≥ 1.00, ≥ {:.0} %", 100.0 * SHARE), ratio >= 1.0 && share >= SHARE)
    } else {
        against("≥ 1.00".into(), ratio >= 1.0)
    };
    vec![
        case.name.clone(),
        format!("{m} × {n} × {k}"),
        format!("{ours:.1}"),
        format!("{:.0} %", 100.0 * share),
        format!("{peer:.1}"),
        format!("{ratio:.2}"),
        target,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_a_layer_fit_together() {
        let cases = cases();
        let of = |name: &str| cases.iter().find(|c| c.name == name).unwrap().sizes;
        assert_eq!(of("125M w13 nt bf16"), [2048, 4096, 768]);
        assert_eq!(of("125M w13 nn bf16"), [2048, 768, 4096]);
        assert_eq!(of("125M w13 tn f32"), [4096, 768, 2048]);
        assert!(!cases.iter().any(|c| c.name.starts_with("one token tn")));
        let mut names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), cases.len());
    }

    #[test]
    fn a_row_tells_whether_targets_are_met() {
        let case = |dtype| Case { name: "x".into(), op: "nt", dtype, sizes: [768; 3], packed: false };
        let speeds = Speeds { ours: vec![110.0, 90.0, 100.0], share: vec![0.5; 3], peer: vec![80.0; 3] };
        let cells = row(&case("f32"), &speeds);
        assert_eq!(cells[2..], ["100.0", "50 %", "80.0", "1.25", "≥ 1.00 ✓"]);
        assert_eq!(row(&case("bf16"), &speeds)[6], "≥ 1.00, ≥ 88 % ✗");
        let report = report(&[(case("f32"), speeds)]);
        assert!(report.ends_with("Slower than PyTorch: none.\n"), "{report}");
    }
}
