"""The losses of pairs and their gradients, written down in numpy and float64 from the papers' formulas."""

import numpy as np

Losses = dict[str, np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def gradients(of_logits: np.ndarray, images: np.ndarray, texts: np.ndarray, scale: float) -> Losses:
    """From the gradient of scale x images x texts."""
    return {
        "images": scale * of_logits @ texts,
        "texts": scale * of_logits.T @ images,
        "scale": (of_logits * (images @ texts.T)).sum(),
    }


def clip(images: np.ndarray, texts: np.ndarray, scale: float) -> Losses:
    logits, count = scale * images @ texts.T, len(images)
    among_texts, among_images = softmax(logits), softmax(logits.T).T
    value = -(np.log(np.diag(among_texts)) + np.log(np.diag(among_images))).mean() / 2
    of_logits = (among_texts + among_images - 2 * np.eye(count)) / (2 * count)
    return {"value": value, **gradients(of_logits, images, texts, scale)}


def clip_constant_columns(images: np.ndarray, texts: np.ndarray, scale: float) -> Losses:
    """As `clip`, but a picture learns only from its own row among texts, and a text from its own among pictures."""
    logits, count = scale * images @ texts.T, len(images)
    of_images = scale * (softmax(logits) - np.eye(count)) @ texts / (2 * count)
    of_texts = scale * (softmax(logits.T) - np.eye(count)) @ images / (2 * count)
    return {**clip(images, texts, scale), "images": of_images, "texts": of_texts}


def distill(images: np.ndarray, texts: np.ndarray, scale: float, teacher: np.ndarray) -> Losses:
    """`teacher` are the teacher's logits."""
    logits, count = scale * images @ texts.T, len(images)
    pairs = ((softmax(teacher), softmax(logits)), (softmax(teacher.T), softmax(logits.T)))
    value = -sum((wanted * np.log(found)).sum(1).mean() for wanted, found in pairs) / 2
    (rows, own_rows), (cols, own_cols) = pairs
    of_logits = (own_rows - rows + (own_cols - cols).T) / (2 * count)
    return {"value": value, **gradients(of_logits, images, texts, scale)}


def distill_constant_columns(images: np.ndarray, texts: np.ndarray, scale: float, teacher: np.ndarray) -> Losses:
    logits, count = scale * images @ texts.T, len(images)
    of_images = scale * (softmax(logits) - softmax(teacher)) @ texts / (2 * count)
    of_texts = scale * (softmax(logits.T) - softmax(teacher.T)) @ images / (2 * count)
    return {**distill(images, texts, scale, teacher), "images": of_images, "texts": of_texts}


def siglip(images: np.ndarray, texts: np.ndarray, scale: float, bias: float) -> Losses:
    signs = 2 * np.eye(len(images)) - 1
    signed = signs * (scale * images @ texts.T + bias)
    of_logits = -signs / (1 + np.exp(signed)) / len(images)
    value = np.logaddexp(0, -signed).sum() / len(images)
    return {"value": value, "bias": of_logits.sum(), **gradients(of_logits, images, texts, scale)}
