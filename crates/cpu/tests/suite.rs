//! The op suite on every path and for several numbers of threads.

use llamero_cpu::{Cpu, CpuError, Path};
use llamero_tensor::testing::suite;

#[test]
fn every_path_and_number_of_threads_passes_the_suite() {
    for path in Path::available() {
        for threads in [1, 2, 3] {
            let cpu = Cpu::with_path(threads, path).unwrap();
            for (name, group) in suite::GROUPS {
                println!("{} x{threads}: {name}", path.name());
                group(&cpu);
            }
        }
    }
}

/// f32 has one set of bits everywhere, and so have weights in blocks. bf16 has one on the paths that widen it and another on the one with the bf16 dot
/// product; neither depends on the number of threads.
#[test]
fn every_path_and_number_of_threads_gives_the_same_bits() {
    let widened = suite::fingerprint(&Cpu::with_path(1, Path::Scalar).unwrap());
    for path in Path::available() {
        let pairs = path == Path::Avx512Bf16;
        let reference =
            if pairs { suite::fingerprint(&Cpu::with_path(1, path).unwrap()) } else { widened.clone() };
        for threads in [1, 2, 3] {
            let found = suite::fingerprint(&Cpu::with_path(threads, path).unwrap());
            assert_eq!(found, reference, "{} x{threads}", path.name());
        }
        let everywhere = |name: &str| name.ends_with("f32") || name.starts_with("blocks");
        for (found, want) in reference.iter().zip(&widened).filter(|(_, (name, _))| everywhere(name)) {
            assert_eq!(found, want, "{}", path.name());
        }
    }
}

#[test]
fn no_threads_is_an_error() {
    let error = Cpu::new(0).err().unwrap();
    assert!(matches!(error, CpuError::NoThreads));
    assert_eq!(error.to_string(), "the number of threads is `0`; hint: use at least 1");
    let error = Cpu::new(100_000).err().unwrap().to_string();
    assert!(error.starts_with("the number of threads is `100000`; hint: use at most 4096"), "{error}");
}
