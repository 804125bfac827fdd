"""Two dimensions as a laboratory: every process, objective and sampler on points whose score is known exactly.

points.py      mixtures of Gaussians, moons, a spiral: their noised densities and scores as formulas
learning.py    a perceptron trained by the library's own loop; sampling by any of its samplers
measuring.py   learned against exact score, two-sample tests, how straight paths are
few.py         students of few steps beside their teachers
figures.py     what `hwaga lab` draws
"""
