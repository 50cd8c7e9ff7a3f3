//! The container that `torch.save` writes: a zip archive whose entries are stored as they are.
//!
//! Only what such a file has is read: stored entries, zip64, no encryption, no spanning of several disks (APPNOTE 6.3.10, §4.3).
//! Every offset and length is checked against the file.

use std::collections::BTreeMap;
use std::ops::Range;

/// The bytes of each entry by name, or what is wrong with the archive.
pub(super) fn entries(file: &[u8]) -> Result<BTreeMap<&str, Range<usize>>, String> {
    let directory = directory(file)?;
    let mut entries = BTreeMap::new();
    let mut rest = Fields(&file[directory]);
    while !rest.0.is_empty() {
        let (name, range) = entry(file, &mut rest)?;
        if entries.insert(name, range).is_some() {
            return Err(format!("entry `{name}` is there twice"));
        }
    }
    Ok(entries)
}

const END: &[u8; 4] = b"PK\x05\x06";
const END_64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR_64: &[u8; 4] = b"PK\x06\x07";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const LOCAL: &[u8; 4] = b"PK\x03\x04";
/// Bytes of the end record without its comment, and of the zip64 locator before it.
const END_BYTES: usize = 22;
const LOCATOR_BYTES: usize = 20;
/// Stands for "see the zip64 record".
const SEE_64: u32 = u32::MAX;
/// Kind of the extra field that holds 64-bit sizes.
const EXTRA_64: u16 = 1;

/// Little-endian fields, read from the front.
struct Fields<'f>(&'f [u8]);

impl<'f> Fields<'f> {
    fn bytes(&mut self, count: usize) -> Result<&'f [u8], String> {
        let (front, rest) = self.0.split_at_checked(count).ok_or("a record is cut off")?;
        self.0 = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, String> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

/// `length` bytes from `start`, if the file has them.
fn range(file: &[u8], start: u64, length: u64) -> Option<Range<usize>> {
    let end = start.checked_add(length)?;
    (end <= file.len() as u64).then_some(start as usize..end as usize)
}

/// Where the central directory is.
fn directory(file: &[u8]) -> Result<Range<usize>, String> {
    // The end record is followed by nothing but its comment, of at most 65,535 bytes.
    let first = file.len().saturating_sub(END_BYTES + usize::from(u16::MAX));
    let end = (first..(file.len() + 1).saturating_sub(END_BYTES))
        .rev()
        .find(|&at| {
            let comment = u16::from_le_bytes([file[at + 20], file[at + 21]]);
            file[at..].starts_with(END) && at + END_BYTES + usize::from(comment) == file.len()
        })
        .ok_or("it is no zip archive, or its end is cut off")?;
    let mut record = Fields(&file[end + 4..]);
    let disks = (record.u16()?, record.u16()?);
    let counts = (record.u16()?, record.u16()?);
    let (size, start) = (record.u32()?, record.u32()?);
    let is_64 = size == SEE_64 || start == SEE_64 || counts.1 == u16::MAX;
    if !is_64 && (disks != (0, 0) || counts.0 != counts.1) {
        return Err("it spans several files".into());
    }
    let (size, start) = if is_64 { directory_64(file, end)? } else { (size.into(), start.into()) };
    range(file, start, size).ok_or_else(|| {
        format!(
            "its directory is at {start} with {size} bytes, but it has {} bytes; it is cut off or damaged",
            file.len()
        )
    })
}

/// Size and start of the central directory by the zip64 end record.
fn directory_64(file: &[u8], end: usize) -> Result<(u64, u64), String> {
    let at = end.checked_sub(LOCATOR_BYTES).ok_or("its zip64 locator is missing")?;
    let mut locator = Fields(&file[at..end]);
    if locator.bytes(4)? != LOCATOR_64 {
        return Err("its zip64 locator is missing".into());
    }
    locator.u32()?;
    let record = range(file, locator.u64()?, 56).ok_or("its zip64 end record lies outside of it")?;
    let mut record = Fields(&file[record]);
    if record.bytes(4)? != END_64 {
        return Err("its zip64 end record is missing".into());
    }
    // Its own size, versions, disks and counts.
    record.bytes(8 + 4 + 8 + 16)?;
    Ok((record.u64()?, record.u64()?))
}

/// The next entry of the directory.
fn entry<'f>(file: &'f [u8], rest: &mut Fields<'f>) -> Result<(&'f str, Range<usize>), String> {
    if rest.bytes(4)? != CENTRAL {
        return Err("its directory is damaged".into());
    }
    rest.bytes(4)?;
    let (flags, method) = (rest.u16()?, rest.u16()?);
    rest.bytes(8)?;
    let (packed, size) = (rest.u32()?, rest.u32()?);
    let lengths = [rest.u16()?, rest.u16()?, rest.u16()?].map(usize::from);
    rest.bytes(8)?;
    let offset = rest.u32()?;
    let name = std::str::from_utf8(rest.bytes(lengths[0])?).map_err(|_| "a name in it is not UTF-8")?;
    let extra = rest.bytes(lengths[1])?;
    rest.bytes(lengths[2])?;
    let [size, packed, offset] =
        wide([size, packed, offset], extra).map_err(|e| format!("entry `{name}`: {e}"))?;
    if flags & 1 != 0 || method != 0 || packed != size {
        return Err(format!(
            "entry `{name}` is compressed or encrypted; torch.save stores entries as they are"
        ));
    }
    let cut =
        || format!("entry `{name}` of {size} bytes at {offset} lies outside of it; it is cut off or damaged");
    let header = range(file, offset, 30).ok_or_else(cut)?;
    let start = header.end as u64;
    let mut local = Fields(&file[header]);
    let signature = local.bytes(4)?;
    local.bytes(22)?;
    let (name_length, extra_length) = (local.u16()?, local.u16()?);
    let own_name = range(file, start, name_length.into()).ok_or_else(cut)?;
    if signature != LOCAL || &file[own_name] != name.as_bytes() {
        return Err(format!("entry `{name}` has no header of its own at {offset}"));
    }
    let start = start + u64::from(name_length) + u64::from(extra_length);
    Ok((name, range(file, start, size).ok_or_else(cut)?))
}

/// Size, packed size and offset, the large ones of them from the extra field.
fn wide(narrow: [u32; 3], extra: &[u8]) -> Result<[u64; 3], String> {
    let mut wide = narrow.map(u64::from);
    if !narrow.contains(&SEE_64) {
        return Ok(wide);
    }
    let mut fields = Fields(extra);
    while !fields.0.is_empty() {
        let (kind, length) = (fields.u16()?, fields.u16()?);
        let mut field = Fields(fields.bytes(length.into())?);
        if kind == EXTRA_64 {
            for (value, _) in wide.iter_mut().zip(narrow).filter(|(_, narrow)| *narrow == SEE_64) {
                *value = field.u64()?;
            }
            return Ok(wide);
        }
    }
    Err("its zip64 sizes are missing".into())
}
