//! The pickle inside a file of `torch.save`, read by a machine that can build nothing but dictionaries, tuples, lists, plain
//! values and descriptions of tensors.
//!
//! A pickle is a program, and in Python it may name any function and call it. This machine knows the few names in [`Global`];
//! any other is an error with the name in it, and so is every instruction that would call, set attributes or look up
//! extensions elsewhere. Nothing recurses, and what is kept is bounded.

use std::collections::BTreeMap;

use llamero_tensor::Encoding;

/// A tensor as the pickle describes it: a part of one of the storages beside it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Description<'p> {
    /// How its elements are stored.
    pub(super) encoding: Encoding,
    /// Name of the storage.
    pub(super) storage: &'p str,
    /// Elements of the storage.
    pub(super) storage_elements: u64,
    /// First element.
    pub(super) offset: u64,
    /// Its shape.
    pub(super) shape: Vec<u64>,
    /// Elements from one index to the next, for each dimension.
    pub(super) stride: Vec<u64>,
}

impl Description<'_> {
    /// Number of elements, if that is a number.
    pub(super) fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |product, n| product.checked_mul(*n))
    }

    /// Whether elements follow one another in row-major order.
    pub(super) fn is_contiguous(&self) -> bool {
        let mut step = Some(1u64);
        for (n, stride) in self.shape.iter().zip(&self.stride).rev() {
            if *n != 1 && Some(*stride) != step {
                return false;
            }
            step = step.and_then(|s| s.checked_mul(*n));
        }
        true
    }
}

/// Values, depth of the stack, and entries of the memo: real checkpoints have some ten thousand.
const MOST_VALUES: usize = 1 << 20;
/// Dimensions of a tensor.
const MOST_DIMENSIONS: usize = 8;
/// Bytes of a str. All are names; without a limit a few bytes that recall a long one could ask for any memory.
const MOST_TEXT: usize = 4096;

/// The names that may occur.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    Storage(Encoding),
}

impl Global {
    fn named(module: &str, name: &str) -> Result<Self, String> {
        match (module, name) {
            ("collections", "OrderedDict") => Ok(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Self::RebuildTensor),
            ("torch", "FloatStorage") => Ok(Self::Storage(Encoding::F32)),
            ("torch", "HalfStorage") => Ok(Self::Storage(Encoding::F16)),
            ("torch", "BFloat16Storage") => Ok(Self::Storage(Encoding::Bf16)),
            _ => Err(format!(
                "it names `{module}.{name}`, which is refused: only tensors of F32, F16 and BF16 are built from it, and nothing \
                 in it is ever run"
            )),
        }
    }
}

/// Index of a value in the machine.
type Id = usize;

#[derive(Clone, Debug, PartialEq)]
enum Value<'p> {
    Nothing,
    Bool,
    Integer(i64),
    Number,
    Text(&'p str),
    Tuple(Vec<Id>),
    List,
    /// Items, and whether it is an `OrderedDict`.
    Dict(Vec<(Id, Id)>, bool),
    Global(Global),
    Storage {
        encoding: Encoding,
        key: &'p str,
        elements: u64,
    },
    Tensor(Description<'p>),
}

impl Value<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Value::Nothing => "None",
            Value::Bool => "a bool",
            Value::Integer(_) => "an int",
            Value::Number => "a float",
            Value::Text(_) => "a str",
            Value::Tuple(_) => "a tuple",
            Value::List => "a list",
            Value::Dict(..) => "a dict",
            Value::Global(_) => "a class or function",
            Value::Storage { .. } => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}

