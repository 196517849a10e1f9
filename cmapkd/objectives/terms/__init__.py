"""Loss terms, each a function of tensors with its formula in the header; methods combine them."""
