//! From a pickle's values to named tensors.

use super::known::unsigned;
use super::value::{Arena, Node, Tensor, Value};
use crate::index::Index;
use crate::{Entry, Source};
use pulid_tensor::{Error, Result, Shape};
use std::collections::{BTreeMap, HashMap, btree_map};
use std::ops::Range;

/// Dicts within dicts that are followed.
const MAX_DEPTH: usize = 32;

/// Bytes of all keys together.
const MAX_KEYS: usize = 64 << 20;

/// Axes of a tensor.
const MAX_RANK: usize = 64;

/// Keys below which the weights lie, whatever lies beside them; the first counts.
const WEIGHTS: [&str; 2] = ["params_ema", "state_dict"];

/// Keys below which the weights lie if they are the only ones.
const ONLY: [&str; 3] = ["model", "module", "params"];

/// Bytes of a text beside the weights that is taken for metadata, and texts that are.
const MAX_TEXT: usize = 4096;
const MAX_TEXTS: usize = 256;

/// The tensors of a pickle whose storages lie at these bytes of the source, and its metadata. Keys of nested dicts are joined by dots.
///
/// # Errors
/// When there is no tensor, a tensor does not fit its storage, or two have the same key.
pub(super) fn index(
    source: &dyn Source,
    arena: &Arena,
    root: Value,
    storages: &HashMap<Box<str>, Range<u64>>,
) -> Result<Index> {
    let fail = |detail: &str| Err(Error::file(source.path(), detail));
    if matches!(arena.get(root), Some(Node::Tensor(_))) {
        return fail("is a pickle of a single tensor without a name; a dict of weights is wanted");
    }
    let mut collector = Collector {
        source,
        arena,
        storages,
        holds: holders(arena),
        entries: BTreeMap::new(),
        visits: 0,
        key_bytes: 0,
        path: String::new(),
    };
    let (weights, around) = collector.unwrap(root);
    collector.collect(weights, 0)?;
    for dict in &around {
        collector.collect_beside(*dict)?;
    }
    let metadata = around.into_iter().chain([weights]).flat_map(|dict| notes(arena, dict)).take(MAX_TEXTS).collect();
    if collector.entries.is_empty() {
        return fail("is a pickle without tensors; weights are wanted");
    }
    Ok(Index { entries: collector.entries, metadata })
}

/// What a dict says beside its tensors.
fn notes(arena: &Arena, dict: Value) -> impl Iterator<Item = (String, String)> {
    let items = match arena.get(dict) {
        Some(Node::Dict(items)) => &items[..],
        _ => &[],
    };
    items.iter().filter_map(|(key, value)| {
        let said = match value {
            Value::Bool(yes) => yes.to_string(),
            Value::Int(number) => number.to_string(),
            other => arena.text(*other)?.to_owned(),
        };
        let key = arena.text(*key)?;
        (key.len() + said.len() <= MAX_TEXT).then(|| (key.to_owned(), said))
    })
}

struct Collector<'a> {
    source: &'a dyn Source,
    arena: &'a Arena,
    storages: &'a HashMap<Box<str>, Range<u64>>,
    /// For each node whether it is or holds a tensor.
    holds: Vec<bool>,
    entries: BTreeMap<String, Entry>,
    visits: usize,
    key_bytes: usize,
    path: String,
}

