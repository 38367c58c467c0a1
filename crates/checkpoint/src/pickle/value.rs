use super::known::Known;
use crate::ElementType;

/// What a pickle holds, as far as checkpoints are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// A number, text or byte string that no checkpoint's tensors depend on.
    Opaque,
    /// A place in the [`Arena`].
    Node(u32),
}

/// Values with parts. Containers can be changed after they are remembered, and can hold themselves.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// An integer beyond 64 bits.
    Long(i128),
    Text(Box<str>),
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Global(Known),
    Storage(Storage),
    Tensor(Tensor),
}

/// A run of elements that tensors share.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    /// Its name in the file.
    pub key: Box<str>,
    /// `None` for plain bytes; the tensor tells the type.
    pub element: Option<ElementType>,
    /// Elements, or bytes where there is no type.
    pub count: u64,
    /// The first element of the storage named so that belongs to this one, in old files.
    pub view_start: u64,
}

/// A tensor over a storage.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub storage: Storage,
    pub element: ElementType,
    /// First element.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// Elements from one index to the next, along each axis.
    pub strides: Vec<u64>,
}

/// The nodes of a pickle.
#[derive(Debug, Default)]
pub(super) struct Arena {
    nodes: Vec<Node>,
}

impl Arena {
    pub fn add(&mut self, node: Node) -> Value {
        self.nodes.push(node);
        // The unpickler takes far fewer values than 2^32.
        Value::Node(self.nodes.len() as u32 - 1)
    }

    pub fn get(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Node(index) => self.nodes.get(index as usize),
            _ => None,
        }
    }

    pub fn get_mut(&mut self, value: Value) -> Option<&mut Node> {
        match value {
            Value::Node(index) => self.nodes.get_mut(index as usize),
            _ => None,
        }
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    pub fn text(&self, value: Value) -> Option<&str> {
        match self.get(value)? {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub fn sequence(&self, value: Value) -> Option<&[Value]> {
        match self.get(value)? {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// The value of a text key.
    pub fn entry(&self, dict: Value, key: &str) -> Option<Value> {
        match self.get(dict)? {
            Node::Dict(items) => items.iter().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, v)| *v),
            _ => None,
        }
    }
}
