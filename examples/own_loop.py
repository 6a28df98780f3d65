"""Importance sampling in a plain JAX loop: python examples/own_loop.py."""

import functools

import jax
import jax.numpy as jnp
import optax

import isjax

num_examples = 5000
x = jax.random.normal(jax.random.key(0), (num_examples, 8))
train = {"x": x, "label": (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)}


def loss_fn(params, batch):
    """Returns one loss for each example of the batch."""
    hidden = jax.nn.relu(batch["x"] @ params["hidden"])
    logits = hidden @ params["output"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


keys = jax.random.split(jax.random.key(1), 2)
initialise = jax.nn.initializers.he_normal()
params = {"hidden": initialise(keys[0], (8, 64)), "output": initialise(keys[1], (64, 2))}
tx = optax.adam(3e-3)
opt_state = tx.init(params)

sampler = isjax.importance_sampler(
    isjax.scorers.last_loss(),
    isjax.chain(isjax.smooth_by_mean(0.5), isjax.mix_uniform(0.1)),
    batch_size=128,
    k=0.5,  # k = 1: unbiased; smaller: harder examples
)
value_and_grad = isjax.weighted_value_and_grad(loss_fn)
is_state = sampler.init(jax.random.key(2), num_examples)


@functools.partial(jax.jit, donate_argnums=(1, 2, 3))
def train_step(key, params, opt_state, is_state, train):
    """Draws a batch, trains on it and tells the sampler its losses."""
    pool_key, draw_key = jax.random.split(key)
    ids = isjax.presample(pool_key, num_examples, 1024)
    draw, is_state = sampler.sample(draw_key, is_state, ids)
    batch = jax.tree.map(lambda x: x[draw.ids], train)
    (_, losses), grads = value_and_grad(params, batch, draw.weights)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    is_state = sampler.update(is_state, draw, losses)
    loss = isjax.diagnostics.mean_loss(draw, losses)  # unbiased for every k
    return params, opt_state, is_state, loss, draw.ess


for step in range(501):
    key = jax.random.fold_in(jax.random.key(3), step)
    params, opt_state, is_state, loss, ess = train_step(key, params, opt_state, is_state, train)
    if step % 100 == 0:
        print(f"step {step}: loss {loss:.3f}, effective sample size {ess:.0%} of the pool")
