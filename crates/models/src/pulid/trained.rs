//! A PuLID adapter with all its weights as inputs: what training changes, and nothing else.

use super::names::official_names;
use super::{IdEncoder, IdFormer, IdentityAdapter, IdentityLayer, PulidVersion};
use crate::Precision;
use crate::vars::Layout;
use pulid_checkpoint::Checkpoint;
use pulid_graph::{Graph, NodeId, NodeKind, Weight};
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};

/// A tensor of an adapter that is trained.
#[derive(Clone, Debug)]
pub struct TrainedParameter {
    /// Its name in published files, which is also the name of its input.
    pub name: String,
    /// Its node.
    pub node: NodeId,
    weight: Weight,
    layout: Layout,
}

impl TrainedParameter {
    /// Its value in the file, as the graph has it, in f32.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(&self) -> Result<HostTensor> {
        self.weight.load()
    }

    /// A tensor of the graph's shape as published files have it: matrices [out, in].
    ///
    /// # Errors
    /// For a tensor of another rank.
    pub fn to_stored(&self, tensor: HostTensor) -> Result<HostTensor> {
        self.layout.to_stored(tensor)
    }

    /// The opposite of [`TrainedParameter::to_stored`].
    ///
    /// # Errors
    /// For a tensor of another rank.
    pub fn to_graph(&self, tensor: HostTensor) -> Result<HostTensor> {
        match self.layout {
            Layout::Same => Ok(tensor),
            Layout::Transposed => crate::vars::transpose(&tensor),
            Layout::ChannelsLast => crate::vars::channels_last(&tensor),
        }
    }
}

/// The identity encoder and the identity attention's projections of a PuLID file in one graph, all in f32.
#[derive(Clone, Debug)]
pub struct TrainedAdapter {
    version: PulidVersion,
    encoder: Encoder,
    attention: IdentityAdapter,
}

#[derive(Clone, Debug)]
enum Encoder {
    V1(IdEncoder),
    V1_1(IdFormer),
}

impl TrainedAdapter {
    /// f32 in values and weights: the adapter is its own master copy.
    pub const PRECISION: Precision = Precision { activations: DType::F32, weights: Some(DType::F32) };

    /// The adapter of a whole PuLID file for SDXL, v1 or v1.1.
    ///
    /// # Errors
    /// When the file lacks the identity encoder or the attention's projections.
    pub fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let file = official_names(checkpoint)?;
        let attention = IdentityAdapter::new(checkpoint, Self::PRECISION)?;
        let version = PulidVersion::of(checkpoint).ok_or_else(|| {
            let detail = "holds no identity encoder; training starts from a whole PuLID file, v1 or v1.1, or from none";
            Error::file(checkpoint.name(), detail)
        })?;
        let encoder = match version {
            PulidVersion::V1 => Encoder::V1(IdEncoder::new(&file, Self::PRECISION)?),
            PulidVersion::V1_1 => Encoder::V1_1(IdFormer::new(&file, Self::PRECISION)?),
        };
        Ok(TrainedAdapter { version, encoder, attention })
    }

    /// Which PuLID it is.
    pub fn version(&self) -> PulidVersion {
        self.version
    }

    /// Identity tokens of a person, and their width.
    pub fn output_shape(&self) -> [usize; 2] {
        match &self.encoder {
            Encoder::V1(encoder) => encoder.output_shape(),
            Encoder::V1_1(former) => former.output_shape(),
        }
    }

    /// Dimension of the identity condition of a photo.
    pub fn condition_dim(&self) -> usize {
        match &self.encoder {
            Encoder::V1(encoder) => encoder.condition_dim(),
            Encoder::V1_1(former) => former.condition_dim(),
        }
    }

    /// The extents of the input `id_cond` for people of one photo each: v1 takes [B, C], v1.1 [B, 1, C].
    pub fn condition_shape(&self, batch: usize) -> Vec<usize> {
        match self.version {
            PulidVersion::V1 => vec![batch, self.condition_dim()],
            PulidVersion::V1_1 => vec![batch, 1, self.condition_dim()],
        }
    }

    /// The graph from a photo's features to the keys and values of a UNet's layers, for `batch` people of one photo each, with `tokens`
    /// vision tokens in a photo.
    ///
    /// Inputs, f32: `id_cond` ([`TrainedAdapter::condition_shape`]), `hidden_0` .. `hidden_4` [B, tokens, V], and each parameter by its
    /// name. Outputs, f32: `k.N` and `v.N` [B, N, C] for each of `layers`.
    ///
    /// # Errors
    /// When a weight is missing or mismatched.
    pub fn graph(
        &self,
        layers: &[IdentityLayer],
        batch: usize,
        tokens: usize,
    ) -> Result<(Graph, Vec<TrainedParameter>)> {
        let encoder = match &self.encoder {
            Encoder::V1(encoder) => encoder.graph(batch, tokens)?,
            Encoder::V1_1(former) => former.graph(batch, 1, tokens)?,
        };
        let mut graph = Graph::new("trained-adapter");
        let embedding = graph.append(&encoder, &[])?;
        let [(_, embedding)] = embedding[..] else {
            return Err(Error::invalid("identity encoder", "has not one output"));
        };
        let count = graph.shape(embedding)[1];
        let projections = self.attention.graph(layers, batch, count)?;
        for (name, id) in graph.append(&projections, &[("id_embedding", embedding)])? {
            graph.output(name, id)?;
        }
        let parameters = parameters(&mut graph)?;
        Ok((graph, parameters))
    }
}

/// Makes inputs of all weights that come from the file.
fn parameters(graph: &mut Graph) -> Result<Vec<TrainedParameter>> {
    let mut found = Vec::new();
    for index in 0..graph.nodes().len() {
        let node = graph.id(index);
        let NodeKind::Weight(weight) = &graph.nodes()[index].kind else { continue };
        if weight.is_constant() {
            continue;
        }
        if *graph.ty(node) != TensorType::f32(graph.shape(node).clone()) {
            return Err(Error::invalid(weight.name.clone(), format!("is {}, and f32 is trained", graph.ty(node))));
        }
        let layout = Layout::named(&weight.key().layout).ok_or_else(|| {
            Error::invalid(weight.name.clone(), format!("is made by `{}`, which is not trained", weight.key().layout))
        })?;
        let weight = graph.free_weight(node)?;
        found.push(TrainedParameter { name: weight.name.clone(), node, weight, layout });
    }
    Ok(found)
}
