"""Whether a shrunk archive does what the masked one does: the original with zeros where removed channels are consumed."""
