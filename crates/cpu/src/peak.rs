//! What the machine can do at most: multiply-adds that never leave the registers, and memory traffic without arithmetic.
//!
//! A kernel's speed says little by itself; its share of these limits says what is left to gain. [`flops`] keeps
//! independent chains of multiply-adds in registers on every thread at the same time: as many as there are registers for,
//! more than latency × ports, so that only throughput counts. [`Streams`] measures reading and copying of arrays that
//! no cache holds.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use llamero_tensor::DType;

/// Chains with 16 registers, which also hold the two factors.
const CHAINS: usize = 12;
/// Chains with the 32 registers of AVX-512. Twelve would be just latency × ports of its dot product on some cores.
const WIDE_CHAINS: usize = 24;

/// A kind of multiply-add instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Whatever the compiler makes of a product and a sum of `f32` in portable Rust.
    Portable,
    /// 8 fused multiply-adds of `f32` (AVX2 and FMA).
    Fma256,
    /// 16 fused multiply-adds of `f32` (AVX-512).
    Fma512,
    /// 16 sums of two products of bf16 each, accumulated in `f32` (AVX-512 BF16).
    Bf16Dot512,
}

impl Unit {
    /// Every kind, slowest first.
    pub const ALL: [Unit; 4] = [Unit::Portable, Unit::Fma256, Unit::Fma512, Unit::Bf16Dot512];

    /// A name for tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Portable => "portable",
            Unit::Fma256 => "fma256",
            Unit::Fma512 => "fma512",
            Unit::Bf16Dot512 => "bf16dot512",
        }
    }

    /// Type of the factors; sums are `f32` in all of them.
    pub fn dtype(self) -> DType {
        if self == Unit::Bf16Dot512 { DType::Bf16 } else { DType::F32 }
    }

    /// Whether this processor has the instruction.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Unit::Portable => true,
            Unit::Fma256 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Unit::Fma512 => is_x86_feature_detected!("avx512f"),
            Unit::Bf16Dot512 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Unit::Portable;
    }

    /// The kinds that this processor has, slowest first.
    pub fn available() -> Vec<Unit> {
        Unit::ALL.into_iter().filter(|u| u.is_supported()).collect()
    }

    /// The fastest kind for factors of `dtype`. bf16 without an instruction of its own is widened to `f32`, so its limit
    /// is that of `f32`.
    pub fn fastest(dtype: DType) -> Unit {
        let all = Unit::available();
        let own = all.iter().rev().find(|u| u.dtype() == dtype);
        own.or(all.last()).copied().unwrap_or(Unit::Portable)
    }

    /// Floating-point operations of one instruction on each chain; a multiply-add is two.
    fn flops(self) -> usize {
        match self {
            Unit::Portable => 2 * LANES * CHAINS,
            Unit::Fma256 => 2 * 8 * CHAINS,
            Unit::Fma512 => 2 * 16 * WIDE_CHAINS,
            Unit::Bf16Dot512 => 4 * 16 * WIDE_CHAINS,
        }
    }

    /// `rounds` times one instruction on each chain.
    fn run(self, rounds: usize) {
        match self {
            Unit::Portable => portable(rounds),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `flops`, the only caller, has checked that the processor has the instructions.
            Unit::Fma256 => unsafe { x86::fma256(rounds) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Unit::Fma512 => unsafe { x86::fma512(rounds) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Unit::Bf16Dot512 => unsafe { x86::bf16_dot512(rounds) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("only the portable loop is supported here"),
        }
    }
}

/// Values per portable chain: a register of any processor.
const LANES: usize = 4;

/// The factors: their product is small, so that sums stay finite, and no subnormal number appears.
const FACTORS: (f32, f32) = (0.5, 0.001);

fn portable(rounds: usize) {
    let (x, y) = (black_box([FACTORS.0; LANES]), black_box([FACTORS.1; LANES]));
    let mut sums = [[0.0f32; LANES]; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            for lane in 0..LANES {
                // The product is part of the chain, or the compiler would take it out of the loop.
                sum[lane] = sum[lane] * x[lane] + y[lane];
            }
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps,
        _mm512_fmadd_ps, _mm512_set1_ps, _mm512_setzero_ps,
    };
    use std::hint::black_box;

    use super::{CHAINS, FACTORS, WIDE_CHAINS};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn fma256(rounds: usize) {
        let x = _mm256_set1_ps(black_box(FACTORS.0));
        let y = _mm256_set1_ps(black_box(FACTORS.1));
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(x, y, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn fma512(rounds: usize) {
        let x = _mm512_set1_ps(black_box(FACTORS.0));
        let y = _mm512_set1_ps(black_box(FACTORS.1));
        let mut sums = [_mm512_setzero_ps(); WIDE_CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, y, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16_dot512(rounds: usize) {
        let pair = |value: f32| -> __m512bh {
            let wide = _mm512_set1_ps(black_box(value));
            _mm512_cvtne2ps_pbh(wide, wide)
        };
        let (x, y) = (pair(FACTORS.0), pair(FACTORS.1));
        let mut sums = [_mm512_setzero_ps(); WIDE_CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, y);
            }
        }
        black_box(sums);
    }
}

/// Runs `work(thread)` on `threads` threads that start together; seconds until the last is done.
fn together(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let start = Barrier::new(threads);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|thread| {
                let (start, work) = (&start, &work);
                scope.spawn(move || {
                    start.wait();
                    work(thread);
                })
            })
            .collect();
        start.wait();
        let begun = Instant::now();
        work(0);
        for other in others {
            // A panic of a thread is passed on by the scope.
            drop(other.join());
        }
        begun.elapsed().as_secs_f64()
    })
}

/// Floating-point operations per second of `unit` on `threads` threads at the same time, from a run of about `seconds`
/// after a shorter one that finds out how long that is.
///
/// # Panics
/// Where the processor lacks the instruction ([`Unit::is_supported`]), or without threads.
pub fn flops(unit: Unit, threads: usize, seconds: f64) -> f64 {
    assert!(unit.is_supported(), "peak: this processor lacks `{}`", unit.name());
    assert!(threads > 0, "peak: no threads");
    let mut rounds = 10_000;
    let rounds = loop {
        let took = together(threads, |_| unit.run(rounds));
        if took > 0.2 * seconds {
            break (rounds as f64 * seconds / took).ceil() as usize;
        }
        rounds *= 4;
    };
    let took = together(threads, |_| unit.run(rounds));
    (rounds * unit.flops() * threads) as f64 / took
}

/// Memory traffic in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth {
    /// Reading.
    pub read: f64,
    /// Copying; the bytes read and the bytes written both count.
    pub copy: f64,
}

