//! The two networks that PPO learns, their parameters in one slice.

use rand::Rng;

use super::{
    Head, Mlp, Real,
    mlp::{LAYERS, Tape},
    random::{Purpose, stream},
};

/// The gain of the actor's last layer: at first every action is as likely everywhere.
const ACTOR_GAIN: f64 = 0.01;

/// The gain of the critic's last layer.
const CRITIC_GAIN: f64 = 1.0;

/// An actor and a critic of the same hidden width, sharing nothing (detail 13 of Huang et al. 2022),
/// and the free parameters of the actor's distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct ActorCritic<H, R = f32> {
    head: H,
    actor: Mlp,
    critic: Mlp,
    /// Actor, free parameters, critic.
    parameters: Vec<R>,
}

/// One named piece of the parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// For example `actor.0.weight`; the distribution's free parameters are `actor.free`.
    pub name: String,
    /// Rows and columns of a weight (one row per input), or the length of a bias.
    pub shape: Vec<usize>,
    /// Where it begins among the parameters.
    pub start: usize,
}

impl Tensor {
    /// Returns how many numbers it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns true when it has none: the free parameters of a distribution without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns its part of `parameters`.
    #[must_use]
    pub fn of<'a, R>(&self, parameters: &'a [R]) -> &'a [R] {
        &parameters[self.start..self.start + self.len()]
    }
}

/// Room for the hidden layers of one decision, so that it allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Room<R = f32> {
    hidden: Vec<R>,
    output: Vec<R>,
}

/// What was done and how likely that was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn<A, R = f32> {
    /// The action.
    pub action: A,
    /// The logarithm of its probability or density when it was drawn.
    pub log_density: R,
}

impl<H: Head, R: Real> ActorCritic<H, R> {
    /// Returns networks of first weights for observations of `inputs` numbers: orthogonal, hidden
    /// layers at gain √2, the actor's output at 0.01, the critic's at 1, biases 0 (detail 2 of Huang et
    /// al. 2022).
    #[must_use]
    pub fn new(head: H, inputs: usize, hidden: usize, seed: u64) -> Self {
        let mut network = Self::blank(head, inputs, hidden);
        let mut random = stream(seed, Purpose::Weights, 0);
        let (actor, critic) = (network.actor, network.critic);
        let (of_actor, free, of_critic) = network.parts_mut();
        actor.begin(of_actor, ACTOR_GAIN, &mut random);
        critic.begin(of_critic, CRITIC_GAIN, &mut random);
        for (value, first) in free.iter_mut().zip(head.begin()) {
            *value = R::of(first);
        }
        network
    }

    /// Returns networks whose parameters are all 0, to be overwritten.
    pub(super) fn blank(head: H, inputs: usize, hidden: usize) -> Self {
        let actor = Mlp { inputs, hidden, outputs: head.outputs() };
        let critic = Mlp { inputs, hidden, outputs: 1 };
        let count = actor.parameters() + head.begin().len() + critic.parameters();
        Self { head, actor, critic, parameters: vec![R::zero(); count] }
    }

    /// Returns the distribution that the actor's outputs stand for.
    #[must_use]
    pub fn head(&self) -> &H {
        &self.head
    }

    /// Returns the actor's shape.
    #[must_use]
    pub fn actor(&self) -> Mlp {
        self.actor
    }

    /// Returns the critic's shape.
    #[must_use]
    pub fn critic(&self) -> Mlp {
        self.critic
    }

    /// Returns all parameters, in the order of [`tensors`](Self::tensors).
    #[must_use]
    pub fn parameters(&self) -> &[R] {
        &self.parameters
    }

    /// Returns all parameters to be changed, in the order of [`tensors`](Self::tensors).
    pub fn parameters_mut(&mut self) -> &mut [R] {
        &mut self.parameters
    }

    /// Returns what lies where among the parameters.
    #[must_use]
    pub fn tensors(&self) -> Vec<Tensor> {
        let free = self.free_range();
        let mut tensors = Vec::with_capacity(4 * LAYERS + 1);
        let network = |name: &str, shape: Mlp, offset: usize, tensors: &mut Vec<Tensor>| {
            for (n, layer) in shape.layers().into_iter().enumerate() {
                tensors.push(Tensor {
                    name: format!("{name}.{n}.weight"),
                    shape: vec![layer.inputs, layer.outputs],
                    start: offset + layer.start,
                });
                tensors.push(Tensor {
                    name: format!("{name}.{n}.bias"),
                    shape: vec![layer.outputs],
                    start: offset + layer.bias_start(),
                });
            }
        };
        network("actor", self.actor, 0, &mut tensors);
        tensors.push(Tensor {
            name: "actor.free".to_owned(),
            shape: vec![free.len()],
            start: free.start,
        });
        network("critic", self.critic, free.end, &mut tensors);
        tensors
    }

