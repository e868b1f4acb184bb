"""The other kernels: element-wise maps, layouts, pooling, depthwise, Winograd, recurrent cells."""