/// The tensors of the dictionary that the pickle holds, by name; or what is wrong with it.
pub(super) fn tensors(pickle: &[u8]) -> Result<BTreeMap<&str, Description<'_>>, String> {
    let mut machine = Machine { rest: pickle, ..Machine::default() };
    let root = loop {
        let opcode = machine.byte()?;
        if opcode == b'.' {
            break machine.pop()?;
        }
        let at = pickle.len() - machine.rest.len() - 1;
        machine.step(opcode).map_err(|reason| format!("pickle, byte {at}: {reason}"))?;
    };
    let Value::Dict(items, _) = &machine.values[root] else {
        return Err(format!("it holds {}, not a dict of tensors", machine.values[root].kind()));
    };
    let mut tensors = BTreeMap::new();
    for &(key, value) in items {
        match (&machine.values[key], &machine.values[value]) {
            (Value::Text(name), Value::Tensor(tensor)) => {
                if tensors.insert(*name, tensor.clone()).is_some() {
                    return Err(format!("`{name}` is in it twice"));
                }
            }
            (Value::Text(name), other) => {
                return Err(format!("`{name}` in it is {}, not a tensor", other.kind()));
            }
            (other, _) => return Err(format!("a key of its dict is {}, not a str", other.kind())),
        }
    }
    Ok(tensors)
}

#[derive(Default)]
struct Machine<'p> {
    rest: &'p [u8],
    values: Vec<Value<'p>>,
    stack: Vec<Id>,
    /// Depths of the stack that are marked.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
}

