"""The use of trained networks: cards, predictions, Grad-CAM, export, and rewriting for faster inference."""