    pub(super) fn free_range(&self) -> std::ops::Range<usize> {
        self.actor.parameters()..self.parameters.len() - self.critic.parameters()
    }

    /// Returns the free parameters of the distribution: for [`Gaussian`](super::Gaussian) the logarithm
    /// of its deviation.
    #[must_use]
    pub fn free(&self) -> &[R] {
        &self.parameters[self.free_range()]
    }

    fn of_actor(&self) -> &[R] {
        &self.parameters[..self.actor.parameters()]
    }

    fn of_critic(&self) -> &[R] {
        &self.parameters[self.free_range().end..]
    }

    fn parts_mut(&mut self) -> (&mut [R], &mut [R], &mut [R]) {
        let free = self.free_range();
        split(&mut self.parameters, &free)
    }

    /// Brings the distribution's free parameters back into their range.
    pub(super) fn project(&mut self) {
        let head = self.head;
        let (_, free, _) = self.parts_mut();
        if !free.is_empty() {
            head.project(free);
        }
    }

    fn outputs<'a>(&self, observation: &[R], room: &'a mut Room<R>) -> &'a [R] {
        room.hidden.resize(2 * self.actor.hidden, R::zero());
        room.output.resize(self.actor.outputs, R::zero());
        self.actor.one(self.of_actor(), observation, &mut room.hidden, &mut room.output);
        &room.output
    }

    /// Returns the likeliest action at `observation`.
    ///
    /// # Panics
    ///
    /// When `observation` is shorter than the networks' input.
    pub fn best(&self, observation: &[R], room: &mut Room<R>) -> H::Action {
        let head = self.head;
        head.best(self.outputs(&observation[..self.actor.inputs], room))
    }

    /// Returns a random action at `observation`.
    ///
    /// # Panics
    ///
    /// When `observation` is shorter than the networks' input.
    pub fn draw(
        &self,
        observation: &[R],
        room: &mut Room<R>,
        random: &mut impl Rng,
    ) -> Drawn<H::Action, R> {
        let outputs = self.outputs(&observation[..self.actor.inputs], room);
        self.drawn(outputs, random)
    }

    fn drawn(&self, outputs: &[R], random: &mut impl Rng) -> Drawn<H::Action, R> {
        let action = self.head.draw(outputs, self.free(), random);
        Drawn { action, log_density: self.head.log_density(outputs, self.free(), &action) }
    }

    /// Returns the critic's value of `observation`.
    ///
    /// # Panics
    ///
    /// When `observation` is shorter than the networks' input.
    pub fn value(&self, observation: &[R], room: &mut Room<R>) -> R {
        room.hidden.resize(2 * self.critic.hidden, R::zero());
        let mut value = [R::zero()];
        let observation = &observation[..self.critic.inputs];
        self.critic.one(self.of_critic(), observation, &mut room.hidden, &mut value);
        value[0]
    }

    /// Appends the critic's value of each of `observations`, row by row.
    pub fn values(&self, observations: &[R], passes: &mut Passes<R>, values: &mut Vec<R>) {
        self.critic.forward(self.of_critic(), observations, &mut passes.critic);
        values.extend_from_slice(&passes.critic.output);
    }

    /// Appends a random action at each of `observations`, row by row.
    pub fn draws(
        &self,
        observations: &[R],
        passes: &mut Passes<R>,
        random: &mut impl Rng,
        drawn: &mut Vec<Drawn<H::Action, R>>,
    ) {
        self.forward_actor(observations, passes);
        let outputs = passes.actor.output.chunks_exact(self.actor.outputs);
        drawn.extend(outputs.map(|outputs| self.drawn(outputs, random)));
    }

    /// Appends the likeliest action at each of `observations`, row by row.
    pub fn bests(&self, observations: &[R], passes: &mut Passes<R>, actions: &mut Vec<H::Action>) {
        self.forward_actor(observations, passes);
        let outputs = passes.actor.output.chunks_exact(self.actor.outputs);
        actions.extend(outputs.map(|outputs| self.head.best(outputs)));
    }

    /// Runs the actor over `observations`.
    pub(super) fn forward_actor(&self, observations: &[R], passes: &mut Passes<R>) {
        self.actor.forward(self.of_actor(), observations, &mut passes.actor);
    }

    /// Runs both networks over `observations`.
    pub(super) fn forward(&self, observations: &[R], passes: &mut Passes<R>) {
        self.forward_actor(observations, passes);
        self.critic.forward(self.of_critic(), observations, &mut passes.critic);
    }

    /// Writes the gradient of a loss whose slopes by both networks' outputs, and by the free
    /// parameters, are in `passes`.
    pub(super) fn backward(&self, observations: &[R], passes: &mut Passes<R>, gradient: &mut [R]) {
        let (by_actor, by_free, by_critic) = split(gradient, &self.free_range());
        by_free.copy_from_slice(&passes.by_free);
        self.actor.backward(
            self.of_actor(),
            observations,
            &mut passes.actor,
            &passes.by_output,
            by_actor,
        );
        self.critic.backward(
            self.of_critic(),
            observations,
            &mut passes.critic,
            &passes.by_value,
            by_critic,
        );
    }
}

