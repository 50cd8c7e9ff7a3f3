//! Block encodings against ggml's: the values of the same bytes, the bytes of the same values, the error of ours and theirs.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use llamero_tensor::Encoding;
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../tests/goldens/ggml_blocks.json")).unwrap()
}

fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn floats(value: &Value) -> Vec<f32> {
    unhex(value).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn quantized() -> impl Iterator<Item = Encoding> {
    Encoding::ALL.into_iter().filter(|e| e.is_quantized())
}

fn round_trip(encoding: Encoding, values: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; values.len()];
    encoding.decode(&encoding.encode(values), &mut out);
    out
}

fn rms(a: &[f32], b: &[f32]) -> f64 {
    let squares: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (squares / a.len() as f64).sqrt()
}

#[test]
fn blocks_decode_to_ggmls_bits() {
    let golden = &golden()["decode"];
    for encoding in quantized() {
        let case = &golden[encoding.name()];
        let expected = floats(&case["values"]);
        let mut values = vec![f32::NAN; expected.len()];
        encoding.decode(&unhex(&case["bytes"]), &mut values);
        let bits = |v: &[f32]| v.iter().map(|x| (x + 0.0).to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&values), bits(&expected), "{encoding}");
    }
}

#[test]
fn small_blocks_encode_to_ggmls_bytes() {
    let golden = &golden()["encode"];
    let input = &floats(&golden["input"])[..256];
    for encoding in quantized().filter(|e| e.block().0 == 32) {
        assert_eq!(encoding.encode(input), unhex(&golden["bytes"][encoding.name()]), "{encoding}");
    }
}

#[test]
fn errors_are_as_small_as_ggmls() {
    let golden = &golden()["encode"];
    let input = floats(&golden["input"]);
    for encoding in quantized() {
        let ours = rms(&round_trip(encoding, &input), &input);
        let theirs = golden["rms"][encoding.name()].as_f64().unwrap();
        println!("{encoding}: rms error {ours:.4e}, ggml {theirs:.4e}");
        assert!(ours <= 1.001 * theirs, "{encoding}: {ours:e}, ggml {theirs:e}");
    }
}

/// Half a step of rounding, half for the least value; scales are rounded themselves. The last block's are too small for
/// half precision to be relied on.
#[test]
fn errors_are_within_a_step() {
    let input = &floats(&golden()["encode"]["input"])[..768];
    for encoding in quantized() {
        let levels = match encoding {
            Encoding::Q8_0 => 254.0,
            Encoding::Q6K => 62.0,
            Encoding::Q5_0 | Encoding::Q5_1 | Encoding::Q5K => 30.0,
            _ => 14.0,
        };
        let back = round_trip(encoding, input);
        let (elements, _) = encoding.block();
        for (x, y) in input.chunks(elements).zip(back.chunks(elements)) {
            let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let far = x.iter().zip(y).fold(0.0f32, |m, (x, y)| m.max((x - y).abs()));
            assert!(far <= 2.0 * largest / levels * 1.1, "{encoding}: {far} of {largest}");
        }
    }
}

#[test]
fn zeros_and_coarse_values_come_back() {
    for encoding in Encoding::ALL {
        let (elements, _) = encoding.block();
        assert_eq!(round_trip(encoding, &vec![0.0; 2 * elements]), vec![0.0; 2 * elements], "{encoding}");
        let grid: Vec<f32> = (0..elements.max(4)).map(|i| [-1.0, 0.0, 0.5, 0.75][i % 4]).collect();
        let (back, exact) = (round_trip(encoding, &grid), matches!(encoding, Encoding::F32 | Encoding::F16));
        let error = rms(&back, &grid);
        assert!(error < if exact { 1e-12 } else { 0.05 }, "{encoding}: {error}");
        assert_eq!(Encoding::from_name(&encoding.name().to_lowercase()), Some(encoding));
    }
    assert_eq!(Encoding::from_name("Q3_K"), None);
}

#[test]
fn extreme_values_stay_finite() {
    for encoding in Encoding::ALL {
        let elements = encoding.block().0;
        for extreme in [encoding.largest(), -encoding.largest(), f32::MIN_POSITIVE, 1e-40, 1e-7] {
            let mut values = vec![0.0; elements];
            values[elements / 2] = extreme;
            let back = round_trip(encoding, &values);
            assert!(back.iter().all(|x| x.is_finite()), "{encoding}: {extreme:e} gives {back:?}");
            let all = round_trip(encoding, &vec![extreme; elements]);
            assert!(all.iter().all(|x| x.is_finite()), "{encoding}: {extreme:e} gives {all:?}");
        }
    }
}
