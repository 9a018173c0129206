//! The network: four dense layers, whose gradients are calculated one layer at a time.
//!
//! candle calculates all gradients of a graph in one call, and nothing could be sent meanwhile. So each layer is a graph of its own: its input
//! is a variable cut from the graph before, and the gradient of that input is where the layer before goes on.

use std::collections::HashMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Result, Tensor, Var};

use crate::digits::{CLASSES, PIXELS, Random};

/// Numbers between the layers.
const WIDTHS: [usize; 5] = [PIXELS, 256, 256, 128, CLASSES];
pub(crate) const LAYERS: usize = WIDTHS.len() - 1;
const MOMENTUM: f32 = 0.9;

/// The weights and biases of a layer, and where they are moving.
#[derive(Debug)]
struct Layer {
    variables: [Var; 2],
    velocities: Vec<f32>,
}

#[derive(Debug)]
pub(crate) struct Model {
    layers: Vec<Layer>,
}

/// What a layer has done to some images, while its gradients are not known.
#[derive(Debug)]
struct Stage {
    input: Tensor,
    output: Tensor,
}

/// Images on their way back through the layers.
#[derive(Debug)]
pub(crate) struct Pass {
    stages: Vec<Stage>,
    /// Of the loss by the output of the last stage that is left.
    gradient: Tensor,
    /// The sum of the images' losses, and how many were recognised.
    pub(crate) loss: f32,
    pub(crate) right: f32,
}

/// How many numbers a layer's gradients are.
pub(crate) const fn parameters(layer: usize) -> usize {
    (WIDTHS[layer] + 1) * WIDTHS[layer + 1]
}

const fn shapes(layer: usize) -> [(usize, usize); 2] {
    [(WIDTHS[layer], WIDTHS[layer + 1]), (1, WIDTHS[layer + 1])]
}

impl Model {
    /// First weights from a seed, so that all ranks have the same.
    pub(crate) fn new(seed: u64) -> Result<Self> {
        let mut random = Random::new(seed ^ 0x6c61_7965_7273);
        let layer = |layer| {
            let [weight, bias] = shapes(layer);
            let bound = (6.0 / WIDTHS[layer] as f32).sqrt();
            let values = (0..weight.0 * weight.1).map(|_| bound * random.signed()).collect::<Vec<_>>();
            let weight = Var::from_vec(values, weight, &Device::Cpu)?;
            let bias = Var::zeros(bias, DType::F32, &Device::Cpu)?;
            Ok(Layer { variables: [weight, bias], velocities: vec![0.0; parameters(layer)] })
        };
        Ok(Self { layers: (0..LAYERS).map(layer).collect::<Result<_>>()? })
    }

    fn apply(&self, layer: usize, input: &Tensor) -> Result<Tensor> {
        let [weight, bias] = &self.layers[layer].variables;
        let output = input.matmul(weight)?.broadcast_add(bias)?;
        if layer + 1 < LAYERS { output.relu() } else { Ok(output) }
    }

    /// Through all layers, to the loss. Its gradient is that of the mean over `batch` images, of which all ranks together have so many.
    pub(crate) fn forward(&self, (images, labels): (Tensor, Tensor), batch: usize) -> Result<Pass> {
        let mut stages = Vec::with_capacity(LAYERS);
        let mut input = images;
        for layer in 0..LAYERS {
            let output = self.apply(layer, &input)?;
            let cut = Var::from_tensor(&output)?.into_inner();
            stages.push(Stage { input: std::mem::replace(&mut input, cut), output });
        }
        let loss = cross_entropy(&input, &labels)?;
        let gradient = gradient(&mut (&loss / batch as f64)?.backward()?, &input);
        let right = input.argmax(D::Minus1)?.eq(&labels)?.to_dtype(DType::F32)?.sum_all()?;
        Ok(Pass { stages, gradient, loss: loss.to_scalar()?, right: right.to_scalar()? })
    }

    /// The gradients of a layer's weights and biases. Layers are asked for once, the last one first.
    pub(crate) fn backward(&self, layer: usize, pass: &mut Pass) -> Result<[Tensor; 2]> {
        let Stage { input, output } =
            pass.stages.pop().expect("a pass has a stage for each layer, and each is asked for once");
        // The sum's gradients are those of the loss, by the chain rule.
        let mut store = (output * &pass.gradient)?.sum_all()?.backward()?;
        if layer > 0 {
            pass.gradient = gradient(&mut store, &input);
        }
        Ok(self.layers[layer].variables.each_ref().map(|variable| gradient(&mut store, variable)))
    }

    /// Moves a layer's weights and biases against their gradients: stochastic gradient descent with momentum.
    pub(crate) fn update(&mut self, layer: usize, gradients: &[f32], rate: f32) -> Result<()> {
        let Layer { variables, velocities } = &mut self.layers[layer];
        let mut steps = velocities.iter_mut().zip(gradients).map(|(velocity, gradient)| {
            *velocity = MOMENTUM * *velocity + gradient;
            rate * *velocity
        });
        for variable in variables {
            let mut values = variable.flatten_all()?.to_vec1::<f32>()?;
            values.iter_mut().zip(&mut steps).for_each(|(value, step)| *value -= step);
            variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu)?)?;
        }
        Ok(())
    }

    /// By name.
    fn tensors(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.layers.iter().zip(1..).flat_map(|(layer, number)| {
            let named = move |(name, variable): (&str, _)| {
                (format!("layer{number}.{name}"), Var::as_tensor(variable))
            };
            ["weight", "bias"].into_iter().zip(&layer.variables).map(named)
        })
    }

    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        candle_core::safetensors::save(
            &self.tensors().map(|(name, t)| (name, t.clone())).collect::<HashMap<_, _>>(),
            path,
        )
    }

    /// A number that tells models apart by the bits of their weights: FNV-1a.
    pub(crate) fn digest(&self) -> Result<u64> {
        let mut digest = 0xcbf2_9ce4_8422_2325;
        for (_, tensor) in self.tensors() {
            for value in tensor.flatten_all()?.to_vec1::<f32>()? {
                digest = (digest ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
            }
        }
        Ok(digest)
    }
}

/// The sum over the images.
fn cross_entropy(outputs: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let shifted = outputs.broadcast_sub(&outputs.max_keepdim(1)?.detach())?;
    let total = shifted.exp()?.sum_keepdim(1)?.log()?;
    (total - shifted.gather(&labels.unsqueeze(1)?, 1)?)?.sum_all()
}

/// Of a variable that the graph was made from.
fn gradient(store: &mut GradStore, variable: &Tensor) -> Tensor {
    store.remove(variable).expect("a graph has a gradient of every variable that it was made from")
}
