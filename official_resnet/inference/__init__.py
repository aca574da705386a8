"""What trained networks are used for: cards, predictions, Grad-CAM, export, rewriting as equal and faster networks."""
