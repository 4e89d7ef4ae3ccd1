r"""BibTeX entries for the paper, for jaxcond, and for the methods and libraries in use."""

import sys

from . import __version__

# What is always cited.
_PAPER = """@misc{chen2024dynamics,
  author = {Chen, Zheng-An and Luo, Tao},
  title = {On the dynamics of three-layer neural networks: initial condensation},
  year = {2024},
  eprint = {2402.15958},
  archiveprefix = {arXiv},
}"""
_JAXCOND = f"""@software{{jaxcond,
  author = {{{{The jaxcond authors}}}},
  title = {{jaxcond: initial condensation of three-layer networks, in JAX}},
  version = {{{__version__}}},
  year = {{2026}},
}}"""

# Entries by the module that uses the method or the library.
_ENTRIES = {
    "jax": """@software{jax2018github,
  author = {Bradbury, James and Frostig, Roy and Hawkins, Peter and Johnson, Matthew James and
            Leary, Chris and Maclaurin, Dougal and Necula, George and Paszke, Adam and
            VanderPlas, Jake and Wanderman-Milne, Skye and Zhang, Qiao},
  title = {{JAX}: composable transformations of {Python}+{NumPy} programs},
  url = {http://github.com/jax-ml/jax},
  year = {2018},
}""",
    "equinox": """@article{kidger2021equinox,
  author = {Kidger, Patrick and Garcia, Cristian},
  title = {Equinox: neural networks in {JAX} via callable {PyTrees} and filtered transformations},
  journal = {Differentiable Programming workshop at Neural Information Processing Systems},
  year = {2021},
}""",
    "diffrax": """@phdthesis{kidger2021on,
  author = {Kidger, Patrick},
  title = {On Neural Differential Equations},
  school = {University of Oxford},
  year = {2021},
}""",
    "jaxcond._reduction": """@article{saunders1988two,
  author = {Saunders, Michael A. and Simon, Horst D. and Yip, Elizabeth L.},
  title = {Two conjugate-gradient-type methods for unsymmetric linear equations},
  journal = {SIAM Journal on Numerical Analysis},
  volume = {25},
  number = {4},
  pages = {927--940},
  year = {1988},
}""",
    "jaxcond.bounds": """@article{carlson1995numerical,
  author = {Carlson, Bille C.},
  title = {Numerical computation of real or complex elliptic integrals},
  journal = {Numerical Algorithms},
  volume = {10},
  pages = {13--26},
  year = {1995},
}""",
    "jaxcond.networks._staircase": """@inproceedings{saxe2014exact,
  author = {Saxe, Andrew M. and McClelland, James L. and Ganguli, Surya},
  title = {Exact solutions to the nonlinear dynamics of learning in deep linear neural networks},
  booktitle = {International Conference on Learning Representations},
  year = {2014},
}""",
    "flint": """@article{johansson2017arb,
  author = {Johansson, Fredrik},
  title = {Arb: efficient arbitrary-precision midpoint-radius interval arithmetic},
  journal = {IEEE Transactions on Computers},
  volume = {66},
  pages = {1281--1292},
  year = {2017},
}""",
    "xarray": """@article{hoyer2017xarray,
  author = {Hoyer, Stephan and Hamman, Joe},
  title = {xarray: {N-D} labeled arrays and datasets in {Python}},
  journal = {Journal of Open Research Software},
  volume = {5},
  number = {1},
  year = {2017},
}""",
    "matplotlib": """@article{hunter2007matplotlib,
  author = {Hunter, John D.},
  title = {Matplotlib: A {2D} graphics environment},
  journal = {Computing in Science \\& Engineering},
  volume = {9},
  number = {3},
  pages = {90--95},
  year = {2007},
}""",
}


def citation() -> str:
    """BibTeX for what this session has used.

    **Returns:** entries for the paper of Chen and Luo and for jaxcond, and for each method and
    library whose module is loaded. Modules load on first use, so call it at the end of a script:
    `print(jc.citation())`.
    """
    used = [entry for module, entry in _ENTRIES.items() if module in sys.modules]
    return "\n\n".join([_PAPER, _JAXCOND, *used]) + "\n"
