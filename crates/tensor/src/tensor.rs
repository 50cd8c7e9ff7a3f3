//! A two-dimensional array with opaque storage.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// Brain floating point: the upper 16 bits of an `f32`, rounded to nearest even.
    Bf16,
}

impl DType {
    /// Size of one element in bytes.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 => 2,
        }
    }

    /// The name used in recipes and on the command line: `f32` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Rows and columns; vectors are `[1, n]`, per-token scalars `[T, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns; elements of a row are contiguous.
    pub cols: usize,
}

impl Shape {
    /// A shape of `rows` by `cols`.
    pub const fn new(rows: usize, cols: usize) -> Self {
        Self { rows, cols }
    }

    /// Number of elements.
    pub const fn elements(self) -> usize {
        self.rows * self.cols
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.rows, self.cols)
    }
}

/// A row-major `[rows, cols]` array. Cloning shares the storage; storage is only written while it is not shared.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    dtype: DType,
    storage: Arc<dyn Any + Send + Sync>,
}

impl Tensor {
    /// Wraps a backend's storage. Only backends call this.
    pub fn from_storage<S: Any + Send + Sync>(shape: Shape, dtype: DType, storage: S) -> Self {
        Self { shape, dtype, storage: Arc::new(storage) }
    }

    /// Rows and columns.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.shape.cols
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether another tensor shares the storage, so that it cannot be written.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.storage) > 1
    }

    /// The backend's storage, or `None` when the tensor belongs to another backend.
    pub fn storage<S: Any + Send + Sync>(&self) -> Option<&S> {
        self.storage.downcast_ref()
    }

    /// The backend's storage for writing, or `None` when it is shared or belongs to another backend.
    pub fn storage_mut<S: Any + Send + Sync>(&mut self) -> Option<&mut S> {
        Arc::get_mut(&mut self.storage)?.downcast_mut()
    }
}

/// What [`Backend::split`](crate::Backend::split) leaves of f32 values beside their bf16 half: 16 bits an element that
/// only the backend can read. Never shared.
pub struct LowHalves {
    shape: Shape,
    storage: Box<dyn Any + Send + Sync>,
}

impl LowHalves {
    /// Wraps a backend's storage. Only backends call this.
    pub fn from_storage<S: Any + Send + Sync>(shape: Shape, storage: S) -> Self {
        Self { shape, storage: Box::new(storage) }
    }

    /// Rows and columns.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The backend's storage, or `None` when it belongs to another backend.
    pub fn storage<S: Any + Send + Sync>(&self) -> Option<&S> {
        self.storage.downcast_ref()
    }

    /// The backend's storage for writing, or `None` when it belongs to another backend.
    pub fn storage_mut<S: Any + Send + Sync>(&mut self) -> Option<&mut S> {
        self.storage.downcast_mut()
    }
}

impl fmt::Debug for LowHalves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LowHalves({})", self.shape)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {})", self.dtype, self.shape)
    }
}
