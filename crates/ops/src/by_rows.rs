//! What graph passes ask of operators where a device cannot take one whole, or takes it faster in another form.

use crate::Operator;
use std::ops::Range;

/// Some rows of a result [N, H, W, C], computed by themselves.
#[derive(Clone, Debug)]
pub struct RowsOf {
    /// Computes them for one image.
    pub operator: Box<dyn Operator>,
    /// The rows of each operand that it takes; `None` for operands that it takes whole, such as weights.
    pub operands: Vec<Option<Range<usize>>>,
    /// The rows that it gives: those asked for, or some more around them.
    pub rows: Range<usize>,
    /// Whether they cost so little that nobody should store the whole result: each reader computes the rows that it needs.
    pub cheap: bool,
}

impl RowsOf {
    /// The same operator, the same rows of each operand whose flag is set.
    pub fn same(operator: &dyn Operator, rows: Range<usize>, by_rows: impl IntoIterator<Item = bool>) -> RowsOf {
        let operands = by_rows.into_iter().map(|by_rows| by_rows.then(|| rows.clone())).collect();
        RowsOf { operator: operator.boxed(), operands, rows, cheap: false }
    }

    /// These, as cheap ones.
    pub fn cheap(self) -> RowsOf {
        RowsOf { cheap: true, ..self }
    }
}

/// An operator that must see a whole image before it gives any row of the result, as two.
#[derive(Clone, Debug)]
pub struct TwoPasses {
    /// Sees the image: takes its bands of rows in place of the first operand, then the other operands; gives something small.
    pub image: Box<dyn Operator>,
    /// Gives the result's rows: takes rows of the first operand and what `image` gave.
    pub rows: Box<dyn Operator>,
}

/// An operand of a [`Substitute`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// Of the operator that is replaced.
    Operand(usize),
    /// The result of the substitute at this place of the list.
    Result(usize),
}

/// One of the operators that compute together what another does.
#[derive(Clone, Debug)]
pub struct Substitute {
    /// The operator.
    pub operator: Box<dyn Operator>,
    /// Its operands.
    pub operands: Vec<Argument>,
}

impl Substitute {
    /// An operator over operands.
    pub fn new(operator: impl Operator + 'static, operands: impl Into<Vec<Argument>>) -> Substitute {
        Substitute { operator: Box::new(operator), operands: operands.into() }
    }
}
