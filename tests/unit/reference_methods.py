"""Formulas of the compared methods written a second time, in plain NumPy float64 and with loops (see `reference.py`)."""

from __future__ import annotations

import numpy as np
from reference import Array, info_nce, row_kl, softmax
from scipy.stats import kendalltau

# --- CLIP-KD ---------------------------------------------------------------------------------------------------------


def both_ways_kl(v: Array, t: Array, scale: float, teacher_v: Array, teacher_t: Array, teacher_scale: float) -> float:
    """1/2 [KL(sm Z* || sm Z) + the same on transposes]."""
    z, z_star = scale * v @ t.T, teacher_scale * teacher_v @ teacher_t.T
    return (row_kl(z_star, z) + row_kl(z_star.T, z.T)) / 2


def interactive(v: Array, t: Array, teacher_v: Array, teacher_t: Array, scale: float) -> float:
    """1/2 [CE(c v' T^T) + CE(c t' V^T)]."""
    total = 0.0
    for rows, columns in ((v, teacher_t), (t, teacher_v)):
        for i, row in enumerate(rows):
            total -= np.log(softmax(scale * columns @ row)[i])
    return float(total / len(v) / 2)


def contrastive_gradients(p: Array, k: Array, scale: float) -> tuple[Array, Array]:
    """(P - I) k s / B and (P - I)^T p s / B."""
    share = np.stack([softmax(row) for row in scale * p @ k.T]) - np.eye(len(p))
    return share @ k * scale / len(p), share.T @ p * scale / len(p)


def gradient_distillation(v: Array, t: Array, scale: float, teacher_v: Array, teacher_t: Array, teacher_scale: float) -> float:
    total = 0.0
    for ours, theirs in (((v, t), (teacher_v, teacher_t)), ((t, v), (teacher_t, teacher_v))):
        pairs = zip(contrastive_gradients(*ours, scale), contrastive_gradients(*theirs, teacher_scale), strict=True)
        total += sum(float(((a - b) ** 2).mean()) for a, b in pairs)
    return total


def clip_kd(r: dict[str, Array], weights: dict[str, float], cross: float, fusion: float) -> dict[str, float]:
    """All terms and their weighted sum, from a method's representations."""
    scale, teacher_scale = r["logit_scale"][0], r["teacher_logit_scale"][0]
    v, t, big_v, big_t = (r[name] for name in ("image", "text", "teacher_image", "teacher_text"))
    own_v, own_t = r["projected_image"], r["projected_text"]
    terms = {
        "task": info_nce(v, t, scale),
        "crd": both_ways_kl(v, t, scale, big_v, big_t, teacher_scale),
        "icl": interactive(own_v, own_t, big_v, big_t, cross),
        "fd": float(((own_v - big_v) ** 2).mean() + ((own_t - big_t) ** 2).mean()),
        "gd": gradient_distillation(own_v, own_t, scale, big_v, big_t, teacher_scale),
        "afd": info_nce(r["fused_image"], r["fused_text"], fusion),
    }
    return {**terms, "total": sum(weights[name] * value for name, value in terms.items())}


# --- FitNet ----------------------------------------------------------------------------------------------------------


def normed(x: Array) -> Array:
    """Mean 0 and variance 1 over the last axis; 1e-5 as in every layer norm."""
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)


def bilinear(maps: Array, height: int, width: int) -> Array:
    """Resize (h, w, C), sample points at the middle of pixels, the border repeated."""

    def weights(size: int, target: int) -> Array:
        matrix = np.zeros((target, size))
        for i in range(target):
            place = max((i + 0.5) * size / target - 0.5, 0.0)
            low = min(int(place), size - 1)
            high, share = min(low + 1, size - 1), place - low
            matrix[i, low] += 1 - share
            matrix[i, high] += share
        return matrix

    return np.einsum("ih,jw,hwc->ijc", weights(maps.shape[0], height), weights(maps.shape[1], width), maps)


def image_hint(student: Array, teacher: Array, weight: Array, bias: Array) -> float:
    """One sample, maps (h, w, C) and (H, W, C')."""
    guided = bilinear(normed(student) @ weight.T + bias, *teacher.shape[:2])
    return float(((guided - normed(teacher)) ** 2).mean())


