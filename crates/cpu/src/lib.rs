//! The CPU backend: kernels for AVX-512 with and without the bf16 dot product, for AVX2 and for any processor.
//!
//! # One definition of every result
//!
//! Every element of every matrix product is *one* sequential chain of fused multiply-adds over `k = 0, 1, … K − 1`,
//! starting from 0, or from the value already there where a gradient is added to. A chain that is cut (into blocks of
//! `k`, chunks of rows, several micro-batches) continues from the value in memory, which is the same `f32`. So the
//! bits of a product do not depend on M or N, on tiling or blocking, on the number of threads, or on the
//! instruction set: they are a property of the operands. Weight gradients of a batch taken in two halves equal
//! those of the whole; a row decoded alone equals the row in its document.
//!
//! A general matrix library chooses its blocking by the shapes and the machine and promises none of this, so
//! the micro-kernels are our own: 12 × 32 (AVX-512) or 6 × 16 (AVX2) accumulators in registers. Nothing is
//! lost: a register tile holds hundreds of independent chains, enough to hide the latency of each.
//!
//! All other kernels are one generic source over sixteen lanes ([`simd`]): reductions keep sixteen partial sums and
//! join them by a fixed tree, `exp` is a polynomial of fused multiply-adds, and square roots and divisions are exact
//! by IEEE 754. The platform's mathematical library is never called.
//!
//! # bf16
//!
//! On the path `avx512bf16` the operands of products stay bf16: two that follow each other in depth lie in one lane, and
//! a step of the chain is `vdpbf16ps`, `c + a₀b₀ + a₁b₁` in f32 with two roundings, denormals taken for zero. The chain is
//! still one per element and in the order of depth, so nothing but the path changes its bits; a chain that is cut after an
//! odd number of rows (a weight gradient over two batches) is the only exception, because a pair does not span the cut.
//! Weights that attention multiplies by, and gradients of logits, are rounded to bf16 first.
//!
//! The other paths widen bf16 operands while packing them; products of two are exact in `f32`, so the kernels and the
//! bits are those of f32, on every one of them. Either way a result is rounded once, when it is stored.
//!
//! # Memory
//!
//! Storage comes from a caching allocator whose counter includes the scratch of running kernels, so the reported peak
//! is what was really in use. A freed block is kept for the next one; what is kept is given back to the system when the
//! peak is reset.
//!
//! # Unsafe code
//!
//! It is confined to the intrinsics ([`simd`]), the switch that enables them ([`path`]), the pointer arithmetic of the
//! micro-kernel, the allocator, and the splitting of an array into rectangles that threads write ([`exec`]).

#![expect(unsafe_code, reason = "intrinsics, the allocator and disjoint writes; each block has its argument")]
#![expect(rustdoc::private_intra_doc_links, reason = "the overview names the private modules")]

mod ahead;
mod attention;
mod backend;
mod exec;
mod gemm;
mod loss;
mod master;
mod math;
mod memory;
mod ops;
mod path;
pub mod peak;
mod quant;
mod rows;
mod simd;
mod storage;
mod team;

pub use path::Path;

use std::ffi::OsString;

use exec::Exec;

/// Threads that may be asked for.
const MOST_THREADS: usize = 4096;

/// Why a backend could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// `LLAMERO_CPU` has a value that is not the name of a path.
    #[error(
        "environment variable `LLAMERO_CPU` is `{0}`; hint: use `scalar`, `avx2`, `avx512` or `avx512bf16`, or unset it"
    )]
    UnknownPath(String),
    /// The processor lacks the instructions.
    #[error(
        "path `{}` needs instructions that this processor lacks; hint: set `LLAMERO_CPU` to one of {}, or unset it",
        .0.name(), available()
    )]
    Unsupported(Path),
    /// No threads were asked for.
    #[error("the number of threads is `0`; hint: use at least 1")]
    NoThreads,
    /// More threads than any machine has.
    #[error(
        "the number of threads is `{0}`; hint: use at most {MOST_THREADS}, best as many as there are cores"
    )]
    TooManyThreads(usize),
    /// The threads could not be started.
    #[error("cannot start `{0}` threads: {1}")]
    Threads(usize, std::io::Error),
}

fn available() -> String {
    Path::available().iter().map(|p| format!("`{}`", p.name())).collect::<Vec<_>>().join(", ")
}

/// The path that is asked for by name, or the fastest.
fn choose(name: Option<OsString>) -> Result<Path, CpuError> {
    let Some(name) = name else { return Ok(Path::available().pop().unwrap_or(Path::Scalar)) };
    let known = Path::ALL.into_iter().find(|p| name == p.name());
    known.ok_or_else(|| CpuError::UnknownPath(name.to_string_lossy().into_owned()))
}

/// The CPU as a [`Backend`](llamero_tensor::Backend).
pub struct Cpu {
    exec: Exec,
}

impl Cpu {
    /// A backend with `threads` threads on the fastest path that the processor has, or on the one that the environment
    /// variable `LLAMERO_CPU` names (`scalar`, `avx2`, `avx512`, `avx512bf16`). The number of threads changes no bit of any result,
    /// the path none of f32; see the crate's documentation for bf16.
    ///
    /// # Errors
    /// An unknown or unsupported path, no threads, or threads that cannot be started.
    pub fn new(threads: usize) -> Result<Self, CpuError> {
        Self::with_path(threads, choose(std::env::var_os("LLAMERO_CPU"))?)
    }

    /// A backend with `threads` threads on a given path.
    ///
    /// # Errors
    /// An unsupported path, no threads, or threads that cannot be started.
    pub fn with_path(threads: usize, path: Path) -> Result<Self, CpuError> {
        if threads == 0 {
            return Err(CpuError::NoThreads);
        }
        if threads > MOST_THREADS {
            return Err(CpuError::TooManyThreads(threads));
        }
        let checked = path::Checked::new(path).ok_or(CpuError::Unsupported(path))?;
        Ok(Self { exec: Exec::new(checked, threads).map_err(|e| CpuError::Threads(threads, e))? })
    }

    /// The path in use.
    pub fn path(&self) -> Path {
        self.exec.path.path()
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.exec.threads
    }

    /// Whether products of bf16 pack it as pairs for the dot product, two bytes an element; it is widened to f32
    /// otherwise.
    pub fn packs_pairs(&self) -> bool {
        self.exec.pairs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_chosen_by_name() {
        assert_eq!(Some(choose(None).unwrap()), Path::available().pop());
        for path in Path::ALL {
            assert_eq!(choose(Some(path.name().into())).unwrap(), path);
        }
        let error = choose(Some("sse9".into())).unwrap_err().to_string();
        for part in ["`LLAMERO_CPU`", "`sse9`", "`scalar`", "`avx2`", "`avx512`", "`avx512bf16`"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