impl Collector<'_> {
    fn fail(&self, detail: impl Into<String>) -> Error {
        Error::file(self.source.path(), detail)
    }

    /// The dict of weights inside what training programs put around it, and the dicts around it.
    fn unwrap(&self, mut value: Value) -> (Value, Vec<Value>) {
        let mut around = Vec::new();
        for _ in 0..MAX_DEPTH {
            let Some(Node::Dict(items)) = self.arena.get(value) else { break };
            let outer = value;
            let named = |key: &str| self.arena.entry(value, key).filter(|v| self.holds_tensors(*v));
            if let Some(weights) = WEIGHTS.iter().find_map(|key| named(key)) {
                value = weights;
                around.push(outer);
                continue;
            }
            let only = ONLY.iter().find_map(|key| named(key).map(|inner| (*key, inner)));
            match only {
                Some((key, inner))
                    if matches!(self.arena.get(inner), Some(Node::Dict(_)))
                        && !items.iter().any(|(k, v)| {
                            self.arena.text(*k) != Some(key) && self.holds_tensors(*v) && !self.is_mark(*v)
                        }) =>
                {
                    value = inner;
                    around.push(outer);
                }
                _ => break,
            }
        }
        (value, around)
    }

    /// Whether a value is a tensor without elements, which says something by being there.
    fn is_mark(&self, value: Value) -> bool {
        matches!(self.arena.get(value), Some(Node::Tensor(tensor)) if tensor.shape.contains(&0))
    }

    /// The tensors that a dict around the weights holds itself, but for names that the weights have.
    fn collect_beside(&mut self, dict: Value) -> Result<()> {
        let arena = self.arena;
        let Some(Node::Dict(items)) = arena.get(dict) else { return Ok(()) };
        for (key, value) in items {
            if let (Some(key), Some(Node::Tensor(_))) = (arena.text(*key), arena.get(*value))
                && !self.entries.contains_key(key)
            {
                self.below(key, *value, 0)?;
            }
        }
        Ok(())
    }

    fn holds_tensors(&self, value: Value) -> bool {
        matches!(value, Value::Node(index) if self.holds[index as usize])
    }

    fn collect(&mut self, value: Value, depth: usize) -> Result<()> {
        if !self.holds_tensors(value) {
            return Ok(());
        }
        // A list may hold itself, or the same list twice: what is visited is bounded by what the file spells out.
        self.visits += 1;
        if depth > MAX_DEPTH || self.visits > self.arena.len() {
            return Err(self.fail("is a malformed pickle: its dicts are nested too deeply or hold themselves"));
        }
        match self.arena.get(value) {
            Some(Node::Tensor(tensor)) => self.add(tensor),
            Some(Node::Dict(items)) => items.iter().try_for_each(|(key, value)| match (self.arena.text(*key), key) {
                _ if !self.holds_tensors(*value) => Ok(()),
                (Some(text), _) => self.below(text, *value, depth),
                (None, Value::Int(number)) => self.below(&number.to_string(), *value, depth),
                _ => Err(self.fail("is a pickle of tensors under keys that are neither texts nor numbers")),
            }),
            Some(Node::List(items) | Node::Tuple(items)) => {
                items.iter().enumerate().try_for_each(|(i, item)| self.below(&i.to_string(), *item, depth))
            }
            _ => Ok(()),
        }
    }

    fn below(&mut self, key: &str, value: Value, depth: usize) -> Result<()> {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        let result = self.collect(value, depth + 1);
        self.path.truncate(length);
        result
    }

    fn add(&mut self, tensor: &Tensor) -> Result<()> {
        self.key_bytes += self.path.len();
        if self.key_bytes > MAX_KEYS {
            return Err(self.fail("is a malformed pickle: its keys are longer than any network's"));
        }
        let entry = self.place(tensor).map_err(|detail| self.fail(format!("tensor `{}` {detail}", self.path)))?;
        match self.entries.entry(self.path.clone()) {
            btree_map::Entry::Vacant(slot) => {
                slot.insert(entry);
                Ok(())
            }
            btree_map::Entry::Occupied(slot) => {
                let detail = format!("holds two tensors `{}`; the file is malformed", slot.key());
                Err(Error::file(self.source.path(), detail))
            }
        }
    }

    fn place(&self, tensor: &Tensor) -> std::result::Result<Entry, String> {
        const LARGE: &str = "is larger than any file";
        let size = tensor.element.size() as u64;
        let storage = &tensor.storage;
        let bytes = self.storages.get(&storage.key);
        let bytes = bytes.ok_or_else(|| format!("lies in storage `{}`, which is missing", storage.key))?;
        let rank = tensor.shape.len();
        if rank > MAX_RANK {
            return Err(format!("has {rank} axes"));
        }
        let extents = tensor.shape.iter().map(|&n| usize::try_from(n).map_err(|_| LARGE));
        let shape = Shape::new(extents.collect::<std::result::Result<Vec<_>, _>>()?);
        let total = tensor.element.bytes(&shape).ok_or(LARGE)?;
        let span = match total {
            0 => 0,
            _ => {
                let steps = tensor.shape.iter().zip(&tensor.strides);
                let mut last = steps.map(|(n, stride)| (n - 1).checked_mul(*stride));
                last.try_fold(1u64, |sum, step| sum.checked_add(step?)).ok_or(LARGE)?
            }
        };
        let start = tensor.offset.checked_add(storage.view_start).and_then(|s| s.checked_mul(size));
        let end = start.zip(span.checked_mul(size)).and_then(|(s, n)| s.checked_add(n));
        let (start, end) = start.zip(end).ok_or(LARGE)?;
        // What the pickle says about the storage, and what is there.
        let unit = storage.element.map_or(1, |e| e.size() as u64);
        let said = storage.count.checked_add(storage.view_start).and_then(|n| n.checked_mul(unit)).ok_or(LARGE)?;
        let there = bytes.end - bytes.start;
        if end > said || end > there {
            return Err(format!(
                "needs {end} bytes of storage `{}`, which should have {said} and has {there}; the file is truncated or \
                 malformed",
                storage.key
            ));
        }
        // A single element may stand for many: not for more than the file could have held.
        if total > self.source.len() {
            return Err(format!("repeats its elements to {total} bytes, more than the whole file has"));
        }
        let contiguous = total == 0 || is_contiguous(&tensor.shape, &tensor.strides);
        Ok(Entry {
            element: tensor.element,
            shape,
            bytes: bytes.start + start..bytes.start + end,
            strides: (!contiguous).then(|| tensor.strides.clone()),
        })
    }
}

/// For each node whether a tensor can be reached from it.
fn holders(arena: &Arena) -> Vec<bool> {
    let (mut holds, mut open) = (vec![false; arena.len()], Vec::new());
    let mut parents: HashMap<u32, Vec<u32>> = HashMap::new();
    for (index, node) in (0..).zip(arena.nodes()) {
        let mut link = |child: Value| {
            if let Value::Node(child) = child {
                parents.entry(child).or_default().push(index);
            }
        };
        match node {
            Node::Tensor(_) => open.push(index),
            Node::Dict(items) => items.iter().for_each(|(_, value)| link(*value)),
            Node::List(items) | Node::Tuple(items) => items.iter().for_each(|item| link(*item)),
            _ => {}
        }
    }
    while let Some(index) = open.pop() {
        if !std::mem::replace(&mut holds[index as usize], true) {
            open.extend(parents.get(&index).into_iter().flatten());
        }
    }
    holds
}

/// Whether elements follow one another, the last axis fastest. Axes of one element have no say.
fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&n, &stride)| {
        let fits = n == 1 || stride == expected;
        expected *= n;
        fits
    })
}

/// The texts or numbers of a list of storages' names.
pub(super) fn names(arena: &Arena, list: Value) -> Option<Vec<Box<str>>> {
    let name = |value: &Value| match arena.text(*value) {
        Some(text) => Some(text.into()),
        None => unsigned(*value).map(|n| n.to_string().into()),
    };
    arena.sequence(list)?.iter().map(name).collect()
}
