//! Which instructions to use, and the one place where they are switched on.

use crate::simd::Simd;
use crate::simd::scalar::Scalar;

/// A set of kernels for an instruction set. All give the same bits in f32, and all but the last in bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// Portable Rust.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with the dot products of bf16 and of 8-bit integers (VNNI).
    Avx512Bf16,
}

impl Path {
    /// Every path, slowest first.
    pub const ALL: [Path; 4] = [Path::Scalar, Path::Avx2, Path::Avx512, Path::Avx512Bf16];

    /// The name that `LLAMERO_CPU` takes.
    pub fn name(self) -> &'static str {
        match self {
            Path::Scalar => "scalar",
            Path::Avx2 => "avx2",
            Path::Avx512 => "avx512",
            Path::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Whether this processor has the instructions.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Path::Scalar => true,
            Path::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Path::Avx512 => {
                Path::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Path::Avx512Bf16 => {
                Path::Avx512.is_supported()
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
            }
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Path::Scalar;
    }

    /// The paths that this processor has, slowest first.
    pub fn available() -> Vec<Path> {
        Path::ALL.into_iter().filter(|p| p.is_supported()).collect()
    }
}

/// A path that the processor was found to support.
#[derive(Clone, Copy)]
pub(crate) struct Checked(Path);

/// A kernel: its arguments, and one body for every instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;

    /// The body. Must be `#[inline(always)]`, and so must everything in it that uses `s`, because the
    /// instructions are only enabled in the function that calls it.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

impl Checked {
    /// `None` when the processor lacks the instructions.
    pub(crate) fn new(path: Path) -> Option<Self> {
        path.is_supported().then_some(Self(path))
    }

    /// The path.
    pub(crate) fn path(self) -> Path {
        self.0
    }

    /// Runs a kernel with the instructions of this path.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` has checked that the processor has these features.
            Path::Avx2 => unsafe { avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` has checked that the processor has these features.
            Path::Avx512 => unsafe { avx512(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` has checked that the processor has these features.
            Path::Avx512Bf16 => unsafe { avx512bf16(kernel) },
            _ => kernel.run(Scalar),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller of a function with these features has checked for them.
    kernel.run(unsafe { crate::simd::avx2::Avx2::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller of a function with these features has checked for them.
    kernel.run(unsafe { crate::simd::avx512::Avx512::<false>::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni")]
fn avx512bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller of a function with these features has checked for them.
    kernel.run(unsafe { crate::simd::avx512::Avx512::<true>::new() })
}
