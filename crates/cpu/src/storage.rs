//! What a tensor of this backend holds, and checked access to it.

use std::borrow::Cow;

use half::bf16;
use llamero_tensor::{KvLayout, LowHalves, Shape, Tensor};

use crate::attention::Page;
use crate::exec::Exec;
use crate::gemm::{Data, Mat, Panels};
use crate::math::Element;
use crate::memory::Buffer;
use crate::quant::Blocks;

/// Storage of a tensor.
pub(crate) enum Storage {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
    /// A weight from `pack`.
    Panels(Panels),
    /// A weight that `pack_stored` keeps in its blocks.
    Blocks(Blocks),
    /// Keys and values of some positions.
    Page(Page),
}

/// An element type with its place in [`Storage`].
pub(crate) trait Stored: Element {
    fn wrap(buffer: Buffer<Self>) -> Storage;
    fn data(x: &[Self]) -> Data<'_>;
    fn slice(storage: &mut Storage) -> Option<&mut [Self]>;
}

impl Stored for f32 {
    fn wrap(buffer: Buffer<f32>) -> Storage {
        Storage::F32(buffer)
    }

    fn data(x: &[f32]) -> Data<'_> {
        Data::F32(x)
    }

    fn slice(storage: &mut Storage) -> Option<&mut [f32]> {
        if let Storage::F32(x) = storage { Some(x) } else { None }
    }
}

impl Stored for bf16 {
    fn wrap(buffer: Buffer<bf16>) -> Storage {
        Storage::Bf16(buffer)
    }

    fn data(x: &[bf16]) -> Data<'_> {
        Data::Bf16(x)
    }

    fn slice(storage: &mut Storage) -> Option<&mut [bf16]> {
        if let Storage::Bf16(x) = storage { Some(x) } else { None }
    }
}

/// Evaluates an expression with the slice inside a [`Data`], whatever its type.
macro_rules! typed {
    ($data:expr, $x:ident => $body:expr) => {
        match $data {
            $crate::gemm::Data::F32($x) => $body,
            $crate::gemm::Data::Bf16($x) => $body,
        }
    };
}
pub(crate) use typed;

/// The storage, if it is this backend's.
pub(crate) fn storage<'a>(op: &str, x: &'a Tensor) -> &'a Storage {
    x.storage().unwrap_or_else(|| panic!("{op}: {x:?} belongs to another backend"))
}

/// The elements of a tensor that is not packed.
pub(crate) fn data<'a>(op: &str, x: &'a Tensor) -> Data<'a> {
    match storage(op, x) {
        Storage::F32(x) => Data::F32(x),
        Storage::Bf16(x) => Data::Bf16(x),
        Storage::Page(_) => panic!("{op}: {x:?} is a page of keys and values"),
        Storage::Panels(_) | Storage::Blocks(_) => {
            panic!("{op}: {x:?} is packed and only fits `linear`, `linear_cross_entropy` and `embed`")
        }
    }
}

/// The elements of a tensor that must be f32.
pub(crate) fn f32s<'a>(op: &str, x: &'a Tensor) -> &'a [f32] {
    match data(op, x) {
        Data::F32(x) => x,
        Data::Bf16(_) => panic!("{op}: {x:?} must be f32"),
    }
}

/// The elements of a tensor that must be of type `E`.
pub(crate) fn elements<'a, E: Stored>(op: &str, x: &'a Tensor) -> &'a [E] {
    typed!(data(op, x), slice => bytemuck::try_cast_slice(slice).ok().filter(|_| x.dtype() == E::DTYPE))
        .unwrap_or_else(|| panic!("{op}: {x:?} must be {}", E::DTYPE))
}

/// The elements of a tensor that is written.
pub(crate) fn elements_mut<'a, E: Stored>(op: &str, x: &'a mut Tensor) -> &'a mut [E] {
    let what = format!("{x:?}");
    let storage =
        x.storage_mut().unwrap_or_else(|| panic!("{op}: {what} is shared or belongs to another backend"));
    E::slice(storage).unwrap_or_else(|| panic!("{op}: {what} must be {} and not packed", E::DTYPE))
}

/// A page of keys and values.
pub(crate) fn page<'a>(op: &str, x: &'a Tensor, layout: KvLayout) -> &'a Page {
    match storage(op, x) {
        Storage::Page(page) if page.fits(layout, x.dtype()) => page,
        _ => panic!("{op}: {x:?} is no page of {layout:?}"),
    }
}

/// The f32 elements of a tensor that is added to, and whether they are zeros that need not be read: then they have any
/// value, and the caller writes them all.
pub(crate) fn accumulator<'a>(op: &str, x: &'a mut Tensor) -> (&'a mut [f32], bool) {
    let zeros = match x.storage_mut() {
        Some(Storage::F32(x)) => x.replace_zeros(),
        _ => false,
    };
    (elements_mut(op, x), zeros)
}

/// The elements of the lower halves of master weights.
pub(crate) fn low_halves<'a>(op: &str, x: &'a LowHalves) -> &'a [i16] {
    x.storage::<Buffer<i16>>().unwrap_or_else(|| panic!("{op}: {x:?} belong to another backend"))
}

/// The elements of the lower halves of master weights, for writing.
pub(crate) fn low_halves_mut<'a>(op: &str, x: &'a mut LowHalves) -> &'a mut [i16] {
    let what = format!("{x:?}");
    x.storage_mut::<Buffer<i16>>().unwrap_or_else(|| panic!("{op}: {what} belong to another backend"))
}

/// A tensor as the bytes of its elements.
pub(crate) struct Raw(pub(crate) Tensor);

impl AsRef<[u8]> for Raw {
    fn as_ref(&self) -> &[u8] {
        typed!(data("read_raw", &self.0), x => bytemuck::cast_slice(x))
    }
}

/// Bytes as elements; a copy where they lie unevenly.
pub(crate) fn aligned<'a, E: Stored>(op: &str, bytes: &'a [u8], shape: Shape) -> Cow<'a, [E]> {
    let (found, expected) = (bytes.len(), shape.elements() * size_of::<E>());
    assert!(found == expected, "{op}: {found} bytes do not fit {shape} of {}", E::DTYPE);
    match bytemuck::try_cast_slice(bytes) {
        Ok(x) => Cow::Borrowed(x),
        Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(bytes)),
    }
}

/// A tensor as a matrix.
pub(crate) fn mat<'a>(op: &str, x: &'a Tensor) -> Mat<'a> {
    Mat::new(data(op, x), x.cols())
}

/// Makes a tensor the only one that holds its elements, so that they can be overwritten.
pub(crate) fn own<E: Stored>(exec: &Exec, op: &str, x: &mut Tensor) {
    if x.is_shared() {
        let shared = elements::<E>(op, x);
        *x = produce::<E>(exec, x.shape(), |out| out.copy_from_slice(shared));
    }
}

/// A tensor with whatever values its block held, filled by `fill`, which must write every element.
pub(crate) fn produce<E: Stored>(exec: &Exec, shape: Shape, fill: impl FnOnce(&mut [E])) -> Tensor {
    let mut buffer = exec.memory.stale::<E>(shape.elements());
    fill(&mut buffer);
    Tensor::from_storage(shape, E::DTYPE, E::wrap(buffer))
}
