//! A file laid out by hand, so that it can be wrong in every way.

/// A metadata value, as the file has it.
#[derive(Clone)]
pub(crate) struct Value {
    kind: u32,
    bytes: Vec<u8>,
}

pub(crate) fn u32(x: u32) -> Value {
    Value { kind: 4, bytes: x.to_le_bytes().into() }
}

pub(crate) fn f32(x: f32) -> Value {
    Value { kind: 6, bytes: x.to_le_bytes().into() }
}

pub(crate) fn string(text: impl AsRef<[u8]>) -> Value {
    Value { kind: 8, bytes: prefixed(text.as_ref()) }
}

pub(crate) fn array(kind: u32, count: u64, elements: &[u8]) -> Value {
    Value { kind: 9, bytes: [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat() }
}

pub(crate) fn any(kind: u32, bytes: &[u8]) -> Value {
    Value { kind, bytes: bytes.into() }
}

pub(crate) fn prefixed(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// A tensor of the table.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// As in the file: columns first.
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) offset: u64,
}

/// A file.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) counts: Option<(u64, u64)>,
    pub(crate) entries: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) data: Vec<u8>,
}

impl Raw {
    /// A valid Llama of one layer, all in F32.
    pub(crate) fn llama() -> Self {
        let entries = [
            ("general.architecture", string("llama")),
            ("llama.block_count", u32(1)),
            ("llama.context_length", u32(16)),
            ("llama.embedding_length", u32(8)),
            ("llama.feed_forward_length", u32(12)),
            ("llama.attention.head_count", u32(2)),
            ("llama.attention.head_count_kv", u32(1)),
            ("llama.attention.layer_norm_rms_epsilon", f32(1e-5)),
        ];
        let shapes: [(&str, &[u64]); 12] = [
            ("token_embd", &[8, 5]),
            ("blk.0.attn_norm", &[8]),
            ("blk.0.attn_q", &[8, 8]),
            ("blk.0.attn_k", &[8, 4]),
            ("blk.0.attn_v", &[8, 4]),
            ("blk.0.attn_output", &[8, 8]),
            ("blk.0.ffn_norm", &[8]),
            ("blk.0.ffn_gate", &[8, 12]),
            ("blk.0.ffn_up", &[8, 12]),
            ("blk.0.ffn_down", &[12, 8]),
            ("output_norm", &[8]),
            ("output", &[8, 5]),
        ];
        let mut raw = Self {
            magic: *b"GGUF",
            version: 3,
            counts: None,
            entries: entries.map(|(key, value)| (key.into(), value)).into(),
            tensors: Vec::new(),
            data: Vec::new(),
        };
        for (name, dims) in shapes {
            raw.add(&format!("{name}.weight"), dims);
        }
        raw
    }

    /// A tensor of ones at the end.
    pub(crate) fn add(&mut self, name: &str, dims: &[u64]) {
        let offset = self.data.len() as u64;
        self.tensors.push(Tensor { name: name.into(), dims: dims.into(), kind: 0, offset });
        for _ in 0..dims.iter().product() {
            self.data.extend(1.0f32.to_le_bytes());
        }
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.entries.retain(|(k, _)| k != key);
        self.entries.push((key.into(), value));
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (tensors, entries) =
            self.counts.unwrap_or((self.tensors.len() as u64, self.entries.len() as u64));
        let mut out = Vec::from(self.magic);
        out.extend(self.version.to_le_bytes());
        out.extend(tensors.to_le_bytes());
        out.extend(entries.to_le_bytes());
        for (key, value) in &self.entries {
            out.extend(prefixed(key.as_bytes()));
            out.extend(value.kind.to_le_bytes());
            out.extend(&value.bytes);
        }
        for tensor in &self.tensors {
            out.extend(prefixed(tensor.name.as_bytes()));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}
