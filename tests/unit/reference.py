"""The loss terms of the specification written a second time, in plain NumPy float64 and with loops: what tests compare with.

Nothing here is derived from the package's own code, and nothing is optimised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Array = np.ndarray


def unit(x: Array) -> Array:
    """Rows of length one."""
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True))


def softmax(row: Array) -> Array:
    e = np.exp(row - row.max())
    return e / e.sum()


def cross_entropy_to_diagonal(logits: Array) -> float:
    return float(np.mean([-np.log(softmax(row)[i]) for i, row in enumerate(logits)]))


def info_nce(a: Array, b: Array, scale: float) -> float:
    """1/2 [CE(s a b^T) + CE(s b a^T)], rows taken as they are."""
    return (cross_entropy_to_diagonal(scale * a @ b.T) + cross_entropy_to_diagonal(scale * b @ a.T)) / 2


def kd(v: Array, t: Array, scale: float, teacher_v: Array, teacher_t: Array, teacher_scale: float, temperature: float) -> float:
    """T^2 / 2 [H(sm(Z*/T), sm(Z/T)) + the same on transposes]."""
    z, z_star = scale * v @ t.T / temperature, teacher_scale * teacher_v @ teacher_t.T / temperature

    def h(p_logits: Array, q_logits: Array) -> float:
        return float(np.mean([-(softmax(p) * np.log(softmax(q))).sum() for p, q in zip(p_logits, q_logits, strict=True)]))

    return temperature**2 / 2 * (h(z_star, z) + h(z_star.T, z.T))


def area(maps: Array, height: int, width: int) -> Array:
    """Area resize (C, H, W) -> (C, h, w): cell i averages rows floor(i H / h) to ceil((i + 1) H / h)."""
    h, w = maps.shape[1:]
    out = np.zeros((len(maps), height, width))
    for i in range(height):
        for j in range(width):
            rows = slice(i * h // height, -(-(i + 1) * h // height))
            columns = slice(j * w // width, -(-(j + 1) * w // width))
            out[:, i, j] = maps[:, rows, columns].mean(axis=(1, 2))
    return out


def map_distance(student: Array, teacher: Array) -> float:
    """One sample, (C, h, w) and (C, H, W): channels normalised, squares summed over channels, mean over positions."""
    _, height, width = student.shape
    teacher = area(teacher, height, width)
    total = 0.0
    for i in range(height):
        for j in range(width):
            s, t = student[:, i, j], teacher[:, i, j]
            total += (((s / np.linalg.norm(s)) - (t / np.linalg.norm(t))) ** 2).sum()
    return float(total / (height * width))


def intra(distances: Array, weights: Array) -> float:
    """1/4 sum_i w_i d_i, mean over samples."""
    return float(np.mean([(w * d).sum() / 4 for w, d in zip(weights, distances, strict=True)]))


def row_kl(teacher: Array, student: Array) -> float:
    total = 0.0
    for p_row, q_row in zip(teacher, student, strict=True):
        p, q = softmax(p_row), softmax(q_row)
        total += (p * np.log(p / q)).sum()
    return float(total / len(teacher))


def pyramid_alignment(student: Mapping[str, Array], teacher: Mapping[str, Array], alpha: Array, temperature: float) -> float:
    """mean over (i, j) of alpha_ij KL(P^T || P^S), image to text and text to image averaged; levels are axis 1."""
    count_v, count_l = alpha.shape
    forth = back = 0.0
    for i in range(count_v):
        for j in range(count_l):

            def logits(of: Mapping[str, Array], rows: str, columns: str, a: int, b: int) -> Array:
                return unit(of[rows][:, a]) @ unit(of[columns][:, b]).T / temperature

            pairs = (("visual_as_language", "language", i, j), ("language_as_visual", "pooled", j, i))
            values = [row_kl(logits(teacher, *pair), logits(student, *pair)) for pair in pairs]
            forth, back = forth + alpha[i, j] * values[0], back + alpha[i, j] * values[1]
    return (forth + back) / 2 / (count_v * count_l)


def sample_relation(student: Array, teacher: Array) -> float:
    """||G_T - G_S||_F^2 / B^2."""
    gram: Callable[[Array], Array] = lambda x: unit(x) @ unit(x).T  # noqa: E731
    return float(((gram(teacher) - gram(student)) ** 2).sum() / len(student) ** 2)


def layer_relation(student: Array, teacher: Array) -> float:
    """||R_T - R_S||_F^2, R the levels' correlation over channels of batch means; (B, levels, C)."""
    return float(((np.corrcoef(teacher.mean(axis=0)) - np.corrcoef(student.mean(axis=0))) ** 2).sum())


def entropy(weights: Array) -> float:
    """Mean over rows of the entropy in nats."""
    return float(np.mean([-(w * np.log(w)).sum() for w in weights]))


def fixed_alpha(visual: Sequence[str], language: Sequence[str]) -> Array:
    """1 on the diagonal P2-L1, ..., P5-L4 and 0.5 off it."""
    return np.array([[1.0 if int(v[1]) - 1 == int(w[1]) else 0.5 for w in language] for v in visual])


def late(cells: Sequence[Array], tokens: Sequence[Array]) -> tuple[float, float]:
    """One picture's cells (R, D) and one text's tokens (S, D), no padding: best token of a cell, best cell of a token."""
    products = unit(np.asarray(cells)) @ unit(np.asarray(tokens)).T
    return float(np.mean([row.max() for row in products])), float(np.mean([column.max() for column in products.T]))


def late_similarities(
    cells: Array, tokens: Array, mask: Array, cell_counts: Sequence[int], token_counts: Sequence[int]
) -> tuple[Array, Array]:
    """Every picture with every text, level by level: (I, J, B, B) image to text and text to image."""
    forth = np.zeros((len(cell_counts), len(token_counts), len(cells), len(tokens)))
    back = np.zeros((len(cell_counts), len(token_counts), len(tokens), len(cells)))
    for i, rows in enumerate(np.split(np.arange(cells.shape[1]), np.cumsum(cell_counts)[:-1])):
        for j, columns in enumerate(np.split(np.arange(tokens.shape[1]), np.cumsum(token_counts)[:-1])):
            for picture in range(len(cells)):
                for text in range(len(tokens)):
                    seen = [tokens[text, column] for column in columns if mask[text, column]]
                    if seen:
                        found = late(cells[picture, rows], seen)
                        forth[i, j, picture, text], back[i, j, text, picture] = found
    return forth, back


def alignment_of_similarities(student: Sequence[Array], teacher: Sequence[Array], alpha: Array, temperature: float) -> float:
    """mean over (i, j) of alpha_ij KL(P^T || P^S), averaged over the two directions."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        for i, j in np.ndindex(*alpha.shape):
            total += alpha[i, j] * row_kl(theirs[i, j] / temperature, ours[i, j] / temperature)
    return total / 2 / alpha.size
