r"""The map between a real network and a point of the effective dynamics.

With the pulls $g_i = -\partial\ell(0, y_i)/\partial f$ of the loss at zero output and
$V = \frac1n\sum_i g_i x_i^T = P\,\mathrm{diag}(\mu)\,Q^T$, gradient flow of a network of $L$
layers with small weights is, to leading order,

$$\dot\theta = \nabla_\theta\; \sigma'(0)^{L-1} \langle W_L\cdots W_1, V\rangle
  = \sigma'(0)^{L-1}\mu_1\; \nabla_\theta E, \qquad
  E = \langle P^TW_L\, W_{L-1}\cdots W_2\, W_1Q,\ \mathrm{diag}(\lambda)\rangle,$$

with $\lambda_i = \mu_i/\mu_1$. For three layers this is the energy of the `State`
$a_i = W_3^TP_i$, $b = W_2$, $c_i = W_1Q_i$, otherwise that of the `Chain` of the layers
$W_1Q, W_2, \dots, P^TW_L$. The weights enter unscaled, and

$$\bar t = |\sigma'(0)|^{L-1}\mu_1\; t$$

is the time. (The paper divides the weights by their standard deviation $\varepsilon$ and
multiplies time by it, which is the same flow: $T^*(\kappa\theta) = T^*(\theta)/\kappa$.) The parts
of the first and the last layer outside $Q$ and $P$ do not move.

With biases in every layer the output bias learns first, in a time that does not depend on the
weights, until it reaches the constant output of least loss, $b^*$. All pulls are then taken at
$b^*$, $g_i = -\partial\ell(b^*, y_i)/\partial f$; they add up to zero, so that the other biases do
not enter the leading order. The weights are those at that time: with one output and squared loss
$W_L$ has grown by the factor $\cosh\bar y$.

Source: Chen and Luo, eqs. (3.7), (3.8), (3.10) for one output, (A.8) for several; other losses and
depths are derived here.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._chain import Chain
from .._results import table
from .._state import State
from ._data import AbstractData, Regression
from ._losses import Loss, LossFunction, resolve_loss
from ._modules import MLP, slope_at_zero


class EffectiveModel(eqx.Module):
    r"""Target directions, strengths and time scale of the effective dynamics of a network.

    - `left`: $P^T$, shape `(rank, outputs)`; `right`: $Q^T$, shape `(rank, features)`: the target
      directions. With one output `right[0]` is the paper's $v$, and `left` is 1.
    - `strength`: $\lambda_i = \mu_i/\mu_1$, shape `(rank,)`; 1 with one output.
    - `rate`: $d\bar t/dt = |\sigma'(0)|^{L-1}\mu_1$, effective time per unit of training time.
    - `gain`: $\sigma'(0)^{L-1}$, the factor of $W_L\cdots W_1$ in the linearised network.
    """

    left: Float[Array, "rank outputs"]
    right: Float[Array, "rank features"]
    strength: Float[Array, " rank"]
    rate: Float[Array, ""]
    gain: Float[Array, ""]

    def __str__(self) -> str:
        strengths = ", ".join(f"{strength:.6g}" for strength in self.strength)
        return table(
            f"Effective model of rank {len(self.strength)}",
            {"strengths": strengths, "rate": f"{self.rate:.6g}", "gain": f"{self.gain:.6g}"},
        )

    def to_state(self, network: MLP) -> State | Chain:
        """The point of one network: its weights along the target directions, unscaled."""
        first, *middle, last = network.weights
        if network.depth == 3:
            return State(self.left @ last, middle[0], self.right @ first.T, self.strength)
        return Chain((first @ self.right.T, *middle, self.left @ last), jnp.diag(self.strength))

    def to_weights(self, point: State | Chain) -> tuple[Array, ...]:
        r"""The weights along the target directions only, $(c^TQ^T, b, Pa)$ for three layers."""
        layers = Chain.from_state(point).layers if isinstance(point, State) else point.layers
        first, *middle, last = layers
        return first @ self.right, *middle, self.left.T @ last

    def lift(self, network: MLP, point: State | Chain) -> MLP:
        r"""The network at the point `point`.

        The parts of the first and the last layer outside the target directions are those of
        `network`.
        """
        before, after = self.to_weights(self.to_state(network)), self.to_weights(point)
        first, *_, last = network.weights
        return network.replace(
            (first + (after[0] - before[0]), *after[1:-1], last + (after[-1] - before[-1])),
        )

    def astype(self, dtype: jnp.dtype) -> "EffectiveModel":
        """The same model in another floating dtype."""
        fields = (self.left, self.right, self.strength, self.rate, self.gain)
        return EffectiveModel(*(x.astype(dtype) for x in fields))


def plateau_output(network: MLP, data: AbstractData, loss: Loss) -> np.ndarray:
    """The output of a network on its plateau: 0, or with biases the best constant output.

    `data` in the form that `prepared` returns. **Raises:** `ValueError` if an output bias never
    settles.
    """
    if not isinstance(data, Regression):
        return np.zeros(())  # measurements have no output
    if network.biases is None:
        return np.zeros(network.num_outputs)
    return loss.rest(data.targets, network.num_outputs).output


def effective_model(
    network: MLP, data: AbstractData, loss: str | float | LossFunction | Loss = "half_mse"
) -> EffectiveModel:
    r"""The effective model of a network on data: target directions, strengths, time scale.

    **Arguments:** `network`, one or many (only its shapes and its activation matter); `data`;
    `loss`, as of `resolve_loss`.

    **Returns:** an `EffectiveModel` in the dtype of the network. Its rank is that of $V$: at most
    the number of outputs, and one less than the classes with the loss `"softmax"`.

    **Raises:** `ValueError` if $V$ vanishes, so that there is no target direction; if the
    activation is not differentiable at zero or has slope zero there; if the loss has a kink at zero
    output; if network, data and loss do not fit together.
    """
    loss = resolve_loss(loss)
    data = data.prepared(network, loss)
    gain = slope_at_zero(network.activation) ** (network.depth - 1)
    output = plateau_output(network, data, loss)
    pull, at_zero = (loss.pull(data.targets, f) for f in (output, np.zeros_like(output)))
    left, values, right = np.linalg.svd(data.moment(pull, network.bias), full_matrices=False)
    # Singular values of V below this share of the largest count as rounding of the data.
    negligible = float(jnp.finfo(data.targets.dtype).eps) ** (2 / 3)
    scale = max(data.moment_scale(p, network.bias) for p in (pull, at_zero))
    if values[0] <= negligible * scale:
        raise ValueError(
            "The data have no target direction: the sum of y x^T over the samples vanishes (of "
            "other losses than the squared one, with minus the derivative of the loss at zero "
            "output in place of y), and with it the leading order of the dynamics. Follow the "
            "network by `gradient_flow`."
        )
    rank = int(np.sum(values > negligible * values[0]))
    left, right = left[:, :rank].T, right[:rank]
    # The signs of each pair are chosen so that the left direction is positive; with one output the
    # right one is then v.
    signs = np.sign(left[np.arange(rank), np.argmax(np.abs(left), axis=1)])[:, None]
    dtype = network.dtype
    return EffectiveModel(
        # A negative gain reverses the sign of the target.
        left=jnp.asarray(np.sign(gain) * signs * left, dtype),
        right=jnp.asarray(signs * right, dtype),
        strength=jnp.asarray(values[:rank] / values[0], dtype),
        rate=jnp.asarray(abs(gain) * values[0], dtype),
        gain=jnp.asarray(gain, dtype),
    )


def to_state(
    network: MLP, data: AbstractData, loss: str | float | LossFunction | Loss = "half_mse"
) -> State | Chain:
    r"""The point of the effective dynamics that a network with small weights follows.

    **Returns:** for three layers a `State` with $a_i = W_3^TP_i$, $b = W_2$, $c_i = W_1Q_i$ and
    strengths $\lambda_i = \mu_i/\mu_1$, otherwise a `Chain`; a batch for many networks. Its time is
    $|\sigma'(0)|^{L-1}\mu_1$ times training time: `effective_model(...).rate`.

    **Raises:** `ValueError` as `effective_model`.
    """
    model = effective_model(network, data, loss)
    if network.batch_shape:
        return eqx.filter_vmap(model.to_state)(network)
    return model.to_state(network)
