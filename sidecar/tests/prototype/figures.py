"""The numpy prototype's figures, seed by seed, as tests/simulate.rs compares them with `merit simulate`.

usage, with numpy 2.x:  python figures.py SEEDS TICKS > figures.json
figures.json was made by:  python figures.py 10 2000 > figures.json
"""
import json
import sys

import numpy as np

seeds, ticks = int(sys.argv[1]), int(sys.argv[2])
sys.argv = sys.argv[:1]  # sim.py reads them too
import sim

REGIMES = {
    "base": {},
    "slack": dict(cap=1.3),
    "bombers": dict(bomb=0.05),
    "attack": dict(bomb=0.05, collude=0.05),
    "sybil": dict(bomb=0.05, collude=0.05, sybil=True),
    "sparse": dict(p_rate=0.005),
}
POLICIES = {
    "static": ("static", {}),
    "static-max": ("static_max", {}),
    "additive:0.1": ("additive", dict(alpha=0.1)),
    "additive:1": ("additive", dict(alpha=1.0)),
    "additive:5": ("additive", dict(alpha=5.0)),
    "price-kalman": ("price", dict(c=0.3)),
    "price-trust": ("price", dict(c=0.3, ph=1, trust=1)),
    "greedy": ("greedy", {}),
    "thompson": ("ts", dict(c=0.7, ph=1, trust=1)),
    "clairvoyant": ("clair", {}),
}

results = []
for regime, world in REGIMES.items():
    runs = {name: dict(percent=[], shed=[], step=[]) for name in POLICIES}
    for seed in range(100, 100 + seeds):
        w = sim.World(seed, ticks, **world)
        w.g = np.random.default_rng(seed + 10_000)
        reference = sim.run(sim.Policy("oracle"), w)["U"].sum()
        for name, (kind, numbers) in POLICIES.items():
            w.g = np.random.default_rng(seed + 10_000)
            x = sim.run(sim.Policy(kind, **numbers), w)
            runs[name]["percent"].append(round(100 * x["U"].sum() / reference, 3))
            runs[name]["shed"].append(round(100 * x["shed"], 4))
            runs[name]["step"].append(round(100 * x["osc"], 4))
    results += [dict(regime=regime, policy=name, **run) for name, run in runs.items()]
    print(regime, file=sys.stderr)
print("{" + f'"made_by":"python figures.py {seeds} {ticks}","numpy":"{np.__version__}","results":[')
print(",\n".join(json.dumps(result) for result in results) + "]}")
