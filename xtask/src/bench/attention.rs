//! Ours alone: whether the time of attention follows the sum of the squared document lengths.

use serde_json::Value;

use super::session::{Label, Session, number, words};
use super::table::{against, markdown, median};

/// How far time per Σ len² may be from that of a single document.
const CLOSE: f64 = 0.15;

pub(super) fn run(session: &mut Session) -> Result<String, String> {
    let mut rounds = Vec::new();
    for round in 0..session.options.samples {
        let label = Label { bench: "attention", case: "8192 tokens", by: "llamero", round };
        rounds
            .push(session.ours(&label, &words("attention --tokens 8192 --documents 1,4,16,64 --samples 1"))?);
    }
    report(&rounds)
}

fn report(rounds: &[Value]) -> Result<String, String> {
    let divisions = rounds.first().and_then(|r| r["divisions"].as_array()).map_or(0, Vec::len);
    let of = |division: usize, key: &str| -> Result<f64, String> {
        let values = rounds.iter().map(|round| number(&round["divisions"][division], key));
        Ok(median(&values.collect::<Result<Vec<_>, _>>()?))
    };
    let row = |division: usize| -> Result<Vec<String>, String> {
        let cost = of(division, "relative_cost")?;
        Ok(vec![
            format!("{:.0}", of(division, "documents")?),
            format!("{:.0}", of(division, "sum_len_squared")?),
            format!("{:.2} ms", 1e3 * of(division, "forward_seconds")?),
            format!("{:.2} ms", 1e3 * of(division, "backward_seconds")?),
            format!("{cost:.3}"),
            against("1 ± 0.15".into(), (cost - 1.0).abs() <= CLOSE),
        ])
    };
    let rows = (0..divisions).map(row).collect::<Result<Vec<_>, _>>()?;
    let header = ["documents", "Σ len²", "forward", "backward", "time per Σ len², first = 1", "target"];
    Ok(format!("### Attention, 8,192 tokens\n\n{}", markdown(&header, &rows)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rounds_become_medians() {
        let round = |cost: f64| {
            json!({ "divisions": [{ "documents": 4, "sum_len_squared": 100, "forward_seconds": 0.5 * cost,
                "backward_seconds": 1.0, "relative_cost": cost }] })
        };
        let report = report(&[round(1.0), round(1.2), round(1.3)]).unwrap();
        assert!(report.contains("| 4 | 100 | 600.00 ms | 1000.00 ms | 1.200 | 1 ± 0.15 ✗ |"), "{report}");
        assert!(super::report(&[json!({ "divisions": [{}] })]).is_err());
    }
}
