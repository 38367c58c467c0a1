//! The few names that a pickle of tensors may refer to. Nothing is ever called: each name stands for what its answer
//! means to a checkpoint, and any other name is refused.

use super::value::{Arena, Node, Storage, Tensor, Value};
use crate::ElementType;

/// A class or function of Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch.Size`.
    Size,
    /// `torch._utils._rebuild_tensor`, `.._v2` or `.._v3`.
    Tensor {
        /// Whether the element type is an argument.
        typed: bool,
    },
    /// `torch._utils._rebuild_parameter` and the like: their first argument is the tensor.
    Parameter,
    /// `torch._tensor._rebuild_from_type_v2`: a function, a class, the function's arguments, a state.
    FromType,
    /// `torch.FloatStorage` and the like; `None` is plain bytes.
    Storage(Option<ElementType>),
    /// `torch.float32` and the like.
    Type(ElementType),
    /// What gives nothing that matters: `torch.device`, `_codecs.encode`, `builtins.set`, a class beside its rebuilding function.
    Opaque,
}

impl Known {
    /// What this name stands for, if it may occur.
    pub fn new(module: &str, name: &str) -> Option<Known> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Known::OrderedDict,
            ("torch", "Size") => Known::Size,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Known::Tensor { typed: false },
            ("torch._utils", "_rebuild_tensor_v3") => Known::Tensor { typed: true },
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Known::Parameter,
            ("torch._tensor", "_rebuild_from_type_v2") => Known::FromType,
            ("torch" | "torch.storage", "UntypedStorage") => Known::Storage(None),
            ("torch", "device" | "Tensor")
            | ("torch.nn.parameter", "Parameter")
            | ("_codecs", "encode")
            | ("builtins" | "__builtin__", "set" | "frozenset" | "bytearray" | "complex") => Known::Opaque,
            ("torch" | "torch.cuda", _) => match name.strip_suffix("Storage") {
                Some(kind) => Known::Storage(Some(storage_type(kind)?)),
                None => Known::Type(element_type(name)?),
            },
            _ => return None,
        })
    }
}

fn storage_type(kind: &str) -> Option<ElementType> {
    Some(match kind {
        "Float" => ElementType::F32,
        "Double" => ElementType::F64,
        "Half" => ElementType::F16,
        "BFloat16" => ElementType::Bf16,
        "Byte" => ElementType::U8,
        "Char" => ElementType::I8,
        "Short" => ElementType::I16,
        "Int" => ElementType::I32,
        "Long" => ElementType::I64,
        "Bool" => ElementType::Bool,
        _ => return None,
    })
}

fn element_type(name: &str) -> Option<ElementType> {
    Some(match name {
        "float32" => ElementType::F32,
        "float64" => ElementType::F64,
        "float16" => ElementType::F16,
        "bfloat16" => ElementType::Bf16,
        "float8_e4m3fn" => ElementType::F8E4M3,
        "float8_e5m2" => ElementType::F8E5M2,
        "uint8" => ElementType::U8,
        "int8" => ElementType::I8,
        "uint16" => ElementType::U16,
        "int16" => ElementType::I16,
        "uint32" => ElementType::U32,
        "int32" => ElementType::I32,
        "uint64" => ElementType::U64,
        "int64" => ElementType::I64,
        "bool" => ElementType::Bool,
        _ => return None,
    })
}

