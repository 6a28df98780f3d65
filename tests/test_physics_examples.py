"""The physics problems in examples/: their equations, conditions and reference solutions."""

import importlib
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
POINTS = jnp.array([[0.3, 0.2], [0.7, -0.6]])


@pytest.fixture(scope="module")
def problems():
    """Returns `(name) -> module` of an example."""
    sys.path.append(str(EXAMPLES))
    yield importlib.import_module
    sys.path.remove(str(EXAMPLES))


def burgers(v, first, second):
    return first[0] + v * first[1] - 0.01 / jnp.pi * second[1]


def allen_cahn(v, first, second):
    return first[0] - 1e-4 * second[1] - 5 * (v - v**3)


def poisson_peak(v, first, second):
    return second[0] + second[1]


def convection(v, first, second):
    return first[0] + 30 * first[1]


def derivatives(function, point):
    """Value, first and second derivatives by nested reverse mode."""
    return function(point), jax.grad(function)(point), jnp.diag(jax.hessian(function)(point))


@pytest.mark.slow
@pytest.mark.parametrize("equation", [burgers, allen_cahn, poisson_peak, convection])
def test_the_residual_is_that_of_the_equation(problems, equation):
    problem = problems(equation.__name__)

    @jax.jit
    def both(params, points):
        u = lambda point: problem.u(params, *point[:, None])[0]  # noqa: E731
        left = lambda function: equation(*derivatives(function, point))  # noqa: E731
        expected = []
        for point in points:
            right = 0.0
            if equation is poisson_peak:
                right = left(lambda point: problem.exact(*point))
            expected.append(left(u) - right)
        return jnp.stack(expected), problem.residual(params, points)

    expected, found = both(problem.init(jax.random.key(0)), POINTS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_conditions_hold_whatever_the_network_says(problems):
    x, zero, one = jnp.linspace(-1, 1, 9), jnp.zeros(9), jnp.ones(9)

    def u(name, *point):
        problem = problems(name)
        return problem.u(problem.init(jax.random.key(0)), *point)

    close = lambda found, expected: np.testing.assert_allclose(found, expected, atol=1e-5)  # noqa: E731
    close(u("burgers", zero, x), -jnp.sin(jnp.pi * x))
    close(u("burgers", 0.1 + x**2, one), 0)
    close(u("allen_cahn", zero, x), x**2 * jnp.cos(jnp.pi * x))
    close(u("allen_cahn", x**2, one), u("allen_cahn", x**2, -one))
    close(u("poisson_peak", x, one), 0)
    close(u("poisson_peak", -one, x), 0)
    close(u("convection", zero, x), jnp.sin(x))
    close(u("convection", x**2, x), u("convection", x**2, x + 2 * jnp.pi))


def test_the_reference_of_burgers_solves_the_equation(problems):
    reference, h = problems("burgers").reference, 1e-4
    t, x = np.array([0.2, 0.3 - h, 0.3, 0.3 + h]), np.array([-0.5, -0.2, 0.3, 0.8])
    u = reference(t, x)
    u_t = (u[3] - u[1]) / (2 * h)
    left, right = reference(t, x - h)[2], reference(t, x + h)[2]
    u_x, u_xx = (right - left) / (2 * h), (right - 2 * u[2] + left) / h**2
    np.testing.assert_allclose(u_t + u[2] * u_x, 0.01 / np.pi * u_xx, atol=1e-4)
    np.testing.assert_allclose(reference(np.array([1e-9]), x)[0], -np.sin(np.pi * x), atol=1e-6)


def test_the_reference_of_allen_cahn_has_converged(problems):
    problem = problems("allen_cahn")
    _, coarse = problem.reference(problem.TIMES, 256)
    difference = np.linalg.norm(coarse - problem.TRUTH[:, ::2]) / np.linalg.norm(coarse)
    assert difference < 1e-4
    np.testing.assert_allclose(
        problem.TRUTH[0], problem.PLACES**2 * np.cos(np.pi * problem.PLACES), atol=1e-12
    )
