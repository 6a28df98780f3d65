"""Importance sampling with Flax NNX: python examples/nnx.py.

`nnx.split` takes a model apart into its structure and its parameters, a pytree.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import isjax

num_examples = 5000
x = jax.random.normal(jax.random.key(0), (num_examples, 8))
train = {"x": x, "label": (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)}


rngs = nnx.Rngs(0)
network = nnx.Sequential(nnx.Linear(8, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 2, rngs=rngs))
structure, params = nnx.split(network, nnx.Param)


def loss_fn(params, model_state, batch, key):
    """Returns one loss for each example of the batch."""
    logits = nnx.merge(structure, params)(batch["x"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses, model_state


tx = optax.adam(3e-3)
num_steps = 501
sampler = isjax.recipes.default(batch_size=128, num_steps=num_steps, initial_loss=0.7)
state = isjax.init_train_state(jax.random.key(1), params, tx, sampler, num_examples)
train_step = isjax.make_train_step(loss_fn, tx, sampler)

for step in range(num_steps):
    state, metrics = train_step(state, train)
    if step % 100 == 0:
        loss, ess = metrics["loss"], metrics["ess"]
        print(f"step {step}: loss {loss:.3f}, effective sample size {ess:.0%} of the data set")

model = nnx.merge(structure, state.params)
accuracy = jnp.mean(jnp.argmax(model(train["x"]), axis=-1) == train["label"])
print(f"train accuracy {accuracy:.1%}")
