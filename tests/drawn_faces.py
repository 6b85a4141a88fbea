"""Drawn faces that OpenCV's cascade takes for faces, at places that are known."""

import numpy as np

WIDTH, HEIGHT = 0.85, 1.15  # half of a skull, by its radius


def draw(height, width, places, background=110):
    """A grey picture with a face at each (x, y, radius), in pixels."""
    picture = np.full((height, width), float(background))
    for x, y, radius in places:
        _face(picture, x, y, radius)
    return np.clip(picture, 0, 255).astype(np.uint8)


def rgb(picture):
    return np.repeat(picture[:, :, np.newaxis], 3, axis=2)


def box(place):
    """Left, top, width and height of the square that a face fills, brows to chin."""
    x, y, radius = place
    side = 2 * radius
    return x - side / 2, y - side / 2, side, side


def overlap(one, other):
    """Intersection over union of two boxes."""
    lows = np.maximum(one[:2], other[:2])
    highs = np.minimum(np.add(one[:2], one[2:]), np.add(other[:2], other[2:]))
    shared = np.prod(np.maximum(highs - lows, 0))
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def _face(picture, x, y, radius):
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    u, v = (columns - x) / radius, (rows - y) / radius

    def paint(inside, tone, edge=3.0):
        picture[:] += np.clip(inside * edge + 0.5, 0, 1) * (tone - picture)

    def ellipse(across, down, wide, high):
        return 1 - ((u - across) / wide) ** 2 - ((v - down) / high) ** 2

    paint(ellipse(0, 0, WIDTH, HEIGHT), 190 - 25 * u**2, edge=8.0)
    paint(np.minimum(ellipse(0, 0, 0.9, 1.2), -0.62 - v), 50, edge=8.0)  # hair
    for side in (-0.36, 0.36):
        paint(ellipse(side, -0.16, 0.24, 0.15), 110, edge=2.0)  # shade around an eye
        paint(ellipse(side, -0.16, 0.17, 0.08), 35)
        paint(ellipse(side, -0.36, 0.25, 0.05), 60)  # brow
    paint(ellipse(0, 0.1, 0.12, 0.28), 215, edge=1.0)  # nose
    paint(ellipse(0, 0.33, 0.16, 0.05), 120, edge=2.0)
    paint(ellipse(0, 0.62, 0.34, 0.08), 80)  # mouth
