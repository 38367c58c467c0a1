//! PyTorch's files: `.bin`, `.pt`, `.pth`, `.ckpt`, as `torch.save` writes them since version 1.6 (a zip archive) and
//! as it did before (pickles one after another, then the storages).
//!
//! Of the zip archive only its directory and the small pickle are read, of the older format the pickles; tensors are
//! read from the file when they are asked for.
//!
//! Keys of nested dicts are joined by dots. The dict of weights is taken out of `params_ema` or `state_dict`, and of `model`,
//! `module` or `params` where nothing else holds tensors. Tensors beside it, with which programs mark what a network predicts, keep their
//! names; texts, whole numbers and truth values beside it are the file's metadata. What else is no tensor is left out. A pickle is a program; none of it
//! is run, and one that refers to a class or function which tensors do not need is refused by that name.

mod collect;
mod known;
mod legacy;
mod reader;
mod unpickler;
mod value;
mod zip;

pub(crate) use legacy::read_index as read_legacy;
pub(crate) use zip::read_index as read_zip;
