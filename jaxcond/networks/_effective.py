r"""The map between a real network and the state of the effective dynamics.

With $V = \frac1n\sum_i y_i x_i^T = P\,\mathrm{diag}(\mu)\,Q^T$ and the loss
$\frac\kappa n\sum\|f-y\|^2$, gradient flow of a network with small weights is, to leading order,

$$\dot\theta = \nabla_\theta\; 2\kappa\,\sigma'(0)^2 \langle W^3W^2W^1, V\rangle
  = 2\kappa\,\sigma'(0)^2\mu_1\; \nabla_\theta E,
\qquad E = \sum_i \lambda_i\, a_i^T b\, c_i,$$

with $\lambda_i = \mu_i/\mu_1$ and $a_i = (W^3)^T P_i$, $b = W^2$, $c_i = W^1 Q_i$. So the state of
a network is its weights as they are, and

$$\bar t = 2\kappa\,\sigma'(0)^2\,\mu_1\; t$$

is its time. (The paper divides the weights by their standard deviation $\varepsilon$ and multiplies
time by it, which is the same flow: $T^*(\kappa\theta) = T^*(\theta)/\kappa$.) What $W^1$ and $W^3$
have outside $Q$ and $P$ does not move.

Source: Chen and Luo, eqs. (3.7), (3.8), (3.10) for one output, (A.8) for several.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._state import State
from ._data import AbstractData, loss_factor
from ._modules import ThreeLayer, slope_at_zero


class EffectiveModel(eqx.Module):
    r"""What the data and the activation make of the effective dynamics of a network.

    - `left`: $P^T$, shape `(rank, outputs)`; `right`: $Q^T$, shape `(rank, features)`: the target
      directions. With one output `right[0]` is the paper's $v$, and `left` is 1.
    - `strength`: $\lambda_i = \mu_i/\mu_1$, shape `(rank,)`; 1 with one output.
    - `rate`: $d\bar t/dt = 2\kappa\sigma'(0)^2\mu_1$, effective time for a unit of training time.
    - `slope`: $\sigma'(0)$.
    """

    left: Float[Array, "rank outputs"]
    right: Float[Array, "rank features"]
    strength: Float[Array, " rank"]
    rate: Float[Array, ""]
    slope: Float[Array, ""]

    def to_state(self, network: ThreeLayer) -> State:
        """The state of one network: its weights along the target directions, as they are."""
        return State(self.left @ network.w3, network.w2, self.right @ network.w1.T, self.strength)

    def lift(self, network: ThreeLayer, state: State) -> ThreeLayer:
        r"""The network whose state is `state`.

        What $W^1$ and $W^3$ of `network` have outside the target directions is kept.
        """
        before = self.to_state(network)
        return network.replace(
            network.w1 + (state.c - before.c).T @ self.right,
            state.b,
            network.w3 + self.left.T @ (state.a - before.a),
        )

    def astype(self, dtype: jnp.dtype) -> "EffectiveModel":
        """The same in another floating dtype."""
        fields = (self.left, self.right, self.strength, self.rate, self.slope)
        return EffectiveModel(*(x.astype(dtype) for x in fields))


def effective_model(
    network: ThreeLayer, data: AbstractData, loss: str | float = "half_mse"
) -> EffectiveModel:
    r"""The effective model of a network on some data: target directions, strengths, time scale.

    **Arguments:** `network`, one or many (only its shapes and its activation matter); `data`;
    `loss`, as of `loss_factor`.

    **Returns:** an `EffectiveModel` in the dtype of the network. Its rank is that of $V$, at most
    the number of outputs.

    **Raises:** `ValueError` if $V$ vanishes, so that there is no target direction; if the
    activation has no slope at zero, or none but zero; if network and data do not fit.
    """
    factor = loss_factor(loss)
    data.check(network)
    slope = slope_at_zero(network.activation)
    moment = data.moment(network.bias)
    left, values, right = np.linalg.svd(moment, full_matrices=False)
    # Singular values of V below this share of the largest are taken for rounding of the data.
    negligible = float(jnp.finfo(data.targets.dtype).eps) ** (2 / 3)
    if values[0] <= negligible * data.moment_scale(network.bias):
        raise ValueError(
            "The data have no target direction: the sum of y x^T over the samples vanishes, and "
            "with it the leading order of the dynamics."
        )
    rank = int(np.sum(values > negligible * values[0]))
    left, right = left[:, :rank].T, right[:rank]
    # Of the two signs of a pair of directions, that which makes the left one positive: v itself.
    signs = np.sign(left[np.arange(rank), np.argmax(np.abs(left), axis=1)])[:, None]
    dtype = network.dtype
    return EffectiveModel(
        left=jnp.asarray(signs * left, dtype),
        right=jnp.asarray(signs * right, dtype),
        strength=jnp.asarray(values[:rank] / values[0], dtype),
        rate=jnp.asarray(2 * factor * slope**2 * values[0], dtype),
        slope=jnp.asarray(slope, dtype),
    )


def to_state(network: ThreeLayer, data: AbstractData, loss: str | float = "half_mse") -> State:
    r"""The state of the effective dynamics that a network with small weights follows.

    **Returns:** a `State` with $a_i = (W^3)^TP_i$, $b = W^2$, $c_i = W^1Q_i$ and strengths
    $\lambda_i = \mu_i/\mu_1$; of many networks, a batch. Its time is $2\kappa\sigma'(0)^2\mu_1$
    times training time: `effective_model(...).rate`.

    **Raises:** `ValueError` as `effective_model`.
    """
    model = effective_model(network, data, loss)
    if network.batch_shape:
        return eqx.filter_vmap(model.to_state)(network)
    return model.to_state(network)
