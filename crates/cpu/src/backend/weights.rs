//! Weights arranged for inference: packing, products and look-ups.

use llamero_tensor::{DType, Shape, StoredRows, Tensor};

use crate::Cpu;
use crate::gemm::{Right, pack_rows};
use crate::quant::{Blocks, Rows};
use crate::rows::Convert;
use crate::storage::{Storage, elements, mat, produce, storage};

/// A weight as a file stores it, in panels or in its blocks.
pub(super) fn pack_stored(cpu: &Cpu, parts: &[StoredRows<'_>], shape: Shape, dtype: DType) -> Tensor {
    let rows: usize = parts.iter().map(|part| part.rows.len()).sum();
    assert!(rows == shape.rows, "pack_stored: {rows} rows do not fit {shape}");
    for part in parts {
        let bytes = part.encoding.row_bytes(shape.cols);
        let fits = part.rows.iter().all(|row| Some(row.len()) == bytes);
        assert!(fits, "pack_stored: rows of {} do not fit {shape}: they need {bytes:?} bytes", part.encoding);
    }
    let storage = if dtype == DType::Bf16 && Blocks::can_hold(parts) {
        Storage::Blocks(Blocks::new(&cpu.exec, parts, shape.cols))
    } else {
        with_type!(dtype, E => Storage::Panels(pack_rows::<E>(&cpu.exec, parts, shape)))
    };
    Tensor::from_storage(shape, dtype, storage)
}

/// `linear` with results in `dtype`.
pub(super) fn linear(cpu: &Cpu, x: &Tensor, w: &Tensor, dtype: DType) -> Tensor {
    fits!("linear", x.cols() == w.cols() && x.dtype() == w.dtype(), x, w);
    if let (Some(ahead), Some(data)) = (cpu.exec.ahead(), first_bytes(w)) {
        ahead.begin(data);
    }
    let b = match storage("linear", w) {
        Storage::Blocks(blocks) => {
            let rows = with_type!(x.dtype(), E => Rows::new(&cpu.exec, elements::<E>("linear", x), x.cols()));
            let shape = Shape::new(x.rows(), w.rows());
            return with_type!(dtype, E => {
                produce::<E>(&cpu.exec, shape, |out| blocks.product(&cpu.exec, &rows, out))
            });
        }
        Storage::Panels(panels) => Right::Panels(panels),
        _ => Right::Mat(mat("linear", w).t()),
    };
    cpu.product((x.rows(), w.rows(), x.cols()), mat("linear", x), b, dtype)
}

/// Rows of a packed table.
pub(super) fn embed(cpu: &Cpu, table: &Tensor, ids: &[u32]) -> Tensor {
    let (shape, cols) = (Shape::new(ids.len(), table.cols()), table.cols().max(1));
    let ns = shape.elements() as f64 * 2.0;
    with_type!(table.dtype(), E => produce::<E>(&cpu.exec, shape, |out| {
        cpu.exec.chunks(out, cols, ns, |i, out| {
            let row = ids[i] as usize;
            match storage("embed", table) {
                Storage::Panels(panels) => panels.unpack(row, out),
                Storage::Blocks(blocks) => {
                    let mut values = cpu.exec.memory.stale::<f32>(cols);
                    blocks.decode(row, &mut values);
                    cpu.exec.run(Convert { x: &values[..], out });
                }
                _ => unreachable!("the caller has looked"),
            }
        });
    }))
}

/// The bytes of a packed weight that are read first.
pub(super) fn first_bytes(w: &Tensor) -> Option<&[u8]> {
    match w.storage()? {
        Storage::Panels(panels) => Some(bytemuck::cast_slice(&panels.data)),
        Storage::Blocks(blocks) => Some(blocks.first()),
        _ => None,
    }
}