fn split<'a, R>(
    parameters: &'a mut [R],
    free: &std::ops::Range<usize>,
) -> (&'a mut [R], &'a mut [R], &'a mut [R]) {
    let (front, critic) = parameters.split_at_mut(free.end);
    let (actor, free) = front.split_at_mut(free.start);
    (actor, free, critic)
}

/// Room for both networks' passes over many observations, kept between calls.
#[derive(Clone, Debug, Default)]
pub struct Passes<R = f32> {
    pub(super) actor: Tape<R>,
    pub(super) critic: Tape<R>,
    pub(super) by_output: Vec<R>,
    pub(super) by_free: Vec<R>,
    pub(super) by_value: Vec<R>,
}

#[cfg(test)]
mod tests {
    use super::super::{Categorical, Gaussian};
    use super::*;

    #[test]
    fn the_networks_of_the_policy_are_10115_parameters_in_13_tensors_without_gaps() {
        let network = ActorCritic::<_, f32>::new(Gaussian::default(), 12, 64, 1);
        assert_eq!(network.parameters().len(), 10_115);
        let tensors = network.tensors();
        assert_eq!(tensors.len(), 13);
        let end = tensors.iter().fold(0, |end, tensor| {
            assert_eq!(tensor.start, end, "{}", tensor.name);
            end + tensor.len()
        });
        assert_eq!(end, 10_115);
    }

    #[test]
    fn first_weights_are_orthogonal_at_the_gains_of_their_layers_and_biases_zero() {
        let network = ActorCritic::<_, f64>::new(Gaussian { log_std: -0.5 }, 12, 64, 3);
        let two = 2.0;
        let gains = [two, two, 1e-4, two, two, 1.0];
        let tensors = network.tensors();
        let weights = tensors.iter().filter(|tensor| tensor.name.ends_with("weight"));
        for (tensor, squared) in weights.zip(gains) {
            let &[rows, columns] = tensor.shape.as_slice() else { panic!("a weight is a matrix") };
            let values = tensor.of(network.parameters());
            let sum: f64 = values.iter().map(|w| w * w).sum();
            // The trace of gain²·I over the shorter side; `orthogonal.rs` checks the whole matrix.
            let expected = squared * rows.min(columns) as f64;
            assert!((sum - expected).abs() < 1e-9 * expected, "{}: {sum}", tensor.name);
        }
        let biases = tensors.iter().filter(|tensor| tensor.name.ends_with("bias"));
        assert!(biases.flat_map(|bias| bias.of(network.parameters())).all(|&b| b == 0.0));
        assert_eq!(network.free(), [-0.5]);
    }

    #[test]
    fn one_decision_is_what_it_is_among_many() {
        let network = ActorCritic::<_, f64>::new(Categorical { actions: 3 }, 4, 16, 3);
        let observations = [0.3, -0.1, 2.0, 0.7, -1.0, 0.2, 0.0, 0.4];
        let (mut room, mut passes) = (Room::default(), Passes::default());
        let (mut bests, mut values, mut draws) = (Vec::new(), Vec::new(), Vec::new());
        network.bests(&observations, &mut passes, &mut bests);
        network.values(&observations, &mut passes, &mut values);
        network.draws(&observations, &mut passes, &mut stream(1, Purpose::Actions, 0), &mut draws);
        let mut random = stream(1, Purpose::Actions, 0);
        for (n, observation) in observations.chunks(4).enumerate() {
            assert_eq!(network.best(observation, &mut room), bests[n]);
            assert!((network.value(observation, &mut room) - values[n]).abs() < 1e-12);
            let drawn = network.draw(observation, &mut room, &mut random);
            assert_eq!(drawn.action, draws[n].action);
            assert!((drawn.log_density - draws[n].log_density).abs() < 1e-12);
        }
    }
}