def text_hint(student: Array, teacher: Array, weight: Array, bias: Array, length: int) -> float:
    """One caption, tokens (N, D) and (N, D'), of which the first ``length`` count."""
    guided = normed(student[:length]) @ weight.T + bias
    return float(((guided - normed(teacher[:length])) ** 2).mean())


# --- C2KD ------------------------------------------------------------------------------------------------------------


def kl(p: Array, q: Array) -> float:
    """KL(softmax(p) || softmax(q)) of two rows of logits."""
    a, b = softmax(p), softmax(q)
    return float((a * np.log(a / b)).sum())


def agree(teacher: Array, student: Array, candidates: int) -> bool:
    """Whether SciPy's Kendall correlation over the teacher's best candidates is above zero; undefined is not."""
    best = np.argsort(-teacher)[:candidates]
    return len(best) > 1 and bool(kendalltau(teacher[best], student[best]).statistic > 0)


def c2kd(r: dict[str, Array], options: dict[str, float]) -> dict[str, float]:
    """All terms and their weighted sum, from a method's representations."""
    s, big_s, temperature = r["logit_scale"][0], r["teacher_logit_scale"][0], options["temperature"]
    terms = dict.fromkeys(("teacher_proxy", "student_proxy", "to_student", "to_teacher", "selected"), 0.0)
    count = len(r["image"])
    for theirs, ours in (("text", "image"), ("image", "text")):
        for i in range(count):
            t = big_s * r[f"teacher_{ours}"] @ r[f"teacher_{theirs}"][i] / temperature
            t_proxy = big_s * r[f"teacher_{ours}"] @ r[f"proxy_teacher_{theirs}"][i] / temperature
            own = s * r[theirs] @ r[ours][i] / temperature
            own_proxy = s * r[theirs] @ r[f"proxy_student_{ours}"][i] / temperature
            terms["teacher_proxy"] += kl(t, t_proxy) / count / 2
            terms["student_proxy"] += (kl(own, own_proxy) + kl(own_proxy, own)) / count / 2
            if agree(t_proxy, own_proxy, int(options["candidates"])):
                a, b = np.delete(t_proxy, i), np.delete(own_proxy, i)
                terms["to_student"] += kl(a, b) / count / 2
                terms["to_teacher"] += kl(b, a) / count / 2
                terms["selected"] += 1 / count / 2
    task = info_nce(r["image"], r["text"], s)
    proxies = options["proxy_weight"] * (terms["teacher_proxy"] + terms["student_proxy"])
    selected = options["selection_weight"] * (terms["to_student"] + terms["to_teacher"])
    return {"task": task, **terms, "total": task + temperature**2 * (proxies + selected)}


# --- LLaVA-KD --------------------------------------------------------------------------------------------------------


def patch_relation(student: Array, teacher: Array) -> float:
    """One image: 1 - cosine of the similarity matrices of its patches, (P, E) and (P, E')."""
    a, b = (student @ student.T).ravel(), (teacher @ teacher.T).ravel()
    return float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def llava_kd(r: dict[str, Array], weights: dict[str, float]) -> dict[str, float]:
    """All terms and their weighted sum, from a method's representations."""
    s, big_s = r["logit_scale"][0], r["teacher_logit_scale"][0]
    visual = []
    for ours, theirs in zip(r["patches"], r["teacher_patches"], strict=True):
        for p, big_p in zip(ours, theirs, strict=True):
            visual.append(kl(big_s * r["teacher_text"] @ big_p, s * r["text"] @ p))
    terms = {
        "task": info_nce(r["image"], r["text"], s),
        "answer": both_ways_kl(r["image"], r["text"], s, r["teacher_image"], r["teacher_text"], big_s),
        "visual": float(np.mean(visual)),
        "relation": float(np.mean([patch_relation(*pair) for pair in zip(r["patches"], r["teacher_patches"], strict=True)])),
    }
    return {**terms, "total": terms["task"] + sum(weight * terms[name] for name, weight in weights.items())}
