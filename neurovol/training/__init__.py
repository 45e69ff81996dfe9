"""How it is learned: patches, augmentation, loss and the loop."""
