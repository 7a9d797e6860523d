"""Kernels: the chunk forms of ``ops`` as few launches on a GPU, each beside the same mathematics in plain torch.

``path`` is what ``scan`` sees; ``delta`` the readable form of a kernel, ``delta_op`` its operator, an autograd function that ``torch.compile``
takes for one node, and ``programs`` hold the Triton. They sum in float32, whatever their inputs are. They have been run under Triton's
interpreter and compiled for a GPU (sm_90), and never yet run on one.
"""
