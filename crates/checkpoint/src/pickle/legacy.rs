//! `torch.save` before version 1.6, or with `_use_new_zipfile_serialization=False`: pickles of a magic number, a version,
//! facts about the machine, the object itself and the names of its storages; then each storage's length and elements.

use super::reader::Reader;
use super::unpickler::unpickle;
use super::value::{Arena, Node, Value};
use super::{collect, value};
use crate::{Index, Source};
use pulid_tensor::{Error, Result};
use std::collections::HashMap;

const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const VERSION: i64 = 1001;

pub(crate) fn read_index(source: &dyn Source) -> Result<Index> {
    let fail = |detail: String| Error::file(source.path(), detail);
    let mut reader = Reader::new(source, 0..source.len());
    // Each of the pickles stands alone.
    let mut arena = Arena::default();
    let magic = unpickle(&mut reader, &mut arena)?;
    if arena.get(magic) != Some(&Node::Long(MAGIC)) {
        return Err(fail("is a pickle, but not one that PyTorch wrote; weights are wanted".into()));
    }
    let version = unpickle(&mut reader, &mut arena)?;
    if version != Value::Int(VERSION) {
        return Err(fail(format!("is of version {version:?} of PyTorch's format; {VERSION} is read")));
    }
    let machine = unpickle(&mut reader, &mut arena)?;
    if arena.entry(machine, "little_endian") == Some(Value::Bool(false)) {
        return Err(fail("was written by a big-endian machine; save it again on another".into()));
    }
    let mut arena = Arena::default();
    let root = unpickle(&mut reader, &mut arena)?;
    let mut names_arena = Arena::default();
    let names = unpickle(&mut reader, &mut names_arena)?;
    let names =
        collect::names(&names_arena, names).ok_or_else(|| reader.malformed("the names of its storages are missing"))?;

    let sizes = element_sizes(&arena);
    let mut storages = HashMap::new();
    for name in names {
        let count = u64::try_from(i64::from_le_bytes(reader.array()?)).ok();
        let size =
            sizes.get(&name).copied().ok_or_else(|| reader.malformed(format!("no tensor uses storage `{name}`")))?;
        let length = count.and_then(|c| c.checked_mul(size));
        let length = length.ok_or_else(|| reader.malformed(format!("storage `{name}` has an impossible length")))?;
        let start = reader.position();
        reader.skip(length).map_err(|_| {
            let left = source.len() - start;
            fail(format!("is truncated: storage `{name}` has {length} bytes, of which {left} are there"))
        })?;
        if storages.insert(name, start..start + length).is_some() {
            return Err(reader.malformed("two storages have the same name"));
        }
    }
    collect::index(source, &arena, root, &storages)
}

/// Bytes of an element of each storage.
fn element_sizes(arena: &Arena) -> HashMap<Box<str>, u64> {
    arena
        .nodes()
        .filter_map(|node| match node {
            Node::Storage(value::Storage { key, element, .. }) => {
                Some((key.clone(), element.map_or(1, |e| e.size() as u64)))
            }
            _ => None,
        })
        .collect()
}
