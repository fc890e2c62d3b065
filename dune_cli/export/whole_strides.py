"""Strided convolutions whose output size torch.export can simplify.

A convolution of kernel 3, stride 2 and padding 1 gives floor((n - 1) / 2) + 1 cells of n. For even n that is n / 2, but
the symbolic shapes of torch do not find out, and carry towers of such terms through the network: an export of
`dune-mini` with sizes left open took more than ten minutes. Without the padding that no output reads the size is
floor((n - 2) / 2) + 1, which is simplified to n / 2.
"""

from __future__ import annotations

import copy

from torch import nn

from dune_cli.models.stems import LiteStem, Stem, XFeatStem


class WholeStrideConv2d(nn.Sequential):
    """A convolution on sides that are multiples of its stride, without the padding that no output reads."""

    def __init__(self, conv: nn.Conv2d, before: int) -> None:
        """`before`: padding at the left and at the top, as `conv` has it."""
        stride, kernel = conv.stride[0], conv.kernel_size[0]
        after = kernel - stride - before
        sizes = (conv.in_channels, conv.out_channels, kernel, stride)
        inner = nn.Conv2d(*sizes, groups=conv.groups, bias=conv.bias is not None)
        inner.weight, inner.bias = conv.weight, conv.bias
        super().__init__(nn.ZeroPad2d((before, after, before, after)), inner)


def with_whole_strides(model: nn.Module) -> nn.Module:
    """A copy of the model in which the stems of `dune-mini` have such convolutions; the model itself without one."""
    if not any(isinstance(part, Stem) for part in model.modules()):
        return model
    model = copy.deepcopy(model)
    for stem in [part for part in model.modules() if isinstance(part, Stem)]:
        for name, conv in list(stem.named_modules()):
            if not isinstance(conv, nn.Conv2d) or conv.stride == (1, 1):
                continue
            if isinstance(stem, XFeatStem) and name.startswith("block5"):  # to stride 32, where sides may be odd
                continue
            same = isinstance(stem, LiteStem)  # TensorFlow's padding: the odd pixel at the end
            before = (conv.kernel_size[0] - conv.stride[0]) // 2 if same else conv.padding[0]
            parent, _, leaf = name.rpartition(".")
            setattr(stem.get_submodule(parent), leaf, WholeStrideConv2d(conv, before))
    return model
