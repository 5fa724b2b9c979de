"""A fall of CartPole-v1 in Gymnasium itself: what `tests/ppo.rs` holds its own dynamics against.

    python -m venv venv && venv/bin/pip install gymnasium numpy
    venv/bin/python cartpole_ref.py      # writes cartpole_ref.json beside itself
"""
import json, os, gymnasium

world = gymnasium.make("CartPole-v1").unwrapped
world.reset(seed=1)
world.state = start = (0.3, -0.4, 0.05, 0.2)
actions, states, done, n = [], [], False, 0
while not done:
    # Both pushes, in no simple order, until it falls.
    action = (n * n + n // 3) % 2
    _, reward, done, _, _ = world.step(action)
    assert reward == 1.0
    actions.append(action)
    states.append([float(x) for x in world.state])
    n += 1
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "cartpole_ref.json"), "w") as file:
    json.dump(dict(made_with=gymnasium.__version__, start=start, actions=actions, states=states), file, indent=0)
print(n, states[-1])
