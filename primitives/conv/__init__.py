"""The loop nests of convolution: direct, Winograd, depthwise, and the choice among them."""
