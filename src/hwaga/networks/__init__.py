"""The networks: one file a family, each a frozen config and a module. Tensors in, tensors out."""
