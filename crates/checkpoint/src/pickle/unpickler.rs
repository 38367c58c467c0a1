//! A pickle's program as data. Only the instructions that data needs are known, only the names of [`Known`] are
//! accepted, and nothing is ever run.

use super::known::{self, Known};
use super::reader::Reader;
use super::value::{Arena, Node, Value};
use pulid_tensor::{Error, Result};
use std::collections::HashMap;

/// Values a pickle may make: twenty times what SDXL's largest checkpoints take.
const MAX_VALUES: usize = 4 << 20;

/// Bytes of a text that is kept. Longer ones are notes of whoever trained the network, no keys.
const MAX_TEXT: u64 = 4096;

/// Reads one pickle from the reader's position to its end and gives what it holds.
///
/// # Errors
/// When it is truncated or malformed, holds too much, or refers to a name that is not known.
pub(super) fn unpickle(reader: &mut Reader<'_>, arena: &mut Arena) -> Result<Value> {
    let mut machine = Machine { reader, arena, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), made: 0 };
    loop {
        if let Some(result) = machine.step()? {
            return Ok(result);
        }
    }
}

struct Machine<'r, 's, 'a> {
    reader: &'r mut Reader<'s>,
    arena: &'a mut Arena,
    stack: Vec<Value>,
    /// Lengths of the stack where marks lie.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    made: usize,
}

