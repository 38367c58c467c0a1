//! Gradient rules: what the backward pass of an operator is made of, as plain data that graphs turn into nodes.

use crate::{Binary, Cast, Operator, Reduce, Reduction};
use pulid_tensor::{DType, Error, Result, Shape, TensorType};

/// A value that a gradient rule reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// An operand of the operator.
    Operand(usize),
    /// The operator's result.
    Result,
    /// The gradient of the loss in the operator's result, of the result's type.
    Upstream,
    /// What an earlier step of the rule gave.
    Step(usize),
}

/// A step of a rule.
#[derive(Clone, Debug)]
pub enum Step {
    /// An operator over values.
    Apply {
        /// The operator.
        operator: Box<dyn Operator>,
        /// Its operands.
        inputs: Vec<Value>,
    },
    /// A value's elements under another shape.
    Reshape {
        /// The value.
        of: Value,
        /// The shape.
        shape: Shape,
    },
}

/// A gradient rule in the making: an operator is told its types and which operands need a gradient, and states the steps that
/// compute these gradients.
#[derive(Debug)]
pub struct GradientRule<'a> {
    operator: &'static str,
    inputs: &'a [TensorType],
    output: &'a TensorType,
    needed: &'a [bool],
    steps: Vec<(Step, TensorType)>,
    gradients: Vec<Option<Value>>,
}

impl<'a> GradientRule<'a> {
    /// The rule of an operator of these types, for the operands whose flag is set.
    ///
    /// # Errors
    /// Where the operator has none.
    pub fn of(
        operator: &dyn Operator,
        inputs: &'a [TensorType],
        output: &'a TensorType,
        needed: &'a [bool],
    ) -> Result<Self> {
        let gradients = vec![None; inputs.len()];
        let mut rule = GradientRule { operator: operator.name(), inputs, output, needed, steps: Vec::new(), gradients };
        operator.gradient(&mut rule)?;
        for (i, gradient) in rule.gradients.iter().enumerate() {
            match gradient {
                None if needed[i] => return Err(rule.fail(&format!("has no gradient in operand {i}"))),
                Some(value) if rule.ty(*value) != inputs[i] => {
                    let found = rule.ty(*value);
                    return Err(rule.fail(&format!("the gradient in operand {i} is {found}, not {}", inputs[i])));
                }
                _ => {}
            }
        }
        Ok(rule)
    }

    /// The steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().map(|(step, _)| step)
    }

    /// The gradient in an operand, if the rule gives it.
    pub fn gradient(&self, operand: usize) -> Option<Value> {
        self.gradients[operand]
    }

    /// Whether the gradient in an operand is wanted.
    pub fn needs(&self, operand: usize) -> bool {
        self.needed.get(operand).is_some_and(|needed| *needed)
    }

    /// Number of operands.
    pub fn operands(&self) -> usize {
        self.inputs.len()
    }

    /// Type of a value.
    pub fn ty(&self, value: Value) -> TensorType {
        match value {
            Value::Operand(i) => self.inputs[i].clone(),
            Value::Result | Value::Upstream => self.output.clone(),
            Value::Step(i) => self.steps[i].1.clone(),
        }
    }

    /// Shape of a value.
    pub fn shape(&self, value: Value) -> Shape {
        self.ty(value).shape
    }

    /// An error that names the operator and its types.
    pub fn fail(&self, why: &str) -> Error {
        Error::operator(self.operator, format!("{why}: {}", crate::types(self.inputs)))
    }

    /// Adds a step.
    ///
    /// # Errors
    /// The operator's own.
    pub fn apply(&mut self, operator: impl Operator + 'static, inputs: impl Into<Vec<Value>>) -> Result<Value> {
        let inputs = inputs.into();
        let types: Vec<_> = inputs.iter().map(|&v| self.ty(v)).collect();
        let ty = operator.infer(&types)?;
        self.steps.push((Step::Apply { operator: Box::new(operator), inputs }, ty));
        Ok(Value::Step(self.steps.len() - 1))
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(&mut self, of: Value, shape: impl Into<Shape>) -> Result<Value> {
        let (ty, shape) = (self.ty(of), shape.into());
        if ty.shape == shape {
            return Ok(of);
        }
        if ty.shape.count() != shape.count() {
            return Err(self.fail(&format!("{} does not reshape to {shape}", ty.shape)));
        }
        let ty = TensorType::new(ty.dtype, shape.clone());
        self.steps.push((Step::Reshape { of, shape }, ty));
        Ok(Value::Step(self.steps.len() - 1))
    }

    /// A value as another float type.
    ///
    /// # Errors
    /// When it holds indices.
    pub fn cast(&mut self, value: Value, dtype: DType) -> Result<Value> {
        if self.ty(value).dtype == dtype { Ok(value) } else { self.apply(Cast(dtype), [value]) }
    }

    /// a·b with broadcasting; b may be f32 under another type of a.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn mul(&mut self, a: Value, b: Value) -> Result<Value> {
        self.apply(Binary::mul(), [a, b])
    }

    /// The sum over everything along which an operand was broadcast: a value of the result's shape to an operand's type.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn sum_to(&mut self, value: Value, operand: usize) -> Result<Value> {
        let (from, to) = (self.shape(value), self.inputs[operand].clone());
        let lead = from.rank().saturating_sub(to.shape.rank());
        let repeated = |&axis: &usize| axis < lead || (to.shape[axis - lead] == 1 && from[axis] != 1);
        let axes: Vec<usize> = (0..from.rank()).filter(repeated).collect();
        let mut sum = value;
        if !axes.is_empty() {
            // Sums of many values keep their digits in f32.
            sum = self.cast(sum, DType::F32)?;
            sum = self.apply(Reduce { reduction: Reduction::Sum, axes, keep_dims: true }, [sum])?;
        }
        sum = self.reshape(sum, to.shape)?;
        self.cast(sum, to.dtype)
    }

    /// States the gradient in an operand.
    pub fn set(&mut self, operand: usize, gradient: Value) {
        self.gradients[operand] = Some(gradient);
    }
}
