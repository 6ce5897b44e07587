"""Random poses: standing, walking, sitting, squatting, bending, kicking and lying people, seen from all sides."""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic.figures import Pose

# Frequencies of the leg and trunk positions.
STANCES = {"stand": 0.6, "walk": 0.22, "sit": 0.045, "squat": 0.01, "bend": 0.01, "star": 0.09, "kick": 0.025}


def random_pose(rng: np.random.Generator) -> Pose:
    """Draws a pose; the joints' ranges are a person's, the mix is chosen to be varied."""
    stance = str(rng.choice(list(STANCES), p=np.array(list(STANCES.values())) / sum(STANCES.values())))
    legs, lean = _legs(rng, stance)
    arms = [_arm(rng, lean) for _ in range(2)]
    (flexion, abduction, knee), (shoulder, away, elbow, towards) = (
        tuple(zip(*both, strict=True)) for both in (legs, arms)
    )
    return Pose(
        yaw=_yaw(rng),
        pitch=_degrees(rng.uniform(2, 22)),
        roll=_roll(rng),
        lean=lean,
        bend=_degrees(rng.normal(0, 8)),
        twist=_degrees(rng.normal(0, 12)),
        head=(_degrees(rng.normal(0, 20)), _degrees(rng.normal(6, 10)), _degrees(rng.normal(0, 8))),
        hip_flexion=flexion,
        hip_abduction=abduction,
        knee=knee,
        shoulder_flexion=shoulder,
        shoulder_abduction=away,
        elbow=elbow,
        elbow_towards=towards,
    )


def _yaw(rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < 0.85:
        return _degrees(rng.normal(0, 18))
    if kind < 0.94:
        return _degrees(180 + rng.normal(0, 18))
    return _degrees(rng.choice([-90, 90]) + rng.normal(0, 25))


def _roll(rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < 0.97:
        return _degrees(np.clip(rng.normal(0, 8), -30, 30))
    return _degrees(rng.choice([-1, 1]) * rng.uniform(40, 115))


def _legs(rng: np.random.Generator, stance: str) -> tuple[list[tuple[float, float, float]], float]:
    """[(hip flexion, hip abduction, knee flexion)] of both legs, and how far the trunk leans forward."""
    normal, uniform = rng.normal, rng.uniform
    lean = normal(3, 8)
    if stance == "walk":
        stride = uniform(12, 48) * rng.choice([-1, 1])
        degrees = [
            (stride * s, normal(3, 3), uniform(5, 30) + (uniform(0, 60) if stride * s < 0 else 0)) for s in (1, -1)
        ]
    elif stance == "sit":
        lean = normal(4, 14)
        both = uniform(70, 100)
        degrees = [(both + normal(0, 8), uniform(0, 25), uniform(45, 105)) for _ in range(2)]
    elif stance == "squat":
        lean = uniform(5, 45)
        both = uniform(85, 130)
        degrees = [(both + normal(0, 10), uniform(5, 40), uniform(95, 145)) for _ in range(2)]
    elif stance == "bend":
        lean = uniform(40, 100)
        degrees = [(normal(5, 12), uniform(0, 18), uniform(0, 35)) for _ in range(2)]
    elif stance == "star":
        degrees = [(normal(0, 8), uniform(18, 48), uniform(0, 35)) for _ in range(2)]
    elif stance == "kick":
        degrees = [(normal(0, 8), uniform(0, 12), uniform(0, 25)), (uniform(40, 105), uniform(0, 45), uniform(0, 90))]
        if rng.random() < 0.5:
            degrees.reverse()
    else:
        degrees = [(normal(2, 7), uniform(0, 14), uniform(0, 14)) for _ in range(2)]
    return [(_degrees(a), _degrees(b), _degrees(c)) for a, b, c in degrees], _degrees(lean)


def _arm(rng: np.random.Generator, lean: float) -> tuple[float, float, float, tuple[float, float, float]]:
    """(shoulder flexion, shoulder abduction, elbow flexion, where the forearm bends to) of one arm."""
    normal, uniform = rng.normal, rng.uniform
    kind = rng.random()
    towards = (normal(-0.5, 0.6), normal(0.3, 0.6), uniform(0.3, 1.2))
    if kind < 0.66:  # hanging or swinging
        angles = (normal(0, 18), uniform(4, 22), uniform(0, 50))
    elif kind < 0.76:  # raised
        angles = (normal(0, 25), uniform(110, 170), uniform(0, 110))
        towards = (normal(-0.4, 0.5), normal(1.0, 0.4), uniform(0, 0.8))
    elif kind < 0.86:  # to the side
        angles = (normal(0, 20), uniform(45, 105), uniform(0, 120))
        towards = (normal(-0.2, 0.6), normal(0.2, 0.9), uniform(0, 1))
    elif kind < 0.94:  # to the front
        angles = (uniform(30, 120), uniform(-8, 30), uniform(0, 110))
        towards = (normal(-0.5, 0.5), normal(0.6, 0.6), uniform(0.1, 0.6))
    else:  # hand on the hip, or at the chest
        angles = (uniform(-25, 20), uniform(20, 50), uniform(70, 130))
        towards = (uniform(-1.4, -0.6), normal(0.2, 0.4), uniform(0, 0.8))
    a, b, c = (_degrees(angle) for angle in angles)
    # Gravity: half of the trunk's lean is compensated.
    return a + 0.5 * lean, b, c, (float(towards[0]), float(towards[1]), float(towards[2]))


def _degrees(angle: float) -> float:
    return float(np.deg2rad(angle))
