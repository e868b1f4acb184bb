"""What trains: optimizers and a multi-layer perceptron."""
