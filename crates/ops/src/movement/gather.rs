use super::moving_cost;
use crate::*;
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};

/// Rows of a table by index: y[.., :] = table[indices[..], :].
///
/// Operands: table [V, ..]; indices u32 of any shape, below V. Result: the indices' extents, then the table's but the
/// first. A table in f16 can be read as f32 by `output`, on devices without `shader-f16` too.
#[derive(Clone, Debug, Default)]
pub struct Gather {
    /// Element type of the result: the table's where `None`, or f32.
    pub output: Option<DType>,
}

params! {
    struct GatherParams { count: u32, width: u32, rows: u32 }
}

impl Gather {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "gather",
        summary: "Rows of a table by index",
        shaders: &["gather", "gather_unpack"],
        cases,
    };

    /// Rows in f32, whatever the table's type.
    pub fn to_f32() -> Self {
        Gather { output: Some(DType::F32) }
    }
}

impl Operator for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn attributes(&self) -> String {
        format!("output={}", self.output.map_or("table", DType::name))
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("gather", inputs, 2)?;
        let (table, indices) = (&inputs[0], &inputs[1]);
        let fail = |why: &str| Error::operator("gather", format!("{why}: {} ({})", types(inputs), self.attributes()));
        if table.shape.rank() == 0 || table.shape.count() == 0 || indices.dtype != DType::U32 {
            return Err(fail("needs a table with rows and u32 indices"));
        }
        let output = self.output.unwrap_or(table.dtype);
        if output != table.dtype && (output, table.dtype) != (DType::F32, DType::F16) {
            return Err(fail("converts f16 to f32 only"));
        }
        let mut shape = indices.shape.to_vec();
        shape.extend_from_slice(&table.shape[1..]);
        Ok(TensorType::new(output, shape))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let table = &cx.inputs[0];
        let elements = table.shape[1..].iter().product::<usize>();
        let unpack = table.dtype != cx.output.dtype;
        let by_four = !unpack && elements % 4 == 0;
        let cell = if by_four { 4 } else { 1 };
        let count = cx.output.shape.count() / cell;
        let params = GatherParams { count: count as u32, width: (elements / cell) as u32, rows: table.shape[0] as u32 };
        let dispatch = Dispatch::new(if unpack { "gather_unpack" } else { "gather" }, params)
            .storage(cx.output.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(0), Slot::Input(1), Slot::Output])
            .over(count);
        Ok(vec![Variant::single(if unpack { "unpack" } else { "rows" }, dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let output = self.infer(&[inputs[0].tensor_type(), inputs[1].tensor_type()])?;
        let rows = inputs[0].shape()[0];
        let width = inputs[0].shape()[1..].iter().product::<usize>();
        let indices = inputs[1].as_u32()?;
        if let Some(index) = indices.iter().find(|&&i| i as usize >= rows) {
            return Err(Error::operator("gather", format!("index {index} in a table of {rows} rows")));
        }
        let elements = indices.iter().flat_map(|&i| i as usize * width..(i as usize + 1) * width);
        Ok(super::as_reference(&crate::strided::select(inputs[0], elements, output.shape)?))
    }

    fn cost(&self, _inputs: &[TensorType], output: &TensorType) -> Cost {
        moving_cost(output)
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, op: Gather, table: Operand, indices: &[usize]| {
        let rows = table.shape[0] as u32;
        Case::new(name, op, vec![table, Operand::index(indices, rows)], Tolerance::Exact)
    };
    let mut cases = vec![
        case("table=5x3;indices=4", Gather::default(), Operand::activation([5, 3]), &[4]),
        case("table=9x8;indices=2x7", Gather::default(), Operand::activation([9, 8]), &[2, 7]),
        case("table=6x2x2;indices=1", Gather::default(), Operand::activation([6, 2, 2]), &[1]),
        case("table=7;indices=3x2", Gather::default(), Operand::activation([7]), &[3, 2]),
        case("table=50x5;indices=2x11;to_f32", Gather::to_f32(), Operand::weight([50, 5]), &[2, 11]),
        case("table=50x8;indices=2x11;to_f32", Gather::to_f32(), Operand::weight([50, 8]), &[2, 11]),
        case("table=49408x768;indices=77", Gather::default(), Operand::weight([49408, 768]), &[77]).benchmark(),
    ];
    for width in [5, 8] {
        let table = Operand::activation([9, width]).fill(Fill::every_class());
        cases.push(case(&format!("table=9x{width};indices=20;every_class"), Gather::default(), table, &[20]));
        let table = Operand::weight([9, width]).fill(Fill::every_class());
        cases.push(case(&format!("table=9x{width};indices=20;to_f32;every_class"), Gather::to_f32(), table, &[20]));
    }
    cases
}
