//! Values of the metadata.

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant holds what its name says")]
pub enum GgufValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(GgufArray),
}

/// An array of the metadata. Its elements are of one type, and so are kept as compactly as in the file.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant holds what its name says")]
pub enum GgufArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(GgufStrings),
    Array(Vec<GgufArray>),
}

/// Strings without a piece of memory for each: a vocabulary has a hundred thousand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GgufStrings {
    text: String,
    /// Where each ends.
    ends: Vec<usize>,
}

impl GgufStrings {
    /// Puts one behind the others.
    pub fn push(&mut self, string: &str) {
        self.text.push_str(string);
        self.ends.push(self.text.len());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| &self.text[*start..*end])
    }
}

impl<S: AsRef<str>> FromIterator<S> for GgufStrings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut all = Self::default();
        strings.into_iter().for_each(|string| all.push(string.as_ref()));
        all
    }
}

/// Type numbers of the format.
pub(super) mod kind {
    pub(crate) const U8: u32 = 0;
    pub(crate) const I8: u32 = 1;
    pub(crate) const U16: u32 = 2;
    pub(crate) const I16: u32 = 3;
    pub(crate) const U32: u32 = 4;
    pub(crate) const I32: u32 = 5;
    pub(crate) const F32: u32 = 6;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const STRING: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;
    pub(crate) const U64: u32 = 10;
    pub(crate) const I64: u32 = 11;
    pub(crate) const F64: u32 = 12;
}

impl GgufValue {
    /// An integer that is not below 0, of any width.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(x) => Some(x.into()),
            Self::U16(x) => Some(x.into()),
            Self::U32(x) => Some(x.into()),
            Self::U64(x) => Some(x),
            Self::I8(x) => x.try_into().ok(),
            Self::I16(x) => x.try_into().ok(),
            Self::I32(x) => x.try_into().ok(),
            Self::I64(x) => x.try_into().ok(),
            _ => None,
        }
    }

    /// A floating-point number of either width. One of f32 becomes the shortest decimal that rounds to it, so that 1e-5 is
    /// that and not 9.99999974e-6.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(x) => x.to_string().parse().ok(),
            Self::F64(x) => Some(x),
            _ => None,
        }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(x) => Some(x),
            _ => None,
        }
    }

    /// What it is, for messages: its value, or its type and length.
    pub fn describe(&self) -> String {
        match self {
            Self::U8(x) => x.to_string(),
            Self::I8(x) => x.to_string(),
            Self::U16(x) => x.to_string(),
            Self::I16(x) => x.to_string(),
            Self::U32(x) => x.to_string(),
            Self::I32(x) => x.to_string(),
            Self::U64(x) => x.to_string(),
            Self::I64(x) => x.to_string(),
            Self::F32(x) => x.to_string(),
            Self::F64(x) => x.to_string(),
            Self::Bool(x) => x.to_string(),
            Self::String(x) => short(x),
            Self::Array(x) => x.describe(),
        }
    }
}

impl GgufArray {
    fn describe(&self) -> String {
        let (kind, len) = match self {
            Self::U8(x) => ("u8", x.len()),
            Self::I8(x) => ("i8", x.len()),
            Self::U16(x) => ("u16", x.len()),
            Self::I16(x) => ("i16", x.len()),
            Self::U32(x) => ("u32", x.len()),
            Self::I32(x) => ("i32", x.len()),
            Self::U64(x) => ("u64", x.len()),
            Self::I64(x) => ("i64", x.len()),
            Self::F32(x) => ("f32", x.len()),
            Self::F64(x) => ("f64", x.len()),
            Self::Bool(x) => ("bool", x.len()),
            Self::String(x) => ("string", x.len()),
            Self::Array(x) => ("array", x.len()),
        };
        format!("[{len} × {kind}]")
    }
}

/// The beginning of a text of a file, in quotes and without control characters.
pub(super) fn short(text: &str) -> String {
    const MOST: usize = 60;
    let cut: String = text.chars().take(MOST).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{more}")
}

macro_rules! from {
    ($($from:ty => $variant:ident),*) => {
        $(impl From<$from> for GgufValue {
            fn from(value: $from) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}

from!(u32 => U32, u64 => U64, i32 => I32, f32 => F32, bool => Bool, String => String, &str => String);
