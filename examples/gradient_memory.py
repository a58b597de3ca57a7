"""What does a gradient cost in memory, and when is the cheapest one wrong?

    python examples/gradient_memory.py            # a few seconds

The whole story, with more methods, seeds and a figure: pynode experiment memory --out DIR
"""

from pynode.experiments.gradient_problems import cost, relaxation, spun_network
from pynode.experiments.live_bytes import LiveBytes

# A network of 4 dimensions, followed for longer and longer. Differentiating through the solver's
# steps keeps the activations of every step; integrating the state backwards keeps nothing.
print("peak memory in kB            T = 1   T = 2   T = 4")
for sensitivity in ("discrete", "interpolating", "backsolve"):
    sizes = []
    for length in (1.0, 2.0, 4.0):
        problem = spun_network(seed=0, end=length)
        with LiveBytes() as memory:
            problem.gradient(sensitivity=sensitivity)
        sizes.append(memory.peak / 1e3)
    print(f"{sensitivity:25s}", *(f"{size:7.0f}" for size in sizes))

# The price: here the state forgets where it came from at the rate λ, so backwards every error
# grows at that rate, and the gradient is wrong without a word.
print("\nrelative error               λ = 5  λ = 10  λ = 20")
for sensitivity in ("discrete", "interpolating", "backsolve"):
    errors = []
    for decay in (5.0, 10.0, 20.0):
        problem = relaxation(seed=0, decay=decay)
        found = cost(problem, problem.truth(), sensitivity=sensitivity, memory=False)
        errors.append(found["error"])
    verdict = "wrong" if max(errors) > 0.01 else "fine"
    print(f"{sensitivity:25s}", *(f"{error:7.0e}" for error in errors), f"  {verdict}")
