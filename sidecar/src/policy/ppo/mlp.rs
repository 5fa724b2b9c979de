//! A perceptron of two hidden layers: what it computes, and how its output depends on its weights.
//!
//! y = W₃ᵀ·tanh(W₂ᵀ·tanh(W₁ᵀ·x + b₁) + b₂) + b₃. [`Mlp`] is a shape; the numbers lie in one slice that
//! somebody else owns, each layer's weight (row by row, one row per input) before its bias. So an
//! optimizer, a norm, a checkpoint and a finite difference are loops over a slice.

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, linalg::general_mat_mul};
use rand::Rng;

use super::{Real, orthogonal::orthogonal};

/// Layers of a network.
pub(super) const LAYERS: usize = 3;

/// The gain of layers before a tanh: detail 2 of Huang et al. 2022.
const HIDDEN_GAIN: f64 = std::f64::consts::SQRT_2;

/// The shape of a network: `inputs` → `hidden` → `hidden` → `outputs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mlp {
    /// Numbers per observation.
    pub inputs: usize,
    /// Units of each of the two hidden layers.
    pub hidden: usize,
    /// Numbers per answer.
    pub outputs: usize,
}

/// Where a layer lies in the slice of parameters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) start: usize,
}

impl Layer {
    pub(super) fn bias_start(self) -> usize {
        self.start + self.inputs * self.outputs
    }

    pub(super) fn end(self) -> usize {
        self.bias_start() + self.outputs
    }

    fn weight<R>(self, parameters: &[R]) -> &[R] {
        &parameters[self.start..self.bias_start()]
    }

    fn bias<R>(self, parameters: &[R]) -> &[R] {
        &parameters[self.bias_start()..self.end()]
    }
}

/// What a forward pass leaves for the backward pass, and where the backward pass works.
#[derive(Clone, Debug, Default)]
pub(super) struct Tape<R> {
    rows: usize,
    first: Vec<R>,
    second: Vec<R>,
    pub(super) output: Vec<R>,
    above: Vec<R>,
    below: Vec<R>,
}

impl Mlp {
    /// Returns how many parameters the network has.
    #[must_use]
    pub const fn parameters(&self) -> usize {
        let Self { inputs, hidden, outputs } = *self;
        (inputs + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * outputs
    }

    pub(super) fn layers(&self) -> [Layer; LAYERS] {
        let Self { inputs, hidden, outputs } = *self;
        let first = Layer { inputs, outputs: hidden, start: 0 };
        let second = Layer { inputs: hidden, outputs: hidden, start: first.end() };
        [first, second, Layer { inputs: hidden, outputs, start: second.end() }]
    }

    /// Fills `parameters` with first weights: orthogonal, the last layer at `gain`, biases 0.
    pub(super) fn begin<R: Real>(&self, parameters: &mut [R], gain: f64, random: &mut impl Rng) {
        for (layer, gain) in self.layers().into_iter().zip([HIDDEN_GAIN, HIDDEN_GAIN, gain]) {
            let weights = orthogonal(layer.inputs, layer.outputs, gain, random);
            parameters[layer.start..layer.bias_start()].copy_from_slice(&weights);
            parameters[layer.bias_start()..layer.end()].fill(R::zero());
        }
    }

    /// Computes the outputs of `inputs` (rows of observations) into the tape's `output`.
    pub(super) fn forward<R: Real>(&self, parameters: &[R], inputs: &[R], tape: &mut Tape<R>) {
        debug_assert_eq!(parameters.len(), self.parameters());
        debug_assert_eq!(inputs.len() % self.inputs, 0, "whole observations");
        let [first, second, third] = self.layers();
        tape.rows = inputs.len() / self.inputs;
        affine(first, parameters, inputs, tape.rows, &mut tape.first);
        R::tanh_all(&mut tape.first);
        affine(second, parameters, &tape.first, tape.rows, &mut tape.second);
        R::tanh_all(&mut tape.second);
        affine(third, parameters, &tape.second, tape.rows, &mut tape.output);
    }

    /// Writes into `gradient` how a loss changes with each parameter, from how it changes with each
    /// output of the last [`forward`](Self::forward) pass, which had the same `inputs`.
    ///
    /// Backpropagation (Rumelhart, Hinton and Williams 1986); tanh′ = 1 − tanh².
    pub(super) fn backward<R: Real>(
        &self,
        parameters: &[R],
        inputs: &[R],
        tape: &mut Tape<R>,
        by_output: &[R],
        gradient: &mut [R],
    ) {
        debug_assert_eq!(gradient.len(), self.parameters());
        debug_assert_eq!(by_output.len(), tape.rows * self.outputs);
        let [first, second, third] = self.layers();
        let rows = tape.rows;
        by_layer(third, &tape.second, by_output, rows, gradient);
        by_input(third, parameters, by_output, rows, &mut tape.above);
        through_tanh(&tape.second, &mut tape.above);
        by_layer(second, &tape.first, &tape.above, rows, gradient);
        by_input(second, parameters, &tape.above, rows, &mut tape.below);
        through_tanh(&tape.first, &mut tape.below);
        by_layer(first, inputs, &tape.below, rows, gradient);
    }

    /// Computes the output of one observation: what a decision costs, so without a tape.
    ///
    /// `hidden` is room for two layers.
    pub(super) fn one<R: Real>(
        &self,
        parameters: &[R],
        observation: &[R],
        hidden: &mut [R],
        output: &mut [R],
    ) {
        let [first, second, third] = self.layers();
        let (one, two) = hidden.split_at_mut(self.hidden);
        affine_one(first, parameters, observation, one);
        R::tanh_all(one);
        affine_one(second, parameters, one, two);
        R::tanh_all(two);
        affine_one(third, parameters, two, output);
    }
}

fn matrix<R>(values: &[R], rows: usize, columns: usize) -> ArrayView2<'_, R> {
    ArrayView2::from_shape((rows, columns), values).expect("as long as its shape says")
}

