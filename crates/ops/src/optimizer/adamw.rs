use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// One step of AdamW (arXiv 1711.05101) as PyTorch's `torch.optim.AdamW` computes it, all in f32.
///
/// Operands: state [3, N], rows parameter, first and second moment; gradient [N]; settings [8], see [`AdamWStep`]. Result: the
/// next state.
#[derive(Clone, Debug)]
pub struct AdamW;

/// What a step of [`AdamW`] is told: the settings change with the step, so they are an operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub rate: f32,
    /// Weight decay, decoupled: taken of the parameter by the learning rate's part of it.
    pub decay: f32,
    /// Decay of the moments.
    pub betas: [f32; 2],
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Number of the step, from 1.
    pub step: u32,
    /// Factor of the gradient: what undoes the scale of the loss, and clips. 0 skips the step.
    pub factor: f32,
}

impl AdamWStep {
    /// The operand `settings`.
    pub fn settings(self) -> HostTensor {
        let correction = |beta: f32| (1.0 - f64::from(beta).powi(self.step as i32)) as f32;
        let [first, second] = self.betas;
        let values =
            [self.rate, self.decay, first, second, self.epsilon, correction(first), correction(second), self.factor];
        HostTensor::from_fn([8], |i| values[i])
    }
}

params! {
    struct AdamWParams { count: u32 }
}

impl AdamW {
    /// Registry entry.
    pub const INFO: OperatorInfo =
        OperatorInfo { name: "adamw", summary: "One step of AdamW", shaders: &["adamw"], cases };
}

impl Operator for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn attributes(&self) -> String {
        String::new()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("adamw", inputs, 3)?;
        let count = inputs[1].shape.count();
        let expected = [TensorType::f32([3, count]), TensorType::f32([count]), TensorType::f32([8])];
        if inputs != expected || count == 0 {
            let detail = format!("takes f32 [3, N], [N] and [8], got {}", types(inputs));
            return Err(Error::operator("adamw", detail));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let count = cx.inputs[1].shape.count();
        let slots = [Slot::Input(0), Slot::Input(1), Slot::Input(2), Slot::Output];
        let dispatch = Dispatch::new("adamw", AdamWParams { count: count as u32 }).bind(slots).over(count);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let (state, gradient, settings) = (inputs[0].as_f32()?, inputs[1].as_f32()?, inputs[2].as_f32()?);
        let count = gradient.len();
        let s: Vec<f64> = settings.iter().map(|&v| f64::from(v)).collect();
        let [rate, decay, beta1, beta2, epsilon, correction1, correction2, factor] = s[..] else {
            return Err(Error::operator("adamw", "takes eight settings"));
        };
        let mut next = state.to_vec();
        for i in (0..count).filter(|_| factor != 0.0) {
            let [p, m, v] = [0, 1, 2].map(|row| f64::from(state[row * count + i]));
            let g = factor * f64::from(gradient[i]);
            let m = beta1 * m + (1.0 - beta1) * g;
            let v = beta2 * v + (1.0 - beta2) * g * g;
            let p = p * (1.0 - rate * decay) - rate / correction1 * m / (v.sqrt() / correction2.sqrt() + epsilon);
            [p, m, v].into_iter().enumerate().for_each(|(row, value)| next[row * count + i] = value as f32);
        }
        HostTensor::from_f32([3, count], next)
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |count: usize, name: &str, step: AdamWStep, gradient: Fill| {
        // Second moments are positive.
        let state = Operand::parameter([3, count]).fill(Fill::Uniform(0.01, 1.5));
        let settings = Operand::parameter([8]).fill(Fill::Values(step.settings().to_f32_vec()));
        let operands = vec![state, Operand::parameter([count]).fill(gradient), settings];
        Case::new(format!("count={count}{name}"), AdamW, operands, Tolerance::Transcendental)
    };
    let step = AdamWStep { rate: 0.05, decay: 0.01, betas: [0.9, 0.999], epsilon: 1e-8, step: 3, factor: 0.5 };
    let normal = Fill::Normal(0.0, 1.0);
    let broken = Fill::Values(vec![f32::INFINITY, f32::NAN, 1.0]);
    vec![
        case(1, "", step, normal.clone()),
        case(257, "", step, normal.clone()),
        case(130, ";first_step", AdamWStep { step: 1, factor: 1.0, ..step }, normal.clone()),
        case(65, ";skipped", AdamWStep { factor: 0.0, ..step }, broken),
        case(1 << 22, "", step, normal).benchmark(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps of `torch.optim.AdamW([1, -2, 0.5], lr=0.1, weight_decay=0.01)` of PyTorch 2.15 in float64, on the gradients
    /// (0.3, -1, 0), (0.1, 2, -0.5), (-0.4, 0, 0.25).
    #[test]
    fn steps_are_pytorchs() {
        let gradients = [[0.3, -1.0, 0.0], [0.1, 2.0, -0.5], [-0.4, 0.0, 0.25]];
        let mut state = HostTensor::from_f32([3, 3], vec![1.0, -2.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).unwrap();
        for (i, gradient) in gradients.into_iter().enumerate() {
            let gradient = HostTensor::from_f32([3], gradient.to_vec()).unwrap();
            let step = AdamWStep {
                rate: 0.1,
                decay: 0.01,
                betas: [0.9, 0.999],
                epsilon: 1e-8,
                step: i as u32 + 1,
                factor: 1.0,
            };
            state = AdamW.reference(&[&state, &gradient, &step.settings()]).unwrap();
        }
        for (found, expected) in state.to_f32_vec()[..3].iter().zip(PYTORCH) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} against {expected}");
        }
    }

    const PYTORCH: [f64; 3] = [0.8185805553059539, -1.9590795496464593, 0.5957048029400778];
}
