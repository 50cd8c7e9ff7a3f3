//! The op suite: what every backend must pass, in groups that a backend's tests can call one by one.
//!
//! **Tolerances.** The reference is [`Oracle::exact`](super::Oracle::exact) in `f64` on the inputs as the dtype holds
//! them. A result may differ from it by what rounding can do, element by element, and by no more:
//! - a sum of `n` products accumulated in `f32` in any order is off by at most `(n + c) · 2⁻²⁴ · Σ |aᵢ bᵢ|`
//!   (Higham 2002, §3.1), so the tolerance is relative to the *magnitude sum*, the same op on absolute values, and not
//!   to the result, which may be small by cancellation;
//! - storing a result in a dtype with unit roundoff `u` (f32 `2⁻²⁴`, bf16 `2⁻⁸`) adds `u · |result|`;
//! - a softmax of scores off by `δ` is off by the factor `e^{2δ}`; probabilities and score gradients may be rounded to
//!   the dtype once before they are multiplied (that is what makes bf16 matrix products possible), which adds `u`
//!   relative to the magnitude sum;
//! - `exp`, `1/√` and division are taken to be good to 8 units of `f32`.
//!
//! What the trait promises exactly (row invariance, packed = separate documents, paged = whole attention, copies,
//! row order of `embed_backward`) is compared bit for bit.

pub mod attention;
mod attention_bounds;
mod check;
pub mod contract;
pub mod elementwise;
pub mod gathered;
pub mod head;
pub mod linear;
pub mod norm;
pub mod optimizer;
pub mod paged;
pub mod rope;
pub mod storage;
pub mod stored;

pub use contract::fingerprint;
pub use rope::table as rope_table;

use crate::Backend;

/// A group of the suite; panics at the first difference, naming op, dtype, shape, element, values and tolerance.
pub type Group = fn(&dyn Backend);

/// Every group with its name.
pub const GROUPS: &[(&str, Group)] = &[
    ("storage::upload_download", storage::upload_download),
    ("storage::cast", storage::cast),
    ("storage::copy_rows", storage::copy_rows),
    ("storage::memory", storage::memory),
    ("elementwise::add", elementwise::add),
    ("elementwise::swiglu", elementwise::swiglu),
    ("elementwise::swiglu_backward", elementwise::swiglu_backward),
    ("elementwise::embed", elementwise::embed),
    ("elementwise::row_invariance", elementwise::row_invariance),
    ("linear::forward", linear::forward),
    ("linear::backward_input", linear::backward_input),
    ("linear::backward_weight", linear::backward_weight),
    ("linear::row_invariance", linear::row_invariance),
    ("linear::non_finite", linear::non_finite),
    ("stored::forward", stored::forward),
    ("stored::row_invariance", stored::row_invariance),
    ("stored::head", stored::head),
    ("stored::non_finite", stored::non_finite),
    ("norm::forward", norm::forward),
    ("norm::backward", norm::backward),
    ("norm::row_invariance", norm::row_invariance),
    ("rope::forward_and_backward", rope::forward_and_backward),
    ("rope::identity", rope::identity),
    ("attention::forward", attention::forward),
    ("attention::backward", attention::backward),
    ("attention::large_scores", attention::large_scores),
    ("attention::packed_documents", attention::packed_documents),
    ("attention::causal", attention::causal),
    ("paged::attention", paged::attention),
    ("paged::leftovers", paged::leftovers),
    ("paged::non_finite", paged::non_finite),
    ("gathered::attention_of_parts", gathered::attention_of_parts),
    ("gathered::concat_columns", gathered::concat_columns),
    ("head::forward", head::forward),
    ("head::backward", head::backward),
    ("head::with_gradient", head::with_gradient),
    ("head::z_loss", head::z_loss),
    ("head::of_slice", head::of_slice),
    ("head::large_logits", head::large_logits),
    ("head::no_target", head::no_target),
    ("head::row_invariance", head::row_invariance),
    ("head::non_finite", head::non_finite),
    ("optimizer::adamw", optimizer::adamw),
    ("optimizer::split", optimizer::split),
    ("optimizer::adamw_split", optimizer::adamw_split),
    ("optimizer::sum_of_squares", optimizer::sum_of_squares),
    ("storage::checksum", storage::checksum),
    ("contract::shapes_that_do_not_fit", contract::shapes_that_do_not_fit),
    ("contract::shared_storage", contract::shared_storage),
];

/// Runs every group. Nobody else may use `backend` meanwhile: the group on memory counts its bytes.
pub fn run(backend: &dyn Backend) {
    for (_, group) in GROUPS {
        group(backend);
    }
}
