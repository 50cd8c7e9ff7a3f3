//! Kernels that go through rows element by element: `T` tokens, `C` model width, `F` feed-forward width.

use llamero_tensor::AdamW;

use crate::master::Weights;
use crate::math::{Element, dot, exp, load, store};
use crate::path::Kernel;
use crate::simd::{LANES, Simd};

/// Copy in another type.
pub(crate) struct Convert<'a, A, B> {
    pub(crate) x: &'a [A],
    pub(crate) out: &'a mut [B],
}

impl<A: Element, B: Element> Kernel for Convert<'_, A, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(self.x.len(), self.out.len());
        for at in (0..self.x.len()).step_by(LANES) {
            store(s, load(s, self.x, at), self.out, at);
        }
    }
}

/// `out = a + b`.
pub(crate) struct Add<'a, E> {
    pub(crate) a: &'a [E],
    pub(crate) b: &'a [E],
    pub(crate) out: &'a mut [E],
}

impl<E: Element> Kernel for Add<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for at in (0..self.out.len()).step_by(LANES) {
            store(s, s.add(load(s, self.a, at), load(s, self.b, at)), self.out, at);
        }
    }
}

/// `acc += x`.
pub(crate) struct AddAssign<'a, A, E> {
    pub(crate) acc: &'a mut [A],
    pub(crate) x: &'a [E],
}

impl<A: Element, E: Element> Kernel for AddAssign<'_, A, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for at in (0..self.acc.len()).step_by(LANES) {
            store(s, s.add(load(s, self.acc, at), load(s, self.x, at)), self.acc, at);
        }
    }
}

/// `v` as it reads after being stored as `E`.
#[inline(always)]
fn round<S: Simd, E: Element>(s: S, v: S::V) -> S::V {
    let mut rounded = [E::zeroed(); LANES];
    E::store(s, v, &mut rounded);
    E::load(s, &rounded)
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn inverse_rms<S: Simd, E: Element>(s: S, x: &[E], eps: f32) -> f32 {
    1.0 / (dot(s, x, x) / x.len() as f32 + eps).sqrt()
}

/// Root-mean-square norm of rows.
pub(crate) struct RmsNorm<'a, E, W> {
    pub(crate) x: &'a [E],
    pub(crate) w: &'a [W],
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [E],
}

impl<E: Element, W: Element> Kernel for RmsNorm<'_, E, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.w.len();
        for (x, out) in self.x.chunks_exact(cols).zip(self.out.chunks_exact_mut(cols)) {
            let inverse = s.splat(inverse_rms(s, x, self.eps));
            for at in (0..cols).step_by(LANES) {
                let normed = round::<S, E>(s, s.mul(load(s, x, at), inverse));
                store(s, s.mul(normed, load(s, self.w, at)), out, at);
            }
        }
    }
}

/// Gradient of [`RmsNorm`] for its input; also the inverse root mean square of every row.
pub(crate) struct RmsNormInput<'a, E, W> {
    pub(crate) dy: &'a [E],
    pub(crate) x: &'a [E],
    pub(crate) w: &'a [W],
    pub(crate) eps: f32,
    pub(crate) dx: &'a mut [E],
}

impl<E: Element, W: Element> Kernel for RmsNormInput<'_, E, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.w.len();
        let rows =
            self.x.chunks_exact(cols).zip(self.dy.chunks_exact(cols)).zip(self.dx.chunks_exact_mut(cols));
        for ((x, dy), dx) in rows {
            let inverse = inverse_rms(s, x, self.eps);
            let mut sum = s.splat(0.0);
            for at in (0..cols).step_by(LANES) {
                let grad = s.mul(load(s, dy, at), load(s, self.w, at));
                sum = s.fma(grad, load(s, x, at), sum);
            }
            // dx = r (g − x r² mean(g x)), r the inverse root mean square and g = dy w.
            let pull = s.splat(-(s.sum(sum) / cols as f32) * inverse * inverse);
            for at in (0..cols).step_by(LANES) {
                let grad = s.mul(load(s, dy, at), load(s, self.w, at));
                let d = s.mul(s.fma(load(s, x, at), pull, grad), s.splat(inverse));
                store(s, d, dx, at);
            }
        }
    }
}

/// The inverse root mean square of every row.
pub(crate) struct InverseRms<'a, E> {
    pub(crate) x: &'a [E],
    pub(crate) cols: usize,
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [f32],
}

impl<E: Element> Kernel for InverseRms<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.chunks_exact(self.cols).zip(self.out) {
            *out = inverse_rms(s, x, self.eps);
        }
    }
}

/// Gradient of [`RmsNorm`] for its weight: columns `first ..` of `dw`, all rows in order.
pub(crate) struct RmsNormWeight<'a, E> {
    pub(crate) dy: &'a [E],
    pub(crate) x: &'a [E],
    pub(crate) inverse: &'a [f32],
    pub(crate) cols: usize,
    pub(crate) first: usize,
    pub(crate) dw: &'a mut [f32],
}

impl<E: Element> Kernel for RmsNormWeight<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const WIDE: usize = 4;
        for (i, dw) in self.dw.chunks_mut(WIDE * LANES).enumerate() {
            let first = self.first + i * WIDE * LANES;
            let width = dw.len().div_ceil(LANES);
            let mut acc = [s.splat(0.0); WIDE];
            for (w, acc) in acc.iter_mut().enumerate().take(width) {
                *acc = load(s, dw, w * LANES);
            }
            let rows = self.x.chunks_exact(self.cols).zip(self.dy.chunks_exact(self.cols)).zip(self.inverse);
            for ((x, dy), inverse) in rows {
                let (x, dy) = (&x[first..], &dy[first..]);
                for (w, acc) in acc.iter_mut().enumerate().take(width) {
                    let normed = round::<S, E>(s, s.mul(load(s, x, w * LANES), s.splat(*inverse)));
                    *acc = s.fma(load(s, dy, w * LANES), normed, *acc);
                }
            }
            for (w, acc) in acc.iter().enumerate().take(width) {
                store(s, *acc, dw, w * LANES);
            }
        }
    }
}