/// What `function(*arguments)` means to a checkpoint, or why it means nothing.
pub(super) fn reduce(arena: &mut Arena, function: Value, arguments: Value) -> Result<Value, String> {
    let Some(&Node::Global(known)) = arena.get(function) else {
        return Err("calls something that is no function".into());
    };
    let given = arena.sequence(arguments).ok_or("calls a function with no list of arguments")?.to_vec();
    let argument = |index: usize| given.get(index).copied().ok_or("calls a function with too few arguments");
    match known {
        Known::OrderedDict => {
            let items = match given.first() {
                None => Vec::new(),
                Some(&list) => pairs(arena, list).ok_or("builds a dict from something else than pairs")?,
            };
            Ok(arena.add(Node::Dict(items)))
        }
        Known::Size => {
            let items = match given.first() {
                None => Vec::new(),
                Some(&list) => arena.sequence(list).ok_or("builds a size from something else than numbers")?.to_vec(),
            };
            Ok(arena.add(Node::Tuple(items)))
        }
        Known::Tensor { typed } => {
            let element = match typed {
                true => Some(argument(6)?),
                false => None,
            };
            let tensor = tensor(arena, argument(0)?, argument(1)?, argument(2)?, argument(3)?, element)?;
            Ok(arena.add(Node::Tensor(tensor)))
        }
        Known::Parameter => match arena.get(argument(0)?) {
            Some(Node::Tensor(_)) => argument(0).map_err(Into::into),
            _ => Err("builds a parameter from no tensor".into()),
        },
        Known::FromType => match arena.get(argument(0)?) {
            Some(Node::Global(Known::FromType)) => Err("rebuilds a tensor by rebuilding it".into()),
            _ => reduce(arena, argument(0)?, argument(2)?),
        },
        Known::Opaque => Ok(Value::Opaque),
        Known::Storage(_) | Known::Type(_) => Err("calls a type of elements".into()),
    }
}

fn pairs(arena: &Arena, list: Value) -> Option<Vec<(Value, Value)>> {
    let items = arena.sequence(list)?.iter();
    items
        .map(|&pair| match arena.sequence(pair)? {
            &[key, value] => Some((key, value)),
            _ => None,
        })
        .collect()
}

fn tensor(
    arena: &Arena,
    storage: Value,
    offset: Value,
    shape: Value,
    strides: Value,
    element: Option<Value>,
) -> Result<Tensor, String> {
    let Some(Node::Storage(storage)) = arena.get(storage) else {
        return Err("builds a tensor over no storage".into());
    };
    let element = match element.and_then(|e| arena.get(e)) {
        Some(Node::Global(Known::Type(element))) => Some(*element),
        _ => storage.element,
    };
    let numbers = |list: Value| -> Option<Vec<u64>> { arena.sequence(list)?.iter().map(|&n| unsigned(n)).collect() };
    let (shape, strides) =
        numbers(shape).zip(numbers(strides)).ok_or("builds a tensor of a size or strides that are no numbers")?;
    if shape.len() != strides.len() {
        return Err("builds a tensor with another number of strides than of axes".into());
    }
    Ok(Tensor {
        storage: storage.clone(),
        element: element.ok_or("builds a tensor of unknown elements")?,
        offset: unsigned(offset).ok_or("builds a tensor at an offset that is no number")?,
        shape,
        strides,
    })
}

/// The storage that a persistent id `("storage", type, key, location, count[, view])` names.
pub(super) fn storage(arena: &Arena, id: Value) -> Result<Storage, String> {
    const NO_STORAGE: &str = "refers to something outside that is no storage of a tensor";
    let items = arena.sequence(id).ok_or(NO_STORAGE)?;
    let &[kind, ty, key, _location, count, ref view @ ..] = items else { return Err(NO_STORAGE.into()) };
    if arena.text(kind) != Some("storage") {
        return Err(NO_STORAGE.into());
    }
    let Some(&Node::Global(Known::Storage(element))) = arena.get(ty) else {
        return Err("refers to a storage of unknown type".into());
    };
    let key = arena.text(key).ok_or("refers to a storage without a name")?;
    let count = unsigned(count).ok_or("refers to a storage of no size")?;
    let storage = Storage { key: key.into(), element, count, view_start: 0 };
    match view.iter().find(|v| **v != Value::None) {
        None => Ok(storage),
        Some(&view) => match arena.sequence(view) {
            Some(&[_, start, count]) => {
                let (start, count) = unsigned(start).zip(unsigned(count)).ok_or("refers to a malformed view")?;
                Ok(Storage { count, view_start: start, ..storage })
            }
            _ => Err("refers to a malformed view".into()),
        },
    }
}

pub(super) fn unsigned(value: Value) -> Option<u64> {
    match value {
        Value::Int(n) => u64::try_from(n).ok(),
        _ => None,
    }
}
