r"""What training makes small, each with its gradient.

cross-entropy    L = mean over the places of -log softmax(z)[target]        dL/dz = (softmax(z) - onehot) / places
squared error    L = mean of (z - y)²                                       dL/dz = 2 (z - y) / entries
"""

import numpy as np

IGNORED = -1  # the target of a place that does not count


def cross_entropy(logits, targets) -> tuple[float, np.ndarray]:
    r"""Mean of -log softmax(logits)[target] in nats, over the places whose target is not `IGNORED`, and its gradient.

    Parameters
    ----------
    logits : (..., classes)
    targets : (...) integers

    Returns
    -------
    float, and an array like `logits`
    """
    z = logits.reshape(-1, logits.shape[-1])  # (places, classes)
    target = targets.reshape(-1)
    places = np.arange(target.size)
    counts = target != IGNORED
    count = max(1, int(np.count_nonzero(counts)))
    share = np.exp(z - z.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)  # softmax, (places, classes)
    surprise = -np.log(np.maximum(share[places, target], np.finfo(z.dtype).tiny))  # (places,), IGNORED reads any entry
    gradient = share
    gradient[places, target] -= 1
    if count < target.size:
        gradient *= counts[:, None]
        surprise = surprise * counts
    gradient /= count
    return float(surprise.sum(dtype=np.float64)) / count, gradient.reshape(logits.shape)


def squared_error(outputs, targets) -> tuple[float, np.ndarray]:
    """Mean of (output - target)² over all entries, and its gradient."""
    difference = outputs - targets
    return float(np.mean(np.square(difference), dtype=np.float64)), difference * (2 / difference.size)
