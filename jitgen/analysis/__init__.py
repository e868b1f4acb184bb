"""How fast a kernel can be: machine facts, counts, bounds."""
