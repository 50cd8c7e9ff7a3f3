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

#[test]
fn every_path_and_number_of_threads_gives_the_same_bits() {
    let reference = suite::fingerprint(&Cpu::with_path(1, Path::Scalar).unwrap());
    for path in Path::available() {
        for threads in [1, 2, 3] {
            let found = suite::fingerprint(&Cpu::with_path(threads, path).unwrap());
            assert_eq!(found, reference, "{} x{threads}", path.name());
        }
    }
}

#[test]
fn no_threads_is_an_error() {
    let error = Cpu::new(0).err().unwrap();
    assert!(matches!(error, CpuError::NoThreads));
    assert_eq!(error.to_string(), "the number of threads is `0`; hint: use at least 1");
}
