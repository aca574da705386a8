"""What a trained net is used for: its card, predictions, export, rewriting as an equal and faster net."""