/// Rotates one row's heads; `cos` and `sin` have half the width of a head.
pub(crate) struct Rope<'a, E> {
    /// The heads that are rotated, one after another.
    pub(crate) heads: &'a [E],
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
    /// 1 forwards, −1 backwards.
    pub(crate) sign: f32,
    pub(crate) out: &'a mut [E],
}

impl<E: Element> Kernel for Rope<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.cos.len();
        let sign = s.splat(self.sign);
        let minus = s.splat(-self.sign);
        for (x, out) in self.heads.chunks_exact(2 * half).zip(self.out.chunks_exact_mut(2 * half)) {
            let (left, right) = x.split_at(half);
            let (out_left, out_right) = out.split_at_mut(half);
            for at in (0..half).step_by(LANES) {
                let (a, b) = (load(s, left, at), load(s, right, at));
                let (cos, sin) = (load(s, self.cos, at), load(s, self.sin, at));
                store(s, s.fma(a, cos, s.mul(b, s.mul(sin, minus))), out_left, at);
                store(s, s.fma(b, cos, s.mul(a, s.mul(sin, sign))), out_right, at);
            }
        }
    }
}

/// `1 / (1 + e^−x)`.
#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// `silu(gate) · up` of rows `[2F]`.
pub(crate) struct Swiglu<'a, E> {
    pub(crate) gate_up: &'a [E],
    pub(crate) width: usize,
    pub(crate) out: &'a mut [E],
}

impl<E: Element> Kernel for Swiglu<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.gate_up.chunks_exact(2 * self.width).zip(self.out.chunks_exact_mut(self.width));
        for (x, out) in rows {
            let (gate, up) = x.split_at(self.width);
            for at in (0..self.width).step_by(LANES) {
                let g = load(s, gate, at);
                let y = s.mul(s.mul(g, sigmoid(s, g)), load(s, up, at));
                store(s, y, out, at);
            }
        }
    }
}

/// Gradient of [`Swiglu`].
pub(crate) struct SwigluBackward<'a, E> {
    pub(crate) dy: &'a [E],
    pub(crate) width: usize,
    /// Gate and up of each row, replaced by their gradients.
    pub(crate) x: &'a mut [E],
}

impl<E: Element> Kernel for SwigluBackward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let one = s.splat(1.0);
        for (x, dy) in self.x.chunks_exact_mut(2 * self.width).zip(self.dy.chunks_exact(self.width)) {
            let (gate, up) = x.split_at_mut(self.width);
            for at in (0..self.width).step_by(LANES) {
                let (g, dy) = (load(s, gate, at), load(s, dy, at));
                let sig = sigmoid(s, g);
                // silu' = σ (1 + g (1 − σ))
                let slope = s.mul(sig, s.fma(g, s.sub(one, sig), one));
                store(s, s.mul(s.mul(dy, load(s, up, at)), slope), gate, at);
                store(s, s.mul(dy, s.mul(g, sig)), up, at);
            }
        }
    }
}

/// One AdamW step on a run of a parameter.
pub(crate) struct AdamWStep<'a, W> {
    pub(crate) weight: W,
    pub(crate) m: &'a mut [f32],
    pub(crate) v: &'a mut [f32],
    pub(crate) grad: &'a [f32],
    pub(crate) step: &'a AdamW,
}

impl<W: Weights> Kernel for AdamWStep<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let p = self.step;
        let (beta1, rest1) = (s.splat(p.beta1), s.splat(1.0 - p.beta1));
        let (beta2, rest2) = (s.splat(p.beta2), s.splat(1.0 - p.beta2));
        let (bias1, bias2) = (s.splat(p.bias1), s.splat(p.bias2));
        let (scale, eps, decay) = (s.splat(p.grad_scale), s.splat(p.eps), s.splat(p.weight_decay));
        let minus_lr = s.splat(-p.lr);
        for at in (0..self.weight.len()).step_by(LANES) {
            let g = s.mul(load(s, self.grad, at), scale);
            let m = s.fma(load(s, self.m, at), beta1, s.mul(g, rest1));
            let v = s.fma(load(s, self.v, at), beta2, s.mul(s.mul(g, g), rest2));
            let direction = s.div(s.div(m, bias1), s.add(s.sqrt(s.div(v, bias2)), eps));
            let w = self.weight.load(s, at);
            let w = s.fma(s.fma(w, decay, direction), minus_lr, w);
            store(s, m, self.m, at);
            store(s, v, self.v, at);
            self.weight.store(s, w, at);
        }
    }
}

/// Σ x² in f64: eight sums of every eighth element, then a fixed tree.
pub(crate) struct SumOfSquares<'a, E>(pub(crate) &'a [E]);

impl<E: Element> Kernel for SumOfSquares<'_, E> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        let mut acc = [0.0f64; 8];
        let (chunks, rest) = self.0.as_chunks::<8>();
        for chunk in chunks {
            for (acc, x) in acc.iter_mut().zip(chunk) {
                let x = f64::from(x.to_f32());
                *acc += x * x;
            }
        }
        for (acc, x) in acc.iter_mut().zip(rest) {
            let x = f64::from(x.to_f32());
            *acc += x * x;
        }
        ((acc[0] + acc[4]) + (acc[2] + acc[6])) + ((acc[1] + acc[5]) + (acc[3] + acc[7]))
    }
}
