"""The README's own loop runs as printed."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import optax

import isjax

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_the_ten_lines_of_the_readme_train():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    num_examples = 2000
    x = jax.random.normal(jax.random.key(0), (num_examples, 4))
    train = {"x": x, "label": (x[:, 0] > 0).astype(jnp.int32)}

    def loss_fn(params, batch):
        logits = batch["x"] @ params
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    names = {"functools": functools, "isjax": isjax, "jax": jax, "optax": optax}
    names |= {"loss_fn": loss_fn, "num_examples": num_examples, "tx": optax.sgd(0.5)}
    exec(code, names)
    params, is_state = jnp.zeros((4, 2)), names["is_state"]
    opt_state = names["tx"].init(params)
    before = float(jnp.mean(loss_fn(params, train)))
    for step in range(30):
        key = jax.random.fold_in(jax.random.key(1), step)
        params, opt_state, is_state, loss = names["train_step"](
            key, params, opt_state, is_state, train
        )
    assert jnp.isfinite(loss)
    assert float(jnp.mean(loss_fn(params, train))) < before / 2
