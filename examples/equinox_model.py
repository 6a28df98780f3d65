"""Importance sampling with Equinox: python examples/equinox_model.py.

`eqx.partition` separates a model's arrays from its functions. Equinox comes with
`pip install '.[notebooks]'` in a checkout.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import isjax

num_examples = 5000
x = jax.random.normal(jax.random.key(0), (num_examples, 8))
train = {"x": x, "label": (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)}

network = eqx.nn.MLP(8, 2, width_size=64, depth=1, key=jax.random.key(1))
params, functions = eqx.partition(network, eqx.is_inexact_array)


def loss_fn(params, model_state, batch, key):
    """Returns one loss for each example of the batch."""
    logits = jax.vmap(eqx.combine(params, functions))(batch["x"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses, model_state


tx = optax.adam(3e-3)
num_steps = 501
sampler = isjax.recipes.default(batch_size=128, num_steps=num_steps, initial_loss=0.7)
state = isjax.init_train_state(jax.random.key(2), params, tx, sampler, num_examples)
train_step = isjax.make_train_step(loss_fn, tx, sampler)

for step in range(num_steps):
    state, metrics = train_step(state, train)
    if step % 100 == 0:
        loss, ess = metrics["loss"], metrics["ess"]
        print(f"step {step}: loss {loss:.3f}, effective sample size {ess:.0%} of the data set")

model = eqx.combine(state.params, functions)
accuracy = jnp.mean(jnp.argmax(jax.vmap(model)(train["x"]), axis=-1) == train["label"])
print(f"train accuracy {accuracy:.1%}")
