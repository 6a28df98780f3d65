"""An image as a function of its coordinates: python examples/image_field.py.

A small network learns the colour of each pixel. Pixels are the examples, and the train error is the
goal. Trains by uniform draws and by importance for equally many steps, and writes both pictures.
It needs `pip install '.[images]'` in a checkout.
"""

import argparse
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import isjax
import isjax.data

matplotlib.use("agg")
import matplotlib.pyplot as plt


def pixels(image):
    """Returns the examples: coordinates `x` [N, 2] in [-1, 1] and colours `y` [N, channels]."""
    axes = [np.linspace(-1, 1, side, dtype=np.float32) for side in image.shape[:2]]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return {"x": grid.reshape(-1, 2), "y": image.reshape(-1, image.shape[2])}


def init_fourier(key, outputs, width=128, depth=3, scale=8.0):
    """Returns parameters of an MLP on random Fourier features (arXiv 2006.10739)."""
    frequency_key, *keys = jax.random.split(key, depth + 1)
    sizes = itertools.pairwise([width] * depth + [outputs])
    make = jax.nn.initializers.he_normal()
    layers = [(make(key, size), jnp.zeros(size[1])) for key, size in zip(keys, sizes, strict=True)]
    return {"frequencies": scale * jax.random.normal(frequency_key, (2, width // 2))}, layers


def fourier(params, x):
    """Maps coordinates [b, 2] to colours [b, outputs]."""
    fixed, layers = params
    angles = 2 * jnp.pi * x @ jax.lax.stop_gradient(fixed["frequencies"])
    h = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    for weight, bias in layers[:-1]:
        h = jax.nn.relu(h @ weight + bias[None])
    return h @ layers[-1][0] + layers[-1][1][None]


def init_siren(key, outputs, width=128, depth=3):
    """Returns parameters of an MLP with sines in place of ReLU (arXiv 2006.09661)."""
    layers = []
    for before, after in itertools.pairwise([2] + [width] * depth + [outputs]):
        key, weight_key = jax.random.split(key)
        limit = (6 / before) ** 0.5 / FREQUENCY if layers else 1 / before
        weight = jax.random.uniform(weight_key, (before, after), minval=-limit, maxval=limit)
        layers.append((weight, jnp.zeros(after)))
    return layers


def siren(layers, x):
    """Maps coordinates [b, 2] to colours [b, outputs]."""
    for weight, bias in layers[:-1]:
        x = jnp.sin(FREQUENCY * (x @ weight + bias[None]))
    return x @ layers[-1][0] + layers[-1][1][None]


FREQUENCY = 30.0
NETWORKS = {"fourier": (init_fourier, fourier), "siren": (init_siren, siren)}


def make_sampler(method, batch_size, k=0.5, smoothing=0.25, initial_loss=0.1):
    """Returns the sampler: "uniform", "reshuffled", by the "loss", or by its "root"."""
    if method in ("uniform", "reshuffled"):
        return getattr(isjax.recipes, method)(batch_size=batch_size)
    exponent = {"loss": 1.0, "root": 0.5}[method]  # the root of the loss is the norm of the error
    return isjax.recipes.default(
        batch_size=batch_size,
        k=k,
        smoothing=smoothing,
        exponent=exponent,
        until=1,
        initial_loss=initial_loss**exponent,
    )


def make_run(train, network, sampler, steps, learning_rate, width=128):
    """Returns `start(seed) -> state` and `step(state, train) -> (state, (loss, ess))`."""
    num_examples, outputs = train["y"].shape
    init, apply = NETWORKS[network]
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def loss_fn(params, batch):
        return jnp.mean(jnp.square(apply(params, batch["x"]) - batch["y"]), axis=1)

    value_and_grad = isjax.weighted_value_and_grad(loss_fn)

    def start(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        params = init(keys[0], outputs, width)
        return keys[1], params, tx.init(params), sampler.init(keys[2], num_examples)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, train):
        key, params, opt_state, is_state = state
        key, pool_key, draw_key = jax.random.split(key, 3)
        # Samplers with a pool of their own choose from all pixels.
        size = sampler.batch_size
        ids = None if sampler.own_pool else isjax.presample(pool_key, num_examples, size)
        draw, is_state = sampler.sample(draw_key, is_state, ids)
        batch = jax.tree.map(lambda x: x[draw.ids], train)
        (_, losses), grads = value_and_grad(params, batch, draw.weights)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        is_state = sampler.update(is_state, draw, losses)
        loss = isjax.diagnostics.mean_loss(draw, losses)  # unbiased for every k
        return (key, params, opt_state, is_state), (loss, draw.ess)

    return start, step


def fit(
    image,
    method,
    *,
    network="fourier",
    steps=2000,
    batch_size=256,
    learning_rate=5e-3,
    width=128,
    seed=0,
    **options,
):
    """Trains a network on an image. Returns its picture of it; `options` are of the sampler."""
    train = jax.tree.map(jnp.asarray, pixels(image))
    sampler = make_sampler(method, batch_size, initial_loss=float(image.var()), **options)
    start, step = make_run(train, network, sampler, steps, learning_rate, width)
    state = start(seed)
    for _ in range(steps):
        state, _ = step(state, train)
    return render(network, state[1], image.shape)


def render(network, params, shape):
    """Returns the picture that a network has learned."""
    x = pixels(np.zeros(shape, np.float32))["x"]
    parts = np.array_split(x, -(-len(x) // 2**16))
    colours = [NETWORKS[network][1](params, part) for part in parts]
    return np.concatenate(colours).reshape(shape)


def psnr(picture, image):
    """Returns the peak signal-to-noise ratio in decibels."""
    return float(-10 * np.log10(np.mean(np.square(picture - image, dtype=np.float64))))


def largest_error(picture, image):
    """Returns the largest error of a colour, of a range of 1."""
    return float(np.max(np.abs(picture - image)))


def draw_pictures(image, pictures, path):
    """Writes the image, the pictures by name, and maps of their errors."""
    figure, axes = plt.subplots(
        2, len(pictures) + 1, figsize=(3.2 * len(pictures) + 3.2, 6.2), layout="compressed"
    )
    gray = {"cmap": "gray", "vmin": 0, "vmax": 1}
    errors = {name: np.abs(picture - image).max(axis=2) for name, picture in pictures.items()}
    highest = np.quantile(np.stack(list(errors.values())), 0.995)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(image, **gray)
    axes[0, 0].set_title("image")
    for column, (name, picture) in enumerate(pictures.items(), 1):
        axes[0, column].imshow(np.clip(picture, 0, 1), **gray)
        axes[0, column].set_title(f"{name}: {psnr(picture, image):.1f} dB")
        shown = axes[1, column].imshow(errors[name], cmap="magma", vmin=0, vmax=highest)
        axes[1, column].set_title(f"error, at most {largest_error(picture, image):.2f}")
    figure.colorbar(shown, ax=axes[1, 0], location="left", fraction=0.3, label="absolute error")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Trains by each method, prints the errors and writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", default="camera", help="camera, astronaut, coffee, china, ...")
    parser.add_argument("--size", type=int, default=96, help="longer side; 0 = that of the image")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="fourier")
    parser.add_argument("--methods", nargs="+", default=["uniform", "root"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--k", type=float, default=0.5, help="1 is unbiased")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="build/image_field.png")
    args = parser.parse_args()
    image, pictures = isjax.data.bundled_image(args.image, args.size), {}
    for method in args.methods:
        options = {} if method in ("uniform", "reshuffled") else {"k": args.k}
        pictures[method] = fit(
            image,
            method,
            network=args.network,
            steps=args.steps,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            seed=args.seed,
            **options,
        )
        decibels, error = psnr(pictures[method], image), largest_error(pictures[method], image)
        print(f"{method}: PSNR {decibels:.2f} dB, largest error {error:.3f}")
    draw_pictures(image, pictures, args.picture)


if __name__ == "__main__":
    main()
