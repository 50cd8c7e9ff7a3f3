//! Writes what `torch.save` writes, as far as tests need it: a zip archive of stored entries with a pickle.

/// A tensor to write.
#[derive(Clone, Debug)]
pub(crate) struct TorchTensor {
    pub(crate) name: String,
    /// `Float`, `Half` or `BFloat16`, or whatever a test wants to see refused.
    pub(crate) storage: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) stride: Vec<usize>,
    pub(crate) offset: usize,
    /// Elements that the pickle says the storage has.
    pub(crate) elements: usize,
    pub(crate) data: Vec<u8>,
}

impl TorchTensor {
    /// Of f32 values.
    pub(crate) fn new(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let mut stride = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            stride[i - 1] = stride[i] * shape[i];
        }
        Self {
            name: name.into(),
            storage: "Float".into(),
            shape: shape.into(),
            stride,
            offset: 0,
            elements: values.len(),
            data: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

/// Instructions of a pickle.
pub(crate) fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

pub(crate) fn integer(out: &mut Vec<u8>, n: usize) {
    if let Ok(n) = i32::try_from(n) {
        out.push(b'J');
        out.extend(n.to_le_bytes());
    } else {
        out.extend([0x8a, 8]);
        out.extend((n as u64).to_le_bytes());
    }
}

pub(crate) fn global(out: &mut Vec<u8>, module: &str, name: &str) {
    out.extend(format!("c{module}\n{name}\n").as_bytes());
}

fn integers(out: &mut Vec<u8>, list: &[usize]) {
    out.push(b'(');
    list.iter().for_each(|n| integer(out, *n));
    out.push(b't');
}

fn tensor(out: &mut Vec<u8>, tensor: &TorchTensor, key: usize) {
    text(out, &tensor.name);
    global(out, "torch._utils", "_rebuild_tensor_v2");
    out.extend(b"((");
    text(out, "storage");
    global(out, "torch", &format!("{}Storage", tensor.storage));
    text(out, &key.to_string());
    text(out, "cpu");
    integer(out, tensor.elements);
    out.extend(b"tQ");
    integer(out, tensor.offset);
    integers(out, &tensor.shape);
    integers(out, &tensor.stride);
    out.push(0x89);
    global(out, "collections", "OrderedDict");
    out.extend(b")RtR");
}

/// The pickle of a dict of tensors; of a module's `state_dict`, with its attribute, where `module` says so.
pub(crate) fn pickle(tensors: &[TorchTensor], module: bool) -> Vec<u8> {
    let mut out = vec![0x80, 2];
    if module {
        global(&mut out, "collections", "OrderedDict");
        out.extend(b")Rq\x00");
    } else {
        out.extend(b"}q\x00");
    }
    out.push(b'(');
    for (key, t) in tensors.iter().enumerate() {
        tensor(&mut out, t, key);
    }
    out.push(b'u');
    if module {
        out.extend(b"}");
        text(&mut out, "_metadata");
        out.extend(b"}sb");
    }
    out.push(b'.');
    out
}

/// A checkpoint.
pub(crate) fn checkpoint(tensors: &[TorchTensor]) -> Vec<u8> {
    archive(&pickle(tensors, false), tensors)
}

/// A checkpoint with a pickle of its own.
pub(crate) fn archive(pickle: &[u8], tensors: &[TorchTensor]) -> Vec<u8> {
    let mut entries =
        vec![("c/data.pkl".to_owned(), pickle.to_vec()), ("c/byteorder".into(), b"little".to_vec())];
    for (key, t) in tensors.iter().enumerate() {
        entries.push((format!("c/data/{key}"), t.data.clone()));
    }
    zip(&entries, false)
}

/// A zip archive of stored entries; `wide` puts sizes and offsets into zip64 records.
pub(crate) fn zip(entries: &[(String, Vec<u8>)], wide: bool) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    let short = |n: usize| if wide { u32::MAX } else { n as u32 }.to_le_bytes();
    for (name, data) in entries {
        let offset = out.len();
        let lengths = [(name.len() as u16).to_le_bytes(), 0u16.to_le_bytes()].concat();
        let sizes = [short(data.len()), short(data.len())].concat();
        out.extend([b"PK\x03\x04".as_slice(), &[0; 14], &sizes, &lengths, name.as_bytes(), data].concat());
        let extra = if wide {
            let fields = [data.len(), data.len(), offset].map(|n| (n as u64).to_le_bytes()).concat();
            [&[1, 0, 24, 0], fields.as_slice()].concat()
        } else {
            Vec::new()
        };
        let lengths = [name.len() as u16, extra.len() as u16].map(u16::to_le_bytes).concat();
        directory.extend(
            [b"PK\x01\x02".as_slice(), &[0; 16], &sizes, &lengths, &[0; 10], &short(offset)].concat(),
        );
        directory.extend([name.as_bytes(), &extra].concat());
    }
    let (start, count) = (out.len(), entries.len());
    out.extend(&directory);
    if wide {
        let at = out.len() as u64;
        let counts = [count, count, directory.len(), start].map(|n| (n as u64).to_le_bytes()).concat();
        out.extend([b"PK\x06\x06".as_slice(), &44u64.to_le_bytes(), &[0; 12], &counts].concat());
        out.extend([b"PK\x06\x07".as_slice(), &[0; 4], &at.to_le_bytes(), &1u32.to_le_bytes()].concat());
    }
    let counts = [count as u16, count as u16].map(u16::to_le_bytes).concat();
    let place = [short(directory.len()), short(start)].concat();
    out.extend([b"PK\x05\x06".as_slice(), &[0; 4], &counts, &place, &[0; 2]].concat());
    out
}