/// Two arrays for [`Streams::bandwidth`], to be made once and used for several measurements.
pub struct Streams {
    threads: usize,
    from: Vec<u64>,
    to: Vec<u64>,
}

impl Streams {
    /// Two arrays of `bytes` each, which should be several times the size of the last cache, divided among `threads`.
    ///
    /// # Panics
    /// Without threads, or with less than 64 bytes for each.
    pub fn new(threads: usize, bytes: usize) -> Self {
        let words = bytes / size_of::<u64>();
        assert!(threads > 0 && words >= 8 * threads, "peak: {bytes} bytes for {threads} threads");
        // Other values than zero, so that the system gives every page memory of its own.
        Self { threads, from: vec![1; words], to: vec![2; words] }
    }

    /// One pass of reading and one of copying over the arrays.
    pub fn bandwidth(&mut self) -> Bandwidth {
        let Self { threads, from, to } = self;
        let bytes = size_of_val(from.as_slice()) as f64;
        let chunk = from.len().div_ceil(*threads);
        let read = together(*threads, |thread| {
            let part = from.chunks(chunk).nth(thread).unwrap_or_default();
            black_box(sum(part));
        });
        let parts: Vec<_> = to.chunks_mut(chunk).map(std::sync::Mutex::new).collect();
        let copy = together(*threads, |thread| {
            let (Some(from), Some(to)) = (from.chunks(chunk).nth(thread), parts.get(thread)) else { return };
            to.lock().unwrap_or_else(std::sync::PoisonError::into_inner).copy_from_slice(from);
        });
        black_box(parts);
        Bandwidth { read: bytes / read, copy: 2.0 * bytes / copy }
    }
}

/// A sum with enough partial sums that only loads take time.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 16];
    for chunk in words.chunks_exact(16) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |a, &b| a.wrapping_add(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_this_machine_has_a_plausible_peak() {
        for unit in Unit::available() {
            for threads in [1, 2] {
                let peak = flops(unit, threads, 0.01);
                // Between a tenth of a multiply-add a nanosecond and 64 a cycle of 10 GHz on each thread.
                assert!(peak > 1e8 && peak < 2e13, "{} x{threads}: {peak:e}", unit.name());
            }
        }
    }

    #[test]
    fn the_limit_of_a_dtype_is_that_of_its_widest_instruction() {
        assert_eq!(Unit::fastest(DType::F32).dtype(), DType::F32);
        let bf16 = Unit::fastest(DType::Bf16);
        let own = Unit::Bf16Dot512.is_supported();
        assert_eq!(bf16, if own { Unit::Bf16Dot512 } else { Unit::fastest(DType::F32) });
    }

    #[test]
    fn bandwidth_copies_all_of_an_array() {
        // Three threads do not divide it evenly.
        let mut streams = Streams::new(3, 1 << 20);
        let Bandwidth { read, copy } = streams.bandwidth();
        assert!(read > 0.0 && copy > 0.0 && read.is_finite() && copy.is_finite());
        assert_eq!(streams.to, streams.from);
    }
}
