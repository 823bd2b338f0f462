"""Statistics of the inputs of layers, and rows of A that are chosen from them."""
