//! The moving average of the parameters, on the device.

use pulid::runtime::{Loaded, Runtime, Tensor};
use pulid_engine::Observer;
use pulid_graph::{Graph, Rate};
use pulid_ops::WeightedSum;
use pulid_tensor::{Error, HostTensor, Result, Shape, TensorType};
use std::collections::HashMap;

/// An exponential moving average of each parameter: a' = d a + (1 - d) value.
#[derive(Debug)]
pub struct Average {
    decay: f64,
    /// A step's network for parameters of each shape.
    networks: HashMap<Shape, Loaded>,
    /// Of each parameter its `average`, as its network takes it.
    values: HashMap<String, HashMap<String, Tensor>>,
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
        let mut networks = HashMap::new();
        for (_, value) in &values {
            if !networks.contains_key(value.shape()) {
                let loaded = runtime.load(&graph(value.shape())?, observer).await?;
                networks.insert(value.shape().clone(), loaded);
            }
        }
        // They come to the device with the first step.
        let input = |value| HashMap::from([("average".to_owned(), Tensor::Host(value))]);
        let values = values.into_iter().map(|(name, value)| (name, input(value))).collect();
        Ok(Average { decay, networks, values })
    }

    /// Bytes of the averages.
    pub fn bytes(&self) -> usize {
        self.values.values().flat_map(HashMap::values).map(Tensor::bytes).sum()
    }

    /// Follows a parameter's new value after update `update`, counted from 1; gives the value back.
    ///
    /// # Errors
    /// A parameter that is not averaged, a lost device.
    pub async fn follow(
        &mut self,
        name: &str,
        shape: &Shape,
        value: Tensor,
        update: u32,
        observer: &dyn Observer,
    ) -> Result<Tensor> {
        let none = || Error::invalid(name, "has no average");
        let network = self.networks.get_mut(shape).ok_or_else(none)?;
        // It stays until the next one is there, for a checkpoint.
        let average = self.values.get(name).ok_or_else(none)?;
        let decay = decay_at(update, self.decay);
        network.write(
            "weights",
            &HostTensor::from_fn([2], |i| if i == 0 { decay as f32 } else { (1.0 - decay) as f32 }),
        )?;
        network.write_tensors(average).await?;
        let mut given = HashMap::from([("value".to_owned(), value)]);
        network.write_tensors(&given).await?;
        let next = network.run_to(&["average"], observer).await?;
        self.values.insert(name.to_owned(), next);
        given.remove("value").ok_or_else(none)
    }

    /// A parameter's average.
    ///
    /// # Errors
    /// A parameter that is not averaged, a lost device.
    pub async fn read(&self, name: &str, shape: &Shape) -> Result<HostTensor> {
        let value = self.values.get(name).and_then(|held| held.get("average"));
        let value = value.ok_or_else(|| Error::invalid(name, "has no average"))?;
        value.read().await?.reshape(shape.clone())
    }
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
            let mut average = Average::load(&Runtime::Reference, 0.9, start, &pulid_engine::Silent).await.unwrap();
            let (mut expected, mut observed) = (0.0, Vec::new());
            for (update, v) in [(1, 2.0), (2, 4.0), (3, -1.0)] {
                let given = Tensor::Host(value(v));
                let back = average.follow("p", &shape, given, update, &pulid_engine::Silent).await.unwrap();
                assert_eq!(back.read().await.unwrap(), value(v));
                let decay = decay_at(update, 0.9);
                expected = decay * expected + (1.0 - decay) * f64::from(v);
                observed = average.read("p", &shape).await.unwrap().to_f32_vec();
            }
            for (i, found) in observed.into_iter().enumerate() {
                assert!((f64::from(found) - expected - i as f64).abs() < 1e-5, "{found} {expected}");
            }
            let other = average.follow("q", &shape, Tensor::Host(value(0.0)), 1, &pulid_engine::Silent).await;
            assert!(other.unwrap_err().to_string().contains("no average"));
        });
    }
}
