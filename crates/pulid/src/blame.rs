//! Which weights are to blame where a network's result is not finite.

use pulid_engine::Observer;
use pulid_graph::{Graph, NodeKind, Weight};
use pulid_tensor::{DType, Error, HostTensor, Result};

/// Weights that a message names; the search ends with one more.
const NAMED: usize = 3;

/// The weights of files that a network was computed with.
#[derive(Clone, Debug, Default)]
pub struct Suspects(Vec<Suspect>);

#[derive(Clone, Debug)]
struct Suspect {
    weight: Weight,
    bytes: u64,
}

/// A weight with values that are not finite.
struct Culprit {
    /// The file, where one is known.
    file: Option<String>,
    text: String,
    /// Whether it is infinite only because half precision ends at 65504.
    halved: bool,
}

impl Suspects {
    /// Those of a graph.
    pub fn of(graph: &Graph) -> Suspects {
        let suspect = |node: &pulid_graph::Node| match &node.kind {
            NodeKind::Weight(weight) if !weight.is_constant() => {
                Some(Suspect { weight: weight.clone(), bytes: node.ty.bytes() as u64 })
            }
            _ => None,
        };
        Suspects(graph.nodes().iter().filter_map(suspect).collect())
    }

    /// Adds those of a network whose results this one reads.
    pub fn extend(&mut self, others: Suspects) {
        self.0.extend(others.0);
    }

    /// The error of a result that is not finite, with the file and names of weights that are not finite themselves in the place of advice; the
    /// same error where there are none, or one cannot be read. Weights are read one after another, and only until enough are found.
    pub fn blame(&self, error: Error, observer: &dyn Observer) -> Error {
        let Error::NotFinite { network, operator, .. } = &error else { return error };
        let found = match self.culprits(observer) {
            Err(Error::Cancelled) => return Error::Cancelled,
            Err(_) => return error,
            Ok(found) if found.is_empty() => return error,
            Ok(found) => found,
        };
        let mut parts: Vec<String> = Vec::new();
        let mut last = None;
        for Culprit { file, text, .. } in found.iter().take(NAMED) {
            match file {
                Some(file) if last != Some(file) => parts.push(format!("{file}: {text}")),
                _ => parts.push(text.clone()),
            }
            last = file.as_ref();
        }
        let more = if found.len() > NAMED { ", ..." } else { "" };
        // In half precision an infinity may be a large number of the file.
        let advice = match found.iter().all(|culprit| culprit.halved) {
            true => {
                "as halves, which end at 65504; try `dtype` f32, and if that fails too, fetch the file again or take another"
            }
            false => "so that no image comes of it: fetch the file again or take another",
        };
        let detail = format!("weights are NaN or infinite themselves: {}{more}; {advice}", parts.join(", "));
        Error::NotFinite { network: network.clone(), operator: operator.clone(), detail }
    }

    fn culprits(&self, observer: &dyn Observer) -> Result<Vec<Culprit>> {
        let total = self.0.iter().map(|suspect| suspect.bytes).sum();
        let (mut done, mut found) = (0, Vec::new());
        for Suspect { weight, bytes } in &self.0 {
            if observer.cancelled() {
                return Err(Error::Cancelled);
            }
            let tensor = weight.load()?;
            let (nan, infinite, count) = not_finite(&tensor);
            if nan + infinite > 0 {
                found.push(Culprit {
                    file: weight.file().map(str::to_owned),
                    text: format!("`{}` ({} of {count} values)", weight.name, nan + infinite),
                    halved: nan == 0 && tensor.dtype() == DType::F16,
                });
                if found.len() > NAMED {
                    break;
                }
            }
            done += bytes;
            observer.progress(done, total);
        }
        Ok(found)
    }
}

/// How many values are NaN, how many infinite, and how many there are.
fn not_finite(tensor: &HostTensor) -> (usize, usize, usize) {
    let count = |values: &mut dyn Iterator<Item = f32>| {
        values.fold((0, 0, 0), |(nan, infinite, all), v| {
            (nan + usize::from(v.is_nan()), infinite + usize::from(v.is_infinite()), all + 1)
        })
    };
    match tensor.as_f32() {
        Ok(values) => count(&mut values.iter().copied()),
        Err(_) => count(&mut tensor.to_f32_vec().into_iter()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_engine::Silent;
    use pulid_graph::WeightKey;
    use pulid_tensor::TensorType;

    fn not_finite() -> Error {
        Error::NotFinite { network: "n".into(), operator: "o".into(), detail: "check the weights".into() }
    }

    fn graph(weights: &[(&str, f32)]) -> Graph {
        let mut g = Graph::new("n");
        for &(name, value) in weights {
            let load = move || Ok(HostTensor::from_fn([4], |i| if i == 1 { value } else { 1.0 }));
            let weight = Weight::new(name, WeightKey::new(name, "same"), load).in_file("a.safetensors");
            g.weight(weight, TensorType::f32([4]));
        }
        g
    }

    #[test]
    fn weights_that_are_not_finite_are_named_with_their_file_and_others_change_nothing() {
        let good = Suspects::of(&graph(&[("a", 1.0), ("b", -2.0)]));
        assert_eq!(good.blame(not_finite(), &Silent).to_string(), not_finite().to_string());
        let mut bad = Suspects::of(&graph(&[("a", 1.0), ("b", f32::NAN)]));
        bad.extend(Suspects::of(&graph(&[("c", f32::INFINITY)])));
        let error = bad.blame(not_finite(), &Silent).to_string();
        for part in ["n: operator o", "a.safetensors: `b` (1 of 4 values), `c` (1 of 4 values); "] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let many: Vec<_> = ["a", "b", "c", "d", "e"].map(|name| (name, f32::NAN)).into();
        let error = Suspects::of(&graph(&many)).blame(not_finite(), &Silent).to_string();
        assert!(error.contains("`c` (1 of 4 values), ...") && !error.contains("`d`"), "{error}");
        // Whatever else went wrong is that.
        assert!(matches!(bad.blame(Error::Device("lost".into()), &Silent), Error::Device(_)));
    }

    #[test]
    fn a_search_can_be_cancelled() {
        struct Stop;
        impl Observer for Stop {
            fn cancelled(&self) -> bool {
                true
            }
        }
        let bad = Suspects::of(&graph(&[("b", f32::NAN)]));
        assert!(matches!(bad.blame(not_finite(), &Stop), Error::Cancelled));
    }
}
