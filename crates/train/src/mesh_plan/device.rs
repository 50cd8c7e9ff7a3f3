//! What a rank runs on.

use serde::{Deserialize, Serialize};

use crate::Kernels;

/// Bytes a second that one rank sends to the others of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Tensor parallel.
    pub tp: f64,
    /// Context parallel.
    pub cp: f64,
    /// Pipeline.
    pub pp: f64,
    /// Data parallel.
    pub dp: f64,
}

/// A device, as far as a plan needs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Of them, what programs, libraries and drivers keep for themselves.
    pub reserved_bytes: u64,
    /// Operations a second at most, in the dtype of the computation.
    pub peak_flops: f64,
    /// What one rank sends, where that is known.
    pub bandwidth: Option<Bandwidth>,
    /// The CPU's kernels; other devices are taken to need no work space to speak of.
    #[serde(skip)]
    pub kernels: Option<Kernels>,
}

impl Device {
    /// One NVIDIA H100 SXM of 80 GB in a server of eight: 989.5 TFLOP/s of dense bf16, NVLink of 450 GB/s in each direction
    /// within the server, and 400 Gb/s of network a GPU between servers. Tensor parallelism stays within a server; the
    /// others cross. 2 GB are set aside for the driver and the buffers of its communication library, which is a guess.
    pub fn h100() -> Self {
        let (server, network) = (450e9, 50e9);
        Self {
            name: "H100 80 GB".into(),
            memory_bytes: 80_000_000_000,
            reserved_bytes: 2_000_000_000,
            peak_flops: 989.5e12,
            bandwidth: Some(Bandwidth { tp: server, cp: network, pp: network, dp: network }),
            kernels: None,
        }
    }

    /// A rank on some threads of this machine's processor, with its share of memory and of the processor's speed. What ranks of
    /// threads send each other they share or copy; how long that takes is not known.
    pub fn cpu(kernels: Kernels, memory_bytes: u64, peak_flops: f64) -> Self {
        let s = if kernels.threads == 1 { "" } else { "s" };
        Self {
            name: format!("CPU, {} thread{s}", kernels.threads),
            memory_bytes,
            reserved_bytes: 0,
            peak_flops,
            bandwidth: None,
            kernels: Some(kernels),
        }
    }
}
