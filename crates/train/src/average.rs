//! The moving average of the parameters, on the device.

use crate::adapter::Adapter;
use crate::packs::{self, Piece, Unstoppable, packs};
use pulid::runtime::{Copies, Loaded, Reporter, Runtime, Tensor};
use pulid_engine::Observer;
use pulid_graph::{Graph, Rate};
use pulid_ops::WeightedSum;
use pulid_tensor::{Error, HostTensor, Result, Shape, TensorType};
use std::collections::HashMap;

/// An exponential moving average of each parameter: a' = d a + (1 - d) value.
#[derive(Debug)]
pub struct Average {
    decay: f64,
    /// A step's network, for packs of so many numbers.
    network: Loaded,
    size: usize,
    values: HashMap<String, Tensor>,
}

/// The decay after an update, counted from 1: it grows from 0 towards `most`, so that the first values are soon forgotten (diffusers'
/// `EMAModel.get_decay` without its warm-up by inverse powers).
pub fn decay_at(update: u32, most: f64) -> f64 {
    match update {
        0 | 1 => 0.0,
        _ => {
            let before = f64::from(update - 1);
            ((1.0 + before) / (10.0 + before)).min(most)
        }
    }
}

impl Average {
    /// Averages that stand at `values`, of names and shapes in the adapter's graph.
    ///
    /// # Errors
    /// A device out of memory.
    pub async fn load(
        runtime: &Runtime,
        decay: f64,
        values: Vec<(String, HostTensor)>,
        observer: &dyn Observer,
    ) -> Result<Average> {
        let size = packs::size(values.iter().map(|(_, value)| value.shape().count()));
        let network = runtime.load(&graph(&Shape::new([size]))?, observer).await?;
        let mut averages = HashMap::new();
        for (name, value) in values {
            let value = runtime.tensor("average", value).await?;
            averages.insert(name, value);
        }
        Ok(Average { decay, network, size, values: averages })
    }

    /// Follows the parameters' new values after update `update`, counted from 1.
    ///
    /// # Errors
    /// A parameter that is not averaged, a lost device.
    pub async fn follow(&mut self, adapter: &Adapter, update: u32, reporter: &dyn Reporter) -> Result<()> {
        let parameters = adapter.shapes();
        if let Some((name, _)) = parameters.iter().find(|(name, _)| !self.values.contains_key(name)) {
            return Err(no_average(name));
        }
        let decay = decay_at(update, self.decay);
        let weights = [decay, 1.0 - decay];
        self.network.write("weights", &HostTensor::from_fn([2], |i| weights[i] as f32))?;
        for pack in packs(parameters.iter().map(|(_, shape)| shape.count()), self.size) {
            let network = &mut self.network;
            let mut copies = Copies::default();
            for Piece { parameter, range, at } in &pack {
                let (name, _) = &parameters[*parameter];
                let average = self.values.get(name).ok_or_else(|| no_average(name))?;
                copies.into_input(network, "average", *at, &average.numbers()?.part(range.clone())?).await?;
                copies.into_input(network, "value", *at, &adapter.value(name)?.part(range.clone())?).await?;
            }
            copies.finish().await?;
            network.run_in_place(&Unstoppable(reporter)).await?;
            let next = network.output("average")?;
            let mut copies = Copies::default();
            for Piece { parameter, range, at } in pack {
                let (name, _) = &parameters[parameter];
                let average = self.values.get_mut(name).ok_or_else(|| no_average(name))?;
                copies.into_tensor(average, range.start, &next.part(at..at + range.len())?).await?;
            }
            copies.finish().await?;
        }
        Ok(())
    }

    /// A parameter's average.
    ///
    /// # Errors
    /// A parameter that is not averaged, a lost device.
    pub async fn read(&self, name: &str, shape: &Shape) -> Result<HostTensor> {
        let value = self.values.get(name).ok_or_else(|| no_average(name))?;
        value.read().await?.reshape(shape.clone())
    }
}

fn no_average(name: &str) -> Error {
    Error::invalid(name, "has no average")
}

/// Inputs: `average` and `value` of a shape, `weights` [2]. Output: the next `average`.
pub(crate) fn graph(shape: &Shape) -> Result<Graph> {
    let mut graph = Graph::new("average");
    let g = &mut graph;
    let ty = TensorType::f32(shape.clone());
    let average = g.input("average", ty.clone(), Rate::Step)?;
    let value = g.input("value", ty, Rate::Step)?;
    let weights = g.input("weights", TensorType::f32([2]), Rate::Step)?;
    let next = g.apply(WeightedSum, &[average, value, weights])?;
    g.output("average", next)?;
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::tests::adapter;
    use pulid_engine::Silent;

    /// diffusers 0.25's `EMAModel(decay=0.5).get_decay(step)` for step 1, 2, 3, 8, 100 (`update_after_step` 0).
    #[test]
    fn the_decay_is_that_of_diffusers() {
        let found = [1, 2, 3, 8, 100].map(|update| decay_at(update, 0.5));
        for (found, wanted) in found.into_iter().zip([0.0, 2.0 / 11.0, 3.0 / 12.0, 8.0 / 17.0, 0.5]) {
            assert!((found - wanted).abs() < 1e-12, "{found} {wanted}");
        }
    }

    #[test]
    fn an_average_follows_its_parameter() {
        pollster::block_on(async {
            let shape = Shape::new([2, 3]);
            let value = |v: f32| HostTensor::from_fn(shape.clone(), |i| v + i as f32);
            let start = vec![("p".to_owned(), value(1.0))];
            let mut average = Average::load(&Runtime::Reference, 0.9, start, &Silent).await.unwrap();
            let (mut expected, mut observed) = (0.0, Vec::new());
            for (update, v) in [(1, 2.0), (2, 4.0), (3, -1.0)] {
                let adapter = adapter(&Runtime::Reference, &value(v), 6).await;
                average.follow(&adapter, update, &Silent).await.unwrap();
                let decay = decay_at(update, 0.9);
                expected = decay * expected + (1.0 - decay) * f64::from(v);
                observed = average.read("p", &shape).await.unwrap().to_f32_vec();
            }
            for (i, found) in observed.into_iter().enumerate() {
                assert!((f64::from(found) - expected - i as f64).abs() < 1e-5, "{found} {expected}");
            }
            let mut other = Average::load(&Runtime::Reference, 0.9, Vec::new(), &Silent).await.unwrap();
            let adapter = adapter(&Runtime::Reference, &value(0.0), 6).await;
            assert!(other.follow(&adapter, 1, &Silent).await.unwrap_err().to_string().contains("no average"));
        });
    }
}