impl Machine<'_, '_, '_> {
    /// Follows one instruction; the last gives the result.
    fn step(&mut self) -> Result<Option<Value>> {
        match self.reader.byte()? {
            // PROTO, FRAME: say what follows, which is read as it comes.
            0x80 => {
                let protocol = self.reader.byte()?;
                if protocol > 5 {
                    return Err(self.fail(format!("it is of protocol {protocol}; 2 to 5 are read")));
                }
            }
            0x95 => self.reader.skip(8)?,
            b'.' => {
                let result = self.pop()?;
                return if self.stack.is_empty() { Ok(Some(result)) } else { Err(self.fail("it ends too early")) };
            }
            b'(' => {
                self.count()?;
                self.marks.push(self.stack.len());
            }
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }

            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => {
                let n = self.reader.byte()?;
                self.push(Value::Int(n.into()))?;
            }
            b'M' => {
                let n = u16::from_le_bytes(self.reader.array()?);
                self.push(Value::Int(n.into()))?;
            }
            b'J' => {
                let n = i32::from_le_bytes(self.reader.array()?);
                self.push(Value::Int(n.into()))?;
            }
            0x8a => {
                let length = self.reader.byte()?;
                self.long(length.into())?;
            }
            0x8b => {
                let length = u32::from_le_bytes(self.reader.array()?);
                self.long(length.into())?;
            }
            b'G' => {
                self.reader.skip(8)?;
                self.push(Value::Opaque)?;
            }

            // Texts, and the byte strings that Python 2 wrote for texts.
            0x8c | b'U' => {
                let length = self.reader.byte()?;
                self.text(length.into())?;
            }
            b'X' | b'T' => {
                let length = u32::from_le_bytes(self.reader.array()?);
                self.text(length.into())?;
            }
            0x8d => {
                let length = u64::from_le_bytes(self.reader.array()?);
                self.text(length)?;
            }
            b'C' => {
                let length = self.reader.byte()?;
                self.bytes(length.into())?;
            }
            b'B' => {
                let length = u32::from_le_bytes(self.reader.array()?);
                self.bytes(length.into())?;
            }
            0x8e | 0x96 => {
                let length = u64::from_le_bytes(self.reader.array()?);
                self.bytes(length)?;
            }

            b')' => self.make(Node::Tuple(Vec::new()))?,
            b't' => {
                let items = self.pop_mark()?;
                self.make(Node::Tuple(items))?;
            }
            count @ 0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(count - 0x84));
                let start = start.filter(|s| *s >= self.floor()).ok_or_else(|| self.short())?;
                let items = self.stack.split_off(start);
                self.make(Node::Tuple(items))?;
            }
            // Empty list and set; list and frozen set of what lies above the mark.
            b']' | 0x8f => self.make(Node::List(Vec::new()))?,
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.make(Node::List(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b'}' => self.make(Node::Dict(Vec::new()))?,
            b'd' => {
                let items = self.pop_mark()?;
                self.make(Node::Dict(Vec::new()))?;
                self.insert(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.insert(items)?;
            }

            b'q' => {
                let place = self.reader.byte()?;
                self.remember(place.into())?;
            }
            b'r' => {
                let place = u32::from_le_bytes(self.reader.array()?);
                self.remember(place)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let place = self.reader.byte()?;
                self.recall(place.into())?;
            }
            b'j' => {
                let place = u32::from_le_bytes(self.reader.array()?);
                self.recall(place)?;
            }

            b'c' => {
                let (module, name) = (self.reader.line()?, self.reader.line()?);
                self.global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let names = self.arena.text(module).zip(self.arena.text(name));
                let (module, name) = names.ok_or_else(|| self.fail("it refers to a name that is no text"))?;
                let (module, name) = (module.to_owned(), name.to_owned());
                self.global(&module, &name)?;
            }
            // REDUCE and NEWOBJ.
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let result = known::reduce(self.arena, function, arguments);
                let result = result.map_err(|detail| self.fail(format!("it {detail}")))?;
                self.push(result)?;
            }
            // BUILD: attributes of an object, such as the versions in a state dict.
            b'b' => {
                self.pop()?;
                let object = self.top()?;
                if !matches!(self.arena.get(object), Some(Node::Dict(_) | Node::Tensor(_))) {
                    return Err(self.fail("it sets attributes of something else than a dict or tensor"));
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = known::storage(self.arena, id);
                let storage = storage.map_err(|detail| self.fail(format!("it {detail}")))?;
                self.make(Node::Storage(storage))?;
            }
            other => {
                let shown = if other.is_ascii_graphic() { format!(" (`{}`)", other as char) } else { String::new() };
                return Err(
                    self.fail(format!("instruction {other:#04x}{shown} is not needed for tensors and not read"))
                );
            }
        }
        Ok(None)
    }

    fn fail(&self, detail: impl std::fmt::Display) -> Error {
        self.reader.malformed(detail)
    }

    fn short(&self) -> Error {
        self.fail("it takes more values than there are")
    }

    fn count(&mut self) -> Result<()> {
        self.made += 1;
        if self.made > MAX_VALUES || self.arena.len() > MAX_VALUES {
            return Err(self.fail(format!("it holds more than {MAX_VALUES} values, which no checkpoint does")));
        }
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<()> {
        self.count()?;
        self.stack.push(value);
        Ok(())
    }

    fn make(&mut self, node: Node) -> Result<()> {
        let value = self.arena.add(node);
        self.push(value)
    }

    /// What lies below belongs to an open mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Value> {
        match self.stack.last() {
            Some(&value) if self.stack.len() > self.floor() => Ok(value),
            _ => Err(self.short()),
        }
    }

    fn pop(&mut self) -> Result<Value> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().ok_or_else(|| self.fail("it closes a list that it never opened"))?;
        Ok(self.stack.split_off(mark))
    }

    fn long(&mut self, length: u64) -> Result<()> {
        if length > 16 {
            self.reader.skip(length)?;
            return self.push(Value::Opaque);
        }
        let bytes = self.reader.take(length)?;
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 16];
        wide[..bytes.len()].copy_from_slice(&bytes);
        let number = i128::from_le_bytes(wide);
        match i64::try_from(number) {
            Ok(number) => self.push(Value::Int(number)),
            Err(_) => self.make(Node::Long(number)),
        }
    }

    fn text(&mut self, length: u64) -> Result<()> {
        if length > MAX_TEXT {
            return self.bytes(length);
        }
        let bytes = self.reader.take(length)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => self.make(Node::Text(text.into())),
            Err(_) => self.push(Value::Opaque),
        }
    }

    fn bytes(&mut self, length: u64) -> Result<()> {
        self.reader.skip(length)?;
        self.push(Value::Opaque)
    }

    fn append(&mut self, items: Vec<Value>) -> Result<()> {
        let list = self.top()?;
        match self.arena.get_mut(list) {
            Some(Node::List(list)) => list.extend(items),
            _ => return Err(self.fail("it appends to something that is no list")),
        }
        Ok(())
    }

    /// Puts keys and values, in turn, into the dict on top.
    fn insert(&mut self, items: Vec<Value>) -> Result<()> {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match self.arena.get_mut(dict) {
            Some(Node::Dict(dict)) if rest.is_empty() => dict.extend(pairs.iter().map(|&[k, v]| (k, v))),
            Some(Node::Dict(_)) => return Err(self.fail("it has a key without a value")),
            _ => return Err(self.fail("it puts items into something that is no dict")),
        }
        Ok(())
    }

    fn remember(&mut self, place: u32) -> Result<()> {
        self.count()?;
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<()> {
        let value = self.memo.get(&place).copied();
        let value = value.ok_or_else(|| self.fail(format!("it recalls value {place}, which it never kept")))?;
        self.push(value)
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        match Known::new(module, name) {
            Some(known) => self.make(Node::Global(known)),
            None => {
                let detail = format!(
                    "refers to `{module}.{name}`, which is not needed for tensors; pickles can run any program, so \
                     nothing unknown is read. Save the tensors alone (a state_dict) as .safetensors"
                );
                Err(Error::file(self.reader.source().path(), detail))
            }
        }
    }
}