fn matrix_mut<R>(values: &mut [R], rows: usize, columns: usize) -> ArrayViewMut2<'_, R> {
    ArrayViewMut2::from_shape((rows, columns), values).expect("as long as its shape says")
}

/// output ← input · W + b
fn affine<R: Real>(layer: Layer, parameters: &[R], input: &[R], rows: usize, output: &mut Vec<R>) {
    output.clear();
    (0..rows).for_each(|_| output.extend_from_slice(layer.bias(parameters)));
    general_mat_mul(
        R::one(),
        &matrix(input, rows, layer.inputs),
        &matrix(layer.weight(parameters), layer.inputs, layer.outputs),
        R::one(),
        &mut matrix_mut(output, rows, layer.outputs),
    );
}

/// W's gradient ← inputᵀ · by_output; b's ← the sum of its rows.
fn by_layer<R: Real>(layer: Layer, input: &[R], by_output: &[R], rows: usize, gradient: &mut [R]) {
    let (weight, bias) =
        gradient[layer.start..layer.end()].split_at_mut(layer.inputs * layer.outputs);
    general_mat_mul(
        R::one(),
        &matrix(input, rows, layer.inputs).t(),
        &matrix(by_output, rows, layer.outputs),
        R::zero(),
        &mut matrix_mut(weight, layer.inputs, layer.outputs),
    );
    bias.fill(R::zero());
    for row in by_output.chunks_exact(layer.outputs) {
        bias.iter_mut().zip(row).for_each(|(sum, &value)| *sum += value);
    }
}

/// by_input ← by_output · Wᵀ
fn by_input<R: Real>(
    layer: Layer,
    parameters: &[R],
    by_output: &[R],
    rows: usize,
    by_input: &mut Vec<R>,
) {
    by_input.resize(rows * layer.inputs, R::zero());
    general_mat_mul(
        R::one(),
        &matrix(by_output, rows, layer.outputs),
        &matrix(layer.weight(parameters), layer.inputs, layer.outputs).t(),
        R::zero(),
        &mut matrix_mut(by_input, rows, layer.inputs),
    );
}

fn through_tanh<R: Real>(tanh: &[R], slopes: &mut [R]) {
    for (slope, &tanh) in slopes.iter_mut().zip(tanh) {
        *slope *= R::one() - tanh * tanh;
    }
}

/// Outputs that are summed at once: four vector registers of the least x86-64.
const BLOCK: usize = 16;

