"""Loading pretrained models, and the map from roles to their modules."""
