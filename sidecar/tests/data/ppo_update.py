"""One whole PPO update by an independent autodiff: what `learner/tests.rs` compares with.

    python -m venv venv && venv/bin/pip install 'jax[cpu]' optax numpy
    venv/bin/python ppo_update.py        # writes ppo_update.json and ppo_update.f64 beside itself

Networks 12-64-64-1 (actor and critic, tanh), one normal distribution with a free log-deviation, 256 samples, 4 epochs
of 4 minibatches, in double precision on the CPU. The loss is written down as formulas; jax.grad differentiates it,
optax.adam steps. First parameters, observations and actions come from a linear congruential generator that the
test repeats; what was old (log-densities, values) and the targets stand in the JSON, because they lie near
what the networks say, on both sides of every clip. ppo_update.f64 holds all parameters after the update, in
the order of the test, as little-endian doubles.
"""
import json, os, jax, optax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platform_name", "cpu")
INPUTS, HIDDEN, SAMPLES, EPOCHS, PARTS = 12, 64, 256, 4, 4
CLIP, VALUE_CLIP, VALUE_WEIGHT, ENTROPY_WEIGHT, RATE, NORM = 0.2, 0.2, 0.5, 0.01, 1e-3, 0.5

state = 1
def uniform():
    """-1 to 1; Knuth's MMIX constants."""
    global state
    state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
    return (state >> 11) / 2**53 * 2 - 1
def single(x):
    return np.asarray(x, np.float32).astype(np.float64)
def numbers(count, scale):
    return single([scale * uniform() for _ in range(count)])

def network():
    shapes = [(INPUTS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)]
    return [{"w": numbers(i * o, 0.25).reshape(i, o), "b": numbers(o, 0.25)} for i, o in shapes]
parameters = {"actor": network(), "log_std": numbers(1, 0.5), "critic": network()}
observations = numbers(SAMPLES * INPUTS, 1.0).reshape(SAMPLES, INPUTS)

def answer(layers, x):
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return (x @ layers[-1]["w"] + layers[-1]["b"])[:, 0]
def log_density(p, x, a):
    return jax.scipy.stats.norm.logpdf(a, answer(p["actor"], x), jnp.exp(p["log_std"][0]))
def loss(p, x, a, old_log, old_value, advantage, target):
    log_ratio = log_density(p, x, a) - old_log
    ratio = jnp.exp(log_ratio)
    advantage = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8)
    policy = -jnp.minimum(advantage * ratio, advantage * jnp.clip(ratio, 1 - CLIP, 1 + CLIP)).mean()
    v = answer(p["critic"], x)
    near = old_value + jnp.clip(v - old_value, -VALUE_CLIP, VALUE_CLIP)
    value = 0.5 * jnp.maximum((v - target) ** 2, (near - target) ** 2).mean()
    entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e) + p["log_std"][0]
    total = policy + VALUE_WEIGHT * value - ENTROPY_WEIGHT * entropy
    kl = ((ratio - 1) - log_ratio).mean()
    clipped = (jnp.abs(ratio - 1) > CLIP).mean()
    return total, (policy, value, entropy, kl, clipped)

mean = np.asarray(answer(parameters["actor"], observations))
actions = single(mean + np.exp(parameters["log_std"][0]) * 1.5 * numbers(SAMPLES, 1.0))
old_log = single(np.asarray(log_density(parameters, observations, actions)) + numbers(SAMPLES, 0.4))
old_value = single(np.asarray(answer(parameters["critic"], observations)) + numbers(SAMPLES, 0.4))
advantages, targets = numbers(SAMPLES, 2.0), single(old_value + numbers(SAMPLES, 2.0))

slope = jax.jit(jax.value_and_grad(loss, has_aux=True))
adam = optax.adam(RATE, eps=1e-5)
moments, order, parts = adam.init(parameters), np.arange(SAMPLES), []
for epoch in range(EPOCHS):
    order = order[(77 * np.arange(SAMPLES) + 13) % SAMPLES]
    for n in order.reshape(PARTS, -1):
        batch = observations[n], actions[n], old_log[n], old_value[n], advantages[n], targets[n]
        (total, aux), gradient = slope(parameters, *batch)
        norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
        gradient = jax.tree.map(lambda g: g * jnp.minimum(1.0, NORM / (norm + 1e-6)), gradient)
        step, moments = adam.update(gradient, moments)
        parameters = optax.apply_updates(parameters, step)
        parts.append([float(x) for x in (total, *aux, norm)])

here = os.path.dirname(os.path.abspath(__file__))
flat = lambda layers: [x for layer in layers for x in (layer["w"], layer["b"])]
ordered = flat(parameters["actor"]) + [parameters["log_std"]] + flat(parameters["critic"])
np.concatenate([np.asarray(x).ravel() for x in ordered]).astype("<f8").tofile(os.path.join(here, "ppo_update.f64"))
columns = dict(actions=actions, log_densities=old_log, values=old_value, advantages=advantages, returns=targets)
with open(os.path.join(here, "ppo_update.json"), "w") as file:
    made = dict(jax=jax.__version__, optax=optax.__version__)
    json.dump(dict(made_with=made, minibatches=parts, **{k: v.tolist() for k, v in columns.items()}), file, indent=0)
print(*parts, sep="\n")