fn affine_one<R: Real>(layer: Layer, parameters: &[R], input: &[R], output: &mut [R]) {
    let (weight, bias) = (layer.weight(parameters), layer.bias(parameters));
    if layer.outputs == 1 {
        output[0] = bias[0] + ArrayView1::from(weight).dot(&ArrayView1::from(input));
        return;
    }
    let blocked = layer.outputs - layer.outputs % BLOCK;
    for start in (0..blocked).step_by(BLOCK) {
        let mut sums = [R::zero(); BLOCK];
        sums.copy_from_slice(&bias[start..start + BLOCK]);
        for (&x, row) in input.iter().zip(weight.chunks_exact(layer.outputs)) {
            let row: &[R; BLOCK] = row[start..start + BLOCK].try_into().expect("a whole block");
            for n in 0..BLOCK {
                sums[n] += x * row[n];
            }
        }
        output[start..start + BLOCK].copy_from_slice(&sums);
    }
    for n in blocked..layer.outputs {
        let column = weight.iter().skip(n).step_by(layer.outputs);
        output[n] = input.iter().zip(column).fold(bias[n], |sum, (&x, &w)| sum + x * w);
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::{Purpose, normal, stream};
    use super::*;

    const SHAPE: Mlp = Mlp { inputs: 12, hidden: 64, outputs: 1 };

    fn parameters(shape: Mlp) -> Vec<f64> {
        let mut parameters = vec![0.0; shape.parameters()];
        let mut random = stream(5, Purpose::Weights, 0);
        shape.begin(&mut parameters, 1.0, &mut random);
        parameters.iter_mut().for_each(|weight| *weight += 0.1 * normal(&mut random));
        parameters
    }

    fn observations(rows: usize, width: usize) -> Vec<f64> {
        let mut random = stream(6, Purpose::Environment, 0);
        (0..rows * width).map(|_| normal(&mut random)).collect()
    }

    #[test]
    fn twelve_inputs_and_two_layers_of_64_are_5057_parameters() {
        assert_eq!(SHAPE.parameters(), 12 * 64 + 64 + 64 * 64 + 64 + 64 + 1);
        assert_eq!(SHAPE.layers()[2].end(), SHAPE.parameters());
    }

    #[test]
    fn one_observation_alone_answers_as_it_does_among_others() {
        for shape in [SHAPE, Mlp { inputs: 4, hidden: 19, outputs: 2 }] {
            let (parameters, inputs) = (parameters(shape), observations(9, shape.inputs));
            let mut tape = Tape::default();
            shape.forward(&parameters, &inputs, &mut tape);
            let (mut hidden, mut output) = (vec![0.0; 2 * shape.hidden], vec![0.0; shape.outputs]);
            for (row, expected) in
                inputs.chunks(shape.inputs).zip(tape.output.chunks(shape.outputs))
            {
                shape.one(&parameters, row, &mut hidden, &mut output);
                for (found, expected) in output.iter().zip(expected) {
                    assert!((found - expected).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn single_precision_answers_as_double_precision_does() {
        let (parameters, inputs) = (parameters(SHAPE), observations(32, 12));
        let mut exact = Tape::default();
        SHAPE.forward(&parameters, &inputs, &mut exact);
        let narrow = |values: &[f64]| values.iter().map(|&x| f32::of(x)).collect::<Vec<_>>();
        let mut tape = Tape::default();
        SHAPE.forward(&narrow(&parameters), &narrow(&inputs), &mut tape);
        for (found, expected) in tape.output.iter().zip(&exact.output) {
            assert!((found.wide() - expected).abs() < 2e-6 * (1.0 + expected.abs()));
        }
    }

    /// The loss is Σ cₙ·yₙ, so that its gradient by the outputs is c.
    #[test]
    fn every_weight_and_bias_of_every_layer_has_the_slope_that_a_finite_difference_finds() {
        for shape in [SHAPE, Mlp { inputs: 3, hidden: 5, outputs: 4 }] {
            let (mut parameters, inputs) = (parameters(shape), observations(7, shape.inputs));
            let by_output = observations(7, shape.outputs);
            let mut tape = Tape::default();
            let mut gradient = vec![f64::NAN; shape.parameters()];
            shape.forward(&parameters, &inputs, &mut tape);
            shape.backward(&parameters, &inputs, &mut tape, &by_output, &mut gradient);
            for n in 0..parameters.len() {
                let weight = parameters[n];
                let mut loss = |step: f64| {
                    parameters[n] = weight + step;
                    shape.forward(&parameters, &inputs, &mut tape);
                    tape.output.iter().zip(&by_output).map(|(y, c)| y * c).sum::<f64>()
                };
                let slope = (loss(1e-5) - loss(-1e-5)) / 2e-5;
                parameters[n] = weight;
                let error = (gradient[n] - slope).abs() / (1.0 + slope.abs());
                assert!(error < 1e-8, "parameter {n}: {} for {slope}", gradient[n]);
            }
        }
    }
}