impl<'p> Machine<'p> {
    fn bytes(&mut self, count: usize) -> Result<&'p [u8], String> {
        let cut = || format!("it is cut off: {count} bytes expected, {} left", self.rest.len());
        let (front, rest) = self.rest.split_at_checked(count).ok_or_else(cut)?;
        self.rest = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn length(&mut self) -> Result<usize, String> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn text(&mut self, length: usize) -> Result<&'p str, String> {
        let bytes = self.bytes(length)?;
        if length > MOST_TEXT {
            return Err(format!("it has a str of {length} bytes; at most {MOST_TEXT} are read"));
        }
        std::str::from_utf8(bytes).map_err(|_| "a str in it is not UTF-8".into())
    }

    fn line(&mut self) -> Result<&'p str, String> {
        let end = self.rest.iter().position(|b| *b == b'\n').ok_or("a name in it is cut off")?;
        let line = self.text(end)?;
        self.bytes(1)?;
        Ok(line)
    }

    fn push_id(&mut self, id: Id) -> Result<(), String> {
        if self.stack.len() >= MOST_VALUES {
            return Err(format!("its stack has more than {MOST_VALUES} values"));
        }
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, value: Value<'p>) -> Result<(), String> {
        if self.values.len() >= MOST_VALUES {
            return Err(format!("it makes more than {MOST_VALUES} values"));
        }
        self.values.push(value);
        self.push_id(self.values.len() - 1)
    }

    /// Takes the top of the stack; a mark is not passed.
    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("it takes a value that is not there".into());
        }
        self.stack.pop().ok_or_else(|| "it takes a value that is not there".into())
    }

    /// Takes everything above the last mark, and the mark.
    fn pop_marked(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("it goes back to a mark that is not there")?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, count: usize) -> Result<(), String> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push(Value::Tuple(items))
    }

    fn top(&self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(id) if self.stack.len() > floor => Ok(*id),
            _ => Err("it looks at a value that is not there".into()),
        }
    }

    fn remember(&mut self, at: u32) -> Result<(), String> {
        if self.memo.len() >= MOST_VALUES {
            return Err(format!("it remembers more than {MOST_VALUES} values"));
        }
        self.memo.insert(at, self.top()?);
        Ok(())
    }

    fn recall(&mut self, at: u32) -> Result<(), String> {
        let id =
            *self.memo.get(&at).ok_or_else(|| format!("it recalls value {at}, which it never remembered"))?;
        self.push_id(id)
    }

    /// Carries out one instruction of protocols 2 to 5 (CPython's `pickletools`).
    fn step(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            0x80 => match self.byte()? {
                2..=5 => Ok(()),
                other => Err(format!("it is of protocol {other}; 2 to 5 can be read")),
            },
            // A frame is only a hint of lengths.
            0x95 => self.bytes(8).map(drop),
            b'(' if self.marks.len() >= MOST_VALUES => Err(format!("it has more than {MOST_VALUES} marks")),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'}' => self.push(Value::Dict(Vec::new(), false)),
            b']' => self.push(Value::List),
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85 => self.tuple(1),
            0x86 => self.tuple(2),
            0x87 => self.tuple(3),
            b't' => {
                let items = self.pop_marked()?;
                self.push(Value::Tuple(items))
            }
            b'a' | b'e' => self.append(opcode),
            b's' | b'u' => self.set_items(opcode),
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memory(opcode),
            b'c' | 0x93 | b'R' | b'Q' | b'b' => self.object(opcode),
            _ => self.plain(opcode),
        }
    }

    /// Values without parts.
    fn plain(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            b'N' => Value::Nothing,
            0x88 | 0x89 => Value::Bool,
            b'J' => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            b'K' => Value::Integer(self.byte()?.into()),
            b'M' => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            0x8a => Value::Integer(self.long()?),
            b'G' => {
                self.bytes(8)?;
                Value::Number
            }
            b'X' => {
                let length = self.length()?;
                Value::Text(self.text(length)?)
            }
            0x8c => {
                let length = self.byte()?;
                Value::Text(self.text(length.into())?)
            }
            other => {
                return Err(format!(
                    "it has instruction {}, which is refused: it builds no tensor",
                    name(other)
                ));
            }
        };
        self.push(value)
    }

    /// A little-endian integer of any length up to 64 bits.
    fn long(&mut self) -> Result<i64, String> {
        let length = self.byte()?;
        let bytes = self.bytes(length.into())?;
        if bytes.len() > 8 {
            return Err(format!("it has an integer of {length} bytes"));
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(all))
    }

    fn memory(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            b'q' => {
                let at = self.byte()?;
                self.remember(at.into())
            }
            b'r' => {
                let at = u32::from_le_bytes(self.array()?);
                self.remember(at)
            }
            0x94 => self.remember(self.memo.len() as u32),
            b'h' => {
                let at = self.byte()?;
                self.recall(at.into())
            }
            _ => {
                let at = u32::from_le_bytes(self.array()?);
                self.recall(at)
            }
        }
    }

    /// Puts values at the end of a list; nothing asks for its contents.
    fn append(&mut self, opcode: u8) -> Result<(), String> {
        if opcode == b'e' {
            self.pop_marked()?;
        } else {
            self.pop()?;
        }
        match &self.values[self.top()?] {
            Value::List => Ok(()),
            other => Err(format!("it appends to {}", other.kind())),
        }
    }

    fn set_items(&mut self, opcode: u8) -> Result<(), String> {
        let items = if opcode == b'u' {
            self.pop_marked()?
        } else {
            let (value, key) = (self.pop()?, self.pop()?);
            vec![key, value]
        };
        if !items.len().is_multiple_of(2) {
            return Err("it sets a key without a value".into());
        }
        let top = self.top()?;
        match &mut self.values[top] {
            Value::Dict(pairs, _) if pairs.len() + items.len() / 2 > MOST_VALUES => {
                Err(format!("it has a dict of more than {MOST_VALUES} items"))
            }
            Value::Dict(pairs, _) => {
                pairs.extend(items.as_chunks::<2>().0.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            other => Err(format!("it sets items of {}", other.kind())),
        }
    }

    /// Names, and the few things that are made with them.
    fn object(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(Global::named(module, name)?))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.values[module], &self.values[name]) {
                    (Value::Text(module), Value::Text(name)) => {
                        let global = Global::named(module, name)?;
                        self.push(Value::Global(global))
                    }
                    _ => Err("it names something by what is not a str".into()),
                }
            }
            b'R' => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let value = self.call(callee, arguments)?;
                self.push(value)
            }
            b'Q' => {
                let id = self.pop()?;
                let value = self.storage(id)?;
                self.push(value)
            }
            _ => {
                let state = self.pop()?;
                // Modules leave version numbers as an attribute of their OrderedDict; nothing asks for them.
                match (&self.values[self.top()?], &self.values[state]) {
                    (Value::Dict(_, true), Value::Dict(..)) => Ok(()),
                    (other, _) => Err(format!("it sets attributes of {}, which is refused", other.kind())),
                }
            }
        }
    }

    fn items(&self, id: Id) -> Result<&[Id], String> {
        match &self.values[id] {
            Value::Tuple(items) => Ok(items),
            other => Err(format!("a tuple is expected where it has {}", other.kind())),
        }
    }

    fn call(&self, callee: Id, arguments: Id) -> Result<Value<'p>, String> {
        let arguments = self.items(arguments)?;
        match &self.values[callee] {
            Value::Global(Global::OrderedDict) if arguments.is_empty() => Ok(Value::Dict(Vec::new(), true)),
            Value::Global(Global::RebuildTensor) => self.tensor(arguments).map(Value::Tensor),
            Value::Global(other) => Err(format!("it calls {other:?} with {} arguments", arguments.len())),
            other => Err(format!("it calls {}, which is refused", other.kind())),
        }
    }

    /// `("storage", type, key, device, elements)`.
    fn storage(&self, id: Id) -> Result<Value<'p>, String> {
        let other = "it has a persistent id that is no storage of F32, F16 or BF16";
        let parts: &[Id; 5] = self.items(id)?.try_into().map_err(|_| other)?;
        match parts.map(|id| &self.values[id]) {
            [
                Value::Text("storage"),
                Value::Global(Global::Storage(encoding)),
                Value::Text(key),
                Value::Text(_),
                Value::Integer(elements),
            ] => {
                let elements =
                    u64::try_from(*elements).map_err(|_| format!("a storage of {elements} elements"))?;
                Ok(Value::Storage { encoding: *encoding, key, elements })
            }
            _ => Err(other.into()),
        }
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks[, metadata])`.
    fn tensor(&self, arguments: &[Id]) -> Result<Description<'p>, String> {
        let [storage, offset, shape, stride, rest @ ..] = arguments else {
            return Err(format!("a tensor of {} arguments", arguments.len()));
        };
        let Value::Storage { encoding, key, elements } = &self.values[*storage] else {
            return Err(format!("a tensor over {}, not a storage", self.values[*storage].kind()));
        };
        if !(2..=3).contains(&rest.len()) {
            return Err(format!("a tensor of {} arguments", arguments.len()));
        }
        let (shape, stride) = (self.items(*shape)?, self.items(*stride)?);
        if shape.len() != stride.len() || shape.len() > MOST_DIMENSIONS {
            return Err(format!("a tensor of {} dimensions and {} strides", shape.len(), stride.len()));
        }
        let (shape, stride) = (self.counts(shape)?, self.counts(stride)?);
        Ok(Description {
            encoding: *encoding,
            storage: key,
            storage_elements: *elements,
            offset: self.count(*offset)?,
            shape,
            stride,
        })
    }

    fn counts(&self, ids: &[Id]) -> Result<Vec<u64>, String> {
        ids.iter().map(|id| self.count(*id)).collect()
    }

    fn count(&self, id: Id) -> Result<u64, String> {
        match &self.values[id] {
            Value::Integer(n) => u64::try_from(*n).map_err(|_| format!("a length or offset of {n}")),
            other => Err(format!("an int is expected where it has {}", other.kind())),
        }
    }
}

/// CPython's name of an instruction that is refused, for those that matter.
fn name(opcode: u8) -> String {
    let known = match opcode {
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82..=0x84 => "EXT",
        b'P' => "PERSID",
        0x97 | 0x98 => "BUFFER",
        _ => return format!("{opcode:#04x}"),
    };
    format!("{known} ({opcode:#04x})")
}
