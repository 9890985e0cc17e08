"""mnist-lit: MNIST with PyTorch Lightning, Hydra and TensorBoard, done properly."""

__version__ = "0.1.0"
