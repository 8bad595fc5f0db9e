"""What of the hand a policy uses: how long each part touches the object, and how deep.

    python benchmarks/gait.py RUN|POLICY.onnx|NAME [--envs 32] [--seconds 20] [--json]

Contacts are those that MuJoCo finds in the state after every control step of the nominal world. A
part touches where a contact has no gap; depth is the largest penetration of any part at that moment,
averaged over the moments in which the object is touched at all. A last link is the fingertip with what
it sits on, as other models of these hands count it.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import mujoco
import numpy as np
import torch

from widen.envs.batched import BatchedEnv
from widen.envs.scene import Scene
from widen.train.cli_policy import open_trial
from widen.train.cli_subject import find_subject
from widen.train.evaluate import Step


def parts_of(scene: Scene) -> dict[int, str]:
    """Which part of the hand a geom belongs to: the name of a fingertip's site, or of a body."""
    model, parts = scene.model, {}
    for geom in scene.hand_geoms.tolist():
        parts[geom] = model.body(int(model.geom_bodyid[geom])).name or "palm"
    for tip in scene.hand.fingertips:
        site = model.site(tip).id
        geoms = [g for g in parts if model.geom_bodyid[g] == model.site_bodyid[site]]
        # the geom that the site lies on: the nearest of its body
        gaps = [np.linalg.norm(model.geom_pos[g] - model.site_pos[site]) for g in geoms]
        parts[geoms[int(np.argmin(gaps))]] = tip
    return parts


def fingers_of(scene: Scene) -> dict[str, tuple[set[str], set[str]]]:
    """Parts of each finger, by its fingertip: those of the last link, and all that are its alone."""
    model, chains = scene.model, dict[str, list[int]]()
    for tip in scene.hand.fingertips:
        body, chain = int(model.site_bodyid[model.site(tip).id]), list[int]()
        while body:
            chain.append(body)
            body = int(model.body_parentid[body])
        chains[tip] = chain
    fingers = {}
    for tip, chain in chains.items():
        shared = {body for other, bodies in chains.items() if other != tip for body in bodies}
        own = [model.body(body).name for body in chain if body not in shared]
        fingers[tip] = {tip, own[0]}, {tip, *own}
    return fingers


def touched(
    model: mujoco.MjModel, data: mujoco.MjData, objects: set[int], parts: dict[int, str]
) -> tuple[set[str], float]:
    """Parts in contact with the object in this state, and the largest penetration [m]."""
    names, depth = set(), 0.0
    for contact in data.contact[: data.ncon]:
        pair = {int(contact.geom1), int(contact.geom2)}
        if pair & objects and contact.dist <= 0.0:
            names |= {parts[geom] for geom in pair - objects if geom in parts}
            depth = max(depth, -float(contact.dist))
    return names, depth


def measure(env: BatchedEnv, step: Step, seconds: float) -> dict[str, Any]:
    """Watch every environment for so long, episodes following one another [s]."""
    scene = env.scene
    if scene.object_body is None:
        raise ValueError("expected a task with an object")
    parts, objects = parts_of(scene), set(scene.object_geoms.tolist())
    model, data = scene.model, mujoco.MjData(scene.model)
    times: dict[str, int] = dict.fromkeys(scene.hand.fingertips, 0)
    fingers = fingers_of(scene)
    whole = dict.fromkeys(fingers, 0)
    last = dict.fromkeys(fingers, 0)
    depths, moments = [], 0
    obs, fresh = env.reset(), torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    for _ in range(round(seconds / env.control_dt)):
        result = step(obs, fresh)
        obs, fresh = result.obs, result.terminated | result.truncated
        for qpos in env.sim.qpos.cpu().numpy():
            data.qpos[:] = qpos
            mujoco.mj_fwdPosition(model, data)
            names, depth = touched(model, data, objects, parts)
            moments += 1
            for name in names:
                times[name] = times.get(name, 0) + 1
            for tip, (link, links) in fingers.items():
                last[tip] += bool(names & link)
                whole[tip] += bool(names & links)
            if names:
                depths.append(depth)
    share = {name: round(count / moments, 4) for name, count in times.items()}
    return {
        "touching": dict(sorted(share.items(), key=lambda one: -one[1])),
        "fingertips": {name: share[name] for name in scene.hand.fingertips},
        "last_links": {tip: round(count / moments, 4) for tip, count in last.items()},
        "fingers": {tip: round(count / moments, 4) for tip, count in whole.items()},
        "depth_mean_mm": round(1e3 * float(np.mean(depths)), 3) if depths else None,
        "depth_p99_mm": round(1e3 * float(np.quantile(depths, 0.99)), 3) if depths else None,
        "moments": moments,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", help="a run, a policy's file or the name of a shipped one")
    parser.add_argument("--envs", type=int, default=32, help="watched; default %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, help="each; default %(default)s")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        env, step = open_trial(find_subject(args.policy).path, args.envs, "none", "cpu")
        found = measure(env, step, args.seconds)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(found))
        return 0
    for name, share in found["touching"].items():
        print(f"{name:12} {100 * share:5.1f} % of the time")
    for tip in found["fingers"]:
        last, whole = (100 * found[of][tip] for of in ("last_links", "fingers"))
        print(f"finger of {tip}: {whole:.1f} %, its last link {last:.1f} %")
    print(f"penetration {found['depth_mean_mm']} mm on average, p99 {found['depth_p99_mm']} mm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
